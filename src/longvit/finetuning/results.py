"""The files of a finished fine-tuning: predictions.csv, history.csv, pictures, the model, and last metrics.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.cohort import Cohort, SlideRow
from longvit.files import write_text
from longvit.finetuning.outputs import write_logits
from longvit.metrics.classification import Interval
from longvit.plots.classification import loss_plot
from longvit.tasks.settings import FinetuneSettings

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.tasks.task import Predictions, Task
    from longvit.training.loop import TrainResult


def write_results(
    folder: Path,
    cohort: Cohort,
    task: Task,
    settings: FinetuneSettings,
    *,
    model: LongViT,
    outcome: TrainResult,
    predictions: Mapping[str, Predictions],
    controls: Mapping[str, Mapping[str, Predictions]],
    train_rows: Sequence[SlideRow],
    left_out: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Writes everything and returns the metrics (`FinetuneResult.metrics`)."""
    intervals = {
        split: task.intervals(p, resamples=settings.bootstrap, seed=settings.seed) for split, p in predictions.items()
    }
    of_controls = {name: {split: task.metrics(p) for split, p in of.items()} for name, of in controls.items()}
    write_predictions(folder / "predictions.csv", task, predictions)
    write_logits(folder / "outputs.csv", {"model": predictions})
    write_history(folder / "history.csv", outcome.epochs)
    loss_plot(outcome.history, outcome.epochs, folder / "loss.png", loss_name=task.loss_words)
    task.plots(folder, predictions, intervals, of_controls)
    model.save_pretrained(folder / "model")
    metrics = without_nan(
        {
            "task": task.name,
            "figure": task.metric,
            "classes": list(task.output_names),
            "splits": {split: _split_metrics(task, p, intervals[split]) for split, p in predictions.items()},
            "best_val": best_val(outcome.epochs, list(predictions), task.metric),
            "controls": of_controls,
            "leaks": leaks(cohort.rows),
            "training": {
                "slides": len(train_rows),
                "patients": len({row.case_id for row in train_rows}),
                "epochs": settings.epochs,
                "steps": outcome.steps,
                "train_loss": outcome.epochs[-1]["train_loss"],
                "skipped_steps": list(outcome.skipped_steps),
                "parameters": sum(p.numel() for p in model.parameters()),
                "device": device,
                "starts_from": "random weights" if settings.weights is None else str(settings.weights),
            },
            "left_out": list(left_out),
            "notes": list(cohort.notes),
        }
    )
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return metrics


def _split_metrics(task: Task, predictions: Predictions, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        "slides": len(predictions.names),
        "patients": len(set(predictions.patients)),
        **task.metrics(predictions),
        **{f"{name}_interval": [of.low, of.high] for name, of in intervals.items()},
        "loss": predictions.loss,
    }


def leaks(rows: Sequence[SlideRow]) -> dict[str, int]:
    """`train_val`, `train_test`, `val_test` -> patients with slides in both."""
    of = {name: {row.case_id for row in rows if row.split == name} for name in ("train", "val", "test")}
    pairs = (("train", "val"), ("train", "test"), ("val", "test"))
    return {f"{a}_{b}": len(of[a] & of[b]) for a, b in pairs}


def best_val(epochs: Sequence[Mapping[str, float]], splits: Sequence[str], metric: str) -> dict[str, Any] | None:
    """The epoch with the highest `figure` on val (the first of several) and its figures; None where val has none."""
    defined = [row for row in epochs if math.isfinite(row.get(f"val_{metric}", math.nan))]
    if not defined:
        return None
    best = max(defined, key=lambda row: row[f"val_{metric}"])
    metrics = {
        split: {key.removeprefix(f"{split}_"): v for key, v in best.items() if key.startswith(f"{split}_")}
        for split in splits
    }
    return {"epoch": int(best["epoch"]), **metrics}


def write_predictions(path: str | Path, task: Task, predictions: Mapping[str, Predictions]) -> None:
    """case_id, slide_id, split, the true answer, then the task's columns; nine digits of every number."""
    header = ["case_id", "slide_id", "split", *task.label_columns(), *task.prediction_columns(task.output_names)]
    table = [
        [row.case_id, row.slide_id, split, *task.label_cells(row), *task.prediction_cells(logits, task.output_names)]
        for split, p in predictions.items()
        for row, logits in zip(p.rows, p.logits, strict=True)
    ]
    _write_csv(path, header, table)


def write_history(path: str | Path, epochs: Sequence[Mapping[str, float]]) -> None:
    """A row per epoch; a figure that is not defined is an empty cell."""
    header = list(dict.fromkeys(name for row in epochs for name in row))
    table = [["" if math.isnan(v := row.get(name, math.nan)) else f"{v:.9g}" for name in header] for row in epochs]
    _write_csv(path, header, table)


def _write_csv(path: str | Path, header: Sequence[str], table: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(table)
    write_text(path, text.getvalue())


def without_nan(value: Any) -> Any:
    """NaN is not JSON: a figure that is not defined becomes null."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
