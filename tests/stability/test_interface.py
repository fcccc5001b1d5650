"""The promises of docs/stability.md: what `interface.json` records of the last release is still there.

More names, options, columns and keys are free to come; a release records them (`interface.py --record`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.stability.interface import RECORD, ROOT, commands_part, lost, python_part
from tests.stability.small_runs import files_part

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
WEIGHTS = {"longvit-tiny-stem": "73340b87572ad10cb3624bc841e8895ac96d36cd19cea07f578d0cf09144116a"}
"""SHA-256 of the shipped weights; new weights get a new name."""
HOW = "docs/stability.md promises these; a renamed one stays under its old name for a minor version"


def assert_kept(part: str, new: Any) -> None:
    gone = list(lost(RECORDED[part], new))
    assert not gone, f"{HOW}:\n" + "\n".join(gone)


def test_no_command_argument_or_option_of_the_last_release_is_gone() -> None:
    assert_kept("commands", commands_part())


def test_no_public_name_parameter_or_member_of_the_last_release_is_gone() -> None:
    assert_kept("python", python_part())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_column_or_key_of_the_last_release_is_gone(tmp_path: Path) -> None:
    assert_kept("files", files_part(tmp_path / "files"))


def test_the_record_has_every_command_with_files_or_json() -> None:
    assert set(RECORDED) == {"python", "commands", "files"}
    recorded = {name.split()[0] for name in RECORDED["files"]}
    with_files = {"train", "predict", "embed", "canvas", "tiles", "features", "benchmark", "pretrain", "doctor"}
    assert with_files <= recorded
    options = {name for name, command in RECORDED["commands"].items() if "--json" in command["options"]}
    printed = {name.removesuffix(" --json") for name in RECORDED["files"] if name.endswith("--json")}
    network = {"fetch", "reproduce"}  # they print JSON only with an index of slides, or after hours
    assert options - network <= printed


def test_the_weights_under_a_name_never_change() -> None:
    shipped = ROOT / "src" / "longvit" / "weights"
    found = {path.name: shipped / path.name / "model.safetensors" for path in shipped.iterdir() if path.is_dir()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == WEIGHTS


def test_the_version_of_the_package_in_a_folder_decides_nothing(tmp_path: Path) -> None:
    import longvit

    shutil.copytree(ROOT / "src" / "longvit" / "weights" / "longvit-tiny-stem", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    for version in ("0.0.1", "99.0.0", None):
        config.write_text(json.dumps({**content, "longvit_version": version}))
        assert longvit.load_model(tmp_path / "model").config.embed_dim == 192
    config.write_text(json.dumps({**content, "format": content["format"] + 1}))
    with pytest.raises(longvit.InputError, match="format"):
        longvit.load_model(tmp_path / "model")


def test_exit_codes_of_the_code_are_those_of_the_page() -> None:
    from longvit import cli
    from longvit.parallel.watchdog import RankLostError
    from longvit.training.interruption import Interrupted

    page = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    codes = {int(code) for cells in re.findall(r"^\| ([\d, ]+) \|", page, re.M) for code in cells.split(",")}
    stated = {
        int(code) for line in re.findall(r"^ {4}([\d, ]+) {2}", cli.__doc__ or "", re.M) for code in line.split(",")
    }
    assert codes == stated
    assert {cli.FAULT, cli.REFUSED, cli.NO_OUTPUT, RankLostError.exit_code} == {70, 71, 74, 3}
    assert codes == {0, 1, 2, 3, 70, 71, 74, 130, 138, 143}
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    assert [Interrupted(number).exit_code for number in numbers] == [130, 143, 138]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({"train": {"options": ["--lr"]}}, {"train": {"options": []}}, "train options: --lr is gone"),
        ({"train": {}}, {}, "train is gone"),
        ({"a.csv": {"columns": ["x", "y"]}}, {"a.csv": {"columns": ["y", "z"]}}, "a.csv columns: x is gone"),
        ({"f": {"parameters": ["a", "b="]}}, {"f": {"parameters": ["a"]}}, "f parameters: parameter b is gone"),
        (
            {"f": {"parameters": ["a", "b="]}},
            {"f": {"parameters": ["b=", "a="]}},
            "f parameters: parameters by position were ['a', 'b'], are ['b', 'a']",
        ),
        (
            {"f": {"parameters": ["a"]}},
            {"f": {"parameters": ["a", "*", "b"]}},
            "f parameters: parameter b must now be given",
        ),
        (
            {"f": {"parameters": ["a="]}},
            {"f": {"parameters": ["a"]}},
            "f parameters: parameter a must now be given",
        ),
        (
            {"f": {"parameters": ["a", "b="]}},
            {"f": {"parameters": ["a", "*", "b="]}},
            "f parameters: parameters by position were ['a', 'b'], are ['a']",
        ),
    ],
)
def test_what_breaks_a_user_is_one_line(old: Any, new: Any, line: str) -> None:
    assert list(lost(old, new)) == [line]


def test_what_is_added_breaks_nobody() -> None:
    old = {"f": {"parameters": ["a", "*", "b="]}, "train": {"options": ["--lr"]}}
    new = {"f": {"parameters": ["a", "c=", "*", "b=", "d="]}, "train": {"options": ["--lr", "--x"]}, "g": {}}
    assert not list(lost(old, new))
