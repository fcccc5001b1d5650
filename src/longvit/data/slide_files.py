"""Search for the file of a slide by its id: tolerant of extensions, subfolders and spelling, strict about ambiguity."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

from longvit.errors import InputError
from longvit.files import is_folder
from longvit.slides.file_kind import DICOM_SUFFIXES, IMAGE_SUFFIXES, slide_stem
from longvit.slides.folder import Folder, SlideFiles, dicom_series, mirax_file, read_folder
from longvit.slides.slide_name import printable
from longvit.slides.spelling import composed, folded

_Key = tuple[int, int]


class FolderSearch:
    """Search through a folder and all folders below, each entered once, whatever links lead to it.

    `slides.folder` defines a slide. A subfolder whose files are one DICOM series counts as that slide. Data folders of
    MRXS are not entered.

    - `leave_out`: a folder of results, anywhere below, that is not entered.
    - `but_results`: plots and canvases in subfolders with the results of a run are not slides; they have the slides'
      names.
    """

    def __init__(self, start: str | Path, leave_out: str | Path | None = None, *, but_results: bool = False) -> None:
        self.start = Path(start)
        self._but_results = but_results
        self._results: set[Path] = set()
        self.passed_over: dict[str, str] = {}
        """Path and name of files that are not slides."""
        self.unlisted: dict[Path, OSError] = {}
        """Subfolders that could not be listed, with the reason."""
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
        """All slides, with files and subfolders in alphabetical order. Raises `InputError` where the start cannot be
        listed."""
        stack: list[SlideFiles | Path] = [self.start]
        while stack:
            item = stack.pop()
            if isinstance(item, SlideFiles):
                yield item
                continue
            slides, folders = self._enter(item)
            content: list[SlideFiles | Path] = [*slides, *folders]
            stack += sorted(content, key=_name_in_folder, reverse=True)

    def by_depth(self) -> Iterator[list[SlideFiles]]:
        """Slides of the start itself, then those of its subfolders, and so on. Errors as in `in_order`."""
        folders = [self.start]
        while folders:
            slides: list[SlideFiles] = []
            subfolders: list[Path] = []
            for folder in folders:
                found_slides, found_folders = self._enter(folder)
                slides += found_slides
                subfolders += found_folders
            yield slides
            folders = subfolders

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
            folder.slides = [slide for slide in folder.slides if not _is_plot_or_canvas(slide.path.name, folder.names)]
        if not is_start and folder.is_mirax_data:  # without its .mrxs: opening it reports that
            return ([] if mirax_file(path) is not None else [SlideFiles(path, (path,))]), []
        self.passed_over.update(folder.passed_over)
        if not is_start and (dicom_slide := folder.one_dicom) is not None:
            return [dicom_slide._replace(path=path)], folder.folders
        return folder.slides, folder.folders

    def _is_new(self, path: Path) -> bool:
        """True if a folder is met for the first time, and records it. Raises `OSError` where it cannot be inspected."""
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if (before := self._seen.setdefault(key, path)) is path:
            return True
        # Two folders share a number on file systems with synthetic inode numbers.
        return os.path.realpath(before) != os.path.realpath(path)


class SlideFinder:
    """Lookup of slides by id in folders, to any depth; each folder is listed once, however many slides are requested.

    Output of a longvit run is not taken for a slide (see `FolderSearch`). An earlier folder takes precedence over a
    later one, and a folder over its subfolders (where thumbnails often are). The id and the file name may use different
    Unicode forms.
    """

    def __init__(self, folders: Iterable[str | Path], leave_out: str | Path | None = None) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._searches = [FolderSearch(folder, leave_out, but_results=True) for folder in self.folders]
        self._levels: list[dict[str, list[SlideFiles]]] = []
        self._unlisted_levels = (level for search in self._searches for level in search.by_depth())
        self._near: dict[str, Path] | None = None

    def find(self, slide_id: str) -> Path | None:
        """Path of the slide, or None. Raises `InputError` where two files match the id."""
        stem = slide_stem(slide_id)
        for by_stem in self._all_levels():
            matches = by_stem.get(composed(stem), [])
            matches = [slide for slide in matches if slide_id in _names(slide)] or matches
            if len(matches) > 1:
                matches = [slide for slide in matches if stem in map(slide_stem, _names(slide))] or matches
            if len(matches) > 1:
                names = ", ".join(printable(str(slide.path)) for slide in matches[:3])
                raise InputError(f"{slide_id}: {len(matches)} files match this slide id ({names}); add a column path")
            if matches:
                return matches[0].path
        return None

    def near(self, slide_id: str) -> Path | None:
        """A slide whose name differs from an id in case, leading zeros, a final `.0` or spaces only, for a message."""
        if self._near is None:
            self._near = {}
            for by_stem in self._all_levels():
                for stem, slides in by_stem.items():
                    self._near.setdefault(folded(stem), slides[0].path)
        return self._near.get(folded(slide_stem(slide_id)))

    def where(self) -> str:
        """Folders searched, for an error message."""
        text = " and ".join(str(folder) for folder in self.folders)
        unlisted = [f"{path}: {error.strerror or error}" for s in self._searches for path, error in s.unlisted.items()]
        return f"{text}, without {printable(unlisted[0])}" if unlisted else text

    def _all_levels(self) -> Iterator[dict[str, list[SlideFiles]]]:
        """Levels listed so far, then the next ones, listed on demand."""
        at = 0
        while True:
            if at == len(self._levels):
                level = next(self._unlisted_levels, None)
                if level is None:
                    return
                self._levels.append(_by_stem(level))
            yield self._levels[at]
            at += 1


def existing_path(folders: Iterable[Path], text: str) -> Path | None:
    """Existing file for a path from a table, in one of the folders, or None.

    Tried as it is, then with `/` for the `\\` of Windows, then in another Unicode form.
    """
    spellings = [text, text.replace("\\", "/")] if "\\" in text else [text]
    paths = [folder / spelling for spelling in spellings for folder in folders]
    existing = next((path for path in paths if _exists(path)), None)
    return existing or next(filter(None, map(_in_other_unicode_form, paths)), None)


def last_part(text: str) -> str:
    """File name at the end of a path of this machine or of Windows."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def mirax_slide(folder: Path) -> Path | None:
    """The MRXS file of a data folder, or None."""
    return mirax_file(folder) if _exists(folder / "Slidedat.ini") else None


def dicom_keys(paths: Sequence[Path], known: Mapping[Path, str] | None = None) -> dict[int, tuple[str, str]]:
    """Folder and series of the paths (by index) that share a folder with another possible DICOM file.

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
    """Folder of a possible DICOM slide: its own, where the name is DICOM's or has no suffix; None for other formats."""
    low = path.name.lower()
    if slide_stem(low) != low and not low.endswith(DICOM_SUFFIXES):
        return None
    return path if is_folder(path) else path.parent


def _in_other_unicode_form(path: Path) -> Path | None:
    """The path with its parts in another Unicode form, where exactly one such path exists."""
    if str(path).isascii():
        return None
    folder = Path(path.anchor or ".")
    for part in path.parts[1 if path.anchor else 0 :]:
        if not _exists(folder / part):
            same_names = _composed_names(folder).get(composed(part), [])
            if len(same_names) != 1:
                return None
            part = same_names[0]
        folder /= part
    return folder


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
    """True if a longvit run wrote into the folder."""
    if "run.lock" in folder.names:
        return True
    return "work" in folder.names and any((folder.path / "work").glob("*/run.json"))


def _is_plot_or_canvas(name: str, names: set[str]) -> bool:
    """True for a possible plot or canvas of a slide, which has a record beside it."""
    return name.lower().endswith(IMAGE_SUFFIXES) or f"{name}.json" in names
