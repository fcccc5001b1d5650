"""Deletion test of tile scores: how far a system's score falls when tiles are removed from a bag.

    OUT/deletion.csv    a row per system with tile scores: areas between curves with 95 % intervals by patient

Tiles are removed and not replaced by background. A system accepts any number of tiles, so a smaller bag is an input of
the kind it was trained on. Background is left out before features are extracted, so the features of a white tile are
in no training bag. The encoder that would make them is not part of a comparison. At least one tile in ten stays, since
an empty bag has no prediction. The score is that of `heatmaps.deletion`, the order that of the scores of the whole bag.

Systems without tile scores, on regions or on pixels have no test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from longvit.comparison.bags import Bags
from longvit.comparison.system_spec import SystemSpec, system_spec
from longvit.comparison.trial import FoldSplit, load_trial
from longvit.device import pick_device
from longvit.errors import InputError
from longvit.files import write_csv
from longvit.heatmaps.deletion import DeletionCurves, DeletionSummary, curves_without, scores_of_logits, summarise
from longvit.tasks.survival import Survival

if TYPE_CHECKING:
    from longvit.baselines.bag import Bag
    from longvit.baselines.system import System
    from longvit.comparison.compare import Comparison
    from longvit.progress import Progress

TABLE = "deletion.csv"
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 0.9)
_FEWEST_TILES = 2


@dataclass(frozen=True)
class SystemDeletion:
    """Areas between curves of one system, over the tested bags of all folds."""

    system: str
    most: DeletionSummary
    """Highest scores first, below random."""
    least: DeletionSummary
    """Lowest scores first, above random."""
    is_risk: bool
    """True where the score is the risk of survival."""


def deletion_tests(result: Comparison, bags: int, progress: Progress) -> tuple[SystemDeletion, ...]:
    """Deletion test of every system with tile scores, on up to `bags` evaluated bags of each fold, evenly spaced.

    A trial whose weights cannot be read is a line in the log and has no part in the means.
    """
    folds = {split.fold.name: split for split in result.fold_splits}
    tests, is_risk = [], result.settings.task == Survival.name
    for row in result.summary["systems"]:
        finished = [trial["fold"] for trial in row["cells"] if trial["error"] is None]
        curves: list[DeletionCurves] = []
        patients: list[str] = []
        for fold in finished:
            progress.advance(note=row["system"])
            if row.get("run"):  # LongViT: its own report has a test of patches
                continue
            spec = system_spec(row["system"])
            folder = result.folder / row["system"] / f"fold_{fold}"
            if not spec.reads_tiles or spec.reads_pixels or not (folder / "attention.h5").exists():
                continue
            try:
                found, cases = _trial(result, folds[fold], spec, folder, bags)
            except InputError as error:
                progress.log(f"deletion test: {error}")
                continue
            curves += found
            patients += cases
        if curves:
            most, least = (summarise([getattr(c, name) for c in curves], patients) for name in _AREAS)
            tests.append(SystemDeletion(row["system"], most, least, is_risk))
    return tuple(tests)


def write_table(folder: Path, tests: Sequence[SystemDeletion]) -> None:
    """Writes deletion.csv, atomically."""
    header = ["system", "bags", *(f"{name}{end}" for name in _AREAS for end in ("", "_low", "_high"))]
    rows = []
    for test in tests:
        values = [part for s in (test.most, test.least) for part in (s.mean, s.low, s.high)]
        rows.append([test.system, test.most.slides, *("" if v is None else f"{v:.9g}" for v in values)])
    write_csv(folder / TABLE, header, rows)


_AREAS = ("most_fall", "least_fall")


def _trial(
    result: Comparison, split: FoldSplit, spec: SystemSpec, folder: Path, bags: int
) -> tuple[list[DeletionCurves], list[str]]:
    """Curves of one trial, and the patient of each."""
    rows = split.cohort.split(split.evaluated)
    chosen = np.linspace(0, len(rows) - 1, min(bags, len(rows))).round().astype(int)
    rows = tuple(rows[i] for i in chosen)
    device = pick_device(result.settings.device).device
    system = load_trial(result.bag_cohort, split, spec, result.settings, folder).to(device)
    curves, patients = [], []
    for row, bag in zip(rows, Bags(result.bag_cohort, rows, spec, device), strict=True):
        found = bag_deletion(system, bag, is_risk=split.task.name == Survival.name)
        if found is not None:
            curves.append(found)
            patients.append(row.case_id)
    return curves, patients


def bag_deletion(
    system: System,
    bag: Bag,
    *,
    is_risk: bool,
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 2,
    seed: int = 0,
) -> DeletionCurves | None:
    """Curves of one bag; None where the system has no tile scores, or the bag too few tiles.

    `is_risk`: the score is the risk; otherwise that of the class with the highest logit. The system is in eval mode.
    """
    with torch.inference_mode():
        whole = system(bag)
        if whole.attention is None or bag.features.ndim != 2 or len(bag) < _FEWEST_TILES:
            return None
        class_index = None if is_risk else int(whole.logits.argmax())

        def scores_without(removed: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
            logits = [system(without(bag, tiles)).logits.double().cpu().numpy() for tiles in removed]
            return scores_of_logits(np.stack(logits), class_index)

        values = whole.attention.float().cpu().numpy()
        return curves_without(scores_without, values, fractions=fractions, orders=orders, seed=seed)


def without(bag: Bag, tiles: NDArray[np.int64]) -> Bag:
    """The bag without these tiles, in the same order; at least one stays."""
    keep = np.ones(len(bag), bool)
    keep[tiles[: len(bag) - 1]] = False
    kept = torch.from_numpy(np.flatnonzero(keep))
    sizes = tuple(int(keep[part].sum()) for part in bag.slides) if bag.slide_tiles else ()
    return replace(
        bag,
        features=bag.features[kept],
        coords=None if bag.coords is None else bag.coords[kept],
        clusters=None if bag.clusters is None else bag.clusters[kept],
        neighbours=None,
        slide_tiles=tuple(size for size in sizes if size),
    )
