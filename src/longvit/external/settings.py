"""Settings of an external validation. Light to import: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExternalSettings:
    """Settings of an external validation (RUN is the folder of a run, and the CSV has labels).

    >>> ExternalSettings(overlap="drop", prevalence=0.1).bootstrap
    1000
    """

    label_column: str = "label"
    """Column of the CSV with the class; survival reads the columns of the run."""
    overlap: Literal["refuse", "drop", "allow"] = "refuse"
    """Slides and patients of the CSV that the run used, by id or by content: refuse or drop them. allow keeps them,
    where ids of two hospitals agree by chance. The report states the count."""
    subgroup: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """Column of the CSV: metrics for each of its values, as for site; may be repeated."""
    prevalence: Annotated[float | None, Parameter(show_default=False)] = None
    """Prevalence of the second class for predictive values and net benefit, 0 … 1. Left out: that of the CSV."""
    recalibrate_on: Annotated[str | None, Parameter(show_default=False)] = None
    """Recalibrate on a part of the CSV and report the rest: COLUMN=VALUE, or a fraction of the patients such as 0.3."""
    back: Annotated[bool, Parameter(negative="")] = False
    """Also train on the CSV with the settings of the run, and validate that model on the slides of the run."""
    features: Annotated[Path | None, Parameter(show_default=False)] = None
    """For a folder of `longvit benchmark`: feature bags of the CSV's slides, from the encoder of the comparison."""
    cache_dir: Annotated[Path | None, Parameter(show_default=False)] = None
    """Folder of the canvases, which runs may share; default: canvases in the output folder."""
    bootstrap: int = 1000
    """Resamples of the patients for the 95 % intervals."""
    seed: int = 0
    """Seed of the resamples, and of the patients of a fraction."""

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise InputError(f"--prevalence {self.prevalence:g}: above 0 and below 1")
        if not 0 <= self.bootstrap <= 10**6:
            raise InputError(f"--bootstrap {self.bootstrap}: between 0 and 1,000,000")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: at least 0")
        if self.overlap not in ("refuse", "drop", "allow"):
            raise InputError(f"--overlap {self.overlap}: choose refuse, drop or allow")
        _ = self.recalibration

    @property
    def recalibration(self) -> float | tuple[str, str] | None:
        """Fraction of the patients, or column and value; `InputError` for anything else."""
        if self.recalibrate_on is None:
            return None
        column, equals, value = self.recalibrate_on.partition("=")
        if equals and column.strip() and value.strip():
            return column.strip(), value.strip()
        try:
            fraction = float(self.recalibrate_on)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction < 1:
            raise InputError(
                f"--recalibrate-on {self.recalibrate_on}: COLUMN=VALUE, or a fraction of the patients between 0 and 1"
            )
        return fraction
