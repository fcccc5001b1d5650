"""Known faults of what we depend on: `make audit`.

1. What `pyproject.toml` allows and what is installed, against the releases below that fixed a fault that a file can
   reach here. No network.
2. The libraries inside the wheels that read files (HDF5, OpenJPEG, libwebp).
3. Everything installed against the databases of PyPI and OSV, by pip-audit, where they can be reached.

Exit code: 0 clean; 1 a known fault; 3 neither database could be asked, so 3. says nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CLEAN, FAULT, NOT_ASKED = 0, 1, 3


@dataclass(frozen=True)
class Fixed:
    """The first release without a fault."""

    package: str
    version: str
    fault: str


FIXED = (
    Fixed("openslide-bin", "4.0.1.1", "CVE-2026-48977: a BIF file writes anywhere in memory; CVE-2026-54604"),
    Fixed("torch", "2.10", "CVE-2026-24747: torch.load(weights_only=True) of a made file may run code; CVE-2025-32434"),
    Fixed("pillow", "12.3", "CVE-2026-59199: alpha_composite, paste and crop write out of bounds; CVE-2024-28219"),
    Fixed("h5py", "3.16", "the first with HDF5 2.0: CVE-2026-26200, CVE-2025-2915 (heap overflows by a file)"),
    Fixed("imagecodecs", "2025.11.11", "the first with OpenJPEG 2.5.4: CVE-2025-54874"),
    Fixed("jinja2", "3.1.6", "CVE-2025-27516: a template leaves its sandbox"),
    Fixed("distributed", "2026.1", "CVE-2026-23528: a link runs code through the dashboard in Jupyter"),
    Fixed("pyyaml", "5.4", "CVE-2020-14343: full_load runs code (here: safe_load only)"),
)
INSIDE_WHEELS = (
    Fixed("hdf5", "2.0", "CVE-2025-2915"),
    Fixed("openjpeg", "2.5.4", "CVE-2025-54874: a JPEG 2000 file writes out of bounds"),
    Fixed("libwebp", "1.3.2", "CVE-2023-4863: a WebP image writes out of bounds"),
)


def declared(pyproject: Path) -> list[Requirement]:
    """All requirements of the package and its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def too_low(requirements: Iterable[Requirement], fixed: Iterable[Fixed] = FIXED) -> list[str]:
    """A line per requirement that allows a release with a known fault."""
    by_name = {entry.package: entry for entry in fixed}
    found = []
    for requirement in requirements:
        entry = by_name.get(requirement.name.lower())
        lowest = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==", "~=")]
        if entry is not None and (not lowest or max(lowest) < Version(entry.version)):
            found.append(f"pyproject.toml: {requirement} allows a release before {entry.version} ({entry.fault})")
    return found


def too_old(installed: Mapping[str, str], fixed: Iterable[Fixed]) -> list[str]:
    """A line per installed package or library with a known fault; one that is not installed is left out."""
    return [
        f"{entry.package} {installed[entry.package]} is installed; {entry.version} or newer ({entry.fault})"
        for entry in fixed
        if entry.package in installed and Version(installed[entry.package].split("+")[0]) < Version(entry.version)
    ]


def installed_packages() -> dict[str, str]:
    """Those of `FIXED` that are installed."""
    found = {}
    for entry in FIXED:
        try:
            found[entry.package] = version(entry.package)
        except PackageNotFoundError:
            continue
    return found


def libraries_inside() -> dict[str, str]:
    """The libraries inside the wheels, as they state themselves."""
    import h5py
    import imagecodecs

    stated = dict(line.rsplit("-", 1) for line in imagecodecs.version().replace(", ", "\n").split() if "-" in line)
    found = {"hdf5": h5py.version.hdf5_version}
    return found | {name: stated[name] for name in ("openjpeg", "libwebp") if stated.get(name, "n/a") != "n/a"}


def verdict(report: Mapping[str, Any] | None, name: str) -> tuple[int, list[str]]:
    """The exit code and lines of what pip-audit found in one database. A database without answers is no clean one."""
    entries = [] if report is None else report["dependencies"]
    faults = [
        f"{entry['name']} {entry['version']}: {fault['id']}; fixed in {', '.join(fault['fix_versions']) or 'none yet'}"
        for entry in entries
        for fault in entry.get("vulns", ())
    ]
    skipped = [entry["name"] for entry in entries if "skip_reason" in entry and entry["name"] != "longvit"]
    asked = len(entries) - len(skipped)
    if faults:
        return FAULT, faults
    if asked <= len(entries) // 2:
        return NOT_ASKED, [f"{name}: cannot be asked from here ({asked} of {len(entries)} packages answered)"]
    return CLEAN, [
        f"{name}: nothing known of {asked} packages" + (f"; not listed: {', '.join(skipped)}" * bool(skipped))
    ]


def ask(service: str) -> Mapping[str, Any] | None:
    """pip-audit's report on everything installed here; None where the database gives none (and why, on stderr)."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--vulnerability-service", service, "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "15"], capture_output=True, text=True, timeout=300
        )
        report: Mapping[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return None
    except ValueError:  # no JSON: the last line says why
        print(*done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    return report


def main() -> int:
    ours = too_low(declared(ROOT / "pyproject.toml"))
    ours += too_old(installed_packages(), FIXED) + too_old(libraries_inside(), INSIDE_WHEELS)
    for line in ours or [
        f"versions: none of the {len(FIXED) + len(INSIDE_WHEELS)} known faults is allowed or installed"
    ]:
        print(line)
    codes = []
    for service in ("pypi", "osv"):
        code, lines = verdict(ask(service), f"database {service}")
        print(*lines, sep="\n")
        codes.append(code)
        if code != NOT_ASKED:
            break
    if ours or FAULT in codes:
        return FAULT
    return CLEAN if CLEAN in codes else NOT_ASKED


if __name__ == "__main__":
    sys.exit(main())
