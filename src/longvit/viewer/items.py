"""Items of the viewer: the slides of a run with their labels, predictions and heat maps, whatever the kind of run.

A loader makes `ViewItems` from the files of a run; all else in the viewer is the same for every kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longvit.viewer.heat_map import HeatMap
    from longvit.viewer.open_slides import OpenedSlide


@dataclass(frozen=True)
class HeatRequest:
    """Heat map that can be made when its slide is opened."""

    key: str
    """Text that changes when the heat map would: weights, settings."""
    make: Callable[[OpenedSlide], HeatMap]
    is_long: bool = False
    """True where it takes minutes: it is then made on request only."""


@dataclass(frozen=True)
class ViewPrediction:
    """Prediction of one model for a slide."""

    tab: str = ""
    """Name of the model where a slide has several predictions: fold, or system."""
    predicted: str = ""
    """Class with the highest probability, or the predicted number; "" in survival and with several labels."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Class, or label column -> probability."""
    risk: float | None = None
    """Risk of survival; higher: earlier."""
    curve: tuple[tuple[float, float], ...] = ()
    """Months, and the probability of no event up to then."""
    fold: str = ""
    split: str = ""
    is_wrong: bool | None = None
    """None where there is no label."""
    error: float | None = None
    """Sort key: the largest error first."""
    note: str = ""
    """Reason for the error in words."""
    heat: HeatRequest | None = None


@dataclass(frozen=True)
class ViewItem:
    """A slide of the list."""

    slide_id: str
    path: Path | None = None
    """File of the slide, or its canvas in the run's folder; None where neither is known."""
    is_canvas: bool = False
    """True where `path` is the run's canvas in place of the slide."""
    mpp: float | None = None
    """µm per level-0 pixel where a table states it."""
    case_id: str = ""
    label: str = ""
    site: str = ""
    problem: str = ""
    """Line of problems.csv, or the reason why there is no file."""
    bad_tiles: str = ""
    """Number of unreadable tiles that the run recorded."""
    predictions: tuple[ViewPrediction, ...] = ()
    neighbours: tuple[tuple[int, float], ...] = ()
    """Number of the slide and cosine similarity, the nearest first."""
    canvas: Path | None = None
    """Canvas of the run, for a fast thumbnail and heat map."""

    @property
    def error(self) -> float:
        """Largest error of all predictions; -1 where there is none."""
        return max((p.error for p in self.predictions if p.error is not None), default=-1.0)


@dataclass(frozen=True)
class ViewItems:
    """Content of the viewer."""

    kind: str
    """Kind of run in words: fine-tuning, cross-validation, …"""
    title: str
    items: Sequence[ViewItem]
    folder: Path | None = None
    """Folder of the run, which gets `review.csv` and the cached heat maps; None: nothing is written."""
    notes: tuple[str, ...] = ()
    """Remarks on the run, one sentence each."""
