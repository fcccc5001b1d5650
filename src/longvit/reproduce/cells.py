"""Cells of the paper's tables 1 to 4 by name: `table1/brca/4096` is LongViT, `table1/brca/clam_sb` a baseline row.

Tables 3 and 4 name the runs of LongViT in tables 1 and 2 again, by resolution. The published metrics are those of
`finetuning.paper_tables`, the settings those of the recipes. A protocol is the table of labels and the folds of one
cohort in a published repository, with the counts by which a clone is checked. Its files are not part of this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from longvit.errors import InputError
from longvit.finetuning.paper_tables import (
    COHORTS,
    RESOLUTIONS_PX,
    PublishedRow,
    best_published,
    published_rows,
)

TASKS = {1: "subtyping", 2: "survival"}


@dataclass(frozen=True)
class Repository:
    """Published repository with a protocol, and the commit at which it was read."""

    name: str
    commit: str
    licence: str

    @property
    def url(self) -> str:
        """Address to clone."""
        return f"https://github.com/{self.name}"


HIPT = Repository(
    "mahmoodlab/HIPT", "780fafaed2e5b112bc1ed6e78852af1fe6714342", "Commons Clause, non-commercial research"
)
MCAT = Repository("mahmoodlab/MCAT", "b9cca63be83c67de7f95308d54a58f80b78b0da1", "GPL-3.0, non-commercial research")


@dataclass(frozen=True)
class Protocol:
    """Labels and folds of one cohort in a published repository, and their known counts."""

    repository: Repository
    table: str
    """Path of the table of slides with labels, in the repository."""
    folds: str
    """Folder of the folds, in the repository."""
    n_folds: int
    collections: tuple[str, ...]
    """Collections of the Imaging Data Commons that hold the slides."""
    patients: int
    """Patients that take part."""
    slides: int | None
    """Slides that take part; None where it is not known."""
    classes: Mapping[str, int]
    """Class -> its slides, in the order of the labels; empty for survival."""
    signatures: str | None = None
    """Path of MCAT's gene signatures; None in subtyping."""


def _hipt(name: str, collections: tuple[str, ...], patients: int, classes: Mapping[str, int]) -> Protocol:
    folder = "2-Weakly-Supervised-Subtyping"
    return Protocol(
        HIPT,
        f"{folder}/dataset_csv/tcga_{name}_subset.csv.zip",
        f"{folder}/splits/10foldcv_subtype/tcga_{name}",
        10,
        collections,
        patients,
        sum(classes.values()),
        classes,
    )


def _mcat(name: str, patients: int, slides: int | None) -> Protocol:
    folder = "datasets_csv_sig"
    return Protocol(
        MCAT,
        f"{folder}/tcga_{name}_all_clean.csv.zip",
        f"splits/5foldcv/tcga_{name}",
        5,
        (f"tcga_{name}",),
        patients,
        slides,
        {},
        f"{folder}/signatures.csv",
    )


PROTOCOLS: Mapping[tuple[int, str], Protocol] = {
    (1, "brca"): _hipt("brca", ("tcga_brca",), 837, {"IDC": 726, "ILC": 149}),
    (1, "nsclc"): _hipt("lung", ("tcga_luad", "tcga_lusc"), 862, {"LUAD": 492, "LUSC": 466}),
    (1, "rcc"): _hipt(
        "kidney", ("tcga_kirc", "tcga_kirp", "tcga_kich"), 866, {"CCRCC": 498, "PRCC": 289, "CHRCC": 118}
    ),
    (2, "brca"): _mcat("brca", 956, None),
    (2, "luad"): _mcat("luad", 453, 516),
    (2, "ucec"): _mcat("ucec", 480, 539),
}
"""(table 1 or 2, cohort) -> protocol. `2-Weakly-Supervised-Survival` of HIPT is not used: its LongViT row is MCAT's."""


@dataclass(frozen=True)
class Cell:
    """Cell of a table: one cohort, and LongViT at one resolution or a baseline system."""

    table: int
    """Table 1 to 4."""
    cohort: str
    side_px: int | None
    """Side of the canvas; None for a baseline."""
    system: str | None
    """System spec of a baseline, such as deep_sets+concat; None for LongViT."""
    published: PublishedRow
    """Published row beside which the cell is printed: that of the baseline, for LongViT that of the best one."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"table{self.table}/{self.cohort}/{self.side_px or self.system}"

    @property
    def metric_table(self) -> int:
        """Table with the same runs: 1 for tables 1 and 3, 2 for tables 2 and 4."""
        return (self.table - 1) % 2 + 1

    @property
    def run_name(self) -> str:
        """Name of the run that measures the cell: tables 3 and 4 share those of tables 1 and 2."""
        return f"table{self.metric_table}/{self.cohort}/{self.side_px or self.system}"

    @property
    def task(self) -> str:
        """Task: subtyping or survival."""
        return TASKS[self.metric_table]

    @property
    def protocol(self) -> Protocol:
        """Labels and folds of the cell."""
        return PROTOCOLS[self.metric_table, self.cohort]

    @property
    def recipe(self) -> str:
        """Name of the built-in recipe with the settings of the cell."""
        if self.side_px is None:
            return f"baselines_{self.task}_{self.cohort}"
        return f"{self.task}_{self.cohort}_{self.side_px}"

    @property
    def reads_slides(self) -> bool:
        """False for a baseline of omics alone."""
        return "image" in self.published.inputs or self.system is None

    @property
    def reads_omics(self) -> bool:
        """True for a baseline with genomic inputs."""
        return self.system is not None and "genomic" in self.published.inputs

    @property
    def slides(self) -> int | None:
        """Slides to download where their number is known: LongViT takes one of each patient for survival."""
        if not self.reads_slides:
            return 0
        is_first = self.task == "survival" and self.system is None
        return self.protocol.patients if is_first else self.protocol.slides


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell, in the order of the tables: LongViT by resolution, then the baselines of tables 1 and 2."""
    listed = []
    for table in (1, 2, 3, 4):
        first = (table - 1) % 2 + 1
        for cohort in COHORTS[first]:
            best = best_published(first, cohort)
            listed += [Cell(table, cohort, side_px, None, best) for side_px in RESOLUTIONS_PX]
        if table == first:
            for cohort in COHORTS[first]:
                rows = [row for row in published_rows(first) if row.cohort == cohort]
                listed += [Cell(table, cohort, None, _system_spec(row), row) for row in rows]
    return tuple(listed)


def cell_named(name: str) -> Cell:
    """The cell of this name; `InputError` names the nearest one."""
    by_name = {cell.name: cell for cell in cells()}
    if (cell := by_name.get(name.strip().lower())) is not None:
        return cell
    near = difflib.get_close_matches(name.lower(), list(by_name), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"cell {name!r}: none of the paper's{hint} `longvit reproduce --list` names all {len(by_name)}")


def _system_spec(row: PublishedRow) -> str:
    """System spec of a published row: those with genomic features besides MCAT are a late fusion, `+concat`."""
    fuses = row.inputs == "image+genomic" and row.system != "mcat"
    return f"{row.system}+concat" if fuses else row.system
