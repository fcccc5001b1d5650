"""config.json of a model, and what runs leave in JSON: a wrong type, size or nesting is one line, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.faults import hostile_files
from tests.small_slides import write_model, write_slide

from longvit.config import typed
from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.json_file import read_json
from longvit.model.pretrained import load_model
from longvit.slide_jobs.predict import predict_slides


@pytest.mark.parametrize("case", hostile_files.small_cases("config.json"))
def test_a_hostile_config_is_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


@pytest.mark.parametrize("case", hostile_files.small_cases("left by a run"))
def test_damaged_files_of_runs_are_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": "32"}, "embed_dim '32': a whole number is expected"),
        ({"depth": 10**9}, "depth 1000000000: between 1 and 256"),
        ({"class_names": [{"a": 1}, {"b": 2}]}, "class_names .*: a list, each of it a text, is expected"),
        ({"fit": "crop"}, "fit 'crop': 'stretch' or 'pad' is expected"),
        ({"image_px": 33}, "image_px 33: a multiple of patch_px 32 is needed"),
        ({"drop_path": True}, "drop_path True: a finite number is expected"),
    ],
)
def test_the_line_names_setting_value_and_what_is_expected(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    model = write_model(tmp_path / "model")
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=rf"config\.json: {words}"):
        load_model(model)


def test_a_hostile_config_ends_a_prediction_in_one_line(tmp_path: Path) -> None:
    """The config is looked at before the model is made, too."""
    model = write_model(tmp_path / "model")
    slides = find_slides([write_slide(tmp_path / "a.tif")])
    path = model / "config.json"
    whole = json.loads(path.read_text())
    for change in (
        {"num_classes": "2"},
        {"num_classes": 10**9},
        {"class_names": 3},
        {"task": ["x"]},
        {"image_px": -64},
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=r"config\.json"):
            predict_slides(slides, tmp_path / "out", model)


@dataclass
class Kinds:
    whole: int = 0
    number: float = 0.0
    flag: bool = False
    text: str = ""
    choice: Literal["a", "b"] = "a"
    several: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    either: tuple[int, ...] | Literal["auto"] = "auto"
    maybe: int | None = None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("whole", v) for v in (1.0, True, "1", None, [1])],
        *[("number", v) for v in (True, "1", None, 10**400, float("nan"), float("inf"))],
        *[("flag", v) for v in (1, "true", None)],
        *[("text", v) for v in (1, None, ["a"], {})],
        *[("choice", v) for v in ("c", 1, None, ["a"], {"a": 1})],
        *[("several", v) for v in (1, "12", [1.5], [[1]], {"a": 1}, [None])],
        *[("pair", v) for v in ([1], [1, 2], ["a", 1], [1, "a", 2])],
        *[("either", v) for v in ("all", ["a"], 3)],
        *[("maybe", v) for v in ("x", 1.5)],
    ],
)
def test_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"c.json: {name} .*expected"):
        typed(Kinds, {name: value}, "c.json")


def test_the_right_types_pass_and_lists_become_tuples() -> None:
    values = {"whole": 1, "number": 2, "flag": True, "text": "", "choice": "b", "several": [1, 2], "pair": [1, "a"]}
    found = typed(Kinds, values | {"either": [3], "maybe": None}, "c.json")
    assert found == values | {"several": (1, 2), "pair": (1, "a"), "either": (3,), "maybe": None}


def test_json_is_bounded_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, words in (('{"a": 1, "a": 2}', "'a' appears twice"), ("[" * 10**5, "nested"), ("[1, 2]", "larger than")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_json(path, most_bytes=5 if words == "larger than" else 10**6)
    path.write_text("[NaN]")
    assert len(read_json(path)) == 1
    with pytest.raises(InputError, match="NaN is not a JSON number"):
        read_json(path, nan=False)
