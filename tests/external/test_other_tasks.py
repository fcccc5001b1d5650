"""A run of a task that is not validated externally: the command states it, and predicts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.external.cohorts import TRAIN, longvit, write_cohort

from longvit.external import labelled_cohort, validate


@pytest.mark.slow
def test_a_task_without_validation_is_predicted_with_a_line_that_there_are_no_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (labelled_cohort, validate):
        monkeypatch.setattr(module, "VALIDATED", ("subtyping", "survival"))
    a, b = write_cohort(tmp_path / "a", "a", seed=3), write_cohort(tmp_path / "b", "b", seed=4, n=4)
    run = tmp_path / "run"
    task = ("--task", "regression", "--label-columns", "survival_months")
    code, _, error = longvit("train", a, "--out", run, *task, *TRAIN)
    assert code == 0, error
    code, _, error = longvit("predict", run, b, "--out", tmp_path / "out", "--device", "cpu", "--threads", "1")
    assert code == 0, error
    assert "external validation is for subtyping and survival" in error
    assert "predicted_value" in (tmp_path / "out" / "predictions.csv").read_text().splitlines()[0]
    assert not (tmp_path / "out" / "external").exists()
