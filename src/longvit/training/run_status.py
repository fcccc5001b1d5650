"""Status of training runs, read from the files of their folders alone: fine-tuning, pretraining, folds, comparisons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.json_file import read_json_object
from longvit.locks import acquire
from longvit.training.run_folder import read_metrics

_DEEPEST = 3
"""Levels below the folder: a comparison has SYSTEM/fold_K."""


@dataclass(frozen=True)
class TrainingStatus:
    """Status of one training."""

    run: str
    """Folder, relative to the one asked for; "." for that one itself."""
    state: Literal["running", "finished", "stopped"]
    """stopped: the run has not finished, and no process holds its lock."""
    epoch: int
    """Finished epochs."""
    epochs: int | None
    """Epochs of the settings; None where the run has none."""
    metrics: dict[str, float]
    """Last row of history.csv, without its empty metrics."""


def training_status(folder: str | Path) -> tuple[TrainingStatus, ...]:
    """Status of every training in a folder and three levels below it, by name; empty where there is none.

    `InputError`: a run.json or history.csv that is damaged.
    """
    root = Path(folder)
    return tuple(_status(root, path.parent) for path in sorted(_run_files(root)))


def _run_files(root: Path) -> Iterator[Path]:
    for depth in range(_DEEPEST + 1):
        yield from root.glob("*/" * depth + "run.json")


def _status(root: Path, folder: Path) -> TrainingStatus:
    """Status of the training of a folder."""
    try:
        settings = read_json_object(folder / "run.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'run.json'}: damaged ({error})") from error
    last: dict[str, str] = {}
    if (folder / "history.csv").exists():
        _, last = read_table(folder / "history.csv")[1][-1]
    numbers = {name: number for name, text in last.items() if math.isfinite(number := _number(text))}
    epochs = settings.get("epochs")
    state: Literal["running", "finished", "stopped"] = "running" if _is_locked(folder / "run.lock") else "stopped"
    metrics = read_metrics(folder, {})
    if metrics is not None and metrics.get("finished", True) is not False:
        state = "finished"  # pretraining writes metrics.json after every epoch, with `finished`
    return TrainingStatus(
        run=folder.relative_to(root).as_posix(),
        state=state,
        epoch=int(numbers.pop("epoch", 0)),
        epochs=epochs if isinstance(epochs, int) else None,
        metrics={name: number for name, number in numbers.items() if name != "step"},
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_locked(path: Path) -> bool:
    """True where a process of this machine (or of a shared file system with locks) holds the run's lock."""
    try:
        with path.open() as lock:
            acquire(lock.fileno(), wait=False, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
