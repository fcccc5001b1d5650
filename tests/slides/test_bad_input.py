"""What is no slide is refused early, in one line that names the file and the way out."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import (
    dicom_series,
    ome_xml,
    pyramid,
    raw_tiff_header,
    tissue,
    write_dicom,
    write_jpeg,
    write_mrxs,
    write_scn,
    write_svs,
    write_tiff,
)

from longvit.errors import InputError, one_line
from longvit.slides.reader import open_slide


def refusal(path: Path) -> str:
    """The one line that opening `path` gives."""
    with pytest.raises(InputError) as caught:
        open_slide(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.svs").endswith("no such file")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    assert "the file is empty (0 bytes); copy or download it again" in refusal(tmp_path / "a.svs")


def test_text_file_called_svs(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("slide_id,label\n")
    assert "no TIFF inside, though it is named .svs (it is text that begins with 'slide_id,label')" in refusal(
        tmp_path / "a.svs"
    )


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "a Git-LFS pointer, not the slide itself; run `git lfs pull`" in refusal(tmp_path / "a.svs")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.svs", b"\x89PNG\r\n\x1a\n" + bytes(100), "named .svs, but the content is PNG"),
        ("a.png", b"II*\0" + bytes(100), "named .png, but the content is TIFF"),
        ("a.jpg", b"%PDF-1.7" + bytes(100), "no JPEG inside, though it is named .jpg (it is a PDF)"),
        ("a.dcm", b"II*\0" + bytes(200), "named .dcm, but the content is TIFF"),
        ("a.tif", b"PK\x03\x04" + bytes(100), "it is a ZIP archive"),
        ("a.tiff", bytes(range(128, 228)), "it begins with the bytes 80 81 82 83"),
    ],
)
def test_renamed_file(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(bytes(range(200, 256)))
    assert "not a slide in a known format (see `longvit doctor` for the list)" in refusal(tmp_path / "a.xyz")
    (tmp_path / "a").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "an HDF5 file, not a slide" in refusal(tmp_path / "a")


def test_slide_without_a_suffix_opens_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "slide").write_bytes(EXAMPLE_SLIDE.read_bytes())
    assert open_slide(tmp_path / "slide").vendor == "aperio"


@pytest.mark.parametrize("keep", [6, 300, 100_000, 1_200_000])
def test_svs_cut_off_while_it_was_copied(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(EXAMPLE_SLIDE.read_bytes()[:keep])
    message = refusal(path)
    assert "cut off" in message
    assert "copy or download it again" in message


def test_tiff_whose_last_tiles_are_cut_off(tmp_path: Path) -> None:
    """The directory stands at the front here, so that only the tile table tells."""
    path = tmp_path / "a.tif"
    pixels = tissue(512, 512)
    write_tiff(path, [pixels], compression=None)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.offset < tiff.pages.first.dataoffsets[0]
    path.write_bytes(path.read_bytes()[:-300_000])
    assert "tiles of level 0 are beyond the end of the file" in refusal(path)


def test_png_and_jpeg_cut_off(tmp_path: Path) -> None:
    Image.fromarray(tissue(200, 200)).save(tmp_path / "a.png")
    write_jpeg(tmp_path / "a.jpg", tissue(200, 200))
    for name in ("a.png", "a.jpg"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=f"{name}: damaged or cut off"):
            open_slide(path).read_region(0, 0, 0, 10, 10)
        path.write_bytes(path.read_bytes()[:12])
        assert "damaged or cut off" in refusal(path)


def test_slide_of_31_px_has_no_canvas(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(31, 31)], tile_px=16)
    slide = open_slide(path)
    with pytest.raises(InputError, match=r"a\.tif: 31 × 31 px, smaller than one patch of 32 × 32 px"):
        slide.canvas(64)
    wide = write_tiff(tmp_path / "b.tif", [tissue(200, 31)], tile_px=16)
    with pytest.raises(InputError, match="smaller than one patch"):
        open_slide(wide).canvas(64, "pad")
    assert open_slide(write_tiff(tmp_path / "c.tif", [tissue(32, 32)], tile_px=16)).canvas(64).side_px == 64


def png_header(path: Path, width_px: int, height_px: int) -> Path:
    def chunk(data: bytes) -> bytes:
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    head = chunk(b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT" + bytes(100)))
    return path


def test_header_that_declares_2_to_the_31_px_is_refused_cheaply(tmp_path: Path) -> None:
    """From the header alone: the peak memory of a fresh process stays under 256 MB."""
    huge = 2**31
    paths = [
        raw_tiff_header(tmp_path / "square.svs", huge, huge, 1),
        raw_tiff_header(tmp_path / "table.tif", huge, huge, 2**32 - 1),
        raw_tiff_header(tmp_path / "wide.tif", huge - 1, 256, 1),
        png_header(tmp_path / "a.png", huge - 1, huge - 1),
        png_header(tmp_path / "b.png", 50_000, 50_000),
    ]
    script = (
        "import sys\n"
        "from longvit.slides.reader import open_slide\n"
        "from longvit.errors import InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        open_slide(path)\n"
        "    except InputError as error:\n"
        "        print(error)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    *lines, peak_kb = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines[:3]:
        assert "damaged: its header declares 214748364" in line
        assert "than the 4194304 px on a side that any slide has" in line
    assert "the header declares 2147483647 × 2147483647 px" in lines[3]
    assert "the header declares 50000 × 50000 px" in lines[4]
    assert "convert it to a tiled TIFF" in lines[4]
    assert int(peak_kb) / 1024 < 256


def test_a_tile_table_that_does_not_fit_the_size(tmp_path: Path) -> None:
    path = raw_tiff_header(tmp_path / "a.tif", 100_000, 100_000, 1)
    assert "100000 × 100000 px needs 152881 tiles, its table names 1" in refusal(path)


def test_a_single_strip_too_large_to_decode(tmp_path: Path) -> None:
    entries = [
        (256, 4, 1, 40_000), (257, 4, 1, 40_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 300), (277, 3, 1, 1), (278, 4, 1, 40_000), (279, 4, 1, 500),
    ]  # fmt: skip
    body = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    (tmp_path / "a.tif").write_bytes((body + bytes(4)).ljust(1000, b"\0"))
    assert "one piece of 40000 × 40000 px" in refusal(tmp_path / "a.tif")


def test_16_bit_tiff_and_png(tmp_path: Path) -> None:
    deep = tissue(128, 128).astype(np.uint16) * 16
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, deep, tile=(64, 64), photometric="rgb", metadata=None)
    assert "16 bits per sample (uint16); only 8-bit RGB or grey is read" in refusal(path)
    with pytest.raises(InputError, match="16 bits per sample"):
        open_slide(path, reader="openslide")  # OpenSlide itself would take it without a word
    Image.fromarray(deep[..., 0]).save(tmp_path / "a.png")
    assert "16 bits per sample" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("ome", [True, False])
def test_tiff_of_separate_channels_is_not_read_as_grey(tmp_path: Path, ome: bool) -> None:
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    planes = np.ascontiguousarray(np.moveaxis(tissue(128, 128), 2, 0))
    channels = "".join(f'<Channel ID="Channel:0:{i}" SamplesPerPixel="1"/>' for i in range(3))
    with tifffile.TiffWriter(path) as writer:
        for index, plane in enumerate(planes):
            writer.write(
                plane,
                tile=(64, 64),
                photometric="minisblack",
                metadata=None,
                description=ome_xml(128, 128, "", 3, channels).encode() if ome and index == 0 else None,
            )
    assert "3 separate planes (channels, depths or times)" in refusal(path)


def test_folder_without_dicom(tmp_path: Path) -> None:
    assert "a folder without a DICOM file" in refusal(tmp_path)


def test_folder_of_two_dicom_slides(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", tissue(128, 128), 0.001, dicom_series())
    write_dicom(tmp_path / "b.dcm", tissue(128, 128), 0.001, dicom_series())
    message = refusal(tmp_path)
    assert "a folder of 2 DICOM slides; name one of their files" in message
    assert "b.dcm" in message


def test_dicom_that_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(500))
    assert "not a whole-slide DICOM" in refusal(tmp_path / "a.dcm")


def test_mrxs_without_its_folder(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs", tissue(128, 128))
    assert open_slide(path).vendor == "mirax"
    message = refusal(Path(path).with_suffix(""))
    assert "give the file a.mrxs beside it" in message
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert "its data folder a/ is missing" in refusal(path)
    (tmp_path / "a").mkdir()
    assert "its data folder a/ holds no Slidedat.ini" in refusal(path)


def test_mrxs_with_a_file_of_its_folder_missing(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs", tissue(128, 128))
    (tmp_path / "a" / "Index.dat").unlink()
    assert "damaged or incomplete" in refusal(path)


def test_a_file_without_permission_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", [tissue(64, 64)])

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything, so chmod would prove nothing
    assert refusal(path).endswith("no permission to read it")


def test_a_level_or_region_that_does_not_exist() -> None:
    slide = open_slide(EXAMPLE_SLIDE)
    with pytest.raises(InputError, match="no level 1; it has levels 0 to 0"):
        slide.read_region(0, 0, 1, 10, 10)
    with pytest.raises(InputError, match="a region of 0 × 10 px is empty"):
        slide.read_region(0, 0, 0, 0, 10)


def test_random_damage_to_a_header_is_refused_in_one_line_or_read(tmp_path: Path) -> None:
    """Whatever a damaged directory says, nothing but an `InputError` comes out."""
    rng = np.random.default_rng(0)
    levels = pyramid(tissue(256, 192), 2)
    sources = [
        write_svs(tmp_path / "a.svs", levels),
        write_tiff(tmp_path / "b.tif", levels, compression="deflate"),
        write_tiff(tmp_path / "c.tif", levels, compression="jpeg2000"),
        write_scn(tmp_path / "d.scn", levels, 0, 0, (300, 300)),
        write_jpeg(tmp_path / "e.jpg", levels[0]),
    ]
    refusals = []
    for trial in range(200):
        source = sources[trial % len(sources)]
        data = bytearray(source.read_bytes())
        start = int.from_bytes(data[4:8], "little") if data[:2] == b"II" else 0  # the directory, or the markers
        if rng.random() < 0.2:
            data = data[: int(rng.integers(1, len(data)))]
        else:
            for at in rng.integers(start, min(len(data), start + 250), 3):
                data[at] = rng.integers(0, 256)
        path = tmp_path / f"damaged{source.suffix}"
        path.write_bytes(bytes(data))
        try:
            open_slide(path).canvas(64)
        except InputError as error:
            refusals.append(str(error))
    assert 50 < len(refusals) < 200
    assert not any("\n" in line for line in refusals)


def test_an_error_of_several_lines_becomes_one(tmp_path: Path) -> None:
    assert one_line(ValueError("tag cannot have VR '\n\x00S'\n")) == "tag cannot have VR ' S'"
    assert one_line(KeyError()) == "KeyError"
