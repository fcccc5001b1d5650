"""Every format that the README names opens, and its pixels are right; the fast path gives what OpenSlide gives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import (
    Pixels,
    dicom_series,
    halved,
    pyramid,
    tissue,
    write_bif,
    write_dicom,
    write_jpeg,
    write_mrxs,
    write_ndpi,
    write_ome,
    write_scn,
    write_svs,
    write_tiff,
)

from longvit.errors import InputError
from longvit.slides import reader_selection
from longvit.slides.reader import open_slide
from longvit.slides.tiled_tiff import TiledTiffReader

# Mean grey levels that a JPEG of quality 90 to 95 is off here; a shift by one pixel would be 11 or more.
JPEG_LOSS = 7.0


def mean_difference(a: Pixels, b: Pixels) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def largest_difference(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def whole(slide: Any, level: int = 0) -> Pixels:
    return slide.read_region(0, 0, level, *slide.levels[level].size_px)


def openslide_pixels(path: Path, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> Pixels:
    """openslide-python's own reading, transparent on white."""
    region = openslide.OpenSlide(path).read_region((x_px, y_px), level, (width_px, height_px))
    canvas = Image.new("RGBA", region.size, (255, 255, 255, 255))
    canvas.alpha_composite(region)
    return np.asarray(canvas.convert("RGB"))


@pytest.mark.slow
def test_fast_path_equals_openslide_on_the_real_slide_edges_included() -> None:
    slide = open_slide(EXAMPLE_SLIDE)
    assert (slide.reader, slide.vendor) == ("tiff", "aperio")
    for level in slide.levels:
        for x, y, width, height in [(-40, -30, 700, 500), (0, 0, 2220, 2967), (1900, 2600, 600, 600), (5, 7, 1, 1)]:
            ours = slide.read_region(x, y, level.index, width, height)
            theirs = openslide_pixels(EXAMPLE_SLIDE, level.index, x, y, width, height)
            assert largest_difference(ours, theirs) <= 1


def test_fast_path_equals_openslide_on_every_level_of_a_pyramid(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(1024, 512), 3))
    slide = open_slide(path)
    assert [level.size_px for level in slide.levels] == [(1024, 512), (512, 256), (256, 128)]
    assert [level.downsample for level in slide.levels] == [1, 2, 4]
    for level in range(3):
        for x, y, width, height in [(0, 0, 128, 128), (256, 128, 130, 70), (-64, -64, 100, 100), (960, 480, 64, 64)]:
            ours = slide.read_region(x, y, level, width, height)
            theirs = openslide_pixels(path, level, x, y, width, height)
            assert largest_difference(ours, theirs) <= 1, (level, x, y)


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate", "zstd", "webp", "jpeg2000", "packbits", None])
@pytest.mark.parametrize("tile_px", [64, None])
def test_tiff_compressions(tmp_path: Path, compression: str | None, tile_px: int | None) -> None:
    pixels = tissue(300, 200)
    if compression in ("lzw", "deflate"):
        first: dict[str, Any] = {"predictor": True}
    elif tile_px is None and compression is not None:
        first = {"rowsperstrip": 48}
    else:
        first = {}
    path = write_tiff(tmp_path / "a.tif", [pixels], compression=compression, tile_px=tile_px, **first)
    slide = open_slide(path)
    assert slide.reader == "tiff"
    assert mean_difference(whole(slide), pixels) <= (JPEG_LOSS if compression in ("jpeg", "webp") else 0)
    assert not slide.bad_tiles


def test_ycbcr_jpeg_tiles_with_halved_chroma_equal_openslide(tmp_path: Path) -> None:
    pixels = tissue(256, 192)
    tiles = [
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels[y : y + 64, x : x + 64]), quality=90, colorspace="RGB", colorsubsampling="420"
        )
        for y in range(0, 192, 64)
        for x in range(0, 256, 64)
    ]
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=pixels.shape,
        dtype="uint8",
        tile=(64, 64),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        metadata=None,
    )
    slide = open_slide(path)
    assert slide.reader == "tiff"
    assert largest_difference(whole(slide), openslide_pixels(path, 0, 0, 0, 256, 192)) <= 1
    assert mean_difference(whole(slide), pixels) < JPEG_LOSS


def test_rgb_jpeg_tiles_with_a_jfif_marker_stay_rgb(tmp_path: Path) -> None:
    """The marker says YCbCr to a decoder; the TIFF's own tag says RGB, and that one counts."""
    with tifffile.TiffFile(EXAMPLE_SLIDE) as tiff:
        page = tiff.pages.first
        data = EXAMPLE_SLIDE.read_bytes()
        index = 56  # inside the tissue
        tile = data[page.dataoffsets[index] : page.dataoffsets[index] + page.databytecounts[index]]
        expected = page.asarray()[1200:1440, 1440:1680]
        jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
        tifffile.imwrite(
            tmp_path / "a.tif",
            iter([tile[:2] + jfif + tile[2:]]),
            shape=(240, 240, 3),
            dtype="uint8",
            tile=(240, 240),
            photometric="rgb",
            compression="jpeg",
            jpegtables=page.jpegtables,
            metadata=None,
        )
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(2)  # tifffile takes every JPEG for YCbCr
    assert largest_difference(whole(open_slide(tmp_path / "a.tif", reader="tiff")), expected) <= 1


def test_planes_stored_apart_are_put_together(tmp_path: Path) -> None:
    pixels = tissue(200, 150)
    path = tmp_path / "planar.tif"
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(
        path, planes, tile=(64, 64), compression="deflate", photometric="rgb", planarconfig="separate", metadata=None
    )
    slide = open_slide(path)
    assert slide.reader == "tiff"
    assert largest_difference(whole(slide), pixels) == 0


def test_grey_and_inverted_grey_become_rgb(tmp_path: Path) -> None:
    grey = np.ascontiguousarray(tissue(200, 150)[..., 1])
    for photometric, expected in [("minisblack", grey), ("miniswhite", 255 - grey)]:
        path = tmp_path / f"{photometric}.tif"
        tifffile.imwrite(path, grey, tile=(64, 64), compression="deflate", photometric=photometric, metadata=None)
        slide = open_slide(path, reader="tiff")
        assert largest_difference(whole(slide), np.repeat(expected[..., None], 3, axis=2)) == 0


@pytest.mark.parametrize(("extrasample", "premultiplied"), [("unassalpha", False), ("assocalpha", True)])
def test_transparent_tiff_is_background_not_black(tmp_path: Path, extrasample: str, premultiplied: bool) -> None:
    colour = tissue(128, 128)
    alpha = np.full((128, 128, 1), 255, np.uint8)
    alpha[:, :64] = 0
    alpha[:, 64:80] = 128
    stored = (colour * (alpha / 255.0)).round().astype(np.uint8) if premultiplied else colour
    path = tmp_path / "alpha.tif"
    tifffile.imwrite(
        path,
        np.concatenate([stored, alpha], axis=2),
        tile=(64, 64),
        compression="deflate",
        photometric="rgb",
        extrasamples=[extrasample],
        metadata=None,
    )
    got = whole(open_slide(path, reader="tiff"))
    assert (got[:, :64] == 255).all()
    assert largest_difference(got[:, 64:80], (colour[:, 64:80] * 0.502 + 255 * 0.498).round().astype(np.uint8)) <= 2
    assert largest_difference(got[:, 80:], colour[:, 80:]) == 0


def test_ome_tiff_with_its_pyramid_in_subifds(tmp_path: Path) -> None:
    levels = pyramid(tissue(512, 384), 3)
    path = write_ome(tmp_path / "a.ome.tif", levels, 'PhysicalSizeX="0.25" PhysicalSizeY="0.25"', compression="deflate")
    slide = open_slide(path)
    # OpenSlide sees the first level alone.
    assert openslide.OpenSlide(path).level_count == 1
    assert (slide.vendor, slide.reader, len(slide.levels)) == ("ome-tiff", "tiff", 3)
    for index, level in enumerate(levels):
        assert largest_difference(whole(slide, index), level) == 0


def test_bigtiff(tmp_path: Path) -> None:
    pixels = tissue(200, 150)
    path = write_tiff(tmp_path / "a.tif", [pixels], compression="deflate", bigtiff=True)
    assert largest_difference(whole(open_slide(path)), pixels) == 0


def test_label_macro_and_mask_are_no_levels(tmp_path: Path) -> None:
    levels = pyramid(tissue(512, 256), 2)
    path = write_svs(tmp_path / "a.svs", levels)
    with tifffile.TiffWriter(path, append=True) as writer:
        writer.write(tissue(100, 200), photometric="rgb", compression="lzw", subfiletype=1, metadata=None)
        writer.write(tissue(64, 64), photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None)
        mask = np.ones((128, 256), bool)
        writer.write(mask, photometric="minisblack", tile=(64, 64), subfiletype=4, metadata=None)
    slide = open_slide(path, reader="tiff")
    assert [level.size_px for level in slide.levels] == [(512, 256), (256, 128)]


def test_dicom_as_a_file_and_as_a_folder(tmp_path: Path) -> None:
    levels, series = pyramid(tissue(400, 300), 2), dicom_series()
    folder = tmp_path / "slide"
    folder.mkdir()
    first = write_dicom(folder / "level0.dcm", levels[0], 0.00025, series)
    second = write_dicom(folder / "level1.dcm", levels[1], 0.0005, series, number=2)
    (folder / "notes.txt").write_text("not DICOM")
    for path in (first, second, folder):
        slide = open_slide(path)
        assert (slide.vendor, slide.reader, len(slide.levels)) == ("dicom", "dicom", 2)
        assert slide.mpp is not None
        assert slide.mpp.x == pytest.approx(0.25)
        assert mean_difference(whole(slide), levels[0]) < JPEG_LOSS
    assert open_slide(first).identity() == open_slide(folder).identity() == open_slide(second).identity()


def test_scn_bounds_lie_inside_and_the_rest_is_background(tmp_path: Path) -> None:
    pixels = tissue(384, 256)
    slide = open_slide(write_scn(tmp_path / "a.scn", pyramid(pixels, 2), 100, 50, (600, 500)))
    assert (slide.vendor, slide.size_px) == ("leica", (600, 500))
    bounds = slide.bounds
    assert (bounds.x, bounds.y, bounds.width, bounds.height) == (100, 50, 384, 256)
    assert mean_difference(slide.read_region(100, 50, 0, 384, 256), pixels) < JPEG_LOSS
    assert (slide.read_region(0, 0, 0, 600, 50) == 255).all()


def test_mrxs_missing_tiles_have_the_colour_that_the_file_states(tmp_path: Path) -> None:
    pixels = tissue(384, 256)
    skip = ((0, 0), (0, 1), (0, 2), (0, 3), (3, 2))
    slide = open_slide(write_mrxs(tmp_path / "a.mrxs", pixels, skip=skip))
    assert slide.vendor == "mirax"
    assert slide.background == (240, 240, 240)  # IMAGE_FILL_COLOR_BGR
    assert (slide.bounds.x, slide.bounds.width) == (64, 320)
    got = whole(slide)
    assert (got[:, :64] == 240).all()
    assert (got[128:192, 192:256] == 240).all()
    assert mean_difference(got[:128, 64:], pixels[:128, 64:]) < JPEG_LOSS
    assert not slide.bad_tiles


def test_ndpi_and_bif(tmp_path: Path) -> None:
    pixels = tissue(384, 256)
    ndpi = open_slide(write_ndpi(tmp_path / "a.ndpi", pyramid(pixels, 2)))
    bif = open_slide(write_bif(tmp_path / "a.bif", pixels))
    assert (ndpi.vendor, bif.vendor) == ("hamamatsu", "ventana")
    assert ndpi.mpp is not None
    assert bif.mpp is not None
    assert (ndpi.mpp.x, bif.mpp.x) == pytest.approx((0.5, 0.465))
    for slide in (ndpi, bif):
        assert slide.reader == "openslide"
        assert mean_difference(whole(slide), pixels) < JPEG_LOSS


def test_png_with_alpha_and_palette(tmp_path: Path) -> None:
    pixels = tissue(120, 90)
    alpha = np.full((90, 120, 1), 255, np.uint8)
    alpha[:40] = 0
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "alpha.png")
    slide = open_slide(tmp_path / "alpha.png")
    assert (slide.vendor, slide.reader, slide.mpp) == ("png", "image", None)
    assert (whole(slide)[:40] == 255).all()
    assert largest_difference(whole(slide)[40:], pixels[40:]) == 0
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    got = whole(open_slide(tmp_path / "palette.png"))
    assert largest_difference(got, np.asarray(palette.convert("RGB"))) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes(tmp_path: Path, mode: str) -> None:
    pixels = tissue(121, 90)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.jpg", quality=95)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert largest_difference(whole(open_slide(tmp_path / "a.jpg")), expected) <= 1


def test_reader_can_be_forced(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(128, 128)])
    for name in ("tiff", "openslide"):
        slide = open_slide(path, reader=name)  # type: ignore[arg-type]
        assert (slide.reader, slide.reader_reason) == (name, "requested")
    scn = write_scn(tmp_path / "a.scn", [tissue(128, 128)], 0, 0, (200, 200))
    with pytest.raises(InputError, match=r"a\.scn: the reader tiff cannot read it: the format leica"):
        open_slide(scn, reader="tiff")
    jpeg_2000 = write_tiff(tmp_path / "b.tif", [tissue(128, 128)], compression="jpeg2000")
    with pytest.raises(InputError, match=r"b\.tif: the reader openslide cannot read it"):
        open_slide(jpeg_2000, reader="openslide")
    for reader in ("tiff", "openslide"):
        with pytest.raises(InputError, match=f"the reader {reader} reads no JPEG"):
            open_slide(write_jpeg(tmp_path / "a.jpg", tissue(64, 64)), reader=reader)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reader 'vips' is unknown"):
        open_slide(path, reader="vips")  # type: ignore[arg-type]


def test_a_fast_path_that_differs_from_openslide_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(512, 256), 2))
    honest = TiledTiffReader._read_tile

    def two_levels_brighter(self: TiledTiffReader, *args: Any) -> None:
        honest(self, *args)
        target = args[-1]
        target[...] = np.clip(target.astype(int) - 2, 0, 255)

    monkeypatch.setattr(TiledTiffReader, "_read_tile", two_levels_brighter)
    with caplog.at_level(logging.WARNING, logger="longvit.slides"):
        slide = open_slide(path)
    assert slide.reader == "openslide"
    assert "differs from OpenSlide by 2 grey levels" in slide.reader_reason
    assert "a.svs" in caplog.text


def test_tiles_left_out_of_an_svs_are_openslides_business(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(512, 256), 2))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (324, 325):
            values = list(tiff.pages[1].tags[code].value)
            values[3] = 0
            tiff.pages[1].tags[code].overwrite(values)
    slide = open_slide(path)
    assert slide.reader == "openslide"
    assert "leaves tiles out" in slide.reader_reason


def test_a_level_that_only_openslide_sees_rules_the_fast_path_out(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(512, 256), 3))
    ours = open_slide(path, reader="tiff").opened()[0].reader
    theirs = open_slide(path, reader="openslide").opened()[0].reader
    assert isinstance(ours, TiledTiffReader)
    assert reader_selection.disagreement_with(theirs, ours) is None
    ours.levels = ours.levels[:2]
    assert str(reader_selection.disagreement_with(theirs, ours)) == "has no level of 128 × 64 px"


def test_halved_is_half() -> None:
    assert halved(tissue(100, 60)).shape == (30, 50, 3)
