"""A fine-tuning on several ranks: the files of one process, written once; it goes on on another mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longvit.data.new_folds import make_folds
from longvit.errors import InputError
from longvit.finetuning.crossval import cross_validate
from longvit.finetuning.run import FinetuneResult, FinetuneSettings, finetune
from longvit.parallel import Ranks
from parallel.ranks import on_mesh
from tasks.study import SETTINGS, study

# One slide per forward pass, so that the mesh does not decide which slides share one.
EACH = replace(SETTINGS, forward_batch=1, epochs=2)


def numbers(metrics: Any) -> Any:
    """The metrics without what tells one machine from another."""
    return {**metrics, "training": {k: v for k, v in metrics["training"].items() if k != "device"}}


def same(ours: Any, theirs: Any) -> None:
    """Equal but for the order of float32 sums."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=2e-3)
    else:
        assert ours == theirs


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FinetuneResult]:
    folder = tmp_path_factory.mktemp("study")
    cohort = study(folder / "slides")
    return cohort, finetune(cohort, folder / "alone", EACH)


@pytest.mark.parametrize(("data", "sequence"), [(2, 1), (1, 2), (2, 2)])
def test_metrics_are_those_of_one_process_on_any_mesh(alone: Any, tmp_path: Path, data: int, sequence: int) -> None:
    """Controls, evaluation and results too; a strip is a single row of patches at 64 px on two ranks."""
    cohort, of_one = alone
    settings = replace(EACH, sequence_ranks=sequence)
    results = on_mesh(data, sequence, _finetune, cohort, settings, tmp_path / "ranks")
    for result in results:
        same(numbers(result), numbers(of_one.metrics))
    folders = (of_one.folder, tmp_path / "ranks")
    logits = [np.loadtxt(f / "outputs.csv", delimiter=",", skiprows=1, usecols=(3, 4)) for f in folders]
    assert np.abs(logits[0] - logits[1]).max() < 1e-4
    assert len({frozenset(path.name for path in folder.iterdir()) for folder in folders}) == 1
    again = finetune(cohort, tmp_path / "ranks", EACH)
    assert again.was_finished


def test_slides_that_share_a_forward_pass_are_settled_when_a_run_begins(tmp_path: Path) -> None:
    """Begun on 4 ranks (2 slides each of a batch of 8), it goes on alone with the same passes."""
    cohort, settings = study(tmp_path / "slides"), replace(SETTINGS, batch_size=8, forward_batch=None)
    assert (settings.slides_per_forward(), settings.slides_per_forward(4)) == (8, 2)
    on_mesh(4, 1, _finetune, cohort, settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["slides_per_forward"] == 2
    (tmp_path / "run" / "metrics.json").unlink()
    assert not finetune(cohort, tmp_path / "run", settings).was_finished


@pytest.mark.slow
def test_folds_are_shared_and_summed_up_by_the_first(tmp_path: Path) -> None:
    cohort = study(tmp_path / "slides")
    alone = cross_validate(cohort, tmp_path / "alone", make_folds(cohort, 2), EACH)
    first, second = on_mesh(2, 1, _cross_validate, cohort, tmp_path / "ranks")
    assert alone is not None
    assert first == pytest.approx(alone.summary["mean"], abs=2e-3)
    assert second is None


def test_more_ranks_than_rows_of_patches_are_refused_in_one_line(tmp_path: Path) -> None:
    cohort = study(tmp_path / "slides")
    said = on_mesh(1, 3, _refusal, cohort, replace(EACH, sequence_ranks=3), tmp_path / "run")
    assert said == ["--sequence-ranks 3: a canvas of 64 px has only 2 rows of patches to share"] * 3


def _finetune(ranks: Ranks, cohort: Any, settings: FinetuneSettings, folder: Path) -> Any:
    return finetune(cohort, folder, settings, ranks=ranks).metrics


def _cross_validate(ranks: Ranks, cohort: Any, folder: Path) -> float | None:
    result = cross_validate(cohort, folder, make_folds(cohort, 2), EACH, ranks=ranks)
    return None if result is None else result.summary["mean"]


def _refusal(ranks: Ranks, cohort: Any, settings: FinetuneSettings, folder: Path) -> str:
    try:
        finetune(cohort, folder, settings, ranks=ranks)
    except InputError as error:
        return str(error)
    return ""
