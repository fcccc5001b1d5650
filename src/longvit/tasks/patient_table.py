"""Aggregation of the slides of a patient in a table of predictions, from the columns of the predictions alone.

The same rules as `Task.aggregated`, for tables whose model is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from longvit.tasks.task import Aggregate

_CLASS, _LABEL, _CURVE = "prob_", "probability_", "survival_"


def is_predicted(column: str) -> bool:
    """True for a numeric column of a prediction."""
    is_curve = column.startswith(_CURVE) and column.endswith("_months") and column != "survival_months"
    return column in ("risk", "predicted_value", "expected_rank") or column.startswith((_CLASS, _LABEL)) or is_curve


def aggregated_cells(slides: Sequence[Mapping[str, float]], how: Aggregate) -> dict[str, float]:
    """Prediction of a patient from those of its slides: column (`is_predicted`) -> number, in the same columns."""
    columns = list(slides[0])
    if len(slides) == 1:
        return dict(slides[0])
    table = np.array([[slide[name] for name in columns] for slide in slides], dtype=np.float64)
    if how == "mean":
        return dict(zip(columns, table.mean(0).tolist(), strict=True))
    classes = [i for i, name in enumerate(columns) if name.startswith(_CLASS)]
    deciding = [name for name in ("risk", "expected_rank") if name in columns]
    if deciding or len(classes) == 2:  # one slide decides: its prediction is whole
        decider = columns.index(deciding[0]) if deciding else classes[1]
        return dict(zip(columns, table[table[:, decider].argmax()].tolist(), strict=True))
    highest = table.max(0)
    if classes:
        highest[classes] /= highest[classes].sum()
    return dict(zip(columns, highest.tolist(), strict=True))


def predicted_class(cells: Mapping[str, float]) -> str:
    """Class with the highest probability; "" in a table without classes."""
    classes = [name for name in cells if name.startswith(_CLASS)]
    return max(classes, key=lambda name: cells[name]).removeprefix(_CLASS) if classes else ""
