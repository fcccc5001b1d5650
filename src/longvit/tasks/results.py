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
from longvit.tasks.metrics import Interval, bootstrap_auc, classification_metrics
from longvit.tasks.pictures import loss_picture, roc_picture
from longvit.tasks.settings import FinetuneSettings

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.tasks.subtyping import Predictions
    from longvit.training.loop import TrainResult


def write_results(
    folder: Path,
    cohort: Cohort,
    settings: FinetuneSettings,
    *,
    model: LongViT,
    outcome: TrainResult,
    predictions: Mapping[str, Predictions],
    controls: Mapping[str, Mapping[str, Mapping[str, float]]],
    train_rows: Sequence[SlideRow],
    left_out: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Writes everything and returns the metrics (`FinetuneResult.metrics`)."""
    row_of = {row.slide_id: row for row in cohort.rows}
    patients = {split: [row_of[name].case_id for name in p.names] for split, p in predictions.items()}
    intervals = {
        split: bootstrap_auc(
            p.labels, p.probabilities, patients[split], resamples=settings.bootstrap, seed=settings.seed
        )
        for split, p in predictions.items()
    }
    write_predictions(folder / "predictions.csv", cohort, predictions)
    write_history(folder / "history.csv", outcome.epochs)
    loss_picture(outcome.history, outcome.epochs, folder / "loss.png")
    shown = list(predictions)[-1]
    roc_picture(
        predictions,
        cohort.classes,
        folder / "roc.png",
        intervals=intervals,
        controls={name.replace("_", " "): of[shown]["auc"] for name, of in controls.items()},
    )
    model.save_pretrained(folder / "model")
    metrics = _no_nan(
        {
            "task": "subtyping",
            "classes": list(cohort.classes),
            "splits": {split: _split_figures(p, patients[split], intervals[split]) for split, p in predictions.items()},
            "best_val": best_val(outcome.epochs, list(predictions)),
            "controls": controls,
            "training": {
                "slides": len(train_rows),
                "patients": len({row.case_id for row in train_rows}),
                "epochs": settings.epochs,
                "steps": outcome.steps,
                "train_loss": outcome.epochs[-1]["train_loss"],
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


def _split_figures(predictions: Predictions, patients: Sequence[str], interval: Interval) -> dict[str, Any]:
    return {
        "slides": len(predictions.names),
        "patients": len(set(patients)),
        **classification_metrics(predictions.labels, predictions.probabilities),
        "auc_interval": [interval.low, interval.high],
        "loss": predictions.loss,
    }


def best_val(epochs: Sequence[Mapping[str, float]], splits: Sequence[str]) -> dict[str, Any] | None:
    """The epoch of the highest val AUC (the first of several) with its figures; None where val has no AUC."""
    defined = [row for row in epochs if math.isfinite(row.get("val_auc", math.nan))]
    if not defined:
        return None
    best = max(defined, key=lambda row: row["val_auc"])
    figures = {
        split: {key.removeprefix(f"{split}_"): v for key, v in best.items() if key.startswith(f"{split}_")}
        for split in splits
    }
    return {"epoch": int(best["epoch"]), **figures}


def write_predictions(path: str | Path, cohort: Cohort, predictions: Mapping[str, Predictions]) -> None:
    """Columns case_id, slide_id, split, label, prob_<class> …, prediction; nine digits of every probability."""
    row_of = {row.slide_id: row for row in cohort.rows}
    header = ["case_id", "slide_id", "split", "label", *(f"prob_{name}" for name in cohort.classes), "prediction"]
    table = []
    for split, p in predictions.items():
        for name, probabilities in zip(p.names, p.probabilities, strict=True):
            row = row_of[name]
            guess = cohort.classes[int(probabilities.argmax())]
            table.append([row.case_id, name, split, row.label, *(f"{x:.9g}" for x in probabilities), guess])
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


def _no_nan(value: Any) -> Any:
    """NaN is not JSON: a figure that is not defined becomes null."""
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
