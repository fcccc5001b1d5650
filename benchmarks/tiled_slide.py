"""Synthetic slide of any size in a minute: an Aperio SVS with the JPEG tiles of the example slide, byte for byte.

The 108 whole tiles of the example (9 × 12, of different tissue) are repeated. With `pyramid` there is a second level of
a quarter of the size, as a scanner writes it: the pattern of tiles, reduced. 100,000² px are 2.1 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "CMU-1-Small-Region.svs"
_DOWN = 4


def make_slide(path: Path, size_px: int, *, pyramid: bool, downsamples: tuple[int, ...] = (_DOWN,)) -> None:
    """Writes an SVS of size_px², with one level, or with `pyramid` the smaller ones of `downsamples` too."""
    import tifffile

    with tifffile.TiffFile(EXAMPLE) as tiff:
        page = tiff.pages.first
        tile_px, tables, description = page.tilewidth, page.jpegtables, page.description
        columns, rows = page.imagewidth // tile_px, page.imagelength // tile_px
        across = -(-page.imagewidth // tile_px)
        data = EXAMPLE.read_bytes()
        # Whole tiles only: those at the right and bottom edge are partly padding.
        at = [row * across + column for row in range(rows) for column in range(columns)]
        tiles = [data[page.dataoffsets[i] : page.dataoffsets[i] + page.databytecounts[i]] for i in at]
        pixels = page.asarray()[: rows * tile_px, : columns * tile_px]
    with tifffile.TiffWriter(path, bigtiff=size_px > 20_000) as writer:
        levels: list[tuple[int, list[bytes], int, int, bytes | None]] = [(size_px, tiles, columns, rows, tables)]
        for down in downsamples if pyramid else ():
            levels.append((size_px // down, *_reduced(pixels, tile_px, down), None))
        for level_px, pattern, wide, high, jpegtables in levels:
            writer.write(
                _laid(pattern, wide, high, -(-level_px // tile_px)),
                shape=(level_px, level_px, 3),
                dtype="uint8",
                tile=(tile_px, tile_px),
                photometric="rgb",
                compression="jpeg",
                jpegtables=jpegtables,
                description=description if jpegtables else None,
                subfiletype=0 if jpegtables else 1,
                metadata=None,
            )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        # tifffile takes every JPEG for YCbCr, as simplejpeg writes it; the example's tiles are RGB.
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(2)


def _laid(pattern: list[bytes], columns: int, rows: int, n: int) -> Iterator[bytes]:
    """Tiles of a grid of n × n, row by row."""
    for row in range(n):
        for column in range(n):
            yield pattern[row % rows * columns + column % columns]


def _reduced(pixels, tile_px: int, down: int) -> tuple[list[bytes], int, int]:
    """Pattern of a smaller level: as many repeats of `pixels` as give whole tiles, reduced and encoded."""
    import numpy as np
    import simplejpeg
    from PIL import Image

    once = np.asarray(Image.fromarray(pixels).reduce(down))
    repeats = [tile_px // int(np.gcd(n, tile_px)) for n in once.shape[:2]]
    small = np.tile(once, (*repeats, 1))
    rows, columns = small.shape[0] // tile_px, small.shape[1] // tile_px
    tiles = [
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(small[y : y + tile_px, x : x + tile_px]), quality=85, colorsubsampling="444"
        )
        for y in range(0, rows * tile_px, tile_px)
        for x in range(0, columns * tile_px, tile_px)
    ]
    return tiles, columns, rows
