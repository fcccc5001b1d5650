"""DICOM slides in the layouts of archives: the right pixels, resolution and orientation, or one clear line."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import convert_color_space
from tests.slides.dicom_files import (
    CODECS,
    TILE_PX,
    positions_of,
    tiles_of,
    write_instance,
    write_level,
    write_parts,
)
from tests.slides.slide_files import Pixels, dicom_series, halved, tissue, write_svs

from longvit.errors import InputError
from longvit.slides.reader import Slide, open_slide

WIDTH, HEIGHT = 300, 200
ORIENTATION = "0\\-1\\0\\-1\\0\\0"


def image(seed: int = 0) -> Pixels:
    return np.roll(tissue(WIDTH, HEIGHT), 37 * seed, axis=1)


def pixels_of(slide: Slide, level: int = 0) -> Pixels:
    assert not slide.bad_tiles
    pixels = slide.read_region(0, 0, level, *slide.levels[level].size_px)
    assert not slide.bad_tiles
    return pixels


def check(path: Path, expected: Pixels, *, mpp: float | None = 0.5, tolerance: int = 0) -> Slide:
    """The slide at `path`, whose pixels, resolution and orientation are those expected."""
    slide = open_slide(path)
    assert (slide.vendor, slide.reader, slide.size_px) == ("dicom", "dicom", (WIDTH, HEIGHT))
    difference = np.abs(pixels_of(slide).astype(int) - expected)
    assert int(difference.max()) <= tolerance
    assert (slide.mpp and (slide.mpp.x, slide.mpp.y)) == (mpp and pytest.approx((mpp, mpp), rel=1e-6))
    assert slide.properties["dicom.ImageOrientationSlide"] == ORIENTATION
    return slide


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_slide(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_and_colour_gives_the_pixels(tmp_path: Path, codec: str) -> None:
    pixels = image()
    is_grey = "grey" in codec or "inverted" in codec
    stored = pixels[..., 1] if is_grey else pixels
    path = write_level(tmp_path / "a.dcm", stored, codec=codec)
    expected = np.repeat(stored[..., None], 3, axis=2) if is_grey else pixels
    if codec in ("jpeg", "jpeg rgb", "jpeg grey"):
        lossy = together([decoded_by_pillow(frame) for frame in frames_of(path)])
        assert np.abs(expected.astype(int) - lossy).mean() < 6
        expected = lossy
    elif "422" in codec:
        expected = together([with_shared_chroma(tile) for tile in tiles_of(pixels)])
    slide = check(path, expected, tolerance=2 if codec.endswith(("ycbcr", "422")) else 0)
    assert slide.levels[0].compression == codec.split()[0].replace("plain", "none")


def frames_of(path: Path) -> list[bytes]:
    data = dcmread(path)
    return list(generate_frames(data.PixelData, number_of_frames=data.NumberOfFrames))


def together(tiles: list[Pixels]) -> Pixels:
    columns = -(-WIDTH // TILE_PX)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)[:HEIGHT, :WIDTH]


def decoded_by_pillow(frame: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(frame)).convert("RGB"))


def with_shared_chroma(tile: Pixels) -> Pixels:
    """RGB where each pair of pixels has the chroma of the left one."""
    ycbcr = convert_color_space(tile, "RGB", "YBR_FULL")
    ycbcr[:, 1::2, 1:] = ycbcr[:, ::2, 1:]
    return convert_color_space(ycbcr, "YBR_FULL", "RGB")


@pytest.mark.parametrize("codec", ["jpeg", "jpeg rgb", "jpeg2000", "plain"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_pixels_are_those_of_openslide(tmp_path: Path, codec: str, sparse: bool) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec=codec, sparse=sparse)
    forced = open_slide(path, reader="openslide")
    assert forced.reader == "openslide"
    assert np.array_equal(pixels_of(forced), pixels_of(open_slide(path)))


@pytest.mark.parametrize(
    "how", [{"table": "empty"}, {"table": "extended"}, {"fragments": 3}, {"fragments": 2, "table": "empty"}]
)
def test_frames_are_found_with_every_table_of_offsets(tmp_path: Path, how: dict[str, Any]) -> None:
    check(
        write_level(tmp_path / "a.dcm", image(), codec="jpegls" if "fragments" in how else "jpeg2000", **how), image()
    )


def test_levels_label_overview_and_thumbnail_are_told_apart(tmp_path: Path) -> None:
    series, pixels = dicom_series(), image()
    write_level(tmp_path / "3.dcm", pixels, series, codec="jpegls")
    write_level(tmp_path / "1.dcm", halved(pixels), series, codec="jpegls", spacing_mm=(0.001, 0.001))
    for index, flavour in enumerate(("LABEL", "OVERVIEW", "THUMBNAIL")):
        write_level(tmp_path / f"0{index}.dcm", image(index + 1)[:100, :150], series, flavour=flavour)
    for path in (tmp_path, tmp_path / "3.dcm", tmp_path / "1.dcm", tmp_path / "00.dcm"):
        slide = check(path, pixels)
        assert [level.size_px for level in slide.levels] == [(300, 200), (150, 100)]
        assert np.array_equal(pixels_of(slide, 1), halved(pixels))
        assert not slide.notes


def test_a_label_alone_is_no_slide(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), flavour="LABEL")
    assert "no file of its series is a level of the slide (ImageType VOLUME); found: label" in refusal(path)


def test_an_unknown_flavour_is_noted_or_refused_where_it_might_be_level_0(tmp_path: Path) -> None:
    series = dicom_series()
    write_level(tmp_path / "0.dcm", image(), series, codec="jpegls")
    write_level(tmp_path / "1.dcm", halved(image()), series, flavour="CHART")
    assert check(tmp_path, image()).notes == ("1.dcm is not used: its ImageType is CHART",)
    write_level(tmp_path / "0.dcm", image(), series, flavour="VOLUMF")
    write_level(tmp_path / "1.dcm", halved(image()), series)
    assert "0.dcm: damaged or cut off: its ImageType is 'VOLUMF'" in refusal(tmp_path)


@pytest.mark.parametrize("codec", ["jpeg2000", "plain"])
def test_a_concatenation_is_one_level(tmp_path: Path, codec: str) -> None:
    files = write_parts(tmp_path, image(), dicom_series(), 3, codec=codec)
    check(tmp_path, image())
    check(files[1], image())
    files[1].unlink()
    assert "is missing, or two parts overlap" in refusal(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    files = write_parts(tmp_path, image(), dicom_series(), 3, codec=codec)
    files[2].unlink()
    assert "2 of 3 parts of its concatenation are there" in refusal(files[0])


def test_sparse_tiles_are_put_in_their_places_and_missing_ones_are_background(tmp_path: Path) -> None:
    pixels = image()
    check(write_level(tmp_path / "a.dcm", pixels, sparse=True, codec="jpegls"), pixels)
    frames, places = tiles_of(pixels), positions_of(pixels)
    kept = [i for i in range(len(frames)) if i not in (0, 7)]
    path = write_instance(
        tmp_path / "a.dcm",
        [frames[i] for i in kept],
        (WIDTH, HEIGHT),
        codec="jpegls",
        positions=[places[i] for i in kept],
    )
    expected = pixels.copy()
    expected[:64, :64] = expected[64:128, 128:192] = 255
    assert check(path, expected).notes == ("2 of 20 tiles of level 0 were never written: they are background",)


def test_sparse_tiles_in_several_files_without_a_concatenation_are_one_level(tmp_path: Path) -> None:
    pixels, series = image(), dicom_series()
    frames, places = tiles_of(pixels), positions_of(pixels)
    for name, part in (("0.dcm", slice(0, 20, 2)), ("1.dcm", slice(1, 20, 2))):
        write_instance(tmp_path / name, frames[part], (WIDTH, HEIGHT), series, codec="jpegls", positions=places[part])
    check(tmp_path, pixels)


def test_tiles_off_the_grid_or_in_one_place_are_refused(tmp_path: Path) -> None:
    frames, places = tiles_of(image()), positions_of(image())
    places[3] = (places[3][0] + 5, places[3][1])
    path = write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), positions=places)
    assert "its tiles are not on a grid of 64 × 64 px" in refusal(path)
    places[3] = places[4]
    write_instance(path, frames, (WIDTH, HEIGHT), positions=places)
    assert "two frames show tile (4, 0) of its level of 300 × 200 px" in refusal(path)
    places[3] = (5000, 1)
    write_instance(path, frames, (WIDTH, HEIGHT), positions=places)
    assert "frame 4 is at (5000, 1) of 300 × 200 px" in refusal(path)


def test_of_several_focal_planes_the_middle_one_is_read_and_named(tmp_path: Path) -> None:
    planes = [image(i) for i in range(3)]
    frames = [tile for plane in planes for tile in tiles_of(plane)]
    path = write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), codec="jpegls", TotalPixelMatrixFocalPlanes=3)
    assert check(path, planes[1]).notes == ("focal plane 2 of 3 is read (z = 1 µm)",)
    n = len(frames) // 3
    places = positions_of(planes[0]) * 3
    write_instance(
        path,
        frames,
        (WIDTH, HEIGHT),
        codec="jpegls",
        positions=places,
        planes=[0.004] * n + [0.002] * n + [0.006] * n,
    )
    assert check(path, planes[0]).notes == ("focal plane 2 of 3 is read (z = 4 µm)",)


def test_a_plane_that_follows_the_tissue_is_no_choice_of_planes(tmp_path: Path) -> None:
    frames, places = tiles_of(image()), positions_of(image())
    z_mm = [0.001 * (i % 3) for i in range(len(frames))]
    path = write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), codec="jpegls", positions=places, planes=z_mm)
    assert not check(path, image()).notes


def test_of_several_optical_paths_the_first_is_read_and_named(tmp_path: Path) -> None:
    stains = [image(i)[..., 0] for i in range(2)]
    frames = [tile for stain in stains for tile in tiles_of(stain)]
    names = ("DAPI", "FITC")
    path = write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), codec="plain grey", optical_paths=names)
    first = np.repeat(stains[0][..., None], 3, axis=2)
    assert check(path, first).notes == ("optical path 1 of 2 is read (DAPI DAPI)",)
    n = len(frames) // 2
    write_instance(
        path,
        frames[n:] + frames[:n],
        (WIDTH, HEIGHT),
        codec="plain grey",
        optical_paths=names,
        positions=positions_of(stains[0]) * 2,
        path_names=["FITC"] * n + ["DAPI"] * n,
    )
    assert check(path, first).notes == ("optical path 1 of 2 is read (DAPI DAPI)",)


def test_optical_paths_in_files_of_their_own(tmp_path: Path) -> None:
    series = dicom_series()
    for index, name in enumerate(("A", "B", "C")):
        stain = image(index)[..., 0]
        write_level(tmp_path / f"{index}.dcm", stain, series, codec="plain grey", optical_paths=(name,))
        write_level(
            tmp_path / f"{index}s.dcm",
            halved(stain),
            series,
            codec="plain grey",
            optical_paths=(name,),
            spacing_mm=(0.001, 0.001),
        )
    slide = check(tmp_path, np.repeat(image()[..., :1], 3, axis=2))
    assert slide.notes == ("optical path 1 of 3 is read (A A)",)
    assert np.array_equal(pixels_of(slide, 1)[..., 0], halved(image()[..., 0]))


def test_resolution_from_the_volume_and_absent(tmp_path: Path) -> None:
    volume = {"ImagedVolumeWidth": WIDTH * 0.00025, "ImagedVolumeHeight": HEIGHT * 0.00025}
    path = write_level(tmp_path / "a.dcm", image(), spacing_mm=None, codec="plain", **volume)
    slide = check(path, image(), mpp=0.25)
    assert slide.mpp is not None
    assert slide.mpp.source == "dicom.ImagedVolumeWidth"
    check(write_level(path, image(), spacing_mm=None, codec="plain"), image(), mpp=None)
    slide = check(write_level(path, image(), codec="plain", **volume), image())
    assert slide.notes == ("its PixelSpacing gives 0.5 µm/px, its ImagedVolumeWidth 0.25: one of them is wrong",)


def test_spacing_between_rows_is_that_along_y(tmp_path: Path) -> None:
    slide = open_slide(write_level(tmp_path / "a.dcm", image(), spacing_mm=(0.0005, 0.00025)))
    assert slide.mpp is not None
    assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.25, 0.5))


def test_several_series_in_one_folder_are_named_and_each_file_opens_its_own(tmp_path: Path) -> None:
    first, second = dicom_series(), dicom_series()
    write_level(tmp_path / "a0.dcm", image(), first, codec="plain")
    write_level(tmp_path / "a1.dcm", halved(image()), first, codec="plain")
    write_level(tmp_path / "b0.dcm", image(1), second, codec="plain")
    assert "a folder of 2 DICOM slides; name one of their files" in refusal(tmp_path)
    assert "b0.dcm" in refusal(tmp_path)
    assert len(check(tmp_path / "a1.dcm", image()).levels) == 2
    assert len(check(tmp_path / "b0.dcm", image(1)).levels) == 1


def test_two_slides_in_one_series_are_named_and_each_file_opens_its_own(tmp_path: Path) -> None:
    series = dicom_series()
    for name, seed in (("a", 0), ("b", 1)):
        glass = series | {"frame": dicom_series()["frame"]}
        write_level(tmp_path / f"{name}.dcm", image(seed), glass, codec="plain")
    assert "2 slides or pyramids in one series; name one of their files" in refusal(tmp_path)
    assert "that of b.dcm is read" in check(tmp_path / "b.dcm", image(1)).notes[0]


def test_a_copy_of_a_file_in_its_folder_is_noted(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="plain")
    shutil.copy(path, tmp_path / "b.dcm")
    assert check(tmp_path, image()).notes == ("b.dcm is not used: a copy of a.dcm",)


def test_files_without_extension_are_a_slide(tmp_path: Path) -> None:
    series = dicom_series()
    write_level(tmp_path / "IM0", image(), series, codec="plain")
    write_level(tmp_path / "1.2.840.7", halved(image()), series, codec="plain")
    assert len(check(tmp_path, image()).levels) == 2
    assert len(check(tmp_path / "IM0", image()).levels) == 2


def test_a_level_of_another_orientation_is_not_used(tmp_path: Path) -> None:
    series = dicom_series()
    write_level(tmp_path / "0.dcm", image(), series, codec="plain")
    write_level(tmp_path / "1.dcm", halved(image()), series, ImageOrientationSlide=[1, 0, 0, 0, 1, 0])
    slide = check(tmp_path, image())
    assert len(slide.levels) == 1
    assert "its orientation on the glass" in slide.notes[0]


def test_colours_that_the_streams_state_override_the_header(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="jpeg")
    right = pixels_of(open_slide(path))
    write_level(path, image(), codec="jpeg", PhotometricInterpretation="RGB")
    slide = check(path, right)
    assert slide.notes == ("level 0: its PhotometricInterpretation says RGB, its JPEG tiles are YCbCr",)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, "only 8-bit RGB or grey is read"),
        ({"PixelRepresentation": 1}, "signed"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "its PhotometricInterpretation is 'PALETTE COLOR'"),
        ({"DimensionOrganizationType": "3D"}, "its frames are organised as '3D'"),
        ({"SamplesPerPixel": 1}, "RGB needs 3 samples per pixel, it states 1"),
        ({"PlanarConfiguration": None}, "it lacks PlanarConfiguration"),
        ({"BitsStored": None}, "it lacks BitsStored"),
    ],
)
def test_pixels_that_are_not_read_are_refused_in_one_line(
    tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    assert message in refusal(write_level(tmp_path / "a.dcm", image(), codec="plain", **elements))


def test_a_codec_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image())
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.save_as(path, enforce_file_format=True)
    assert "no reader reads this DICOM: the transfer syntax lossless JPEG" in refusal(path)


def test_a_canvas_is_that_of_a_tiff_with_the_same_tiles(tmp_path: Path) -> None:
    """Frames of JPEG are decoded as the tiles of an SVS are, reduced ones included."""
    import tifffile
    from pydicom.encaps import encapsulate

    pixels = tissue(512, 384)
    svs = write_svs(tmp_path / "a.svs", [pixels])
    with tifffile.TiffFile(svs) as tiff:
        page = tiff.pages.first
        tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[2:-2]
        size, tile_w = (page.imagewidth, page.imagelength), page.tilewidth
        tiles = [
            b"\xff\xd8" + tables + tiff.filehandle.read_segments([offset], [count]).__next__()[0][2:]
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        photometric = "RGB" if int(page.photometric) == 2 else "YBR_FULL_422"
    path = write_instance(
        tmp_path / "a.dcm",
        [pixels[:64, :64]] * len(tiles),
        size,
        Rows=tile_w,
        Columns=tile_w,
        PhotometricInterpretation=photometric,
        PixelData=encapsulate(tiles),
    )
    ours, theirs = open_slide(path), open_slide(svs)
    assert ours.reductions(0) == theirs.reductions(0) == (1, 2, 4, 8)
    assert np.array_equal(ours.canvas(96).pixels, theirs.canvas(96).pixels)
    assert np.array_equal(ours.canvas(32, decode="reduced").pixels, theirs.canvas(32, decode="reduced").pixels)
