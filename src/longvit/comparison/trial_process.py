"""Trials in parallel: child processes that run one trial after another, each with its own feature bags in memory.

A process that dies, for want of memory say, fails its trial, and a new process replaces it. A stop signal ends all
processes after a checkpoint.
"""

from __future__ import annotations

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
from longvit.comparison.trial import FoldSplit, load_what_all_need, run_trial
from longvit.errors import describe_error
from longvit.files import make_folder
from longvit.processes.child import ChildProcess, connect_to_parent
from longvit.processes.cpu_count import cpu_count
from longvit.training.interruption import Interrupted, StopSignals

_POLL_S = 0.2


@dataclass(frozen=True)
class TrialJob:
    """Settings and data that all trials share."""

    bag_cohort: BagCohort
    """Without bags in memory; each process keeps as many as `settings.memory_mb` holds."""
    settings: ComparisonSettings
    """Settings of one process: its threads, its part of the memory."""


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


OnEvent = Callable[[Trial, str, Any], None]
"""on_event(trial, "epoch", None) after every epoch, then (trial, "done", metrics) or (trial, "failed", error)."""


def run_in_parallel(trials: Sequence[Trial], job: TrialJob, jobs: int, on_event: OnEvent) -> None:
    """Runs the trials in `jobs` processes and reports each. Raises `Interrupted` on a stop signal."""
    waiting = list(trials)
    with StopSignals(log=False) as stop:
        processes = [TrialProcess() for _ in range(min(jobs, len(waiting)))]
        try:
            for process in processes:  # started above, so that they load their libraries at the same time
                process.send(job)
            while waiting or any(process.trial is not None for process in processes):
                stop.check()
                for process in processes:
                    if process.trial is None and waiting:
                        process.start(waiting.pop(0))
                for process in _readable(processes):
                    trial = process.trial
                    assert trial is not None
                    try:
                        kind, content = process.child.receive()
                    except (EOFError, OSError):
                        if stop.received is not None:
                            continue  # the signal reached the processes too
                        kind, content = "failed", f"its process died ({process.close()})"
                        processes.remove(process)
                        if waiting:
                            processes.append(TrialProcess())
                            processes[-1].send(job)
                    if kind != "epoch":
                        process.trial = None
                    on_event(trial, kind, content)
        finally:
            for process in processes:
                process.child.terminate()  # a running trial writes a checkpoint first
            for process in processes:
                process.close()


class TrialProcess:
    """The parent's side of one process."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        """The trial that it runs."""
        self.child = ChildProcess(__name__)

    def start(self, trial: Trial) -> None:
        """Starts a trial."""
        self.trial = trial
        self.send(trial)

    def send(self, message: TrialJob | Trial) -> None:
        """Sends a message. The death of the process is noticed when its reply is read."""
        with suppress(OSError):
            self.child.send(message)

    def close(self) -> str:
        """Waits for the end of the process and describes it."""
        self.child.wait()
        self.child.close()
        status = self.child.exit_status()
        return f"{status}: out of memory?" if status == "SIGKILL" else status


def _readable(processes: Sequence[TrialProcess]) -> list[TrialProcess]:
    """Processes that run a trial and have sent a message, or have died; waits a moment for one."""
    busy = {process.child.pipe: process for process in processes if process.trial is not None}
    return [busy[pipe] for pipe in wait(list(busy), _POLL_S)]  # type: ignore[index]


def _serve(pipe: Connection) -> None:
    from longvit.device import pick_device, set_threads
    from longvit.training.run_folder import exclusive_lock

    job: TrialJob = pipe.recv()
    settings = job.settings
    set_threads(settings.threads)
    device = pick_device(settings.device)
    bag_cohort = job.bag_cohort.keeping(settings.memory_mb)
    load_what_all_need(device.device)
    while True:
        trial: Trial = pipe.recv()
        try:
            # The lock: a comparison that was killed may leave a process for a moment.
            with exclusive_lock(make_folder(trial.folder)):
                metrics = run_trial(
                    bag_cohort,
                    trial.fold_split,
                    trial.spec,
                    settings,
                    trial.folder,
                    device,
                    epoch_done=lambda: pipe.send(("epoch", None)),
                )
        except Exception as error:  # any error fails this trial only
            pipe.send(("failed", describe_error(error, 300)))
        else:
            pipe.send(("done", metrics))


def trial_job(bag_cohort: BagCohort, settings: ComparisonSettings, jobs: int) -> TrialJob:
    """Job of each of `jobs` processes: its part of the memory, and of the CPUs unless `settings.threads` is given."""
    threads = settings.threads or max(1, cpu_count() // jobs)
    return TrialJob(
        replace(bag_cohort, kept={}), replace(settings, threads=threads, memory_mb=settings.memory_mb // jobs)
    )


if __name__ == "__main__":
    try:
        _serve(connect_to_parent())
    except (EOFError, BrokenPipeError):  # the parent has no more trials, or is gone
        pass
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
