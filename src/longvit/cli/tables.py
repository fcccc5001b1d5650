"""`longvit tables [RUNS_FOLDER …]`"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import AsJson

_NOTE = """\
Mean ± SD over the published folds: sample SD over 10 folds in table 1, population SD over 5 folds in table 2.
The 10 subtyping folds overlap, and some patients are in both training and test. The 5 survival folds have no test
split: their baselines are those of the last epoch on the validation split. SNN uses no image. HIPT's survival metrics
are means, on other features, without a UCEC cohort. The published LongViT metrics are not transcribed: they are in """


def tables(
    *runs: Annotated[
        Path, Parameter(help="Folders with cross-validations (crossval.json at any depth), or crossval.json files.")
    ],
    as_json: AsJson = False,
) -> int:
    """Print the paper's tables 1 to 4: published baselines, and the metrics of the runs in these folders.

    Without a folder, only the published rows are printed. An entry is filled only from the crossval.json of a run with
    one of the recipes (`longvit recipes`); – marks a missing metric.

    **Examples**

    ```
    longvit tables
    longvit tables runs --json
    ```
    """
    from longvit.finetuning.paper_tables import PAPER, measured_cells, paper_tables

    cells = measured_cells(runs)
    if as_json:
        content = {
            "tables": [dataclasses.asdict(table) for table in paper_tables(cells)],
            "measured_from": [str(cell.path) for cell in cells],
        }
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe or a file: do not wrap at 80 columns
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
