"""Demo on one real slide: regions -> fine-tuning -> test -> patch contributions of the whole slide.

The slide has no annotation, so the label is a proxy computed from the pixels: whether the haematoxylin content
(nuclei) of a region is above the slide's median. The demo shows that the pipeline learns from real pixels. It is no
diagnosis, and mean colour should do nearly as well, as the report states.

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
WHOLE_SIDE_PX = 2048
CLASSES = ("little", "much")  # in this order, so that much is the positive class
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
    contributions_png: Path

    def summary(self) -> str:
        """Metrics on the test set beside the controls, with their caveat."""
        return (
            f"{self.finetuned.summary()}\n"
            f"The label is a proxy (haematoxylin above the slide's median), not an annotation by a pathologist."
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
    settings = settings or load_settings(FinetuneSettings, "tiny", device=device)
    finetuned = finetune(cohort, folder / "run", settings)
    png = whole_slide(finetuned.model_dir, path, folder, device)
    return DemoOutcome(write_demo_report(folder, finetuned, cohort, settings, png), finetuned, png)


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
    regions = lay_out(slide.size_px, mpp.mean)
    amounts = []
    with Progress("regions", len(regions)) as progress:
        for region in regions:
            side_px = region.side_level0_px
            pixels = slide.read_region(region.x_level0_px, region.y_level0_px, 0, side_px, side_px)
            amounts.append(float(haematoxylin(pixels).mean()))
            write_region(pixels, (mpp.x, mpp.y), out_dir / "regions" / f"{region.name}.tif")
            progress.advance()
    median = float(np.median(amounts))
    rows = []
    for region, amount in zip(regions, amounts, strict=True):
        label = CLASSES[amount > median]
        position = (region.x_level0_px, region.y_level0_px)
        path = f"regions/{region.name}.tif"
        rows.append([region.name, region.name, label, path, region.split, f"{amount:.6f}", *position])
    columns = ["case_id", "slide_id", "label", "path", "split", "haematoxylin", "x_level0_px", "y_level0_px"]
    write_csv(cohort_csv, columns, rows)
    return cohort_csv


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


def whole_slide(model_dir: Path, slide_path: Path, out_dir: Path, device: str) -> Path:
    """Embeds the whole slide and plots its patch contributions; returns the path of the plot."""
    from longvit.data.slide_list import find_slides
    from longvit.device import pick_device
    from longvit.model.pretrained import load_model
    from longvit.slide_jobs.embed import embed_slides
    from longvit.slide_jobs.predict import predict_slides

    model = load_model(model_dir).to(pick_device(device).device)
    # Unlike the regions, a whole slide is not square: it is padded, to keep its proportions.
    model.config = replace(model.config, image_px=WHOLE_SIDE_PX, fit="pad")
    slides = find_slides([slide_path])
    embed_slides(slides, out_dir / "whole_slide", model)
    predict_slides(slides, out_dir / "whole_slide", model, pictures=True)
    return out_dir / "whole_slide" / "slides" / f"{slides[0].slide_id}.png"


def write_demo_report(
    out_dir: Path, finetuned: FinetuneResult, cohort: Cohort, settings: FinetuneSettings, plot: Path
) -> Path:
    """Writes index.html: the report of the fine-tuning, preceded by the sections of the demo."""
    from longvit.report import ReportImage, Section, finetune_content, write_report
    from longvit.report.contributions import TEXT

    content = finetune_content(finetuned, cohort, settings)
    train, test = cohort.split("train"), cohort.split("test")
    steps = Section(
        "Steps of the demo",
        points=(
            f"Extract {COLUMNS * ROWS} regions of {REGION_UM:.0f} µm from one slide, in {COLUMNS} columns and {ROWS} "
            f"rows, not overlapping: regions/*.tif and cohort.csv.",
            "Label each region by its haematoxylin content (colour deconvolution): much above the slide's median, "
            "else little.",
            f"Train on the {len(train)} regions of the left {TRAIN_COLUMNS} columns and test on the {len(test)} of the "
            f"right {COLUMNS - TRAIN_COLUMNS}, {GAP_UM:.0f} µm apart, as longvit train cohort.csv --recipe tiny does.",
            f"Embed the whole slide at {WHOLE_SIDE_PX:,} × {WHOLE_SIDE_PX:,} px (whole_slide/) and plot its patch "
            f"contributions.",
        ),
    )
    whole = Section(
        "Patch contributions of the whole slide",
        text=(*TEXT, "The model was trained on regions of 128 µm only, not on whole slides."),
        plots=(ReportImage(f"{WHOLE_SIDE_PX // 32} × {WHOLE_SIDE_PX // 32} patches", plot.read_bytes()),),
    )
    start = "random weights"
    if settings.weights is not None:
        start = f"weights pretrained without labels on other slides ({settings.weights})"
    metrics, *other_sections = content.sections
    report = replace(
        content,
        title="LongViT on one real slide, from pixels to patch contributions",
        lead=(
            f"A LongViT of {finetuned.metrics['training']['parameters'] / 1e6:.1f} million parameters, starting from "
            f"{start}, was trained on {len(train)} regions on the left of a slide to detect much haematoxylin (many "
            f"nuclei). It was tested on {len(test)} regions on the right.",
        ),
        notes=(
            "The label is a proxy, not an annotation by a pathologist: much means that the haematoxylin content of a "
            "region is above the slide's median. Half of the regions are mostly empty glass, so the task is close to "
            "tissue against glass, and mean colour is expected to do as well. The demo shows that the pipeline works "
            "on real pixels. It does not support any diagnosis, and all regions are from one slide.",
            *content.notes,
        ),
        sections=(steps, metrics, whole, *other_sections),
    )
    return write_report(report, out_dir / "index.html")
