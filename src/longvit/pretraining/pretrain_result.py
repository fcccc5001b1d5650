"""A pretraining as its files tell it: a run that is over is read, not computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems
from longvit.errors import InputError
from longvit.json_file import read_made


@dataclass(frozen=True)
class PretrainResult:
    """A finished pretraining; every file of it lies in `folder` (see the top of run.py)."""

    folder: Path
    metrics: dict[str, Any]
    """What metrics.json holds (a figure that is not defined is None there):

    finished: whether all epochs are done. figures: those of the last look (rankme, knn …). epochs, steps, regions,
    slides, parameters, device, starts_from, seconds (of all processes of the run, checkpoint to checkpoint).
    skipped_steps, alarms (a sentence each), resolution (µm per pixel of the regions), left_out (slides). probe: source,
    regions, cases, classes; or None.
    """
    problems: tuple[Problem, ...] = ()
    """What problems.csv holds."""
    was_finished: bool = False
    """The folder held a finished run with the same settings: nothing was computed."""

    @property
    def teacher_dir(self) -> Path:
        return self.folder / "teacher"

    def summary(self) -> str:
        """A few lines for the terminal."""
        m = self.metrics
        shown = {name: value for name, value in m["figures"].items() if name not in ("epoch", "step")}
        metrics = ", ".join(f"{name} {'not defined' if v is None else f'{v:.3g}'}" for name, v in shown.items())
        slides = f"{m['slides']} slide{'' if m['slides'] == 1 else 's'}"
        return "\n".join(
            [
                f"{m['epochs']} epochs of {m['regions']} regions of {slides}, {m['steps']} steps: {metrics}",
                *(f"ALARM: {alarm}" for alarm in m["alarms"]),
                f"teacher: {self.teacher_dir}",
            ]
        )


_KINDS = {
    **dict.fromkeys(("epochs", "steps", "regions", "slides"), int),
    "figures": dict,
    "alarms": list,
}


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json holds so far; empty before it was first written."""
    path = folder / "metrics.json"
    try:
        return read_made(path, _KINDS)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to have it written anew") from error


def finished(folder: Path) -> PretrainResult | None:
    """The result of a run whose epochs are all done."""
    metrics = read_metrics(folder)
    if not metrics.get("finished"):
        return None
    return PretrainResult(folder, metrics, read_problems(folder / PROBLEMS_CSV), was_finished=True)
