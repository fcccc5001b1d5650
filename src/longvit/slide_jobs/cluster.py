"""Workers on other machines, placed and replaced by Dask: `--cluster tcp://scheduler:8786`.

Dask is asked for one thing: to run, on each of its nodes (its "workers"), a task that looks after our worker
processes there. A node that Dask loses loses its task; one that it starts anew, or that joins later, gets one. What is
done rests on the work list alone, so a task may be lost, late or run twice. All nodes see the same files under the
same paths, and have longvit installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.processes.leases import Leases, read_lease
from longvit.slide_jobs.supervisor import LocalWorkers
from longvit.slide_jobs.work_list import WorkList

_CONNECT_S = 20
_LOOK_EVERY_S = 0.5
_PATIENCE_S = 12.0
_WAIT_SAID_AFTER_S = 10.0


class ClusterWorkers:
    """Workers of a run on the nodes of a Dask cluster."""

    def __init__(
        self, work_list: WorkList, address: str, n: int, run_lease: Path, *, log: Callable[[str], None]
    ) -> None:
        self._list, self._address, self._n, self._claim, self._say = work_list, address, n, run_lease.absolute(), log
        self._client: Any = None
        self._tasks: dict[str, Any] = {}
        self._looked = self._alone_since = 0.0

    def start(self) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--cluster needs Dask: pip install 'longvit[cluster]'") from None
        try:
            self._client = Client(self._address, timeout=_CONNECT_S, name="longvit")
        except (OSError, TimeoutError, ValueError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"--cluster {self._address}: no Dask scheduler answers ({line})") from None
        self._alone_since = time.monotonic()
        self.check()

    def check(self) -> bool:
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return True
        self._looked = time.monotonic()
        try:
            nodes = self._client.nthreads()
        except (OSError, TimeoutError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"--cluster {self._address}: the scheduler is gone ({line}); give the same command again"
            ) from None
        for node, task in list(self._tasks.items()):
            if task.status in ("cancelled", "lost"):  # a scheduler that was started anew
                del self._tasks[node]
        for node in [node for node in self._tasks if node not in nodes]:
            self._tasks.pop(node).cancel()
            self._say(f"node {node} is gone; what it had is done by others")
        for node in nodes:
            if node not in self._tasks:
                self._tasks[node] = self._client.submit(
                    serve_node,
                    *(str(self._list.folder.parent.absolute()), self._n, str(self._claim), str(Path.cwd())),
                    key=f"longvit-{self._list.folder.name}-{node}",
                    workers=[node],
                    pure=False,
                )
        for node, task in self._tasks.items():
            if task.status == "error":
                fault = task.exception()
                raise InputError(f"--cluster: node {node}: {type(fault).__name__}: {' '.join(str(fault).split())}")
        if nodes:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _WAIT_SAID_AFTER_S:
            self._alone_since = time.monotonic()
            self._say(f"{self._address} has no workers; waiting for one (dask worker {self._address})")
        return not self._tasks or any(task.status != "finished" for task in self._tasks.values())

    def end(self) -> None:
        """The run's claim is gone: the tasks see that and end their workers."""
        if self._client is None:
            return
        deadline = time.monotonic() + _PATIENCE_S
        while any(task.status == "pending" for task in self._tasks.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._client.close(timeout=5)


def serve_node(folder: str, n: int, run_lease: str, cwd: str) -> None:
    """Looks after `n` workers on this node until the run is over. Runs as a task of Dask."""
    work_list = WorkList.of(Path(folder))
    lease_path, leases = Path(run_lease), Leases()
    workers = LocalWorkers(work_list, n, cwd=cwd)
    try:
        workers.start()
        while workers.check():
            if read_lease(lease_path).get("token") != work_list.facts["token"] or leases.is_dead(lease_path):
                break
            time.sleep(_LOOK_EVERY_S)
    finally:
        workers.end()
