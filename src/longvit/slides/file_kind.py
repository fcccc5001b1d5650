"""Kind of a file from its first bytes; a file that is not a slide is refused early, in one line.

The content decides, not the name. A name that promises another kind (`.svs` on a PNG) is refused too: such a file is
more often a thumbnail or a mistake than a slide.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from enum import Enum
from functools import lru_cache
from pathlib import Path

from longvit.errors import InputError
from longvit.files import is_folder, require_regular_file
from longvit.slides.slide_name import printable
from longvit.slides.spelling import composed, folded


class Kind(Enum):
    """Families of files that are distinguished before a library opens anything."""

    TIFF = "TIFF"
    MIRAX = "MRXS"
    DICOM = "DICOM"
    DICOM_FOLDER = "DICOM folder"
    PNG = "PNG"
    JPEG = "JPEG"
    OTHER = "another format"
    """Left to OpenSlide (Hamamatsu VMS and VMU, Sakura, Zeiss CZI), which detects its formats itself."""


_SUFFIX_KINDS = {
    ".svs": Kind.TIFF,
    ".ndpi": Kind.TIFF,
    ".scn": Kind.TIFF,
    ".bif": Kind.TIFF,
    ".tif": Kind.TIFF,
    ".tiff": Kind.TIFF,
    ".btf": Kind.TIFF,
    ".tf2": Kind.TIFF,
    ".tf8": Kind.TIFF,
    ".qptiff": Kind.TIFF,
    ".dcm": Kind.DICOM,
    ".dicom": Kind.DICOM,
    ".png": Kind.PNG,
    ".jpg": Kind.JPEG,
    ".jpeg": Kind.JPEG,
}
DICOM_SUFFIXES = tuple(suffix for suffix, kind in _SUFFIX_KINDS.items() if kind is Kind.DICOM)
IMAGE_SUFFIXES = tuple(suffix for suffix, kind in _SUFFIX_KINDS.items() if kind in (Kind.PNG, Kind.JPEG))
# The one list of suffixes of slides, for listing, lookup and opening. Longest first, so that `.ome.tiff` is cut off
# whole. Identifiers may contain dots themselves (TCGA's do), so only a known extension is ever cut.
SLIDE_SUFFIXES = tuple(
    sorted(
        (
            *_SUFFIX_KINDS,
            *(f".ome{suffix}" for suffix in (".tif", ".tiff", ".btf", ".tf2", ".tf8")),
            *(".mrxs", ".vms", ".vmu", ".svslide", ".czi"),
        ),
        key=lambda suffix: (-len(suffix), suffix),
    )
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHER_FORMATS = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)


def slide_stem(name: str) -> str:
    """Name without a slide's suffix: `a.b.svs` -> `a.b`; `a.b` stays, since `.b` is not a known extension."""
    low = name.lower()
    if not low.endswith(SLIDE_SUFFIXES):
        return name
    return next((name[: -len(s)] for s in SLIDE_SUFFIXES if low.endswith(s) and len(name) > len(s)), name)


def kind_of(path: Path) -> Kind:
    """Kind of a file. Raises `InputError` for a missing, empty, unreadable or misnamed file, and for one that is not a
    slide."""
    require_regular_file(path)
    try:
        size_bytes = path.stat().st_size
        head = first_bytes(path, 4096)
    except OSError as error:
        raise _unreadable(path, error) from error
    if path.suffix.lower() == ".mrxs":
        _require_mirax_folder(path)
        return Kind.MIRAX
    if size_bytes == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    kind = _content_kind(path, head)
    promised = _SUFFIX_KINDS.get(path.suffix.lower())
    if promised is not None and kind is not promised:
        if kind is Kind.OTHER:
            raise InputError(
                f"{path}: no {promised.value} inside, though it is named {path.suffix} ({_content_description(head)})"
            )
        raise InputError(
            f"{path}: named {path.suffix}, but the content is {kind.value}; if that is meant, rename it to "
            f"{path.stem}{_usual_suffix(kind)}"
        )
    if kind is Kind.OTHER:
        _refuse_other_formats(path, head)
    return kind


def first_bytes(path: Path, count: int) -> bytes:
    """First bytes of a file, fewer at its end. Reading never blocks: a device or system file without data gives none.
    Raises `OSError`."""
    head = b""
    with path.open("rb", buffering=0) as file:
        if sys.platform != "win32":  # devices are no files there
            os.set_blocking(file.fileno(), False)
        while len(head) < count and (more := file.read(count - len(head))):
            head += more
    return head


def family_of(head: bytes) -> Kind:
    """Family that the first bytes (132 are enough) identify; `OTHER` where they identify none."""
    if head.startswith(_TIFF_MAGIC):
        return Kind.TIFF
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Kind.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Kind.JPEG
    return Kind.OTHER


def near_name(path: Path) -> str:
    """Suggestion for a missing path, for a message: "; there is 001.tif"; empty where no name is similar."""
    with contextlib.suppress(OSError, ValueError):  # no link
        return f"; it is a link to {printable(str(path.readlink()))}, which is not there"
    if "\\" in path.name:
        return "; on this machine a path has / where that has \\"
    names = _folded_names(path.parent).get(folded(slide_stem(path.name)), ())
    if any(composed(name) == composed(path.name) for name in names):
        return f"; there is one that differs in Unicode form only: {printable(str(path.parent))}/{path.name}"
    return f"; there is {', '.join(map(printable, names[:3]))}" if names else ""


def _folded_names(folder: Path) -> dict[str, list[str]]:
    try:
        return _folded_names_at(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=8)
def _folded_names_at(folder: Path, _: int) -> dict[str, list[str]]:
    """Names in a folder by their `folded` form. Each folder is listed once, however many slides are missing there."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        names.setdefault(folded(slide_stem(name)), []).append(name)
    return names


def _content_kind(path: Path, head: bytes) -> Kind:
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the slide itself; run `git lfs pull` in its repository")
    return family_of(head)


def _usual_suffix(kind: Kind) -> str:
    return {Kind.TIFF: ".tif", Kind.DICOM: ".dcm", Kind.PNG: ".png", Kind.JPEG: ".jpg"}[kind]


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path}: {name}, not a slide")


def _content_description(head: bytes) -> str:
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            return f"it is {name}"
    if _is_text(head):
        return f"it is text that begins with {head.decode(errors='replace').split(chr(10))[0][:40]!r}"
    return f"it begins with the bytes {head[:4].hex(' ')}"


def _is_text(head: bytes) -> bool:
    try:
        # The block may end inside a character of several bytes.
        head[: len(head) - 3 if len(head) == 4096 else len(head)].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _require_mirax_folder(path: Path) -> None:
    folder = path.with_suffix("")
    if not os.path.isfile(folder / "Slidedat.ini"):  # noqa: PTH113 (Path.is_file may raise)
        what = "holds no Slidedat.ini" if is_folder(folder) else "is missing"
        raise InputError(
            f"{path}: its data folder {folder.name}/ {what} (a MRXS slide is the file and a folder of the same "
            f"name beside it); copy both"
        )


def _unreadable(path: Path, error: OSError) -> InputError:
    if error.errno == errno.ENOENT:
        return InputError(f"{path}: no such file{near_name(path)}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path}: no permission to read it")
    return InputError(f"{path}: cannot be read ({error.strerror or error})")
