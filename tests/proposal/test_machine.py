"""A canvas that does not fit, or is larger than the slides, must not be proposed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.plan.devices import Device
from longvit.proposal.machine import choose_canvas

SMALL = FinetuneSettings(model="longvit_small_patch32")
FAST = Device("cpu", "cpu", 64.0, {"float32": 1e15, "bfloat16": 1e15}, 1e15, 0.5, "test")


def machine_with(monkeypatch: pytest.MonkeyPatch, **properties: float) -> torch.device:
    """A CPU with these properties in place of this machine's."""
    flops = properties.pop("flops", 1e15)
    device = replace(FAST, flops=dict.fromkeys(FAST.flops, flops), **properties)  # type: ignore[arg-type]
    monkeypatch.setattr("longvit.plan.feasibility.device_named", lambda _: device)
    return torch.device("cpu")


@pytest.mark.parametrize(("longer_px", "side"), [(50, 64), (64, 64), (900, 512), (1024, 1024), (5000, 4096)])
def test_no_canvas_is_larger_than_the_slides(longer_px: float, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose_canvas(SMALL, machine_with(monkeypatch), longer_px, passes=100)
    assert (found.settings.side_px, found.limit) == (side, "slides")


def test_memory_limits_the_canvas_and_recomputation_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {}
    for gib in (4.0, 16.0, 64.0):
        found = choose_canvas(SMALL, machine_with(monkeypatch, memory_gib=gib), 1e5, passes=1)
        sides[gib] = found.settings.side_px
        assert found.limit == "memory"
        assert found.plan.fits
        assert found.peak * 1.8 <= (gib - 0.5) * 2**30
        assert found.settings.recompute  # a larger canvas with it is preferred to a smaller one without
    assert sides[4.0] < sides[16.0] < sides[64.0]
    with pytest.raises(InputError, match="no canvas fits"):
        choose_canvas(SMALL, machine_with(monkeypatch, memory_gib=0.6), 1e5, passes=1)


def test_time_limits_the_canvas_down_to_the_smallest_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = machine_with(monkeypatch, memory_gib=1000.0, flops=1e11, exponentials=1e9)
    found = choose_canvas(SMALL, slow, 1e5, passes=100_000)
    assert (found.settings.side_px, found.limit) == (1024, "time")
    few = choose_canvas(SMALL, slow, 1e5, passes=10)
    assert few.settings.side_px > 1024


def test_the_limit_of_a_recipe_is_named() -> None:
    found = choose_canvas(
        FinetuneSettings(model="longvit_tiny_stem_patch32"), torch.device("cpu"), 5000, 1, most_px=256
    )
    assert (found.settings.side_px, found.limit) == (256, "recipe")
