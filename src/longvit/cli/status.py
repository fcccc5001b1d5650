"""`longvit status OUT`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import AsJson

if TYPE_CHECKING:
    from longvit.slide_jobs.status import RunStatus
    from longvit.training.run_status import TrainingStatus

_REFRESH_S = 2.0
_MOST_ROWS = 20
RUNNING, STOPPED = 3, 4
"""Exit codes of an unfinished run."""


def status(
    out: Annotated[Path, Parameter(help="Folder given as --out to a command over many slides, or to a training.")],
    /,
    *,
    watch: Annotated[bool, Parameter(negative="", help="Refresh every two seconds until the run ends.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show the progress of a run: slides done, running, failed, waiting and per hour; epochs and metrics of trainings.

    Works on any machine that can read the folder. Exit code 0: finished, every slide has a result; 1: finished, some
    slides have none (`OUT/problems.csv`); 3: running; 4: stopped early (rerun the command to resume).

    The output folder of train, pretrain and benchmark has a row per training: folds, and systems with their folds.

    **Examples**

    ```
    longvit status embeddings
    longvit status embeddings --watch
    longvit status runs/cv
    ```
    """
    if as_json:
        from dataclasses import asdict

        runs = _read(out)
        print(json.dumps([asdict(run) for run in runs], indent=1))
        return _code(runs)
    from rich.console import Console

    console = Console()
    if not watch:
        runs = _read(out)
        console.print(_display(runs))
        return _code(runs)
    import time

    from rich.live import Live

    with Live(_display(runs := _read(out)), console=console, auto_refresh=False) as live:
        while any(run.state == "running" for run in runs):
            time.sleep(_REFRESH_S)
            live.update(_display(runs := _read(out)), refresh=True)
    return _code(runs)


def _read(out: Path) -> tuple[RunStatus, ...] | tuple[TrainingStatus, ...]:
    """Status of the runs over many slides in a folder; where there is none, of the trainings."""
    from longvit.slide_jobs.status import status as read_status

    if not (out / "work").is_dir():
        from longvit.training.run_status import training_status

        if trainings := training_status(out):
            return trainings
    return read_status(out)


def _code(runs: tuple[RunStatus, ...] | tuple[TrainingStatus, ...]) -> int:
    states = {run.state for run in runs}
    if "running" in states:
        return RUNNING
    if "stopped" in states:
        return STOPPED
    return 1 if any(getattr(run, "failed", ()) for run in runs) else 0


def _display(runs: tuple[RunStatus, ...] | tuple[TrainingStatus, ...]) -> Any:
    """Terminal display of runs: a table of counts, and a table of the slides in progress; a table of trainings."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from longvit.progress import clock_text
    from longvit.slide_jobs.status import RunStatus

    parts: list[Any] = []
    trainings = Table("run", "state", "epochs", "metrics of the last epoch")
    for run in runs:
        if not isinstance(run, RunStatus):
            epochs = f"{run.epoch}" if run.epochs is None else f"{run.epoch}/{run.epochs}"
            metrics = ", ".join(f"{name} {number:.4g}" for name, number in run.metrics.items())
            trainings.add_row(*map(Text, (run.run, run.state, epochs, metrics)))
            continue
        counts = Table("done", "before", "failed", "running", "waiting", "per hour", "left")
        rate = "" if run.per_hour is None else f"{run.per_hour:,.0f}"
        left = "" if run.left_s is None else clock_text(run.left_s)
        numbers = (run.done, run.skipped, len(run.failed), len(run.running), run.waiting)
        counts.add_row(*(f"{n:,}" for n in numbers), rate, left)
        state = "running" if run.state == "running" else run.state
        parts.append(Text(f"{run.verb}: {run.total:,} slides, {state}"))
        parts.append(counts)
        if run.running:
            slides = Table("slide", "stage", "host", "process", "since", "heartbeat")
            for slide in run.running[:_MOST_ROWS]:
                heartbeat = f"{slide.beat_s:.0f} s"
                since = clock_text(slide.since_s)
                slides.add_row(slide.slide, slide.stage, slide.host, str(slide.process), since, heartbeat)
            parts.append(slides)
        lines = [f"{problem.slide}: {problem.stage}: {problem.error}" for problem in run.failed[:_MOST_ROWS]]
        if hidden := len(run.failed) - len(lines):
            lines.append(f"… and {hidden} more in problems.csv")
        if run.tried_again or run.workers_lost:
            lines.append(f"{run.tried_again} retried, {run.workers_lost} workers lost")
        if run.state == "stopped":
            lines.append("no worker is running; rerun the command to resume")
        parts += [Text(line) for line in lines]
    if trainings.rows:
        parts.append(trainings)
        if any(run.state == "stopped" for run in runs):
            parts.append(Text("rerun the command to resume a stopped training"))
    return Group(*parts)
