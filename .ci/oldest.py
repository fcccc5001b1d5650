"""Constraints for pip that pin every requirement to the lowest release that `pyproject.toml` allows: `make oldest`."""

from __future__ import annotations

from pathlib import Path

from audit import declared
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def pinned(requirement: Requirement) -> str | None:
    """`name==lower bound`; None for a requirement without a lower bound."""
    lowest = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "~=")]
    return f"{requirement.name}=={max(lowest)}" if lowest else None


if __name__ == "__main__":
    lines = {line for requirement in declared(ROOT / "pyproject.toml") if (line := pinned(requirement))}
    print("\n".join(sorted(lines)))
