"""Words from a user's table in plots: shown as they are, and never a reason to lose a number."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tests.small_slides import write_model, write_slide

import longvit
from longvit.data.problems import read_problems
from longvit.data.slide_list import find_slides
from longvit.figure import drawable, new_figure, plot, short_name, write_figure
from longvit.interpret import Contributions, draw
from longvit.metrics.classification import Interval
from longvit.plots.classification import confusion_plot, fold_dots_plot, reliability_plot, roc_plot
from longvit.plots.curves import pr_curves_plot, roc_curves_plot
from longvit.plots.survival import kaplan_meier_plot
from longvit.slide_jobs.predict import predict_slides
from longvit.slides.reader import open_slide

PACKAGE = Path(longvit.__file__).parent
BENCHMARKS = PACKAGE.parents[1] / "benchmarks"
NAMES = {
    "broken formula": r"$\frac{$",
    "formula": "$x^2$ and $y$",
    "one dollar": "costs 5 $",
    "escaped": r"\$ \alpha \begin{",
    "control": "a\x00b\x1b[31m\x07c",
    "line ends": "a\r\nb\x0bc\u2028d",
    "many lines": "a\n" * 500,
    "direction": "abc\u202edef\u2066",
    "broken character": "bad\udcff\udcfe",
    "no glyph": "肿瘤 \U0001f9ec \U000f0000",
    "combining": "a" + "\u0301" * 300,
    "long": "x" * 10_000,
    "underscore": "_hidden",
    "HTML": "<script>alert(1)</script>--><!-- ]]>",
    "empty": "",
    "spaces": "   ",
}


def fold(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % classes
    logits = rng.normal(size=(30, classes)) + np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


class Fold:
    def __init__(self, classes: int) -> None:
        self.labels, self.probabilities = fold(classes)


def contributions(name: str) -> Contributions:
    return Contributions(np.array([[1, -1], [2, 0.5]], np.float32), 0.0, 2.5, 0.9, name, name)


PLOTS: dict[str, Callable[[str, Path], object]] = {
    "roc of folds": lambda name, path: roc_curves_plot(
        {name: fold(2), "b": fold(2)}, ("a", name), path, interval=Interval(0.5, 0.9, 9), title=name
    ),
    "precision": lambda name, path: pr_curves_plot({"0": fold(3)}, (name, "b", name + "2"), path, title=name),
    "roc": lambda name, path: roc_plot(
        {"val": Fold(2), "test": Fold(2)}, (name, name), path, controls={name: 0.5}, intervals={}
    ),
    "confusion": lambda name, path: confusion_plot(*fold(2), (name, "b"), path, title=name),
    "reliability": lambda name, path: reliability_plot(*fold(2), path, title=name),
    "dots": lambda name, path: fold_dots_plot({name: [0.9, 0.8]}, path, published=(name, 0.9, 0.1)),
    "survival": lambda name, path: kaplan_meier_plot(
        np.arange(1.0, 9), np.arange(8) % 2, np.arange(8) % 2, path, names=(name, "b"), title=name
    ),
}


@pytest.mark.parametrize("what", NAMES)
def test_any_class_name_can_be_drawn(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    for i, of in enumerate(PLOTS.values()):
        of(NAMES[what], tmp_path / f"{i}.png")
        with Image.open(tmp_path / f"{i}.png") as image:
            assert max(image.size) < 2000
        ElementTree.fromstring((tmp_path / f"{i}.svg").read_bytes())
    assert not caplog.records


@pytest.mark.parametrize("what", NAMES)
def test_any_slide_id_can_be_the_title_of_contributions(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    canvas = open_slide(write_slide(tmp_path / "slide.tif")).canvas(64, "pad")
    draw(canvas, contributions(NAMES[what]), tmp_path / "a.png", title=NAMES[what])
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) < 3000
    assert not caplog.records


def test_dollars_stand_in_the_plot_as_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    roc_curves_plot({"0": fold(2)}, ("a", "$x^2$ and $y$"), tmp_path / "r.svg", title=r"$\frac{1}{2}$")
    words = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "r.svg").read_text(encoding="utf-8")))
    assert "$x^2$ and $y$: AUC" in words
    assert r"$\frac{1}{2}$" in words


def test_a_class_that_begins_with_an_underscore_has_its_line_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    roc_curves_plot({"0": fold(2)}, ("a", "_b"), tmp_path / "r.svg")
    assert "_b: AUC" in (tmp_path / "r.svg").read_text(encoding="utf-8")


def test_two_hundred_classes_do_not_make_a_sheet_of_gigabytes(tmp_path: Path) -> None:
    labels = np.arange(400) % 200
    confusion_plot(labels, np.eye(200)[labels], [f"class {i}" for i in range(200)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 4000


def test_long_names_stay_apart() -> None:
    """Slides of one study differ at the end of their names."""
    one, other = "TCGA-" + "A" * 300 + "-01", "TCGA-" + "A" * 300 + "-02"
    assert short_name(one) != short_name(other)
    assert len(short_name(one)) == 28
    assert short_name("short") == "short"
    assert drawable("a\nb") == "a\nb"


def test_a_plot_that_fails_says_so_in_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @plot(".svg")
    def broken(path: Path) -> None:
        write_figure(new_figure(1, 1), path)
        raise RuntimeError("no\nsuch letter")

    (tmp_path / "a.svg").write_text("an older one")
    assert broken(tmp_path / "a.png") == tmp_path / "a.png"
    assert [record.getMessage() for record in caplog.records] == [
        f"{drawable(str(tmp_path))}/a.png: not drawn: RuntimeError: no such letter"
    ]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "an older one" not in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_picture_that_cannot_be_drawn_costs_no_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("cannot be drawn")

    monkeypatch.setattr("longvit.interpret._scale_bar", fails)
    model = write_model(tmp_path / "model", num_classes=2)
    slide = write_slide(tmp_path / "slides" / "$_$.tif")
    result = predict_slides(find_slides([slide]), tmp_path / "out", model, pictures=True)
    assert result.done == ("$_$",)
    assert not result.left_out
    assert (tmp_path / "out" / "predictions.csv").read_text().count("$_$") >= 1
    (problem,) = read_problems(tmp_path / "out" / "problems.csv")
    assert (problem.slide, problem.stage) == ("$_$", "picture")
    assert "ValueError: cannot be drawn" in problem.error


def test_every_figure_is_made_and_written_in_one_place() -> None:
    """Whatever draws elsewhere would typeset the user's words, and fail for them."""
    wrong = []
    for path in [*PACKAGE.rglob("*.py"), *BENCHMARKS.glob("*.py")]:
        if path == PACKAGE / "figure.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
            pyplot = isinstance(node, ast.Import) and any("pyplot" in alias.name for alias in node.names)
            if called == "savefig" or pyplot or (isinstance(node, ast.Name) and node.id == "FigureCanvasAgg"):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong


def test_every_function_that_draws_a_figure_is_a_plot() -> None:
    """One that is none would end a training with a traceback."""
    bare = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or path == PACKAGE / "figure.py":
                continue
            calls = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            makes = "write_figure" in calls or ("blank" in calls and "save" in calls)
            if makes and not any("plot" in ast.unparse(d) for d in node.decorator_list):
                bare.append(f"{path.name}: {node.name}")
    assert bare == ["style.py: save"]


def test_where_nothing_can_be_drawn_at_all_reports_have_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from matplotlib.figure import Figure

    from longvit.report.predictions import PredictedSlides
    from longvit.report.sections import classification_sections

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(Figure, "savefig", fails)
    labels, probabilities = fold(2)
    predicted = type("Predicted", (), {"classes": ("a", "b"), "labels": labels, "probabilities": probabilities})()
    predicted.by_fold = lambda: {"0": (labels, probabilities)}
    sections = classification_sections(cast(PredictedSlides, predicted), tmp_path)
    assert [len(section.plots) for section in sections] == [2, 2]
    assert len(caplog.records) == 4
    with Image.open(tmp_path / "roc.png") as image:
        image.load()
    ElementTree.fromstring((tmp_path / "roc.svg").read_bytes())


def test_tiles_are_kept_where_their_picture_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longvit.slide_jobs.tiles import tile_slides
    from longvit.slides.tiles import TileSettings

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("longvit.slides.tile_overview._font", fails)
    slide = write_slide(tmp_path / "a.tif", size_px=(600, 500))
    result = tile_slides(find_slides([slide]), tmp_path / "out", TileSettings(tile_px=32, mpp=1.0))
    assert result.done == ("a",)
    assert [(problem.slide, problem.stage) for problem in result.problems] == [("a", "picture")]
