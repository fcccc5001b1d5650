"""What lies in a folder: which slides, and which files are each. The one answer for listing, looking up and opening.

DICOM is told by its content: all files of one series are one slide. Everything else is told by its suffix, or by its
first bytes where the name has none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from longvit.errors import InputError
from longvit.files import is_folder
from longvit.slides.dicom_header import read_dicom_header
from longvit.slides.file_kind import DICOM_SUFFIXES, SLIDE_SUFFIXES, Kind, family_of, first_bytes
from longvit.slides.slide_name import printable

NO_SLIDE = " (DICOM, but no whole slide)"
MIRAX_INDEX = "Slidedat.ini"
_name = attrgetter("name")
_HAMAMATSU = (".vms", ".vmu")  # a text that names the pictures the slide consists of


class SlideFiles(NamedTuple):
    """A slide as it lies in a folder."""

    path: Path
    """What is opened: its file, of a DICOM series the first; or the folder whose one DICOM slide it is."""
    files: tuple[Path, ...]
    """All files that the slide is known by: those of its series, or `path` alone."""
    series: str = ""
    """The SeriesInstanceUID, where the header was read for it."""
    is_dicom: bool = False


@dataclass
class Folder:
    """What a folder holds, each part in alphabetical order. Names that begin with a dot are left alone."""

    path: Path
    slides: list[SlideFiles] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """What may hold further slides."""
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    """Path and name of files that are no slides; to a name it may be added what the file is."""
    names: set[str] = field(default_factory=set)

    @property
    def is_mirax_data(self) -> bool:
        """Whether it is the data folder of a MRXS slide."""
        return MIRAX_INDEX in self.names

    @property
    def one_dicom(self) -> SlideFiles | None:
        """The one slide that this folder is: all its slides' files are one DICOM series."""
        return self.slides[0] if len(self.slides) == 1 and self.slides[0].is_dicom else None


def read_folder(path: Path) -> Folder:
    """Groups the files directly inside a folder by slide. Raises `OSError` where it cannot be listed.

    Only files without a suffix, and DICOM files where there are several, are opened for it.
    """
    with os.scandir(path) as entries:
        listing = sorted(entries, key=_name)
    folder = Folder(path, names=set(map(_name, listing)))
    dicom: list[Path] = []
    has_hamamatsu = False
    for entry in listing:
        name, low = entry.name, entry.name.lower()
        if name[0] == ".":
            continue
        if _is_folder(entry):
            folder.folders.append(Path(entry.path))
        elif low.endswith(SLIDE_SUFFIXES):
            file = Path(entry.path)
            if low.endswith(DICOM_SUFFIXES):
                dicom.append(file)
                continue
            folder.slides.append(SlideFiles(file, (file,)))
            has_hamamatsu = has_hamamatsu or low.endswith(_HAMAMATSU)
        elif _is_link_to_nothing(entry):  # a folder that is not mounted: opening it says so
            folder.slides.append(SlideFiles(file := Path(entry.path), (file,)))
        elif (kind := _kind_without_suffix(entry)) is Kind.OTHER:
            folder.passed_over.append((entry.path, name))
        elif kind is Kind.DICOM:
            dicom.append(Path(entry.path))
        else:
            folder.slides.append(SlideFiles(file := Path(entry.path), (file,)))
    if has_hamamatsu:
        _leave_out_hamamatsu_images(folder)
    if dicom:
        folder.slides += _by_series(folder, dicom)
        folder.slides.sort(key=lambda slide: slide.path.name)
    return folder


def dicom_slide(path: Path) -> SlideFiles:
    """The DICOM slide that a file belongs to, or that a folder is.

    Raises `InputError` for a folder that is none, or holds more than one slide.
    """
    try:
        folder = read_folder(path if is_folder(path) else path.parent)
        if not is_folder(path):
            _refuse_what_waits(folder.path)
            whole = next((slide for slide in folder.slides if slide.is_dicom and path in slide.files), None)
            return whole or SlideFiles(path, (path,), is_dicom=True)
        if folder.is_mirax_data:
            raise InputError(_mirax_data(path))
        if (one := folder.one_dicom) is not None:
            _refuse_what_waits(folder.path)
            return one
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be listed ({error.strerror or error})") from error
    if folder.slides:
        what = "DICOM slides" if all(slide.is_dicom for slide in folder.slides) else "slides"
        names = ", ".join(printable(str(slide.path)) for slide in folder.slides[:3])
        more = ", …" if folder.slides[3:] else ""
        raise InputError(f"{path}: a folder of {len(folder.slides)} {what}; name one of their files ({names}{more})")
    raise InputError(f"{path}: a folder without a DICOM file (a folder is read as one DICOM slide); name a slide file")


def dicom_series(path: Path) -> str:
    """The SeriesInstanceUID of a DICOM file, or of the one DICOM slide that a folder is; "" where it tells none."""
    file: Path | None = path
    if is_folder(path):
        try:
            one = read_folder(path).one_dicom
        except OSError:
            return ""
        file = None if one is None else one.path
    header = None if file is None else read_dicom_header(file)
    return "" if header is None else header.series


def mirax_file(data_folder: Path) -> Path | None:
    """The MRXS file beside its data folder, or None."""
    for suffix in (".mrxs", ".MRXS", ".Mrxs"):
        if os.path.exists(file := data_folder.with_name(data_folder.name + suffix)):  # noqa: PTH110
            return file
    return None


def require_plain_files(folder: Path) -> None:
    """`InputError` where a folder whose files OpenSlide opens by itself holds a FIFO or the like: that would wait."""
    try:
        _refuse_what_waits(folder)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be listed ({error.strerror or error})") from error


def _mirax_data(path: Path) -> str:
    if mirax_file(path) is None:
        return f"{path}: the data folder of a MRXS slide, without the file {path.name}.mrxs beside it; copy both"
    return f"{path}: the data folder of a MRXS slide; give the file {path.name}.mrxs beside it"


def _refuse_what_waits(folder: Path) -> None:
    """OpenSlide opens all files that lie beside a DICOM file, to find those of its series."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file() or entry.is_dir():
                    continue
                mode = entry.stat().st_mode
            except OSError:  # a link to nothing
                continue
            what = "a FIFO" if stat.S_ISFIFO(mode) else "a socket or device"
            raise InputError(
                f"{folder}: {printable(entry.name)} in it is {what}, and OpenSlide opens all that lies beside "
                f"this slide; move it away"
            )


def _by_series(folder: Folder, files: list[Path]) -> Iterable[SlideFiles]:
    """The slides among DICOM files; a file that tells no series is one by itself, and its opening says why."""
    if len(files) == 1 and files[0].name.lower().endswith(DICOM_SUFFIXES):
        return [SlideFiles(files[0], (files[0],), is_dicom=True)]
    series: dict[str, list[Path]] = {}
    untold: list[Path] = []
    for file in files:
        header = read_dicom_header(file)
        if header is None:
            untold.append(file)
        elif header.is_slide:
            series.setdefault(header.series, []).append(file)
        else:
            folder.passed_over.append((str(file), f"{file.name}{NO_SLIDE}"))
    if untold and not series and not folder.slides:
        return [SlideFiles(untold[0], tuple(untold), is_dicom=True)]
    return [
        *(SlideFiles(found[0], tuple(found), uid, True) for uid, found in series.items()),
        *(SlideFiles(file, (file,), is_dicom=True) for file in untold),
    ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself, or behind it a network folder that is gone: then its listing says so
        return error.errno != errno.ELOOP and not entry.name.lower().endswith(SLIDE_SUFFIXES)


def _is_link_to_nothing(entry: os.DirEntry[str]) -> bool:
    if "." in entry.name or not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError as error:
        return error.errno == errno.ENOENT
    return False


def _kind_without_suffix(entry: os.DirEntry[str]) -> Kind:
    """What a file is whose name does not say it; `OTHER` where the name says that it is something else."""
    _, dot, suffix = entry.name.rpartition(".")
    # The names of DICOM files are often UIDs: numbers with dots.
    if dot and not suffix.isdigit():
        return Kind.OTHER
    try:
        if not entry.is_file():
            return Kind.OTHER
        kind = family_of(first_bytes(Path(entry.path), 132))
    except OSError:
        return Kind.OTHER
    return kind if not dot or kind is Kind.DICOM else Kind.OTHER


def counted_as(name: str) -> str:
    """What a file that is passed over is counted as, from its name as `Folder.passed_over` has it: its suffix."""
    more = NO_SLIDE if name.endswith(NO_SLIDE) else ""
    stem, dot, suffix = name.removesuffix(NO_SLIDE).rpartition(".")
    return (f".{printable(suffix.lower())}" if dot and stem and not suffix.isdigit() else "(no suffix)") + more


def _leave_out_hamamatsu_images(folder: Folder) -> None:
    """A VMS or VMU slide is a text that names its pictures, which are JPEGs beside it and no slides themselves."""
    named: set[str] = set()
    for slide in folder.slides:
        if slide.path.name.lower().endswith(_HAMAMATSU):
            try:
                lines = first_bytes(slide.path, 1 << 20).decode("latin-1").splitlines() if slide.path.is_file() else []
            except OSError:
                continue
            named |= {line.partition("=")[2].strip() for line in lines}
    if named:
        folder.slides = [slide for slide in folder.slides if slide.path.name not in named]
