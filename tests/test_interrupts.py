"""A Ctrl-C at an unlucky moment still stops the program, without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

UNLUCKY = """
import os, signal, sys, time, weakref
from longvit.interrupts import lost_interrupts_come_again

class Thing:
    pass

class Last:
    def __del__(self):
        self.strike()

number = signal.Signals(int(sys.argv[1]))
signal.signal(number, signal.default_int_handler)
strike = lambda *_: os.kill(os.getpid(), number)
try:
    with lost_interrupts_come_again(number):
        if sys.argv[2] == "callback":
            thing = Thing()
            heard = weakref.ref(thing, strike)
            del thing
        else:
            last = Last()
            last.strike = strike
            del last
        time.sleep(30)
        print("went on")
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["callback", "destructor"])
def test_an_interrupt_in_a_callback_or_destructor_is_not_lost(number: signal.Signals, place: str) -> None:
    command = [sys.executable, "-c", UNLUCKY, str(int(number)), place]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("stopped\n", "")


def test_other_errors_there_are_still_told() -> None:
    code = (
        "from longvit.interrupts import lost_interrupts_come_again\n"
        "class Last:\n    def __del__(self): raise ValueError('told')\n"
        "with lost_interrupts_come_again():\n    last = Last(); del last\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ValueError: told" in found.stderr
