"""Demo on one real slide: regions -> fine-tuning -> test -> a heat map beside its known answer.

The slide has no annotation, so the answer is made: a square of a region is put out of focus. Each region with tissue is
there twice, as scanned and with such a square. The model receives one label per region and no place. Mean colour tells
nothing. Its heat map of a mosaic of test regions is compared with the squares.

The regions of the left five columns are the training set, those of the right three the test set, with a gap between.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.errors import InputError
from longvit.files import atomic_path, make_folder, write_csv, write_text
from longvit.json_file import read_json_object
from longvit.out_of_focus import BLUR_UM, Mosaic, draw_square, make_mosaic, out_of_focus
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.finetuning.run import FinetuneResult
    from longvit.finetuning.settings import FinetuneSettings
    from longvit.slides.reader import Slide

EXAMPLE = "CMU-1-Small-Region.svs"
COLUMNS, ROWS, TRAIN_COLUMNS = 8, 8, 5
REGION_UM = 128.0
REGION_PX = 256
GAP_UM = 75.0  # between train and test: more than half a region
EMPTY_SHARE = 0.45  # of the regions: those with the least haematoxylin, where no focus can be seen
GLASS_GREY = 225  # mean of a patch from which on it is glass
MOSAIC_COLUMNS = 5  # and as many rows at most
MOSAIC_SIDE_PX = MOSAIC_COLUMNS * REGION_PX
CLASSES = ("in focus", "out of focus")  # in this order, so that the second is the positive class
# Optical densities of haematoxylin, eosin and DAB in red, green, blue (Ruifrok & Johnston 2001).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


@dataclass(frozen=True)
class Region:
    """Square region of the slide, in level-0 pixels."""

    row: int
    column: int
    x_level0_px: int
    y_level0_px: int
    side_level0_px: int

    @property
    def name(self) -> str:
        return f"region_r{self.row}_c{self.column}"

    @property
    def split(self) -> str:
        return "train" if self.column < TRAIN_COLUMNS else "test"


def example_slide(path: str | Path | None = None) -> Path:
    """Path of the demo slide: `path`, or the example of the repository."""
    if path is not None:
        return Path(path)
    # The clone that contains this file, then the working directory.
    for folder in (Path(__file__).resolve().parents[2] / "examples", Path.cwd() / "examples"):
        if (slide := folder / EXAMPLE).is_file():
            return slide
    raise InputError(
        f"examples/{EXAMPLE}: not found (it is part of the repository, not of the package); "
        f"run the demo in a clone, or give another slide with --slide"
    )


def haematoxylin(pixels: np.ndarray) -> np.ndarray:
    """Optical density of haematoxylin, float32 (height, width), of uint8 RGB (height, width, 3); about 0 on glass.

    Colour deconvolution: optical density is a linear mixture of stains, each with its own red, green and blue. The
    inverse of the (normalised) stain matrix separates them.
    """
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    amount: np.ndarray = density @ np.linalg.inv(stains).astype(np.float32)[:, 0]
    return amount


def lay_out(size_px: tuple[int, int], mpp: float) -> tuple[Region, ...]:
    """Layout of 64 squares of at most 128 µm in 8 rows and columns, not overlapping, spread over the slide.

    Raises `InputError` for a slide that is too small for them and the gap.
    """
    width_px, height_px = size_px
    side_px, gap_px = int(REGION_UM / mpp), int(GAP_UM / mpp)
    free_x_px, free_y_px = width_px - COLUMNS * side_px - gap_px, height_px - ROWS * side_px
    if side_px < 32 or free_x_px < 0 or free_y_px < 0:
        need = f"{COLUMNS * REGION_UM + GAP_UM:.0f} × {ROWS * REGION_UM:.0f} µm"
        raise InputError(
            f"a slide of {width_px * mpp:.0f} × {height_px * mpp:.0f} µm at {mpp:g} µm/px is too small for the demo; "
            f"it needs {need} at 4 µm/px or finer"
        )
    step_x_px, step_y_px = free_x_px // (COLUMNS - 1), free_y_px // (ROWS - 1)
    return tuple(
        Region(
            row,
            column,
            column * (side_px + step_x_px) + (gap_px if column >= TRAIN_COLUMNS else 0),
            row * (side_px + step_y_px),
            side_px,
        )
        for row in range(ROWS)
        for column in range(COLUMNS)
    )


@dataclass(frozen=True)
class DemoOutcome:
    """Result of the demo."""

    report: Path
    finetuned: FinetuneResult
    heat_map_auc: float
    """Probability that a patch out of focus is hotter than another one, in the mosaic of test regions; patches
    of glass do not count."""
    heat_map_png: Path

    def summary(self) -> str:
        """Metrics on the test set beside the controls, and the AUC of the heat map."""
        return (
            f"{self.finetuned.summary()}\n"
            f"heat map of the test regions against the known squares: AUC {self.heat_map_auc:.2f}"
        )


def run_demo(
    out_dir: str | Path,
    *,
    slide: str | Path | None = None,
    device: str = "auto",
    settings: FinetuneSettings | None = None,
) -> DemoOutcome:
    """Runs the demo from the slide to `out_dir`/index.html; a repeated call resumes, or returns if finished.

    `settings`: of the fine-tuning, by default the recipe tiny.

    Raises `InputError`: no example slide, a slide without resolution or too small, a folder with the demo of another
    slide, or one that cannot be written to.
    """
    from longvit.config import load_settings
    from longvit.data.cohort_table import read_cohort
    from longvit.device import pick_device
    from longvit.finetuning.run import FinetuneSettings, finetune
    from longvit.slides.reader import open_slide

    folder = make_folder(out_dir)
    pick_device(device)
    path = example_slide(slide)
    with open_slide(path) as opened:
        open_demo_folder(folder, opened)
        cohort = read_cohort(write_regions(opened, folder))
        mosaic = write_mosaic(opened, folder / "known_answer")
    settings = settings or load_settings(FinetuneSettings, "tiny", device=device)
    finetuned = finetune(cohort, folder / "run", settings)
    png = folder / "known_answer" / "heat_map.png"
    auc = compare_heat_map(finetuned.model_dir, mosaic, png, device)
    report = write_demo_report(folder, finetuned, cohort, settings, auc, png)
    return DemoOutcome(report, finetuned, auc, png)


def open_demo_folder(out_dir: Path, slide: Slide) -> None:
    """Writes demo.json, or raises `InputError` for a folder with the demo of another slide."""
    path = out_dir / "demo.json"
    record = {"slide": slide.path.name, "identity": slide.identity()}
    if path.exists():
        stored = read_json_object(path)
        if stored.get("identity") != record["identity"]:
            raise InputError(f"{out_dir}: holds the demo of {stored.get('slide')}; choose another folder with --out")
        return
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_regions(slide: Slide, out_dir: Path) -> Path:
    """Writes regions/<name>.tif and cohort.csv; returns the path of cohort.csv."""
    cohort_csv = out_dir / "cohort.csv"
    if cohort_csv.exists():
        return cohort_csv
    mpp = slide.require_mpp()
    regions = regions_with_tissue(slide)
    rows = []
    with Progress("regions", len(regions)) as progress:
        for region in regions:
            sharp = read_pixels(slide, region)
            square = draw_square(np.random.default_rng([region.row, region.column]), sharp)
            pixels = {CLASSES[0]: sharp, CLASSES[1]: out_of_focus(sharp, square, mpp.mean)}
            for label in CLASSES:
                slide_id = f"{region.name}_{label.split()[0]}"
                path = f"regions/{slide_id}.tif"
                write_region(pixels[label], (mpp.x, mpp.y), out_dir / path)
                position = (region.x_level0_px, region.y_level0_px)
                place = (square.x_px, square.y_px, square.side_px) if label == CLASSES[1] else ("", "", "")
                rows.append([region.name, slide_id, label, path, region.split, *position, *place])
            progress.advance()
    columns = ["case_id", "slide_id", "label", "path", "split", "x_level0_px", "y_level0_px"]
    write_csv(cohort_csv, [*columns, "square_x_px", "square_y_px", "square_side_px"], rows)
    return cohort_csv


def regions_with_tissue(slide: Slide) -> tuple[Region, ...]:
    """Regions of the slide without those that have the least haematoxylin."""
    regions = lay_out(slide.size_px, slide.require_mpp().mean)
    amounts = [float(haematoxylin(read_pixels(slide, region)).mean()) for region in regions]
    least = np.quantile(amounts, EMPTY_SHARE)
    return tuple(region for region, amount in zip(regions, amounts, strict=True) if amount > least)


def read_pixels(slide: Slide, region: Region) -> np.ndarray:
    """Pixels of a region at level 0, uint8 (side, side, 3)."""
    side_px = region.side_level0_px
    return slide.read_region(region.x_level0_px, region.y_level0_px, 0, side_px, side_px)


def write_mosaic(slide: Slide, out_dir: Path) -> Mosaic:
    """Mosaic of the test regions, written as mosaic.tif, with its squares in squares.csv."""
    mpp = slide.require_mpp()
    pixels = [read_pixels(slide, region) for region in regions_with_tissue(slide) if region.split == "test"]
    mosaic = make_mosaic(pixels, MOSAIC_COLUMNS, mpp.mean)
    write_region(mosaic.pixels, (mpp.x, mpp.y), out_dir / "mosaic.tif")
    rows = [[square.x_px, square.y_px, square.side_px] for square in mosaic.squares]
    write_csv(out_dir / "squares.csv", ["x_px", "y_px", "side_px"], rows)
    return mosaic


def write_region(pixels: np.ndarray, mpp: tuple[float, float], path: Path) -> None:
    """Writes the region as a tiled TIFF with its resolution in the tags."""
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            photometric="rgb",
            tile=(128, 128),
            compression="adobe_deflate",
            resolution=(1e4 / mpp[0], 1e4 / mpp[1]),
            resolutionunit="CENTIMETER",
            metadata=None,
        )


def compare_heat_map(model_dir: Path, mosaic: Mosaic, png: Path, device: str) -> float:
    """AUC of the heat map of the mosaic against its squares, over patches with tissue; plots both.

    mosaic.tif is in the folder of `png`.
    """
    from longvit.device import pick_device
    from longvit.interpret import class_contributions, draw
    from longvit.model.pretrained import load_model
    from longvit.slides.reader import open_slide
    from longvit.synthetic import heat_map_auc

    model = load_model(model_dir).to(pick_device(device).device)
    with open_slide(png.parent / "mosaic.tif") as slide:
        canvas = slide.canvas(MOSAIC_SIDE_PX, fit="pad")
    positive = model.config.class_names.index(CLASSES[1])
    contributions = class_contributions(model, canvas, positive)
    patch_px = model.config.patch_px
    y, x = np.indices(contributions.per_patch.shape) * patch_px + patch_px / 2
    inside, blurred = mosaic.truth_at(*canvas.placement.to_level0(x, y))
    grey = np.asarray(canvas).mean(2).reshape(len(x), patch_px, -1, patch_px).mean((1, 3))
    counted = inside & (grey < GLASS_GREY)
    outlines = [(square.x_px, square.y_px, square.side_px, square.side_px) for square in mosaic.squares]
    draw(canvas, contributions, png, title="Test regions: known squares and heat map", outlines=outlines)
    return heat_map_auc(contributions.per_patch[counted][None], blurred[counted][None])


def write_demo_report(
    out_dir: Path, finetuned: FinetuneResult, cohort: Cohort, settings: FinetuneSettings, auc: float, plot: Path
) -> Path:
    """Writes index.html: the report of the fine-tuning, preceded by the sections of the demo."""
    from longvit.report import ReportImage, Section, finetune_content, write_report

    content = finetune_content(finetuned, cohort, settings)
    train, test = cohort.split("train"), cohort.split("test")
    steps = Section(
        "Steps of the demo",
        points=(
            f"Extract {COLUMNS * ROWS} regions of {REGION_UM:.0f} µm from one slide, in {COLUMNS} columns and {ROWS} "
            f"rows, not overlapping. The {EMPTY_SHARE:.0%} with the least haematoxylin are left out.",
            "Write each region twice: as scanned, and with a square of half its side blurred by "
            f"{BLUR_UM:g} µm (regions/*.tif). cohort.csv has one label per region: in focus or out of focus.",
            f"Train on the {len(train)} images of the left {TRAIN_COLUMNS} columns and test on the {len(test)} of the "
            f"right {COLUMNS - TRAIN_COLUMNS}, {GAP_UM:.0f} µm apart, as longvit train cohort.csv --recipe tiny does.",
            "Read the test regions as one image (known_answer/mosaic.tif), every second one with a square out of "
            "focus, and compare the patch contributions with the squares.",
        ),
    )
    known = Section(
        "The heat map beside its known answer",
        text=(
            f"The outlined squares are out of focus. No place was given in training; a label is of a whole region. "
            f"AUC of the heat map: {auc:.2f}. This is the probability that a patch inside a square is hotter than "
            f"another one. Patches of glass do not count; .5 is chance.",
        ),
        plots=(ReportImage("Mosaic of the test regions", plot.read_bytes()),),
    )
    start = "random weights"
    if settings.weights is not None:
        start = f"weights pretrained without labels on other slides ({settings.weights})"
    metrics, *other_sections = content.sections
    report = replace(
        content,
        title="LongViT on one real slide, beside a known answer",
        lead=(
            f"A LongViT of {finetuned.metrics['training']['parameters'] / 1e6:.1f} million parameters, starting from "
            f"{start}, was trained on {len(train)} images from the left of a slide to detect that a part is out of "
            f"focus. It was tested on {len(test)} from the right.",
        ),
        notes=(
            "The tissue is real and the answer is made: squares were blurred on purpose, which leaves the mean colour "
            "as it was. The demo shows that the model learns from real pixels, where mean colour cannot, and that its "
            "heat map finds the place. It does not support any diagnosis, and all regions are from one slide.",
            *content.notes,
        ),
        sections=(steps, known, metrics, *other_sections),
    )
    return write_report(report, out_dir / "index.html")
