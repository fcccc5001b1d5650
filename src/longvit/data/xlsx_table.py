"""Sheets of Excel (.xlsx) as tables. Needs `pip install 'longvit[excel]'`."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longvit.errors import InputError, one_line

MAX_UNPACKED_BYTES = 2**30


def xlsx_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of every row of the only sheet with content that is not blank, the header's first.

    Whole numbers are written without `.0`, dates as 2026-01-31. Formulas count with the value that Excel stored.

    Raises `InputError` without openpyxl, and for a file that is no workbook, is encrypted or unpacks to gigabytes. It
    refuses several sheets with content, and a row longer than the header.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(f"{path}: needs openpyxl; pip install 'longvit[excel]', or save the sheet as CSV") from error
    try:
        _refuse_large(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # openpyxl raises whatever its parts raise
        raise InputError(
            f"{path}: not a readable Excel file ({one_line(error, 120)}); save the sheet as CSV"
        ) from error
    try:
        sheets = [(sheet.title, rows) for sheet in book.worksheets if (rows := _rows_of(sheet))]
    except Exception as error:
        raise InputError(f"{path}: damaged ({one_line(error, 120)}); save the sheet as CSV") from error
    finally:
        book.close()
    if len(sheets) > 1:
        names = ", ".join(title for title, _ in sheets)
        raise InputError(f"{path}: {len(sheets)} sheets with content ({names}); keep one, or save it as CSV")
    width = len(sheets[0][1][0][1]) if sheets else 0
    for number, cells in sheets[0][1] if sheets else ():
        if any(cells[width:]):
            raise InputError(f"{path}, line {number}: {len(cells)} cells for {width} columns")
        yield number, cells[:width]


def _rows_of(sheet: Any) -> list[tuple[int, list[str]]]:
    rows = []
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_text(value) for value in values]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            rows.append((number, cells))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value).strip()


def _refuse_large(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (size := sum(info.file_size for info in archive.infolist())) > MAX_UNPACKED_BYTES:
            raise InputError(f"{path}: unpacks to {size:,} bytes, more than {MAX_UNPACKED_BYTES:,}; save it as CSV")
