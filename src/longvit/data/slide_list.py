"""Slides that a command works on: files, folders, globs, or a CSV list, in a fixed order and each once."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.data.identity import canonical, refuse_clashes
from longvit.data.slide_files import (
    FolderSearch,
    SlideFinder,
    dicom_keys,
    existing_path,
    last_part,
    mirax_slide,
)
from longvit.data.table import read_mpp, read_table
from longvit.errors import InputError
from longvit.files import is_folder
from longvit.slides.file_kind import near_name, slide_stem
from longvit.slides.folder import counted_as
from longvit.slides.slide_name import fault_of_name, printable

_LOG = logging.getLogger("longvit.data")


@dataclass(frozen=True)
class ListedSlide:
    """One slide to work on; `longvit.find_slides` lists them.

    >>> import longvit
    >>> slide = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])[0]
    >>> slide.slide_id, slide.path.name
    ('CMU-1-Small-Region', 'CMU-1-Small-Region.svs')
    """

    slide_id: str
    """Name, unique in the list, without the file's extension."""
    path: Path
    """File, or folder of DICOM files. It need not exist; that is checked when the slide is processed."""
    mpp: float | None = None
    """µm per pixel at level 0 where the list states it."""
    fault: str | None = None
    """Reason why it can have no result whatever its file holds, in one line; it becomes the slide's problem."""


@dataclass
class _Sources:
    """Slides and skipped files collected from the sources."""

    slides_dir: str | Path | None
    leave_out: str | Path | None
    slides: list[ListedSlide]
    passed_over: dict[str, str]
    series: dict[Path, str]
    """DICOM series of paths whose header was read."""

    def add(self, path: Path, series: str = "") -> None:
        self.slides.append(_listed(slide_stem(path.name), path))
        if series:
            self.series[path] = series


def find_slides(
    sources: Iterable[str | Path],
    *,
    slides_dir: str | Path | None = None,
    leave_out: str | Path | None = None,
    note: Callable[[str], None] = _LOG.warning,
) -> tuple[ListedSlide, ...]:
    """Every slide that `sources` name, in their order (a folder's in alphabetical order), each once.

    A source is a slide file, a folder (searched to any depth, each folder once whatever links lead to it), a glob, or a
    CSV. A CSV has a column `slide_id`, `path` or `wsi`, and optionally `mpp`. Its paths are relative to it, or else to
    `slides_dir`; a bare `slide_id` is searched for in `slides_dir` and beside the CSV, to any depth. The DICOM files of
    one series are one slide, named by any of them. Its id is that of its folder, if nothing else is there, or of its
    first file.

    - `leave_out`: a folder whose files are not slides, anywhere below (the results, which hold plots).
    - `note`: receives one line about files that a search through folders skipped, and one about a DICOM series of
      several files that is in two folders.

    Raises `InputError` for a missing source or `slides_dir`, a folder or glob without slides, two files with one slide
    id, and two ids for one DICOM slide. It also refuses a CSV without such a column, with an mpp that is not a positive
    number, or with two slide ids that differ in spelling only. A CSV row whose file is missing is kept, and so is a
    slide whose name no result can have (see `ListedSlide.fault`).

    >>> import longvit
    >>> [slide.slide_id for slide in longvit.find_slides(["examples/*.svs"])]
    ['CMU-1-Small-Region']
    """
    if slides_dir is not None and not is_folder(slides_dir):
        raise InputError(f"--slides-dir {slides_dir}: no such folder")
    collected = _Sources(slides_dir, leave_out, [], {}, {})
    for source in sources:
        _add_source(collected, source)
    passed_over = _counted(collected.passed_over)
    if passed_over:
        note(f"passed over: {passed_over}")
    if divided := _divided_series(collected.series):
        note(divided)
    if not collected.slides:
        raise InputError("no slides given: name files, a folder, a glob or a CSV")
    return _each_once(collected.slides, collected.series)


def _add_source(collected: _Sources, source: str | Path) -> None:
    path = Path(source)
    if path.suffix.lower() == ".csv" and not is_folder(path):
        collected.slides += _from_csv(path, collected.slides_dir, collected.leave_out)
    elif is_folder(path):
        _add_folder(collected, path)
    elif os.path.lexists(path):
        collected.add(path)
    elif glob.has_magic(str(source)):
        matches = _matches(str(source))
        if not matches:
            raise InputError(f"{source}: no file matches")
        for match in matches:
            if is_folder(match):
                _add_folder(collected, Path(match), is_needed=False)
            else:
                _add_source(collected, match)
    elif (existing := existing_path([Path()], str(source))) is not None:
        _add_source(collected, existing)
    else:
        raise InputError(f"{printable(str(source))}: no such file or folder{near_name(path)}")


def _add_folder(collected: _Sources, folder: Path, is_needed: bool = True) -> None:
    if (mirax := mirax_slide(folder)) is not None:  # `slides/*` in a shell lists the slide and its data folder
        collected.add(mirax)
        return
    search = FolderSearch(folder, collected.leave_out)
    slides = list(search.in_order())
    collected.passed_over.update(search.passed_over)
    if (
        len(slides) == 1 and slides[0].is_dicom and slides[0].files[0].parent == folder
    ):  # the folder itself is the slide
        slides = [slides[0]._replace(path=folder)]
    for slide in slides:
        collected.add(slide.path, slide.series)
    for unlisted in search.unlisted:  # it may hold slides, so its problem becomes a row
        collected.slides.append(_listed(f"{unlisted.name} (folder)", unlisted))
    if is_needed and not slides and not search.unlisted:
        more = f"; passed over: {_counted(search.passed_over)}" if search.passed_over else ""
        raise InputError(
            f"{folder}: no slides in it (searched for .svs, .ndpi, .mrxs, .tif, .dcm, … to any depth{more})"
        )


def _matches(pattern: str) -> list[str]:
    """Files and folders that match a glob, sorted, without names that begin with a dot."""
    if "**" not in pattern:
        # not Path.glob, which needs its folder apart from the pattern
        matches = glob.glob(pattern)  # noqa: PTH207
    else:  # glob.glob follows links that loop
        parts = Path(pattern).parts
        first_magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:first_magic])
        files = [file for slide in FolderSearch(base).in_order() for file in slide.files]
        matches = [str(file) for file in files if _fits(file.relative_to(base).parts, parts[first_magic:])]
    return sorted(match for match in matches if not Path(match).name.startswith("."))


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the parts of a path match a glob with `**` (any folders and their content)."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return not pattern[1:] or any(_fits(parts[i:], pattern[1:]) for i in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _from_csv(path: Path, slides_dir: str | Path | None, leave_out: str | Path | None) -> list[ListedSlide]:
    columns, table = read_table(path)
    if not {"slide_id", "path", "wsi"} & set(columns):
        raise InputError(f"{path}: no column slide_id, path or wsi (it has {', '.join(columns)})")
    elsewhere = [Path(slides_dir)] if slides_dir is not None else []
    finder = SlideFinder([*elsewhere, path.parent], leave_out)
    slides: list[ListedSlide] = []
    line_of_index: dict[int, int] = {}
    line_of: dict[str, str] = {}
    for line, cells in table:
        stated = cells.get("path") or cells.get("wsi")
        slide_id = slide_stem(canonical(cells.get("slide_id", "")) or canonical(last_part(stated or "")))
        if not slide_id:
            raise InputError(f"{path}, line {line}: neither slide_id nor path nor wsi")
        if "/" in slide_id or "\\" in slide_id:  # it is part of the names of result files
            raise InputError(f"{path}, line {line}: slide_id {slide_id!r} is a path; put that into a column path")
        if stated:
            file = existing_path([path.parent, *elsewhere], stated) or finder.find(last_part(stated))
            file = file or path.parent / _of_this_machine(path.parent, stated)
        else:
            file = finder.find(cells["slide_id"]) or _missing(path.parent, cells["slide_id"], finder)
        if cells.get("slide_id"):
            line_of_index[len(slides)] = line
        line_of.setdefault(slide_id, f"line {line}")
        slides.append(_listed(slide_id, file, read_mpp(path, line, cells.get("mpp", ""))))
    refuse_clashes("slide_id", line_of, str(path))
    _refuse_one_slide_under_two_ids(path, slides, line_of_index)
    return slides


def _missing(folder: Path, name: str, finder: SlideFinder) -> Path:
    """Expected path of a missing slide: beside one with a similar name, if there is one."""
    near = finder.near(name)
    return (folder if near is None else near.parent) / name


def _of_this_machine(folder: Path, text: str) -> str:
    """A Windows path with `/`, if its folder exists here under that name."""
    converted = text.replace("\\", "/")
    return converted if is_folder((folder / converted).parent) else text


def _listed(slide_id: str, path: Path, mpp: float | None = None) -> ListedSlide:
    """A slide with a writable id and path, and with its fault where these had to be changed."""
    fault = fault_of_name(slide_id, str(path))
    if fault is None:
        return ListedSlide(slide_id, path, mpp)
    slide_id = printable(slide_id).replace("/", "\\x2f")
    printed = printable(str(path))
    return ListedSlide(slide_id, Path(printed), mpp, f"{printed}: {fault}")


def _refuse_one_slide_under_two_ids(
    path: Path, slides: Sequence[ListedSlide], line_of_index: Mapping[int, int]
) -> None:
    """Raises `InputError` for files of one DICOM series under different ids, which would count one slide twice."""
    rows = list(line_of_index)
    row_of_series: dict[tuple[str, str], int] = {}
    for index, key in dicom_keys([slides[row].path for row in rows]).items():
        row = rows[index]
        other = row_of_series.setdefault(key, row)
        if slides[other].slide_id != slides[row].slide_id:
            raise InputError(
                f"{path}, lines {line_of_index[other]} and {line_of_index[row]}: {slides[other].slide_id} and "
                f"{slides[row].slide_id} are files of one DICOM slide; keep one row"
            )


def _each_once(slides: Sequence[ListedSlide], series: Mapping[Path, str]) -> tuple[ListedSlide, ...]:
    dicom = dicom_keys([slide.path for slide in slides], series)
    first_of_series: dict[tuple[str, str], ListedSlide] = {}
    by_id: dict[str, ListedSlide] = {}
    for index, slide in enumerate(slides):
        if index in dicom and first_of_series.setdefault(dicom[index], slide) is not slide:
            continue
        earlier = by_id.setdefault(slide.slide_id, slide)
        if earlier is not slide and os.path.realpath(earlier.path) != os.path.realpath(slide.path):
            raise InputError(
                f"{earlier.path} and {slide.path}: one slide id for two files ({slide.slide_id}); "
                f"list them in a CSV with the columns slide_id,path"
            )
    return tuple(by_id.values())


def _divided_series(series: Mapping[Path, str]) -> str:
    """Line about series that are in more than one folder; "" for none. Each folder is one slide all the same."""
    places: dict[str, dict[str, Path]] = {}
    for path, uid in series.items():
        folder = path if is_folder(path) else path.parent
        places.setdefault(uid, {}).setdefault(os.path.realpath(folder), path)
    found = [list(paths.values()) for paths in places.values() if len(paths) > 1]
    if not found:
        return ""
    names = " and ".join(printable(str(path)) for path in found[0][:2])
    more = f"; {len(found) - 1} more series" if found[1:] else ""
    return f"{names}: one DICOM series in {len(found[0])} folders, copies of a slide or parts of it{more}"


def _counted(passed_over: Mapping[str, str]) -> str:
    """`3 files: .btf 1, .qptiff 2`; "" for none."""
    if not passed_over:
        return ""
    kinds = Counter(map(counted_as, passed_over.values()))
    what = "file" if len(passed_over) == 1 else "files"
    return f"{len(passed_over)} {what}: {', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items()))}"
