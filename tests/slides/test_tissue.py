"""The tissue mask: the same µm on every scanner, nothing on a blank slide, no ink."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE

from longvit.errors import InputError
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide
from longvit.slides.tissue import Tissue, TissueSettings, _grown, find_tissue, otsu, tissue_of_canvas

GLASS, PINK, PURPLE = (241, 239, 243), (226, 164, 196), (120, 84, 160)
UM_PER_PX = 8.0


def picture(
    width: int = 400, height: int = 300, colour: tuple[int, int, int] = GLASS, noise: float = 2.0
) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(colour, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def paint(pixels: np.ndarray, colour: tuple[int, int, int], x: int, y: int, width: int, height: int) -> None:
    pixels[y : y + height, x : x + width] = colour


def tissue_of(pixels: np.ndarray, um_per_px: float = UM_PER_PX, **settings: float) -> Tissue:
    """Of a picture with `um_per_px`, of a slide at 0.25 µm/px that begins at (0, 0)."""
    height, width = pixels.shape[:2]
    scale = um_per_px / 0.25
    bounds = Box(0, 0, width * scale, height * scale)
    return find_tissue(pixels, bounds, Mpp(0.25, 0.25, "explicit"), settings=TissueSettings(**settings))


def test_otsu_is_the_best_of_all_thresholds_tried_one_by_one() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.beta(2, 40, 900), rng.beta(8, 14, 300)])
    bins = 64
    level = np.minimum((values * bins).astype(int), bins - 1)
    best, wanted = -1.0, 0.0
    for border in range(1, bins):
        low, high = [(v + 0.5) / bins for v in level if v < border], [(v + 0.5) / bins for v in level if v >= border]
        if low and high:
            between = len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2
            if between > best:
                best, wanted = between, border / bins
    assert otsu(values, bins) == pytest.approx(wanted, abs=1e-12)


def test_share_of_a_tile_is_exact_where_it_cuts_pixels_of_the_mask() -> None:
    rng = np.random.default_rng(2)
    mask = rng.random((7, 9)) < 0.5
    tissue = Tissue(mask, Box(100, 50, 90, 140), (1.0, 1.0), 0.1, (1, 1, 1), 0.0)  # a pixel is 10 × 20 level-0 px
    fine = np.kron(mask, np.ones((20, 10)))  # a pixel per level-0 px
    for x, y, width, height in ((100, 50, 10, 20), (103, 61, 25, 33), (95, 40, 30, 30), (180, 180, 30, 30)):
        wanted = 0.0
        for j in range(y, y + height):
            for i in range(x, x + width):
                if 0 <= j - 50 < 140 and 0 <= i - 100 < 90:
                    wanted += fine[j - 50, i - 100]
        share = tissue.share(np.array([x]), np.array([y]), width, height)
        assert share[0] == pytest.approx(wanted / (width * height), abs=1e-12)


def test_a_blank_slide_has_no_tissue() -> None:
    for colour in (GLASS, (255, 255, 255), (232, 229, 214), (206, 208, 210)):
        assert not tissue_of(picture(colour=colour, noise=4)).mask.any(), colour


def test_a_picture_without_glass_is_all_tissue() -> None:
    pixels = picture(colour=PINK, noise=10)
    paint(pixels, PURPLE, 100, 100, 80, 80)
    assert tissue_of(pixels).mask.all()


def test_pale_and_dark_tissue_on_tinted_glass_are_both_found() -> None:
    pixels = picture(colour=(236, 233, 222))
    paint(pixels, (224, 196, 200), 50, 60, 100, 90)
    paint(pixels, PURPLE, 220, 60, 100, 90)
    mask = tissue_of(pixels).mask
    assert mask[62:148, 52:148].all()
    assert mask[62:148, 222:318].all()
    assert mask.mean() == pytest.approx(2 * 100 * 90 / mask.size, rel=0.1)


@pytest.mark.parametrize("um_per_px", [2.0, 4.0, 8.0])
def test_holes_and_pieces_are_measured_in_um_whatever_the_thumbnail(um_per_px: float) -> None:
    small = picture()
    paint(small, PINK, 40, 40, 200, 200)
    paint(small, GLASS, 60, 60, 22, 22)  # 31,000 µm²: a gland
    paint(small, GLASS, 120, 120, 60, 60)  # 230,000 µm²: glass
    paint(small, PINK, 300, 40, 15, 15)  # 14,400 µm²: dirt
    paint(small, PINK, 300, 200, 40, 40)  # 102,400 µm²: a piece
    factor = round(UM_PER_PX / um_per_px)
    tissue = tissue_of(np.asarray(Image.fromarray(small).resize((400 * factor, 300 * factor), 0)), um_per_px)
    assert tissue.mask.shape == (300, 400)
    assert tissue.px_um == (8.0, 8.0)
    assert tissue.mask[71, 71]
    assert not tissue.mask[150, 150]
    assert not tissue.mask[47, 307]
    assert tissue.mask[220, 320]
    assert tissue.area_mm2 == pytest.approx((200 * 200 - 60 * 60 + 40 * 40) * 64e-6, rel=0.05)
    assert tissue_of(small, min_piece_um2=0).mask[47, 307]
    assert not tissue_of(small, max_hole_um2=10_000).mask[71, 71]


@pytest.mark.parametrize(
    ("name", "ink"),
    [("blue", (38, 66, 160)), ("green", (20, 130, 80)), ("black", (28, 28, 32)), ("red", (214, 18, 22))],
)
def test_pen_is_no_tissue(name: str, ink: tuple[int, int, int]) -> None:
    pixels = picture()
    paint(pixels, PINK, 60, 60, 120, 120)
    paint(pixels, PURPLE, 90, 90, 40, 40)
    paint(pixels, ink, 220, 20, 14, 250)  # a stroke of 112 µm × 2 mm
    rgb = np.asarray(Image.fromarray(pixels).resize((800, 600), Image.Resampling.BICUBIC))  # with soft edges
    tissue = tissue_of(rgb, UM_PER_PX / 2)
    assert tissue.mask[60:180, 60:180].mean() > 0.97
    assert not tissue.mask[:, 205:].any()
    assert tissue.ink_mm2 > 0.2


def test_haematoxylin_of_a_brown_slide_is_no_ink() -> None:
    pixels = picture()
    paint(pixels, (150, 168, 196), 60, 60, 120, 120)  # counterstain
    paint(pixels, (120, 80, 50), 90, 90, 40, 40)  # DAB
    tissue = tissue_of(pixels)
    assert tissue.mask[64:176, 64:176].all()
    assert tissue.ink_mm2 == 0


def test_the_scanners_black_is_no_tissue_and_white_fill_is_no_glass() -> None:
    pixels = picture(colour=(222, 220, 212))
    pixels[:, :100] = 255  # not scanned
    pixels[:, 380:] = 0
    paint(pixels, PINK, 160, 60, 120, 120)
    tissue = tissue_of(pixels)
    assert tissue.glass == pytest.approx((222 / 255, 220 / 255, 212 / 255), abs=0.02)
    assert tissue.mask[64:176, 164:276].all()
    assert not tissue.mask[:, :150].any()
    assert not tissue.mask[:, 290:].any()


def test_a_real_slide() -> None:
    with open_slide(EXAMPLE_SLIDE) as slide:
        tissue = tissue_of_canvas(slide.canvas(1024, "pad"))
        width_px, height_px = slide.size_px
        # Where the mask says tissue the slide is darker than where it says glass.
        overview = np.asarray(Image.fromarray(slide.read_region(0, 0, 0, width_px, height_px)).convert("L"))
    assert tissue.bounds == Box(0, 0, width_px, height_px)
    assert tissue.px_um == pytest.approx((8, 8), rel=0.01)
    mask = np.asarray(Image.fromarray(tissue.mask).resize((width_px, height_px), 0))
    assert 0.3 < mask.mean() < 0.95
    assert overview[mask].mean() < overview[~mask].mean() - 20
    assert tissue.ink_mm2 == 0


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="more than 0"):
        TissueSettings(mpp=0)
    with pytest.raises(InputError, match="at least 0"):
        TissueSettings(max_hole_um2=-1)


@pytest.mark.parametrize("by_um", [0.0, 3.9, 8.0, 32.0, 60.0, 500.0])
@pytest.mark.parametrize("px_um", [(8.0, 8.0), (7.3, 11.9), (40.0, 2.5)])
def test_a_mask_grows_by_the_distance_in_um_and_not_by_a_square(by_um: float, px_um: tuple[float, float]) -> None:
    from scipy.ndimage import distance_transform_edt

    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 50), (37, 1), (61, 47)):
        for fraction in (0.0, 0.003, 0.05, 1.0):
            mask = rng.random(shape) < fraction
            expected = distance_transform_edt(~mask, sampling=px_um) <= by_um if mask.any() else mask
            np.testing.assert_array_equal(_grown(mask, by_um, px_um), expected)
