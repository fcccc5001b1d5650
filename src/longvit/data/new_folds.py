"""Folds that were not there: for a new cohort (by patient or by site, stratified), and published ones made disjoint.

A patient, or with `by_site` a hospital, stands on one side of a fold only: a model knows a patient's other slide, and
a hospital's stain and scanner, and what it then scores says little about the next patient or hospital.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from longvit.data.cohort import SPLITS, Cohort
from longvit.data.folds import Fold, match
from longvit.data.identity import first_places, refuse_clashes
from longvit.errors import InputError

VAL_FRACTION = 0.1


def make_folds(
    cohort: Cohort,
    k: int,
    *,
    seed: int = 0,
    strata: Sequence[str] | None = None,
    by_site: bool = False,
    val_fraction: float = VAL_FRACTION,
) -> tuple[Fold, ...]:
    """k folds of slide ids: each slide is in test once; a val part is taken out of the others, the rest trains.

    Grouped by patient, stratified by `strata` (one text per row: the class, or the time bin and event; default the
    labels), both with scikit-learn's StratifiedGroupKFold. `by_site`: grouped by the column site, so that no site
    is on two sides of a fold (sites that share a patient count as one). `val_fraction`: about that share of the
    slides that are not in test; 0 makes no val. The result depends on the seed, not on the order of the rows.

    `InputError`: fewer than 2 folds, fewer groups than folds, a row without a site, a site in two spellings, a class
    with too few patients to be in every train (or a test of one class only, which no metric can judge).

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> [len(fold.test) for fold in longvit.make_folds(cohort, 5)]
    [4, 4, 4, 4, 4]
    """
    if k < 2:
        raise InputError(f"{k} folds: at least 2 are needed")
    if not 0 <= seed < 2**31:
        raise InputError(f"seed {seed}: at least 0 and at most {2**31 - 1:,}")
    if not 0 <= val_fraction < 0.5:
        raise InputError(f"val fraction {val_fraction:g}: it must be 0 (no val) or above, and below 0.5")
    assert strata is None or len(strata) == len(cohort.rows)
    order = sorted(range(len(cohort.rows)), key=lambda i: cohort.rows[i].slide_id)
    groups = _groups(cohort, by_site)
    texts = [row.label for row in cohort.rows] if strata is None else list(strata)
    what = "sites" if by_site else "patients"
    if (n := len(set(groups))) < k:
        raise InputError(f"{cohort.source}: {n} {what} for {k} folds; choose fewer folds")

    folds = []
    for number, test in enumerate(_parts(order, k, texts, groups, seed)):
        name = f"{cohort.source}, new fold {number}"
        rest = [i for i in order if i not in set(test)]
        _check_classes(cohort, rest, test, f"{name}: too few {what} for {k} folds")
        val: set[int] = set()
        if val_fraction:
            val = set(_val(cohort, rest, texts, groups, seed, val_fraction, f"{name}: too few {what} for a val part"))
        ids = {
            "train": tuple(cohort.rows[i].slide_id for i in rest if i not in val),
            "val": tuple(cohort.rows[i].slide_id for i in rest if i in val),
            "test": tuple(cohort.rows[i].slide_id for i in test),
        }
        folds.append(Fold(str(number), ids["train"], ids["val"], ids["test"], name))
    return tuple(folds)


def _groups(cohort: Cohort, by_site: bool) -> list[str]:
    """What must stay together, one name per row."""
    if not by_site:
        return [row.case_id for row in cohort.rows]
    if without := [row.slide_id for row in cohort.rows if not row.site]:
        raise InputError(
            f"{cohort.source}: slide {without[0]} has no site ({len(without)} in all); fill in the column site"
        )
    refuse_clashes("sites", first_places((str(row.site), row.where()) for row in cohort.rows), cohort.source)
    group_of = {str(row.site): str(row.site) for row in cohort.rows}
    site_of_case: dict[str, str] = {}
    for row in cohort.rows:  # a patient seen at two sites joins them
        one, other = group_of[site_of_case.setdefault(row.case_id, str(row.site))], group_of[str(row.site)]
        if one != other:
            group_of = {site: one if group == other else group for site, group in group_of.items()}
    return [group_of[str(row.site)] for row in cohort.rows]


def _parts(
    rows: Sequence[int], k: int, strata: Sequence[str], groups: Sequence[str], seed: int
) -> list[tuple[int, ...]]:
    """`rows` in k disjoint parts by group and stratum; a part may be empty where few groups hold most rows."""
    from sklearn.model_selection import StratifiedGroupKFold

    texts, names = [strata[i] for i in rows], [groups[i] for i in rows]
    if max(Counter(texts).values()) < k:  # scikit-learn refuses; so few rows a stratum cannot be shared out anyway
        texts = [""] * len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "the least populated class has only …": judged by the caller
        parts = list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(texts, texts, names))
    return [tuple(rows[i] for i in part) for _, part in parts]


def _check_classes(cohort: Cohort, rest: Iterable[int], test: Iterable[int], why: str) -> None:
    in_test = {cohort.rows[i].label for i in test}
    if not in_test:
        raise InputError(f"{why}: nothing is left to test; choose fewer folds")
    if not cohort.classes:
        return
    if absent := [label for label in cohort.classes if label not in {cohort.rows[i].label for i in rest}]:
        raise InputError(f"{why}: class {absent[0]!r} is in test only; choose fewer folds, or leave the class out")
    if len(in_test) == 1:
        raise InputError(f"{why}: every slide in test is of class {in_test.pop()!r}; choose fewer folds")


def _val(
    cohort: Cohort,
    rest: Sequence[int],
    strata: Sequence[str],
    groups: Sequence[str],
    seed: int,
    fraction: float,
    why: str,
) -> tuple[int, ...]:
    """The part of `rest` that keeps every class in train, has most classes itself, and is nearest to the share of each
    stratum."""
    parts = min(round(1 / fraction), len({groups[i] for i in rest}))
    every = {cohort.rows[i].label for i in rest}
    rows_of = Counter(strata[i] for i in rest)

    def badness(part: tuple[int, ...]) -> tuple[int, int, float]:
        inside, chosen, count = {cohort.rows[i].label for i in part}, set(part), Counter(strata[i] for i in part)
        left = {cohort.rows[i].label for i in rest if i not in chosen}
        return len(every - left), len(every - inside), sum(abs(count[s] / rows_of[s] - fraction) for s in rows_of)

    found = [part for part in _parts(rest, parts, strata, groups, seed) if part] if parts > 1 else []
    best = min(found, key=badness, default=())
    if len(found) < 2 or badness(best)[0]:
        raise InputError(f"{why} that leaves every class in train; choose fewer folds or val fraction 0")
    return best


def patient_disjoint(folds: Iterable[Fold], cohort: Cohort) -> tuple[Fold, ...]:
    """The same folds with every patient in one split, each split nearly as large as before (HIPT's: within 3 slides).

    Only patients who are in two splits move; every other id stays where it was published. Those patients are taken
    in turn, the one with most ids first (then by name), and each goes, whole, into that one of its splits which lacks
    most of its published size so far; of two that lack the same, the one with more of its ids, then test, val, train.
    Nothing is drawn, so the result is the same each time. Ids that are no row of the cohort stay too: they are
    not used, whoever they are.
    """
    return tuple(_disjoint(fold, cohort) for fold in folds)


def _disjoint(fold: Fold, cohort: Cohort) -> Fold:
    cases = match(cohort, fold).cases
    ids_of: dict[str, Counter[str]] = {}
    for split in SPLITS:
        for case in cases[split].values():
            ids_of.setdefault(case, Counter())[split] += 1
    lacks = Counter({split: len(cases[split]) for split in SPLITS})
    lacks.subtract(split for ids in ids_of.values() if len(ids) == 1 for split in ids.elements())
    shared = sorted((case for case, ids in ids_of.items() if len(ids) > 1), key=lambda c: (-ids_of[c].total(), c))
    home: dict[str, str] = {}
    for case in shared:
        ids = ids_of[case]
        home[case] = max(ids, key=lambda split: (lacks[split], ids[split], SPLITS.index(split)))
        lacks[home[case]] -= ids.total()

    new: dict[str, list[str]] = {split: [] for split in SPLITS}
    moved: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for text in fold.ids(split):
            to = home.get(cases[split].get(text, ""), split)
            (new if to == split else moved)[to].append(text)
    # an id that the fold lists in two splits arrives where it stands already
    every = {split: tuple(dict.fromkeys([*new[split], *moved[split]])) for split in SPLITS}
    return Fold(fold.name, every["train"], every["val"], every["test"], f"{fold.where()}, patient-disjoint")
