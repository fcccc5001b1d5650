"""Damage inside a PNG or JPEG file is seen where the format lets it be seen, and no small file takes much memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image
from tests.slides.slide_files import Pixels, tissue

from longvit.errors import InputError
from longvit.slides.image_file import MAX_BYTES
from longvit.slides.reader import open_slide

SIZE = (300, 200)
MODES = ["RGB", "L", "RGBA", "LA", "P", "1", "P+tRNS", "interlaced"]


def picture(mode: str) -> Image.Image:
    image = Image.fromarray(tissue(*SIZE))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))))
        return image.convert(mode)
    if mode in ("P", "P+tRNS"):
        return image.quantize(64)
    return image if mode == "interlaced" else image.convert(mode)


def write_png(path: Path, mode: str) -> Path:
    settings: dict[str, Any] = {"transparency": 5} if mode == "P+tRNS" else {}
    picture(mode).save(path, "PNG", **settings)
    return path


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def whole(path: Path) -> Pixels:
    slide = open_slide(path)
    return slide.read_region(0, 0, 0, *slide.size_px)


def on_white(path: Path) -> Pixels:
    """As Pillow shows it."""
    image = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image)
    return np.asarray(canvas.convert("RGB"))


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_png_has_pillows_pixels(tmp_path: Path, mode: str) -> None:
    path = write_png(tmp_path / "a.png", mode)
    assert np.abs(whole(path).astype(int) - on_white(path)).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.3, 0.75, 0.98, 0.999])
@pytest.mark.parametrize("filling", ["zeros", "noise", "nothing"])
def test_a_png_whose_end_is_lost_is_refused(tmp_path: Path, mode: str, share: float, filling: str) -> None:
    path = write_png(tmp_path / "a.png", mode)
    data = path.read_bytes()
    keep = int(len(data) * share)
    lost = len(data) - keep
    rest = {"zeros": bytes(lost), "noise": np.random.default_rng(0).bytes(lost), "nothing": b""}[filling]
    path.write_bytes(data[:keep] + rest)
    with pytest.raises(InputError, match=r"a\.png: damaged or cut off .*; copy or download it again"):
        whole(path)


@pytest.mark.parametrize("mode", MODES)
def test_any_changed_byte_of_a_png_is_refused(tmp_path: Path, mode: str) -> None:
    path = write_png(tmp_path / "a.png", mode)
    data = path.read_bytes()
    for at in np.random.default_rng(1).integers(8, len(data), 40):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(InputError) as caught:
            whole(path)
        assert "\n" not in str(caught.value)


def test_a_png_that_ends_without_iend_is_refused_and_bytes_after_it_are_not(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", "RGB")
    data = path.read_bytes()
    path.write_bytes(data[:-12])
    with pytest.raises(InputError, match="it has no end"):
        whole(path)
    path.write_bytes(data + b"anything")
    assert (whole(path) == tissue(*SIZE)).all()


def test_an_animated_png_shows_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    frames = [Image.fromarray(tissue(*SIZE)), Image.fromarray(tissue(*SIZE, 0, 0))]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (whole(path) == tissue(*SIZE)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_zeroed_sector_of_a_jpeg_file_is_seen_in_every_mode(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue(*SIZE)).convert(mode).save(path, quality=95, progressive=progressive)
    data = path.read_bytes()
    assert np.abs(whole(path).astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() <= 1
    seen, places = 0, np.linspace(len(data) // 4, len(data) - 1024, 20).astype(int)
    for at in places:
        path.write_bytes(data[:at] + bytes(512) + data[at + 512 :])
        try:
            whole(path)
        except InputError:
            seen += 1
    assert seen >= (12 if progressive else 18)  # a scan has no checksum


def test_a_jpeg_cut_off_or_with_another_size_in_its_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue(*SIZE)).convert("CMYK").save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        whole(path)


def png_of_zeros(
    path: Path, side_px: int, kind: int, *, transparent: bool = False, declared_px: int | None = None
) -> Path:
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    packer = zlib.compressobj(9)
    row = bytes(1 + side_px * samples)
    body = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b""
    clear = chunk(b"tRNS", bytes({0: 2, 2: 6, 3: 256}[kind])) if transparent else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *[declared_px or side_px] * 2, 8, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + palette + clear + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("kind", "transparent", "bytes_per_px"),
    [
        (0, False, 1),
        (2, False, 3),
        (3, False, 3),
        (6, False, 4),
        (3, True, 4),
        (0, True, 6),
        (4, False, 6),
        (2, True, 4),
    ],
)
def test_a_png_is_refused_by_the_bytes_that_its_decoding_takes(
    tmp_path: Path, kind: int, transparent: bool, bytes_per_px: int
) -> None:
    side_px = int((MAX_BYTES / bytes_per_px) ** 0.5)
    for side, refused in ((side_px, False), (side_px + 2, True)):
        path = png_of_zeros(tmp_path / "a.png", 64, kind, transparent=transparent, declared_px=side)
        if not refused:
            assert open_slide(path).size_px == (side, side)
            continue
        with pytest.raises(InputError, match=f"takes {bytes_per_px} bytes per pixel.*convert it to a tiled TIFF"):
            open_slide(path)


def test_a_jpeg_in_several_scans_is_refused_by_what_libjpeg_keeps_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for settings, bytes_per_px in (({}, 3), ({"progressive": True, "subsampling": 0}, 9), ({"progressive": True}, 6)):
        Image.fromarray(tissue(64, 64)).save(path, **settings)
        data = path.read_bytes()
        at = data.index(b"\xff\xc2" if settings else b"\xff\xc0")
        side = int((MAX_BYTES / bytes_per_px) ** 0.5) + 10
        path.write_bytes(data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :])
        with pytest.raises(InputError, match=f"takes {bytes_per_px} bytes per pixel"):
            open_slide(path)


def bomb(path: Path, data: bytes, compression: str, tile_px: int = 256) -> Path:
    tifffile.imwrite(
        path,
        iter([data]),
        shape=(tile_px, tile_px, 3),
        dtype="uint8",
        tile=(tile_px, tile_px),
        compression=compression,
        photometric="ycbcr" if compression == "jpeg" else "rgb",
        metadata=None,
    )
    return path


PEAK = """
import sys
from longvit.errors import InputError
from longvit.slides.reader import open_slide
for path in sys.argv[1:]:
    try:
        open_slide(path).canvas(64)
        print("read", path)
    except InputError as error:
        print(error)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def test_small_files_that_unpack_to_gigabytes_are_refused_cheaply(tmp_path: Path) -> None:
    """The peak of a fresh process over all of them stays under 150 MB."""
    packer = zlib.compressobj(9)
    deflated = b"".join(packer.compress(bytes(2**20)) for _ in range(400)) + packer.flush()
    big = np.zeros((4096, 4096, 3), np.uint8)
    paths = [
        bomb(tmp_path / "deflate.tif", deflated, "adobe_deflate"),
        bomb(tmp_path / "zstd.tif", imagecodecs.zstd_encode(bytes(2**28), level=1), "zstd"),
        bomb(tmp_path / "packbits.tif", b"\x81\0" * 4_000_000, "packbits"),
        bomb(tmp_path / "webp.tif", imagecodecs.webp_encode(big, lossless=True, level=0), "webp"),
        bomb(tmp_path / "jpeg.tif", simplejpeg.encode_jpeg(big, colorspace="RGB"), "jpeg"),
        bomb(tmp_path / "one.tif", zlib.compress(b""), "adobe_deflate", tile_px=16_384),
        png_of_zeros(tmp_path / "rgb.png", 64, 2, declared_px=16_384),
        png_of_zeros(tmp_path / "palette.png", 64, 3, transparent=True, declared_px=16_384),
    ]
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True, text=True, check=True)
    *lines, peak_kb = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in paths]
    assert int(peak_kb) / 1024 < 150


def test_one_large_strip_of_plain_bytes_is_read_in_pieces(tmp_path: Path) -> None:
    """ImageJ writes such files; the tile limit is not for them."""
    pixels = np.tile(tissue(1000, 500), (3, 2, 1))
    for planar in (False, True):
        path = tmp_path / f"{planar}.tif"
        data = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if planar else pixels
        settings: dict[str, Any] = {"planarconfig": "separate"} if planar else {}
        tifffile.imwrite(path, data, photometric="rgb", metadata=None, rowsperstrip=pixels.shape[0], **settings)
        slide = open_slide(path)
        assert slide.levels[0].tile_px[1] < pixels.shape[0]
        assert (slide.read_region(0, 0, 0, *slide.size_px) == pixels).all()


def test_what_of_the_damage_a_reader_sees_is_told(tmp_path: Path) -> None:
    from longvit.slides.slide_info import damage_seen, info

    png = open_slide(write_png(tmp_path / "a.png", "RGB"))
    assert damage_seen(png).startswith("all")
    for compression, word in (
        ("zlib", "all"),
        ("jpeg", "much"),
        ("lzw", "some"),
        ("jpeg2000", "little"),
        (None, "little"),
    ):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, tissue(*SIZE), photometric="rgb", tile=(64, 64), compression=compression, metadata=None)
        assert damage_seen(open_slide(path)).startswith(word)
    assert info(png)["damage_seen"] == damage_seen(png)
