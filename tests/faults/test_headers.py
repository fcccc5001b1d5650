"""A TIFF whose directory contradicts itself is refused, or loses what is damaged; it is not read as another picture."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.slides.slide_files import (
    overwrite,
    pyramid,
    tissue,
    write_bif,
    write_ndpi,
    write_ome,
    write_scn,
    write_svs,
    write_tiff,
)

from longvit.errors import InputError
from longvit.slides.reader import open_slide

WIDTH, HEIGHT = 384, 256
BYTE, ASCII, SHORT, LONG, FLOAT, DOUBLE = 1, 2, 3, 4, 11, 12


def entry(path: Path, code: int, page: int = 0) -> int:
    """Where the 12 bytes of a tag stand in a classic TIFF of little-endian order."""
    with tifffile.TiffFile(path) as tiff:
        return int(tiff.pages[page].tags[code].offset)


def set_entry(path: Path, code: int, page: int = 0, **fields: int) -> Path:
    """Overwrites the number ("number"), "type", "count" or (short) "value" of a tag."""
    at = entry(path, code, page)
    for name, (offset, layout) in {
        "number": (0, "<H"),
        "type": (2, "<H"),
        "count": (4, "<I"),
        "value": (8, "<H"),
    }.items():
        if name in fields:
            overwrite(path, at + offset, struct.pack(layout, fields[name]))
    return path


def set_table(path: Path, code: int, index: int, value: int, page: int = 0) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[page].tags[code]
        values = list(tag.value)
        values[index] = value
        tag.overwrite(values)


def plain(path: Path, **settings: Any) -> Path:
    return write_tiff(path, [tissue(WIDTH, HEIGHT)], **({"compression": "zlib"} | settings))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_slide(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
@pytest.mark.parametrize("photometric", [0, 1, 3, 4])
def test_three_samples_that_are_called_grey_are_refused(
    tmp_path: Path, photometric: int, compression: str, reader: str
) -> None:
    path = set_entry(plain(tmp_path / "a.tif", compression=compression), 262, value=photometric)
    assert "3 samples per pixel, but its tag PhotometricInterpretation says" in refusal(path, reader=reader)


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_colours_that_an_svs_or_tiff_does_not_name_are_refused(tmp_path: Path, reader: str) -> None:
    for name in ("a.svs", "b.tif"):
        path = tmp_path / name
        (write_svs if name == "a.svs" else write_tiff)(path, [tissue(WIDTH, HEIGHT)])
        set_entry(path, 262, number=261)
        assert "PhotometricInterpretation is missing" in refusal(path, reader=reader)


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_one_sample_that_is_called_rgb_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    grey = np.ascontiguousarray(tissue(WIDTH, HEIGHT)[..., 1])
    tifffile.imwrite(path, grey, tile=(64, 64), photometric="minisblack", compression=compression, metadata=None)
    assert "1 samples per pixel, but its tag" in refusal(set_entry(path, 262, value=2))


def test_jpeg_tiles_of_other_colours_than_the_tag_names_are_refused(tmp_path: Path) -> None:
    """tifffile writes YCbCr with halved chroma, which no RGB has."""
    path = set_entry(plain(tmp_path / "a.tif", compression="jpeg"), 262, value=2)
    assert "PhotometricInterpretation says RGB, its JPEG tiles are YCbCr" in refusal(path)


def test_ycbcr_without_its_subsampling_is_refused(tmp_path: Path) -> None:
    assert "YCbCrSubSampling is missing" in refusal(set_entry(plain(tmp_path / "a.tif"), 262, value=6))


@pytest.mark.parametrize("code", [256, 257, 258, 259, 262, 277, 284, 322, 323, 324, 325])
@pytest.mark.parametrize("kind", [BYTE, ASCII, FLOAT, DOUBLE, 7, 0, 99])
@pytest.mark.parametrize("name", ["a.tif", "a.svs", "a.scn"])
def test_a_tag_of_a_type_that_it_never_has_is_refused(tmp_path: Path, code: int, kind: int, name: str) -> None:
    path = tmp_path / name
    if name == "a.scn":
        write_scn(path, [tissue(WIDTH, HEIGHT)], 0, 0, (400, 300))
    else:
        (write_svs if name == "a.svs" else plain)(path, *([[tissue(WIDTH, HEIGHT)]] if name == "a.svs" else []))
    assert "damaged" in refusal(set_entry(path, code, type=kind))


def test_a_height_read_as_its_first_byte_is_refused(tmp_path: Path) -> None:
    """The table then names more tiles than the size needs."""
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, 560)], compression="zlib")
    assert "ImageLength is of type BYTE" in refusal(set_entry(path, 257, type=BYTE))
    path = write_tiff(tmp_path / "b.tif", [tissue(WIDTH, 560)], compression="zlib")
    assert "384 × 48 px needs 6 tiles, its table names 54" in refusal(set_entry(path, 257, value=48))


@pytest.mark.parametrize(("code", "count"), [(256, 2), (277, 3), (258, 2), (262, 2), (322, 0)])
def test_a_tag_with_a_count_that_it_never_has_is_refused(tmp_path: Path, code: int, count: int) -> None:
    assert "damaged" in refusal(set_entry(plain(tmp_path / "a.tif"), code, count=count))


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
@pytest.mark.parametrize("subifds", [False, True])
def test_a_reduced_copy_larger_than_the_slide_is_refused(tmp_path: Path, reader: str, subifds: bool) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(WIDTH, HEIGHT), 2), compression="zlib", subifds=subifds)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first.pages[0] if subifds else tiff.pages[1]
        at = page.tags[256].offset
    overwrite(path, at + 8, struct.pack("<I", 4_000_000))
    assert "reduced copy" in refusal(path, reader=reader) or "needs" in refusal(path, reader=reader)


def test_a_damaged_level_costs_that_level(tmp_path: Path) -> None:
    for name, change in (("a", (257, {"value": 100})), ("b", (259, {"value": 9})), ("c", (262, {"value": 8}))):
        path = write_tiff(tmp_path / f"{name}.tif", pyramid(tissue(WIDTH, HEIGHT), 2), compression="zlib")
        slide = open_slide(set_entry(path, change[0], 1, **change[1]))
        assert (slide.reader, len(slide.levels)) == ("tiff", 1)
        assert "not used" in slide.notes[0]
        assert (slide.read_region(0, 0, 0, WIDTH, HEIGHT) == tissue(WIDTH, HEIGHT)).all()


@pytest.mark.parametrize("suffix", [".scn", ".ndpi", ".bif"])
def test_a_scanners_own_format_that_openslide_does_not_know_is_no_plain_tiff(tmp_path: Path, suffix: str) -> None:
    path = plain(tmp_path / f"a{suffix}", compression="jpeg")
    message = refusal(path)
    assert f"named {suffix}, but OpenSlide detects the format generic-tiff" in message
    assert "rename it to a.tif if it is a plain TIFF" in message
    strips = write_tiff(tmp_path / f"b{suffix}", [tissue(WIDTH, HEIGHT)], tile_px=None)
    assert "OpenSlide detects no format in it" in refusal(strips)
    strips = write_tiff(tmp_path / "c.svs", [tissue(WIDTH, HEIGHT)], tile_px=None)
    assert "named .svs, but OpenSlide detects no format in it" in refusal(strips)


def test_the_scanners_own_formats_still_open(tmp_path: Path) -> None:
    levels = pyramid(tissue(512, 256), 2)
    for path in (
        write_scn(tmp_path / "a.scn", levels, 10, 10, (600, 300)),
        write_ndpi(tmp_path / "a.ndpi", levels),
        write_bif(tmp_path / "a.bif", levels[0]),
    ):
        assert open_slide(path).notes == ()


def bad_places(path: Path) -> set[tuple[int, int]]:
    slide = open_slide(path)
    got, expected = slide.read_region(0, 0, 0, WIDTH, HEIGHT), tissue(WIDTH, HEIGHT)
    bad = {(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles}
    for x, y in bad:
        got[y : y + 64, x : x + 64] = expected[y : y + 64, x : x + 64]
    assert (got == expected).all()
    return bad


@pytest.mark.parametrize("compression", ["zlib", None, "packbits"])
def test_a_place_without_bytes_and_bytes_without_a_place_are_damage(tmp_path: Path, compression: Any) -> None:
    path = plain(tmp_path / "a.tif", compression=compression)
    set_table(path, 325, 8, 0)
    assert bad_places(path) == {(128, 64)}
    slide = open_slide(path)
    slide.read_region(128, 64, 0, 64, 64)
    assert slide.bad_tiles[0].message == "0 bytes at an offset in the file"
    path = plain(tmp_path / "b.tif", compression=compression)
    set_table(path, 324, 8, 0)
    assert bad_places(path) == {(128, 64)}


def test_one_plane_without_bytes_is_damage_not_glass(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(tissue(WIDTH, HEIGHT), 2, 0))
    for codes in ((325,), (324, 325)):
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, planes, tile=(64, 64), compression="zlib", photometric="rgb", planarconfig="separate", metadata=None
        )
        for code in codes:
            set_table(path, code, 24 + 8, 0)
        assert bad_places(path) == {(128, 64)}


@pytest.mark.parametrize("compression", ["zlib", None, "packbits", "lzw"])
def test_tiles_that_lie_over_one_another_are_damage(tmp_path: Path, compression: Any) -> None:
    path = plain(tmp_path / "a.tif", compression=compression)
    with tifffile.TiffFile(path) as tiff:
        offsets = list(tiff.pages.first.dataoffsets)
    set_table(path, 324, 8, offsets[9] + 100)
    assert bad_places(path) == {(128, 64), (192, 64), (256, 64)} or bad_places(path) == {(128, 64), (192, 64)}


def test_a_tile_that_lies_over_the_directory_is_damage(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tif", compression=None)
    set_table(path, 324, 8, entry(path, 256))
    assert bad_places(path) == {(128, 64), (0, 0)}  # it reaches into the first tile


def test_places_that_were_swapped_are_said(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tif", compression=None)
    with tifffile.TiffFile(path) as tiff:
        offsets = list(tiff.pages.first.dataoffsets)
    set_table(path, 324, 8, offsets[15])
    set_table(path, 324, 15, offsets[8])
    (note,) = open_slide(path).notes
    assert "are in file order except 2" in note


def test_tiles_that_share_one_place_are_read(tmp_path: Path) -> None:
    """Writers keep blank glass once."""
    path = plain(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    for index in (3, 5, 7, 11):
        set_table(path, 324, index, offset)
        set_table(path, 325, index, count)
    slide = open_slide(path)
    slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert (slide.bad_tiles, slide.notes) == ((), ())


@pytest.mark.parametrize("name", ["a.scn", "a.bif", "a.svs", "a.tif"])
def test_a_tile_of_more_bytes_than_the_file_is_refused_before_any_reader_asks_for_that_memory(
    tmp_path: Path, name: str
) -> None:
    path, levels = tmp_path / name, pyramid(tissue(512, 256), 2)
    {
        "a.scn": lambda: write_scn(path, levels, 0, 0, (600, 300)),
        "a.bif": lambda: write_bif(path, levels[0]),
        "a.svs": lambda: write_svs(path, levels),
        "a.tif": lambda: write_tiff(path, levels),
    }[name]()
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[1].tags[325]
        values = [*np.atleast_1d(tag.value)]
        values[0] = 3_053_037_417
        tag.overwrite(values, dtype=LONG)
    assert "cut off: a tile of 3053037417 bytes in a file of" in refusal(path)


def test_a_list_of_directories_that_runs_in_a_circle_ends(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(WIDTH, HEIGHT), 2), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[1]
        at = last.offset + 2 + 12 * len(last.tags)
    for target in (8, last.offset):
        overwrite(path, at, struct.pack("<I", target))
        assert "is circular" in refusal(path)


def test_a_list_of_directories_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(WIDTH, HEIGHT), 2), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first
        at = first.offset + 2 + 12 * len(first.tags)
    overwrite(path, at, struct.pack("<I", path.stat().st_size + 100))
    slide = open_slide(path)
    assert len(slide.levels) == 1
    assert any("its list of images is incomplete" in note for note in slide.notes)


def test_a_description_of_another_size_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    description = "Aperio Image\r\n384x200 [0,0 384x200] (64x64) |MPP = 0.25"
    write_tiff(path, [tissue(WIDTH, HEIGHT)], description=description)
    assert "its description states 384x200 px" in open_slide(path).notes[0]


@pytest.mark.parametrize("form", ["SubIFDs", "pages"])
def test_the_resolution_is_that_of_the_image_taken(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, pyramid(tissue(WIDTH, HEIGHT), 2), 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    slide = open_slide(path)
    assert slide.mpp is not None
    assert slide.mpp.x == 0.5
    other = tmp_path / "b.ome.tif"
    write_ome(other, [tissue(WIDTH, HEIGHT)], 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    data = other.read_bytes().replace(b'SizeX="384"', b'SizeX="768"')
    other.write_bytes(data)
    assert str(open_slide(other).mpp_search.candidates[0]) == (
        "ome.PhysicalSizeX: no Pixels of 384 × 256 in the OME-XML"
    )


@pytest.mark.parametrize(
    ("unit", "mpp"), [("um", 0.25), ("micron", 0.25), ("\\u00B5m", 0.25), ("nm", None), ("cm", None)]
)
def test_the_unit_of_an_imagej_tiff_is_read(tmp_path: Path, unit: str, mpp: float | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(128, 64), imagej=True, resolution=(4, 4), metadata={"unit": unit, "axes": "YXS"})
    slide = open_slide(path)
    assert (slide.mpp.x if slide.mpp else None) == mpp
    if mpp is not None:
        assert slide.mpp is not None
        assert slide.mpp.source == "imagej.unit"


def test_an_imagej_unit_that_is_no_length_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(128, 64), imagej=True, resolution=(4, 4), metadata={"unit": "pixel", "axes": "YXS"})
    with pytest.raises(InputError, match=r"imagej\.unit: unit 'pixel' is not a length; tiff.XResolution: 4 pixels per"):
        open_slide(path).require_mpp()


@pytest.mark.parametrize(
    ("kind", "layout", "value"), [(FLOAT, "<f", 40_000.0), (LONG, "<I", 40_000), (SHORT, "<H", 40_000)]
)
def test_a_resolution_of_another_type_than_rational_is_read(
    tmp_path: Path, kind: int, layout: str, value: float
) -> None:
    path = plain(tmp_path / "a.tif", resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    for code in (282, 283):
        at = entry(path, code)
        overwrite(path, at + 2, struct.pack("<H", kind))
        overwrite(path, at + 8, struct.pack(layout, value).ljust(4, b"\0"))
    slide = open_slide(path)
    assert slide.mpp is not None
    assert slide.mpp.x == pytest.approx(0.25)


def test_absent_is_never_said_of_a_tag_that_is_there(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tif", resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    for code in (282, 283):
        set_entry(path, code, type=ASCII)
    assert "absent" not in str(open_slide(path).mpp_search.candidates[-1])
    svs = write_svs(tmp_path / "a.svs", [tissue(WIDTH, HEIGHT)], mpp=None, resolution=(0, 0))
    svs.write_bytes(svs.read_bytes().replace(b"AppMag = 40", b"MPP = 0.x  "))
    looked = {candidate.source: str(candidate) for candidate in open_slide(svs).mpp_search.candidates}
    assert "'0.x' is not a number" in looked["aperio.MPP"]
    picture = io.BytesIO()
    Image.fromarray(tissue(64, 64)).save(picture, "JPEG")
    (tmp_path / "a.jpg").write_bytes(picture.getvalue())
    assert "1 pixels per no unit" in str(open_slide(tmp_path / "a.jpg").mpp_search.candidates[0])


@pytest.mark.parametrize("tile_px", [64, None])
def test_a_palette_is_read_in_tiles_and_in_strips(tmp_path: Path, tile_px: int | None) -> None:
    index = (tissue(WIDTH, HEIGHT)[..., 0] // 4).astype(np.uint8)
    table = np.zeros((3, 256), np.uint16)
    table[:, :64] = np.arange(64) * 4 * 257 // np.array([[1], [2], [3]])
    path = tmp_path / "a.tif"
    shape: dict[str, Any] = {"tile": (tile_px, tile_px)} if tile_px else {"rowsperstrip": 48}
    tifffile.imwrite(path, index, photometric="palette", colormap=table, compression="lzw", metadata=None, **shape)
    slide = open_slide(path)
    got = slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert slide.reader == "tiff"
    assert np.abs(got.astype(int) - (table[:, index] // 257).transpose(1, 2, 0)).max() <= 1


def test_a_meaning_of_the_fourth_sample_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    """The two readers show different pictures: neither is believed."""
    alpha = np.full((HEIGHT, WIDTH, 1), 40, np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.concatenate([tissue(WIDTH, HEIGHT), alpha], 2),
        photometric="rgb",
        extrasamples=["unspecified"],
        tile=(64, 64),
        compression="zlib",
        metadata=None,
    )
    message = refusal(path)
    assert "the two readers show different images" in message
    assert "pass --reader tiff or --reader openslide" in message
    for reader in ("tiff", "openslide"):
        assert open_slide(path, reader=reader).reader == reader  # type: ignore[arg-type]


def test_a_small_slide_of_damaged_tiles_is_not_handed_to_a_reader_that_mends_them(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(64, 64)])
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    overwrite(path, offset + count // 2, bytes(count - count // 2))
    slide = open_slide(path)
    assert slide.reader == "tiff"
    with pytest.raises(InputError, match="not one tile of level 0 can be read"):
        slide.canvas(64)


def test_plain_bytes_that_end_in_zeros_are_said(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT)], compression=None, tile_px=None)
    assert open_slide(path).notes == ()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4].ljust(len(data), b"\0"))
    assert "is zeros: black, or an aborted copy" in open_slide(path).notes[0]


def test_zeros_that_fill_a_last_tile_up_are_no_damage(tmp_path: Path) -> None:
    for width, height in ((WIDTH + 3, HEIGHT + 3), (40, 40), (300, 65)):
        path = write_tiff(tmp_path / f"{width}.tif", [tissue(width, height)], compression=None)
        assert open_slide(path).notes == ()


@pytest.mark.parametrize("content", ["zeros", "no size"])
@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
def test_a_directory_without_an_image_is_refused(tmp_path: Path, content: str, reader: str) -> None:
    """A copy whose end became zeros has such a one where its reduced copies stood."""
    path = write_tiff(tmp_path / "a.tif", pyramid(tissue(WIDTH, HEIGHT), 2), compression=None)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[1].offset
    if content == "zeros":
        overwrite(path, at, bytes(path.stat().st_size - at))
    else:
        set_entry(path, 256, 1, number=60_000)
    assert "directory 2 of its list describes no image" in refusal(path, reader=reader)


@pytest.mark.parametrize("code", [266, 284])
@pytest.mark.parametrize("value", [0, 3, 7, 65_535])
@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("name", ["a.tif", "a.svs"])
def test_an_order_of_samples_or_bits_that_the_format_does_not_know_is_refused(
    tmp_path: Path, code: int, value: int, page: int, name: str
) -> None:
    path, levels = tmp_path / name, pyramid(tissue(WIDTH, HEIGHT), 2)
    if name == "a.svs":
        write_svs(path, levels)
    else:
        write_tiff(path, levels, compression=None)
    if code == 266:  # in place of the tag before it
        set_entry(path, 262, page, number=266, value=value)
    else:
        set_entry(path, code, page, value=value)
    assert f"is {value}, which the format does not define" in refusal(path)


def test_a_place_without_bytes_in_an_svs_is_damage_too(tmp_path: Path) -> None:
    """OpenSlide fills it from another level without a word."""
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(WIDTH, HEIGHT), 2))
    set_table(path, 325, 8, 0)
    slide = open_slide(path)
    slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert slide.reader == "tiff"
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles] == [(128, 64)]


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
@pytest.mark.parametrize("name", ["a.tif", "a.svs", "a.scn", "one tile.tif"])
@pytest.mark.parametrize("lost", [True, False])
def test_compressed_tiles_that_are_called_plain_are_refused(tmp_path: Path, name: str, reader: str, lost: bool) -> None:
    path = tmp_path / name
    size_px = (64, 64) if name.startswith("one") else (WIDTH, HEIGHT)
    if name == "a.scn":
        write_scn(path, [tissue(*size_px)], 0, 0, (400, 300))
    elif name == "a.svs":
        write_svs(path, [tissue(*size_px)])
    else:
        write_tiff(path, [tissue(*size_px)], compression="zlib")
    set_entry(path, 259, **({"number": 60_000} if lost else {"value": 1}))
    if lost or not name.startswith("one"):
        assert "bytes of plain pixels" in refusal(path, **_reader(name, reader))
    elif reader != "openslide":
        slide = open_slide(path, **_reader(name, reader))
        slide.read_region(0, 0, 0, *size_px)
        assert len(slide.bad_tiles) == 1


def _reader(name: str, reader: str) -> dict[str, Any]:
    return {} if name == "a.scn" and reader == "tiff" else {"reader": reader}


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_plain_tiles_that_are_padded_are_read(tmp_path: Path, padding: int) -> None:
    path = plain(tmp_path / "a.tif", compression=None)
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.pages.first.databytecounts
    for index, count in enumerate(counts[:1]):
        set_table(path, 325, index, count + padding)
    assert open_slide(path).notes == ()


def test_one_plain_tile_of_too_few_bytes_costs_that_tile(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tif", compression=None)
    set_table(path, 325, 8, 5000)
    assert bad_places(path) == {(128, 64)}


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_palette_that_is_called_grey_is_refused(tmp_path: Path, photometric: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        tissue(WIDTH, HEIGHT)[..., 0],
        photometric="palette",
        colormap=np.zeros((3, 256), np.uint16),
        tile=(64, 64),
        compression="zlib",
        metadata=None,
    )
    assert "it has a palette (ColorMap)" in refusal(set_entry(path, 262, value=photometric))


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
def test_a_fourth_sample_without_a_meaning_is_refused(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.concatenate([tissue(WIDTH, HEIGHT), np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], 2),
        photometric="rgb",
        extrasamples=["unassalpha"],
        tile=(64, 64),
        compression="zlib",
        metadata=None,
    )
    assert open_slide(path).reader == "tiff"
    assert "its tag ExtraSamples is missing" in refusal(set_entry(path, 338, number=60_000), reader=reader)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", None])
def test_strips_of_too_few_bytes_for_their_width_are_refused(tmp_path: Path, compression: str | None) -> None:
    """The number of strips fits any width: 4,000,000 px would be made for minutes."""
    path = plain(tmp_path / "a.tif", compression=compression, tile_px=None, rowsperstrip=16)
    overwrite(path, entry(path, 256) + 2, struct.pack("<HII", LONG, 1, 4_000_000))
    assert "have too few bytes for 4000000 × 16 px" in refusal(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", None])
@pytest.mark.parametrize("tile_px", [256, None])
def test_one_colour_is_packed_as_far_as_a_codec_can(
    tmp_path: Path, compression: str | None, tile_px: int | None
) -> None:
    path = tmp_path / "a.tif"
    shape: dict[str, Any] = {"tile": (1024, 1024)} if tile_px else {"rowsperstrip": 1500}
    pixels = np.full((4000, 2048, 3), 255, np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, metadata=None, **shape)
    with open_slide(path) as slide:
        assert (slide.read_region(0, 3990, 0, 64, 10) == 255).all()
        assert slide.bad_tiles == ()


def test_a_place_that_damage_has_emptied_is_no_place_of_another_tile(tmp_path: Path) -> None:
    """Of three tiles with damaged places two lie over others, and one lies where two others were."""
    path = plain(tmp_path / "a.tif", compression=None)
    with tifffile.TiffFile(path) as tiff:
        offsets = list(tiff.pages.first.dataoffsets)
    set_table(path, 324, 8, offsets[15] + 100)
    set_table(path, 324, 9, offsets[20] + 50)
    set_table(path, 324, 10, offsets[8] + 3000)
    assert {(128, 64), (192, 64), (256, 64)} <= bad_places(path)


def test_a_tag_that_cannot_be_read_is_refused_where_nothing_is_logged(tmp_path: Path) -> None:
    """tifffile leaves it out, and says so to its log alone: pixels of a predictor would be read without it."""
    path = plain(tmp_path / "a.tif", compression="zlib", predictor=True)
    set_entry(path, 317, count=1_000_000)
    logging.disable()
    try:
        assert "its tag Predictor cannot be read" in refusal(path)
    finally:
        logging.disable(logging.NOTSET)
