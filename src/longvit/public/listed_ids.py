"""Ids that a cohort table or folds list: slides, or patients of whom all slides are meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvit.data.cohort_table import read_cohort
from longvit.data.folds import read_folds
from longvit.data.identity import first_places, read_id, refuse_clashes
from longvit.data.published_tables import read_cohort_table
from longvit.errors import InputError
from longvit.slides.file_kind import slide_stem


def read_listed(
    slides: Path | None, folds: Path | None, ids: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, str]:
    """Ids of the one list that is given, and its name for messages; None without a list. `InputError`: two lists."""
    named = {"--slides": slides, "--folds": folds, "ids": ids}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]}: two lists of slides; give one")
    if slides is not None:
        return ids_of_table(slides), str(slides)
    if folds is not None:
        return ids_of_folds(folds), str(folds)
    return (None if ids is None else tuple(dict.fromkeys(ids))), "the list"


def refuse_mixed_kinds(source: str, slides: Sequence[str], patients: Sequence[str]) -> None:
    """Raises `InputError` for a list of slides and patients: it is unclear which slides of a patient are meant."""
    if slides and patients:
        raise InputError(
            f"{source}: slide ids ({slides[0]}, {len(slides)} in total) and patients ({patients[0]}, {len(patients)} "
            f"in total) in one list; write one kind"
        )


def ids_of_table(path: Path) -> tuple[str, ...]:
    """Slide ids of a cohort table; patients, each once, where it has no column of slides.

    Raises `InputError` for a table without either column and for what `read_cohort` refuses: a slide listed twice, two
    ids that differ in spelling only, an id that a spreadsheet has rounded.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; --slides names a table with a column slide_id or case_id")
    table = read_cohort_table(path)
    if "slide_id" in table.columns or "path" in table.columns:
        cohort = read_cohort(path, label_column=None, need_files=False, need_labels=False, allow_leak=True)
        return tuple(row.slide_id for row in cohort.rows)
    if "case_id" not in table.columns:
        has = ", ".join(column or "(no name)" for column in table.columns)
        raise InputError(f"{table.path}: no column slide_id, path or case_id (it has {has})")
    places: list[tuple[str, str]] = []
    for line, cells in table.rows:
        name = read_id(cells.get("case_id", ""), "case_id", f"{table.path}, line {line}")
        if not name:
            raise InputError(f"{table.path}, line {line}: no patient; fill it in or remove the row")
        places.append((name, f"line {line}"))
    first = first_places(places)
    refuse_clashes("patients", first, str(table.path))
    return tuple(first)


def ids_of_folds(folder: Path) -> tuple[str, ...]:
    """Ids of all splits of all folds, each once, in the order of the files.

    Raises `InputError` for what `read_folds` refuses.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; --folds names a folder with splits_0.csv, splits_1.csv, …")
    folds = read_folds(folder)
    return tuple(
        dict.fromkeys(
            slide_stem(text) for fold in folds for split in ("train", "val", "test") for text in fold.ids(split)
        )
    )
