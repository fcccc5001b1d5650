"""Standard streams that never end a command: closed ones, a full disk, a reader that is gone (`| head`).

A run of hours must not end, nor lose its exit code, because a line about it cannot be written. So what a stream does
not take is dropped. An error of standard output is remembered and told at the end (`output_error`); a reader that has
seen enough is no error, and nobody hears of an error of standard error.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO

_errors: dict[int, OSError] = {}


class _Steady(io.FileIO):
    """A file that takes everything, and drops what its descriptor does not take."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.fileno() not in _errors:
            try:
                n = super().write(view[done:])
            except OSError as error:
                _errors[self.fileno()] = error
                break
            if n is None:  # set to non-blocking by whoever shares it
                select.select([], [self], [])
            done += n or 0
        return len(view)


def steady_streams() -> None:
    """Puts steady streams in the place of this process's own (not of those that somebody has put there, as tests
    do). A closed one is opened on /dev/null, or the next file that is opened would take its number."""
    _errors.clear()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream, own = getattr(sys, name), number
        try:
            os.fstat(number)
            if stream is None:  # another file has its number by now: nothing may be printed into that one
                own = os.open(os.devnull, os.O_RDWR)
        except OSError:
            own = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, hence this one
            os.set_inheritable(own, True)
        if number and (stream is None or stream is getattr(sys, f"__{name}__")):
            setattr(sys, name, _steady(own, stream))


def output_error() -> OSError | None:
    """Why standard output is not whole; None where it is, or where its reader has left."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    error = _errors.get(1)
    return None if isinstance(error, BrokenPipeError) else error


def _steady(number: int, stream: TextIO | None) -> TextIO:
    """Prints what its encoding has no letter for as an escape, instead of failing."""
    encoding, is_direct = "utf-8", False
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            stream.flush()
        encoding, is_direct = stream.encoding, stream.write_through
    raw = _Steady(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if is_direct else io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
        write_through=is_direct,
    )
