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
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.data.augmentation import STAIN_SIGMA, restain
from longvit.data.crop_colour import Step, recolour, solarise
from longvit.errors import InputError

# torchvision's RandomResizedCrop gives up after so many draws that do not fit, and takes all of a square.
_TRIES = 10


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

    @classmethod
    def of(cls, settings: CropSettings) -> CropSettings:
        """These alone, out of settings that hold more: they travel to other processes."""
        return CropSettings(**{field.name: getattr(settings, field.name) for field in fields(CropSettings)})

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Of every crop, the global ones first."""
        return (self.global_px,) * self.global_crops + (self.local_px,) * self.local_crops


@dataclass(frozen=True)
class Look:
    """What is cut out of a region and what is done to it, in this order."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the region."""
    turns: int
    """Quarter turns against the clock."""
    mirror: bool
    stain: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Factors and shifts of the stains."""
    steps: tuple[Step, ...]
    """The colour jitter, in its order."""
    grey: bool
    blur_px: float
    """σ; 0: none."""
    solarise: bool


def draw_looks(settings: CropSettings, rng: np.random.Generator) -> tuple[Look, ...]:
    """The crops of one region, the global ones first."""
    return tuple(_draw(settings, number, rng) for number in range(len(settings.sides_px)))


def make_crop(region: Image.Image, look: Look, out: NDArray[np.uint8]) -> None:
    """Cuts a crop out of an RGB image and fills `out` with it: uint8 (3, side, side)."""
    side_px = out.shape[-1]
    box = _whole_pixels(look.box, region.size)
    small = region.resize((side_px, side_px), Image.Resampling.BICUBIC, box=box)
    words = np.frombuffer(small.tobytes("raw", "RGBX"), np.int32).reshape(side_px, side_px)
    if look.turns or look.mirror:
        turned = np.rot90(words, look.turns)
        words = np.ascontiguousarray(turned[:, ::-1] if look.mirror else turned)
    if look.stain is not None:
        words = _restained(words, *look.stain)
    recolour(words, look.steps, look.grey, look.blur_px, out)
    if look.solarise:
        solarise(out)


def _draw(settings: CropSettings, number: int, rng: np.random.Generator) -> Look:
    """Everything is drawn whether it happens or not, so that an option changes nothing else of a run."""
    is_global = number < settings.global_crops
    box = _draw_box(settings.global_scale if is_global else settings.local_scale, settings.aspect, rng)
    turns, mirror = int(rng.integers(4)), bool(rng.random() < settings.flip)
    scale, shift = rng.uniform(1 - STAIN_SIGMA, 1 + STAIN_SIGMA, 3), rng.uniform(-STAIN_SIGMA / 4, STAIN_SIGMA / 4, 3)
    is_jittered, order, amounts = rng.random() < settings.jitter, rng.permutation(4), rng.uniform(-1, 1, 4).tolist()
    steps: tuple[Step, ...] = (
        ("brightness", 1 + settings.brightness * amounts[0]),
        ("contrast", 1 + settings.contrast * amounts[1]),
        ("saturation", 1 + settings.saturation * amounts[2]),
        ("hue", settings.hue * amounts[3]),
    )
    grey = bool(rng.random() < settings.grey)
    kind = 2 if not is_global else min(number, 1)
    is_blurred, blur_px = rng.random() < settings.blur[kind], float(rng.uniform(*settings.blur_px))
    is_solarised = rng.random() < settings.solarise and kind == 1
    return Look(
        box=box,
        turns=turns if settings.turns else 0,
        mirror=mirror,
        stain=(tuple(scale.tolist()), tuple(shift.tolist())) if settings.stain else None,
        steps=tuple(steps[i] for i in order) if is_jittered else (),
        grey=grey,
        blur_px=blur_px if is_blurred else 0.0,
        solarise=is_solarised,
    )


def _draw_box(
    scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A share of the area, uniform; width over height, uniform in its logarithm; drawn again where it does not fit."""
    for _ in range(_TRIES):
        area = rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= 1 and height <= 1:
            left, top = rng.random() * (1 - width), rng.random() * (1 - height)
            return left, top, left + width, top + height
    return 0.0, 0.0, 1.0, 1.0


def _whole_pixels(box: tuple[float, float, float, float], size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in pixels of the region, at least one."""
    (left, right), (top, bottom) = (
        (min(round(low * size), size - 1), round(high * size))
        for low, high, size in zip(box[:2], box[2:], size_px, strict=True)
    )
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _restained(words: NDArray[np.int32], scale: Sequence[float], shift: Sequence[float]) -> NDArray[np.int32]:
    pixels = words.view(np.uint8).reshape(*words.shape, 4).copy()
    pixels[..., :3] = restain(pixels[..., :3], np.array(scale), np.array(shift))
    return pixels.view(np.int32)[..., 0]
