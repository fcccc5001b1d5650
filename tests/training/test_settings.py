"""Settings that decide a result, and those that may change on resume; both are part of the format of run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longvit.comparison.settings import ComparisonSettings
from longvit.finetuning.settings import FinetuneSettings
from longvit.pretraining.settings import PretrainSettings
from longvit.training.settings import TrainSettings

LOOP = {"checkpoint_minutes", "max_bad_steps", "tensorboard"}
DEVICE = {"device", "threads"}
SLIDES = {"num_workers", "cache_dir", "sequence_ranks"}
ANNOTATIONS = {"regions", "region_class", "exclude_class"}
"""Neither: a run stores the hash of their content (`tests/cli/test_regions.py` resumes one)."""


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        (TrainSettings, LOOP | {"keep_checkpoints"}),
        (FinetuneSettings, LOOP | DEVICE | SLIDES | ANNOTATIONS | {"cell", "memory_mb", "offload", "deletion_slides"}),
        (PretrainSettings, LOOP | DEVICE | SLIDES | ANNOTATIONS | {"report_minutes"}),
        (ComparisonSettings, DEVICE | {"checkpoint_minutes", "systems", "set", "cell", "bootstrap", "memory_mb"}),
    ],
)
def test_a_stored_run_resumes_whatever_its_runtime_settings(kind: Any, runtime: set[str]) -> None:
    """A setting that moves from one set to the other would refuse, or mix up, runs that are stored already."""
    assert set(kind.__dataclass_fields__) - set(kind().result_settings()) == runtime


def test_result_settings_are_json() -> None:
    stored = FinetuneSettings(weights=Path("a/b"), split=(0.5, 0.25, 0.25)).result_settings()
    assert (stored["weights"], stored["split"]) == ("a/b", [0.5, 0.25, 0.25])
    assert json.loads(json.dumps(stored)) == stored
