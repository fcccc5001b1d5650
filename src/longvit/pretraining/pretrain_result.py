"""Result of a pretraining, read from the files of its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longvit.data.problems import PROBLEMS_CSV, read_problems
from longvit.training.run_folder import RunResult, read_metrics

METRIC_KINDS = {
    **dict.fromkeys(("epochs", "steps", "regions", "slides"), int),
    "figures": dict,
    "alarms": list,
}


@dataclass(frozen=True)
class PretrainResult(RunResult):
    """Result of a pretraining; run.py lists the files of its folder.

    `metrics` has these keys:

    - `finished`: true after the last epoch
    - `figures`: metrics of the last evaluation (rankme, knn …)
    - `epochs`, `steps`, `regions`, `slides`, `parameters`, `device`, `starts_from`
    - `seconds`: of all processes of the run, checkpoint to checkpoint
    - `skipped_steps`, `alarms` (a sentence each), `left_out` (slides), `notes`
    - `resolution`: µm per pixel of the regions
    - `probe`: source, regions, cases, classes; or None

    >>> from pathlib import Path
    >>> from longvit.pretraining.pretrain_result import PretrainResult
    >>> PretrainResult(Path("runs/dino"), metrics={}).teacher_dir.as_posix()
    'runs/dino/teacher'
    """

    @property
    def teacher_dir(self) -> Path:
        """Model folder of the teacher, for `longvit.load_model` and `--weights`."""
        return self.folder / "teacher"

    def summary(self) -> str:
        """Lines for the terminal."""
        m = self.metrics
        values = {name: value for name, value in m["figures"].items() if name not in ("epoch", "step")}
        metrics = ", ".join(f"{name} {'not defined' if v is None else f'{v:.3g}'}" for name, v in values.items())
        slides = f"{m['slides']} slide{'' if m['slides'] == 1 else 's'}"
        return "\n".join(
            [
                f"{m['epochs']} epochs of {m['regions']} regions of {slides}, {m['steps']} steps: {metrics}",
                *(f"ALARM: {alarm}" for alarm in m["alarms"]),
                f"teacher: {self.teacher_dir}",
            ]
        )


def read_result(folder: Path) -> PretrainResult | None:
    """Result of a run whose epochs are all done, from its files; None for a run that is not finished."""
    metrics = read_metrics(folder, METRIC_KINDS)
    if metrics is None or not metrics.get("finished"):
        return None
    return PretrainResult(folder, metrics, read_problems(folder / PROBLEMS_CSV), was_finished=True)
