"""The wheel and the source distribution have what the package needs at run time, and nothing else."""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from types import ModuleType

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from tests.conftest import EXAMPLE_SLIDE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distribution")]  # one worker: the fixture builds
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def wheel_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_script", ROOT / ".ci" / "wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(wheel_script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    sdist, wheel = wheel_script.build(ROOT, tmp_path_factory.mktemp("dist"))
    return sdist, wheel


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> set[str]:
    """Files of src/longvit, as a wheel names them."""
    files = (path for path in (ROOT / "src" / "longvit").rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "src").as_posix() for path in files if "__pycache__" not in path.parts}


def metadata_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name)


def test_the_wheel_has_every_source_file_and_no_other(built: tuple[Path, Path]) -> None:
    """Weights, templates, recipes, viewer, py.typed among them; no tests, benchmarks, pages or slides."""
    _, wheel = built
    names = names_of(wheel)
    inside = {name for name in names if not name.startswith(f"longvit-{PROJECT['version']}.dist-info/")}
    assert inside == sources()
    for name in ("py.typed", "weights/longvit-tiny-stem/model.safetensors", "templates/report.html"):
        assert f"longvit/{name}" in names
    for name in ("viewer/static/openseadragon.min.js", "viewer/static/page.html", "recipes/subtyping.yaml"):
        assert f"longvit/{name}" in names
    assert wheel.stat().st_size < MOST_BYTES
    assert wheel.name == f"longvit-{PROJECT['version']}-py3-none-any.whl"


def test_the_licences_of_what_ships_are_in_the_wheel(built: tuple[Path, Path]) -> None:
    _, wheel = built
    licences = f"longvit-{PROJECT['version']}.dist-info/licenses"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{licences}/LICENSE") == (ROOT / "LICENSE").read_bytes()
        text = archive.read(f"{licences}/src/longvit/viewer/static/openseadragon.LICENSE.txt").decode()
    assert "OpenSeadragon" in text
    assert message_from_bytes(metadata_of(wheel))["License-Expression"] == "MIT AND BSD-3-Clause"


def test_a_wheel_from_the_checkout_has_the_files_of_one_from_the_source_distribution(
    built: tuple[Path, Path], wheel_script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()
    wheel_script.copy(ROOT, tmp_path / "checkout")
    direct = wheel_script.call("build_wheel", tmp_path / "checkout", tmp_path)
    with zipfile.ZipFile(direct) as one, zipfile.ZipFile(built[1]) as other:
        contents = [{i.filename: i.CRC for i in archive.infolist()} for archive in (one, other)]
    assert contents[0] == contents[1]


def test_the_source_distribution_has_no_part_of_the_tests(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in sources()} < names
    for name in names:
        assert name.startswith("src/") or name in (
            *("LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"),
        ), name
    assert sdist.stat().st_size < MOST_BYTES


def test_an_index_would_accept_the_metadata(built: tuple[Path, Path]) -> None:
    """Every field parses strictly; dependencies and extras are those of pyproject.toml; the readme is Markdown."""
    _, wheel = built
    metadata = Metadata.from_email(metadata_of(wheel), validate=True)
    assert (metadata.name, str(metadata.version)) == ("longvit", PROJECT["version"])
    assert str(metadata.requires_python) == PROJECT["requires-python"]
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.description or "").startswith("#")
    assert len(metadata.summary or "") <= 512
    found = {str(requirement.name).lower() for requirement in metadata.requires_dist or []}
    assert {Requirement(line).name.lower() for line in PROJECT["dependencies"]} <= found
    assert set(metadata.provides_extra or []) == set(PROJECT["optional-dependencies"])
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(name).decode())
    assert points["console_scripts"]["longvit"] == "longvit.cli:main"


def test_classifiers_are_known_and_name_the_tested_python_versions() -> None:
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]
    assert named[0] == "3"
    assert all(int(version.removeprefix("3.")) >= lowest for version in named[1:])
    assert "Operating System :: POSIX :: Linux" in PROJECT["classifiers"]
    assert not any("Windows" in line or "MacOS" in line for line in PROJECT["classifiers"])


def test_the_installed_wheel_runs_from_an_empty_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment whose other packages are those of the tests: `make wheel` installs them all."""
    target = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(target)
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from longvit.cli import main; sys.exit(main(sys.argv[1:]))", *words],
            capture_output=True, text=True, cwd=tmp_path / "empty", env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import longvit; print(longvit.__file__, longvit.__version__)"],
        capture_output=True, text=True, cwd=tmp_path / "empty", env=environment, check=True,
    ).stdout.split()  # fmt: skip
    assert where == [str(target / "longvit" / "__init__.py"), PROJECT["version"]]
    assert "all is well" in run("doctor")
    assert "2,220" in run("info", str(EXAMPLE_SLIDE))


def test_no_installed_package_lacks_or_contradicts_what_longvit_needs() -> None:
    """`pip check`, for this package alone: others may be wrong about each other."""
    from importlib import metadata

    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            version = metadata.version(requirement.name)
            assert requirement.specifier.contains(version, prereleases=True), (line, version)
