"""Child processes: started as a module in a fresh interpreter, with a pipe for messages, and gone when the parent is.

A fresh interpreter is safe where the parent has threads; a fork is not. The child's standard input is a pipe without
data. When the parent is gone, that pipe ends, and so does the child (`end_with_parent`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Any

from longvit.errors import InputError
from longvit.processes.interrupts import send_to_self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_POLL_S = 0.2
_KILL_S = 5.0
_CHUNK_BYTES = 2**24


class ChildProcess:
    """The parent's side of `python -m MODULE [PIPE] ARGUMENTS`, where PIPE is the number of the message pipe."""

    def __init__(
        self,
        module: str,
        *arguments: object,
        has_pipe: bool = True,
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        own_session: bool = True,
    ) -> None:
        """Starts the process.

        `descriptors`: open files that it inherits. `environment`: variables beside those of this process. In its own
        session, a child does not receive the terminal's Ctrl-C: its parent decides how it ends.
        """
        if descriptors and sys.platform == "win32":
            raise InputError("pretraining reads in other processes on Linux and macOS only; give --num-workers 0")
        pipe, child_end = multiprocessing.Pipe() if has_pipe else (None, None)
        inherited = [*([child_end.fileno()] if child_end else []), *descriptors]
        command = [sys.executable, "-m", module, *([child_end.fileno()] if child_end else []), *arguments]
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            **_inheritance(inherited, own_session),
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
        if child_end:
            child_end.close()
        self._pipe = pipe
        self._is_killed = threading.Event()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self.process.pid

    @property
    def pipe(self) -> Connection:
        """This process's end of the message pipe."""
        assert self._pipe is not None
        return self._pipe

    def send(self, message: Any) -> None:
        """Sends an object that can be pickled. Raises `OSError` where the child is gone."""
        self.pipe.send(message)

    def receive(self, deadline: float | None = None) -> Any:
        """Waits for the next message. Raises `TimeoutError` at `deadline` (`time.monotonic`), `EOFError` or `OSError`
        where the child is gone."""
        self._wait_for_data(deadline)
        return self.pipe.recv()

    def receive_into(self, array: NDArray[np.uint8], deadline: float | None = None) -> None:
        """Fills an array with what the child sends by `send_array`; raises as `receive` does."""
        left = array.reshape(-1).data
        while left:
            self._wait_for_data(deadline)
            if not hasattr(os, "readv"):
                left = left[self.pipe.recv_bytes_into(left[:_CHUNK_BYTES]) :]
                continue
            n = os.readv(self.pipe.fileno(), [left[:_CHUNK_BYTES]])
            if n == 0:
                raise EOFError
            left = left[n:]

    def _wait_for_data(self, deadline: float | None) -> None:
        while not self.pipe.poll(_POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic()))):
            if self._is_killed.is_set():
                raise EOFError
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError

    def terminate(self) -> None:
        """Sends SIGTERM; on Windows the child ends at once, and the next run resumes its last checkpoint."""
        self.process.terminate()

    def close_input(self) -> None:
        """Ends the child's standard input: the child ends as if its parent were gone."""
        if self.process.stdin:
            self.process.stdin.close()

    def kill(self) -> None:
        """Kills the child. Any thread may call it; another thread's `receive` then raises `EOFError`."""
        self._is_killed.set()
        self.process.kill()
        self.wait(_KILL_S)  # a process that hangs on a broken disk cannot be killed
        self.close_input()

    def close(self) -> None:
        """Kills the child where it still runs, and closes both pipes."""
        self.kill()
        if self._pipe is not None:
            self._pipe.close()

    def wait(self, seconds: float | None = None) -> int | None:
        """Waits for the end, at most `seconds`; returns the exit code, None while the child runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(None if seconds is None else max(0.0, seconds))
        return self.process.returncode

    def exit_code(self) -> int | None:
        """Exit code, None while the child runs. The process number stays taken until `wait`."""
        if self.process.returncode is not None:
            return self.process.returncode
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (AttributeError, ChildProcessError):  # this system has no such call
            return self.process.poll()
        if end is None:
            return None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def exit_status(self) -> str:
        """Description of the exit code, after `wait` or `kill`: SIGSEGV, or exit code 1."""
        return describe_exit(self.process.returncode)


def describe_exit(code: int | None) -> str:
    """Description of an exit code: SIGSEGV, or exit code 1."""
    if code is None:
        return "it does not end"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def connect_to_parent() -> Connection:
    """The child's end of the message pipe. From here on the child ends with its parent and ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    return _connection(int(sys.argv[1]))


def end_with_parent(grace_s: float = 0.0) -> None:
    """Ends this process when its standard input ends, from a thread. With `grace_s`: by SIGTERM first, then for good
    after that many seconds, since the main thread may be in a long native call."""

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        if grace_s:
            send_to_self(signal.SIGTERM)
            time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()


def send_array(connection: Connection, array: NDArray[np.uint8]) -> None:
    """Sends the bytes of an array, for `ChildProcess.receive_into`; the parent has the shape."""
    left = array.reshape(-1).data
    while left:
        if hasattr(os, "writev"):
            left = left[os.writev(connection.fileno(), [left[:_CHUNK_BYTES]]) :]
        else:
            connection.send_bytes(left[:_CHUNK_BYTES])
            left = left[_CHUNK_BYTES:]


def _inheritance(files: Sequence[int], own_session: bool) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for the files that a child inherits and for its own session."""
    if not hasattr(subprocess, "STARTUPINFO"):
        return {"pass_fds": files, "start_new_session": own_session}
    for handle in files:  # Windows: the numbers are those of handles
        os.set_handle_inheritable(handle, True)  # type: ignore[attr-defined]  # Windows only
    startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": list(files)})
    group = subprocess.CREATE_NEW_PROCESS_GROUP if own_session else 0  # type: ignore[attr-defined]
    return {"startupinfo": startup, "creationflags": group}


def _connection(number: int) -> Connection:
    """The message pipe of an inherited file, on Windows of a handle."""
    from multiprocessing import connection

    kind = getattr(connection, "PipeConnection", Connection)
    return kind(number)
