"""Every example of a docstring runs and prints what it shows: of public names and of all others."""

from __future__ import annotations

import doctest
import importlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.docs.blocks import REASONS, ROOT
from tests.docs.docstrings import NOT_RUN, Example, examples
from tests.test_public_api import PUBLIC
from tests.test_public_api import folder as folder

import longvit

ELSEWHERE = {f"{getattr(longvit, name).__module__}.{name}" for name in PUBLIC} | {"longvit"}
ELSEWHERE |= {"longvit.slides.reader.Slide", "longvit.slides.canvas.Canvas"}
"""Names whose examples, with those of their methods, run in tests/test_public_api.py."""
NEEDS = {f"longvit.public.{name}": ("duckdb", "idc_index_data") for name in ("idc_index.IdcIndex", "selection.select")}
"""Name → packages that a test environment may lack: the index of public slides has 70 MB."""
OTHERS = [e for e in examples() if not {e.name, e.name.rpartition(".")[0]} & ELSEWHERE]


def failures(example: Example) -> str:
    """Report of the lines that print something else, or empty."""
    module = example.path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(example.text, names, example.name, example.path, example.line)
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=report.write)
    return report.getvalue()


@pytest.mark.parametrize("example", [e for e in OTHERS if e.name not in NOT_RUN], ids=lambda example: example.name)
def test_the_example_of_a_docstring_runs_as_written(
    example: Example, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDS.get(example.name, ()):
        pytest.importorskip(package, reason="needs the extra public")
    if example.name == "longvit.sites.check.site_check":
        write_embeddings(folder)
    monkeypatch.chdir(folder)
    assert not failures(example)


def write_embeddings(folder: Path) -> None:
    """The cohort table with a column `site`, and vectors that show none."""
    cohort = pd.read_csv(folder / "cohort.csv")
    cohort["site"] = [f"H{i // 2 % 2}" for i in range(len(cohort))]
    cohort.to_csv(folder / "cohort.csv", index=False)
    vectors = pd.DataFrame(np.random.default_rng(0).normal(size=(len(cohort), 4))).add_prefix("f")
    vectors.insert(0, "slide_id", cohort["slide_id"])
    (folder / "embeddings").mkdir(exist_ok=True)
    vectors.to_csv(folder / "embeddings" / "embeddings.csv", index=False)


def test_no_example_of_a_docstring_escapes() -> None:
    assert len(OTHERS) >= 35
    assert set(NOT_RUN) <= {e.name for e in OTHERS}
    assert all(reason.partition(": ")[0] in REASONS for reason in NOT_RUN.values())


def test_an_example_that_prints_something_else_is_found(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "longvit").mkdir(parents=True)
    code = 'class A:\n    def b(self):\n        """B.\n\n        >>> 1 + 1\n        3\n        """\n'
    (source / "longvit" / "errors.py").write_text(code)
    (found,) = examples(source)
    assert (found.name, found.path, found.line) == ("longvit.errors.A.b", "src/longvit/errors.py", 2)
    assert "Got:\n    2" in failures(found)


def test_examples_are_read_from_the_sources_that_are_imported() -> None:
    assert Path(longvit.__file__).is_relative_to(ROOT / "src")
