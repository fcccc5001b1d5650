"""Tissue mask against outlines made by eye: IoU of the package's rule, and of Otsu's threshold beside it.

    python benchmarks/tissue.py [--save] [--draw FOLDER]      (half a minute)

The outlines are in tests/quality/tissue_polygons.json, with the convention that they follow. There are 6 fields of the
example slide, 15 of osteosarcoma with glass or loose tissue, and two whole sections (breast, CPTAC). All but the
example are below ../shared/slides, and their resolutions are estimates.

- `rule`: `find_tissue` with its defaults
- `otsu_grey`: Otsu's threshold on the luma; `otsu_saturation`: on the HSV saturation, as CLAM does
- `otsu_filled`: `otsu_saturation` with the closing, hole filling and least piece of the rule

All masks have the rule's resolution. `--draw` writes a PNG of each field: outline green, rule blue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from longvit.slides import tissue as rules
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide

ROOT = Path(__file__).resolve().parents[1]
POLYGONS = ROOT / "tests" / "quality" / "tissue_polygons.json"
SHARED = ROOT.parent / "shared" / "slides"
MASKS = ("rule", "otsu_grey", "otsu_saturation", "otsu_filled")
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class OutlinedField:
    """A field with the tissue that was outlined by eye."""

    name: str
    um_per_px: float
    pixels: NDArray[np.uint8]
    tissue: list[list[list[int]]]
    """Polygons in px of the field."""
    gaps: list[list[list[int]]]

    def outlined(self, shape: tuple[int, int]) -> Mask:
        """Mask of the outlines, (height, width) = `shape`."""
        height, width = self.pixels.shape[:2]
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for polygons, value in ((self.tissue, 255), (self.gaps, 0)):
            for polygon in polygons:
                draw.polygon([(x, y) for x, y in polygon], fill=value)
        return np.asarray(image.resize(shape[::-1], Image.Resampling.BOX)) >= 128


def outlined_fields(only: str = "") -> Iterator[OutlinedField]:
    """Fields that are present, of files whose name contains `only`; without ../shared those of the example slide."""
    for field in json.loads(POLYGONS.read_text(encoding="utf-8"))["fields"]:
        if only not in field["file"]:
            continue
        example = ROOT / "examples" / field["file"]
        path = example if example.exists() else SHARED / field["file"]
        if not path.exists():
            continue
        with open_slide(path) as slide:
            x, y, width_px, height_px = field["box"] or (0, 0, *slide.size_px)
            pixels = slide.read_region(x, y, 0, width_px, height_px)
        shifted = [[[[px - x, py - y] for px, py in polygon] for polygon in field[part]] for part in ("tissue", "gaps")]
        name = Path(field["file"]).stem + (f" {x},{y}" if field["box"] else "")
        yield OutlinedField(name, field["um_per_px"], pixels, *shifted)


def masks_of(field: OutlinedField) -> dict[str, Mask]:
    """The rule's mask and Otsu's, all of one shape."""
    height, width = field.pixels.shape[:2]
    mpp = Mpp(field.um_per_px, field.um_per_px, "explicit")
    found = rules.find_tissue(field.pixels, Box(0, 0, width, height), mpp)
    shape = found.mask.shape
    image = Image.fromarray(field.pixels).resize(shape[::-1], Image.Resampling.BOX)
    rgb = np.asarray(image, np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = (rgb.max(2) - rgb.min(2)) / np.maximum(rgb.max(2), 1e-3)
    simple = saturation > rules.otsu(saturation)
    settings, per_px = rules.TissueSettings(), found.px_um[::-1]
    filled = rules._filled(rules._closed(simple, rules._CLOSE_UM, per_px), settings.max_hole_um2, per_px)
    return {
        "rule": found.mask,
        "otsu_grey": luma < rules.otsu(luma),
        "otsu_saturation": simple,
        "otsu_filled": rules.large_pieces(filled, settings.min_piece_um2, per_px),
    }


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks."""
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def table(draw: Path | None = None) -> list[dict[str, Any]]:
    """A row per field with the IoU of each mask, then the mean and the median."""
    rows: list[dict[str, Any]] = []
    for field in outlined_fields():
        masks = masks_of(field)
        wanted = field.outlined(masks["rule"].shape)
        rows.append({"field": field.name, **{name: round(iou(masks[name], wanted), 3) for name in MASKS}})
        if draw is not None:
            _draw(field, wanted, masks["rule"], draw)
    values = {name: [row[name] for row in rows] for name in MASKS}
    rows.append({"mean of": len(values["rule"]), **{n: round(float(np.mean(v)), 3) for n, v in values.items()}})
    rows.append({"median of": len(values["rule"]), **{n: round(float(np.median(v)), 3) for n, v in values.items()}})
    return rows


def _draw(field: OutlinedField, wanted: Mask, found: Mask, folder: Path) -> None:
    from scipy.ndimage import binary_erosion

    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(field.pixels)
    image.thumbnail((512, 512))
    pixels = np.array(image)
    for mask, colour in ((wanted, (0, 170, 0)), (found, (0, 60, 255))):
        large = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
        pixels[large & ~binary_erosion(large, iterations=2)] = colour
    Image.fromarray(pixels).save(folder / f"{field.name.replace(' ', '_').replace(',', '_')}.png")


def main() -> None:
    from side_by_side import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/tissue.json")
    parser.add_argument("--draw", type=Path, help="folder for a PNG of each field")
    args = parser.parse_args()
    report(Path(__file__).stem, table(args.draw), save=args.save)


if __name__ == "__main__":
    main()
