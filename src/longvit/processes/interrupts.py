"""A Ctrl-C that Python loses: one that falls into a destructor or the callback of a weak reference."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_AFTER_S = 0.05


@contextmanager
def resend_swallowed_interrupts(number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """A KeyboardInterrupt raised where nothing can be raised is printed with a traceback and dropped
    (`sys.unraisablehook`): the program goes on as if nobody had pressed a key. In here it is not printed, and `number`,
    the signal that raised it, is sent to this process again a moment later. One that has left a note of itself
    (`training.interruption.Interrupted`) is dropped in silence.
    """
    hook = sys.unraisablehook

    def hear(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
        elif unraisable.exc_type is KeyboardInterrupt:  # not from in here, where it would be lost once more
            again = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = hook
