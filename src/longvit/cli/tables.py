"""`longvit tables [RUNS_FOLDER …]`"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_NOTE = """\
Mean ± SD over the folds as published: SD of a sample over 10 folds in table 1, of the population over 5 in table 2.
The 10 subtyping folds overlap and have patients on both sides of training and test; the 5 survival folds have no test
part: their baselines are those of the last epoch on the validation part. SNN sees no image. HIPT's survival figures are
means, on other features, without a UCEC cohort. The published LongViT figures are not transcribed: they are in """


def tables(
    *runs: Annotated[
        Path, Parameter(help="Folders with cross-validations (crossval.json, at any depth), or such files.")
    ],
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of tables.")] = False,
) -> int:
    """The paper's tables 1 to 4: published baselines, and beside them what the runs in these folders measured.

    Without a folder the published rows alone. A cell is filled from the crossval.json of a run with one of the recipes
    (`longvit recipes`), never by hand; – stands where there is no figure.

    **Examples**

    ```
    longvit tables
    longvit tables runs --json
    ```
    """
    from longvit.finetuning.paper_tables import PAPER, measured_cells, paper_tables

    cells = measured_cells(runs)
    if as_json:
        found = [dataclasses.asdict(table) for table in paper_tables(cells)]
        print(
            json.dumps({"tables": found, "measured_from": [str(c.path) for c in cells]}, indent=1, ensure_ascii=False)
        )
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe or a file: no line is folded at 80
    for paper_table in paper_tables(cells):
        table = Table(title=f"Table {paper_table.number}: {paper_table.title}", title_justify="left")
        table.add_column("system")
        table.add_column("inputs")
        for column in paper_table.columns:
            table.add_column(column, justify="right")
        for row in paper_table.rows:
            table.add_row(row.system, row.inputs, *row.cells, style="bold" if row.measured else None)
        console.print(table)
    console.print(f"{_NOTE}{PAPER}.", highlight=False)
    for cell in cells:
        console.print(
            f"measured: table {cell.table}, {cell.cohort}, {cell.side_px:,} px, {cell.folds} folds, ddof {cell.ddof}: "
            f"{cell.path}",
            highlight=False,
            soft_wrap=True,
        )
    return 0
