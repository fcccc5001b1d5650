"""`longvit reproduce CELL`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import AsJson, echo
from longvit.reproduce.settings import ReproduceSettings


def reproduce(
    cell: Annotated[
        str | None,
        Parameter(
            help="Cell of the paper's tables: table1/brca/4096 is LongViT, table1/brca/clam_sb a baseline.",
            show_default=False,
        ),
    ] = None,
    /,
    *,
    list_cells: Annotated[
        bool,
        Parameter(name="--list", negative="", help="Name every cell, and with --protocol what each costs."),
    ] = False,
    out: Annotated[
        Path | None,
        Parameter(help="Folder of the reproduction. Default: reproduce/<table>-<cohort>-<cell>.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, Parameter(negative="", help="Run; without it the plan is printed.")] = False,
    settings: Annotated[ReproduceSettings, Parameter(name="*")] = ReproduceSettings(),
    as_json: AsJson = False,
) -> int:
    """Reproduce a cell of the paper's tables, from public slides to the row beside the published one.

    Reads labels and folds from your clone of the published repository and checks them by the known counts. Prints the
    bytes to download, the disk and the hours, and stops there (exit code 1) without --yes. Then downloads each slide,
    makes its canvas (baselines: its features), drops it, trains every fold, and prints the table with the gap and its
    interval. Writes `OUT/result.json` and the report of the training. Run the same command again to resume.

    Slides are those of the Imaging Data Commons (no account is needed), by the index in longvit[public].

    **Examples**

    ```
    longvit reproduce --list
    longvit reproduce --list --protocol HIPT --protocol MCAT --json
    longvit reproduce table1/brca/4096 --protocol HIPT --dry-run
    longvit reproduce table1/brca/4096 --protocol HIPT --weights longvit.pth --yes
    longvit reproduce table2/ucec/1024 --protocol MCAT --disk-gb 20 --yes
    longvit reproduce table1/brca/clam_sb --protocol HIPT --encoder hipt:vit256_small_dino.pth --yes
    ```
    """
    from longvit.errors import InputError
    from longvit.reproduce.listing import list_cells as all_cells
    from longvit.reproduce.listing import list_lines, plan_json, plan_lines

    if list_cells:
        listed = all_cells(settings.protocol, settings.index, settings.disk_gb)
        print(json.dumps(listed, indent=1, ensure_ascii=False) if as_json else "\n".join(list_lines(listed)))
        return 0
    if cell is None:
        raise InputError("name a cell, such as table1/brca/4096; `longvit reproduce --list` names all")
    from longvit.reproduce.cells import cell_named
    from longvit.reproduce.prepare import prepare

    prepared = prepare(cell_named(cell), settings)
    text = json.dumps(plan_json(prepared), indent=1, ensure_ascii=False) if as_json else "\n".join(plan_lines(prepared))
    if dry_run or not yes:
        print(text)
        if not dry_run:
            echo("nothing was run; add --yes to run this")
        return 0 if dry_run else 1
    echo(text)
    from longvit.reproduce.run import reproduce as run

    result = run(prepared, out or Path("reproduce") / prepared.cell.run_name.replace("/", "-"))
    print(json.dumps(result.content, indent=1, ensure_ascii=False) if as_json else "\n".join(result.table))
    echo(f"report: {result.report}")
    if result.left_out:
        echo(f"{len(result.left_out)} slides were left out, see {result.folder / 'result.json'}")
        return 1
    return 0
