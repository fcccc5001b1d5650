"""Lists of cells and the plan of one, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.finetuning.paper_tables import SYSTEMS, metric_text
from longvit.public.selection import Selection
from longvit.reproduce.cells import Cell, cells
from longvit.reproduce.cost import DEVICES, Cost, cell_cost
from longvit.reproduce.prepare import Reproduction, select_slides
from longvit.reproduce.protocol import CellProtocol, read_protocol

_NAMED = 5  # slides that a plan names before it counts the others
_HEADER = ("cell", "slides", "GiB", "disk GiB", *(f"h {name}" for name in DEVICES), "published")


def list_cells(protocols: Sequence[Path], index: Path | None, disk_gb: float) -> list[dict[str, Any]]:
    """Every cell of the tables as JSON values, with its cost where a clone of its protocol is given.

    `InputError`: a clone without the protocol of any cell, and what `read_protocol` and the index refuse.
    """
    read: dict[str, CellProtocol] = {}
    selected: dict[tuple[str, ...], Selection] = {}
    listed = []
    for cell in cells():
        folds = cell.protocol.folds
        if checkouts := [path for path in protocols if (path / folds).is_dir()]:
            if folds not in read:
                read[folds] = read_protocol(cell, checkouts)
            protocol = replace(read[folds], cell=cell)
            ids = tuple(row.slide_id for row in protocol.slides)
            if ids not in selected:
                selected[ids] = select_slides(protocol, index)
            listed.append(_entry(cell, cell_cost(protocol, selected[ids].slides, disk_gb=disk_gb)))
        else:
            listed.append(_entry(cell, None))
    if protocols and not read:
        raise InputError(f"--protocol {', '.join(map(str, protocols))}: no protocol of a cell in it")
    return listed


def _entry(cell: Cell, cost: Cost | None) -> dict[str, Any]:
    known, published = cell.protocol, cell.published
    return {
        "cell": cell.name,
        "run": cell.run_name,
        "task": cell.task,
        "cohort": cell.cohort,
        "collections": list(known.collections),
        "side_px": cell.side_px,
        "system": cell.system,
        "recipe": cell.recipe,
        "repository": known.repository.name,
        "commit": known.repository.commit,
        "folds": known.n_folds,
        "patients": known.patients,
        "slides": cell.slides,
        "classes": dict(known.classes),
        "published": {
            "system": published.system,
            "inputs": published.inputs,
            "figure": published.metric,
            "mean": published.mean,
            "sd": published.sd,
        },
        "cost": None if cost is None else cost.to_json(),
    }


def list_lines(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """The list as a table of text: a line per cell."""
    rows: list[Sequence[str]] = [_HEADER]
    for entry in listed:
        cost = entry["cost"] or {}
        hours = cost.get("hours", {})
        slides = cost.get("slides", entry["slides"])
        rows.append(
            (
                entry["cell"],
                "–" if slides is None else f"{slides:,}",
                _number(cost.get("download_gib")),
                _number(cost.get("disk_gib")),
                *(_hours(hours.get(name)) for name in DEVICES),
                _published(entry),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    aligned = ("<", *[">"] * (len(_HEADER) - 2), "<")
    return [
        "  ".join(f"{text:{way}{width}}" for text, way, width in zip(row, aligned, widths, strict=True)).rstrip()
        for row in rows
    ]


def _published(entry: Mapping[str, Any]) -> str:
    row = entry["published"]
    text = metric_text(row["mean"], row["sd"])
    return text if entry["system"] else f"{text} ({SYSTEMS[row['system']]}, the best baseline)"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _hours(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def plan_json(reproduction: Reproduction) -> dict[str, Any]:
    """The plan of a cell as JSON values."""
    selection = reproduction.selection
    return {
        **_entry(reproduction.cell, reproduction.cost),
        "clone": reproduction.protocol.commit,
        "starts_from": reproduction.start,
        "encoder": reproduction.options.encoder,
        "changes": {name: _plain(value) for name, value in reproduction.changes.items()},
        "archive": selection.archive or None,
        "licences": sorted({slide.licence for slide in selection.slides}),
        "citations": list(selection.citations),
        "missing": [one.listed_id for one in selection.missing],
        "ambiguous": [one.listed_id for one in selection.ambiguous],
        "notes": [*reproduction.protocol.notes, *selection.notes],
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def plan_lines(reproduction: Reproduction) -> list[str]:
    """The plan of a cell as text, one quantity per line."""
    plan = plan_json(reproduction)
    cell, cost = reproduction.cell, plan["cost"]
    lines = [
        ("cell", f"{cell.name}: {cell.task}, {cell.cohort}, recipe {cell.recipe}"),
        ("published", _published(plan)),
        (
            "protocol",
            f"{plan['repository']} at {plan['commit'][:7]}: {plan['folds']} folds, {plan['patients']} patients",
        ),
        ("starts from", plan["starts_from"]),
    ]
    if cell.system is not None and cell.reads_slides:
        lines += [("features", plan["encoder"] or "to run it, name the encoder with --encoder")]
    lines += [("changed", f"{name}: {value}") for name, value in plan["changes"].items()]
    if cell.reads_slides:
        lines += [
            ("slides", f"{len(reproduction.selection.slides):,} of {cost['slides']:,} in {plan['archive']}"),
            *((name, _ids(plan[name])) for name in ("missing", "ambiguous") if plan[name]),
            ("download", f"{cost['download_gib']:,.1f} GiB"),
            ("disk at most", f"{cost['disk_gib']:,.1f} GiB" + ("" if cost["canvases_gib"] else " and the features")),
            ("licence", ", ".join(plan["licences"])),
        ]
    for name, hours in cost["hours"].items():
        device, dtype = DEVICES[name]
        memory = f", memory: {cost['memory'][name]}" if name in cost["memory"] else ""
        lines += [("hours at least", f"{_hours(hours)} on one {device.name} ({dtype}{memory})")]
    lines += [("cite", text) for text in plan["citations"]]
    lines += [("note", text) for text in plan["notes"]]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def _ids(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f"{len(ids):,}: {', '.join(ids[:_NAMED])}{more}"
