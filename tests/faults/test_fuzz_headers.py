"""Headers of any content: a slide is read, or refused in one line, by a process that neither dies nor hangs.

Pixels are not compared here: a header may be edited into that of another valid file. `damaged_slides` compares them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.damaged_slides import ReadingProcess
from tests.faults.fuzz import nasty_text
from tests.faults.made_slides import Layout, kinds, layout
from tests.slides.slide_files import ome_xml, pyramid, tissue, write_scn, write_tiff

TIFFS = ("TIFF Deflate", "TIFF JPEG", "TIFF uncompressed strips", "TIFF Deflate palette", "BigTIFF Deflate",
    "OME-TIFF JPEG",
         "SVS JPEG 2000", "SCN", "NDPI", "BIF")  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 255, 256, 65_535, 2**20, 2**22, 2**31 - 1, 2**31, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
)


@pytest.fixture(scope="module")
def reading() -> Iterator[ReadingProcess]:
    process = ReadingProcess()
    yield process
    process.end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Layout, str]]:
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for kind in kinds().values():
        if not kind.damaged:
            path = folder / f"{kind.name.replace(' ', '_')}{kind.suffix}"
            kind.write(path)
            content = path.read_bytes()
            found[kind.name] = content, layout(kind, content), kind.suffix
    return found


def _monitored(reading: ReadingProcess, path: Path) -> None:
    found = reading.ask({"path": str(path), "store": ""})
    assert found["outcome"] in ("same", "refused"), f"{found['outcome']}: {found['message']}"


@given(
    name=st.sampled_from(TIFFS),
    edits=st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["code", "type", "count", "value"]), NUMBERS),
        min_size=1, max_size=4),
)  # fmt: skip
def test_any_tags_of_a_tiff(reading: ReadingProcess, whole: Any, tmp_path: Path, name: str, edits: Any) -> None:
    content, places, suffix = whole[name]
    edited = bytearray(content)
    for index, field, number in edits:
        entry = places.entries[index % len(places.entries)]
        if field == "code":
            struct.pack_into("<H", edited, entry.at, number % 65_536)
        elif field == "type":
            struct.pack_into("<H", edited, entry.type_at, number % 20)
        elif field == "count":
            struct.pack_into("<I", edited, entry.count_at, number)
        else:
            struct.pack_into("<I", edited, entry.at + (12 if entry.big else 8), number)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(edited))
    _monitored(reading, path)


@given(
    name=st.sampled_from(["PNG RGB", "PNG grey", "PNG RGBA", "PNG palette"]),
    size=st.tuples(NUMBERS, NUMBERS),
    depth=st.sampled_from([0, 1, 2, 4, 8, 16, 255]),
    colour=st.sampled_from([0, 1, 2, 3, 4, 6, 255]),
    interlace=st.sampled_from([0, 0, 1, 2]),
    lost=st.integers(0, 20),
    extra=st.tuples(st.sampled_from([b"tRNS", b"pHYs", b"iCCP", b"zTXt", b"PLTE", b"eXIf", b"acTL", b"fdAT"]),
        st.binary(max_size=40)),
)  # fmt: skip
def test_any_chunks_of_a_png(
    reading: ReadingProcess, whole: Any, tmp_path: Path, name: str, size: Any, depth: int, colour: int,
    interlace: int, lost: int, extra: Any
) -> None:  # fmt: skip
    content, places, suffix = whole[name]
    head = struct.pack(">II", *size) + bytes([depth, colour, 0, 0, interlace])
    parts = [content[start:end] for _, (start, end) in places.parts[2:]]
    if lost < len(parts):
        parts.pop(lost)
    chunks = [(b"IHDR", head), extra]
    made = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[:8] + made + b"".join(parts))
    _monitored(reading, path)


@given(
    name=st.sampled_from(["JPEG RGB", "JPEG progressive", "JPEG grey", "JPEG CMYK", "DICOM JPEG",
        "DICOM uncompressed", "DICOM JPEG 2000"]),
    edits=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 60), st.binary(min_size=1, max_size=8)), min_size=1,
        max_size=3),
)  # fmt: skip
def test_any_segments_and_elements(reading: ReadingProcess, whole: Any, tmp_path: Path, name: str, edits: Any) -> None:
    content, places, suffix = whole[name]
    edited = bytearray(content)
    for index, within, data in edits:
        start, end = places.parts[index % len(places.parts)][1]
        at = start + within % (end - start)
        edited[at : at + len(data)] = data
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(edited))
    _monitored(reading, path)


NAMES = ("PhysicalSizeX", "PhysicalSizeXUnit", "SizeX", "SizeC", "SizeZ", "Type", "ID")


@given(
    start=st.sampled_from(["", "Aperio Image Library v11\r\n384x320 (64x64)|MPP = ", "ImageJ=1.53\nunit=",
        "<?xml version='1.0'?><OME>",
                           "<!DOCTYPE a [<!ENTITY b 'c'>]><OME>&b;", "{\"shape\": ", "DICOM_PMS", "level=0 mag="]),
    text=nasty_text(4),
)  # fmt: skip
def test_any_description(reading: ReadingProcess, tmp_path: Path, start: str, text: str) -> None:
    levels = pyramid(tissue(384, 320), 2)
    for suffix in (".tif", ".svs"):
        path = tmp_path / f"a{suffix}"
        described = (start + text).encode("utf-8", "surrogatepass").replace(b"\0", b"")
        write_tiff(path, levels, compression="deflate", description=described)
        _monitored(reading, path)


@given(
    values=st.dictionaries(
        st.sampled_from(NAMES), st.one_of(nasty_text(2), NUMBERS.map(str), NUMBERS.map(lambda n: f"-{n}.5")), max_size=3
    )
)
def test_any_ome_xml(reading: ReadingProcess, tmp_path: Path, values: dict[str, str]) -> None:
    xml = ome_xml(384, 320, 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    for name, value in values.items():
        before, found, after = xml.partition(f'{name}="')
        xml = before + found + value + '"' + after.partition('"')[2] if found else xml
    path = tmp_path / "a.ome.tif"
    described = xml.encode("utf-8", "surrogatepass").replace(b"\0", b"")
    write_tiff(path, pyramid(tissue(384, 320), 2), subifds=True, description=described)
    _monitored(reading, path)


# Glass of up to 20,000 px a side: an SCN may well declare more, and then a whole canvas takes its time.
PLACES = st.sampled_from([0, 1, 63, 64, 1000, 20_000])


@given(x=PLACES, y=PLACES, size=st.tuples(PLACES, PLACES), nm=st.sampled_from([1, 500, 10**6]))
def test_any_place_of_an_scn(reading: ReadingProcess, tmp_path: Path, x: int, y: int, size: Any, nm: int) -> None:
    path = write_scn(tmp_path / "a.scn", pyramid(tissue(384, 320), 2), x, y, size, nm)
    _monitored(reading, path)
