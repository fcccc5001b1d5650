"""The tissue mask against outlines made by eye."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from tests.conftest import ROOT, shared


@cache
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tissue_benchmark", ROOT / "benchmarks" / "tissue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tissue_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def scores(only: str = "") -> dict[str, list[float]]:
    """IoU of the masks on each field of files whose name contains `only`."""
    found: dict[str, list[float]] = {name: [] for name in benchmark().MASKS}
    for field in benchmark().outlined_fields(only):
        for name, mask in benchmark().masks_of(field).items():
            found[name].append(benchmark().iou(mask, field.outlined(mask.shape)))
    return found


def test_iou_is_that_of_sets() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert benchmark().iou(a, b) == pytest.approx(4 / 12)
    assert benchmark().iou(a & False, b & False) == 1


def test_the_rule_stays_as_good_as_it_was_on_the_example() -> None:
    found = scores("CMU-1-Small-Region")
    assert len(found["rule"]) == 6
    assert np.mean(found["rule"]) > 0.91
    assert min(found["rule"]) > 0.85
    assert np.mean(found["rule"]) > np.mean(found["otsu_grey"]) + 0.05


@pytest.mark.slow
@pytest.mark.shared
def test_the_rule_is_better_than_otsu_alone_on_all_fields() -> None:
    shared("slides/osteosarcoma")
    found = scores()
    assert len(found["rule"]) >= 20
    for name in ("otsu_grey", "otsu_saturation"):
        assert np.mean(found["rule"]) > np.mean(found[name]) + 0.05
