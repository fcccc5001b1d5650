"""Finds the file of a slide by its id: tolerant of extensions and of one level of subfolders, strict about doubt."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from longvit.errors import InputError

# Longest first, so that `.ome.tiff` is cut off whole. Identifiers may contain dots themselves (TCGA's do), so only
# a known extension is ever cut.
SLIDE_SUFFIXES = (
    ".ome.tiff", ".ome.tif", ".svslide", ".mrxs", ".ndpi", ".tiff", ".jpeg", ".svs", ".scn", ".bif", ".vms",
    ".vmu", ".tif", ".dcm", ".png", ".jpg",
)  # fmt: skip


def slide_stem(name: str) -> str:
    """`a.b.svs` -> `a.b`; `a.b` stays, since `.b` is no known extension."""
    low = name.lower()
    return next((name[: -len(s)] for s in SLIDE_SUFFIXES if low.endswith(s) and len(name) > len(s)), name)


class SlideFinder:
    """Looks slides up by id in folders; each folder is listed once, however many slides are asked for.

    A slide is a file with a known extension, or a folder that holds `.dcm` files. Folders directly inside are
    searched too (the GDC client puts every slide into a folder of its own). An earlier folder goes before a later
    one, and a folder before the folders inside it (where thumbnails often lie).
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._by_stem: list[dict[str, list[Path]]] | None = None

    def find(self, slide_id: str) -> Path | None:
        """The slide's path, or None where there is none; `InputError` where two files answer to the id."""
        if self._by_stem is None:
            self._by_stem = [_by_stem(slides_in(f, depth)) for f in self.folders for depth in (0, 1)]
        for by_stem in self._by_stem:
            found = by_stem.get(slide_stem(slide_id), [])
            found = [path for path in found if path.name == slide_id] or found
            if len(found) > 1:
                names = ", ".join(str(path) for path in found[:3])
                raise InputError(f"{slide_id}: {len(found)} files answer to this slide id ({names}); add a column path")
            if found:
                return found[0]
        return None

    def where(self) -> str:
        """The folders searched, for an error message."""
        return " and ".join(str(folder) for folder in self.folders)


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(slide_stem(path.name), []).append(path)
    return by_stem


def slides_in(folder: Path, depth: int) -> list[Path]:
    """Slides in a folder and `depth` levels of folders below, in alphabetical order; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
    slides = []
    for entry in listing:
        low = entry.name.lower()
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if _holds_dicom(entry.path):
                slides.append(Path(entry.path))
            elif depth:
                slides += slides_in(Path(entry.path), depth - 1)
        elif low.endswith(SLIDE_SUFFIXES):
            slides.append(Path(entry.path))
    return slides


def _holds_dicom(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(".dcm") for entry in entries)
    except OSError:
        return False
