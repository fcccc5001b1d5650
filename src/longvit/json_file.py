"""JSON that a run wrote and anyone may have changed since: bounded memory, a damaged file is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.files import require_regular_file

MOST_BYTES = 64 * 2**20


def read_json(path: Path, *, most_bytes: int = MOST_BYTES, nan: bool = True) -> Any:
    """Content of a JSON file.

    Raises `InputError` (a `ValueError`) in one line for anything but a regular file, for invalid JSON, a duplicate
    name, a number with thousands of digits, and endless nesting. Without `nan`, NaN and infinity are refused too.
    Raises `OSError` where the file cannot be read.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"{path}: larger than {most_bytes / 2**20:.3g} MB; no run writes such a file")
    return parse_json(data, str(path), nan=nan)


def read_json_object(path: Path, *, most_bytes: int = MOST_BYTES, nan: bool = True) -> dict[str, Any]:
    """Content of a JSON file that holds names and values; errors as in `read_json`."""
    content = read_json(path, most_bytes=most_bytes, nan=nan)
    if not isinstance(content, dict):
        raise InputError(f"{path}: names and values are expected, not a {type(content).__name__}")
    return content


def read_made(path: Path, kinds: Mapping[str, Any], *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Content of a JSON file with required names (`a.b`: b within a) and types of values; others may be present.

    Raises `InputError` for the first that is missing or of another type, else as `read_json_object`.
    """
    content = read_json_object(path, most_bytes=most_bytes)
    for name, kind in kinds.items():
        value: Any = content
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(f"{path}: damaged: it has no {name!r}")
            value = value[part]
        if not isinstance(value, kind):
            raise InputError(f"{path}: damaged: its {name!r} is a {type(value).__name__}")
    return content


def parse_json(data: bytes | str, source: str, *, nan: bool = True) -> Any:
    """Value of a JSON text; `source` is named in the `InputError`."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_unique, parse_constant=None if nan else _refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start:,})") from error
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply") from error
    except (ValueError, MemoryError) as error:
        raise InputError(f"{source}: not JSON, or damaged ({' '.join(str(error).split())[:200]})") from error


def without_nan(value: Any) -> Any:
    """The value as JSON can hold it: tuples as lists, None in place of a NaN or an infinity."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"{duplicate[:80]!r} appears twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
