"""DINO's multi-crop augmentation of a region: which crops are drawn, and how they look (Caron et al. 2021, section 3).

Two global crops cover 0.4 to 1 of the region, eight local ones 0.05 to 0.4 of it (LongViT, table 5: 1,024² and 512²
px). Each is mirrored, its colours jittered, turned to grey, blurred, solarised with DINO's probabilities and in its
order. What is drawn is a `Look`, apart from the pixels: the same crops can be made by other code
(`benchmarks/crops.py`), and a test can count them.

"DINO's code": the defaults of `main_dino.py` and `utils.py` at facebookresearch/dino, with torchvision's transforms.
Each crop is resampled once, from the pixels of the slide's level that the region was read at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.data.augmentation import STAIN_SIGMA, restain
from longvit.errors import InputError
from longvit.pretraining.regions.crop_colour import LEAST_BLUR_PX, Blur, ColourJitter, Floats, Step, grey_of, solarise
from longvit.pretraining.regions.crop_pixels import CropPixels, rows_at_once

# torchvision's RandomResizedCrop gives up after so many draws that do not fit, and takes all of a square.
_TRIES = 10
# Pixels that go through all changes at once: 3 planes of them are 400 kB.
_PIECE_PX = 2**15
# The mean for the contrast is that of about so many pixels.
_SAMPLE_PX = 2**12


@dataclass(frozen=True)
class CropSettings:
    """Which crops are cut out of a region, and how they are changed."""

    global_px: int = 1024
    """Side of a global crop (LongViT, table 5)."""
    local_px: int = 512
    """Side of a local crop (LongViT, table 5)."""
    global_crops: int = 2
    """Global crops of every region (DINO's code)."""
    local_crops: int = 8
    """Local crops of every region (DINO's code)."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the region's area that a global crop covers, smallest and largest (LongViT, table 5; DINO's code)."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """The same of a local crop (LongViT, table 5; DINO's code)."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of what is cut out, before it is made square (torchvision's RandomResizedCrop)."""
    flip: float = 0.5
    """Probability of a mirror from left to right (DINO's code)."""
    turns: bool = False
    """Quarter turns, each as often: tissue has no upright. DINO has none."""
    jitter: float = 0.8
    """Probability of the colour jitter: the next four in random order (DINO's code)."""
    brightness: float = 0.4
    """Brightness times 1 ± this at most (DINO's code)."""
    contrast: float = 0.4
    """Contrast times 1 ± this at most (DINO's code)."""
    saturation: float = 0.2
    """Saturation times 1 ± this at most (DINO's code)."""
    hue: float = 0.1
    """Hue turned by at most ± this share of the circle (DINO's code)."""
    grey: float = 0.2
    """Probability of greyscale (DINO's code)."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of a blur of the first global crop, the other global ones, the local ones (DINO's code)."""
    blur_px: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest σ of it, in pixels of the crop (DINO's code)."""
    solarise: float = 0.2
    """Probability that a global crop behind the first is solarised (DINO's code)."""
    stain: bool = False
    """Haematoxylin and eosin scaled and shifted, before the colour jitter (`augmentation.restain`). DINO has none."""

    def __post_init__(self) -> None:
        for name, low in (("global_px", 1), ("local_px", 1), ("global_crops", 1), ("local_crops", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name} {getattr(self, name)}: at least {low}")
        for name in ("global_scale", "local_scale"):
            low_share, high_share = getattr(self, name)
            if not 0 < low_share <= high_share <= 1:
                raise InputError(f"{name} {low_share} {high_share}: shares of the region, above 0, smallest first")
        for name in ("aspect", "blur_px"):
            low_value, high_value = getattr(self, name)
            if not 0 < low_value <= high_value < math.inf:
                raise InputError(f"{name} {low_value} {high_value}: two numbers above 0, the smaller one first")
        probabilities = {name: getattr(self, name) for name in ("flip", "jitter", "grey", "solarise")}
        for name, value in (probabilities | {"blur": min(self.blur), "blur ": max(self.blur)}).items():
            if not 0 <= value <= 1:
                raise InputError(f"{name.strip()} {value}: a probability, 0 to 1")
        for name, high in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 1 / 6)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}: between 0 and {high:.3g}")

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Of every crop, the global ones first."""
        return (self.global_px,) * self.global_crops + (self.local_px,) * self.local_crops


@dataclass(frozen=True)
class Look:
    """What is cut out of a region and what is done to it, in this order."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the region."""
    mirror: bool
    """From left to right."""
    turns: int
    """Quarter turns against the clock."""
    stain: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Factors and shifts of the stains."""
    steps: tuple[Step, ...]
    """The colour jitter, in its order."""
    grey: bool
    blur_px: float
    """σ; 0: none."""
    solarise: bool


def draw_looks(settings: CropSettings, rng: np.random.Generator) -> tuple[Look, ...]:
    """The crops of one region, the global ones first.

    Everything is drawn whether it happens or not, so that an option changes nothing else of a run.
    """
    n = len(settings.sides_px)
    boxes = rng.random((n, _TRIES, 4)).tolist()
    chances = rng.random((n, 7)).tolist()
    orders = rng.random((n, 4)).argsort(axis=1).tolist()
    amounts = rng.uniform(-1, 1, (n, 4)).tolist()
    stains = rng.uniform(-1, 1, (n, 2, 3)).tolist()
    return tuple(
        _look(settings, number, *drawn)
        for number, drawn in enumerate(zip(boxes, chances, orders, amounts, stains, strict=True))
    )


def _look(
    settings: CropSettings,
    number: int,
    tries: list[list[float]],
    chances: list[float],
    order: list[int],
    amounts: list[float],
    stains: list[list[float]],
) -> Look:
    """Of numbers that are uniform in 0 … 1, amounts and stains in −1 … 1."""
    kind = min(number, 1) if number < settings.global_crops else 2
    turn, flip, jitter, grey, blur, sigma, solarised = chances
    steps: tuple[Step, ...] = (
        ("brightness", 1 + settings.brightness * amounts[0]),
        ("contrast", 1 + settings.contrast * amounts[1]),
        ("saturation", 1 + settings.saturation * amounts[2]),
        ("hue", settings.hue * amounts[3]),
    )
    stain = None
    if settings.stain:
        scale, shift = stains
        stain = tuple(1 + STAIN_SIGMA * s for s in scale), tuple(STAIN_SIGMA / 4 * s for s in shift)
    return Look(
        box=_box(settings.local_scale if kind == 2 else settings.global_scale, settings.aspect, tries),
        mirror=flip < settings.flip,
        turns=int(4 * turn) if settings.turns else 0,
        stain=stain,
        steps=tuple(steps[i] for i in order) if jitter < settings.jitter else (),
        grey=grey < settings.grey,
        blur_px=_between(sigma, settings.blur_px) if blur < settings.blur[kind] else 0.0,
        solarise=kind == 1 and solarised < settings.solarise,
    )


def _box(
    scale: tuple[float, float], aspect: tuple[float, float], tries: list[list[float]]
) -> tuple[float, float, float, float]:
    """A share of the area, uniform; width over height, uniform in its logarithm; the next try where it does not fit."""
    for area, ratio, across, down in tries:
        share = _between(area, scale)
        stretch = math.exp(_between(ratio, (math.log(aspect[0]), math.log(aspect[1]))))
        width, height = math.sqrt(share * stretch), math.sqrt(share / stretch)
        if width <= 1 and height <= 1:
            left, top = across * (1 - width), down * (1 - height)
            return left, top, left + width, top + height
    return 0.0, 0.0, 1.0, 1.0


def _between(share: float, ends: tuple[float, float]) -> float:
    return ends[0] + share * (ends[1] - ends[0])


def make_crop(region: NDArray[np.uint8], look: Look, out: NDArray[np.uint8]) -> None:
    """Cuts a crop out of a region, uint8 (3, h, w), and fills `out` with it: uint8 (3, side, side)."""
    side_px, box = out.shape[-1], whole_pixels(look.box, region.shape[2], region.shape[1])
    pixels = CropPixels(region, box, side_px, look.mirror)
    jitter = ColourJitter(look.steps, _stained(_sample(region, box), look))
    blur = Blur(look.blur_px, 1 if look.grey else 3, side_px) if look.blur_px > LEAST_BLUR_PX else None
    rows = rows_at_once(side_px, _PIECE_PX)
    for first in range(0, side_px, rows):
        of = slice(first, min(first + rows, side_px))
        x = jitter(_stained(pixels.rows(of.start, of.stop), look))
        if look.grey:
            x = grey_of(x)[None]
        if blur is not None:
            blur.add(x, first)
        else:
            x += 0.5
            out[:, of] = x.astype(np.uint8)
    if blur is not None:
        blur.finish(out)
    if look.turns:
        out[...] = np.rot90(out, look.turns, axes=(1, 2)).copy()
    if look.solarise:
        solarise(out)


def whole_pixels(box: tuple[float, float, float, float], width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The box of a `Look` in pixels of the region, at least one: left, top, right, bottom."""
    (left, right), (top, bottom) = (
        (min(round(low * size), size - 1), round(high * size))
        for low, high, size in zip(box[:2], box[2:], (width_px, height_px), strict=True)
    )
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _sample(region: NDArray[np.uint8], box: tuple[int, int, int, int]) -> Floats:
    """Some of the region's pixels under a crop, float32 (3, …)."""
    left, top, right, bottom = box
    every = max(1, math.isqrt((right - left) * (bottom - top) // _SAMPLE_PX))
    return region[:, top:bottom:every, left:right:every].astype(np.float32)


def _stained(x: Floats, look: Look) -> Floats:
    """(3, …) with its stains changed, where the look has that."""
    if look.stain is None:
        return x
    scale, shift = (np.array(of) for of in look.stain)
    pixels = np.moveaxis((x + 0.5).astype(np.uint8), 0, -1)
    return np.ascontiguousarray(np.moveaxis(restain(pixels, scale, shift), -1, 0), np.float32)
