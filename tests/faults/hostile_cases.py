"""A file that means harm: its class, its name, how it is made. The classes register theirs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECRET = 42.5
"""Stands in files that no case may read."""
CANARY = "code-was-run"
"""A file that code makes, where some is run."""
N, D = 20, 8


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    make: Callable[[Path], Path]
    """Writes the file (and what belongs to it) into an empty folder; → what is to be read."""
    good: bool = False
    """Strange, and to be read."""


CASES: list[Case] = []


def case(kind: str, name: str, *, good: bool = False) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(Case(kind, name, make, good))
        return make

    return add


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
