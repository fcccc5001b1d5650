"""The Python door: names of `import longvit`, their parameter order, their examples, and what importing loads."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import longvit

SLIDE_JOBS = ("embed_slides", "predict_slides", "canvas_slides", "tile_slides", "feature_slides")
PUBLIC = sorted(set(longvit.__all__) - {"__version__"})


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists_with_a_docstring(name: str) -> None:
    value = getattr(longvit, name)
    assert value.__name__ == name
    assert value.__doc__


def test_dir_lists_the_public_names_and_others_are_an_attribute_error() -> None:
    assert dir(longvit) == sorted(longvit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'embed_slide'"):
        longvit.embed_slide  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded_on_first_use() -> None:
    tree = ast.parse(Path(longvit.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == longvit._MODULES


@pytest.mark.parametrize("name", SLIDE_JOBS)
def test_slide_jobs_take_slides_then_the_folder_of_the_results(name: str) -> None:
    parameters = list(inspect.signature(getattr(longvit, name)).parameters)
    assert parameters[:2] == ["slides", "out_dir"]
    assert {"read_settings", "run_settings"} <= set(parameters)


@pytest.mark.parametrize(
    "code",
    [
        "import longvit; dir(longvit)",
        "from longvit import find_slides, read_cohort",
        "from longvit import ComparisonSettings, FinetuneSettings, PretrainSettings, ReadSettings, RunSettings",
        "from longvit import TileSettings, TissueSettings, canvas_slides, tile_slides",
    ],
)
def test_names_without_a_model_load_no_torch(code: str) -> None:
    script = f"import sys\n{code}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
