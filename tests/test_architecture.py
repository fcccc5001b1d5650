"""docs/architecture.md lists every source file, with the first sentence of its docstring."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_the_list_of_files_is_that_of_the_source() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "map_files.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_docstring_of_a_file_begins_with_a_sentence_for_the_list() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `") and ".py` |" in line]
    assert len(rows) > 200
    assert not [row for row in rows if row.rstrip(" |").endswith(".py`")], "a file without a docstring"
