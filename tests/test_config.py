"""Settings: a YAML recipe, then the command line; what is wrong is said with the file and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from cyclopts import App, CycloptsError, Parameter

from longvit.comparison.settings import ComparisonSettings
from longvit.config import load_settings, read_recipe, recipe_config, recipe_names, settings_yaml, usage_error_line
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.pretraining.settings import PretrainSettings


@dataclass(frozen=True)
class Settings:
    """For the tests."""

    epochs: int = 10
    """Passes."""
    workers: int | None = None
    """Threads."""
    lr: float = 5e-5
    """Learning rate."""
    fit: Literal["stretch", "pad"] = "stretch"
    """How."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Two numbers."""
    recompute: bool = False
    """Twice."""


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def command_line(*tokens: str) -> Settings:
    app = App(config=recipe_config, result_action="return_value")

    @app.default
    def run(
        *,
        recipe: str | None = None,
        settings: Annotated[Settings, Parameter(name="*")] = Settings(),
    ) -> Settings:
        return settings

    run.__annotations__["recipe"] = str | None  # cyclopts cannot look inside this function for the names
    run.__annotations__["settings"] = Annotated[Settings, Parameter(name="*")]
    return app(list(tokens), exit_on_error=False, print_error=False)


def test_command_line_overrides_the_recipe_and_the_recipe_the_defaults(tmp_path: Path) -> None:
    path = recipe(tmp_path, "epochs: 3\nlr: 1e-3\nbetas: [0.8, 0.9]\n")
    got = command_line("--recipe", str(path), "--lr", "0.25")
    assert got == Settings(epochs=3, lr=0.25, betas=(0.8, 0.9))
    assert command_line() == Settings()


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    path = recipe(tmp_path, "epoch: 3\n")
    with pytest.raises(InputError) as caught:
        command_line("--recipe", str(path))
    assert str(caught.value) == f"{path}: unknown key 'epoch'; did you mean 'epochs'?"


@pytest.mark.parametrize(
    "line", ["epochs: many", "recompute: 7", "lr: [1]", "fit: strech", "betas: [0.9]", "epochs: {a: 1}"]
)
def test_a_wrong_type_names_the_file_and_the_key(tmp_path: Path, line: str) -> None:
    path = recipe(tmp_path, line + "\n")
    with pytest.raises((InputError, CycloptsError)) as caught:
        command_line("--recipe", str(path))
    text = usage_error_line(caught.value)
    assert str(path) in text
    assert line.split(":")[0] in text


@pytest.mark.parametrize("key", ["epochs", "workers"])
def test_a_fraction_is_not_rounded_to_a_whole_number(tmp_path: Path, key: str) -> None:
    path = recipe(tmp_path, f"{key}: 2.5\n")
    with pytest.raises(InputError, match=r"recipe\.yaml.*2\.5 is not a whole number"):
        command_line("--recipe", str(path))
    with pytest.raises(InputError, match=rf"--{key}: 2\.5 is not a whole number"):
        command_line(f"--{key}", "2.5")


def test_an_empty_value_leaves_the_default(tmp_path: Path) -> None:
    assert command_line("--recipe", str(recipe(tmp_path, "workers: null\nepochs:\n"))) == Settings()
    assert command_line("--recipe", str(recipe(tmp_path, ""))) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1\nlr: 2\n", "line 2: 'lr' appears twice"),
        ("a: [1\n", "not YAML"),
        ("- lr\n- epochs\n", "found a list"),
        ("just text\n", "found a str"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "slide.yaml"
    path.write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(InputError, match=r"slide\.yaml: not a text file"):
        read_recipe(path)


def test_an_unknown_recipe_lists_those_that_come_along() -> None:
    with pytest.raises(InputError, match=r"tiiny: no such recipe; did you mean 'tiny'\?.*subtyping"):
        read_recipe("tiiny")


SETTINGS_OF = {"dino": PretrainSettings, "texture": PretrainSettings, "baselines": ComparisonSettings}


def test_every_recipe_that_comes_along_can_be_read_and_opens_with_its_command() -> None:
    assert {"subtyping", "tiny", "dino-tiny", "dino-longvit-s-1024"} <= set(recipe_names())
    for name in recipe_names():
        load_settings(SETTINGS_OF.get(re.split("[-_]", name)[0], FinetuneSettings), name)
        text = (Path(__file__).parents[1] / "src" / "longvit" / "recipes" / f"{name}.yaml").read_text()
        assert f"--recipe {name}" in text.split("\n\n")[0].split("model:")[0]


def test_the_recipe_subtyping_is_table_6() -> None:
    assert load_settings(FinetuneSettings, "subtyping") == FinetuneSettings()


def test_the_recipe_of_pretraining_is_table_5() -> None:
    assert load_settings(PretrainSettings, "dino-longvit-s-1024") == PretrainSettings()


def test_settings_written_as_yaml_read_back_as_they_were(tmp_path: Path) -> None:
    settings = FinetuneSettings(weights=Path("a b"), split=(0.5, 0.25, 0.25), lr=1e-7, clip_norm=1.0, controls=False)
    assert load_settings(FinetuneSettings, recipe(tmp_path, settings_yaml(settings))) == settings


def test_from_python_the_same_errors_and_the_same_precedence(tmp_path: Path) -> None:
    path = recipe(tmp_path, "epochs: 3\n")
    assert load_settings(Settings, path, lr=1.0) == Settings(epochs=3, lr=1.0)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_settings(Settings, recipe(tmp_path, "epochs: many\n"))


@pytest.mark.parametrize("kind", [FinetuneSettings, PretrainSettings])
def test_a_path_given_as_text_from_python_is_a_path(kind: type) -> None:
    """`PretrainSettings(weights="name")` ended with an AttributeError deep in the run."""
    settings = kind(weights="longvit-tiny-stem", cache_dir="cache")
    assert settings.weights == Path("longvit-tiny-stem")
    assert settings.cache_dir == Path("cache")
