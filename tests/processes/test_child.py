"""A child process answers, keeps its time limit, dies with a reason, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longvit.errors import InputError
from longvit.processes.child import ChildProcess, describe_exit


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildProcess]:
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    child = ChildProcess("processes.echo_child", "a", environment={"PYTHONPATH": path, "WORD": "b"})
    assert child.receive(time.monotonic() + 120) == ("a", "b", True)
    yield child
    child.close()


def test_it_exchanges_messages_and_arrays(child: ChildProcess) -> None:
    child.send({"key": [1, 2]})
    assert child.receive() == {"key": [1, 2]}
    child.send(30_000_000)  # more than a pipe holds
    array = np.empty((30_000, 1000), np.uint8)
    child.receive_into(array)
    assert (array.reshape(-1) == np.arange(30_000_000) % 251).all()
    assert child.exit_code() is None


def test_a_late_answer_is_a_timeout_and_a_kill_ends_the_wait(child: ChildProcess) -> None:
    child.send("sleep")
    with pytest.raises(TimeoutError):
        child.receive(time.monotonic() + 0.3)
    threading.Timer(0.3, child.kill).start()
    with pytest.raises((EOFError, OSError)):
        child.receive()
    assert child.wait(30) == -signal.SIGKILL
    assert child.exit_status() == "SIGKILL"


def test_its_exit_code_is_known_before_it_is_reaped(child: ChildProcess) -> None:
    child.send("exit")
    with pytest.raises((EOFError, OSError)):
        child.receive()
    end = time.monotonic() + 60
    while child.exit_code() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert child.exit_code() == 7
    os.kill(child.pid, 0)  # its number is still taken
    assert child.wait() == 7
    assert child.exit_status() == "exit code 7"


def test_it_ends_with_its_standard_input(child: ChildProcess) -> None:
    child.send("sleep")
    child.close_input()
    assert child.wait(60) == 1


def test_it_ends_with_a_parent_that_is_killed(child: ChildProcess) -> None:
    code = (
        "import os, sys, time\nfrom longvit.processes.child import ChildProcess\n"
        "child = ChildProcess('processes.echo_child', 'a')\nchild.receive()\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 60
    while _is_running(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exit code 0"), (1, "exit code 1"), (-11, "SIGSEGV"), (-250, "signal 250"), (None, "it does not end")],
)
def test_exit_codes_are_described(code: int | None, text: str) -> None:
    assert describe_exit(code) == text


def test_shared_memory_on_windows_is_refused_in_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="--num-workers 0"):
        ChildProcess("processes.echo_child", descriptors=[0])
