"""Train, val and test for a cohort without a split column: by patient, so that no patient is in two splits, and
stratified by class."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from longvit.data.cohort import SPLITS, Cohort
from longvit.errors import InputError

SPLIT_FRACTIONS = (0.7, 0.1, 0.2)  # train, val, test


def split_by_patient(cohort: Cohort, fractions: tuple[float, float, float] = SPLIT_FRACTIONS, seed: int = 0) -> Cohort:
    """The cohort with a split in every row, drawn by `seed`; the order of the rows has no effect.

    `fractions` are those of the patients in train, val and test. They sum to 1, and 0 leaves a split out. A patient
    with slides of two classes counts for the class of most of them. A class is assigned to train first, then to test,
    then to val: with two patients of a class val has none of them, which a note states. Raises `InputError` where a
    class has one patient only, since nothing could be tested.
    """
    if any(f < 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise InputError(f"split fractions {fractions}: train, val and test must sum to 1, train above 0")
    classes_of: dict[str, Counter[str]] = {}
    for row in cohort.rows:
        classes_of.setdefault(row.case_id, Counter())[row.label] += 1
    class_of = {case: max(sorted(count), key=count.__getitem__) for case, count in classes_of.items()}
    wanted = [name for name in ("train", "test", "val") if fractions[SPLITS.index(name)] > 0]

    split_of: dict[str, str] = {}
    notes: list[str] = []
    for index, label in enumerate(cohort.classes):
        cases = sorted(case for case, c in class_of.items() if c == label)
        if len(cases) < min(2, len(wanted)):
            raise InputError(
                f"{cohort.source}: class {label!r} has {len(cases)} patient{'s' * (len(cases) != 1)}; "
                f"training and testing need at least 2 of each class"
            )
        if len(cases) < len(wanted):
            notes.append(f"{cohort.source}: no patient of class {label!r} in val: it has only {len(cases)} patients")
        order = np.random.default_rng([seed, index]).permutation(len(cases))
        sizes = _sizes(len(cases), wanted, {name: fractions[SPLITS.index(name)] for name in wanted})
        names = [name for name in wanted for _ in range(sizes[name])]
        split_of.update({cases[i]: name for i, name in zip(order, names, strict=True)})

    parts = " / ".join(f"{SPLITS[i]} {fractions[i]:g}" for i in range(3))
    notes.append(f"{cohort.source}: split by patient with seed {seed} ({parts} of each class)")
    split = cohort.with_splits([split_of[row.case_id] for row in cohort.rows])
    return replace(split, notes=(*cohort.notes, *notes))


def _sizes(n: int, wanted: list[str], fraction: dict[str, float]) -> dict[str, int]:
    """Whole numbers that sum to n, at least 1 each (in the order of `wanted`) where n allows, by largest remainder."""
    exact = {name: n * fraction[name] for name in wanted}
    sizes = {name: max(int(exact[name]), int(i < n)) for i, name in enumerate(wanted)}
    while sum(sizes.values()) > n:  # the minimum of 1 took too many: reduce the largest split
        sizes[max(wanted, key=lambda name: sizes[name])] -= 1
    while sum(sizes.values()) < n:
        sizes[max(wanted, key=lambda name: exact[name] - sizes[name])] += 1
    return sizes
