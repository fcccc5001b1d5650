"""`longvit info SLIDE…`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import Reader


def info(
    slide: Annotated[Path, Parameter(help="A slide file, or a folder of DICOM files.")],
    /,
    *,
    mpp: Annotated[
        float | None, Parameter(help="µm per pixel of the largest level, instead of what the file says.")
    ] = None,
    reader: Reader = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of lines.")] = False,
) -> int:
    """A slide's size, levels, resolution and where that came from.

    **Examples**

    ```
    longvit info examples/CMU-1-Small-Region.svs
    longvit info slide.tif --mpp 0.25
    longvit info slide.svs --json
    ```
    """
    from longvit.slides.reader import open_slide
    from longvit.slides.slide_info import info as facts_of

    with open_slide(slide, mpp=mpp, reader=reader) as opened:
        facts = facts_of(opened)
    print(json.dumps(facts, indent=1) if as_json else "\n".join(lines_of(facts)))
    return 0


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts for people, one per line."""
    width_px, height_px = facts["size_px"]
    lines = [
        ("slide", facts["path"]),
        ("format", f"{facts['format']}, {facts['file_bytes'] / 1e6:,.1f} MB"),
        ("size", f"{width_px:,} × {height_px:,} px"),
        ("resolution", _resolution(facts)),
    ]
    if facts["magnification"]:
        lines += [("objective", f"{facts['magnification']} × (as the file calls it)")]
    if facts["bounds_level0_px"] != [0, 0, width_px, height_px]:
        x, y, w, h = facts["bounds_level0_px"]
        lines += [("scanned part", f"{w:,} × {h:,} px at ({x:,}, {y:,})")]
    for level in facts["levels"]:
        mpp = f", {level['mpp'][0]:.4g} µm/px" if level["mpp"] else ""
        tiles = f"tiles {level['tile_px'][0]} × {level['tile_px'][1]} {level['compression'] or ''}".rstrip()
        size = f"{level['size_px'][0]:,} × {level['size_px'][1]:,} px"
        lines += [(f"level {level['level']}", f"{size}, 1/{level['downsample']:.4g}{mpp}, {tiles}")]
    lines += [
        ("background", "rgb({}, {}, {})".format(*facts["background"])),
        ("reader", f"{facts['reader']} ({facts['reader_version']}): {facts['reader_reason']}"),
        ("damage seen", facts["damage_seen"]),
        ("content", facts["identity"]),
    ]
    lines += [("note", note) for note in facts["notes"]]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def _resolution(facts: dict[str, Any]) -> str:
    if not facts["mpp"]:
        looked = "; ".join(facts["mpp_looked_at"]) or "the format has no place for it"
        return f"not in the file (looked at {looked}); pass --mpp where it is needed"
    x, y = facts["mpp"]
    value = f"{x:.4g}" if x == y else f"{x:.4g} × {y:.4g}"
    width_mm, height_mm = facts["size_mm"]
    return f"{value} µm/px (from {facts['mpp_source']}), {width_mm:.2f} × {height_mm:.2f} mm"
