"""`longvit encoders`"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from longvit.cli.options import AsJson, echo

if TYPE_CHECKING:
    from longvit.encoders.presets import Preset


def encoders(
    name: Annotated[str | None, Parameter(help="Encoder to describe.", show_default=False)] = None,
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """List the published tile encoders of `longvit features --encoder NAME`.

    Each has its network, pooling and normalisation, the tiles it was made for, its licence, and the page with its
    weights. Nothing is downloaded here.

    **Examples**

    ```
    longvit encoders
    longvit encoders uni2-h
    longvit encoders --json
    ```
    """
    from longvit.encoders.presets import PRESETS, preset

    if name is not None:
        found = preset(name)
        print(json.dumps(found.as_json(), indent=1) if as_json else _details(found))
        return 0
    if as_json:
        print(json.dumps([row.as_json() for row in PRESETS.values()], indent=1))
        return 0
    _print_table()
    echo("`longvit encoders NAME` describes one: network, weights, citation, command")
    return 0


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    from longvit.encoders.presets import PRESETS

    table = Table(box=None, pad_edge=False)
    for column in ("name", "width", "tile px", "µm/px", "M param.", "gated", "licence"):
        table.add_column(column, justify="left" if column in ("name", "gated", "licence") else "right", no_wrap=True)
    for row in PRESETS.values():
        table.add_row(
            row.name, f"{row.dim}", f"{row.tile_px[0]}", f"{row.mpp[0]:g}", f"{row.parameters_m:.0f}",
            "yes" if row.gated else "no", row.licence,
        )  # fmt: skip
    Console(width=100, highlight=False).print(table)


def _details(row: Preset) -> str:
    sides, resolutions = (" or ".join(f"{value:g}" for value in values) for values in (row.tile_px, row.mpp))
    mean, std = (" ".join(f"{value:g}" for value in values) for values in row.normalisation)
    change = f"the centre of {row.input_px} px" if row.resizing == "crop" else f"{row.resizing} to {row.input_px} px"
    tokens = f"; {row.tokens} tokens, {row.prefix_tokens} before the patches" if row.tokens else ""
    lines = {
        "name": f"{row.name}: {row.title}",
        "vector": f"{row.dim} numbers ({row.pooling})",
        "tiles": f"{sides} px at {resolutions} µm/px; input: {change}",
        "normalisation": f"mean {mean}, SD {std}",
        "network": f"timm {row.network}, {row.parameters_m:.1f} M parameters{tokens}",
        "weights": f"{row.files[0]} on {row.page}",
        "licence": row.licence + (", gated: accept it on that page first" if row.gated else ""),
        "cite": row.citation,
        "command": f"longvit features slides/ --encoder {row.name}={row.files[0]} --tile-px {row.tile_px[0]} "
        f"--tile-mpp {row.mpp[0]:g}",
    }
    return "\n".join(f"{label:<14} {text}" for label, text in lines.items())
