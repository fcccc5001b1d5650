"""The main job on one real slide: regions of it -> fine-tuning -> test -> what each patch of the whole contributes.

Nobody has annotated the slide, so the label is a stand-in that the pixels themselves give: whether a region's
haematoxylin content (nuclei) lies above the slide's median. It shows that the machinery learns from real pixels; it is
no diagnosis, and mean colour alone should do nearly as well, which the report says.

The regions of the left five columns train, those of the right three test, with a gap between them.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.errors import InputError
from longvit.files import atomic_path, make_folder, write_text
from longvit.json_file import read_json_object
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.finetuning.run import FinetuneResult
    from longvit.slides.reader import Slide
    from longvit.tasks.settings import FinetuneSettings

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
    """A square of the slide, in level-0 pixels."""

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
    """The slide of the demo: the one named, or the example that ships with the repository."""
    if path is not None:
        return Path(path)
    # src/longvit/demo.py -> the clone; then where the command is called.
    for folder in (Path(__file__).resolve().parents[2] / "examples", Path.cwd() / "examples"):
        if (found := folder / EXAMPLE).is_file():
            return found
    raise InputError(
        f"examples/{EXAMPLE}: not found (it comes with the repository, not with the package); "
        f"run the demo in a clone, or give a slide of your own with --slide"
    )


def haematoxylin(pixels: np.ndarray) -> np.ndarray:
    """Haematoxylin's optical density, float32 (height, width), of uint8 RGB (height, width, 3); about 0 on glass.

    Colour deconvolution: optical density is a sum of stains, each with its own share in red, green and blue; the
    inverse of the (normalised) shares takes the sum apart.
    """
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    amount: np.ndarray = density @ np.linalg.inv(stains).astype(np.float32)[:, 0]
    return amount


def lay_out(size_px: tuple[int, int], mpp: float) -> tuple[Region, ...]:
    """64 squares of at most 128 µm in 8 rows and columns, none overlapping, spread over the slide.

    Raises `InputError` for a slide that is too small to hold them with the gap.
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
    """What the demo leaves behind."""

    report: Path
    finetuned: FinetuneResult
    contributions_png: Path

    def summary(self) -> str:
        """The figures of the test part beside the controls, with the caveat that they need."""
        return (
            f"{self.finetuned.summary()}\n"
            f"The label is a stand-in (haematoxylin above the slide's median): it needs no pathologist and proves none."
        )


def run_demo(
    out_dir: str | Path,
    *,
    slide: str | Path | None = None,
    device: str = "auto",
    settings: FinetuneSettings | None = None,
) -> DemoOutcome:
    """Everything from the slide to `out_dir`/index.html; given again it goes on where it was, or ends at once.

    `settings` of the fine-tuning: those of the recipe tiny where left out.

    Raises `InputError`: no example slide, a slide without resolution or too small, a folder that holds another
    slide's demo or cannot be written to.
    """
    from longvit.config import load_settings
    from longvit.data.cohort import read_cohort
    from longvit.device import pick_device
    from longvit.finetuning.run import FinetuneSettings, finetune
    from longvit.slides.reader import open_slide

    folder = make_folder(out_dir)
    pick_device(device)
    path = example_slide(slide)
    with open_slide(path) as opened:
        claim(folder, opened)
        cohort = read_cohort(write_regions(opened, folder))
    settings = settings or load_settings(FinetuneSettings, "tiny", device=device)
    finetuned = finetune(cohort, folder / "run", settings)
    png = whole_slide(finetuned.model_dir, path, folder, device)
    return DemoOutcome(write_demo_report(folder, finetuned, cohort, settings, png), finetuned, png)


def claim(out_dir: Path, slide: Slide) -> None:
    """Writes demo.json, or refuses a folder in which the demo ran on another slide."""
    path = out_dir / "demo.json"
    mine = {"slide": slide.path.name, "identity": slide.identity()}
    if path.exists():
        theirs = read_json_object(path)
        if theirs.get("identity") != mine["identity"]:
            raise InputError(f"{out_dir}: holds the demo of {theirs.get('slide')}; choose another folder with --out")
        return
    write_text(path, json.dumps(mine, indent=1) + "\n")


def write_regions(slide: Slide, out_dir: Path) -> Path:
    """regions/<name>.tif and cohort.csv; returns the latter."""
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
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case_id", "slide_id", "label", "path", "split", "haematoxylin", "x_level0_px", "y_level0_px"])
    for region, amount in zip(regions, amounts, strict=True):
        label = CLASSES[amount > median]
        place = (region.x_level0_px, region.y_level0_px)
        path = f"regions/{region.name}.tif"
        writer.writerow([region.name, region.name, label, path, region.split, f"{amount:.6f}", *place])
    write_text(cohort_csv, text.getvalue())
    return cohort_csv


def write_region(pixels: np.ndarray, mpp: tuple[float, float], path: Path) -> None:
    """An ordinary tiled TIFF with its resolution in the tags."""
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
    """Embeds the whole slide and draws what each patch contributes; returns the picture."""
    from longvit.data.slide_list import find_slides
    from longvit.device import pick_device
    from longvit.model.pretrained import load_model
    from longvit.slide_jobs import embed_slides, predict_slides

    model = load_model(model_dir).to(pick_device(device).device)
    # The regions were squares; a whole slide is not, and keeps its proportions at this size.
    model.config = replace(model.config, image_px=WHOLE_SIDE_PX, fit="pad")
    slides = find_slides([slide_path])
    embed_slides(slides, out_dir / "whole_slide", model)
    predict_slides(slides, out_dir / "whole_slide", model, pictures=True)
    return out_dir / "whole_slide" / "slides" / f"{slides[0].slide_id}.png"


def write_demo_report(
    out_dir: Path, finetuned: FinetuneResult, cohort: Cohort, settings: FinetuneSettings, picture: Path
) -> Path:
    """index.html: the report of the fine-tuning, with what is particular to the demo in front."""
    from longvit.report import ReportImage, Section, finetune_content, write_report
    from longvit.report.finetuning import CONTRIBUTIONS_TEXT

    content = finetune_content(finetuned, cohort, settings)
    train, test = cohort.split("train"), cohort.split("test")
    made = Section(
        "What was done",
        points=(
            f"Cut {COLUMNS * ROWS} regions of {REGION_UM:.0f} µm out of one slide, in {COLUMNS} columns and {ROWS} "
            f"rows, none overlapping: regions/*.tif and cohort.csv.",
            "Labelled each by its haematoxylin content (colour deconvolution): above the slide's median is much, "
            "else little.",
            f"Trained on the {len(train)} regions of the left {TRAIN_COLUMNS} columns and tested on the {len(test)} "
            f"of the right {COLUMNS - TRAIN_COLUMNS}, {GAP_UM:.0f} µm apart; the same as longvit train cohort.csv "
            f"--recipe tiny.",
            f"Embedded the whole slide at {WHOLE_SIDE_PX:,} × {WHOLE_SIDE_PX:,} px (whole_slide/) and drew what each "
            f"of its patches contributes.",
        ),
    )
    whole = Section(
        "The whole slide, patch by patch",
        text=(*CONTRIBUTIONS_TEXT, "The model was trained on regions of 128 µm and has never seen a whole slide."),
        plots=(ReportImage(f"{WHOLE_SIDE_PX // 32} × {WHOLE_SIDE_PX // 32} patches", picture.read_bytes()),),
    )
    start = "random weights"
    if settings.weights is not None:
        start = f"weights that were pretrained without labels on other slides ({settings.weights})"
    metrics, *rest = content.sections
    report = replace(
        content,
        title="LongViT on one real slide, from pixels to a picture",
        lead=(
            f"A LongViT of {finetuned.metrics['training']['parameters'] / 1e6:.1f} million parameters learned from "
            f"{len(train)} regions on the left of a slide which regions hold much haematoxylin (many nuclei), starting "
            f"from {start}, and was tested on {len(test)} regions on the right.",
        ),
        notes=(
            "The label is a stand-in that needs no pathologist: much means that a region's haematoxylin content lies "
            "above the slide's median. Half of the regions are mostly empty glass, so this is not far from tissue "
            "against glass, and mean colour alone is expected to do as well. The demo shows that the whole chain works "
            "on real pixels; it says nothing about any diagnosis, and all regions come from one slide.",
            *content.notes,
        ),
        sections=(made, metrics, whole, *rest),
    )
    return write_report(report, out_dir / "index.html")
