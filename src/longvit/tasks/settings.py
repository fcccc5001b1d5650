"""Settings that a task reads. Light to import: the command line reads them."""

# No lazy annotations: cyclopts resolves those of an inherited field in the module of the subclass.

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.errors import InputError
from longvit.tasks.catalogue import TASKS


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of a task; those of a fine-tuning and of a comparison inherit them."""

    task: str = "subtyping"
    """Task: subtyping (one of two or more classes), survival (time to an event), regression (a number), ordinal (one of
    classes with an order) or multilabel (several labels, some missing)."""
    label_columns: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("label",)
    """Regression: column of the CSV with the number. Multilabel: columns of the labels, 0 or 1, e.g. MSI BRAF KRAS;
    with MSI=MSI-H the label is 1 where the column has the text MSI-H."""
    n_bins: int = 4
    """Survival, nll: number of time bins, with equally many events in each."""
    bins: Literal["fold", "cohort"] = "fold"
    """Survival: edges of the bins from the training patients, or from the whole cohort, as published (the edges then
    depend on the evaluated patients' times)."""
    alpha: float = 0.0
    """Survival, nll: weight taken from the censored patients, 0 … 1."""
    time_column: str = "survival_months"
    """Survival: column of the CSV with the time, in months."""
    event_column: str | None = None
    """Survival: column that is 1 where the event happened; left out: a column called event."""
    censorship_column: str | None = None
    """Survival: column that is 1 where follow-up ended before the event; left out: a column called censorship."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task {self.task!r}: choose {', '.join(TASKS)}")
        if not all(name.strip() for name in self.label_columns) or not self.label_columns:
            raise InputError("label_columns: name at least one column")
        if self.n_bins < 2:
            raise InputError(f"n_bins {self.n_bins}: at least 2")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha {self.alpha}: between 0 and 1")

    @property
    def survival_loss(self) -> Literal["nll", "cox"]:
        """Loss of survival; a setting of fine-tuning."""
        return "nll"

    @property
    def slides(self) -> Literal["all", "first"]:
        """Slides of a patient that take part; a setting of fine-tuning."""
        return "all"
