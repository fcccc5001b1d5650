"""Workers on the nodes of a Dask cluster: `--cluster tcp://scheduler:8786`.

Dask runs one task on each of its nodes (its "workers"): a task that supervises our worker processes there. A node that
is lost loses its task; a node that restarts, or joins later, gets a task. The state of the run is in the work list
alone, so a task may be lost, late or run twice. All nodes see the same files under the same paths, and have longvit
installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longvit.errors import InputError, describe_error, one_line
from longvit.processes.leases import Leases, read_lease
from longvit.slide_jobs.supervisor import LocalWorkers
from longvit.slide_jobs.work_list import WorkList

_CONNECT_S = 20
_POLL_S = 0.5
_GRACE_S = 12.0
_LOG_WAIT_EVERY_S = 10.0


class ClusterWorkers:
    """Workers of a run on the nodes of a Dask cluster."""

    def __init__(
        self, work_list: WorkList, address: str, n: int, run_lease: Path, *, log: Callable[[str], None]
    ) -> None:
        self._list, self._address, self._n, self._lease, self._log = work_list, address, n, run_lease.absolute(), log
        self._client: Any = None
        self._tasks: dict[str, Any] = {}
        self._checked = self._no_nodes_since = 0.0

    def start(self) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--cluster needs Dask: pip install 'longvit[cluster]'") from None
        try:
            self._client = Client(self._address, timeout=_CONNECT_S, name="longvit")
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"--cluster {self._address}: no Dask scheduler answers ({one_line(error)})") from None
        self._no_nodes_since = time.monotonic()
        self.check()

    def check(self) -> bool:
        if time.monotonic() - self._checked < _POLL_S:
            return True
        self._checked = time.monotonic()
        try:
            nodes = self._client.nthreads()
        except (OSError, TimeoutError) as error:
            raise InputError(
                f"--cluster {self._address}: the scheduler is gone ({one_line(error)}); rerun the command to resume"
            ) from None
        for node, task in list(self._tasks.items()):
            if task.status in ("cancelled", "lost"):  # the scheduler was restarted
                del self._tasks[node]
        for node in [node for node in self._tasks if node not in nodes]:
            self._tasks.pop(node).cancel()
            self._log(f"node {node} is gone; its slides are reassigned")
        for node in nodes:
            if node not in self._tasks:
                self._tasks[node] = self._client.submit(
                    serve_node,
                    *(str(self._list.folder.parent.absolute()), self._n, str(self._lease), str(Path.cwd())),
                    key=f"longvit-{self._list.folder.name}-{node}",
                    workers=[node],
                    pure=False,
                )
        for node, task in self._tasks.items():
            if task.status == "error":
                raise InputError(f"--cluster: node {node}: {describe_error(task.exception())}")
        if nodes:
            self._no_nodes_since = time.monotonic()
        elif time.monotonic() - self._no_nodes_since > _LOG_WAIT_EVERY_S:
            self._no_nodes_since = time.monotonic()
            self._log(f"{self._address} has no workers; waiting for one (dask worker {self._address})")
        return not self._tasks or any(task.status != "finished" for task in self._tasks.values())

    def end(self) -> None:
        """Waits for the tasks, which end their workers once the run's lease is gone."""
        if self._client is None:
            return
        deadline = time.monotonic() + _GRACE_S
        while any(task.status == "pending" for task in self._tasks.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._client.close(timeout=5)


def serve_node(folder: str, n: int, run_lease: str, cwd: str) -> None:
    """Supervises `n` workers on this node until the run is over. Runs as a task of Dask."""
    work_list = WorkList.read(Path(folder))
    lease_path, leases = Path(run_lease), Leases()
    workers = LocalWorkers(work_list, n, cwd=cwd)
    try:
        workers.start()
        while workers.check():
            if read_lease(lease_path).get("token") != work_list.settings["token"] or leases.is_expired(lease_path):
                break
            time.sleep(_POLL_S)
    finally:
        workers.end()
