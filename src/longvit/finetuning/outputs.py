"""The head's outputs as a table (system, split, slide_id, output_0 …): what every figure can be worked out from again.

Seventeen digits: a float64 comes back to the last bit. `system` is `model`, or the name of a control.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longvit.data.cohort import Cohort
from longvit.errors import InputError
from longvit.files import write_text
from longvit.tasks.task import Predictions

_WHO = ("system", "split", "slide_id")


def write_logits(path: str | Path, systems: Mapping[str, Mapping[str, Predictions]]) -> None:
    """System -> split -> predictions, as a CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    width = max((p.logits.shape[1] for of in systems.values() for p in of.values()), default=0)
    writer.writerow([*_WHO, *(f"output_{i}" for i in range(width))])
    for system, of in systems.items():
        for split, p in of.items():
            for row, logits in zip(p.rows, p.logits.tolist(), strict=True):
                writer.writerow([system, split, row.slide_id, *map(repr, logits)])
    write_text(path, text.getvalue())


def read_logits(path: str | Path, cohort: Cohort) -> dict[str, dict[str, Predictions]]:
    """What `write_outputs` wrote, with the rows of `cohort` and a loss of NaN. `InputError`: not such a file."""
    row_of = {row.slide_id: row for row in cohort.rows}
    found: dict[str, dict[str, tuple[list[str], list[list[float]]]]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                names, logits = found.setdefault(line["system"], {}).setdefault(line["split"], ([], []))
                names.append(line["slide_id"])
                logits.append([float(text) for key, text in line.items() if key not in _WHO])
        return {
            system: {
                split: Predictions(tuple(row_of[name] for name in names), np.array(logits), math.nan)
                for split, (names, logits) in of.items()
            }
            for system, of in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged, or of another cohort ({error}); remove it to have it made anew") from error
