"""Dockerfile, apptainer.def, the conda recipe, the lock and the workflow say what pyproject.toml says.

None of them can be built here, so their text is checked: versions, pinned images and actions, a user without root.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "openslide-bin": "openslide", "matplotlib": "matplotlib-base"}
LICENSE_FILES = PROJECT["license-files"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def docker_lines() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in text_of("Dockerfile").splitlines() if line[:1] != "#"))
    return [(word, rest) for line in text.splitlines() if line.strip() for word, _, rest in [line.partition(" ")]]


def conda_recipe() -> dict[str, Any]:
    """recipe/meta.yaml, with its version filled in."""
    text = text_of("recipe/meta.yaml")
    (version,) = re.findall(r'{% set version = "(.*?)" %}', text)
    text = re.sub(r"{%.*?%}", "", text).replace("{{ version }}", version).replace("{{ PYTHON }}", "python")
    recipe: dict[str, Any] = yaml.safe_load(text)
    return recipe


def test_images_start_from_one_pinned_python_that_is_supported() -> None:
    (base,) = (rest.partition("=")[2] for word, rest in docker_lines() if word == "ARG")
    (other,) = re.findall(r"^From: (.*)$", text_of("apptainer.def"), re.MULTILINE)
    assert base == other
    match = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", base)
    assert match, "a full version: a moving tag is another image tomorrow"
    assert match.group(1) in Requirement(f"python{PROJECT['requires-python']}").specifier
    stages = [rest.split()[0] for word, rest in docker_lines() if word == "FROM"]
    assert set(stages) <= {"${BASE}", "base"}


def test_each_docker_image_runs_longvit_without_root_and_the_default_one_is_the_small_one() -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, rest in docker_lines():
        if word == "FROM":
            stages[rest.split(" AS ")[1]] = current = []
        elif word != "ARG":
            current.append((word, rest))
    assert list(stages)[-1] == "cpu"  # without --target
    for name in ("cpu", "cuda"):
        words = [word for word, _ in stages[name]]
        assert ("USER", "longvit") in stages[name]
        assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
        assert ("ENTRYPOINT", '["longvit"]') in stages[name]
        assert all("requirements.lock" in rest for word, rest in stages[name] if word == "RUN")
    assert "whl/cpu" in dict(stages["cpu"])["RUN"]


def test_what_images_copy_exists_and_is_not_ignored() -> None:
    shown = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    copied = {
        source
        for word, rest in docker_lines()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    section = text_of("apptainer.def").split("%files\n")[1].split("\n\n")[0]
    assert copied == shown == {line.split()[0] for line in section.splitlines()}
    assert all((ROOT / name).exists() for name in copied)


def test_versions_and_licences_are_those_of_pyproject() -> None:
    for name in ("Dockerfile", "apptainer.def"):
        assert re.findall(r'image\.version[= "]+([\d.]+)', text_of(name)) == [PROJECT["version"]]
        assert PROJECT["license"] in text_of(name)
    recipe = conda_recipe()
    assert recipe["package"]["version"] == PROJECT["version"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == LICENSE_FILES


def test_the_conda_recipe_has_the_dependencies_and_bounds_of_pyproject() -> None:
    """Two differ: conda numbers OpenSlide itself, and a package for all systems cannot leave psutil out on Linux."""
    run = dict(line.split(" ", 1) for line in conda_recipe()["requirements"]["run"])
    assert run.pop("python") == PROJECT["requires-python"]
    wanted = {CONDA_NAMES.get(r.name, r.name): str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])}
    assert wanted["openslide"].startswith(run["openslide"])
    assert run == {**wanted, "openslide": run["openslide"]}
    build = tomllib.loads(text_of("pyproject.toml"))["build-system"]["requires"]
    assert [line.replace(" ", "") for line in conda_recipe()["requirements"]["host"]][2:] == build
    (entry,) = conda_recipe()["build"]["entry_points"]
    assert entry == f"longvit = {PROJECT['scripts']['longvit']}"


def test_the_lock_satisfies_pyproject_and_has_every_package_of_the_tests() -> None:
    lines = [line for line in text_of("requirements.lock").splitlines() if not line.startswith("#")]
    locked = dict(line.split("==") for line in lines)
    assert lines == sorted(lines)
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(Version(locked[canonicalize_name(requirement.name)])), line
    (torch,) = (Requirement(line) for line in text_of("constraints.txt").splitlines() if line[:1] != "#")
    assert torch.specifier.contains(locked["torch"])


def test_no_upper_bound_is_set_without_its_reason() -> None:
    lines = [line for line in text_of("pyproject.toml").splitlines() if re.search(r'"[\w-]+(\[\w+\])?[><=~!].*"', line)]
    for line in lines:
        assert not re.search(r"(<|==|~=)\s*\d", line) or "# at most" in line, line


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    return found


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"^\s*make (\w[\w-]*)", text, re.MULTILINE))


def test_the_workflow_runs_the_targets_of_ci_and_each_exists(workflow: dict[str, Any]) -> None:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = make_targets("\n".join(step["run"] for step in steps if "run" in step))
    assert make_targets(text_of(".ci/run")) <= targets
    assert targets >= {"wheel", "oldest", "newest", "imports"}
    assert targets <= set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        assert step.get("run", "make ").startswith("make ")
        action, _, version = step.get("uses", "actions/x@" + "0" * 40).partition("@")
        assert re.fullmatch(r"[0-9a-f]{40}", version), f"{action}: a tag can be moved, a commit cannot"


def test_the_workflow_covers_the_supported_versions_and_systems(workflow: dict[str, Any]) -> None:
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    linux = workflow["jobs"]["linux"]["strategy"]["matrix"]["python"]
    assert linux == [f"3.{minor}" for minor in range(lowest, lowest + len(linux))]
    assert len(linux) >= 4
    systems = workflow["jobs"]["imports"]["strategy"]["matrix"]["system"]
    assert {system.partition("-")[0] for system in systems} == {"macos", "windows"}
    assert all("latest" not in str(job["runs-on"]) for job in workflow["jobs"].values())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
