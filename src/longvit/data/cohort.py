"""Cohort: slides with their patients, labels and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from longvit.errors import InputError

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "tune": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class SlideRow:
    """One slide of a cohort.

    >>> import longvit
    >>> row = longvit.read_cohort("cohort.csv", slides_dir="slides").rows[0]
    >>> row.case_id, row.slide_id, row.label, row.where()
    ('P0', 's00', 'pale', 'line 2')
    """

    case_id: str
    """The patient (or specimen); slides of one case are never in two splits."""
    slide_id: str
    """Name of the slide, unique in its cohort, without the file's extension."""
    label: str
    """Class, as written in the CSV (but 1.0 is 1, see `identity.class_name`); "" where the cohort has no label
    column."""
    path: Path
    """File or folder of the slide; it existed when the cohort was read (see `need_files`)."""
    mpp: float | None = None
    """µm per pixel at level 0 where the CSV states it; None leaves it to the file."""
    split: str | None = None
    """`train`, `val`, `test`, or None where the CSV has no such column."""
    fold: str | None = None
    """Cross-validation fold, read like a class."""
    site: str | None = None
    """Hospital or scanner, read like a class."""
    extra_columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """All cells of the CSV's row by column name (lower case, `_` for spaces and `-`), as text without outer spaces."""
    line: int | None = field(default=None, compare=False, repr=False)
    """Line of the CSV, for messages."""

    def where(self) -> str:
        """`line 3`, or "" where the row was not read from a CSV."""
        return "" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Cohort:
    """Slides with labels, in the order of the CSV; `notes` lists the assumptions made while reading.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> cohort.classes, [row.slide_id for row in cohort.rows[:2]]
    (('pale', 'stained'), ['s00', 's01'])
    """

    rows: tuple[SlideRow, ...]
    """A row per slide."""
    classes: tuple[str, ...]
    """Sorted (by number where all are numbers), or in the order of `keep`; of two classes the second is the positive
    one. Empty where the cohort has no label column."""
    source: str = "cohort"
    """Origin of the cohort, for messages."""
    notes: tuple[str, ...] = ()
    """Assumptions where the CSV is silent, one sentence each; print them."""
    is_ordered: bool = False
    """True where the user gave the classes and their order (`keep`)."""

    def split(self, name: str) -> tuple[SlideRow, ...]:
        """Rows of `train`, `val` or `test`."""
        return tuple(row for row in self.rows if row.split == name)

    def class_index(self, row: SlideRow) -> int:
        """Index of the row's label in `classes`."""
        return self.classes.index(row.label)

    def with_splits(self, split_of: Sequence[str | None], *, allow_leak: bool = False) -> Cohort:
        """The cohort with one split name per row (or None: in no split).

        A patient in two splits is an `InputError`, unless `allow_leak`.
        """
        assert len(split_of) == len(self.rows)
        rows = tuple(replace(row, split=split) for row, split in zip(self.rows, split_of, strict=True))
        if not allow_leak:
            refuse_leak(rows, "split", self.source)
        return replace(self, rows=rows)

    def fingerprint(self) -> str:
        """Hash of the patients, slides, labels and splits of the cohort (not of pixels or folders)."""
        lines = sorted(f"{row.case_id}\t{row.slide_id}\t{row.label}\t{row.split}\t{row.mpp}" for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """One line: slides, patients, classes, splits, each with its count."""
        cases = len({row.case_id for row in self.rows})
        parts = [f"{len(self.rows)} slides of {cases} patients"]
        if self.classes:
            parts.append(", ".join(f"{label} {sum(row.label == label for row in self.rows)}" for label in self.classes))
        splits = [f"{name} {len(self.split(name))}" for name in SPLITS if self.split(name)]
        return "; ".join([*parts, ", ".join(splits)] if splits else parts)


def refuse_leak(rows: Iterable[SlideRow], key: str, source: str) -> None:
    """Raises `InputError` for a patient with slides in two splits (or folds), which makes every metric look too
    good."""
    values_of_case: dict[str, set[str]] = {}
    for row in rows:
        if (value := getattr(row, key)) is not None:
            values_of_case.setdefault(row.case_id, set()).add(value)
    leaks = {case: sorted(values) for case, values in values_of_case.items() if len(values) > 1}
    if leaks:
        case, values = next(iter(leaks.items()))
        more = f", and {len(leaks) - 1} more patients too" if len(leaks) > 1 else ""
        raise InputError(f"{source}: patient {case} is in two {key}s ({', '.join(values)}){more}; put each in one")
