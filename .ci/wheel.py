"""Source distribution and wheel of the package, and a trial of the wheel: `make wheel`.

python .ci/wheel.py build OUT      OUT/longvit-<version>.tar.gz, and the wheel that is built from it
python .ci/wheel.py doctor PYTHON  `longvit doctor` of another environment, from an empty folder, in at most 90 s

Builds in a temporary copy: an old `build/` in the checkout would add files that were deleted since.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src")
DOCTOR_S = 90.0


def copy(root: Path, folder: Path) -> None:
    """Copies what a build reads."""
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(root / name, folder / name)


def call(hook: str, folder: Path, out: Path) -> Path:
    """Runs a hook of setuptools' build back end (PEP 517) in `folder`; returns the file that it made in `out`."""
    code = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    command = [sys.executable, "-c", code, hook, str(out.absolute())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{hook}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return out / done.stdout.strip().splitlines()[-1]


def build(root: Path, out: Path) -> tuple[Path, Path]:
    """The source distribution of a checkout, and the wheel that is built from it alone."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        checkout, unpacked = Path(name) / "checkout", Path(name) / "unpacked"
        checkout.mkdir()
        copy(root, checkout)
        sdist = call("build_sdist", checkout, out)
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = unpacked.iterdir()
        return sdist, call("build_wheel", source, out)


def doctor_seconds(python: Path) -> float:
    """Seconds of the doctor's first run in another environment, which also compiles the modules."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python.absolute(), "-I", "-m", "longvit", "doctor"], cwd=folder, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    task, path = sys.argv[1:]
    if task == "build":
        for made in build(ROOT, Path(path)):
            print(f"{made}: {made.stat().st_size / 2**20:.1f} MiB")
    else:
        seconds = doctor_seconds(Path(path))
        print(f"doctor: {seconds:.1f} s (allowed {DOCTOR_S:g})")
        sys.exit(seconds > DOCTOR_S)
