"""Which image of a file is the slide, which of its levels are used, and which way round it lies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.slides.slide_files import Pixels, halved, overwrite, pyramid, tissue, write_svs, write_tiff

from longvit.errors import InputError
from longvit.slides.pixel_reader import Level
from longvit.slides.reader import open_slide

UNITS = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}


def whole(slide: Any, level: int = 0) -> Pixels:
    return slide.read_region(0, 0, level, *slide.levels[level].size_px)


def physical(mpp: float, name: str) -> dict[str, Any]:
    return {"axes": "YXS", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp, **UNITS}


def zero_table(path: Path, page: int, tiles: list[int] | None = None) -> None:
    """Offset 0 and 0 bytes, as of a tile that was never written."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (324, 325):
            tag = tiff.pages[page].tags[code]
            values = list(tag.value)
            for index in range(len(values)) if tiles is None else tiles:
                values[index] = 0
            tag.overwrite(values)


def test_a_macro_in_front_of_the_scan_of_an_ome_tiff_is_not_the_slide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, levels = tmp_path / "a.ome.tif", pyramid(tissue(512, 384), 3)
    common: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(tissue(192, 64), metadata=physical(16.0, "macro"), **common)
        writer.write(levels[0], subifds=2, metadata=physical(0.25, "scan"), **common)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **common)
    with caplog.at_level(logging.WARNING, logger="longvit.slides"):
        slide = open_slide(path)
    assert [level.size_px for level in slide.levels] == [(512, 384), (256, 192), (128, 96)]
    assert all((whole(slide, index) == level).all() for index, level in enumerate(levels))
    assert slide.mpp is not None
    assert (slide.mpp.x, slide.mpp.source) == (0.25, "ome.PhysicalSizeX")
    assert (
        caplog.text.count("its first image has 192 × 64 px; image 2 of 2, the largest with 512 × 384 px, is used") == 1
    )
    assert len(slide.notes) == 1
    # OpenSlide would read the macro.
    with pytest.raises(InputError, match="OpenSlide takes the first image of the file, 192 × 64 px; leave --reader"):
        open_slide(path, reader="openslide")


@pytest.mark.parametrize("tile_px", [64, None])
def test_a_thumbnail_in_front_of_a_plain_tiff_is_not_the_slide(tmp_path: Path, tile_px: int | None) -> None:
    path, pixels = tmp_path / "a.tif", tissue(300, 200)
    shape: dict[str, Any] = {"rowsperstrip": 48} if tile_px is None else {"tile": (tile_px, tile_px)}
    with tifffile.TiffWriter(path) as writer:
        for image, per_cm in ((tissue(60, 40), 2_000), (pixels, 20_000)):
            writer.write(
                image,
                photometric="rgb",
                compression="zlib",
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **shape,
            )
    slide = open_slide(path)
    assert (whole(slide) == pixels).all()
    assert slide.mpp is not None
    assert slide.mpp.x == pytest.approx(0.5)
    assert "is used as the slide" in slide.notes[0]


def test_of_two_scans_in_one_file_the_larger_is_read_and_one_line_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    common: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for image in (tissue(256, 192), tissue(300, 180), tissue(64, 64)):
            writer.write(image, **common)
    slide = open_slide(path)
    assert (whole(slide) == tissue(300, 180)).all()
    (note,) = slide.notes
    assert "holds 2 images of comparable size; image 2 of 3, the largest with 300 × 180 px" in note
    assert "not read: 256 × 192 px" in note


def test_a_macro_larger_than_the_scan_of_an_svs_is_not_the_slide(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", [tissue(128, 64)])
    with tifffile.TiffWriter(path, append=True) as writer:
        writer.write(tissue(400, 300), photometric="rgb", compression="jpeg", subfiletype=9, metadata=None)
    slide = open_slide(path)
    assert slide.size_px == (128, 64)
    assert not slide.notes


def test_levels_that_belong_to_the_slide_need_no_word(tmp_path: Path) -> None:
    for subifds in (False, True):
        slide = open_slide(write_tiff(tmp_path / f"{subifds}.tif", pyramid(tissue(256, 192), 3), subifds=subifds))
        assert (len(slide.levels), slide.notes) == (3, ())


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
def test_a_level_that_was_never_written_does_not_make_a_white_slide(tmp_path: Path, reader: Any) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(512, 256), 2))
    expected = open_slide(path).read_region(0, 0, 0, 512, 256)
    zero_table(path, 1)
    if reader == "openslide":
        with pytest.raises(InputError, match=r"level 1 \(256 × 128 px\) were never written.*leave --reader at auto"):
            open_slide(path, reader=reader)
        return
    slide = open_slide(path, reader=reader)
    assert [level.index for level in slide.levels] == [0]
    assert (whole(slide) == expected).all()
    assert np.asarray(slide.canvas(64)).mean() < 230
    assert "8 of 8 tiles of level 1 (256 × 128 px) were never written" in slide.notes[0]


def test_one_tile_missing_in_a_coarser_level_is_enough_and_the_next_level_stays(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(512, 256), 3))
    zero_table(path, 1, [3])
    slide = open_slide(path)
    assert slide.levels == (
        slide.levels[0],
        Level(1, (128, 64), 4.0, (64, 64), "jpeg"),
    )


def test_glass_that_no_level_has_is_no_reason_to_drop_a_level(tmp_path: Path) -> None:
    """A scanner skips blank tiles in every level: four of the finer, one of the coarser."""
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(512, 256), 2))
    zero_table(path, 0, [0, 1, 8, 9])
    zero_table(path, 1, [0])
    slide = open_slide(path)
    assert len(slide.levels) == 2
    assert (slide.read_region(0, 0, 0, 128, 128) == 255).all()
    assert slide.notes == ("4 of 32 tiles of level 0 (512 × 256 px) were never written: they are background",)


def test_a_full_resolution_that_was_never_written_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(512, 256), 2))
    zero_table(path, 0)
    with pytest.raises(InputError, match=r"a\.tif: not one of the 32 tiles of level 0 was ever written"):
        open_slide(path)


def meant(stored: Pixels, orientation: int) -> Pixels:
    """As Pillow shows an image of this orientation."""
    steps = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return stored if orientation == 1 else np.asarray(Image.fromarray(stored).transpose(steps[orientation]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("compression", "tile_px"), [("zlib", 64), ("jpeg", 64), ("zlib", None)])
def test_the_tag_orientation_gives_one_picture_whatever_the_codec(
    tmp_path: Path, orientation: int, compression: str, tile_px: int | None
) -> None:
    levels = pyramid(tissue(300, 200), 2)
    tags = {"extratags": [(274, "H", 1, orientation, True)], "resolution": (20_000, 40_000)}
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            shape: dict[str, Any] = {"rowsperstrip": 48} if tile_px is None else {"tile": (tile_px, tile_px)}
            writer.write(
                level,
                photometric="rgb",
                compression=compression,
                subfiletype=min(index, 1),
                metadata=None,
                resolutionunit="CENTIMETER",
                **shape,
                **tags,
            )
    slide = open_slide(path)
    for index, level in enumerate(levels):
        stored = level if compression == "zlib" else tifffile.imread(path, key=index)
        expected = meant(stored, orientation)
        assert slide.levels[index].size_px == expected.shape[1::-1]
        assert np.abs(whole(slide, index).astype(int) - expected).max() <= (1 if compression == "jpeg" else 0)
        # A piece that reaches over the edge lies where the whole has it.
        piece = slide.read_region(40, -10, index, 50, 30)
        x, y = round(40 / slide.levels[index].downsample), round(-10 / slide.levels[index].downsample)
        assert (piece[-y:, :50] == whole(slide, index)[: 30 + y, x : x + 50]).all()
    assert slide.mpp is not None
    assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.25, 0.5) if orientation >= 5 else (0.5, 0.25))
    said = [note for note in slide.notes if f"its tag Orientation is {orientation}" in note]
    assert len(said) == (orientation != 1)
    if orientation != 1:
        with pytest.raises(InputError, match="the reader openslide cannot read it"):
            open_slide(path, reader="openslide")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_bad_tile_of_a_turned_image_is_where_the_picture_is_blank(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        tissue(256, 192),
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        metadata=None,
        extratags=[(274, "H", 1, orientation, True)],
    )
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[6]
    overwrite(path, offset, bytes(64))
    slide = open_slide(path)
    pixels = whole(slide)
    (tile,) = slide.bad_tiles
    x, y = tile.x_level0_px, tile.y_level0_px
    assert (pixels[y : y + tile.height_px, x : x + tile.width_px] == 255).all()
    assert (pixels == 255).all(axis=2).sum() < 2 * 64 * 64


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_exif_orientation_of_an_image_file_is_applied_and_said(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(tissue(120, 80)).save(path, exif=exif)
    slide = open_slide(path)
    stored = np.asarray(Image.open(path).convert("RGB"))
    assert np.abs(whole(slide).astype(int) - meant(stored, orientation)).max() <= 1
    assert len(slide.notes) == (orientation != 1)


def test_a_reduced_copy_that_lies_another_way_round_is_not_a_level(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", tissue(256, 256)
    with tifffile.TiffWriter(path) as writer:
        for image, orientation in ((pixels, 3), (halved(pixels)[::-1, ::-1], 1)):
            writer.write(
                np.ascontiguousarray(image),
                photometric="rgb",
                tile=(64, 64),
                compression="zlib",
                metadata=None,
                subfiletype=int(orientation == 1),
                extratags=[(274, "H", 1, orientation, True)],
            )
    slide = open_slide(path)
    assert len(slide.levels) == 1
    assert any("has another orientation, and is not used" in note for note in slide.notes)
