"""The folder of a run: settings stored and checked, one process at a time, metrics that mark the end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from longvit.errors import InputError
from longvit.training.run_folder import RunFolder, read_metrics


def test_a_run_keeps_its_samples_per_pass_and_refuses_other_settings(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "run").open({"lr": 0.1, "split": (0.5, 0.5)}, 8) == 8
    assert RunFolder(tmp_path / "run").open({"lr": 0.1, "split": [0.5, 0.5]}, 2) == 8
    with pytest.raises(InputError, match=r"run: started with other settings \(lr 0.1 -> 0.2\); give the same"):
        RunFolder(tmp_path / "run").open({"lr": 0.2, "split": [0.5, 0.5]}, 8)


def test_a_run_from_before_reduced_decoding_resumes_exact_alone(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").open({"lr": 0.1}, 8)
    assert RunFolder(tmp_path / "run").open({"lr": 0.1, "decode": "exact"}, 8) == 8
    with pytest.raises(InputError, match=r"other settings \(decode exact -> reduced\)"):
        RunFolder(tmp_path / "run").open({"lr": 0.1, "decode": "reduced"}, 8)


@pytest.mark.parametrize("text", ["{", "[]", '{"slides_per_forward": 0}', '{"slides_per_forward": "8"}'])
def test_a_damaged_run_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: damaged .*; remove the folder to start again") as caught:
        RunFolder(tmp_path).open({}, 8)
    assert "\n" not in str(caught.value)


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        with pytest.raises(InputError, match="another process is using it"), RunFolder(tmp_path).locked():
            pass
    with RunFolder(tmp_path).locked():
        pass


def test_metrics_mark_the_end_and_hold_no_nan(tmp_path: Path) -> None:
    kinds = {"figures": dict}
    assert read_metrics(tmp_path, kinds) is None
    published = RunFolder(tmp_path).publish({"figures": {"auc": math.nan, "f1": (0.5, math.inf)}})
    assert published == {"figures": {"auc": None, "f1": [0.5, None]}}
    assert read_metrics(tmp_path, kinds) == published
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": 3}))
    with pytest.raises(InputError, match=r"metrics\.json: damaged .*remove it and give the same command again"):
        read_metrics(tmp_path, kinds)
