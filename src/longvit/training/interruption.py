"""Being stopped in good order: SIGTERM (a scheduler), SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning before the time limit).

The signal only leaves a note; the loop looks at it between two optimiser steps, writes a checkpoint and raises
`Interrupted`. While a model is evaluated nothing moves, so there the signal breaks in at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after a checkpoint: started again it goes on where it was."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint")
        self.exit_code = 128 + number
        """What a shell calls a process that the signal ended: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1."""


class StopSignals:
    """Catches `SIGNALS` while it is entered (in the main thread only: Python knows no other way) and puts the former
    handlers back afterwards. A signal that is ignored (nohup, a job in the background) stays ignored.

    A Ctrl-C after any of them is no longer patient: it raises KeyboardInterrupt at once, without a checkpoint.
    """

    def __init__(self, *, log: bool = True) -> None:
        self.received: int | None = None
        """The first signal that came."""
        self._say, self._breaks_in = log, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def check(self) -> None:
        """Raises `Interrupted` where a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def breaking_in(self) -> Iterator[None]:
        """In here the first signal raises `Interrupted` where it finds the program."""
        self._breaks_in = True
        try:
            self.check()
            yield
        finally:
            self._breaks_in = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or number
        if not is_first and number == signal.SIGINT:
            raise KeyboardInterrupt
        if is_first and self._breaks_in:
            raise Interrupted(number)
        if is_first and self._say:  # a write of its own: a handler may interrupt a print
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):
                os.write(2, f"\n{name}: this step, a checkpoint, then the end (Ctrl-C now: at once)\n".encode())
