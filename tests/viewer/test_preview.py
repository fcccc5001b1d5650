"""Preview of a slide without small levels: colours at their places, few tiles decoded, absent where it is no gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile
from tests.conftest import ROOT
from tests.small_slides import write_slide

from longvit.slides.reader import open_slide
from longvit.slides.tiled_tiff import TiledTiffReader
from longvit.viewer.content import NotFoundError, ViewContent
from longvit.viewer.items import ViewItem, ViewItems
from longvit.viewer.open_slides import OpenedSlide


def gradient(path: Path, width_px: int, height_px: int, **settings: Any) -> Path:
    """A slide whose red rises to the right and whose green rises downwards."""
    pixels = np.full((height_px, width_px, 3), 128, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width_px)
    pixels[..., 1] = np.linspace(0, 255, height_px)[:, None]
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), metadata=None, **settings)
    return path


@pytest.mark.parametrize("settings", [{}, {"compression": "jpeg"}])
@pytest.mark.parametrize("size_px", [(4500, 2400), (2300, 4133)])
def test_no_colour_of_a_preview_is_misplaced(settings: Any, size_px: tuple[int, int], tmp_path: Path) -> None:
    with open_slide(gradient(tmp_path / "a.tif", *size_px, **settings)) as slide:
        opened = OpenedSlide(slide)
        shown = opened.preview()[..., :3].astype(float)
        assert max(shown.shape) == 512
        assert shown.shape[1] / shown.shape[0] == pytest.approx(size_px[0] / size_px[1], rel=0.01)
        height, width = shown.shape[:2]
        # a sample is up to one of 64 tiles from its place, and the outermost is half a cell from the edge
        inner = (slice(height // 16, -height // 16), slice(width // 16, -width // 16))
        red, green = np.linspace(0, 255, width)[None, :, None], np.linspace(0, 255, height)[:, None, None]
        expected = np.concatenate(np.broadcast_arrays(red, green, np.full((1, 1, 1), 128.0)), 2)
        assert np.abs(shown - expected)[inner].max() < 10


def test_a_sample_decodes_one_tile_and_not_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    read = TiledTiffReader._read_tile

    def counted(self: Any, file: Any, tiled: Any, column: int, row: int, *more: Any) -> None:
        decoded.append((column, row))
        read(self, file, tiled, column, row, *more)

    with open_slide(gradient(tmp_path / "a.tif", 4500, 2400)) as slide:
        opened = OpenedSlide(slide)
        assert opened.sample_grid == (32, 17)
        monkeypatch.setattr(TiledTiffReader, "_read_tile", counted)
        opened.preview()
        assert len(decoded) == len(set(decoded)) == 32 * 17
        decoded.clear()
        opened.tile(0, 0, 0)
        assert len(decoded) == len(set(decoded)) == 71 * 38  # the overview, each tile once


def test_a_slide_with_small_levels_or_few_tiles_has_no_preview(tmp_path: Path) -> None:
    for path in (ROOT / "examples" / "CMU-1-Small-Region.svs", write_slide(tmp_path / "a.tif", size_px=(3000, 2000))):
        with open_slide(path) as slide:
            assert OpenedSlide(slide).sample_grid is None


def test_a_preview_is_served_for_its_slide_alone(tmp_path: Path) -> None:
    paths = [gradient(tmp_path / "a.tif", 4500, 2400), write_slide(tmp_path / "b.tif")]
    content = ViewContent(ViewItems("slides", "made", [ViewItem(path.stem, path) for path in paths]))
    try:
        with_preview, without = content.slide(0), content.slide(1)
        assert (with_preview["has_preview"], without["has_preview"]) == (True, False)
        reply = content.preview(0, with_preview["digest"])
        assert reply.is_lasting
        assert simplejpeg.decode_jpeg(reply.body).shape == (273, 512, 3)
        for number, digest in ((1, without["digest"]), (0, without["digest"]), (2, with_preview["digest"])):
            with pytest.raises(NotFoundError):
                content.preview(number, digest)
    finally:
        content.close()
