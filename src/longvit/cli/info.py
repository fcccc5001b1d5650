"""`longvit info SLIDE…`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from longvit.cli.options import AsJson


def info(
    slide: Annotated[Path, Parameter(help="A slide file, or a folder of DICOM files.")],
    /,
    *,
    mpp: Annotated[
        float | None, Parameter(help="µm per pixel of the largest level, instead of the file's own value.")
    ] = None,
    reader: Annotated[
        Literal["auto", "openslide", "tiff"],
        Parameter(help="Reader that decodes: tiff is the fast path for tiled TIFF and SVS; auto chooses per slide."),
    ] = "auto",
    as_json: AsJson = False,
) -> int:
    """Show a slide's size, levels, and resolution with its source.

    **Examples**

    ```
    longvit info examples/CMU-1-Small-Region.svs
    longvit info slide.tif --mpp 0.25
    longvit info slide.svs --json
    ```
    """
    from longvit.slides.reader import open_slide
    from longvit.slides.slide_info import info as slide_info

    with open_slide(slide, mpp=mpp, reader=reader) as opened:
        metadata = slide_info(opened)
    print(json.dumps(metadata, indent=1) if as_json else "\n".join(info_lines(metadata)))
    return 0


def info_lines(metadata: dict[str, Any]) -> list[str]:
    """Formats a slide's metadata as text, one property per line."""
    width_px, height_px = metadata["size_px"]
    lines = [
        ("slide", metadata["path"]),
        ("format", f"{metadata['format']}, {metadata['file_bytes'] / 1e6:,.1f} MB"),
        ("size", f"{width_px:,} × {height_px:,} px"),
        ("resolution", _resolution(metadata)),
    ]
    if metadata["magnification"]:
        lines += [("objective", f"{metadata['magnification']} × (stated by the file)")]
    if metadata["bounds_level0_px"] != [0, 0, width_px, height_px]:
        x, y, w, h = metadata["bounds_level0_px"]
        lines += [("scanned part", f"{w:,} × {h:,} px at ({x:,}, {y:,})")]
    for level in metadata["levels"]:
        mpp = f", {level['mpp'][0]:.4g} µm/px" if level["mpp"] else ""
        tiles = f"tiles {level['tile_px'][0]} × {level['tile_px'][1]} {level['compression'] or ''}".rstrip()
        size = f"{level['size_px'][0]:,} × {level['size_px'][1]:,} px"
        lines += [(f"level {level['level']}", f"{size}, 1/{level['downsample']:.4g}{mpp}, {tiles}")]
    lines += [
        ("background", "rgb({}, {}, {})".format(*metadata["background"])),
        ("reader", f"{metadata['reader']} ({metadata['reader_version']}): {metadata['reader_reason']}"),
        ("damage seen", metadata["damage_seen"]),
        ("content", metadata["identity"]),
    ]
    lines += [("note", note) for note in metadata["notes"]]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def _resolution(metadata: dict[str, Any]) -> str:
    if not metadata["mpp"]:
        fields = "; ".join(metadata["mpp_looked_at"]) or "the format has no field for it"
        return f"not in the file (searched: {fields}); pass --mpp where it is needed"
    x, y = metadata["mpp"]
    value = f"{x:.4g}" if x == y else f"{x:.4g} × {y:.4g}"
    width_mm, height_mm = metadata["size_mm"]
    return f"{value} µm/px (from {metadata['mpp_source']}), {width_mm:.2f} × {height_mm:.2f} mm"
