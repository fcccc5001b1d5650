"""Results of a fine-tuning: the dataclass returned, and the files of a finished run, of which metrics.json is last.

outputs.csv and controls.csv hold logits (system, split, slide_id, output_0 …), from which every metric can be
recomputed. Seventeen digits restore a float64 to the last bit. `system` is `model`, or the name of a control.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.problems import PROBLEMS_CSV, read_problems
from longvit.errors import InputError
from longvit.files import write_csv
from longvit.finetuning.patient_results import PATIENTS_CSV, patient_metrics, patients_of_splits, write_patients
from longvit.finetuning.settings import FinetuneSettings
from longvit.finetuning.shortcut import shortcut_of
from longvit.json_file import without_nan
from longvit.metrics.classification import Interval
from longvit.tasks.task import Predictions, Task, task_class
from longvit.training.run_folder import METRICS_JSON, RunFolder, RunResult, damaged_metrics, read_metrics

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.training.loop import TrainResult

_REDUCED = "the JPEG decoder reduced the tiles of the canvases (decode reduced): not exact"
_ROW_COLUMNS = ("system", "split", "slide_id")
_KINDS = {
    **dict.fromkeys(("task", "figure", "training.device"), str),
    **dict.fromkeys(("splits", "controls", "training", "leaks"), dict),
    **dict.fromkeys(("classes", "left_out", "notes"), list),
    "best_val": dict | None,
}


@dataclass(frozen=True)
class FinetuneResult(RunResult):
    """Result of a finished fine-tuning; run.py lists the files of its folder.

    `metrics` has these keys:

    - `task`, `figure`: the task's name, and its main metric (auc, c_index)
    - `classes`: names of the head's outputs: the classes (of two, the second is the positive one), or time bins
    - `splits`: val, test -> slides, patients, the task's metrics (auc, balanced_accuracy, accuracy, f1; c_index, …),
      <metric>_interval [low, high] and loss, all of the last epoch. A split without slides is absent.
    - `patients`: val, test -> the same metrics and intervals of the patients (patients.csv), `aggregate`, and
      `left_out`, patients whose slides have different labels; absent in runs of older versions
    - `best_val`: epoch (1 …) with the highest main metric on val (the first, if several) and val, test -> metrics of
      that epoch; None where it is not defined. The model in `model/` is that of the last epoch.
    - `epoch_optimism`: split (the reported one), epoch, best, last and value = best - last of the main metric: what
      choosing the epoch on the reported slides would add; None where it is not defined
    - `controls`: mean_colour, random_encoder and, where the run starts from weights, frozen_weights (a linear probe)
      -> val, test -> the task's metrics
    - `shortcut`: sentence on a likely shortcut (the predictions follow the hospital); None without one; absent in
      runs of older versions
    - `training`: slides, patients, epochs, steps, train_loss, skipped_steps (one line each), parameters, device,
      starts_from
    - `left_out`: slide ids without a result; `notes`: assumptions, one sentence each

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=32, epochs=1, device="cpu")
    >>> result = longvit.finetune(cohort, "runs/result", settings)
    >>> sorted(result.metrics["splits"]), longvit.load_model(result.model_dir).num_classes
    (['test', 'val'], 2)
    """

    @property
    def predictions_csv(self) -> Path:
        """Predictions of val and test, a row per slide."""
        return self.folder / "predictions.csv"

    @property
    def metrics_json(self) -> Path:
        """File of `metrics`; it marks a finished run."""
        return self.folder / METRICS_JSON

    @property
    def history_csv(self) -> Path:
        """Losses and metrics, a row per epoch."""
        return self.folder / "history.csv"

    @property
    def settings_yaml(self) -> Path:
        """All settings, as a recipe."""
        return self.folder / "settings.yaml"

    @property
    def problems_csv(self) -> Path:
        """Failures of slides; absent if there are none."""
        return self.folder / PROBLEMS_CSV

    @property
    def loss_png(self) -> Path:
        """Plot of the losses."""
        return self.folder / "loss.png"

    @property
    def roc_png(self) -> Path:
        """Plot of the ROC curves (subtyping)."""
        return self.folder / "roc.png"

    @property
    def model_dir(self) -> Path:
        """Model folder, for `longvit.load_model`."""
        return self.folder / "model"

    def summary(self) -> str:
        """Lines for the terminal: the main metric of each split with its interval, beside the controls."""
        lines = []
        main = self.metrics["figure"]
        label = task_class(self.metrics["task"]).metric_label
        for split, split_metrics in self.metrics["splits"].items():
            low, high = split_metrics[f"{main}_interval"]
            interval = "" if low is None else f" (95 % interval {low:.2f}-{high:.2f})"
            controls = [
                f"{name.replace('_', ' ')} {_text(by_split[split][main])}"
                for name, by_split in self.metrics["controls"].items()
                if split in by_split
            ]
            accuracy = split_metrics.get("balanced_accuracy")
            lines.append(
                f"{split}: {label} {_text(split_metrics[main])}{interval}, "
                + (f"balanced accuracy {_text(accuracy)}, " if accuracy is not None else "")
                + f"{split_metrics['slides']} slides"
                + (f"; controls: {', '.join(controls)}" if controls else "")
            )
            patients = self.metrics.get("patients", {}).get(split)
            if patients is not None and 0 < patients["patients"] < split_metrics["slides"]:
                low, high = patients[f"{main}_interval"]
                interval = "" if low is None else f" (95 % interval {low:.2f}-{high:.2f})"
                lines.append(
                    f"{split}, per patient ({patients['aggregate']} of the slides): {label} {_text(patients[main])}"
                    f"{interval}, {patients['patients']} patients"
                )
        return "\n".join(lines)


def read_result(folder: Path) -> FinetuneResult | None:
    """Result of a finished run, from its files; None for a run that is not finished.

    `InputError`: a damaged file.
    """
    if (metrics := read_metrics(folder, _KINDS)) is None:
        return None
    patients = metrics.setdefault("patients", {})  # runs of older versions have none
    if not isinstance(patients, dict):
        raise damaged_metrics(folder, "'patients'")
    for split, split_metrics in (*metrics["splits"].items(), *metrics["controls"].items(), *patients.items()):
        if not isinstance(split_metrics, dict):
            raise damaged_metrics(folder, f"{split!r} is a {type(split_metrics).__name__}")
    return FinetuneResult(folder, metrics, read_problems(folder / PROBLEMS_CSV), was_finished=True)


def write_results(
    folder: RunFolder,
    cohort: Cohort,
    task: Task,
    settings: FinetuneSettings,
    *,
    model: LongViT,
    trained: TrainResult,
    predictions: Mapping[str, Predictions],
    controls: Mapping[str, Mapping[str, Predictions]],
    rows: Sequence[SlideRow],
    left_out: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Writes all files and returns the metrics of `FinetuneResult`; `rows`: all slides that were used."""
    from longvit.finetuning.model_card import write_model_card
    from longvit.finetuning.task_plots import draw_task_plots
    from longvit.plots.classification import loss_plot

    path = folder.path
    train_rows = [row for row in rows if row.split == "train"]
    intervals = {
        split: task.intervals(p, resamples=settings.bootstrap, seed=settings.seed) for split, p in predictions.items()
    }
    control_metrics = {
        name: {split: task.metrics(p) for split, p in by_split.items()} for name, by_split in controls.items()
    }
    patients = patients_of_splits(task, predictions, settings.aggregate)
    write_predictions(path / "predictions.csv", task, predictions)
    write_patients(path / PATIENTS_CSV, task, patients)
    write_logits(path / "outputs.csv", {"model": predictions})
    write_history(path / "history.csv", trained.epochs)
    loss_plot(trained.history, trained.epochs, path / "loss.png", loss_name=task.loss_label)
    draw_task_plots(path, task, predictions, intervals, control_metrics)
    model.save_pretrained(path / "model")
    metrics = without_nan(
        {
            "task": task.name,
            "figure": task.metric,
            "classes": list(task.output_names),
            "splits": {split: _split_metrics(task, p, intervals[split]) for split, p in predictions.items()},
            "patients": patient_metrics(
                task, patients, settings.aggregate, resamples=settings.bootstrap, seed=settings.seed
            ),
            "best_val": best_val(trained.epochs, list(predictions), task.metric),
            "epoch_optimism": epoch_optimism(trained.epochs, list(predictions), task.metric),
            "controls": control_metrics,
            "shortcut": shortcut_of(task, predictions["test" if "test" in predictions else "val"]),
            "leaks": leaks(cohort.rows),
            "training": {
                "slides": len(train_rows),
                "patients": len({row.case_id for row in train_rows}),
                "epochs": settings.epochs,
                "steps": trained.steps,
                "train_loss": trained.epochs[-1]["train_loss"],
                "skipped_steps": list(trained.skipped_steps),
                "parameters": sum(p.numel() for p in model.parameters()),
                "device": device,
                "starts_from": "random weights" if settings.weights is None else str(settings.weights),
            },
            "left_out": list(left_out),
            "notes": [*cohort.notes, *([_REDUCED] if settings.decode == "reduced" else [])],
        }
    )
    write_model_card(path, task, settings, metrics, rows)
    return folder.publish(metrics)


def _split_metrics(task: Task, predictions: Predictions, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        "slides": len(predictions.names),
        "patients": len(set(predictions.patients)),
        **task.metrics(predictions),
        **{f"{name}_interval": [interval.low, interval.high] for name, interval in intervals.items()},
        "loss": predictions.loss,
    }


def leaks(rows: Sequence[SlideRow]) -> dict[str, int]:
    """Patients with slides in two splits: `train_val`, `train_test`, `val_test` -> their number."""
    patients = {name: {row.case_id for row in rows if row.split == name} for name in ("train", "val", "test")}
    pairs = (("train", "val"), ("train", "test"), ("val", "test"))
    return {f"{a}_{b}": len(patients[a] & patients[b]) for a, b in pairs}


def best_val(epochs: Sequence[Mapping[str, float]], splits: Sequence[str], metric: str) -> dict[str, Any] | None:
    """The first epoch with the highest `metric` on val, and its metrics; None where val has none."""
    defined = [row for row in epochs if math.isfinite(row.get(f"val_{metric}", math.nan))]
    if not defined:
        return None
    best = max(defined, key=lambda row: row[f"val_{metric}"])
    metrics = {
        split: {key.removeprefix(f"{split}_"): v for key, v in best.items() if key.startswith(f"{split}_")}
        for split in splits
    }
    return {"epoch": int(best["epoch"]), **metrics}


def epoch_optimism(epochs: Sequence[Mapping[str, float]], splits: Sequence[str], metric: str) -> dict[str, Any] | None:
    """Optimism of choosing the epoch on the reported split: its best `metric` minus that of the last epoch.

    The reported split is test, or val without a test; None where the metric of the last epoch is not defined.
    """
    split = "test" if "test" in splits else "val"
    key = f"{split}_{metric}"
    last = epochs[-1].get(key, math.nan) if epochs else math.nan
    if not math.isfinite(last):
        return None
    best = max((row for row in epochs if math.isfinite(row.get(key, math.nan))), key=lambda row: row[key])
    return {"split": split, "epoch": int(best["epoch"]), "best": best[key], "last": last, "value": best[key] - last}


def write_predictions(path: str | Path, task: Task, predictions: Mapping[str, Predictions]) -> None:
    """Writes case_id, slide_id, split, the label, then the task's columns; nine digits of every number."""
    header = ["case_id", "slide_id", "split", *task.label_columns(), *task.prediction_columns(task.output_names)]
    table = [
        [row.case_id, row.slide_id, split, *task.label_cells(row), *task.prediction_cells(logits, task.output_names)]
        for split, p in predictions.items()
        for row, logits in zip(p.rows, p.logits, strict=True)
    ]
    write_csv(path, header, table)


def write_history(path: str | Path, epochs: Sequence[Mapping[str, float]]) -> None:
    """Writes a row per epoch (or step); a metric that is not defined is an empty field."""
    header = list(dict.fromkeys(name for row in epochs for name in row))
    table = [["" if math.isnan(v := row.get(name, math.nan)) else f"{v:.9g}" for name in header] for row in epochs]
    write_csv(path, header, table)


def write_logits(path: str | Path, systems: Mapping[str, Mapping[str, Predictions]]) -> None:
    """Writes system -> split -> predictions as a table of logits."""
    width = max((p.logits.shape[1] for by_split in systems.values() for p in by_split.values()), default=0)
    table = [
        [system, split, row.slide_id, *map(repr, logits)]
        for system, by_split in systems.items()
        for split, p in by_split.items()
        for row, logits in zip(p.rows, p.logits.tolist(), strict=True)
    ]
    write_csv(path, [*_ROW_COLUMNS, *(f"output_{i}" for i in range(width))], table)


def read_logits(path: str | Path, cohort: Cohort) -> dict[str, dict[str, Predictions]]:
    """Reads a table of `write_logits`, with the rows of `cohort` and a loss of NaN.

    `InputError`: no such table, or one of another cohort.
    """
    row_of = {row.slide_id: row for row in cohort.rows}
    systems: dict[str, dict[str, tuple[list[str], list[list[float]]]]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                names, logits = systems.setdefault(line["system"], {}).setdefault(line["split"], ([], []))
                names.append(line["slide_id"])
                logits.append([float(text) for key, text in line.items() if key not in _ROW_COLUMNS])
        return {
            system: {
                split: Predictions(tuple(row_of[name] for name in names), np.array(logits), math.nan)
                for split, (names, logits) in by_split.items()
            }
            for system, by_split in systems.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged, or of another cohort ({error}); remove it and give the same command again"
        ) from error


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
