"""Head of fine-tuned weights: kept where it is asked for and fits, refused where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.finetuning.study import SETTINGS

from longvit.errors import InputError
from longvit.finetuning.starting_model import starting_model
from longvit.model.longvit import LongViT
from longvit.model.pretrained import load_model

CLASSES = ("pale", "stained")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    starting_model(replace(SETTINGS, seed=3), CLASSES).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("keeps", [True, False])
def test_the_head_is_kept_where_it_is_asked_for_alone(weights: Path, keeps: bool) -> None:
    before = load_model(weights)
    assert isinstance(before, LongViT)
    torch.nn.init.normal_(before.head.weight)
    before.save_pretrained(weights)
    model = starting_model(replace(SETTINGS, weights=weights, keep_head=keeps), CLASSES)
    assert torch.equal(model.head.weight, before.head.weight) is keeps


def test_a_head_of_other_classes_is_refused(weights: Path) -> None:
    settings = replace(SETTINGS, weights=weights, keep_head=True)
    with pytest.raises(InputError, match=r"its head \(subtyping: pale, stained\) is not that of subtyping: a, b; omit"):
        starting_model(settings, ("a", "b"))


def test_random_weights_have_no_head_to_keep() -> None:
    with pytest.raises(InputError, match="random weights have no trained head"):
        starting_model(replace(SETTINGS, keep_head=True), CLASSES)
