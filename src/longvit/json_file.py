"""JSON that a run wrote and that anyone may have changed since: read in bounded memory, a damaged file is one line."""

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
    """What a file of JSON holds.

    Raises `InputError` (a `ValueError`) in one line for what is no regular file or no JSON, a name that comes twice, a
    number of thousands of digits, nesting without end, and without `nan` a NaN or an infinity; an `OSError` where it
    cannot be read.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"{path}: larger than {most_bytes / 2**20:.3g} MB; no run writes such a file")
    return parse_json(data, str(path), nan=nan)


def read_json_object(path: Path, *, most_bytes: int = MOST_BYTES, nan: bool = True) -> dict[str, Any]:
    """The same for a file of names and values."""
    found = read_json(path, most_bytes=most_bytes, nan=nan)
    if not isinstance(found, dict):
        raise InputError(f"{path}: names and values are expected, not a {type(found).__name__}")
    return found


def read_made(path: Path, kinds: Mapping[str, Any], *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """What a file holds that was written with these names (`a.b`: b within a) and kinds of values, others beside them.

    Raises `InputError` for the first that is missing or of another kind, else as `read_json_object`.
    """
    found = read_json_object(path, most_bytes=most_bytes)
    for name, kind in kinds.items():
        value: Any = found
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(f"{path}: damaged: it has no {name!r}")
            value = value[part]
        if not isinstance(value, kind):
            raise InputError(f"{path}: damaged: its {name!r} is a {type(value).__name__}")
    return found


def parse_json(data: bytes | str, source: str, *, nan: bool = True) -> Any:
    """What JSON text says; `source` is named in the `InputError`."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_unique, parse_constant=None if nan else _refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start:,})") from error
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply") from error
    except (ValueError, MemoryError) as error:
        raise InputError(f"{source}: no JSON, or damaged ({' '.join(str(error).split())[:200]})") from error


def without_nan(value: Any) -> Any:
    """The value as JSON can hold it: tuples as lists, None in place of a NaN or an infinity."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} appears twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
