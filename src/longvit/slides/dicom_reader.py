"""Fast path of DICOM: the frames of a whole-slide image decoded one by one, directly from their places in the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path

from longvit.slides.dicom_frames import joined_fragments
from longvit.slides.dicom_levels import read_levels
from longvit.slides.mpp import Candidate, dicom_candidates
from longvit.slides.pixel_reader import Rgb
from longvit.slides.tiled_reader import SharedFile, TiledReader

_WHITE: Rgb = (255, 255, 255)
_NOTED_RATIO = 1.1


class DicomReader(TiledReader):
    """Levels and blocks of the files of one DICOM slide.

    Raises `InputError` for damaged files and for pixels that no reader reads correctly, `UnsupportedError` for a codec
    that is not read.
    """

    name = "dicom"
    version = ", ".join(f"{name} {version_of(name)}" for name in ("simplejpeg", "imagecodecs", "pillow"))

    def __init__(self, path: Path, files: Sequence[Path], *, walk: bool = False) -> None:
        found = read_levels(path, files, walk=walk)
        super().__init__(path, _WHITE, found.levels, found.files)
        self._in_items = found.in_items
        level0 = found.level0
        self.candidates: tuple[Candidate, ...] = dicom_candidates(level0.spacing_mm, level0.volume_mm, level0.size_px)
        self.notes = (*found.notes, *_doubts(self.candidates))
        named = {
            "openslide.vendor": "dicom",
            "openslide.objective-power": level0.lens_power,
            "dicom.ImageOrientationSlide": level0.orientation,
        }
        self.properties: Mapping[str, str] = {name: value for name, value in named.items() if value}

    def tile_bytes(self, files: Sequence[SharedFile], offset: int, count: int) -> bytes:
        data = super().tile_bytes(files, offset, count)
        return joined_fragments(data) if self._in_items[self.file_of(offset)] else data


def _doubts(candidates: Sequence[Candidate]) -> list[str]:
    spacing, volume = candidates
    if not (spacing.plausible and volume.plausible) or spacing.x is None or volume.x is None:
        return []
    if 1 / _NOTED_RATIO < spacing.x / volume.x < _NOTED_RATIO:
        return []
    return [f"its PixelSpacing gives {spacing.x:.4g} µm/px, its ImagedVolumeWidth {volume.x:.4g}: one of them is wrong"]
