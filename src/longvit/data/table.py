"""Reads a CSV as people write them: BOM, `,` `;` or tabs, spaces, column names in any case, blank lines, zipped."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
import zlib
from pathlib import Path

from longvit.errors import InputError


def column_name(text: str) -> str:
    """` Slide ID` and `slide-id` -> `slide_id`."""
    return re.sub(r"[\s-]+", "_", text.strip()).lower()


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names (see `column_name`) and (line number, {column: cell}) of every row that is not blank.

    `path` is a CSV, or a .zip with one CSV in it. Cells are stripped; a row shorter than the header lacks the last
    columns. `InputError`: no such file, no UTF-8 text, no rows, two columns of one name, a row longer than the header.
    """
    data = _bytes_of(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8 text; save it as 'CSV UTF-8'"
            if b"\0" not in data
            else f"{path}: not a text file; save the table as CSV"
        ) from error
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] = []
    table: list[tuple[int, dict[str, str]]] = []
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if not any(cells):
                continue
            if not columns:
                columns = [column_name(cell) for cell in cells]
                if twice := next((c for c in columns if c and columns.count(c) > 1), None):
                    raise InputError(f"{path}: two columns are called {twice!r}")
                continue
            if any(cells[len(columns) :]):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for {len(columns)} columns; "
                    f"put cells that contain {delimiter!r} in quotes"
                )
            table.append((reader.line_num, dict(zip(columns, cells, strict=False))))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    if not table:
        what = "a header but no rows" if columns else "empty"
        raise InputError(f"{path}: {what}; it needs a line with column names (slide_id, label, …) and a row per slide")
    return columns, table


def _bytes_of(path: Path) -> bytes:
    """The file, or the one CSV in a .zip."""
    try:
        if path.suffix.lower() != ".zip":
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith(".csv") and not n.startswith("__MACOSX/")]
            # pandas names the member of a .csv.zip after the archive: `table.csv.zip`
            names = names or [n for n in archive.namelist() if n.lower().endswith(".csv.zip")]
            if len(names) != 1:
                raise InputError(f"{path}: {len(names)} CSV files in it; it must hold one")
            return archive.read(names[0])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
        raise InputError(f"{path}: no readable zip file: {error}; unpack it and give the CSV") from error


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_mpp(path: Path, line: int, text: str) -> float | None:
    """µm per pixel of a cell; None where it is empty, `InputError` where it is no positive number."""
    if not text:
        return None
    value = number(text)
    if value is None or value <= 0:
        raise InputError(f"{path}, line {line}: mpp is {text!r}; it must be a positive number of µm per pixel")
    return value
