"""`longvit status OUT`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from longvit.slide_jobs.status import RunStatus

_WATCH_EVERY_S = 2.0
_SHOWN = 20
AT_WORK, STOPPED = 3, 4


def status(
    out: Annotated[Path, Parameter(help="The folder that was --out of embed, predict, canvas, tiles or features.")],
    /,
    *,
    watch: Annotated[bool, Parameter(negative="", help="Look again every two seconds, until the run ends.")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")] = False,
) -> int:
    """How a run over many slides stands: done, running, failed, waiting, slides an hour, time left.

    Works on any machine that sees the folder. Exit code 0: finished, every slide has a result; 1: finished, some have
    none (`OUT/problems.csv`); 3: at work; 4: stopped before its end (the same command goes on where it was).

    **Examples**

    ```
    longvit status embeddings
    longvit status embeddings --watch
    ```
    """
    from longvit.slide_jobs.status import status as look

    if json_:
        from dataclasses import asdict

        runs = look(out)
        print(json.dumps([asdict(run) for run in runs], indent=1))
        return _code(runs)
    from rich.console import Console

    console = Console()
    if not watch:
        runs = look(out)
        console.print(_picture(runs))
        return _code(runs)
    import time

    from rich.live import Live

    with Live(_picture(runs := look(out)), console=console, auto_refresh=False) as live:
        while any(run.state == "at work" for run in runs):
            time.sleep(_WATCH_EVERY_S)
            live.update(_picture(runs := look(out)), refresh=True)
    return _code(runs)


def _code(runs: tuple[RunStatus, ...]) -> int:
    states = {run.state for run in runs}
    if "at work" in states:
        return AT_WORK
    if "stopped" in states:
        return STOPPED
    return 1 if any(run.failed for run in runs) else 0


def _picture(runs: tuple[RunStatus, ...]) -> Any:
    """What stands on the terminal: a table of counts, and one of the slides in work."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from longvit.progress import clock_text

    parts: list[Any] = []
    for run in runs:
        counts = Table("done", "before", "failed", "running", "waiting", "an hour", "left")
        rate = "" if run.per_hour is None else f"{run.per_hour:,.0f}"
        left = "" if run.left_s is None else clock_text(run.left_s)
        numbers = (run.done, run.skipped, len(run.failed), len(run.running), run.waiting)
        counts.add_row(*(f"{n:,}" for n in numbers), rate, left)
        parts.append(Text(f"{run.verb}: {run.total:,} slides, {run.state}"))
        parts.append(counts)
        if run.running:
            slides = Table("slide", "stage", "host", "process", "since", "beat")
            for one in run.running[:_SHOWN]:
                beat = f"{one.beat_s:.0f} s"
                slides.add_row(one.slide, one.stage, one.host, str(one.process), clock_text(one.since_s), beat)
            parts.append(slides)
        lines = [f"{one.slide}: {one.stage}: {one.error}" for one in run.failed[:_SHOWN]]
        if hidden := len(run.failed) - len(lines):
            lines.append(f"… and {hidden} more in problems.csv")
        if run.tried_again or run.workers_lost:
            lines.append(f"{run.tried_again} tried again, {run.workers_lost} workers lost")
        if run.state == "stopped":
            lines.append("nobody is at work; give the same command again, and it goes on where it was")
        parts += [Text(line) for line in lines]
    return Group(*parts)
