"""Tiles of the viewer against the reader, and their geometry."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.slides.slide_files import pyramid as halved_levels
from tests.slides.slide_files import tissue, write_mrxs, write_svs
from tests.small_slides import write_slide

from longvit.errors import InputError
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide
from longvit.viewer.byte_cache import ByteCache
from longvit.viewer.open_slides import OpenedSlide, OpenSlides
from longvit.viewer.pyramid import TILE_PX, Pyramid, SlidePixels

EXAMPLE = ROOT / "examples" / "CMU-1-Small-Region.svs"


def test_tiles_of_the_largest_level_have_the_readers_pixels() -> None:
    with open_slide(EXAMPLE) as slide:
        opened = OpenedSlide(slide)
        level = opened.pyramid.max_level
        columns, rows = opened.pyramid.tiles(level)
        assert (columns, rows) == (5, 6)
        for x, y in np.ndindex(columns, rows):
            width, height = opened.pyramid.size(level, x, y)
            expected = slide.read_region(x * TILE_PX, y * TILE_PX, 0, width, height)
            np.testing.assert_array_equal(opened.tile_pixels(level, x, y)[..., :3], expected)


def test_tiles_of_a_level_in_the_file_have_its_pixels(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", halved_levels(tissue(2048, 1536, 0, 0), 3), tile=(64, 64))
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        opened = OpenedSlide(slide)
        for file_level in range(3):
            level = opened.pyramid.max_level - file_level
            step = 2**file_level
            width, height = opened.pyramid.size(level, 0, 0)
            expected = slide.read_region(0, 0, file_level, width, height)
            np.testing.assert_array_equal(opened.tile_pixels(level, 0, 0)[..., :3], expected)
            assert opened.pyramid.box(level, 0, 0) == Box(0, 0, width * step, height * step)


def test_a_level_between_those_of_the_file_is_their_mean_by_area(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(1024, 1024))  # one level, not JPEG: no reduced decoding
    with open_slide(path) as slide:
        opened = OpenedSlide(slide)
        whole = slide.read_region(0, 0, 0, 1024, 1024).astype(float)
        expected = whole.reshape(512, 2, 512, 2, 3).mean((1, 3))
        assert np.abs(opened.tile_pixels(0, 0, 0)[..., :3] - expected).max() <= 1


def test_a_large_area_is_the_same_in_quarters_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(1000, 700))
    with open_slide(path) as slide:
        pixels = SlidePixels(slide)
        at_once = pixels.area(slide.bounds, 100, 70)
        monkeypatch.setattr("longvit.viewer.pyramid._MOST_READ_PX", 10_000)
        assert np.abs(pixels.area(slide.bounds, 100, 70).astype(int) - at_once).max() <= 1


def test_the_pyramid_covers_the_bounds_of_a_slide_with_an_offset(tmp_path: Path) -> None:
    with open_slide(write_mrxs(tmp_path / "a.mrxs", tissue(1024, 768), skip=((0, 0),))) as slide:
        pyramid = Pyramid(slide.bounds)
        box = pyramid.box(pyramid.max_level, 0, 0)
        assert (box.x, box.y) == (slide.bounds.x, slide.bounds.y)
        pixels = OpenedSlide(slide).tile_pixels(pyramid.max_level, 0, 0)
        expected = slide.read_region(int(box.x), int(box.y), 0, pixels.shape[1], pixels.shape[0])
        np.testing.assert_array_equal(pixels[..., :3], expected)


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 40), (100_001, 77_777)])
def test_tiles_cover_every_level_once_and_no_tile_is_beyond_it(size: tuple[int, int]) -> None:
    pyramid = Pyramid(Box(7, 9, *size))
    assert pyramid.tiles(0) == (1, 1)
    assert pyramid.level_size(pyramid.max_level) == size
    for level in range(pyramid.max_level + 1):
        columns, rows = pyramid.tiles(level)
        width, height = pyramid.level_size(level)
        assert sum(pyramid.size(level, x, 0)[0] for x in range(columns)) == width
        assert sum(pyramid.size(level, 0, y)[1] for y in range(rows)) == height
        assert pyramid.has(level, columns - 1, rows - 1)
        assert not pyramid.has(level, columns, 0)
        assert not pyramid.has(level, 0, rows)
    assert not pyramid.has(pyramid.max_level + 1, 0, 0)
    assert not pyramid.has(-1, 0, 0)
    assert not pyramid.has(0, -1, 0)


def test_the_overview_of_a_file_without_small_levels_has_its_colours(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(4200, 2100))
    with open_slide(path) as slide:
        opened = OpenedSlide(slide)
        assert opened.overview_level == 2  # from 1/4 on
        import simplejpeg

        for level, x in ((2, 0), (2, 2), (1, 0), (0, 0)):
            tile = simplejpeg.decode_jpeg(opened.tile(level, x, 0)).astype(float)
            direct = opened.tile_pixels(level, x, 0)[..., :3].astype(float)
            assert tile.shape == direct.shape
            assert np.abs(tile.mean((0, 1)) - direct.mean((0, 1))).max() < 3
            dark = [np.argwhere(pixels.mean(-1) < 170).mean(0) for pixels in (tile, direct) if x == 0]
            if dark:
                assert np.abs(dark[0] - dark[1]).max() < 1


def test_at_most_eight_slides_are_open_and_a_slide_in_use_is_not_closed(tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{i}.tif", seed=i) for i in range(12)]
    slides = OpenSlides(lambda number: (paths[number], None), most_open=3)
    with slides.use(0) as first:
        for number in range(1, 12):
            with slides.use(number) as opened:
                opened.tile(0, 0, 0)
        assert slides.open_count == 3
        first.tile(0, 0, 0)
    slides.close()
    with pytest.raises(InputError, match="closed"):
        opened.slide.opened()


def test_threads_that_open_and_close_many_slides_all_get_their_pixels(tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{i}.tif", seed=i) for i in range(6)]
    slides = OpenSlides(lambda number: (paths[number], None), most_open=2)
    expected = [OpenedSlide(open_slide(path)).tile(0, 0, 0) for path in paths]
    wrong: list[object] = []

    def read(start: int) -> None:
        for i in range(30):
            number = (start + i) % 6
            try:
                with slides.use(number) as opened:
                    if opened.tile(0, 0, 0) != expected[number]:
                        wrong.append(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert slides.open_count <= 2


def test_a_slide_that_cannot_be_opened_is_one_line_and_leaves_the_others(tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"no slide")
    good = write_slide(tmp_path / "good.tif")
    slides = OpenSlides(lambda number: ((bad, good)[number], None))
    for _ in range(2):
        with pytest.raises(InputError, match=r"bad\.svs"), slides.use(0):
            pass
    with slides.use(1) as opened:
        assert opened.tile(0, 0, 0)


def test_the_cache_never_holds_more_than_its_bytes_and_drops_the_longest_unused() -> None:
    cache = ByteCache(100)
    for i in range(50):
        cache.get(i, lambda: bytes(30))
        cache.get("used", lambda: bytes(10))
        assert cache.bytes <= 100
    assert cache.get("used", lambda: b"made again") == bytes(10)
    cache.get("large", lambda: bytes(101))
    assert cache.bytes <= 100


def test_one_value_is_made_once_for_many_threads_and_an_error_is_not_kept() -> None:
    cache, made, start = ByteCache(100), [], threading.Event()

    def make() -> bytes:
        start.wait()
        made.append(1)
        return b"x"

    threads = [threading.Thread(target=lambda: cache.get("key", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda: bytes(1 // 0))
    assert cache.get("bad", lambda: b"y") == b"y"
