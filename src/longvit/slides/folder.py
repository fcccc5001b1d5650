"""Content of a folder, grouped into slides and their files. Listing, lookup and opening all use this grouping.

DICOM is recognised by its content: all files of one series are one slide. Other kinds are recognised by suffix, or by
the first bytes where the name has none.
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
from longvit.slides.file_kind import DICOM_SUFFIXES, IMAGE_SUFFIXES, SLIDE_SUFFIXES, Kind, family_of, first_bytes
from longvit.slides.slide_name import printable

NO_SLIDE = " (DICOM, but no whole slide)"
BESIDE_DICOM = " (beside DICOM files)"
MIRAX_INDEX = "Slidedat.ini"
_name = attrgetter("name")
_PREVIEWS = ("thumbnail", "thumb", "label", "macro", "overview", "preview")
"""Names of PNG and JPEG files that a program puts beside the DICOM files of a slide."""
_HAMAMATSU = (".vms", ".vmu")  # a text that names the images of the slide


class SlideFiles(NamedTuple):
    """A slide and its files in a folder."""

    path: Path
    """Path to open: the slide's file, the first of a DICOM series, or the folder of one DICOM slide."""
    files: tuple[Path, ...]
    """Files that identify the slide: those of its series, or `path` alone."""
    series: str = ""
    """SeriesInstanceUID, where the header was read."""
    is_dicom: bool = False
    unread: tuple[Path, ...] = ()
    """DICOM files in the folder whose series cannot be read: they may belong to this slide."""


@dataclass
class Folder:
    """Content of a folder, each list in alphabetical order. Names that begin with a dot are skipped."""

    path: Path
    slides: list[SlideFiles] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Subfolders that may hold further slides."""
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    """Path and name of files that are not slides; a description may follow the name."""
    names: set[str] = field(default_factory=set)

    @property
    def is_mirax_data(self) -> bool:
        """True for the data folder of a MRXS slide."""
        return MIRAX_INDEX in self.names

    @property
    def one_dicom(self) -> SlideFiles | None:
        """The slide of a folder whose slide files are all one DICOM series; None otherwise."""
        return self.slides[0] if len(self.slides) == 1 and self.slides[0].is_dicom else None


def read_folder(path: Path) -> Folder:
    """Groups the files directly inside a folder by slide. Raises `OSError` where it cannot be listed.

    Files are opened only if they have no suffix, or if there are several DICOM files.
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
        elif _is_broken_link(entry):  # a folder that is not mounted: opening it reports that
            folder.slides.append(SlideFiles(file := Path(entry.path), (file,)))
        elif (kind := _kind_without_suffix(entry)) is Kind.OTHER:
            folder.passed_over.append((entry.path, name))
        elif kind is Kind.DICOM:
            dicom.append(Path(entry.path))
        else:
            folder.slides.append(SlideFiles(file := Path(entry.path), (file,)))
    if has_hamamatsu:
        _drop_hamamatsu_images(folder)
    if dicom:
        _drop_previews(folder)
        folder.slides += _by_series(folder, dicom)
        folder.slides.sort(key=lambda slide: slide.path.name)
    return folder


def dicom_slide(path: Path) -> SlideFiles:
    """The DICOM slide of a file or of a folder.

    Raises `InputError` for a folder without one, or with more than one slide.
    """
    try:
        folder = read_folder(path if is_folder(path) else path.parent)
        if not is_folder(path):
            _refuse_special_files(folder.path)
            dicom = [slide for slide in folder.slides if slide.is_dicom]
            containing = next((slide for slide in dicom if path in slide.files), None)
            if containing is None:
                return SlideFiles(path, (path,), is_dicom=True)
            unread = [slide.path for slide in dicom if not slide.series] if containing.series else []
            return containing._replace(unread=tuple(unread))
        if folder.is_mirax_data:
            raise InputError(_mirax_data(path))
        if (only_slide := folder.one_dicom) is not None:
            _refuse_special_files(folder.path)
            return only_slide
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be listed ({error.strerror or error})") from error
    if folder.slides:
        what = "DICOM slides" if all(slide.is_dicom for slide in folder.slides) else "slides"
        names = ", ".join(printable(str(slide.path)) for slide in folder.slides[:3])
        more = ", …" if folder.slides[3:] else ""
        raise InputError(f"{path}: a folder of {len(folder.slides)} {what}; name one of their files ({names}{more})")
    raise InputError(f"{path}: a folder without a DICOM file (a folder is read as one DICOM slide); name a slide file")


def dicom_series(path: Path) -> str:
    """SeriesInstanceUID of a DICOM file or of a folder's one DICOM slide; empty where it is unknown."""
    file: Path | None = path
    if is_folder(path):
        try:
            only_slide = read_folder(path).one_dicom
        except OSError:
            return ""
        file = None if only_slide is None else only_slide.path
    header = None if file is None else read_dicom_header(file)
    return "" if header is None else header.series


def mirax_file(data_folder: Path) -> Path | None:
    """The MRXS file beside its data folder, or None."""
    for suffix in (".mrxs", ".MRXS", ".Mrxs"):
        if os.path.exists(file := data_folder.with_name(data_folder.name + suffix)):  # noqa: PTH110
            return file
    return None


def require_plain_files(folder: Path) -> None:
    """Raises `InputError` where a folder that OpenSlide reads holds a FIFO or device, which would block."""
    try:
        _refuse_special_files(folder)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be listed ({error.strerror or error})") from error


def _mirax_data(path: Path) -> str:
    if mirax_file(path) is None:
        return f"{path}: the data folder of a MRXS slide, without the file {path.name}.mrxs beside it; copy both"
    return f"{path}: the data folder of a MRXS slide; give the file {path.name}.mrxs beside it"


def _refuse_special_files(folder: Path) -> None:
    """OpenSlide opens all files beside a DICOM file, to find those of its series; a FIFO among them would block."""
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
                f"{folder}: {printable(entry.name)} in it is {what}, and OpenSlide opens all files beside "
                f"this slide; move it away"
            )


def _by_series(folder: Folder, files: list[Path]) -> Iterable[SlideFiles]:
    """Slides among DICOM files. A file without a series is one slide, and opening it reports the reason."""
    if len(files) == 1 and files[0].name.lower().endswith(DICOM_SUFFIXES):
        return [SlideFiles(files[0], (files[0],), is_dicom=True)]
    series: dict[str, list[Path]] = {}
    without_series: list[Path] = []
    for file in files:
        header = read_dicom_header(file)
        if header is None:
            without_series.append(file)
        elif header.is_slide:
            series.setdefault(header.series, []).append(file)
        else:
            folder.passed_over.append((str(file), f"{file.name}{NO_SLIDE}"))
    if without_series and not series and not folder.slides:
        return [SlideFiles(without_series[0], tuple(without_series), is_dicom=True)]
    return [
        *(SlideFiles(members[0], tuple(members), uid, True) for uid, members in series.items()),
        *(SlideFiles(file, (file,), is_dicom=True) for file in without_series),
    ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself, or to a missing network folder: listing it reports that
        return error.errno != errno.ELOOP and not entry.name.lower().endswith(SLIDE_SUFFIXES)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    if "." in entry.name or not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError as error:
        return error.errno == errno.ENOENT
    return False


def _kind_without_suffix(entry: os.DirEntry[str]) -> Kind:
    """Kind of a file whose name does not state it; `OTHER` where the name states another format."""
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
    """Label under which a skipped file is counted: the suffix of its name in `Folder.passed_over`."""
    addition = next((text for text in (NO_SLIDE, BESIDE_DICOM) if name.endswith(text)), "")
    stem, dot, suffix = name.removesuffix(addition).rpartition(".")
    return (f".{printable(suffix.lower())}" if dot and stem and not suffix.isdigit() else "(no suffix)") + addition


def _drop_previews(folder: Folder) -> None:
    """Images with the name of a preview beside DICOM files are no slides."""
    kept = []
    for slide in folder.slides:
        if slide.path.suffix.lower() in IMAGE_SUFFIXES and slide.path.stem.lower() in _PREVIEWS:
            folder.passed_over.append((str(slide.path), f"{slide.path.name}{BESIDE_DICOM}"))
        else:
            kept.append(slide)
    folder.slides = kept


def _drop_hamamatsu_images(folder: Folder) -> None:
    """A VMS or VMU slide is a text that names its images: JPEGs beside it, which are not slides themselves."""
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
