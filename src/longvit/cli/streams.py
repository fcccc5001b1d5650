"""Standard streams whose errors never end a command: closed streams, a full disk, a closed pipe (`| head`).

A run of hours must not end or lose its exit code because a log line cannot be written. Output that a stream rejects is
therefore dropped. An error of standard output is stored and reported at the end (`output_error`). A closed pipe is no
error. Errors of standard error are ignored.
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
    """File that accepts all writes and drops those that its descriptor rejects."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.fileno() not in _errors:
            try:
                n = super().write(view[done:])
            except OSError as error:
                _errors[self.fileno()] = error
                break
            if n is None:  # another process that shares the descriptor made it non-blocking
                select.select([], [self], [])
            done += n or 0
        return len(view)


def steady_streams() -> None:
    """Replaces this process's standard streams by steady ones, except streams that were replaced already (by tests).

    A closed stream is opened on /dev/null; otherwise the next opened file would get its descriptor.
    """
    _errors.clear()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream, own = getattr(sys, name), number
        try:
            os.fstat(number)
            if stream is None:  # another file has this descriptor: it must not receive prints
                own = os.open(os.devnull, os.O_RDWR)
        except OSError:
            own = os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
            os.set_inheritable(own, True)
        if sys.platform == "win32" and stream is not None and stream.isatty():
            continue  # Python writes characters to the console of Windows, not bytes
        if number and (stream is None or stream is getattr(sys, f"__{name}__")):
            setattr(sys, name, _steady(own, stream))


def output_error() -> OSError | None:
    """The error that truncated standard output; None if there was none or the pipe was closed."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    error = _errors.get(1)
    return None if isinstance(error, BrokenPipeError) else error


def _steady(number: int, stream: TextIO | None) -> TextIO:
    """Steady text stream; characters that its encoding lacks are printed as escapes."""
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
