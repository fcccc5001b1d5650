"""Orderly stop by a signal: SIGTERM (a scheduler), SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning before the time limit).

The handler only records the signal. The loop checks it between two optimiser steps, writes a checkpoint and raises
`Interrupted`. An evaluation changes no parameters, so there the signal raises at once.
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

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK") if hasattr(signal, name))
"""Windows has no SIGUSR1; SIGBREAK is its Ctrl-Break."""


class Interrupted(KeyboardInterrupt):
    """Stop of a run by a signal, after a checkpoint; the same command resumes the run."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint")
        self.exit_code = 128 + number
        """Exit code of a process ended by the signal: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1."""


class StopSignals:
    """Handlers of `SIGNALS` while the context is entered; the former handlers are restored afterwards.

    Python allows handlers in the main thread only. A signal that is ignored (nohup, a background job) stays ignored. A
    Ctrl-C after another signal raises KeyboardInterrupt at once, without a checkpoint.
    """

    def __init__(self, *, log: bool = True) -> None:
        self.received: int | None = None
        """First signal received."""
        self._log, self._raises_at_once = log, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def check(self) -> None:
        """Raises `Interrupted` where a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def raising_at_once(self) -> Iterator[None]:
        """Context in which the first signal raises `Interrupted` at once."""
        self._raises_at_once = True
        try:
            self.check()
            yield
        finally:
            self._raises_at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or number
        if not is_first and number == signal.SIGINT:
            raise KeyboardInterrupt
        if is_first and self._raises_at_once:
            raise Interrupted(number)
        if is_first and self._log:  # no print: a handler may interrupt another one
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):
                line = f"\n{name}: finishing this step, saving a checkpoint, then exiting (Ctrl-C: exit now)\n"
                os.write(2, line.encode())
