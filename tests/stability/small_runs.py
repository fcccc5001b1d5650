"""Small runs of every command that writes tables or JSON: the columns of each CSV file and the keys of each JSON.

The inputs and the small settings are those of the pages' blocks (`tests/docs`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs.folders import write_inputs
from tests.docs.small import smaller

RUNS = {
    "train": "train cohortA.csv --out train",
    "survival": "train outcomes.csv --task survival --n-bins 2 --out survival",
    "train --folds": "train cohort.csv --folds 2 --out crossval",
    "predict": "predict train/model slides --out predict",
    "external": "predict train cohortB.csv --out external",
    "embed": "embed train/model cohort.csv --by patient --out embed",
    "canvas": "canvas slides --out canvas",
    "tiles": "tiles slides --tile-px 128 --min-tissue 0 --out tiles",
    "features": "features slides --tile-px 128 --min-tissue 0 --out features",
    "benchmark": "benchmark cohort.csv --features features --folds 2 --deletion-slides 2 --out benchmark",
    "pretrain": "pretrain slides --out pretrain",
    "doctor": "doctor slides --out qc",
    "site-check": "site-check embed --cohort cohort.csv --permutations 199 --out site_check",
    "cohort split": "cohort split cohort.csv --k 2 --out folds",
}
"""Name → the command, whose output folder is its last word."""
PRINTED = {
    "info --json": "info slide.svs --json",
    "init --json": "init cohort.csv --out proposed.yaml --json",
    "doctor --json": "doctor --json",
    "doctor SLIDES --json": "doctor slides --out qc --json",
    "status --json": "status embed --json",
    "cohort check --json": "cohort check cohort.csv --json",
    "evaluate --json": "evaluate train/predictions.csv --bootstrap 20 --json",
    "plan --json": "plan --side-px 4096 --gpu-gb 16 --json",
    "recipes --json": "recipes --json",
    "tables --json": "tables --json",
    "encoders --json": "encoders --json",
    "site-check --json": "site-check embed --cohort cohort.csv --permutations 199 --out site_check --json",
}
"""Name → the command that prints JSON."""
NO_FORMAT = ("work", "canvases", "folds", "checkpoints")
"""Folders of other runs' files, or of files that only the run itself reads."""


def files_part(folder: Path) -> dict[str, Any]:
    """Run → file → `columns` or `keys`. The runs are made in `folder`."""
    write_inputs(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = {}
        for name, command in RUNS.items():
            run(command)
            found[name] = written(Path(command.split()[-1]))
        return found | {name: {"stdout": keys_of(json.loads(run(command)))} for name, command in PRINTED.items()}
    finally:
        os.chdir(before)


def run(command: str) -> str:
    """Standard output of a command that ends with exit code 0 or 1."""
    from longvit.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(smaller(command.split()))
    assert code in (0, 1), f"longvit {command}: exit code {code}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


def written(out: Path) -> dict[str, Any]:
    """Files of a run with the numbers in their names as `#`; files of one such name have the same columns or keys."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out)
        if path.suffix not in (".csv", ".json") or set(place.parts[:-1]) & set(NO_FORMAT):
            continue
        name = re.sub(r"\d+", "#", place.as_posix())
        if name not in found:
            found[name] = columns_of(path) if path.suffix == ".csv" else keys_of(json.loads(path.read_text()))
    return found


def columns_of(path: Path) -> dict[str, list[str]]:
    """The header of a CSV file; of an embedding its first column."""
    with path.open(newline="", encoding="utf-8") as file:
        return {"columns": [name for name in next(csv.reader(file)) if not re.fullmatch(r"f[1-9]\d*", name)]}


def keys_of(content: Any) -> dict[str, list[str]]:
    """Every key of a JSON value as a path: `folds[].auc`."""
    return {"keys": sorted(set(paths(content)))}


def paths(content: Any, above: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{above}{key}"
            yield from paths(value, f"{above}{key}.")
    elif isinstance(content, list):
        for value in content:
            yield from paths(value, f"{above.removesuffix('.')}[].")
