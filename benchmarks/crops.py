"""Benchmark of DINO crops: crops per CPU second against DINO's augmentation in Pillow, and time waiting for data.

    python benchmarks/crops.py [--rounds 5] [--quick] [--save]      (5 minutes)

- `augmentation`: the same crops of the same regions of the real slide (10 per region, DINO's probabilities), made by
  `longvit.pretraining.regions.crops` and, in turn, by Pillow as DINO's code calls it through torchvision; one process,
  one thread, CPU seconds
- `from the slide`: the same with reading of the region, by our reader and by OpenSlide
- `waiting`: fraction of the time in which the training loop waits for the next batch, with LongViT-tiny and a small
  head in one thread and batches from one process; `start_s` is the first batch of an epoch, which is not hidden,
  `waits_steady` the fraction without it
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before NumPy is loaded

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from longvit.data.slide_list import ListedSlide
from longvit.pretraining.regions.crops import CropSettings, Look, draw_looks, make_crop, whole_pixels
from longvit.pretraining.regions.region_reader import RegionReader
from longvit.pretraining.regions.regions import Region, Regions, RegionSettings, find_regions
from side_by_side import report

SLIDE = Path(__file__).resolve().parents[1] / "examples" / "CMU-1-Small-Region.svs"
TARGET_RATIO, TARGET_WAIT = 2.0, 0.05
ENHANCE: dict[str, Callable[[Image.Image], Any]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def regions_of(region_px: tuple[int, int], per_slide: int) -> Regions:
    settings = RegionSettings(region_px=region_px, per_slide=per_slide)
    return find_regions([ListedSlide(SLIDE.stem, SLIDE)], settings, progress=False)


def pillow_crop(region: Image.Image, look: Look, side_px: int) -> np.ndarray:
    """Crop as DINO's code makes it with torchvision: Pillow, rounded after every step; uint8 (3, h, w)."""
    box = whole_pixels(look.box, *region.size)
    image = region.crop(box).resize((side_px, side_px), Image.Resampling.BICUBIC)
    if look.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for step, amount in look.steps:
        if step == "hue":
            hue, saturation, value = image.convert("HSV").split()
            turned = np.asarray(hue) + np.int16(amount * 255).astype(np.uint8)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        else:
            image = ENHANCE[step](image).enhance(amount)
    if look.grey:
        image = image.convert("L").convert("RGB")
    if look.blur_px:
        image = image.filter(ImageFilter.GaussianBlur(look.blur_px))
    if look.solarise:
        image = ImageOps.solarize(image)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def our_crop(region: np.ndarray, look: Look, side_px: int) -> np.ndarray:
    out = np.empty((3, side_px, side_px), np.uint8)
    make_crop(region, look, out)
    return out


def read_openslide(slide: openslide.OpenSlide, region: Region) -> Image.Image:
    size = region.width_px, region.height_px
    assert region.source.level == 0
    return slide.read_region((region.x_px, region.y_px), 0, size).convert("RGB")


def augmentation(regions: Regions, crops: CropSettings, rounds: int) -> list[dict[str, Any]]:
    """Crops per second of each way, region by region in turn, and their ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "pillow", "our_reader", "openslide")}
    differences: list[float] = []
    with RegionReader(regions.settings) as reader, openslide.OpenSlide(SLIDE) as slide:
        for number in range(rounds):
            sums = dict.fromkeys(seconds, 0.0)

            def timed(name: str, call: Callable[[], Any], sums: dict[str, float] = sums) -> Any:
                start = time.process_time()
                made = call()
                sums[name] += time.process_time() - start
                return made

            for index in range(regions.samples):
                region = regions.region(index)
                planes = timed("our_reader", lambda region=region: reader.planes(region))
                timed("openslide", lambda region=region: read_openslide(slide, region))
                image = Image.fromarray(np.moveaxis(planes, 0, -1))
                looks = draw_looks(crops, np.random.default_rng([number, index]))
                for look, side_px in zip(looks, crops.sides_px, strict=True):
                    a = timed("ours", lambda planes=planes, look=look, px=side_px: our_crop(planes, look, px))
                    b = timed("pillow", lambda image=image, look=look, px=side_px: pillow_crop(image, look, px))
                    differences.append(float(np.abs(a.astype(np.int16) - b).mean()))
            for name, value in sums.items():
                seconds[name].append(value)
    n = regions.samples * len(crops.sides_px)
    times = {name: np.array(values) for name, values in seconds.items()}
    what = f"{crops.global_px}/{crops.local_px} px"
    rows = []
    for kind, ours, pillow in (
        ("augmentation", times["ours"], times["pillow"]),
        ("from the slide", times["ours"] + times["our_reader"], times["pillow"] + times["openslide"]),
    ):
        ratio = float(np.median(pillow / ours))
        rows.append(
            {
                "what": f"{kind}, {what}",
                "ours_crops_per_s": round(n / float(np.median(ours)), 1),
                "pillow_crops_per_s": round(n / float(np.median(pillow)), 1),
                "x_pillow": round(ratio, 2),
            }
        )
    mean = statistics.mean(differences)
    rows[0] |= {"mean_difference_grey_levels": round(mean, 2), "target": f">= {TARGET_RATIO:g} x_pillow"}
    rows[0]["reached"] = rows[0]["x_pillow"] >= TARGET_RATIO
    return rows


def waiting(regions: Regions, crops: CropSettings, batch_size: int, steps: int) -> dict[str, Any]:
    """Fraction of the time in which the loop waits for a batch."""
    import torch

    from longvit.dino.loss import DinoLoss
    from longvit.dino.settings import DinoSettings
    from longvit.dino.student_teacher import StudentTeacher
    from longvit.model.longvit import SIZES
    from longvit.pretraining.regions.region_batches import RegionBatches

    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = DinoSettings(prototypes=4096, head_hidden=512)
    networks = StudentTeacher(SIZES["longvit_tiny_patch32"], settings).train()
    loss = DinoLoss(settings.prototypes)
    optimizer = torch.optim.AdamW(networks.student.parameters(), lr=1e-4)
    waits, marks = [], [time.perf_counter()]
    stream = iter(RegionBatches(regions, crops, batch_size, workers=1).epoch(0, range(steps)))
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(stream)
        waits.append(time.perf_counter() - start)
        student, teacher = networks(batch.crops)
        terms = loss(student, teacher, teacher_temperature=0.04)
        terms.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        networks.update_teacher(0.996)
        marks.append(time.perf_counter())
    stream.close()  # type: ignore[attr-defined]
    whole, steady = marks[-1] - marks[0], marks[-1] - marks[1]
    share = sum(waits) / whole
    return {
        "what": f"waiting, {crops.global_px}/{crops.local_px} px, {batch_size} regions a step, {steps} steps",
        "seconds_per_step": round(steady / (steps - 1), 3),
        "start_s": round(waits[0], 2),
        "waits": round(share, 4),
        "waits_steady": round(sum(waits[1:]) / steady, 4),
        "target": f"waits <= {TARGET_WAIT:g}",
        "reached": share <= TARGET_WAIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small crops, one round: does it run")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    paper = CropSettings()
    small = replace(paper, global_px=256, local_px=128)
    rows: list[dict[str, Any]] = []
    if args.quick:
        rows += augmentation(regions_of((256, 384), 4), small, 1)
        rows.append(waiting(regions_of((256, 384), 16), small, 4, 4))
    else:
        rows += augmentation(regions_of((1024, 1536), 4), paper, args.rounds)
        rows += augmentation(regions_of((256, 384), 20), small, args.rounds)
        rows.append(waiting(regions_of((1024, 1536), 100), paper, 2, 12))
        rows.append(waiting(regions_of((256, 384), 640), small, 16, 20))
    report("crops", rows, args.save)


if __name__ == "__main__":
    main()
