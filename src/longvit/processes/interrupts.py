"""Interrupts that Python swallows: a KeyboardInterrupt in a destructor or in the callback of a weak reference."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RESEND_AFTER_S = 0.05


@contextmanager
def resend_swallowed_interrupts(number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Context in which a swallowed KeyboardInterrupt is raised again.

    Python prints a KeyboardInterrupt that it cannot raise and drops it (`sys.unraisablehook`): the program continues.
    In this context it is not printed, and `number`, the signal that raised it, is sent to this process again a moment
    later. A subclass that records the signal itself (`training.interruption.Interrupted`) is dropped silently.
    """
    hook = sys.unraisablehook

    def resend(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
        elif unraisable.exc_type is KeyboardInterrupt:  # sent by a timer: raised here it would be swallowed once more
            timer = threading.Timer(_RESEND_AFTER_S, send_to_self, (number,))
            timer.daemon = True
            timer.start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = hook


def send_to_self(number: signal.Signals) -> None:
    """Sends a signal to this process, whose main thread handles it."""
    if sys.platform == "win32":  # os.kill ends a process there at once
        _thread.interrupt_main(number)
    else:
        os.kill(os.getpid(), number)
