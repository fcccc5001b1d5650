"""Canvas from JPEG tiles that the decoder reduces: close to the exact one, and the same for every strip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import tissue, write_tiff

from longvit.errors import InputError
from longvit.slides.canvas import canvas, read_canvas, write_canvas
from longvit.slides.reader import Slide, open_slide
from longvit.slides.strips import canvas_strips, plan_canvas


@pytest.fixture(scope="module")
def example() -> Slide:
    return open_slide(EXAMPLE_SLIDE)


@pytest.mark.parametrize(("side_px", "reduction"), [(1024, 1), (512, 2), (256, 4), (100, 8)])
def test_reduced_pixels_are_within_the_documented_grey_levels(example: Slide, side_px: int, reduction: int) -> None:
    exact, reduced = canvas(example, side_px), canvas(example, side_px, decode="reduced")
    assert plan_canvas(example, side_px, decode="reduced").level.reduction == reduction
    off = np.abs(exact.pixels.astype(int) - reduced.pixels)
    assert off.mean() <= 0.5
    assert np.quantile(off, 0.999) <= 8
    assert off.max() <= 32
    assert (exact.placement, exact.level) == (reduced.placement, reduced.level)


def test_the_image_is_not_shifted_by_reducing(example: Slide) -> None:
    """A shift by half a reduced pixel would leave a gradient's sign in the difference."""
    exact, reduced = (
        canvas(example, 256, decode=decode).pixels.astype(float).mean(2) for decode in ("exact", "reduced")
    )
    gradient = np.gradient(exact)
    for axis in (0, 1):
        along = gradient[axis]
        shift_px = ((reduced - exact) * along).sum() / (along * along).sum()
        assert abs(shift_px) < 0.02


def test_reduced_strips_are_the_rows_of_the_reduced_canvas(example: Slide) -> None:
    whole = canvas(example, 300, "pad", decode="reduced").pixels
    for rows in [(0, 300), (31, 97), (250, 300)]:
        strips = canvas_strips(example, 300, "pad", decode="reduced", rows=rows, strip_px=32)
        assert np.array_equal(np.concatenate([strip.pixels for strip in strips]), whole[rows[0] : rows[1]])


def test_exact_stays_the_default(example: Slide) -> None:
    assert np.array_equal(canvas(example, 256).pixels, canvas(example, 256, decode="exact").pixels)
    assert not np.array_equal(canvas(example, 256).pixels, canvas(example, 256, decode="reduced").pixels)


def test_a_codec_that_cannot_reduce_gives_the_exact_pixels(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", [tissue(512, 512)], compression="deflate"))
    assert slide.reductions(0) == (1,)
    assert np.array_equal(canvas(slide, 64).pixels, canvas(slide, 64, decode="reduced").pixels)


def test_a_damaged_tile_is_counted_with_its_full_size(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "damaged.svs"
    data = bytearray(EXAMPLE_SLIDE.read_bytes())
    with tifffile.TiffFile(EXAMPLE_SLIDE) as tiff:
        start = tiff.pages.first.dataoffsets[27]
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)
    (exact,), (reduced,) = (canvas(open_slide(path), 256, decode=decode).bad_tiles for decode in ("exact", "reduced"))
    assert exact == reduced


def test_the_file_of_a_canvas_states_the_reduction(example: Slide, tmp_path: Path) -> None:
    filters = [
        read_canvas(write_canvas(canvas(example, 256, decode=decode), tmp_path / f"{decode}.tif")).source.filter
        for decode in ("exact", "reduced")
    ]
    assert filters == ["bicubic", "JPEG decoded at 1/4, then bicubic"]


def test_an_unknown_way_to_decode_is_refused(example: Slide) -> None:
    with pytest.raises(InputError, match="decode is 'fast'; it must be one of exact, reduced"):
        canvas(example, 256, decode="fast")  # type: ignore[arg-type]
