"""Exact versions of everything that the tests used, for pip's `-c`: `make lock` writes requirements.lock.

Follows the requirements of pyproject.toml and its extra `dev` through the installed packages. Extras that are not
installed are left out. A build of torch is left out too (`+cpu`): the index decides it.
"""

from __future__ import annotations

import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def canonical(name: str) -> str:
    """Name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(waiting: list[Requirement]) -> dict[str, str]:
    """Versions of these requirements and of all that they need here."""
    versions: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *sorted(requirement.extras)):
            name = canonical(requirement.name)
            if (name, extra) in done:
                continue
            done.add((name, extra))
            try:
                versions[name] = metadata.version(name).partition("+")[0]
            except metadata.PackageNotFoundError:
                continue  # needed on other systems only
            inner = map(Requirement, metadata.requires(name) or ())
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return versions


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    versions = closure([Requirement(line) for line in lines])
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    print(f"# What the tests used: {system}. `make lock` writes this file.")
    print(*sorted(f"{name}=={version}" for name, version in versions.items()), sep="\n")
