"""Kinds of damage to a slide file, each drawn from a random generator; and what can tell the damage from a whole file.

A damage takes the bytes of a whole file and gives those of a damaged one, or None where the kind of file has nothing
of that sort (a tag, a chunk).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tests.faults.made_slides import TILE_PX, Entry, Kind, Layout

Group = Literal["data", "file", "header", "table"]
Rng = np.random.Generator
Make = Callable[[bytes, Layout, Rng], bytes | None]


@dataclass(frozen=True)
class Damage:
    """One kind of damage."""

    name: str
    group: Group
    """What it hits: pixels, the file as a whole, fields of the header, the table of tiles."""
    make: Make
    containers: tuple[str, ...] = ()
    """Empty: every one."""
    unseen: str = ""
    """Why no reader can see it, where the damaged file is as valid as the whole one."""


def damages() -> dict[str, Damage]:
    """All kinds of damage, by name."""
    return {damage.name: damage for damage in _ALL}


def touched(before: bytes, after: bytes, layout: Layout) -> set[str]:
    """What of a file a damage changed, by name; "moved" where bytes stand elsewhere or are missing."""
    if len(before) != len(after):
        return {"moved"}
    old, new = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
    return {layout.names(int(at)) for at in np.flatnonzero(old != new)}


# The data


def _one_byte(content: bytes, layout: Layout, rng: Rng) -> bytes:
    at = _in_data(layout, rng)
    return _put(content, at, bytes([content[at] ^ int(rng.integers(1, 256))]))


def _some_bytes(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _over_data(content, layout, rng, rng.bytes(int(rng.integers(8, 65))))


def _zeros_512(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _over_data(content, layout, rng, bytes(512))


def _zeros_4096(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _over_data(content, layout, rng, bytes(4096))


def _random_512(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _over_data(content, layout, rng, rng.bytes(512))


def _piece_of_another(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    """The first half of one piece's bytes over another's: a block of the disk in the wrong place."""
    if len(layout.data) < 2:
        return None
    (a0, a1), (b0, b1) = (layout.data[int(i)] for i in rng.choice(len(layout.data), 2, replace=False))
    return _put(content, b0, content[a0 : a0 + min(a1 - a0, b1 - b0) // 2])


# The file


def _cut_off(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return content[: int(len(content) * rng.uniform(0.05, 0.97))]


def _last_bytes(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return content[: -int(rng.integers(1, 200))]


def _end_is_zeros(content: bytes, layout: Layout, rng: Rng) -> bytes:
    keep = int(len(content) * rng.uniform(0.4, 0.98))
    return content[:keep] + bytes(len(content) - keep)


def _last_percent_is_zeros(content: bytes, layout: Layout, rng: Rng) -> bytes:
    keep = int(len(content) * rng.uniform(0.98, 0.999))
    return content[:keep] + bytes(len(content) - keep)


def _garbage_before(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return [rng.bytes(16), b"\xef\xbb\xbf", b"HTTP/1.1 200 OK\r\n\r\n"][int(rng.integers(3))] + content


def _garbage_behind(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 4096)))


def _byte_inserted(content: bytes, layout: Layout, rng: Rng) -> bytes:
    at = int(rng.integers(len(content)))
    return content[:at] + rng.bytes(1) + content[at:]


def _byte_lost(content: bytes, layout: Layout, rng: Rng) -> bytes:
    at = int(rng.integers(len(content)))
    return content[:at] + content[at + 1 :]


def _line_ends(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return content.replace(b"\n", b"\r\n")


def _head_is_zeros(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _put(content, int(rng.integers(0, 300)), bytes(256))


# The header


def _header_byte(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    places = _header_places(content, layout)
    if not len(places):
        return None
    at = int(rng.choice(places))
    return _put(content, at, bytes([content[at] ^ int(rng.integers(1, 256))]))


def _header_bytes(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    places = _header_places(content, layout)
    return _put(content, int(rng.choice(places)), rng.bytes(int(rng.integers(2, 9)))) if len(places) else None


def _tag_type(content: bytes, layout: Layout, rng: Rng) -> bytes:
    entry = _any(layout.entries, rng)
    return _put(content, entry.type_at, struct.pack("<H", int(rng.integers(0, 19))))


def _tag_count(content: bytes, layout: Layout, rng: Rng) -> bytes:
    entry = _any(layout.entries, rng)
    count = [0, 2, 3, 100_000, 2**31 - 1, 2**32 - 1][int(rng.integers(6))]
    return _put(content, entry.count_at, struct.pack(entry.count_format, count))


def _tag_value(content: bytes, layout: Layout, rng: Rng) -> bytes:
    entry = _any(layout.entries, rng)
    value = [0, 1, 7, 65_535, 2**31 - 1, int(rng.integers(2**32))][int(rng.integers(6))]
    return _put(content, entry.at + (12 if entry.big else 8), struct.pack("<I", value))


def _tag_lost(content: bytes, layout: Layout, rng: Rng) -> bytes:
    entry = _any(layout.entries, rng)
    return _put(content, entry.at, struct.pack("<H", 60_000 + int(rng.integers(1000))))


def _photometric(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _set(content, layout, 262, [0, 0, 4, 9, 33_000][int(rng.integers(5))], rng)


def _samples(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _set(content, layout, 277, [0, 1, 2, 3, 4, 5, 40_000][int(rng.integers(7))], rng)


def _height_shorter(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _set(content, layout, 257, [1, 48, 64][int(rng.integers(3))], rng)


def _huge_size(content: bytes, layout: Layout, rng: Rng) -> bytes:
    code = [256, 257][int(rng.integers(2))]
    return _set(content, layout, code, [40_000, 4_000_000, 4_000_000, 2**32 - 1][int(rng.integers(4))], rng, long=True)


def _huge_sides(content: bytes, layout: Layout, rng: Rng) -> bytes:
    for code in (256, 257):
        content = _set(content, layout, code, 4_000_000, rng, long=True, first=True)
    return content


def _huge_tile(content: bytes, layout: Layout, rng: Rng) -> bytes:
    codes = [code for code in (322, 323, 278) if any(entry.code == code for entry in layout.entries)]
    for code in codes:
        content = _set(content, layout, code, [16_384, 2**20, 2**31][int(rng.integers(3))], rng, long=True, first=True)
    return content


def _huge_reduced_page(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    widths = [entry for entry in layout.entries if entry.code == 256]
    if len(widths) < 2:
        return None
    return _put(_put(content, widths[1].type_at, b"\x04\0"), _field(widths[1]), struct.pack("<I", 4_000_000))


def _first_directory(content: bytes, layout: Layout, rng: Rng) -> bytes:
    big = layout.entries[0].big
    where = [0, 4, len(content) - 3, 2**32 - 1, int(rng.integers(len(content)))][int(rng.integers(5))]
    return _put(content, 8 if big else 4, struct.pack("<Q" if big else "<I", where))


def _directory_loop(content: bytes, layout: Layout, rng: Rng) -> bytes:
    start, _ = layout.directories[int(rng.integers(len(layout.directories)))]
    _, pointer = layout.directories[-1 if rng.integers(2) else 0]
    return _put(content, pointer, struct.pack("<Q" if layout.entries[0].big else "<I", start))


def _next_directory(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, pointer = layout.directories[int(rng.integers(len(layout.directories)))]
    where = [1, len(content) - 3, 2**32 - 1, int(rng.integers(len(content)))][int(rng.integers(4))]
    return _put(content, pointer, struct.pack("<Q" if layout.entries[0].big else "<I", where))


def _subdirectory_loop(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    entry = next((entry for entry in layout.entries if entry.code == 330), None)
    if entry is None:
        return None
    return _put(content, entry.value[0], struct.pack("<Q" if entry.big else "<I", layout.directories[0][0]))


# The table of tiles (or strips)


def _tile_missing(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 0, rng)
    return table.put(content, {table.pick(rng): 0})


def _tile_without_bytes(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 1, rng)
    return table.put(content, {table.pick(rng): 0})


def _tile_in_another(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    table = _table(layout, 0, rng)
    if table.n < 2:
        return None
    a, b = (int(i) for i in rng.choice(table.n, 2, replace=False))
    return table.put(content, {a: table.get(content, b) + int(rng.integers(1, 40))})


def _tiles_swapped(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    offsets, counts = _table(layout, 0, None), _table(layout, 1, None)
    if offsets.n < 2:
        return None
    a, b = (int(i) for i in rng.choice(offsets.n, 2, replace=False))
    for table in (offsets, counts):
        content = table.put(content, {a: table.get(content, b), b: table.get(content, a)})
    return content


def _tile_beyond(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 0, rng)
    return table.put(content, {table.pick(rng): (1 << 8 * table.width) - 5})


def _all_beyond(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 0, rng)
    return table.put(content, dict.fromkeys(range(table.n), (1 << 8 * table.width) - 5))


def _tile_too_long(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 1, rng)
    index = table.pick(rng)
    longer = table.get(content, index) + int(rng.integers(200, 3000))
    return table.put(content, {index: min(longer, (1 << 8 * table.width) - 1)})


def _tile_too_short(content: bytes, layout: Layout, rng: Rng) -> bytes:
    table = _table(layout, 1, rng)
    index = table.pick(rng)
    return table.put(content, {index: max(1, int(table.get(content, index) * rng.uniform(0.1, 0.95)))})


def _table_short(content: bytes, layout: Layout, rng: Rng) -> bytes:
    entry = _table(layout, 1 if rng.integers(2) else 0, rng).entry
    n = struct.unpack_from(entry.count_format, content, entry.count_at)[0]
    return _put(content, entry.count_at, struct.pack(entry.count_format, max(1, n // 2)))


# PNG, JPEG, DICOM


def _huge_stream(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    """A tile whose own JPEG or JPEG 2000 header declares 65,500 × 65,500 px."""
    start, end = layout.data[int(rng.integers(len(layout.data)))]
    if (at := content.find(b"\xff\xc0\x00\x11", start, end)) >= 0:
        return _put(content, at + 5, struct.pack(">HH", 65_500, 65_500))
    if content[start : start + 4] == b"\xff\x4f\xff\x51":
        return _put(content, start + 8, struct.pack(">II", 65_500, 65_500))
    return None


def _chunk_lost(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, end) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return content[:start] + content[end:]


def _chunk_length(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, _) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return _put(content, start, struct.pack(">I", [0, 5, 2**31 - 1, 2**32 - 1][int(rng.integers(4))]))


def _chunk_crc(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (_, end) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return _put(content, end - 1, bytes([content[end - 1] ^ 0x55]))


def _png_huge(content: bytes, layout: Layout, rng: Rng) -> bytes:
    side = [16_384, 16_384, 100_000, 2**31 - 1][int(rng.integers(4))]
    head = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    return _put(content, 12, head + struct.pack(">I", zlib.crc32(head)))


def _jpeg_size(content: bytes, layout: Layout, rng: Rng) -> bytes:
    start = _frame_header(layout)
    return _put(
        content, start + 5, struct.pack(">HH", *([(65_500, 65_500), (321, 384), (0, 384)][int(rng.integers(3))]))
    )


def _jpeg_height_shorter(content: bytes, layout: Layout, rng: Rng) -> bytes:
    return _put(content, _frame_header(layout) + 5, struct.pack(">H", 64))


def _segment_lost(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, end) = layout.parts[int(rng.integers(len(layout.parts)))]
    return content[:start] + content[end:]


def _segment_length(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, _) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return _put(content, start + 2, struct.pack(">H", [0, 2, 40, 65_535][int(rng.integers(4))]))


def _element_length(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, _) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return _put(content, start + 6, struct.pack("<H", [0, 7, 65_534, 65_535][int(rng.integers(4))]))


def _element_lost(content: bytes, layout: Layout, rng: Rng) -> bytes:
    _, (start, end) = layout.parts[int(rng.integers(1, len(layout.parts)))]
    return content[:start] + content[end:]


def _dicom_size(content: bytes, layout: Layout, rng: Rng) -> bytes:
    name = ["00480006", "00480007"][int(rng.integers(2))]
    start = dict(layout.parts)[name][0]
    return _put(content, start + 8, struct.pack("<I", [0, 60_000, 4_000_000, 2**32 - 1][int(rng.integers(4))]))


def _dicom_tile(content: bytes, layout: Layout, rng: Rng) -> bytes:
    name = ["00280010", "00280011"][int(rng.integers(2))]
    start = dict(layout.parts)[name][0]
    return _put(content, start + 8, struct.pack("<H", [0, 32, 128, 65_535][int(rng.integers(4))]))


def _frame_length(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    start, end = layout.data[int(rng.integers(len(layout.data)))]
    if content[start - 8 : start - 4] != b"\xfe\xff\x00\xe0":
        return None
    n = [0, (end - start) // 4 * 2, end - start + 2000, 2**32 - 2][int(rng.integers(4))]
    return _put(content, start - 4, struct.pack("<I", n))


def _frames_stated(content: bytes, layout: Layout, rng: Rng) -> bytes:
    start, end = dict(layout.parts)["00280008"]
    text = [b"0 ", b"1 ", b"29", b"31", b"99"][int(rng.integers(5))]
    return _put(content, start + 8, text[: end - start - 8])


def _frame_offset(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    """Another offset of one frame, in whichever table the file has."""
    parts = dict(layout.parts)
    if "7fe00001" in parts:
        (start, end), width = parts["7fe00001"], 8
    else:
        start, width = content.index(b"\xe0\x7f\x10\x00OB") + 20, 4
        end = start + struct.unpack_from("<I", content, start - 4)[0]
        if content[start - 8 : start - 4] != b"\xfe\xff\x00\xe0" or end == start:
            return None
    start = start if width == 4 else start + 12
    at = start + width * int(rng.integers((end - start) // width))
    value = int.from_bytes(content[at : at + width], "little")
    other = [0, value + 2, max(0, value - 100), value + 4000, 2**31, 2**32 - 1][int(rng.integers(6))]
    return _put(content, at, other.to_bytes(width, "little"))


def _extended_length(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    if "7fe00002" not in dict(layout.parts):
        return None
    start, end = dict(layout.parts)["7fe00002"]
    at = start + 12 + 8 * int(rng.integers((end - start - 12) // 8))
    return _put(content, at, struct.pack("<Q", [0, 10, 10**5, 2**40, 2**64 - 1][int(rng.integers(5))]))


def _frame_position(content: bytes, layout: Layout, rng: Rng) -> bytes | None:
    """A frame in the place of another one, beside the grid, or outside."""
    head = [b"\x48\x00\x1e\x02SL\x04\x00", b"\x48\x00\x1f\x02SL\x04\x00"][int(rng.integers(2))]
    places = [at for at in range(len(content)) if content.startswith(head, at)]
    if not places:
        return None
    value = [0, 1, 65, 70, 10**6, -63][int(rng.integers(6))]
    return _put(content, places[int(rng.integers(len(places)))] + 8, struct.pack("<i", value))


def _put(content: bytes, at: int, data: bytes) -> bytes:
    return content[:at] + data[: max(0, len(content) - at)] + content[at + len(data) :]


def _in_data(layout: Layout, rng: Rng) -> int:
    lengths = np.array([end - start for start, end in layout.data])
    at = int(rng.integers(lengths.sum()))
    index = int(np.searchsorted(lengths.cumsum(), at, side="right"))
    return layout.data[index][0] + at - int(lengths[:index].sum())


def _over_data(content: bytes, layout: Layout, rng: Rng, data: bytes) -> bytes:
    """`data` over a stretch of the pixels: cut where they end, so that no header is hit."""
    at = _in_data(layout, rng)
    end = next(end for start, end in layout.data if start <= at < end)
    following = dict(layout.data)
    while end in following and end - at < len(data):
        end = following[end]
    return _put(content, at, data[: end - at])


def _header_places(content: bytes, layout: Layout) -> np.ndarray:
    is_data = np.zeros(len(content), bool)
    for start, end in layout.data:
        is_data[start:end] = True
    return np.flatnonzero(~is_data)


def _any(entries: tuple[Entry, ...], rng: Rng) -> Entry:
    return entries[int(rng.integers(len(entries)))]


def _field(entry: Entry) -> int:
    return entry.at + (12 if entry.big else 8)


def _set(
    content: bytes, layout: Layout, code: int, value: int, rng: Rng, *, long: bool = False, first: bool = False
) -> bytes:
    """A tag's value in its own field, mostly in the first directory; `long`: as 32 bits whatever its type was."""
    entries = [entry for entry in layout.entries if entry.code == code]
    entry = entries[0] if first or rng.integers(4) else _any(tuple(entries), rng)
    if long:
        content = _put(content, entry.type_at, b"\x04\0")
        return _put(content, _field(entry), struct.pack("<I", value))
    return _put(content, _field(entry), struct.pack("<H", value))


@dataclass(frozen=True)
class _Table:
    """Offsets or byte counts of the tiles of one directory."""

    entry: Entry

    @property
    def n(self) -> int:
        start, end = self.entry.value
        return (end - start) // self.width

    @property
    def width(self) -> int:
        return self.entry.width

    def pick(self, rng: Rng) -> int:
        return int(rng.integers(self.n))

    def get(self, content: bytes, index: int) -> int:
        at = self.entry.value[0] + self.width * index
        return int.from_bytes(content[at : at + self.width], "little")

    def put(self, content: bytes, values: dict[int, int]) -> bytes:
        for index, value in values.items():
            content = _put(content, self.entry.value[0] + self.width * index, value.to_bytes(self.width, "little"))
        return content


def _table(layout: Layout, which: Literal[0, 1], rng: Rng | None) -> _Table:
    """The offsets (0) or byte counts (1) of the first directory, now and then of another one."""
    found = tuple(entry for entry in layout.entries if entry.code in ((273, 324), (279, 325))[which])
    return _Table(found[0] if rng is None or rng.integers(4) else _any(found, rng))


def _frame_header(layout: Layout) -> int:
    return next(start for name, (start, _) in layout.parts if name in ("segment c0", "segment c1", "segment c2"))


_TIFF, _PNG, _JPEG, _DICOM = ("tiff",), ("png",), ("jpeg",), ("dicom",)
_ALL = (
    Damage("one byte", "data", _one_byte),
    Damage("8 to 64 bytes", "data", _some_bytes),
    Damage("512 zeros", "data", _zeros_512),
    Damage("4096 zeros", "data", _zeros_4096),
    Damage("512 random bytes", "data", _random_512),
    Damage("half a piece over another", "data", _piece_of_another),
    Damage("cut off", "file", _cut_off),
    Damage("last bytes missing", "file", _last_bytes),
    Damage("end is zeros", "file", _end_is_zeros),
    Damage("last percent is zeros", "file", _last_percent_is_zeros),
    Damage("garbage before", "file", _garbage_before),
    Damage("garbage behind", "file", _garbage_behind),
    Damage("a byte inserted", "file", _byte_inserted),
    Damage("a byte lost", "file", _byte_lost),
    Damage("line ends changed", "file", _line_ends),
    Damage("256 zeros at the head", "file", _head_is_zeros),
    Damage("one byte of the header", "header", _header_byte),
    Damage("some bytes of the header", "header", _header_bytes),
    Damage("type of a tag", "header", _tag_type, _TIFF),
    Damage("count of a tag", "header", _tag_count, _TIFF),
    Damage("value of a tag", "header", _tag_value, _TIFF),
    Damage("a tag lost", "header", _tag_lost, _TIFF),
    Damage("photometric", "header", _photometric, _TIFF),
    Damage("samples per pixel", "header", _samples, _TIFF),
    Damage("shorter than its tiles", "header", _height_shorter, _TIFF),
    Damage("a huge side", "header", _huge_size, _TIFF),
    Damage("two huge sides", "header", _huge_sides, _TIFF),
    Damage("huge tiles", "header", _huge_tile, _TIFF),
    Damage("a huge reduced page", "header", _huge_reduced_page, _TIFF),
    Damage("first directory elsewhere", "header", _first_directory, _TIFF),
    Damage("loop of directories", "header", _directory_loop, _TIFF),
    Damage("next directory elsewhere", "header", _next_directory, _TIFF),
    Damage("loop of SubIFDs", "header", _subdirectory_loop, _TIFF),
    Damage("offset 0", "table", _tile_missing, _TIFF),
    Damage("byte count 0", "table", _tile_without_bytes, _TIFF),
    Damage("a tile inside another", "table", _tile_in_another, _TIFF),
    Damage("a tile beyond the end", "table", _tile_beyond, _TIFF),
    Damage("all tiles beyond the end", "table", _all_beyond, _TIFF),
    Damage("a tile too long", "table", _tile_too_long, _TIFF),
    Damage("a tile too short", "table", _tile_too_short, _TIFF),
    Damage("table too short", "table", _table_short, _TIFF),
    Damage(
        "two tiles swapped",
        "table",
        _tiles_swapped,
        _TIFF,
        unseen="both tiles are whole; nothing says whose place it is",
    ),
    Damage("a huge tile stream", "header", _huge_stream, ("tiff", "dicom", "mrxs")),
    Damage("a chunk lost", "header", _chunk_lost, _PNG),
    Damage("length of a chunk", "header", _chunk_length, _PNG),
    Damage("checksum of a chunk", "header", _chunk_crc, _PNG),
    Damage("a huge PNG", "header", _png_huge, _PNG),
    Damage("size of a JPEG", "header", _jpeg_size, _JPEG),
    Damage("a JPEG shorter than its scan", "header", _jpeg_height_shorter, _JPEG),
    Damage("a segment lost", "header", _segment_lost, _JPEG),
    Damage("length of a segment", "header", _segment_length, _JPEG),
    Damage("length of an element", "header", _element_length, _DICOM),
    Damage("an element lost", "header", _element_lost, _DICOM),
    Damage("size in DICOM", "header", _dicom_size, _DICOM),
    Damage("tile size in DICOM", "header", _dicom_tile, _DICOM),
    Damage("length of a frame", "header", _frame_length, _DICOM),
    Damage("number of frames", "header", _frames_stated, _DICOM),
    Damage("offset of a frame", "table", _frame_offset, _DICOM),
    Damage("length in the extended table", "table", _extended_length, _DICOM),
    Damage("position of a frame", "table", _frame_position, _DICOM),
)


def applies(damage: Damage, kind: Kind) -> bool:
    """Whether a kind of file can have this damage."""
    return not damage.containers or kind.container in damage.containers


# Quantisation, Huffman codes, colour: what a JPEG decoder decodes with, under no checksum.
_CODEC_TABLES = {"tag 347 value", *(f"segment {marker:02x}" for marker in (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xEE))}
# Fields of a TIFF that may have several values in a valid file, and that nothing else in it states.
_ALONE = {
    317: "the predictor",
    320: "the colours of the palette",
    338: "the meaning of alpha",
    530: "chroma",
    532: "chroma",
    65421: "the lens of a scan",
    65424: "the focal plane of a scan",
}
_WITHOUT_PIXELS = (282, 283, 296, 305)  # resolution, software
_DECIDES = tuple(f"tag {code} " for code in (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325))


def why_unseen(
    kind: Kind, damage: Damage, names: set[str], size_px: tuple[int, int], whole_px: tuple[int, int], bad_tiles: int
) -> str:
    """Why no reader can see that this damage changed pixels; empty where one could.

    `names`: what it touched (see `touched`); `size_px`: of the slide that was read, `whole_px` of the undamaged one;
    `bad_tiles`: how many were reported beside the pixels that changed.
    """
    if damage.unseen:
        return damage.unseen
    if damage.name == "256 zeros at the head" and bad_tiles:
        return "a tile without offset and bytes is empty glass"
    if size_px != whole_px:
        return _why_size_unseen(kind, names, size_px, whole_px)
    names = {name for name in names if not any(name.startswith(f"tag {code} ") for code in _WITHOUT_PIXELS)}
    if alone := [why for code, why in _ALONE.items() if names and all(name == f"tag {code} value" for name in names)]:
        return f"{alone[0]}: nothing else states it"
    if "grey" in kind.name and names <= {"tag 262 value", "tag 262 type", "tag 262 count"}:
        return "whether 0 is black or white: nothing else states it"
    if kind.has_checksum:
        return ""
    if names == {"moved"} or all(is_of_codec(name) for name in names):
        return f"{kind.codec}: no checksum"
    # With the end of the file go pixels; an end marker that is gone with them can be seen.
    ends = any(map(is_of_codec, names)) and not any(name.startswith(_DECIDES) for name in names)
    if ends and kind.container != "jpeg" and damage.group == "file":
        return f"{kind.codec}: no checksum"
    return ""


def is_of_codec(name: str) -> bool:
    """True for coded pixels, and for headers and tables that they are decoded with."""
    return name == "data" or name in _CODEC_TABLES or name.startswith("codec ")


def _why_size_unseen(kind: Kind, names: set[str], size_px: tuple[int, int], whole_px: tuple[int, int]) -> str:
    if "sparse" in kind.name and names <= {"00480006", "00480007"} and all(map(int.__ge__, size_px, whole_px)):
        return "a larger size with tiles that were never written: nothing else states it"
    fields = {f"tag {code} {part}" for code in (256, 257) for part in ("value", "pointer")}
    same_tiles = all(-(-size // TILE_PX) == -(-whole // TILE_PX) for size, whole in zip(size_px, whole_px, strict=True))
    states_it = kind.suffix not in (".tif",)  # a description states the size too
    if names <= fields and same_tiles and not states_it and "strips" not in kind.name:
        return "a size with the same tiles: nothing else states it"
    return ""
