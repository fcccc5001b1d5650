"""Image stored mirrored or rotated, read in its intended orientation (tag Orientation of TIFF and EXIF).

The wrapped reader writes into a mirrored or transposed view of the caller's block, without a copy.
"""

from __future__ import annotations

from dataclasses import replace

from longvit.slides.mpp import Candidate
from longvit.slides.pixel_reader import BadTile, Block, Level, PixelReader

UPRIGHT = 1
_MEANINGS = {
    2: "mirrored left to right",
    3: "rotated by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along the diagonal",
    6: "rotated by 90 degrees",
    7: "mirrored along the other diagonal",
    8: "rotated by 270 degrees",
}
# Applied to a stored image in this order: mirror the columns, mirror the rows, exchange rows and columns.
_STEPS = {
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}


def upright(reader: PixelReader, orientation: int) -> PixelReader:
    """`reader`, or a reader that shows its image in `orientation` (1 to 8)."""
    return reader if orientation == UPRIGHT else _OrientedReader(reader, orientation)


def orientation_note(orientation: int) -> str:
    """Note for an image that is not stored upright."""
    return f"its tag Orientation is {orientation} (stored {_MEANINGS[orientation]}): shown upright"


def upright_candidates(candidates: tuple[Candidate, ...], orientation: int) -> tuple[Candidate, ...]:
    """Resolutions along the axes of the image as shown."""
    if orientation == UPRIGHT or not _STEPS[orientation][2]:
        return candidates
    return tuple(replace(candidate, x=candidate.y, y=candidate.x) for candidate in candidates)


class _OrientedReader(PixelReader):
    """Reader of an upright view of a stored image."""

    def __init__(self, stored: PixelReader, orientation: int) -> None:
        self.name, self.version, self.background = stored.name, stored.version, stored.background
        self._stored = stored
        self._mirror_x, self._mirror_y, self._transpose = _STEPS[orientation]
        self.levels = tuple(self._level(level) for level in stored.levels)

    def close(self) -> None:
        self._stored.close()

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        if self._transpose:
            x_px, y_px, out = y_px, x_px, out.transpose(1, 0, 2)
        height, width = out.shape[:2]
        stored = self._stored.levels[level]
        if self._mirror_x:
            x_px, out = stored.size_px[0] - x_px - width, out[:, ::-1]
        if self._mirror_y:
            y_px, out = stored.size_px[1] - y_px - height, out[::-1]
        return [self._shown(tile) for tile in self._stored.read_block(level, x_px, y_px, out)]

    def _level(self, level: Level) -> Level:
        if not self._transpose:
            return level
        return replace(level, size_px=level.size_px[::-1], tile_px=level.tile_px[::-1])

    def _shown(self, tile: BadTile) -> BadTile:
        """Bad tile at its position in the image as shown."""
        level = self._stored.levels[tile.level]
        x, y, width, height = tile.x_level0_px, tile.y_level0_px, tile.width_px, tile.height_px
        if self._mirror_x:
            x = self._stored.levels[0].size_px[0] - x - round(width * level.downsample)
        if self._mirror_y:
            y = self._stored.levels[0].size_px[1] - y - round(height * level.downsample)
        if self._transpose:
            x, y, width, height = y, x, height, width
        return replace(tile, x_level0_px=max(0, x), y_level0_px=max(0, y), width_px=width, height_px=height)
