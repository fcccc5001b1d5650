"""What every process that works for another one needs: it ends with its parent, and its parent can say how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading


def end_with_parent() -> None:
    """Ends this process, from a thread, when the one that holds the other end of standard input (a pipe that nobody
    writes to) is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def how_it_ended(code: int | None) -> str:
    """A process's return code in words: SIGSEGV, or exit code 1."""
    if code is None:
        return "it does not end"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
