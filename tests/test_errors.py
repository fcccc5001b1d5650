"""An error of any library is one line that a terminal and a table can take."""

from __future__ import annotations

import pytest

from longvit.errors import InputError, describe_error, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError("a\x00\x1b[31mred"), "a [31mred"),
        (ValueError("  "), "ValueError"),
        (OSError(5, "no\tread"), "[Errno 5] no read"),
        (FileNotFoundError("slide\udcff.svs"), "slide\udcff.svs"),  # a file name that is not UTF-8
    ],
)
def test_text_is_one_printable_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_text_is_cut_off() -> None:
    assert one_line(ValueError("x" * 99), 10) == "x" * 10


def test_errors_of_libraries_have_their_type_and_ours_stand_alone() -> None:
    assert describe_error(KeyError("a")) == "KeyError: 'a'"
    assert describe_error(MemoryError()) == "MemoryError"
    assert describe_error(InputError("a.svs: damaged;\n copy it again"), 5) == "a.svs: damaged; copy it again"
