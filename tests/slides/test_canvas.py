"""The canvas: what Pillow gives for the whole level, streamed; its file; its strips; its place on the slide."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import Pixels, pyramid, tissue, write_mrxs, write_scn, write_svs, write_tiff

from longvit.errors import InputError
from longvit.slides import resampling, strips
from longvit.slides.canvas import Canvas, canvas, read_canvas, write_canvas
from longvit.slides.placement import Box, Placement
from longvit.slides.reader import Slide, open_slide
from longvit.slides.resampling import Axis, reduce_block, reduce_rows
from longvit.slides.strips import canvas_strips, plan_canvas

BICUBIC = Image.Resampling.BICUBIC


def pillow(
    pixels: Pixels, width_px: int, height_px: int, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """Along x, then along y, as Pillow does in one call for pictures that are not far from square."""
    height = pixels.shape[0]
    left, top, right, bottom = box or (0, 0, pixels.shape[1], height)
    narrow = Image.fromarray(pixels).resize((width_px, height), BICUBIC, box=(left, 0, right, height))
    return np.asarray(narrow.resize((width_px, height_px), BICUBIC, box=(0, top, width_px, bottom)))


def largest_difference(a: Any, b: Any) -> int:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def assert_as_pillow(got: Any, expected: Pixels) -> None:
    """Within 1 grey level; where hardly anything is reduced, within 2 in one value of 100,000 (see resampling.py)."""
    got = np.asarray(got)
    assert got.shape == expected.shape
    off = np.abs(got.astype(int) - expected)
    assert off.max() <= 2
    assert (off > 1).mean() <= 1e-5


@pytest.fixture(scope="module")
def example() -> Slide:
    return open_slide(EXAMPLE_SLIDE)


@pytest.fixture(scope="module")
def example_pixels(example: Slide) -> Pixels:
    return example.read_region(0, 0, 0, *example.size_px)


@pytest.mark.parametrize("side_px", [32, 100, 512, 1000, 2048, 3100])
@pytest.mark.parametrize("threads", [1, 3])
def test_canvas_is_pillows_resize_of_the_whole_level(
    example: Slide, example_pixels: Pixels, side_px: int, threads: int
) -> None:
    got = canvas(example, side_px, threads=threads)
    assert (got.pixels.dtype, got.pixels.shape) == (np.uint8, (side_px, side_px, 3))
    assert_as_pillow(got, pillow(example_pixels, side_px, side_px))
    if side_px <= 1000:  # for hardly reduced, tall pictures Pillow 13 turns the order of its passes
        one_call = np.asarray(Image.fromarray(example_pixels).resize((side_px, side_px), BICUBIC))
        assert largest_difference(got, one_call) <= 1


def test_pad_keeps_the_aspect_ratio_on_background(example: Slide, example_pixels: Pixels) -> None:
    got = canvas(example, 512, "pad")
    box = got.placement.image_box
    assert (box.x, box.y, box.width, box.height) == (64, 0, 383, 512)
    assert (got.pixels[:, :64] == 255).all()
    assert (got.pixels[:, 447:] == 255).all()
    assert largest_difference(got.pixels[:, 64:447], pillow(example_pixels, 383, 512)) <= 1


@pytest.mark.parametrize("tile_px", [16, 48, 256, None])
@pytest.mark.parametrize("size_px", [(900, 700), (64, 1000), (1000, 40), (33, 32)])
@pytest.mark.parametrize("chunk_px", [64, 2048])
def test_tile_sizes_chunks_and_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_px: int | None, size_px: tuple[int, int], chunk_px: int
) -> None:
    monkeypatch.setattr(resampling.reduce_block, "__kwdefaults__", {"chunk_px": chunk_px})
    monkeypatch.setattr(strips, "_MIN_ROWS", 16)
    pixels = tissue(*size_px)
    more: dict[str, Any] = {"rowsperstrip": 7} if tile_px is None else {}
    path = write_tiff(tmp_path / "a.tif", [pixels], compression="deflate", tile_px=tile_px, **more)
    slide = open_slide(path)
    for side_px in (40, 256, 777):
        assert_as_pillow(canvas(slide, side_px), pillow(pixels, side_px, side_px))


def test_random_axes_reduce_as_pillow_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        width, height, out_w, out_h = (int(n) for n in rng.integers(32, 500, 4))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        rgbx = np.concatenate([pixels, rng.integers(0, 256, (height, width, 1), dtype=np.uint8)], axis=2)
        left, top = float(rng.uniform(0, width / 4)), float(rng.uniform(0, height / 4))
        right, bottom = float(rng.uniform(width / 2, width)), float(rng.uniform(height / 2, height))
        x_axis, y_axis = Axis(width, left, right - left, out_w), Axis(height, top, bottom - top, out_h)
        tile = int(rng.integers(8, 90))

        def read(x_px: int, y_px: int, out: Pixels, rgbx: Pixels = rgbx) -> list[Any]:
            out[...] = rgbx[y_px : y_px + out.shape[0], x_px : x_px + out.shape[1]]
            return []

        low, high = y_axis.needs(0, out_h)
        narrow, _ = reduce_block(read, x_axis, low, high - low, tile, chunk_px=int(rng.integers(1, 200)))
        got = np.concatenate(list(reduce_rows(narrow, y_axis, 0, out_h, low)))[..., :3]
        # Noise is the worst case: a difference of 1 after the first pass may become 2 after the second.
        assert largest_difference(got, pillow(pixels, out_w, out_h, (left, top, right, bottom))) <= 2


def test_ready_is_the_inverse_of_needs() -> None:
    for axis in (Axis(1000, 0, 1000, 77), Axis(1000, 3.3, 900.5, 900), Axis(50, 0, 50, 400), Axis(5000, 0, 5000, 3)):
        for have in range(0, axis.n_in + 1, 7):
            ready = axis.ready(have)
            assert ready == 0 or axis.needs(0, ready)[1] <= have or have >= axis.needs(0, axis.n_out)[1]
            if ready < axis.n_out:
                assert axis.needs(0, ready + 1)[1] > have
        assert axis.ready(axis.n_in) == axis.n_out


def test_the_smallest_level_that_still_has_the_pixels_is_read(tmp_path: Path) -> None:
    slide = open_slide(write_svs(tmp_path / "a.svs", pyramid(tissue(1024, 768), 4)))
    for side_px, fit, level in [
        (96, "stretch", 3),
        (97, "stretch", 2),
        (192, "stretch", 2),
        (193, "stretch", 1),
        (2000, "stretch", 0),
        (128, "pad", 3),
        (129, "pad", 2),
    ]:
        assert plan_canvas(slide, side_px, fit).level.index == level  # type: ignore[arg-type]
    got = slide.canvas(192)
    assert (got.level, got.tiles) == (2, 12)
    level_2 = slide.read_region(0, 0, 2, 256, 192)
    assert largest_difference(got, pillow(level_2, 192, 192)) <= 1


def test_only_the_bounds_are_on_the_canvas(tmp_path: Path) -> None:
    pixels = tissue(384, 256)
    slide = open_slide(write_scn(tmp_path / "a.scn", pyramid(pixels, 2), 104, 52, (600, 500)))
    got = slide.canvas(200)
    assert got.level == 0
    inside = slide.read_region(104, 52, 0, 384, 256)
    # Away from the rim: there the filter sees the background outside the bounds.
    assert largest_difference(got.pixels[4:-4, 4:-4], pillow(inside, 200, 200)[4:-4, 4:-4]) <= 1
    assert got.placement.to_level0(0, 0) == (104, 52)
    assert got.placement.to_level0(200, 200) == (488, 308)


def test_transparent_is_the_slides_own_background(tmp_path: Path) -> None:
    slide = open_slide(write_mrxs(tmp_path / "a.mrxs", tissue(256, 256), skip=((1, 1), (2, 1), (1, 2), (2, 2))))
    pixels = np.asarray(slide.canvas(128, "pad"))
    assert (pixels[40:88, 40:88] == 240).all()


def test_both_readers_give_the_same_canvas() -> None:
    both = [open_slide(EXAMPLE_SLIDE, reader=reader).canvas(700) for reader in ("tiff", "openslide")]  # type: ignore[arg-type]
    assert largest_difference(both[0], both[1]) <= 1


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_strips_are_the_canvas(example: Slide, fit: Any) -> None:
    whole = canvas(example, 500, fit).pixels
    for rows, strip_px in [((0, 500), 64), ((0, 500), 1), ((32, 416), 96), ((100, 101), None), ((450, 500), 7)]:
        got = list(canvas_strips(example, 500, fit, rows=rows, strip_px=strip_px))
        assert [strip.y_px for strip in got] == list(range(rows[0], rows[1], strip_px or rows[1] - rows[0]))
        joined = np.concatenate([strip.pixels for strip in got])
        assert np.array_equal(joined, whole[rows[0] : rows[1]])


def random_slides(tmp_path: Path) -> list[Slide]:
    """Both readers, tiles and strips, levels whose downsample is no whole number, bounds, transparency, damage."""
    odd = [tissue(w, h) for w, h in ((1003, 771), (334, 257))]
    svs = write_svs(tmp_path / "odd.svs", odd, tile_px=48)
    damaged = bytearray(svs.read_bytes())
    with tifffile.TiffFile(svs) as tiff:
        for page in tiff.pages[:2]:
            damaged[page.dataoffsets[5] : page.dataoffsets[5] + 2] = b"xx"  # type: ignore[union-attr]
    (tmp_path / "damaged.svs").write_bytes(damaged)
    low_strips = write_tiff(tmp_path / "a.tif", [tissue(700, 900)], compression="deflate", tile_px=None, rowsperstrip=7)
    return [
        open_slide(svs, reader="tiff"),
        open_slide(svs, reader="openslide"),
        open_slide(tmp_path / "damaged.svs", reader="tiff"),
        open_slide(tmp_path / "damaged.svs", reader="openslide"),
        open_slide(low_strips),
        open_slide(write_scn(tmp_path / "a.scn", pyramid(tissue(384, 512), 2), 104, 52, (600, 700))),
        open_slide(write_mrxs(tmp_path / "a.mrxs", tissue(256, 256), skip=((1, 1), (2, 1)))),
        open_slide(EXAMPLE_SLIDE),
    ]


def test_rows_read_alone_have_the_bytes_of_the_whole_canvas(tmp_path: Path) -> None:
    """A rank reads its rows alone; they must be those that one process would read, to the last bit."""
    rng = np.random.default_rng(0)
    for slide in random_slides(tmp_path):
        for side_px, fit in [(int(n), str(rng.choice(["stretch", "pad"]))) for n in rng.integers(32, 700, 3)]:
            whole = canvas(slide, side_px, fit, threads=1).pixels  # type: ignore[arg-type]
            for _ in range(6):
                first, end = sorted(int(n) for n in rng.choice(side_px + 1, 2, replace=False))
                strip_px, threads = int(rng.integers(1, 100)), int(rng.integers(1, 3))
                got = canvas_strips(slide, side_px, fit, rows=(first, end), strip_px=strip_px, threads=threads)  # type: ignore[arg-type]
                joined = np.concatenate([strip.pixels for strip in got])
                assert np.array_equal(joined, whole[first:end]), (slide, side_px, fit, first, end, strip_px)


def test_wide_slide_padded_above_and_below(tmp_path: Path) -> None:
    pixels = tissue(800, 200)
    slide = open_slide(write_tiff(tmp_path / "a.tif", [pixels], compression="deflate"))
    whole = canvas(slide, 400, "pad").pixels
    assert (whole[:150] == 255).all()
    assert (whole[250:] == 255).all()
    assert largest_difference(whole[150:250], pillow(pixels, 400, 100)) <= 1
    for rows in [(0, 150), (0, 151), (149, 251), (250, 400), (200, 210)]:
        got = np.concatenate([strip.pixels for strip in canvas_strips(slide, 400, "pad", rows=rows, strip_px=32)])
        assert np.array_equal(got, whole[rows[0] : rows[1]])


def test_a_strip_reads_only_the_tiles_that_it_needs(example: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    honest = Slide.read_block

    def record(self: Slide, level: int, x_px: int, y_px: int, out: Pixels, **how: int) -> list[Any]:
        read.append((y_px, y_px + out.shape[0]))
        return honest(self, level, x_px, y_px, out, **how)

    monkeypatch.setattr(Slide, "read_block", record)
    list(canvas_strips(example, 512, rows=(256, 288)))
    scale, tile_px = 2967 / 512, 240
    assert min(low for low, _ in read) > 256 * scale - 2 * scale - 2 - tile_px
    assert max(high for _, high in read) < 288 * scale + 2 * scale + 2 + tile_px


def test_no_tile_is_decoded_twice(example: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles: list[tuple[int, int]] = []
    reader: Any = example.opened()[0].reader
    honest = type(reader)._read_tile

    def record(self: Any, file: Any, tiled: Any, column: int, row: int, *args: Any) -> None:
        tiles.append((column, row))
        honest(self, file, tiled, column, row, *args)

    monkeypatch.setattr(type(reader), "_read_tile", record)
    monkeypatch.setattr(resampling.reduce_block, "__kwdefaults__", {"chunk_px": 480})
    got = canvas(example, 300)
    assert len(tiles) == len(set(tiles)) == got.tiles == 130


def test_rows_in_flight_are_bounded_whatever_the_number_of_threads(
    example: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that takes no strips stops the decoding; the budget, not the threads, says how far ahead it is."""
    started: list[int] = []
    honest = strips.reduce_block

    def record(read: Any, axis: Any, y_px: int, *args: Any) -> Any:
        started.append(y_px)
        return honest(read, axis, y_px, *args)

    monkeypatch.setattr(strips, "reduce_block", record)
    one_row = plan_canvas(example, 512).bytes_in_flight(240)
    stream = canvas_strips(example, 512, strip_px=16, threads=64, memory_bytes=int(2.5 * one_row))
    next(stream)
    time.sleep(0.3)
    assert len(started) <= 4  # the row of the first strip, perhaps one more for its filter, and two in flight
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_decoding_goes_on_while_the_consumer_works(example: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    honest = strips.reduce_block

    def record(read: Any, axis: Any, y_px: int, *args: Any) -> Any:
        if y_px >= 720:
            started.set()
        return honest(read, axis, y_px, *args)

    monkeypatch.setattr(strips, "reduce_block", record)
    stream = canvas_strips(example, 512, strip_px=16, threads=2)
    next(stream)  # needs the first row of tiles only
    assert started.wait(10)
    stream.close()


def test_progress_counts_every_tile_once_and_ends_at_the_total(
    example: Slide, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, int]] = []
    example.canvas(256, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (130, 130)
    assert all(total == 130 for _, total in calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    example.canvas(256, progress=True)
    log = capsys.readouterr().err
    assert "read CMU-1-Small-Region.svs: 130/130 tiles (100 %)" in log
    assert "\r" not in log


def test_an_error_in_the_progress_call_stops_the_threads(example: Slide) -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError("stopped")

    with pytest.raises(InterruptedError):
        example.canvas(256, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


@pytest.mark.parametrize("side_px", [0, -5, 2.5, True])
def test_a_side_that_is_no_whole_number(example: Slide, side_px: Any) -> None:
    with pytest.raises(InputError, match="is not a positive whole number"):
        example.canvas(side_px)


def test_an_unknown_fit_and_rows_outside(example: Slide) -> None:
    with pytest.raises(InputError, match="fit 'crop' is unknown; take one of stretch, pad"):
        example.canvas(64, "crop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows 60 to 70 are outside a canvas of 64 rows"):
        list(canvas_strips(example, 64, rows=(60, 70)))


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("bounds", [Box(0, 0, 2220, 2967), Box(100, 7, 4000, 3), Box(5, 5, 64, 64)])
def test_placement_goes_there_and_back(fit: Any, bounds: Box) -> None:
    placement = Placement(bounds, 512, fit)
    box = placement.image_box
    assert placement.to_level0(box.x, box.y) == (bounds.x, bounds.y)
    assert placement.to_level0(box.right, box.bottom) == pytest.approx((bounds.right, bounds.bottom))
    assert placement.to_canvas(bounds.right, bounds.bottom) == pytest.approx((box.right, box.bottom))
    x, y = np.linspace(0, 512, 9), np.linspace(0, 512, 9)
    there = placement.to_level0(x, y)
    assert np.allclose(placement.to_canvas(*there), (x, y))
    if fit == "pad":
        assert max(box.width, box.height) == 512
        assert min(box.width, box.height) >= 1
    else:
        assert (box.width, box.height) == (512, 512)


def same(a: Canvas, b: Canvas) -> bool:
    others = [field.name for field in dataclasses.fields(a) if field.name != "pixels"]
    return (a.pixels == b.pixels).all() and all(getattr(a, name) == getattr(b, name) for name in others)


def test_canvas_file_comes_back_whole_and_any_viewer_reads_it(example: Slide, tmp_path: Path) -> None:
    made = example.canvas(700, "pad")
    path = write_canvas(made, tmp_path / "new folder" / "a.tif")
    assert same(read_canvas(path), made)
    assert np.asarray(Image.open(path)).shape == (700, 700, 3)
    assert (np.asarray(Image.open(path)) == made.pixels).all()
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.is_tiled
    record = json.loads((tmp_path / "new folder" / "a.tif.json").read_text())
    assert record["slide"]["identity"] == example.identity()
    assert record["slide"]["mpp"] == {"x": 0.499, "y": 0.499, "source": "openslide.mpp-x"}
    assert record["slide"]["reader"] == "tiff"
    assert record["slide"]["filter"] == "bicubic"
    assert (record["fit"], record["level"], record["tiles"], record["bad_tiles"]) == ("pad", 0, 130, [])
    again = open_slide(path)
    assert again.mpp is not None
    assert (again.mpp.x, again.mpp.y) == pytest.approx(made.mpp, rel=1e-4)
    assert (again.read_region(0, 0, 0, 700, 700) == made.pixels).all()


def test_canvas_of_a_slide_without_mpp_carries_none(tmp_path: Path) -> None:
    made = open_slide(write_tiff(tmp_path / "a.tif", [tissue(128, 128)])).canvas(64)
    assert made.mpp is None
    path = write_canvas(made, tmp_path / "c.tif")
    assert read_canvas(path).mpp is None
    assert open_slide(path).mpp is None
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.tags.valueof(296) == 1  # no unit


def test_a_full_disk_leaves_the_old_canvas_whole(
    example: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_canvas(example.canvas(64), tmp_path / "a.tif")
    before = path.read_bytes()

    def full(file: Path, *args: Any, **kwargs: Any) -> None:
        Path(file).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(InputError, match=r"a\.tif: not written: no space left on the disk"):
        write_canvas(example.canvas(96), path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "a.tif.json"]


def test_what_is_no_canvas_file_is_refused(tmp_path: Path, example: Slide) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_canvas(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"CMU-1-Small-Region\.svs: not a canvas of longvit, or damaged"):
        read_canvas(EXAMPLE_SLIDE)
    path = write_canvas(example.canvas(300), tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:-30_000])
    with pytest.raises(InputError, match=r"a\.tif: not a canvas of longvit, or damaged"):
        read_canvas(path)
