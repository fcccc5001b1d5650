"""Protocol of a cell, read from the user's clone of the published repository and checked by the known counts.

The licences of these repositories forbid shipping their tables and folds, so `--protocol` names a clone. A clone at
another commit is accepted where all counts agree, with a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import Fold, match, read_folds
from longvit.errors import InputError
from longvit.reproduce.cells import Cell, Protocol, Repository
from longvit.tasks.survival import patients_of

LABEL_COLUMN = "oncotree_code"
_MAX_REF_BYTES = 2**20


@dataclass(frozen=True)
class FoldSize:
    """Slides of one fold by their part in it."""

    train: int
    evaluated: int
    """Slides of val and test."""


@dataclass(frozen=True)
class CellProtocol:
    """Cohort and folds of a cell, with the clone that they are from."""

    cell: Cell
    cohort: Cohort
    """All rows of the table that some fold lists, with their labels."""
    folds: tuple[Fold, ...]
    checkout: Path
    commit: str | None
    """Commit of the clone; None where the folder is not a clone."""
    notes: tuple[str, ...]

    @property
    def slides(self) -> tuple[SlideRow, ...]:
        """Slides that the cell reads: of each patient the first one for LongViT in survival, as published."""
        if not self.cell.reads_slides:
            return ()
        is_first = self.cell.task == "survival" and self.cell.system is None
        return patients_of(self.cohort.rows) if is_first else self.cohort.rows

    @property
    def table(self) -> Path:
        """Table of slides with labels."""
        return self.checkout / self.cell.protocol.table

    @property
    def signatures(self) -> Path | None:
        """Gene signatures of MCAT; None in subtyping."""
        name = self.cell.protocol.signatures
        return None if name is None else self.checkout / name

    def fold_sizes(self) -> tuple[FoldSize, ...]:
        """Number of slides in each fold, of those that the cell reads."""
        read = {row.slide_id for row in self.slides}
        sizes = []
        for fold in self.folds:
            rows = match(self.cohort, fold).rows
            n = {s: sum(self.cohort.rows[i].slide_id in read for i in at) for s, at in rows.items()}
            sizes.append(FoldSize(n["train"], n["val"] + n["test"]))
        return tuple(sizes)


def read_protocol(cell: Cell, checkouts: Sequence[Path], slides_dir: Path | None = None) -> CellProtocol:
    """Cohort and folds of a cell from a clone of its repository.

    `checkouts`: clones, of which one is the cell's. `slides_dir`: folder of the canvases or features, where it exists.

    Raises `InputError`: no clone of the cell's repository, a missing file, counts that differ from the known ones, and
    the errors of `read_cohort` and `read_folds`.

    >>> from pathlib import Path
    >>> from longvit.reproduce.cells import cell_named
    >>> from longvit.reproduce.protocol import read_protocol
    >>> protocol = read_protocol(cell_named("table1/brca/4096"), [Path("HIPT")])
    >>> len(protocol.slides), len(protocol.folds)
    (875, 10)
    """
    known = cell.protocol
    checkout = _checkout_of(known, checkouts)
    table = checkout / known.table
    if not table.is_file():
        raise InputError(f"{table}: no such file; {_how_to_clone(known.repository)}")
    cohort = read_cohort(
        table,
        label_column=LABEL_COLUMN if known.classes else None,
        keep=tuple(known.classes) or None,
        slides_dir=slides_dir,
        need_files=False,
        allow_leak=True,
    )
    folds = read_folds(checkout / known.folds)
    listed = {i for fold in folds for rows in match(cohort, fold).rows.values() for i in rows}
    cohort = replace(cohort, rows=tuple(row for i, row in enumerate(cohort.rows) if i in listed))
    _check_counts(cell, checkout, cohort, folds)
    commit = commit_of(checkout)
    return CellProtocol(cell, cohort, folds, checkout, commit, _commit_notes(known.repository, checkout, commit))


def commit_of(checkout: Path) -> str | None:
    """Commit of a clone, from the files of git; None where the folder is not a clone or they cannot be read."""
    git = checkout / ".git"
    try:
        head = _text(git / "HEAD")
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ").strip()
        if (git / name).is_file():
            return _text(git / name)
        packed = (line.split(" ", 1) for line in _text(git / "packed-refs").splitlines() if " " in line)
        return next((commit for commit, ref in packed if ref.strip() == name), None)
    except (OSError, UnicodeDecodeError):
        return None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_REF_BYTES).decode("ascii").strip()


def _checkout_of(known: Protocol, checkouts: Sequence[Path]) -> Path:
    for checkout in checkouts:
        if not checkout.is_dir():
            raise InputError(f"--protocol {checkout}: no such folder; {_how_to_clone(known.repository)}")
        if (checkout / known.folds).is_dir():
            return checkout
    if not checkouts:
        raise InputError(
            f"labels and folds are those of {known.repository.name} ({known.repository.licence}), which may not be "
            f"shipped: {_how_to_clone(known.repository)}, and give the folder with --protocol"
        )
    raise InputError(
        f"--protocol {', '.join(map(str, checkouts))}: no folder {known.folds} in it; {_how_to_clone(known.repository)}"
    )


def _how_to_clone(repository: Repository) -> str:
    name = repository.name.rpartition("/")[2]
    return f"git clone {repository.url} && git -C {name} checkout {repository.commit[:7]}"


def _check_counts(cell: Cell, checkout: Path, cohort: Cohort, folds: Sequence[Fold]) -> None:
    """Raises `InputError` for the first count that differs from the known one."""
    known = cell.protocol
    counts = {
        "folds": (len(folds), known.n_folds),
        "patients": (len({row.case_id for row in cohort.rows}), known.patients),
        "slides": (len(cohort.rows), known.slides),
    }
    for label, n in known.classes.items():
        counts[f"slides of {label}"] = (sum(row.label == label for row in cohort.rows), n)
    for what, (found, expected) in counts.items():
        if expected is not None and found != expected:
            raise InputError(
                f"{checkout}: {found} {what} for {cell.name}, not {expected} as in {known.repository.name} at "
                f"{known.repository.commit[:7]}; git checkout {known.repository.commit[:7]}"
            )


def _commit_notes(repository: Repository, checkout: Path, commit: str | None) -> tuple[str, ...]:
    if commit == repository.commit:
        return ()
    state = "no clone of git" if commit is None else f"at commit {commit[:7]}"
    return (f"{checkout}: {state}; {repository.name} at {repository.commit[:7]} is known, and all counts agree",)
