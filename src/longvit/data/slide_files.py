"""Finds the file of a slide by its id: tolerant of extensions, subfolders and spelling, strict about doubt."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

from longvit.errors import InputError
from longvit.files import is_folder
from longvit.slides.file_kind import DICOM_SUFFIXES, slide_stem
from longvit.slides.folder import Folder, SlideFiles, dicom_series, mirax_file, read_folder
from longvit.slides.slide_name import printable
from longvit.slides.spelling import composed, folded

_Key = tuple[int, int]
_PICTURES = (".png", ".jpg", ".jpeg")


class FolderSearch:
    """Goes through a folder and all folders below, each once whatever links lead to it.

    A slide is what `slides.folder` says. A folder inside whose files are one DICOM series counts as that slide. Not
    entered: `leave_out` (a folder of results, wherever it lies), data folders of MRXS. `but_results`: pictures and
    canvases in folders inside that hold the results of a run are no slides; they have the slides' names.
    """

    def __init__(self, start: str | Path, leave_out: str | Path | None = None, *, but_results: bool = False) -> None:
        self.start = Path(start)
        self._but_results = but_results
        self._results: set[Path] = set()
        self.passed_over: dict[str, str] = {}
        """Path and name of what is no slide."""
        self.unlisted: dict[Path, OSError] = {}
        """The folders below that could not be listed, with the reason."""
        self._seen: dict[_Key, Path] = {}
        real = Path(os.path.realpath(self.start))
        not_entered = list(real.parents)  # a link back to one of them is a loop too
        self._is_left_out = False
        if leave_out is not None:
            results = Path(os.path.realpath(leave_out))
            self._is_left_out = results == real or results in real.parents
            not_entered.append(results)
        for path in not_entered:
            with contextlib.suppress(OSError):
                self._is_new(path)

    def in_order(self) -> Iterator[SlideFiles]:
        """All slides, files and folders of a folder in alphabetical order. `InputError`: the start is not listed."""
        waiting: list[SlideFiles | Path] = [self.start]
        while waiting:
            item = waiting.pop()
            if isinstance(item, SlideFiles):
                yield item
                continue
            slides, folders = self._enter(item)
            content: list[SlideFiles | Path] = [*slides, *folders]
            waiting += sorted(content, key=_name_in_folder, reverse=True)

    def by_depth(self) -> Iterator[list[SlideFiles]]:
        """The slides in the start itself, then those of the folders in it, and so on. `InputError` as above."""
        folders = [self.start]
        while folders:
            slides: list[SlideFiles] = []
            below: list[Path] = []
            for folder in folders:
                more, inside = self._enter(folder)
                slides += more
                below += inside
            yield slides
            folders = below

    def _enter(self, path: Path) -> tuple[list[SlideFiles], list[Path]]:
        is_start = path is self.start
        try:
            if self._is_left_out or not self._is_new(path):
                return [], []
            folder = read_folder(path)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            return [], []
        except OSError as error:
            if is_start:
                raise InputError(f"{path}: cannot be listed: {error.strerror or error}") from error
            self.unlisted[path] = error
            return [], []
        is_results = _holds_results(folder) or (bool(self._results) and path.parent in self._results)
        if self._but_results and not is_start and is_results:
            self._results.add(path)
            folder.slides = [slide for slide in folder.slides if not _is_picture(slide.path.name, folder.names)]
        if not is_start and folder.is_mirax_data:  # without its .mrxs: opening it says so
            return ([] if mirax_file(path) is not None else [SlideFiles(path, (path,))]), []
        self.passed_over.update(folder.passed_over)
        if not is_start and (one := folder.one_dicom) is not None:
            return [one._replace(path=path)], folder.folders
        return folder.slides, folder.folders

    def _is_new(self, path: Path) -> bool:
        """Whether a folder is met for the first time; remembers it. `OSError`: it cannot be looked at."""
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if (before := self._seen.setdefault(key, path)) is path:
            return True
        # Two folders of one number happen on file systems that make their numbers up.
        return os.path.realpath(before) != os.path.realpath(path)


class SlideFinder:
    """Looks slides up by id in folders, to any depth; each folder is listed once, however many slides are asked for.

    What a run of ours wrote is not taken for a slide (see `FolderSearch`).

    An earlier folder goes before a later one, and a folder before the folders inside it (where thumbnails often lie).
    Letters and their marks may be written in one way in the id and in another in the file's name.
    """

    def __init__(self, folders: Iterable[str | Path], leave_out: str | Path | None = None) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._searches = [FolderSearch(folder, leave_out, but_results=True) for folder in self.folders]
        self._levels: list[dict[str, list[SlideFiles]]] = []
        self._to_come = (level for search in self._searches for level in search.by_depth())
        self._near: dict[str, Path] | None = None

    def find(self, slide_id: str) -> Path | None:
        """The slide's path, or None where there is none; `InputError` where two files answer to the id."""
        stem = slide_stem(slide_id)
        for by_stem in self._all_levels():
            found = by_stem.get(composed(stem), [])
            found = [slide for slide in found if slide_id in _names(slide)] or found
            if len(found) > 1:
                found = [slide for slide in found if stem in map(slide_stem, _names(slide))] or found
            if len(found) > 1:
                names = ", ".join(printable(str(slide.path)) for slide in found[:3])
                raise InputError(f"{slide_id}: {len(found)} files answer to this slide id ({names}); add a column path")
            if found:
                return found[0].path
        return None

    def near(self, slide_id: str) -> Path | None:
        """A slide whose name differs from an id in case, leading zeros, a final `.0` or spaces only: for a message."""
        if self._near is None:
            self._near = {}
            for by_stem in self._all_levels():
                for stem, slides in by_stem.items():
                    self._near.setdefault(folded(stem), slides[0].path)
        return self._near.get(folded(slide_stem(slide_id)))

    def where(self) -> str:
        """The folders searched, for an error message."""
        text = " and ".join(str(folder) for folder in self.folders)
        unlisted = [f"{path}: {error.strerror or error}" for s in self._searches for path, error in s.unlisted.items()]
        return f"{text}, without {printable(unlisted[0])}" if unlisted else text

    def _all_levels(self) -> Iterator[dict[str, list[SlideFiles]]]:
        """Those listed so far, then the next ones, which are listed when they are asked for."""
        at = 0
        while True:
            if at == len(self._levels):
                level = next(self._to_come, None)
                if level is None:
                    return
                self._levels.append(_by_stem(level))
            yield self._levels[at]
            at += 1


def existing_path(folders: Iterable[Path], given: str) -> Path | None:
    """What a path as people write it names in one of the folders, or None.

    As it stands; else with `/` for the `\\` of Windows; else with its letters and marks composed otherwise.
    """
    spellings = [given, given.replace("\\", "/")] if "\\" in given else [given]
    paths = [folder / text for text in spellings for folder in folders]
    found = next((path for path in paths if _exists(path)), None)
    return found or next(filter(None, map(_composed_otherwise, paths)), None)


def last_part(given: str) -> str:
    """The file's name at the end of a path of this machine or of Windows."""
    return re.split(r"[/\\]", given.rstrip("/\\"))[-1]


def mirax_slide(folder: Path) -> Path | None:
    """The MRXS file whose data folder this is, or None."""
    return mirax_file(folder) if _exists(folder / "Slidedat.ini") else None


def dicom_keys(paths: Sequence[Path], known: Mapping[Path, str] | None = None) -> dict[int, tuple[str, str]]:
    """Folder and series of the paths (by their place) that lie in a folder with another that may be DICOM.

    Two paths with one key are one slide. `known`: the series of paths whose header was read before.
    """
    real_path = cache(os.path.realpath)
    in_folder: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        if (folder := _dicom_folder(path)) is not None:
            in_folder.setdefault(real_path(folder), []).append(index)
    keys = {}
    for real, indices in in_folder.items():
        for index in indices if len(indices) > 1 else ():
            if uid := (known or {}).get(paths[index]) or dicom_series(paths[index]):
                keys[index] = (real, uid)
    return keys


def _dicom_folder(path: Path) -> Path | None:
    """The folder of what may be a DICOM slide: its own, where the name says DICOM or nothing; None: it is another."""
    low = path.name.lower()
    if slide_stem(low) != low and not low.endswith(DICOM_SUFFIXES):
        return None
    return path if is_folder(path) else path.parent


def _composed_otherwise(path: Path) -> Path | None:
    """The path whose parts are the same text in another Unicode form, where there is exactly one."""
    if str(path).isascii():
        return None
    here = Path(path.anchor or ".")
    for part in path.parts[1 if path.anchor else 0 :]:
        if not _exists(here / part):
            same = _composed_names(here).get(composed(part), [])
            if len(same) != 1:
                return None
            part = same[0]
        here /= part
    return here


def _composed_names(folder: Path) -> dict[str, list[str]]:
    try:
        return _composed_names_at(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=8)
def _composed_names_at(folder: Path, _: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208
        names.setdefault(composed(name), []).append(name)
    return names


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises where a folder may not be entered)


def _name_in_folder(item: SlideFiles | Path) -> str:
    return item.path.name if isinstance(item, SlideFiles) else item.name


def _names(slide: SlideFiles) -> set[str]:
    if not slide.is_dicom:
        return {slide.path.name}
    return {slide.path.name, *(file.name for file in slide.files)}


def _by_stem(slides: Iterable[SlideFiles]) -> dict[str, list[SlideFiles]]:
    by_stem: dict[str, list[SlideFiles]] = {}
    for slide in slides:
        for stem in {composed(slide_stem(name)) for name in _names(slide)}:
            by_stem.setdefault(stem, []).append(slide)
    return by_stem


def _holds_results(folder: Folder) -> bool:
    """Whether a run of ours wrote into it."""
    if "run.lock" in folder.names:
        return True
    return "work" in folder.names and any((folder.path / "work").glob("*/run.json"))


def _is_picture(name: str, names: set[str]) -> bool:
    """Whether it may be a picture or a canvas of a slide, which has a record beside it."""
    return name.lower().endswith(_PICTURES) or f"{name}.json" in names
