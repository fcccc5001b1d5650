"""CSV reader for real-world files: BOM, `,` `;` or tabs, Excel's line `sep=;`, UTF-16, spaces, column names in any
case, blank lines, zipped or gzipped.

Every read is limited, since an archive of a few kilobytes may hold gigabytes. See `MAX_UNPACKED_BYTES` and below.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import math
import re
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from longvit.data.identity import is_missing_number
from longvit.errors import InputError

MAX_UNPACKED_BYTES = 256 * 2**20
"""Largest table in an archive; a larger one can be unpacked first."""
MAX_LINES = 2_000_000
"""Lines of a table, including blank ones."""
MAX_LINE = 32 * 2**20
"""Characters of a line."""
MAX_CELLS_READ = 100_000_000
"""Cells of a table, including blank ones."""
MAX_ROWS = 500_000
MAX_CELLS = 6_000_000
"""Cells that `read_table` keeps in memory as text."""

_END = "\ue000end of the table\ue000"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def column_name(text: str) -> str:
    """Normalised column name: ` Slide ID` and `slide-id` -> `slide_id`."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return re.sub(r"[\s-]+", "_", text.strip()).lower()


def read_table(
    path: Path, naming: Callable[[str], str] = column_name
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names (normalised by `naming`) and (line number, {column: cell}) of every row that is not blank.

    `path` is a CSV, a .zip or .gz with one CSV in it, or an Excel sheet (.xlsx). Cells are stripped; a row shorter than
    the header lacks the last columns. Raises `InputError` for no such file, no text, no rows, two columns of one name,
    and a row longer than the header. More than `MAX_ROWS` rows or `MAX_CELLS` cells are refused too, and the same as in
    `records`.
    """
    columns: list[str] = []
    table: list[tuple[int, dict[str, str]]] = []
    n_cells = 0
    seen: dict[str, str] = {}  # equal texts are stored once
    for line, cells in records(path):
        if not columns:
            columns = [naming(cell) for cell in cells]
            if duplicate := next((c for c, n in Counter(columns).items() if c and n > 1), None):
                raise InputError(f"{path}: two columns are called {duplicate!r}")
            continue
        n_cells += len(cells)
        if len(table) >= MAX_ROWS or n_cells > MAX_CELLS:
            raise InputError(
                f"{path}, line {line}: more than {MAX_ROWS:,} rows or {MAX_CELLS:,} cells; "
                f"leave out the columns and rows that are not needed here"
            )
        if len(seen) < 100_000:
            cells = [seen.setdefault(cell, cell) for cell in cells]
        else:
            cells = [seen.get(cell, cell) for cell in cells]
        table.append((line, dict(zip(columns, cells, strict=False))))
    if not table:
        what = "a header but no rows" if columns else "empty"
        raise InputError(f"{path}: {what}; it needs a line with column names (slide_id, label, …) and a row per slide")
    return columns, table


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells without outer blanks) of every line that is not blank, the header's first.

    Raises `InputError` for a file that cannot be read or is not a regular file, and for invalid text (with the line). A
    line with more cells than the header, a quote that is not closed, and a line of more than `MAX_LINE` characters are
    refused. So are more than `MAX_LINES` lines or `MAX_CELLS_READ` cells, and an archive above `MAX_UNPACKED_BYTES`.
    """
    if path.suffix.lower() == ".xlsx":
        from longvit.data.xlsx_table import xlsx_records

        yield from xlsx_records(path)
        return
    with _text_of(path) as text:
        lines = _Lines(path, text)
        first = next((line for line in lines if line.strip()), "")
        if separator := re.fullmatch(r'"?sep=(\\t|.)"?[,;\t]*\s*', first, re.IGNORECASE):
            delimiter = "\t" if separator[1] == "\\t" else separator[1]
            first = next((line for line in lines if line.strip()), "")
        else:
            header = re.sub(r'"[^"]*"', "", first)
            delimiter = max(",;\t", key=header.count)
        before = lines.number - 1
        reader = csv.reader(_with_end(first, lines), delimiter=delimiter, skipinitialspace=True)
        width, start, cells_left = None, before + 1, MAX_CELLS_READ
        try:
            for record in reader:
                start, line_number = before + reader.line_num + 1, start
                cells_left -= len(record)
                if cells_left < 0:
                    raise InputError(
                        f"{path}, line {line_number}: more than {MAX_CELLS_READ:,} cells; leave out some columns"
                    )
                if not any(record):
                    continue
                if record == [_END]:
                    return
                if record[-1].endswith(_END):
                    raise InputError(
                        f'{path}, line {line_number}: a quote (") is not closed; remove it, or write it twice'
                    )
                cells = [cell.strip() for cell in record]
                if not any(cells):
                    continue
                if width is None:
                    width = len(cells)
                elif any(cells[width:]):
                    raise InputError(
                        f"{path}, line {line_number}: {len(cells)} cells for {width} columns; "
                        f"put cells that contain {delimiter!r} in quotes"
                    )
                yield line_number, cells
        except csv.Error as error:
            reason = (
                'a cell of more than 131,072 characters; is a quote (") not closed?' if "limit" in str(error) else error
            )
            raise InputError(f"{path}, line {start}: not CSV: {reason}") from error


def _with_end(first: str, lines: Iterator[str]) -> Iterator[str]:
    """Appends a marker line, which shows if a quote is still open."""
    yield first
    yield from lines
    yield _END


class _Lines:
    """Lines of a text, each with its line break; `number` is that of the last one."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self.path, self.text, self.number = path, text, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self.text.readline(MAX_LINE + 1)
        except UnicodeDecodeError as error:
            if b"\0" in error.object and self.text.encoding == "utf-8":
                raise InputError(f"{self.path}: not a text file; save the table as CSV") from error
            n = self.number + 1 + error.object[: error.start].count(b"\n")
            raise InputError(f"{self.path}, line {n}: a byte that is not UTF-8 text; save it as 'CSV UTF-8'") from error
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > MAX_LINE:
            raise InputError(
                f"{self.path}, line {self.number}: more than {MAX_LINE:,} characters, too long for a table of slides"
            )
        if self.number > MAX_LINES:
            raise InputError(f"{self.path}: more than {MAX_LINES:,} lines; leave out unneeded lines")
        return line


@contextmanager
def _text_of(path: Path) -> Iterator[io.TextIOWrapper]:
    """The table as text: the file, or the one CSV in a .zip or .gz."""
    try:
        if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: not a regular file (a pipe or device); write the table to a file first")
        with path.open("rb") as file, _unpacked(path, file) as data:
            buffered = io.BufferedReader(data)
            head = buffered.peek(4096)[:4096]
            encoding = next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")
            if (
                encoding.startswith("utf-8") and head.count(0) > len(head) // 10
            ):  # UTF-16 without its mark, or binary data
                raise InputError(f"{path}: not a text file; save the table as CSV")
            yield io.TextIOWrapper(buffered, encoding=encoding, newline="")
    except (zlib.error, EOFError, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        kind = "not a readable zip file" if path.suffix.lower() == ".zip" else "damaged"
        raise InputError(f"{path}: {kind}: {error}; copy it again, or unpack it and give the CSV") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unsupported compression
        raise InputError(f"{path}: not a readable zip file: {error}; unpack it and give the CSV") from error
    except UnicodeError as error:  # truncated UTF-16
        raise InputError(f"{path}: not a text file ({error}); save it as 'CSV UTF-8'") from error


@contextmanager
def _unpacked(path: Path, file: BinaryIO) -> Iterator[io.RawIOBase]:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith(".csv") and not n.startswith("__MACOSX/")]
            # pandas names the member of a .csv.zip after the archive: `table.csv.zip`
            names = names or [n for n in archive.namelist() if n.lower().endswith(".csv.zip")]
            if len(names) != 1:
                raise InputError(f"{path}: {len(names)} CSV files in it; it must hold one")
            if (size := archive.getinfo(names[0]).file_size) > MAX_UNPACKED_BYTES:
                raise _too_large(path, f"unpacks to {size:,} bytes")
            with archive.open(names[0]) as member:
                yield _Limited(cast(BinaryIO, member), path)
    elif file.read(2) == b"\x1f\x8b":
        file.seek(0)
        with gzip.open(file) as member:
            yield _Limited(cast(BinaryIO, member), path)
    else:
        file.seek(0)
        yield cast(io.RawIOBase, _Unlimited(file))


def _too_large(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what}, and at most {MAX_UNPACKED_BYTES:,} are read from an archive; unpack it and give the CSV"
    )


class _Unlimited(io.RawIOBase):
    """A file as raw bytes; its opener closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Limited(_Unlimited):
    """Unpacked content of an archive, up to the limit."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path, self._left = path, MAX_UNPACKED_BYTES

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = super().readinto(buffer)
        self._left -= n
        if self._left < 0:
            raise _too_large(self._path, f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        return n


def number(text: str) -> float | None:
    """A finite number, or None. Accepted are digits, a point, an exponent, but not 1_000, which Python accepts."""
    if _NUMBER.fullmatch(text.strip()) is None:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def read_mpp(path: Path, line: int, text: str) -> float | None:
    """µm per pixel of a cell; None where it is missing. Raises `InputError` where it is not a positive number."""
    if is_missing_number(text):
        return None
    value = number(text)
    if value is None or value <= 0:
        raise InputError(f"{path}, line {line}: mpp is {text!r}; it must be a positive number of µm per pixel")
    return value
