"""Quality measures on real fields: how well they tell damaged from undamaged ones; and the seconds of a slide.

    python benchmarks/quality.py [--every N] [--save]      (ten minutes; --every 4: a quarter of the fields)

Each field is measured as it is and with one synthetic damage, see slide_damage. The column `auc` compares the scores of
damaged and undamaged fields, over all fields of all sources. `found` and `false` are the fractions of damaged
and undamaged fields beyond the measure's limit. Folds need tissue: fields with less than half are left out there.
Folds, bubbles and pen are drawn on fields reduced to about 4 µm/px, which saves time.

- `example`: 740 px fields of examples/CMU-1-Small-Region.svs, 0.499 µm/px
- `colon`: 40 fields of 448 px, about 1.1 µm/px
- `osteosarcoma`: 60 fields of 1,024 px, about 1 µm/px
- `breast`: 12 fields of 1,024 px, about 0.7 µm/px

Their resolutions are estimates. The files are below ../shared/slides; without it, the example alone is used.

The limits of the measures were chosen with these fields, so the numbers are not those of an independent test. The
last rows are CPU seconds of the measures of a slide, without reading: the example, and an overview of 1,024 px a side,
the largest there is.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from longvit.quality.bubbles import find_bubbles
from longvit.quality.focus import SHARP, probe_focus
from longvit.quality.folds import find_folds
from longvit.quality.overview import Overview, overview_of
from longvit.quality.pen import find_pen
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide
from side_by_side import HERE, report
from slide_damage import INKS, blur, bubble, fold, pen

EXAMPLE = HERE.parent / "examples" / "CMU-1-Small-Region.svs"
SHARED = HERE.parents[1] / "shared" / "slides"
SIGMAS_PX = (1, 1.5, 2, 3, 5, 8)
WHITE = (255, 255, 255)
Score = Callable[[NDArray[np.uint8], float], float | None]


@dataclass(frozen=True)
class Field:
    """A real field with its source and its µm per pixel."""

    source: str
    um_per_px: float
    pixels: NDArray[np.uint8]

    def coarse(self) -> Field:
        """The field at about 4 µm/px, half that of an overview."""
        step = max(1, round(4 / self.um_per_px))
        return Field(self.source, step * self.um_per_px, np.asarray(Image.fromarray(self.pixels).reduce(step)))


def example_fields() -> list[Field]:
    """Fields of the example slide with a quarter of tissue or more."""
    with open_slide(EXAMPLE) as slide:
        width_px, height_px = slide.size_px
        corners = [(x, y) for y in range(0, height_px - 739, 740) for x in range(0, width_px - 739, 740)]
        fields = [Field("example", 0.499, slide.read_region(x, y, 0, 740, 740)) for x, y in corners]
    return [field for field in fields if (field.pixels.mean(2) < 215).mean() > 0.25]


def shared_fields() -> list[Field]:
    """Fields of the reference material; none without it."""
    if not SHARED.is_dir():
        return []
    colon = random.Random(0).sample(sorted((SHARED / "colon").glob("*.jpg")), 40)
    fields = [Field("colon", 1.1, _pixels(path)) for path in colon]
    fields += [
        Field("osteosarcoma", 1.0, _pixels(path)) for path in sorted((SHARED / "osteosarcoma" / "images").glob("*.jpg"))
    ]
    section = _pixels(SHARED / "breast" / "section.jpg")
    for y in range(0, section.shape[0] - 1023, 1024):
        for x in range(0, section.shape[1] - 1023, 1024):
            pixels = section[y : y + 1024, x : x + 1024]
            if (pixels.mean(2) < 180).mean() > 0.5:
                fields.append(Field("breast", 0.7, pixels))
    return fields


def _pixels(path: Path) -> NDArray[np.uint8]:
    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(path).convert("RGB"))


def overview(pixels: NDArray[np.uint8], um_per_px: float) -> Overview:
    """Overview of a field."""
    bounds = Box(0, 0, pixels.shape[1], pixels.shape[0])
    return overview_of(pixels, bounds, Mpp(um_per_px, um_per_px, "explicit"), WHITE)


def blur_score(pixels: NDArray[np.uint8], um_per_px: float) -> float | None:
    """1 at the limit of the focus, more where it is worse; None without tissue. In the middle 512 px of the field."""
    top, left = (max(0, size - 512) // 2 for size in pixels.shape[:2])
    focus = probe_focus(pixels[top : top + 512, left : left + 512])
    return None if focus is None else 1 + SHARP - focus


def fold_score(pixels: NDArray[np.uint8], um_per_px: float) -> float | None:
    """Score of folds; None for a field with less than half of tissue."""
    seen = overview(pixels, um_per_px)
    return find_folds(seen).score if seen.tissue.mask.mean() > 0.5 else None


def bubble_score(pixels: NDArray[np.uint8], um_per_px: float) -> float:
    """Score of bubbles."""
    return find_bubbles(overview(pixels, um_per_px)).score


def pen_score(pixels: NDArray[np.uint8], um_per_px: float) -> float:
    """Score of pen of any colour."""
    return max(mark.score for mark in find_pen(overview(pixels, um_per_px)).values())


def compare(
    fields: list[Field], clean: list[float | None], score: Score, damage: Callable[[Field, np.random.Generator], Any]
) -> dict[str, Any]:
    """AUC, found and false of one damage, over the fields that have a score."""
    damaged = [
        None if usual is None else score(damage(field, np.random.default_rng(i)), field.um_per_px)
        for i, (field, usual) in enumerate(zip(fields, clean, strict=True))
    ]
    used = [i for i, usual in enumerate(clean) if usual is not None]
    # a fold may darken a field until less counts as tissue; blur may hide it
    before = np.array([clean[i] for i in used], float)
    after = np.array([np.inf if damaged[i] is None else damaged[i] for i in used], float)
    truth = np.r_[np.zeros(len(before)), np.ones(len(after))]
    finite = np.nan_to_num(np.r_[before, after], posinf=1e9)
    sources = np.array([fields[i].source for i in used])
    return {
        "fields": len(used),
        "auc": round(float(roc_auc_score(truth, finite)), 4),
        "found": round(float((after >= 1).mean()), 3),
        "false": round(float((before >= 1).mean()), 3),
        "auc_by_source": {
            str(name): round(
                float(roc_auc_score(truth[np.tile(sources == name, 2)], finite[np.tile(sources == name, 2)])), 3
            )
            for name in np.unique(sources)
        },
    }


def table(fields: list[Field], only: str = "") -> dict[str, Any]:
    """A row per damage whose name contains `only`; printed as it is measured."""
    coarse = [field.coarse() for field in fields]
    damages: dict[str, tuple[Score, Callable[[Field, np.random.Generator], Any]]] = {
        f"blur {sigma:g} px": (blur_score, lambda field, _, sigma=sigma: blur(field.pixels, sigma))
        for sigma in SIGMAS_PX
    }
    damages["fold"] = (fold_score, lambda field, rng: fold(field.pixels, field.um_per_px, rng))
    damages["bubble"] = (bubble_score, lambda field, rng: bubble(field.pixels, field.um_per_px, rng))
    for colour in INKS:
        damages[f"pen {colour}"] = (
            pen_score,
            lambda field, rng, colour=colour: pen(field.pixels, field.um_per_px, rng, colour),
        )
    clean: dict[Score, list[float | None]] = {}
    rows = {}
    for name, (score, damage) in damages.items():
        if only not in name:
            continue
        used = fields if score is blur_score else coarse
        if score not in clean:
            clean[score] = [score(field.pixels, field.um_per_px) for field in used]
        rows[name] = compare(used, clean[score], score, damage)
        row = rows[name]
        print(
            f"{name:12} AUC {row['auc']:.3f}  found {row['found']:.2f}  false {row['false']:.2f}",
            row["auc_by_source"],
            flush=True,
        )
    return rows


def seconds(pixels: NDArray[np.uint8], um_per_px: float) -> dict[str, float]:
    """CPU seconds of each measure."""
    spent = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = call()
        spent[name] = round(time.process_time() - begun, 3)
        return result

    seen = timed("tissue", lambda: overview(pixels, um_per_px))
    timed("folds", lambda: find_folds(seen))
    timed("bubbles", lambda: find_bubbles(seen))
    timed("pen", lambda: find_pen(seen))
    probe = np.ascontiguousarray(pixels[:256, :256])
    timed("focus", lambda: [probe_focus(probe) for _ in range(16)])
    return spent | {"all": round(sum(spent.values()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="use every n-th field")
    parser.add_argument("--only", default="", help="damages whose name contains this, e.g. pen")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/quality.json")
    args = parser.parse_args()
    fields = [*example_fields(), *shared_fields()][:: args.every]
    with open_slide(EXAMPLE) as slide:
        example = slide.read_region(0, 0, 0, *slide.size_px)
    tiled = np.tile(np.asarray(Image.fromarray(example).reduce(16)), (6, 8, 1))[:1024, :1024]
    rows: list[dict[str, Any]] = [{"damage": name, **row} for name, row in table(fields, args.only).items()]
    rows.append({"cpu_seconds": "the example slide", **seconds(example, 0.499)})
    rows.append({"cpu_seconds": "an overview of 1,024 × 1,024 px", **seconds(tiled, 8.0)})
    report(Path(__file__).stem, rows, save=args.save)


if __name__ == "__main__":
    main()
