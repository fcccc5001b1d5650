"""What a path is, from its first bytes: refuses early, in one line, what is no slide.

The content decides, not the name; but a name that promises another kind (`.svs` on a PNG) is refused too: such a file
is a thumbnail or a mistake more often than a slide.
"""

from __future__ import annotations

import errno
from enum import Enum
from pathlib import Path

from longvit.errors import InputError


class Kind(Enum):
    """The families of files that are told apart before a library opens anything."""

    TIFF = "TIFF"
    MIRAX = "MRXS"
    DICOM = "DICOM"
    DICOM_FOLDER = "DICOM folder"
    PNG = "PNG"
    JPEG = "JPEG"
    OTHER = "another format"
    """Left to OpenSlide (Hamamatsu VMS and VMU, Sakura, Zeiss CZI), which knows whether it reads it."""


_SUFFIX_KINDS = {
    ".svs": Kind.TIFF,
    ".ndpi": Kind.TIFF,
    ".scn": Kind.TIFF,
    ".bif": Kind.TIFF,
    ".tif": Kind.TIFF,
    ".tiff": Kind.TIFF,
    ".btf": Kind.TIFF,
    ".tf8": Kind.TIFF,
    ".dcm": Kind.DICOM,
    ".png": Kind.PNG,
    ".jpg": Kind.JPEG,
    ".jpeg": Kind.JPEG,
}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STRANGERS = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)


def kind_of(path: Path) -> Kind:
    """Tells what `path` is. Raises `InputError` for what is missing, empty, unreadable, misnamed or no slide at all."""
    try:
        if path.is_dir():
            return _folder_kind(path)
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
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
            raise InputError(f"{path}: no {promised.value} inside, though it is named {path.suffix} ({_say(head)})")
        raise InputError(
            f"{path}: named {path.suffix}, but the content is {kind.value}; if that is meant, rename it to "
            f"{path.stem}{_own_suffix(kind)}"
        )
    if kind is Kind.OTHER:
        _refuse_strangers(path, head)
    return kind


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly inside `folder`, sorted by name."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path)]


def is_dicom(path: Path) -> bool:
    """Whether the DICOM preamble is there."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _content_kind(path: Path, head: bytes) -> Kind:
    if head.startswith(_TIFF_MAGIC):
        return Kind.TIFF
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Kind.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Kind.JPEG
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the slide itself; run `git lfs pull` in its repository")
    return Kind.OTHER


def _own_suffix(kind: Kind) -> str:
    return {Kind.TIFF: ".tif", Kind.DICOM: ".dcm", Kind.PNG: ".png", Kind.JPEG: ".jpg"}[kind]


def _refuse_strangers(path: Path, head: bytes) -> None:
    for magic, name in _STRANGERS:
        if head.startswith(magic):
            raise InputError(f"{path}: {name}, not a slide")


def _say(head: bytes) -> str:
    for magic, name in _STRANGERS:
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


def _folder_kind(path: Path) -> Kind:
    if dicom_files(path):
        return Kind.DICOM_FOLDER
    if (path / "Slidedat.ini").exists():
        raise InputError(f"{path}: the data folder of a MRXS slide; give the file {path.name}.mrxs beside it")
    raise InputError(f"{path}: a folder without a DICOM file (a folder is read as one DICOM slide); name a slide file")


def _require_mirax_folder(path: Path) -> None:
    folder = path.with_suffix("")
    if not (folder / "Slidedat.ini").is_file():
        what = "holds no Slidedat.ini" if folder.is_dir() else "is missing"
        raise InputError(
            f"{path}: its data folder {folder.name}/ {what} (a MRXS slide is the file and a folder of the same "
            f"name beside it); copy both"
        )


def _unreadable(path: Path, error: OSError) -> InputError:
    if error.errno == errno.ENOENT:
        return InputError(f"{path}: no such file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path}: no permission to read it")
    return InputError(f"{path}: cannot be read ({error.strerror or error})")
