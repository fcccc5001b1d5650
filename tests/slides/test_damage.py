"""A damaged tile never ends the slide: it is background, counted, and reported as a value."""

from __future__ import annotations

import errno
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import overwrite, pyramid, tile_place, tissue, write_mrxs, write_svs, write_tiff

from longvit.errors import InputError
from longvit.slides.openslide_reader import OpenSlideReader
from longvit.slides.reader import open_slide
from longvit.slides.strips import canvas_strips

WIDTH, HEIGHT, TILE = 384, 256, 64
BAD = 8  # the tile in column 2 of row 1
BAD_AREA = (slice(64, 128), slice(128, 192))


def damage(path: Path, kind: str, index: int = BAD) -> None:
    offset, count = tile_place(path, index)
    noise = np.random.default_rng(0).bytes(count)
    if kind == "zeros":
        overwrite(path, offset, bytes(count))
    elif kind == "noise":
        overwrite(path, offset, noise)
    elif kind == "cut off":
        overwrite(path, offset + count // 2, bytes(count - count // 2))
    elif kind == "beyond the file":
        with tifffile.TiffFile(path) as tiff:
            tag = tiff.pages.first.tags[324]
            size = 2 if int(tag.dtype) == 3 else 4
            place = tag.valueoffset + size * index
        overwrite(path, place, struct.pack("<H" if size == 2 else "<I", 60_000 if size == 2 else 0x7FFFFFFF))


@pytest.mark.parametrize(
    ("reader", "kind"),
    # OpenSlide mends a tile that is cut off without a word: only the fast path sees that damage.
    [("tiff", "zeros"), ("tiff", "noise"), ("tiff", "cut off"), ("openslide", "zeros"), ("openslide", "noise")],
)
@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw"])
def test_damaged_tile_is_background_and_reported(tmp_path: Path, reader: Any, kind: str, compression: str) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)], compression=compression)
    whole = open_slide(path).read_region(0, 0, 0, WIDTH, HEIGHT)
    damage(path, kind)
    slide = open_slide(path, reader=reader)
    got = slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    (tile,) = slide.bad_tiles
    assert (tile.level, tile.x_level0_px, tile.y_level0_px, tile.width_px, tile.height_px) == (0, 128, 64, 64, 64)
    assert tile.message
    assert "level-0 (128, 64)" in str(tile)
    assert (got[BAD_AREA] == 255).all()
    got[BAD_AREA] = whole[BAD_AREA]
    assert (got == whole).all()


@pytest.mark.parametrize(
    ("compression", "kind"),
    # A lossless WebP whose second half is zeros decodes without complaint: no decoder sees that.
    [
        (c, k)
        for c in ("jpeg2000", "zstd", "webp", "jpeg")
        for k in ("zeros", "noise", "cut off", "beyond the file")
        if (c, k) != ("webp", "cut off")
    ],
)
def test_damaged_tile_of_other_codecs(tmp_path: Path, kind: str, compression: str) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)], compression=compression)
    damage(path, kind)
    slide = open_slide(path)
    got = slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles] == [(128, 64)]
    assert (got[BAD_AREA] == 255).all()
    assert got[:64].mean() < 254


def test_a_jpeg_header_that_declares_gigabytes_costs_one_tile(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)], compression="jpeg")
    offset, count = tile_place(path, BAD)
    at = path.read_bytes().index(b"\xff\xc0", offset, offset + count)
    overwrite(path, at + 5, struct.pack(">HH", 65_500, 65_500))
    slide = open_slide(path)
    tracemalloc.start()
    slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles] == [(128, 64)]
    assert peak_bytes < 50e6


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_reading_goes_on_after_a_damaged_tile(tmp_path: Path, reader: Any) -> None:
    """OpenSlide puts an error on its handle for ever; a region elsewhere must not suffer, and nothing counts twice."""
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    damage(path, "zeros")
    slide = open_slide(path, reader=reader)
    for _ in range(3):
        assert slide.read_region(128, 64, 0, 64, 64).min() == 255
        assert slide.read_region(0, 0, 0, 64, 64).min() < 250
    assert len(slide.bad_tiles) == 1


def test_a_part_of_a_bad_tile_is_all_that_is_lost_by_openslide(tmp_path: Path) -> None:
    """Several bad tiles in one region: the pieces that fail are the tiles, not the region."""
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    whole = open_slide(path).read_region(0, 0, 0, WIDTH, HEIGHT)
    for index in (0, BAD, 23):
        damage(path, "zeros", index)
    slide = open_slide(path, reader="openslide")
    got = slide.read_region(-10, -10, 0, WIDTH + 20, HEIGHT + 20)[10:-10, 10:-10]
    assert len(slide.bad_tiles) == 3
    changed = (got != whole).any(axis=2)
    assert changed.sum() <= 3 * 64 * 64
    assert not changed[:64, 64:].any()


def test_another_threads_error_is_not_counted(tmp_path: Path) -> None:
    """The shared handle fails because of someone else: the region is read again before anything is counted."""
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    damage(path, "zeros")
    reader = OpenSlideReader(path)
    out = np.empty((64, 64, 4), np.uint8)
    broken = reader._current()
    with pytest.raises(Exception, match="JPEG"):
        reader._read(broken, 0, 128, 64, out)
    assert reader._current() is broken
    assert reader.read_block(0, 0, 0, out) == []
    assert out[..., :3].min() < 250
    assert reader._current() is not broken  # so that the next region need not fail first


def test_damaged_mrxs_tile(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs", tissue(WIDTH, HEIGHT))
    data = tmp_path / "a" / "Data0000.dat"
    content = bytearray(data.read_bytes())
    second = content.index(b"\xff\xd8\xff", 10)
    content[second : second + 200] = bytes(200)
    data.write_bytes(bytes(content))
    slide = open_slide(path)
    got = slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert len(slide.bad_tiles) == 1
    assert (got[:64, 64:128] == 240).all()
    assert got[:64, :64].min() < 235


def test_canvas_counts_bad_tiles_and_the_limit_makes_them_a_failure(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    for index in (1, BAD):
        damage(path, "zeros", index)
    canvas = open_slide(path).canvas(128)
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in canvas.bad_tiles] == [(64, 0), (128, 64)]
    assert canvas.tiles == 24
    assert open_slide(path).canvas(128, max_bad_tiles=2).bad_tiles == canvas.bad_tiles
    with pytest.raises(InputError, match=r"a\.tif: 2 unreadable tiles, more than the 1 of --max-bad-tiles"):
        open_slide(path).canvas(128, max_bad_tiles=1)
    with pytest.raises(InputError, match=r"more than the 0 of --max-bad-tiles; one of them: level 0, 64 × 64 px at"):
        open_slide(path).canvas(128, max_bad_tiles=0)


def test_bad_tiles_of_a_lower_level_are_placed_in_level_0(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(512, 512), 2))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[1]
        offset, count = page.dataoffsets[5], page.databytecounts[5]
    overwrite(path, offset, bytes(count))
    canvas = open_slide(path).canvas(64)
    (tile,) = canvas.bad_tiles
    assert (canvas.level, tile.level, tile.x_level0_px, tile.y_level0_px) == (1, 1, 128, 128)


def test_the_damage_stands_in_its_place_on_the_canvas(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [np.zeros((256, 256, 3), np.uint8)], compression="deflate")
    damage(path, "zeros", 5)  # column 1, row 1 of 4 × 4
    pixels = np.asarray(open_slide(path).canvas(64))
    assert (pixels[18:30, 18:30] == 255).all()
    assert pixels[:12].max() == 0
    assert pixels[36:].max() == 0


def test_a_slide_of_which_nothing_can_be_read_is_no_blank_canvas(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    for index in range(24):
        damage(path, "zeros", index)
    for reader in ("tiff", "openslide"):
        with pytest.raises(InputError, match=r"a\.tif: not one tile of level 0 can be read; level 0, 64 × 64 px"):
            open_slide(path, reader=reader).canvas(128)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="not one tile of level 0"):  # nor as a stream, which is what is embedded
            list(open_slide(path, reader=reader).strips(128, strip_px=32))  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "ends"), [(errno.ESTALE, True), (errno.EIO, False)])
def test_a_drive_that_is_gone_ends_the_slide_a_bad_sector_does_not(
    monkeypatch: pytest.MonkeyPatch, code: int, ends: bool
) -> None:
    slide = open_slide(EXAMPLE_SLIDE)
    honest, calls = os.pread, [0]

    def fails_once(*args: int) -> bytes:
        calls[0] += 1
        if calls[0] == 20:
            raise OSError(code, os.strerror(code))
        return honest(*args)

    monkeypatch.setattr(os, "pread", fails_once)
    if ends:
        with pytest.raises(InputError, match=r"Small-Region\.svs: cannot be read any more"):
            slide.canvas(64)
    else:
        assert len(slide.canvas(64).bad_tiles) == 1


def test_a_file_that_is_gone_when_openslide_opens_it_again_ends_the_slide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)])
    damage(path, "zeros")
    slide = open_slide(path, reader="openslide")
    path.unlink()
    with pytest.raises(InputError, match=r"a\.tif: cannot be read any more"):
        slide.read_region(0, 0, 0, WIDTH, HEIGHT)


def test_random_damage_inside_the_real_slide_never_ends_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a.svs"
    path.write_bytes(EXAMPLE_SLIDE.read_bytes())
    hit = set()
    for index in rng.choice(130, 40, replace=False):
        offset, count = tile_place(path, int(index))
        overwrite(path, offset + int(rng.integers(2, count - 8)), rng.bytes(8))
        hit.add((int(index) % 10 * 240, int(index) // 10 * 240))
    slide = open_slide(path)
    canvas = slide.canvas(512)
    seen = {(tile.x_level0_px, tile.y_level0_px) for tile in canvas.bad_tiles}
    assert seen <= hit
    # JPEG has no checksum: about one such damage in five is seen by no decoder.
    assert len(seen) >= 25
    assert sum(len(strip.bad_tiles) for strip in canvas_strips(slide, 512, strip_px=100)) == len(seen)
