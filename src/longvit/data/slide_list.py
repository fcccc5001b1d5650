"""Which slides a command works on: files, folders, globs, or a CSV list, in a fixed order and each once."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.data.identity import canonical, refuse_clashes
from longvit.data.slide_files import SlideFinder, slide_stem, slides_in
from longvit.data.table import read_mpp, read_table
from longvit.errors import InputError

_ANY_DEPTH = 64


@dataclass(frozen=True)
class ListedSlide:
    """One slide to work on."""

    slide_id: str
    """Its name, unique in the list, without the file's extension."""
    path: Path
    """Its file, or folder of DICOM files; it need not be there: that is found out when its turn comes."""
    mpp: float | None = None
    """µm per pixel at level 0 where the list states it."""


def find_slides(
    sources: Iterable[str | Path], *, slides_dir: str | Path | None = None, leave_out: str | Path | None = None
) -> tuple[ListedSlide, ...]:
    """Every slide that `sources` name, in their order (a folder's in alphabetical order), each once.

    A source is a slide file, a folder (searched to any depth; a folder of `.dcm` files is one slide), a glob, or a
    CSV with a column `slide_id`, `path` or `wsi`, and optionally `mpp`. Paths in a CSV are relative to it, or else to
    `slides_dir`; a bare `slide_id` is looked up beside the CSV and in `slides_dir`. `leave_out`: a folder whose files
    are no slides, wherever it lies (that of the results, which holds pictures).

    Raises `InputError`: a source that is not there, a folder or glob without slides, two files with one slide id, a
    CSV without such a column, with an mpp that is no positive number, or with two slide ids that differ in spelling
    only. A CSV row whose file is missing is kept.
    """
    slides: list[ListedSlide] = []
    for source in sources:
        path = Path(source)
        if path.suffix.lower() == ".csv" and not path.is_dir():
            slides += _from_csv(path, slides_dir)
        elif path.is_dir():
            slides += _from_folder(path, leave_out)
        elif path.exists():
            slides.append(_named(path))
        elif glob.has_magic(str(source)):
            # not Path.glob, which wants its folder apart from the pattern
            found = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207
            matches = [match for match in found if not Path(match).name.startswith(".")]
            if not matches:
                raise InputError(f"{source}: no file matches")
            slides += find_slides(matches, slides_dir=slides_dir, leave_out=leave_out)
        else:
            raise InputError(f"{source}: no such file or folder")
    if not slides:
        raise InputError("no slides given: name files, a folder, a glob or a CSV")
    return _each_once(slides)


def _named(path: Path) -> ListedSlide:
    return ListedSlide(slide_stem(path.name), path)


def _from_folder(folder: Path, leave_out: str | Path | None) -> list[ListedSlide]:
    found = slides_in(folder.parent, depth=0) if folder.parent != folder else []
    if folder in found:  # the folder itself is a DICOM slide
        return [_named(folder)]
    slides = slides_in(folder, depth=_ANY_DEPTH)
    if leave_out is not None:
        results = Path(leave_out).resolve()
        slides = [path for path in slides if results not in path.resolve().parents]
    if not slides:
        raise InputError(f"{folder}: no slides in it (looked for .svs, .ndpi, .mrxs, .tif, .dcm, … to any depth)")
    return [_named(path) for path in slides]


def _from_csv(path: Path, slides_dir: str | Path | None) -> list[ListedSlide]:
    columns, table = read_table(path)
    if not {"slide_id", "path", "wsi"} & set(columns):
        raise InputError(f"{path}: no column slide_id, path or wsi (it has {', '.join(columns)})")
    folders = [path.parent, *([Path(slides_dir)] if slides_dir is not None else [])]
    finder = SlideFinder(folders)
    slides = []
    line_of: dict[str, str] = {}
    for line, cells in table:
        given = cells.get("path") or cells.get("wsi")
        stated = canonical(cells.get("slide_id", ""))
        slide_id = slide_stem(stated or canonical(Path(given or "").name))
        if not slide_id:
            raise InputError(f"{path}, line {line}: neither slide_id nor path nor wsi")
        if "/" in slide_id or "\\" in slide_id:  # it names the files of the results
            raise InputError(f"{path}, line {line}: slide_id {slide_id!r} is a path; put that into a column path")
        if given:
            tried = [folder / given for folder in folders]
            file = next((p for p in tried if p.exists()), None) or finder.find(Path(given).name) or tried[0]
        else:
            file = finder.find(cells["slide_id"]) or path.parent / cells["slide_id"]
        line_of.setdefault(slide_id, f"line {line}")
        slides.append(ListedSlide(slide_id, file, read_mpp(path, line, cells.get("mpp", ""))))
    refuse_clashes("slide_id", line_of, str(path))
    return slides


def _each_once(slides: Sequence[ListedSlide]) -> tuple[ListedSlide, ...]:
    by_id: dict[str, ListedSlide] = {}
    for slide in slides:
        first = by_id.setdefault(slide.slide_id, slide)
        if first.path.resolve() != slide.path.resolve():
            raise InputError(
                f"{first.path} and {slide.path}: one slide id for two files ({slide.slide_id}); "
                f"list them in a CSV with the columns slide_id,path"
            )
    return tuple(by_id.values())
