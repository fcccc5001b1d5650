"""Plots: they show the metrics, odd inputs give a plot too, PNG and SVG have the same name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from longvit.metrics.classification import Interval, auc, average_precision
from longvit.plots.classification import (
    confusion_plot,
    fold_dots_plot,
    fold_losses_plot,
    loss_plot,
    reliability_plot,
    roc_plot,
)
from longvit.plots.curves import Fold, pr_curves_plot, pr_heights, roc_curves_plot, roc_heights
from longvit.plots.survival import kaplan_meier_plot, p_text, risk_halves


def fold(n: int, classes: int, seed: int) -> Fold:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def words_of(svg: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Path], None]) -> str:
    """The letters of a plot, drawn with text as text (its letters are outlines otherwise)."""
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    draw(svg)
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8")))


def follow_up(n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    group = np.arange(n) % 2
    months = rng.exponential(np.where(group, 20, 60)).round(1)
    return months, rng.random(n) < 0.6, group


FOLDS = {str(k): fold(40, 2, k) for k in range(4)}
LABELS, PROBABILITIES = (np.concatenate([f[i] for f in FOLDS.values()]) for i in (0, 1))
PICTURES: dict[str, Callable[[Path], None]] = {
    "roc_folds": lambda path: roc_curves_plot(FOLDS, ("benign", "cancer"), path),
    "pr_folds": lambda path: pr_curves_plot(FOLDS, ("benign", "cancer"), path),
    "roc_three": lambda path: roc_curves_plot({"0": fold(40, 3, 0), "1": fold(40, 3, 1)}, "abc", path),
    "confusion": lambda path: confusion_plot(LABELS, PROBABILITIES, ("benign", "a very long name"), path),
    "reliability": lambda path: reliability_plot(LABELS, PROBABILITIES, path),
    "dots": lambda path: fold_dots_plot({"LongViT": [0.9, 0.8], "control": [0.5, 0.6]}, path),
    "loss": lambda path: loss_plot({"loss": np.array([0.7, 0.6, 0.4, 0.5])}, [{"train_loss": 0.6}] * 2, path),
    "losses": lambda path: fold_losses_plot(
        {"0": {"train_loss": [2, 1.0], "val_loss": [math.nan] * 2}, "1": {"train_loss": [3, 2, 1.0]}, "2": {}}, path
    ),
    "survival": lambda path: kaplan_meier_plot(*follow_up(), path),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_png_and_an_svg_and_always_the_same(name: str, tmp_path: Path) -> None:
    for run in ("one", "two"):
        PICTURES[name](tmp_path / f"{run}.png")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_a_drawn_curve_is_the_figure_beside_it(seed: int) -> None:
    labels, p = fold(60, 2, seed)
    heights = roc_heights(labels == 1, p[:, 1])
    assert (heights[1:] + heights[:-1]).sum() / 1000 == pytest.approx(auc(labels, p), abs=0.003)
    assert pr_heights(labels == 1, p[:, 1])[1:].mean() == pytest.approx(average_precision(labels, p), abs=0.003)


def test_a_precision_recall_curve_is_a_staircase() -> None:
    """Hit, miss, hit: precision 1 up to a recall of 1/2, then 2/3; no slanted line between them."""
    heights = pr_heights(np.array([True, False, True]), np.array([0.9, 0.5, 0.4]))
    assert set(heights) == {1.0, 2 / 3}
    assert heights[250] == 1.0  # a recall of 1/2 itself
    assert heights[251] == 2 / 3


def test_the_curves_say_mean_and_spread_of_the_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [auc(*f) for f in FOLDS.values()]
    words = words_of(tmp_path / "r.svg", monkeypatch, PICTURES["roc_folds"])
    assert f"cancer: AUC {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (4 folds)" in words
    one = words_of(
        tmp_path / "o.svg",
        monkeypatch,
        lambda path: roc_curves_plot({"0": FOLDS["0"]}, ("a", "b"), path, interval=Interval(0.61, 0.99, 9)),
    )
    assert f"b: AUC {values[0]:.2f}" in one
    assert "0.61–0.99" in one
    assert "±" not in one


def test_a_fold_with_one_class_is_left_out_of_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lone = (np.ones(5, np.int64), np.full((5, 2), 0.5))
    with_lone = {**FOLDS, "4": lone}
    words = words_of(tmp_path / "r.svg", monkeypatch, lambda path: pr_curves_plot(with_lone, ("a", "b"), path))
    assert "(4 folds)" in words
    for folds in ({"4": lone}, {}):
        words = words_of(tmp_path / "n.svg", monkeypatch, lambda path, f=folds: roc_curves_plot(f, ("a", "b"), path))
        assert "no curve" in words


def test_confusion_shows_counts_and_shares_of_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of class a, one of them wrong; none of class b."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    words = words_of(tmp_path / "c.svg", monkeypatch, lambda path: confusion_plot([0, 0, 0], p, ("a", "b"), path))
    assert "67%" in words
    assert "33%" in words
    assert "50%" not in words


def test_no_slides_and_missing_folds_still_give_a_picture(tmp_path: Path) -> None:
    reliability_plot(np.zeros(0), np.zeros((0, 2)), tmp_path / "r.png")
    confusion_plot(np.zeros(0), np.zeros((0, 2)), ("a", "b"), tmp_path / "c.png")
    fold_dots_plot({"LongViT": [0.9, math.nan], "control": []}, tmp_path / "d.png", published=("HIPT", 0.87, 0.06))
    nothing = SimpleNamespace(labels=np.zeros(0, np.int64), probabilities=np.zeros((0, 2)))
    roc_plot({"test": nothing}, ("a", "b"), tmp_path / "roc.png")
    empty = np.zeros(0)
    kaplan_meier_plot(empty, empty, empty, tmp_path / "k.png")
    assert len(list(tmp_path.iterdir())) == 10


def test_a_loss_below_zero_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(path: Path) -> None:
        loss_plot({"loss": np.array([-1.0, -3.0])}, [{"train_loss": -2.0}], path, loss_name="partial likelihood")

    words = words_of(tmp_path / "l.svg", monkeypatch, draw)
    assert "partial likelihood" in words
    assert "−3.0" in words


def test_risks_of_two_folds_are_not_compared() -> None:
    """The second model's risks are all higher; each fold still gives half of its patients."""
    risk = np.array([0.1, 0.2, 0.3, 0.4, 10.0, 20.0, 30.0, 40.0])
    halves = risk_halves(["0"] * 4 + ["1"] * 4, list("abcdefgh"), risk)
    assert halves.tolist() == [False, False, True, True] * 2


def test_a_patient_falls_into_one_half_with_all_slides() -> None:
    halves = risk_halves(["0"] * 6, ["a", "a", "b", "b", "c", "d"], np.array([1.0, 6.0, 4.0, 5.0, 2.0, 3.0]))
    assert halves[0] == halves[1]
    assert halves.tolist() == [True, True, True, True, False, False]  # means 3.5, 4.5, 2, 3
    halves = risk_halves(list("000111"), list("abcacd"), np.array([1.0, 2.0, 3.0, 10.0, 30.0, 20.0]))
    assert halves.tolist() == [False, False, True, False, True, False]  # mean ranks of a 1/6, b 1/2, c 5/6, d 1/2


def test_equal_risks_make_no_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep Sets in the published folds: every risk the same. One curve, and the plot states why."""
    months, event, _ = follow_up()
    halves = risk_halves(["0"] * 60, [str(i) for i in range(60)], np.zeros(60))
    assert not halves.any()
    words = words_of(
        tmp_path / "k.svg", monkeypatch, lambda path: kaplan_meier_plot(months, event, halves.astype(int), path)
    )
    assert "all risks are equal" in words


def test_kaplan_meier_counts_who_is_at_risk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    months, event, group = follow_up()
    words = words_of(tmp_path / "k.svg", monkeypatch, PICTURES["survival"])
    assert f"higher risk: 30 patients, {int(event[group == 1].sum())} events" in words
    assert "log-rank p" in words
    at_risk = [str((months[group == g] >= t).sum()) for g in (0, 1) for t in (0, 60, 120, 180, 240)]
    assert "0 | 60 | 120 | 180 | 240 | months" in words
    assert " | ".join(at_risk) in words
    assert (p_text(0.0004), p_text(0.0312), p_text(0.42), p_text(math.nan)) == (
        "log-rank p < 0.001",
        "log-rank p = 0.031",
        "log-rank p = 0.42",
        "log-rank p not defined",
    )
