"""A new system is one file and one line: the one that docs/extending.md shows, as it stands there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.comparison.made import write_study
from tests.conftest import ROOT

from longvit.baselines.bag import Bag
from longvit.baselines.catalogue import SYSTEMS
from longvit.baselines.system import create_system
from longvit.cli import main
from longvit.comparison.tile_scores import read_attention

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.split("## A system of the comparison")[1], re.DOTALL)


@pytest.fixture
def additive_mil() -> Iterator[None]:
    module = ModuleType("longvit.baselines.additive_mil")
    sys.modules[module.__name__] = module
    exec(compile(BLOCKS[0], "docs/extending.md", "exec", dont_inherit=True), module.__dict__)
    exec(BLOCKS[1], {"SYSTEMS": SYSTEMS})
    yield
    del sys.modules[module.__name__], SYSTEMS["additive_mil"]


@pytest.mark.usefixtures("additive_mil")
def test_the_answer_is_the_sum_of_what_the_tiles_add() -> None:
    torch.manual_seed(0)
    made = create_system("additive_mil", in_dim=6, outputs=3, hidden=8).eval()
    bags = [Bag(torch.randn(n, 6)) for n in (1, 8, 3)]
    for bag, found in zip(bags, made.batch(bags), strict=True):
        h = made.phi(bag.features)
        terms = made.attention(h).softmax(0)[:, None] * made.psi(h)
        assert (found.logits - terms.sum(0)).abs().max() < 1e-6
        assert found.attention is not None
        assert not found.attention.requires_grad
        assert (found.attention - terms.abs().sum(1) / terms.abs().sum()).abs().max() < 1e-6
        assert (made(bag).logits - found.logits).abs().max() < 1e-6


@pytest.mark.usefixtures("additive_mil")
def test_a_system_of_ones_own_is_one_file_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort, out = write_study(tmp_path), tmp_path / "out"
    where = ["benchmark", str(cohort), "--features", str(tmp_path / "features"), "--folds", "column", "--out", str(out)]
    settings = "--epochs 6 --lr 0.01 --bootstrap 20 --device cpu --threads 1 --set additive_mil.hidden=16"
    quick = settings.split()
    assert main([*where, *quick, "--systems", "additive_mil", "mean_pooling"]) == 0
    assert "additive mil" in capsys.readouterr().out
    row = json.loads((out / "benchmark.json").read_text())["systems"][0]
    assert (row["system"], row["inputs"]) == ("additive_mil", "image")
    assert row["mean"] > 0.9  # of the tiles of a tumour every fourth is shifted

    told_apart = []
    for fold in "01":
        for of_slide in read_attention(out / "additive_mil" / f"fold_{fold}" / "attention.h5").values():
            assert of_slide.scores.sum() == pytest.approx(1, abs=1e-5)
            if int(of_slide.case_id[1:]) % 2:  # a tumour
                shifted = np.arange(len(of_slide.scores)) % 4 == 0
                told_apart.append(of_slide.scores[shifted].mean() > of_slide.scores[~shifted].mean())
    assert len(told_apart) == 12
    assert np.mean(told_apart) > 0.9

    omics = ["--omics", str(tmp_path / "omics.csv"), "--out", str(tmp_path / "other"), "--fold", "0"]
    assert main([*where[:-2], *omics, *quick, "--systems", "additive_mil+concat"]) == 1
    assert "fold 0: failed: additive_mil takes tiles alone" in capsys.readouterr().err
