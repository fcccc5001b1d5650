"""A Ctrl-C at an unlucky moment still stops the program, without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

UNLUCKY = """
import os, signal, sys, time, weakref
from longvit.processes.interrupts import resend_swallowed_interrupts

class Thing:
    pass

class Last:
    def __del__(self):
        self.strike()

sys.platform = sys.argv[3]
number = signal.Signals(int(sys.argv[1]))
signal.signal(number, signal.default_int_handler)
strike = lambda *_: os.kill(os.getpid(), number)
try:
    with resend_swallowed_interrupts(number):
        if sys.argv[2] == "callback":
            thing = Thing()
            heard = weakref.ref(thing, strike)
            del thing
        else:
            last = Last()
            last.strike = strike
            del last
        for _ in range(300):
            time.sleep(0.1)
        print("went on")
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["callback", "destructor"])
@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_an_interrupt_in_a_callback_or_destructor_is_not_lost(
    number: signal.Signals, place: str, platform: str
) -> None:
    """On Windows `os.kill` would end the process, so the main thread is interrupted in another way."""
    command = [sys.executable, "-c", UNLUCKY, str(int(number)), place, platform]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("stopped\n", "")


STRIKE = """
import os, signal, sys, time, weakref
def strike(number):
    class Thing: pass
    thing = Thing()
    heard = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    for _ in range(300):
        time.sleep(0.1)
"""

COMMAND = """
from longvit import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.app = lambda *_, **__: strike(signal.SIGINT)
sys.exit(cli.main([]))
"""

WORKER = """
from pathlib import Path
from longvit.slide_jobs import worker
from longvit.slide_jobs.work_list import WorkList
here = Path(sys.argv[1])
WorkList.begin(here, "embed", [], retries=0, settings={"timeout_s": None, "threads": 1})
worker.build_job = lambda *_: strike(signal.SIGTERM)
sys.exit(worker.main(here / "work" / "embed", "w", 0))
"""


@pytest.mark.parametrize(("code", "status"), [(COMMAND, 130), (WORKER, 143)])
def test_commands_and_their_workers_hear_it(tmp_path: Path, code: str, status: int) -> None:
    command = [sys.executable, "-c", STRIKE + code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.wait(60) == status
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_other_errors_there_are_still_told() -> None:
    code = (
        "from longvit.processes.interrupts import resend_swallowed_interrupts\n"
        "class Last:\n    def __del__(self): raise ValueError('told')\n"
        "with resend_swallowed_interrupts():\n    last = Last(); del last\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ValueError: told" in found.stderr
