"""The paper's four tables: published figures of the baselines, and the cells that runs here have measured.

Table 1: AUC of subtyping, 10 folds. Table 2: c-index of survival, 5 folds. Tables 3 and 4: LongViT alone, by
resolution, on the cohorts of table 1 and of table 2.

`published_baselines.csv` holds the baselines' rows: mean and SD of the AUC of each fold (mahmoodlab/HIPT, its result
summaries) and of the c-index that the published risks of the patients have in each fold (mahmoodlab/MCAT, its result
pickles). They were worked out with scikit-survival, not with this package, so that a test can hold the two against
each other. HIPT's survival figures are quoted as means; they rest on other features and have no UCEC cohort. The
published LongViT figures are not transcribed: they stand in the paper, arXiv 2312.03558.

A measured cell comes from a `crossval.json` whose `cell` is `table1/brca/1024` (table / cohort / side of the canvas in
px; table 3 and table 1 name the same cells, so do 4 and 2). Nothing is filled in by hand.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.json_file import read_json_object

BASELINES_CSV = Path(__file__).with_name("published_baselines.csv")
CROSSVAL_JSON = "crossval.json"
PAPER = "arXiv 2312.03558"
RESOLUTIONS_PX = (1024, 4096, 8192, 16384, 32768)
COHORTS = {1: ("brca", "nsclc", "rcc"), 2: ("brca", "luad", "ucec")}
METRICS = {1: "auc", 2: "c_index"}
SYSTEMS = {
    "mil": "MIL",
    "clam_sb": "CLAM-SB",
    "deep_attn_misl": "DeepAttnMISL",
    "gcn_mil": "GCN-MIL",
    "ds_mil": "DS-MIL",
    "hipt": "HIPT",
    "snn": "SNN",
    "deep_sets": "Deep Sets",
    "attention_mil": "Attention MIL",
    "mcat": "MCAT",
}


@dataclass(frozen=True)
class PublishedRow:
    """One published cell."""

    table: int
    """1 or 2."""
    system: str
    inputs: str
    """image, genomic or image+genomic."""
    cohort: str
    metric: str
    """auc or c_index."""
    mean: float
    """0 … 1, three decimals."""
    sd: float | None
    """Over the folds; None where it is not at hand."""
    ddof: int | None
    """1: SD of a sample, 0: of the population."""
    folds: int


@dataclass(frozen=True)
class MeasuredCell:
    """One cell that a cross-validation here has measured."""

    table: int
    """1 or 2 (also for cells named after tables 3 and 4)."""
    cohort: str
    side_px: int
    mean: float | None
    """None where no fold defines the figure."""
    sd: float | None
    ddof: int | None
    folds: int
    path: Path
    """Its crossval.json."""
    leaks: int = 0
    """How often, over the folds, a patient stands on two sides."""


def published_rows(table: int) -> tuple[PublishedRow, ...]:
    """The published baseline cells of table 1 or 2, in the order of the table."""
    with BASELINES_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(
            PublishedRow(
                table,
                row["system"],
                row["inputs"],
                row["cohort"],
                row["figure"],
                float(row["mean"]),
                float(row["sd"]) if row["sd"] else None,
                int(row["ddof"]) if row["ddof"] else None,
                int(row["folds"]),
            )
            for row in csv.DictReader(file)
            if int(row["table"]) == table
        )


def best_published(table: int, cohort: str) -> PublishedRow:
    """The published baseline with the highest mean among those that see the image."""
    return max((r for r in published_rows(table) if r.cohort == cohort and "image" in r.inputs), key=lambda r: r.mean)


def measured_cells(folders: Iterable[str | Path]) -> tuple[MeasuredCell, ...]:
    """The cells of every crossval.json in the folders, at any depth; those without a cell are passed over.

    `InputError`: no such folder, a file that is damaged or lacks a key, a cell that the tables do not have, a figure
    that is not the table's.
    """
    found: dict[Path, MeasuredCell] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise InputError(f"{folder}: no such folder")
        for path in [folder] if folder.is_file() else sorted(folder.rglob(CROSSVAL_JSON)):
            if (cell := _cell(path)) is not None:
                found[path.resolve()] = cell
    return tuple(found.values())


def _cell(path: Path) -> MeasuredCell | None:
    try:
        data = read_json_object(path)
        name = data["cell"]
        if name is None:
            return None
        metric, mean, sd, folds = data["figure"], _number(data["mean"]), _number(data["sd"]), data["folds"]
        ddof = data["ddof"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged; run the cross-validation again, it writes the file anew") from error
    except KeyError as error:
        raise InputError(f"{path}: no key {error.args[0]!r}; run the cross-validation again") from error
    table, cohort, side_px = _parse(path, name)
    if metric != METRICS[table]:
        raise InputError(f"{path}: cell {name} is measured by {METRICS[table]}, not by {metric}")
    try:
        leaks = sum(sum(fold.get("leaks", {}).values()) for fold in folds)
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path}: damaged; run the cross-validation again, it writes the file anew") from error
    return MeasuredCell(table, cohort, side_px, mean, sd, ddof, len(folds), path, leaks)


def _parse(path: Path, name: Any) -> tuple[int, str, int]:
    parts = str(name).split("/")
    table = {"table1": 1, "table3": 1, "table2": 2, "table4": 2}.get(parts[0])
    if table is None or len(parts) != 3 or parts[1] not in COHORTS[table] or parts[2] not in map(str, RESOLUTIONS_PX):
        raise InputError(
            f"{path}: cell {name!r} is none of the paper's; such as table1/{'|'.join(COHORTS[1])}/1024 or "
            f"table2/{'|'.join(COHORTS[2])}/4096 (px: {', '.join(map(str, RESOLUTIONS_PX))})"
        )
    return table, parts[1], int(parts[2])


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True)
class TableRow:
    """A row as it is printed."""

    system: str
    inputs: str
    cells: tuple[str, ...]
    """A text per cohort; – where there is no figure."""
    measured: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One of the four tables with the measured cells in it."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def paper_tables(measured: Sequence[MeasuredCell] = ()) -> tuple[PaperTable, ...]:
    """The paper's tables 1 to 4. A cell that is measured twice shows both figures; one that is not shows –."""
    published = TableRow(f"LongViT, published: {PAPER}", "image", ("–",) * 3)
    tables = []
    for number, title in ((1, "subtyping, AUC"), (2, "survival, c-index")):
        here = [row for row in _measured(number, measured) if set(row.cells) != {"–"}]
        here = here or [TableRow("LongViT, measured here", "image", ("–",) * 3, measured=True)]
        rows = [*_baselines(number), published, *here]
        tables.append(PaperTable(number, title, COHORTS[number], tuple(rows)))
    for number, title in ((1, "subtyping by resolution, AUC"), (2, "survival by resolution, c-index")):
        rows = [published, *_measured(number, measured)]
        tables.append(PaperTable(number + 2, title, COHORTS[number], tuple(rows)))
    return tuple(tables)


def metric_text(mean: float | None, sd: float | None) -> str:
    """`0.858 ± 0.067`; the mean alone without an SD; – without either."""
    if mean is None:
        return "–"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _measured_text(cell: MeasuredCell) -> str:
    """The figure, with its leaks where there are some."""
    text = metric_text(cell.mean, cell.sd)
    return f"{text} ({cell.leaks} leak{'s' * (cell.leaks > 1)})" if cell.leaks else text


def _baselines(table: int) -> list[TableRow]:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in published_rows(table):
        cells.setdefault((row.system, row.inputs), {})[row.cohort] = metric_text(row.mean, row.sd)
    return [
        TableRow(SYSTEMS[system], inputs, tuple(of.get(cohort, "–") for cohort in COHORTS[table]))
        for (system, inputs), of in cells.items()
    ]


def _measured(table: int, measured: Sequence[MeasuredCell]) -> list[TableRow]:
    """A row per resolution, with every cell that was measured at it."""
    rows = []
    for side_px in RESOLUTIONS_PX:
        texts = []
        for cohort in COHORTS[table]:
            here = [m for m in measured if (m.table, m.cohort, m.side_px) == (table, cohort, side_px)]
            texts.append(" | ".join(_measured_text(m) for m in here) or "–")
        rows.append(TableRow(f"LongViT, measured here, {side_px:,} px", "image", tuple(texts), measured=True))
    return rows
