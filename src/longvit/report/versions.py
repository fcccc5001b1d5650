"""Software versions of a result."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

from longvit import __version__

PACKAGES = ("torch", "numpy", "tifffile", "openslide-bin")


def versions_line(known: Mapping[str, str] | None = None) -> str:
    """Sentence with the versions `known` (package -> version), or the running ones where none were recorded."""
    if known:
        return "Computed with " + ", ".join(f"{name} {version}" for name, version in known.items()) + "."
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return f"longvit {__version__}, Python {platform.python_version()}, {packages}."
