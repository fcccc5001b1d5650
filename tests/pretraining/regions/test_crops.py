"""The augmentation against plain float64 definitions, Pillow's own and SciPy's; its probabilities over many draws."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from tests.slides.slide_files import tissue

from longvit.errors import InputError
from longvit.pretraining.regions.crop_colour import GREY, Step
from longvit.pretraining.regions.crops import CropSettings, Look, draw_looks, make_crop

PLAIN = Look((0.0, 0.0, 1.0, 1.0), False, 0, None, (), False, 0.0, False)
SMALL = CropSettings(global_px=32, local_px=16)


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Every kind of pixel: noise, greys, two equal channels, the corners of the cube; uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0] = pixels[0, :, :1]
    pixels[1, :, 1] = pixels[1, :, 0]
    pixels[2, :, 2] = pixels[2, :, 1]
    pixels[3, :, 0] = pixels[3, :, 2]
    pixels[4] = rng.choice([0, 255], (width, 3))
    return pixels


def made(pixels: np.ndarray, look: Look, side_px: int | None = None) -> np.ndarray:
    """The crop as uint8 (side, side, 3)."""
    side_px = len(pixels) if side_px is None else side_px
    out = np.empty((3, side_px, side_px), np.uint8)
    make_crop(np.ascontiguousarray(pixels.transpose(2, 0, 1)), look, out)
    return out.transpose(1, 2, 0)


def recoloured(pixels: np.ndarray, *steps: Step, grey: bool = False, blur_px: float = 0.0) -> np.ndarray:
    return made(pixels, replace(PLAIN, steps=steps, grey=grey, blur_px=blur_px))


def differs(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).max())


def grey_of(x: np.ndarray) -> np.ndarray:
    return x @ np.array(GREY)


# The definitions, float64 on (h, w, 3), 0 … 255.
def brightness(x: np.ndarray, f: float) -> np.ndarray:
    return np.clip(f * x, 0, 255)


def contrast(x: np.ndarray, f: float) -> np.ndarray:
    return np.clip(f * x + (1 - f) * grey_of(x).mean(), 0, 255)


def saturation(x: np.ndarray, f: float) -> np.ndarray:
    return np.clip(f * x + (1 - f) * grey_of(x)[..., None], 0, 255)


def hue(x: np.ndarray, turn: float) -> np.ndarray:
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[place] / 255)
        out[place] = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
    return out


ORACLES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.0, 0.4, 1.0])
def test_every_step_is_its_definition(name: str, amount: float) -> None:
    pixels = colours(45, 45)
    value = 0.1 * amount if name == "hue" else 1 + 0.4 * amount
    expected = ORACLES[name](pixels.astype(float), value)
    assert differs(recoloured(pixels, (name, value)), expected) <= 0.51  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_factors_mean_what_pillow_means(name: str, enhance: Callable[..., ImageEnhance._Enhance]) -> None:
    pixels = tissue(75, 75)
    for factor in (0.6, 0.8, 1.1, 1.4):
        theirs = np.asarray(enhance(Image.fromarray(pixels)).enhance(factor))
        # Pillow rounds the grey first, which the factor then enlarges.
        assert differs(recoloured(pixels, (name, factor)), theirs) <= 1.5  # type: ignore[arg-type]


def test_all_steps_in_any_order_are_their_definitions_one_after_the_other() -> None:
    pixels = colours(35, 35, seed=1)
    rng = np.random.default_rng(2)
    for _ in range(12):
        values = dict(zip(ORACLES, [*rng.uniform(0.6, 1.4, 3), rng.uniform(-0.1, 0.1)], strict=True))
        steps = [(name, values[name]) for name in rng.permutation(list(ORACLES))]
        expected = pixels.astype(float)
        for name, value in steps:
            expected = ORACLES[name](expected, value)
        assert differs(recoloured(pixels, *steps), expected) <= 0.51
        greys = np.repeat(grey_of(expected)[..., None], 3, axis=2)
        assert differs(recoloured(pixels, *steps, grey=True), greys) <= 0.51


def test_a_large_crop_is_the_pieces_of_a_small_one() -> None:
    """More pixels than go through the steps at once, and more than the mean is taken of."""
    pixels = tissue(600, 600)
    steps = [("saturation", 1.2), ("contrast", 1.4), ("hue", 0.08), ("brightness", 0.7)]
    expected = pixels.astype(np.float64)
    expected = contrast(saturation(expected, 1.2), 1.4)
    part = np.s_[200:230, 300:340]
    expected = brightness(hue(expected[part], 0.08), 0.7)
    assert differs(recoloured(pixels, *steps)[part], expected) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma_px", [0.1, 0.3, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("size", [90, 33, 20])
def test_the_blur_is_a_gaussian(sigma_px: float, size: int) -> None:
    pixels = colours(size, size)
    expected = ndimage.gaussian_filter(pixels.astype(float), (sigma_px, sigma_px, 0), mode="nearest", truncate=6)
    assert differs(recoloured(pixels, blur_px=sigma_px), expected) <= 1
    greys = np.repeat(grey_of(expected)[..., None], 3, axis=2)
    assert differs(recoloured(pixels, grey=True, blur_px=sigma_px), greys) <= 1


def test_solarised_pixels_are_pillows() -> None:
    pixels = colours(64, 64)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(pixels)))
    assert np.array_equal(made(pixels, replace(PLAIN, solarise=True)), expected)


def test_a_crop_is_pillows_resampling_of_its_box() -> None:
    pixels = tissue(300, 300)
    box = (0.1, 0.25, 0.6, 0.95)
    for side_px in (64, 300, 70):  # 2 to 3 times smaller, larger, no whole number of bands
        theirs = Image.fromarray(pixels).crop((30, 75, 180, 285)).resize((side_px,) * 2, Image.Resampling.BICUBIC)
        for mirror in (False, True):
            ours = made(pixels, replace(PLAIN, box=box, mirror=mirror), side_px)
            assert differs(ours[:, ::-1] if mirror else ours, np.asarray(theirs)) <= 1


def test_turns_and_mirrors_are_numpys() -> None:
    pixels = tissue(64, 64)
    for turns in range(4):
        for mirror in (False, True):
            expected = np.rot90(pixels[:, ::-1] if mirror else pixels, turns)
            assert np.array_equal(made(pixels, replace(PLAIN, turns=turns, mirror=mirror)), expected)


def test_the_stain_jitter_changes_tissue_and_leaves_glass() -> None:
    pixels = tissue(64, 64)
    pixels[:20] = 255
    look = draw_looks(replace(SMALL, stain=True), np.random.default_rng(0))[0]
    assert look.stain is not None
    stained = made(pixels, replace(PLAIN, stain=(look.stain[0], (0.0, 0.0, 0.0))))
    assert differs(stained[:20], pixels[:20]) <= 1
    assert differs(stained[20:], pixels[20:]) > 5


def looks(settings: CropSettings, n: int = 2000) -> list[tuple[Look, ...]]:
    return [draw_looks(settings, np.random.default_rng([7, i])) for i in range(n)]


def share(values: list[bool]) -> float:
    return float(np.mean(values))


def test_probabilities_are_dinos() -> None:
    drawn = looks(CropSettings())
    assert {len(one) for one in drawn} == {10}
    first, second = [one[0] for one in drawn], [one[1] for one in drawn]
    local = [look for one in drawn for look in one[2:]]
    near = 4 * 0.5 / math.sqrt(2000)  # four standard deviations of a share
    assert all(look.blur_px > 0 for look in first)
    assert share([look.blur_px > 0 for look in second]) == pytest.approx(0.1, abs=near)
    assert share([look.blur_px > 0 for look in local]) == pytest.approx(0.5, abs=near)
    assert not any(look.solarise for look in first + local)
    assert share([look.solarise for look in second]) == pytest.approx(0.2, abs=near)
    for kind in (first, second, local):
        assert share([look.mirror for look in kind]) == pytest.approx(0.5, abs=near)
        assert share([look.steps != () for look in kind]) == pytest.approx(0.8, abs=near)
        assert share([look.grey for look in kind]) == pytest.approx(0.2, abs=near)
        assert not any(look.turns or look.stain for look in kind)


def test_sizes_of_the_changes_are_dinos() -> None:
    every = [look for one in looks(CropSettings(), 1000) for look in one]
    values: dict[str, list[float]] = {}
    places: dict[str, list[int]] = {}
    for look in every:
        for place, (name, value) in enumerate(look.steps):
            values.setdefault(name, []).append(value)
            places.setdefault(name, []).append(place)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        assert stats.kstest(values[name], stats.uniform(low, high - low).cdf).pvalue > 1e-4
        assert np.bincount(places[name]) == pytest.approx(len(values[name]) / 4, rel=0.1)
    blurs = [look.blur_px for look in every if look.blur_px]
    assert stats.kstest(blurs, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


def boxes_of_torchvision(scale: tuple[float, float], n: int, seed: int = 0) -> np.ndarray:
    """RandomResizedCrop.get_params of a large square, as its documentation says."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < n:
        for _ in range(10):
            area = rng.uniform(*scale)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= 1 and h <= 1:
                out.append((w, h, rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)))
                break
        else:
            out.append((1.0, 1.0, 0.0, 0.0))
    return np.array(out)


def test_boxes_are_distributed_as_torchvisions() -> None:
    drawn = looks(CropSettings())
    for number, scale in ((0, (0.4, 1.0)), (5, (0.05, 0.4))):
        left, top, right, bottom = np.array([one[number].box for one in drawn]).T
        assert min(left.min(), top.min()) >= 0
        assert max(right.max(), bottom.max()) <= 1
        ours = np.stack([right - left, bottom - top, left, top], 1)
        theirs = boxes_of_torchvision(scale, len(ours))
        for column in range(4):
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
        areas = ours[:, 0] * ours[:, 1]
        assert scale[0] <= areas.min() < scale[0] + 0.01
        assert areas.max() <= scale[1] + 1e-9


def test_an_option_changes_nothing_else_of_a_run() -> None:
    for plain, more in zip(looks(SMALL, 50), looks(replace(SMALL, turns=True, stain=True), 50), strict=True):
        for a, b in zip(plain, more, strict=True):
            assert replace(b, turns=0, stain=None) == a
    turns = [look.turns for one in looks(replace(SMALL, turns=True), 400) for look in one]
    assert np.bincount(turns) == pytest.approx(1000, rel=0.15)


def test_crops_of_a_tiny_region_are_made_too() -> None:
    for look in (one for drawn in looks(SMALL, 20) for one in drawn):
        assert made(tissue(3, 3), look, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"global_px": 0}, "global_px 0"),
        ({"local_scale": (0.4, 0.05)}, r"local_scale 0\.4 0\.05"),
        ({"global_scale": (0.4, 1.5)}, r"global_scale 0\.4 1\.5"),
        ({"aspect": (0, 1)}, "aspect 0 1"),
        ({"blur": (0.5, 2, 0)}, "blur "),
        ({"jitter": -0.1}, r"jitter -0\.1"),
        ({"hue": 0.5}, r"hue 0\.5: between 0 and 0\.167"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        CropSettings(**settings)  # type: ignore[arg-type]


def test_every_default_names_its_source() -> None:
    import inspect

    text = inspect.getsource(CropSettings)
    for field in fields(CropSettings):
        doc = text.split(f"    {field.name}: ", 1)[1].split('"""')[1]
        assert any(source in doc for source in ("DINO", "LongViT", "torchvision")), field.name
