"""Reproduction of a cell: starting weights, slides, folds, and the table beside the published rows.

    OUT/reproduce.json      the cell and its protocol; another cell is refused in this folder
    OUT/weights/            a converted checkpoint
    OUT/fetched/            canvases or features (`public.fetch_job`), unless `fetched` names another folder
    OUT/run/                cross-validation of LongViT, with report
    OUT/comparison/         training of a baseline, with report
    OUT/result.json         `result.result_json`; written last

Every stage resumes: the same call finishes what an earlier one began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.comparison.settings import ComparisonSettings
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.finetuning.settings import FinetuneSettings
from longvit.json_file import read_json_object
from longvit.reproduce.cells import Cell
from longvit.reproduce.prepare import Reproduction
from longvit.reproduce.protocol import read_protocol
from longvit.reproduce.result import baseline_measured, longvit_measured, result_json, table_lines
from longvit.reproduce.stages import (
    COMPARISON,
    RUN,
    fetch_slides,
    sha256_of,
    starting_weights,
    train_baseline,
    train_longvit,
)

RECORD, RESULT = "reproduce.json", "result.json"


@dataclass(frozen=True)
class Reproduced:
    """Result of a reproduction."""

    folder: Path
    content: Mapping[str, Any]
    """Content of result.json."""
    table: tuple[str, ...]
    """The table as lines of text."""
    left_out: Mapping[str, str]
    """Slides without a canvas or features, and why."""

    @property
    def report(self) -> Path:
        """Report of the training."""
        return self.folder / (RUN if (self.folder / RUN).is_dir() else COMPARISON) / "index.html"


def reproduce(reproduction: Reproduction, out_dir: str | Path) -> Reproduced:
    """Runs every stage of a cell that is not finished, and returns its table.

    Raises `InputError`: a folder of another cell, a baseline without an encoder, missing slides (unless they may be
    missing), and the errors of the stages.

    >>> from pathlib import Path
    >>> from longvit.reproduce.cells import cell_named
    >>> from longvit.reproduce.prepare import prepare
    >>> from longvit.reproduce.settings import ReproduceSettings
    >>> plan = prepare(cell_named("table2/ucec/snn"), ReproduceSettings(protocol=(Path("MCAT"),)))
    >>> plan.cost.slides
    0
    """
    cell, options = reproduction.cell, reproduction.options
    if cell.system is not None and cell.reads_slides and options.encoder is None:
        raise InputError(f"{cell.name}: a baseline on tile features; name their encoder with --encoder")
    folder = make_folder(out_dir)
    fetched = options.fetched or folder / "fetched"
    _open_folder(folder, cell)
    weights = starting_weights(reproduction, folder)
    _say(f"{cell.name}: starts from {reproduction.start}")
    left_out = fetch_slides(reproduction, fetched)
    protocol = read_protocol(cell, options.protocol, fetched if cell.reads_slides else None)
    settings = reproduction.settings
    if isinstance(settings, ComparisonSettings):
        measured = baseline_measured(train_baseline(protocol, settings, options.encoder, fetched, folder))
    else:
        summary = train_longvit(protocol, settings, weights, folder).summary
        measured = longvit_measured(protocol, settings, summary, folder / RUN)
    content = result_json(cell, measured, _provenance(reproduction, left_out))
    write_text(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Reproduced(folder, content, tuple(table_lines(cell, measured)), left_out)


def _open_folder(folder: Path, cell: Cell) -> None:
    """Writes reproduce.json. Raises `InputError` for a folder with the reproduction of another run."""
    path = folder / RECORD
    if path.exists():
        if (other := read_json_object(path).get("run")) != cell.run_name:
            raise InputError(f"{folder}: holds the reproduction of {other}; choose another folder with --out")
        return
    write_text(path, json.dumps({"run": cell.run_name, "recipe": cell.recipe}, indent=1) + "\n")


def _provenance(reproduction: Reproduction, left_out: Mapping[str, str]) -> dict[str, Any]:
    """Provenance of the result: weights, changes, protocol, archive."""
    known = reproduction.cell.protocol.repository
    protocol, selection = reproduction.protocol, reproduction.selection
    is_longvit = isinstance(reproduction.settings, FinetuneSettings)
    weights = reproduction.options.weights
    return {
        "starts_from": reproduction.start,
        "checkpoint_sha256": sha256_of(weights) if weights is not None and weights.is_file() else None,
        "encoder": None if is_longvit else reproduction.options.encoder,
        "recipe": reproduction.cell.recipe,
        "changes": json.loads(json.dumps(reproduction.changes, default=str)),
        "protocol": {"repository": known.name, "commit": known.commit, "clone": protocol.commit},
        "archive": selection.archive or None,
        "citations": list(selection.citations),
        "slides": len(protocol.slides),
        "left_out": dict(left_out),
        "notes": list(protocol.notes),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
