"""The Python door: names of `import longvit`, their parameter order, their examples, and what importing loads."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import io
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longvit
from tests.comparison.made import write_features
from tests.conftest import ROOT
from tests.finetuning.study import write_study

SLIDE_JOBS = ("embed_slides", "predict_slides", "canvas_slides", "tile_slides", "feature_slides")
COHORT_JOBS = ("finetune", "cross_validate", "compare")
SLOW = ("cross_validate", "compare", "pretrain")
PUBLIC = sorted(set(longvit.__all__) - {"__version__"})
SLOW_RESULTS = ("FinetuneResult", "CrossValidation", "Comparison")


def published() -> dict[str, Any]:
    """Everything on the API pages of the site: name → value. Names of `longvit` first, then the classes they return."""
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "_ext" / "api_pages.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        spec.loader.exec_module(pages := importlib.util.module_from_spec(spec))
    finally:
        sys.path.pop(0)
    paths = [path for _, names, results in pages.TOPICS.values() for path in (*names, *results)]
    parts = [path.rpartition(".") for path in paths]
    return {name: getattr(importlib.import_module(module), name) for module, _, name in parts}


PUBLISHED = {"longvit": longvit, **published()}


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


@pytest.mark.parametrize("name", [*COHORT_JOBS, "pretrain"])
def test_training_takes_the_cohort_or_slides_then_the_folder_then_settings(name: str) -> None:
    parameters = list(inspect.signature(getattr(longvit, name)).parameters)
    assert parameters[:2] == ["slides" if name == "pretrain" else "cohort", "out_dir"]
    assert "settings" in parameters[2:4]


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


def undocumented(cls: type) -> Iterator[str]:
    """Public fields without a text below them, and methods and properties without a docstring."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "longvit":
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
                has_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                has_text |= "help=" in ast.unparse(node.annotation) or name in attributes_of(base)
            elif isinstance(node, ast.FunctionDef):
                name, has_text = node.name, bool(inspect.getdoc(getattr(cls, node.name)))
            else:
                continue
            if not name.startswith("_") and not has_text:
                yield f"{base.__name__}.{name}"


def attributes_of(cls: type) -> set[str]:
    """Fields that the section `Attributes:` of a class's docstring describes."""
    section = (cls.__doc__ or "").partition("Attributes:")[2].partition(">>>")[0]
    named = re.findall(r"(?:^ {8}|; )([\w, ]+):", section, re.MULTILINE)
    return {name.strip() for names in named for name in names.split(",")}


@pytest.mark.parametrize("name", [name for name, value in PUBLISHED.items() if isinstance(value, type)])
def test_every_field_and_method_on_the_api_pages_has_a_text(name: str) -> None:
    assert not list(undocumented(PUBLISHED[name]))


# --- the examples in the docstrings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the examples run: examples/, slides/ (20 small images), cohort.csv, features/ (a bag each)."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "examples").symlink_to(ROOT / "examples")
    write_study(folder / "slides").rename(folder / "cohort.csv")
    for i in range(20):
        features = np.random.default_rng(i).normal(size=(8, 6))
        features[::4, 0] += 4 * (i // 2 % 2)
        write_features(folder / "features", f"s{i:02d}", features)
    return folder


def examples_of(name: str) -> list[doctest.DocTest]:
    """The doctests of a public name: its own docstring, and those of its methods."""
    value = PUBLISHED[name]
    found = doctest.DocTestFinder(recurse=name != "longvit").find(value, name, module=False, globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in (*SLOW, *SLOW_RESULTS) else ()) for name in PUBLISHED]
)
def test_every_public_name_has_an_example_that_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = examples_of(name)
    assert examples, f"{name}: no >>> example in its docstring"
    monkeypatch.chdir(folder)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for example in examples:
        failures = io.StringIO()
        outcome = doctest.DocTestRunner(optionflags=flags).run(example, out=failures.write)
        assert not outcome.failed, failures.getvalue()
