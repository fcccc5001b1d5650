"""Schedules and settings: every value that of the arrays of a whole run, computed from the equations in NumPy."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from tests.oracles import dino as oracle

import longvit.dino.settings
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.errors import InputError


@pytest.mark.parametrize("batch", [64, 256, 1024])
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 17])
@pytest.mark.parametrize(("epochs", "warmup", "temperature_epochs"), [(1, 0, 0), (7, 1, 1), (12, 10, 5), (100, 10, 30)])
def test_every_step_has_the_values_of_the_equations(epochs, warmup, temperature_epochs, steps_per_epoch, batch) -> None:
    settings = DinoSettings(
        epochs=epochs,
        warmup_epochs=warmup,
        teacher_temperature=0.07,
        warmup_teacher_temperature_epochs=temperature_epochs,
    )
    s, steps = Schedules(settings, steps_per_epoch, batch), epochs * steps_per_epoch
    arrays = {
        "lr": oracle.cosine_schedule(5e-4 * batch / 256, 1e-6, steps, warmup * steps_per_epoch),
        "weight_decay": oracle.cosine_schedule(0.04, 0.4, steps),
        "teacher_momentum": oracle.cosine_schedule(0.996, 1.0, steps),
        "teacher_temperature": oracle.temperature_schedule(0.04, 0.07, temperature_epochs, epochs, steps_per_epoch),
    }
    assert s.steps == steps
    for name, expected in arrays.items():
        found = [getattr(s, name)(i) for i in range(steps)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=name)


def test_the_paper_s_run_peaks_at_its_learning_rate_and_ends_where_it_should() -> None:
    s = Schedules(DinoSettings(), steps_per_epoch=100, batch=1024)
    assert s.lr(0) == 0
    assert s.lr(999) == s.lr(1000) == 2e-3
    assert s.lr(s.steps) == 1e-6
    assert s.weight_decay(0) == 0.04
    assert s.weight_decay(s.steps) == 0.4
    assert s.teacher_momentum(0) == pytest.approx(0.996, abs=1e-15)
    assert s.teacher_momentum(s.steps) == s.teacher_momentum(2 * s.steps) == 1.0


def test_last_layer_is_frozen_in_the_first_epoch_alone() -> None:
    s = Schedules(DinoSettings(), steps_per_epoch=4, batch=8)
    assert [s.last_layer_is_frozen(i) for i in range(6)] == [True] * 4 + [False] * 2
    thawed = Schedules(replace(s.settings, freeze_last_layer_epochs=0), 4, 8)
    assert not thawed.last_layer_is_frozen(0)


def test_every_default_says_where_it_comes_from() -> None:
    text = Path(longvit.dino.settings.__file__).read_text(encoding="utf-8")
    for field in fields(DinoSettings):
        doc = re.search(rf'^    {field.name}: .*\n    """(.*?)"""', text, re.MULTILINE | re.DOTALL)
        assert doc, field.name
        assert re.search(r"LongViT, (table|section)|DINO's code", doc.group(1)), field.name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epochs": 0}, "epochs 0: at least 1"),
        ({"epochs": 5}, "warmup_epochs 10: at most the 5 epochs"),
        ({"teacher_temperature": 0.0}, "teacher_temperature 0.0: a finite number above 0"),
        ({"lr": float("nan")}, "lr nan: a finite number"),
        ({"teacher_momentum": 1.1}, "teacher_momentum 1.1: between 0 and 1"),
        ({"drop_path": 1.0}, "drop_path 1.0: between"),
        ({"global_crops": 1, "local_crops": 0}, "two different crops"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_number(wrong, says: str) -> None:
    with pytest.raises(InputError, match=says):
        DinoSettings(**wrong)
