"""Deletion test of tile scores: tiles are removed, weights are those of the trial, and the areas are in the report."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.comparison.made import QUICK, write_study
from tests.comparison.test_command import QUICK as WORDS
from tests.comparison.test_command import command
from tests.comparison.test_compare import run

from longvit.baselines.bag import Bag, Prediction
from longvit.comparison.tile_deletion import bag_deletion, deletion_tests, without
from longvit.errors import InputError
from longvit.heatmaps.deletion import scores_of_logits
from longvit.progress import Progress
from longvit.tasks.survival import risk_of


class Additive:
    """A system whose logits are sums over the tiles, so that the curves are known."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def __call__(self, bag: Bag) -> Prediction:
        total = bag.features[:, 0].sum()
        scores = (self.sign * bag.features[:, 0]).softmax(0)
        return Prediction(torch.stack([-total, total]), scores)


def made_bag(n: int = 20, **more: Any) -> Bag:
    features = torch.from_numpy(np.random.default_rng(0).permutation(np.linspace(0.1, 2, n)))[:, None]
    coords = torch.arange(2 * n).reshape(n, 2)
    return Bag(features, coords, **more)


def test_a_score_that_is_a_sum_falls_by_the_tiles_that_are_removed() -> None:
    values = np.sort(np.linspace(0.1, 2, 20))[::-1]
    curves = bag_deletion(Additive(), made_bag(), is_risk=False, fractions=(0, 0.25, 0.5, 0.9))  # type: ignore[arg-type]
    assert curves is not None
    counts = (0, 5, 10, 18)
    assert curves.most == pytest.approx([2 * values[n:].sum() for n in counts])
    assert curves.least == pytest.approx([2 * values[: 20 - n].sum() for n in counts])
    assert curves.most_fall > 0
    assert curves.least_fall > 0
    wrong = bag_deletion(Additive(-1), made_bag(), is_risk=False)  # type: ignore[arg-type]
    assert wrong is not None
    assert wrong.most_fall < 0
    assert wrong.least_fall < 0


def test_the_score_of_survival_is_the_risk() -> None:
    curves = bag_deletion(Additive(), made_bag(), is_risk=True, fractions=(0, 0.9))  # type: ignore[arg-type]
    assert curves is not None
    total = made_bag().features.sum().item()
    assert curves.most[0] == pytest.approx(risk_of(np.array([[-total, total]]))[0])


def test_a_smaller_bag_keeps_order_places_and_slides_and_is_never_empty() -> None:
    bag = made_bag(6, slide_tiles=(2, 3, 1), clusters=torch.arange(6), neighbours=torch.zeros(6, 2, dtype=torch.int64))
    smaller = without(bag, np.array([5, 0, 3]))
    kept = [1, 2, 4]
    assert torch.equal(smaller.features, bag.features[kept])
    assert smaller.coords is not None
    assert bag.coords is not None
    assert torch.equal(smaller.coords, bag.coords[kept])
    assert smaller.clusters is not None
    assert smaller.clusters.tolist() == kept
    assert smaller.neighbours is None  # of the tiles that are gone
    assert smaller.slide_tiles == (1, 2)
    assert len(without(bag, np.arange(6))) == 1


def test_a_bag_of_one_tile_and_a_system_without_scores_have_no_test() -> None:
    assert bag_deletion(Additive(), made_bag(1), is_risk=False) is None  # type: ignore[arg-type]

    def blind(bag: Bag) -> Prediction:
        return replace(Additive()(bag), attention=None)

    assert bag_deletion(blind, made_bag(), is_risk=False) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["subtyping", "survival"])
def test_the_weights_are_those_of_the_trial(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of the whole bag is that of the logits which the trial wrote."""
    settings = replace(QUICK, task=task, n_bins=2, bags_per_step=4, systems=("attention_mil",))
    write_study(tmp_path, 24, slides_of_a_patient=1 if task == "subtyping" else 2)
    result = run(tmp_path, settings)
    starts: list[float] = []
    import longvit.comparison.tile_deletion as module

    whole = module.bag_deletion

    def listening(*given: Any, **more: Any) -> Any:
        curves = whole(*given, **more)
        starts.append(float(curves.most[0]))
        return curves

    monkeypatch.setattr(module, "bag_deletion", listening)
    with Progress("deletion test", 2, brief=True) as progress:
        (test,) = deletion_tests(result, 3, progress)
    assert (test.system, test.is_risk, test.most.slides) == ("attention_mil", task == "survival", 6)
    assert test.most.low is not None
    expected = set()
    for fold in ("0", "1"):
        with (tmp_path / "out" / "attention_mil" / f"fold_{fold}" / "outputs.csv").open() as file:
            for line in csv.DictReader(file):
                logits = np.array([[float(value) for name, value in line.items() if name.startswith("output_")]])
                class_index = None if task == "survival" else int(logits.argmax())
                expected.add(round(float(scores_of_logits(logits, class_index)[0]), 4))
    assert len(starts) == 6
    assert {round(start, 4) for start in starts} <= expected
    (tmp_path / "out" / "attention_mil" / "fold_0" / "model.safetensors").write_bytes(b"cut")
    with Progress("deletion test", 2, brief=True) as progress:
        (left,) = deletion_tests(result, 3, progress)
    assert left.most.slides == 3


def test_the_report_and_a_table_have_the_areas_of_systems_with_scores(tmp_path: Path) -> None:
    cohort, out = write_study(tmp_path), tmp_path / "out"
    given = [str(cohort), "--features", str(tmp_path / "features"), "--folds", "column", "--out", str(out), *WORDS]
    systems = ["--systems", "mean_pooling", "attention_mil"]
    assert command(*given, *systems) == 0
    assert "Deletion test" not in (out / "index.html").read_text()
    assert not (out / "deletion.csv").exists()
    assert command(*given, *systems, "--deletion-slides", "2") == 0
    html = (out / "index.html").read_text()
    assert "highest first, below random" in html
    with (out / "deletion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == {"attention_mil"}
    assert rows[0]["bags"] == "4"
    assert float(rows[0]["most_fall_low"]) <= float(rows[0]["most_fall"]) <= float(rows[0]["most_fall_high"])
    with pytest.raises(InputError, match="--deletion-slides -1: at least 0"):
        command(*given, "--deletion-slides", "-1")
