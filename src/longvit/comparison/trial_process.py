"""Cells side by side: processes that take one cell after another, each with bags of its own in memory.

Each is a fresh interpreter, never a fork of one that has threads. One that dies (of memory, say) costs its cell, and
another takes its place. A stop ends them all after a checkpoint; they end by themselves when the process that started
them is gone: their standard input, a pipe that nobody writes to, ends then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from longvit.comparison.bag_cohort import BagCohort
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import SystemSpec
from longvit.comparison.trial import FoldSplit, load_what_all_need, one_line, run_trial
from longvit.files import make_folder
from longvit.processes.child import end_with_parent, how_it_ended
from longvit.training.interruption import Interrupted, StopSignals

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class TrialJob:
    """What all cells share."""

    bag_cohort: BagCohort
    """Without bags in memory; each process keeps as many as `settings.memory_mb` holds."""
    settings: ComparisonSettings
    """Of one process: its threads, its share of the memory."""


@dataclass(frozen=True)
class Trial:
    """One system on one fold."""

    fold_split: FoldSplit
    spec: SystemSpec
    folder: Path

    @property
    def key(self) -> tuple[str, str]:
        """System and fold."""
        return self.spec.name, self.fold_split.fold.name

    @property
    def note(self) -> str:
        """`clam_sb, fold 3`."""
        return f"{self.spec.name}, fold {self.fold_split.fold.name}"


Heard = Callable[[Trial, str, Any], None]
"""heard(cell, "epoch", None) after every epoch; then heard(cell, "done", metrics) or heard(cell, "failed", why)."""


def run_side_by_side(trials: Sequence[Trial], job: TrialJob, jobs: int, heard: Heard) -> None:
    """Runs the cells in `jobs` processes and tells what comes of each. Raises `Interrupted` where a signal comes."""
    waiting = list(trials)
    with StopSignals(log=False) as stop:
        workers = [TrialProcess() for _ in range(min(jobs, len(waiting)))]
        try:
            for worker in workers:  # they have loaded their libraries at the same time
                worker.send(job)
            while waiting or any(worker.trial is not None for worker in workers):
                stop.check()
                for worker in workers:
                    if worker.trial is None and waiting:
                        worker.trial = waiting.pop(0)
                        worker.send(worker.trial)
                busy = {worker.connection: worker for worker in workers if worker.trial is not None}
                for connection in wait(list(busy), _LOOK_EVERY_S):
                    worker = busy[connection]  # type: ignore[index]
                    trial = worker.trial
                    assert trial is not None
                    try:
                        kind, content = worker.connection.recv()
                    except (EOFError, OSError):
                        if stop.received is not None:
                            continue  # the signal went to all
                        kind, content = "failed", f"its process died ({worker.ended()})"
                        workers.remove(worker)
                        if waiting:
                            workers.append(TrialProcess())
                            workers[-1].send(job)
                    if kind != "epoch":
                        worker.trial = None
                    heard(trial, kind, content)
        finally:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.ended()


class TrialProcess:
    """The parent's side of one process."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        """What it works at."""
        self.connection, theirs = multiprocessing.Pipe()
        # A session of its own: Ctrl-C is for the parent to hear.
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def send(self, what: TrialJob | Trial) -> None:
        """One that has died is found out when its answer is read."""
        with suppress(OSError):
            self.connection.send(what)

    def stop(self) -> None:
        """Ends it, after a checkpoint if it is at work."""
        self.process.terminate()

    def ended(self) -> str:
        """Waits for its end; → how it ended."""
        code = self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.connection.close()
        how = how_it_ended(code)
        return f"{how}: out of memory?" if how == "SIGKILL" else how


def _serve(connection: Connection) -> None:
    from longvit.device import pick_device, set_threads
    from longvit.training.run_folder import exclusive_lock

    job: TrialJob = connection.recv()
    settings = job.settings
    set_threads(settings.threads)
    device = pick_device(settings.device)
    bag_cohort = job.bag_cohort.keeping(settings.memory_mb)
    load_what_all_need(device.device)
    while True:
        trial: Trial = connection.recv()
        try:
            with exclusive_lock(
                make_folder(trial.folder)
            ):  # a comparison that was killed may leave a process for a moment
                metrics = run_trial(
                    bag_cohort,
                    trial.fold_split,
                    trial.spec,
                    settings,
                    trial.folder,
                    device,
                    epoch_done=lambda: connection.send(("epoch", None)),
                )
        except Exception as error:  # whatever it is: the other cells go on
            connection.send(("failed", one_line(error)))
        else:
            connection.send(("done", metrics))


def job_of(bag_cohort: BagCohort, settings: ComparisonSettings, jobs: int) -> TrialJob:
    """For each of `jobs` processes: its share of the cores, unless threads were asked for, and of the memory."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // jobs)
    return TrialJob(
        replace(bag_cohort, kept={}), replace(settings, threads=threads, memory_mb=settings.memory_mb // jobs)
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError):  # nobody wants more
        pass
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
