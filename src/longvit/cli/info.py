"""`longvit info SLIDE…`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import Reader

if TYPE_CHECKING:
    from longvit.slides.reader import Slide


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

    with open_slide(slide, mpp=mpp, reader=reader) as opened:
        facts = slide_facts(opened)
        if as_json:
            print(json.dumps(facts, indent=1))
        else:
            print("\n".join(lines_of(facts)))
    return 0


def slide_facts(slide: Slide) -> dict[str, Any]:
    """Everything that the command prints, as JSON values."""
    bounds = slide.bounds
    return {
        "path": str(slide.path),
        "vendor": slide.vendor,
        "size_px": list(slide.size_px),
        "file_bytes": slide.file_bytes(),
        "mpp": {"x": slide.mpp.x, "y": slide.mpp.y, "source": slide.mpp.source} if slide.mpp else None,
        "mpp_looked_at": [str(candidate) for candidate in slide.mpp_search.looked_at],
        "levels": [
            {
                "level": level.index,
                "size_px": list(level.size_px),
                "downsample": level.downsample,
                "tile_px": list(level.tile_px),
                "compression": level.compression,
            }
            for level in slide.levels
        ],
        "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
        "background": list(slide.background),
        "reader": slide.reader,
        "reader_version": slide.reader_version,
        "reader_reason": slide.reader_reason,
        "identity": slide.identity(),
    }


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts for people."""
    width_px, height_px = facts["size_px"]
    mpp = facts["mpp"]
    lines = [
        ("slide", facts["path"]),
        ("format", f"{facts['vendor']}, {facts['file_bytes'] / 1e6:,.1f} MB"),
        ("size", f"{width_px:,} × {height_px:,} px"),
    ]
    if mpp:
        area = f"{width_px * mpp['x'] / 1000:.2f} × {height_px * mpp['y'] / 1000:.2f} mm"
        value = f"{mpp['x']:.4g}" if mpp["x"] == mpp["y"] else f"{mpp['x']:.4g} × {mpp['y']:.4g}"
        lines += [("resolution", f"{value} µm/px (from {mpp['source']}), {area}")]
    else:
        looked = "; ".join(facts["mpp_looked_at"]) or "the format has no place for it"
        lines += [("resolution", f"not in the file (looked at {looked}); pass --mpp where it is needed")]
    if facts["bounds"] != [0, 0, width_px, height_px]:
        x, y, w, h = facts["bounds"]
        lines += [("scanned part", f"{w:,} × {h:,} px at ({x:,}, {y:,})")]
    lines += [
        (
            f"level {level['level']}",
            f"{level['size_px'][0]:,} × {level['size_px'][1]:,} px, 1/{level['downsample']:.4g}, "
            f"tiles {level['tile_px'][0]} × {level['tile_px'][1]} {level['compression']}".rstrip(),
        )
        for level in facts["levels"]
    ]
    lines += [
        ("background", "rgb({}, {}, {})".format(*facts["background"])),
        ("reader", f"{facts['reader']} ({facts['reader_version']}): {facts['reader_reason']}"),
        ("content", facts["identity"]),
    ]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]
