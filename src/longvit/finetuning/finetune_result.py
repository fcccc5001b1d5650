"""A finished fine-tuning: where its files lie and what they say; a run that is over is read, not computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems
from longvit.errors import InputError
from longvit.json_file import read_made
from longvit.tasks.task import task_class

if TYPE_CHECKING:
    from longvit.parallel.ranks import Ranks


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tuning; every file of it lies in `folder` (see the top of finetune.py)."""

    folder: Path
    metrics: dict[str, Any]
    """What metrics.json holds (a figure that is not defined is None there):

    task, figure: the task's name, and its main figure (auc, c_index).
    classes: names of the head's outputs: the classes (of two, the second is the positive one), or bins of time.
    splits: `val`, `test` -> slides, patients, the task's figures (auc, balanced_accuracy, accuracy, f1; c_index, …),
        <figure>_interval [low, high] and loss, all of the last epoch. A split without slides is absent.
    best_val: epoch (1 …) of the highest main figure on val (the first, if several) and `val`, `test` -> figures of that
        epoch; None where it is not defined. The model in `model/` is that of the last epoch.
    controls: `mean_colour`, `random_encoder` and, where the run starts from weights, `frozen_weights` (a linear probe)
        -> `val`, `test` -> the task's figures.
    training: slides, patients, epochs, steps, train_loss, skipped_steps (for a NaN, each named), parameters, device,
        starts_from.
    left_out: slide ids without a result. notes: what was assumed, one sentence each.
    """
    problems: tuple[Problem, ...] = ()
    """What problems.csv holds."""
    was_finished: bool = False
    """The folder held a finished run with the same settings: nothing was computed."""

    @property
    def predictions_csv(self) -> Path:
        return self.folder / "predictions.csv"

    @property
    def metrics_json(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def history_csv(self) -> Path:
        return self.folder / "history.csv"

    @property
    def settings_yaml(self) -> Path:
        return self.folder / "settings.yaml"

    @property
    def problems_csv(self) -> Path:
        return self.folder / PROBLEMS_CSV

    @property
    def loss_png(self) -> Path:
        return self.folder / "loss.png"

    @property
    def roc_png(self) -> Path:
        return self.folder / "roc.png"

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    def summary(self) -> str:
        """A few lines for the terminal: the main figure of each split with its interval, beside the controls."""
        lines = []
        main = self.metrics["figure"]
        words = task_class(self.metrics["task"]).metric_label
        for split, split_metrics in self.metrics["splits"].items():
            low, high = split_metrics[f"{main}_interval"]
            interval = "" if low is None else f" (95 % interval {low:.2f}-{high:.2f})"
            controls = [
                f"{name.replace('_', ' ')} {_text(of[split][main])}"
                for name, of in self.metrics["controls"].items()
                if split in of
            ]
            accuracy = split_metrics.get("balanced_accuracy")
            lines.append(
                f"{split}: {words} {_text(split_metrics[main])}{interval}, "
                + (f"balanced accuracy {_text(accuracy)}, " if accuracy is not None else "")
                + f"{split_metrics['slides']} slides"
                + (f"; controls: {', '.join(controls)}" if controls else "")
            )
        return "\n".join(lines)


def result_of_first(result: FinetuneResult | None, folder: Path, ranks: Ranks) -> FinetuneResult | None:
    """The first rank's result, on every rank."""
    if ranks.world == 1:
        return result
    content = None
    if result is not None:
        problems = [[p.slide, p.stage, p.error] for p in result.problems]
        content = [result.metrics, problems, result.was_finished]
    if (content := ranks.from_first(content)) is None:
        return None
    metrics, problems, was_finished = content
    return FinetuneResult(folder, metrics, tuple(Problem(*p) for p in problems), was_finished)


_KINDS = {
    **dict.fromkeys(("task", "figure", "training.device"), str),
    **dict.fromkeys(("splits", "controls", "training", "leaks"), dict),
    **dict.fromkeys(("classes", "left_out", "notes"), list),
    "best_val": dict | None,
}


def finished(folder: Path) -> FinetuneResult | None:
    """The result of a run that has written its metrics (they come last)."""
    try:
        metrics = read_made(folder / "metrics.json", _KINDS)
        for split, split_metrics in (*metrics["splits"].items(), *metrics["controls"].items()):
            if not isinstance(split_metrics, dict):
                raise InputError(f"{folder / 'metrics.json'}: damaged: {split!r} is a {type(split_metrics).__name__}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'metrics.json'}: damaged ({error}); remove it to have it written anew") from error
    return FinetuneResult(folder, metrics, read_problems(folder / PROBLEMS_CSV), was_finished=True)


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
