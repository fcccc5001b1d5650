"""The measures of quality: damage of a real slide is found, and each kind is distinguished from the others."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from tests.conftest import EXAMPLE_SLIDE, ROOT

from longvit.quality.bubbles import find_bubbles
from longvit.quality.focus import SHARP, focus_of, probe_focus
from longvit.quality.folds import find_folds
from longvit.quality.overview import Overview, overview_of
from longvit.quality.pen import COLOURS, find_pen
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide

UM_PER_PX = 0.499
TRIALS = range(4)


@cache
def damage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slide_damage", ROOT / "benchmarks" / "slide_damage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slide_damage"] = module
    spec.loader.exec_module(module)
    return module


@cache
def field() -> np.ndarray:
    """Tissue of the example slide without the follicle, whose keratin has bands: 1,000 × 980 px."""
    with open_slide(EXAMPLE_SLIDE) as slide:
        return slide.read_region(640, 1980, 0, 1000, 980)


def seen(pixels: np.ndarray, um_per_px: float = UM_PER_PX) -> Overview:
    bounds = Box(0, 0, pixels.shape[1], pixels.shape[0])
    return overview_of(pixels, bounds, Mpp(um_per_px, um_per_px, "explicit"), (255, 255, 255))


def damaged(change: Callable[..., np.ndarray], seed: int, *more: str) -> Overview:
    return seen(change(field(), UM_PER_PX, np.random.default_rng(seed), *more))


def test_the_undamaged_field_has_nothing() -> None:
    overview = seen(field())
    assert find_folds(overview).score < 1
    assert find_bubbles(overview).share == 0
    assert all(mark.share == 0 for mark in find_pen(overview).values())
    focus = probe_focus(field())
    assert focus is not None
    assert focus > SHARP


@pytest.mark.parametrize("sigma_px", [1, 1.5, 2, 3, 5, 8])
def test_blur_is_found_whatever_its_width(sigma_px: float) -> None:
    focus = probe_focus(damage().blur(field(), sigma_px))
    assert focus is not None
    assert focus < SHARP


def test_focus_does_not_depend_on_contrast_as_the_variance_of_the_laplacian_does() -> None:
    pale = (255 - (255 - field().astype(float)) * 0.5).astype(np.uint8)
    strong, weak = probe_focus(field(), (1, 1, 1)), probe_focus(pale, (1.1, 1.1, 1.1))
    assert strong is not None
    assert weak is not None
    assert weak == pytest.approx(strong, abs=0.3)  # an octave is the scale of a blur of 1 px


def test_glass_has_no_focus_and_no_probe_gives_none() -> None:
    assert probe_focus(np.full((256, 256, 3), 240, np.uint8)) is None
    assert focus_of([None, None]).octaves is None
    half = focus_of([0.2, SHARP - 1, None, SHARP - 0.5, 0.1])
    assert (half.probes, half.blurred_share) == (4, 0.5)


@pytest.mark.parametrize("seed", TRIALS)
def test_a_fold_is_found_and_is_no_bubble(seed: int) -> None:
    overview = damaged(damage().fold, seed)
    assert find_folds(overview).score > 1
    assert find_folds(overview).share > 0.02
    assert find_bubbles(overview).share == 0
    assert find_folds(overview, apart=find_folds(overview).mask).share == 0  # under pen it is no fold


@pytest.mark.parametrize("seed", TRIALS)
def test_a_bubble_is_found_with_its_area(seed: int) -> None:
    found = find_bubbles(damaged(damage().bubble, seed))
    assert found.share > 0.02
    area_um2 = found.mask.sum() * 64.0
    assert 0.5 * np.pi * 80**2 < area_um2 < 2.5 * np.pi * 160**2


def test_a_grey_ring_around_sharp_tissue_is_no_bubble() -> None:
    pixels = field().copy()
    y, x = np.mgrid[:980, :1000]
    pixels[np.abs(np.hypot(y - 490, x - 500) - 240) < 16] //= 3
    assert find_bubbles(seen(pixels)).share == 0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("seed", TRIALS)
def test_pen_on_tissue_is_found_in_its_colour(colour: str, seed: int) -> None:
    marks = find_pen(damaged(damage().pen, seed, colour))
    assert marks[colour].score > 1
    assert max(marks, key=lambda name: marks[name].score) == colour


def test_haematoxylin_and_blood_are_not_pen() -> None:
    for optical_density in ((0.9, 0.97, 0.4), (0.1, 0.75, 0.5)):  # dense nuclei; erythrocytes
        pixels = np.full((100, 100, 3), 255, np.uint8)
        pixels[20:80, 20:80] = np.rint(255 * 10 ** -np.array(optical_density))
        assert all(mark.share == 0 for mark in find_pen(seen(pixels, 8.0)).values())


def test_an_overview_without_tissue_has_no_artefact_and_no_division_by_zero() -> None:
    overview = seen(np.full((64, 80, 3), 243, np.uint8), 8.0)
    assert find_folds(overview).share == find_bubbles(overview).share == 0
    assert all(mark.share == 0 for mark in find_pen(overview).values())
