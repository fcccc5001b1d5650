"""A cross-validation: a run per fold, then one table; the errors before the first slide is read."""

from __future__ import annotations

import csv
import fcntl
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.finetuning.study import SETTINGS, write_study

from longvit.cli import main
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import Fold
from longvit.data.new_folds import make_folds
from longvit.errors import InputError
from longvit.finetuning.crossval import CrossValidation, cross_validate

QUICK = replace(SETTINGS, epochs=2)
FLAGS = [
    f"--{name.replace('_', '-')}={getattr(QUICK, name)}"
    for name in (
        *("model", "side_px", "epochs", "lr", "batch_size", "forward_batch", "bootstrap"),
        *("device", "threads", "num_workers", "checkpoint_minutes"),
    )
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[CrossValidation, Cohort]:
    folder = tmp_path_factory.mktemp("crossval")
    cohort = read_cohort(write_study(folder, n=40, split=False))
    return cross_validate(cohort, folder / "cv", make_folds(cohort, 3), QUICK), cohort


def test_the_table_follows_from_the_folds(finished: tuple[CrossValidation, Cohort]) -> None:
    result, cohort = finished
    values = []
    for fold in result.summary["folds"]:
        metrics = json.loads((result.folder / f"fold_{fold['fold']}" / "metrics.json").read_text())
        values.append(metrics["splits"]["test"]["auc"])
        assert fold["last"]["auc"] == values[-1]
    assert result.summary["mean"] == pytest.approx(statistics.fmean(values))
    assert result.summary["sd"] == pytest.approx(statistics.stdev(values))
    with (result.folder / "predictions.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == "test"]
    assert sorted(line["slide_id"] for line in lines) == sorted(row.slide_id for row in cohort.rows)
    assert json.loads((result.folder / "crossval.json").read_text()) == result.summary
    assert sum(sum(fold["leaks"].values()) for fold in result.summary["folds"]) == 0


def test_the_gap_to_a_control_has_an_interval_around_it(finished: tuple[CrossValidation, Cohort]) -> None:
    result, _ = finished
    gap = result.summary["gap"]["mean_colour"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    control = result.summary["controls"]["mean_colour"]["mean"]
    assert gap["value"] == pytest.approx(result.summary["mean"] - control)
    assert "the model is ahead by" in result.text()


def test_given_again_nothing_is_computed_and_a_fold_that_is_missing_is(
    finished: tuple[CrossValidation, Cohort], tmp_path: Path
) -> None:
    result, cohort = finished
    folds = make_folds(cohort, 3)
    stamp = (result.folder / "fold_1" / "metrics.json").stat().st_mtime_ns
    again = cross_validate(cohort, result.folder, folds, QUICK)
    assert again.summary == result.summary
    assert (result.folder / "fold_1" / "metrics.json").stat().st_mtime_ns == stamp
    one = cross_validate(cohort, tmp_path / "cv", folds, QUICK, only=["1"])
    assert one.missing == ("0", "2")
    assert not (tmp_path / "cv" / "crossval.json").exists()
    assert one.summary["folds"][0]["last"] == result.summary["folds"][1]["last"]


def test_folds_side_by_side_are_those_one_after_another(
    finished: tuple[CrossValidation, Cohort], tmp_path: Path
) -> None:
    result, cohort = finished
    out = tmp_path / "cv"
    assert main(["train", cohort.source, "--folds", "3", "--jobs", "2", "--out", str(out), *FLAGS]) == 0
    summary = json.loads((out / "crossval.json").read_text())
    assert [f["last"] for f in summary["folds"]] == [f["last"] for f in result.summary["folds"]]
    assert (out / "index.html").exists()


def test_folds_without_a_test_are_judged_on_val_and_best_val_is_marked(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path, n=24, split=False))
    folds = [Fold(f.name, (*f.train, *f.val), f.test) for f in make_folds(cohort, 2)]
    result = cross_validate(cohort, tmp_path / "cv", folds, replace(QUICK, controls=False))
    assert result.summary["evaluated"] == "val"
    assert result.summary["optimistic_best_val"]
    assert "optimistic" in result.text()


def test_a_leaking_fold_stops_before_anything_is_read_and_is_counted_where_allowed(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path, n=24, split=False))
    ids = np.array([row.slide_id for row in cohort.rows])
    leaking = [Fold("0", tuple(ids[:9]), (), tuple(ids[9:])), Fold("1", tuple(ids[9:]), (), tuple(ids[:9]))]
    with pytest.raises(InputError, match=r"fold 0: patient P4 is in train and in test"):
        cross_validate(cohort, tmp_path / "cv", leaking, QUICK)
    assert not (tmp_path / "cv" / "canvases").exists()
    allowed = replace(QUICK, allow_leak=True, controls=False)
    result = cross_validate(cohort, tmp_path / "cv", leaking, allowed)
    assert [fold["leaks"]["train_test"] for fold in result.summary["folds"]] == [1, 1]
    assert "LEAK: 2 times" in result.text()


def test_other_settings_and_an_unknown_fold_are_refused(finished: tuple[CrossValidation, Cohort]) -> None:
    result, cohort = finished
    folds = make_folds(cohort, 3)
    with pytest.raises(InputError, match=r"started with other settings \(lr 0.001 -> 0.01"):
        cross_validate(cohort, result.folder, folds, replace(QUICK, lr=0.01))
    with pytest.raises(InputError, match=r"--fold 7: choose 0, 1, 2"):
        cross_validate(cohort, result.folder, folds, QUICK, only=["7"])


def test_a_signal_to_the_whole_stops_the_folds_and_the_same_command_goes_on(tmp_path: Path) -> None:
    cohort = write_study(tmp_path, n=40, split=False)
    out = tmp_path / "cv"
    start = "import sys; from longvit.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = [flag for flag in FLAGS if not flag.startswith("--epochs")]
    command = [sys.executable, "-c", start, "train", str(cohort), "--folds=2", "--jobs=2", f"--out={out}", *flags]
    process = subprocess.Popen([*command, "--epochs=15"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not all(any(out.glob(f"fold_{fold}/checkpoints/*.json")) for fold in "01"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143, text
    assert "rerun the same command to resume" in text
    for fold in ("0", "1"):  # the children are gone: nobody holds their folders
        with (out / f"fold_{fold}" / "run.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert main([*command[3:], "--epochs=15"]) == 0
    assert "resuming after step" in (out / "fold_0.log").read_text()


def test_slides_without_a_file_are_refused_or_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_study(tmp_path, n=40, split=False)
    (tmp_path / "s05.png").unlink()
    command = ["train", str(cohort), "--folds=2", f"--out={tmp_path / 'cv'}", *FLAGS]
    assert main(command) == 2
    assert "no slide s05" in capsys.readouterr().err
    assert main([*command, "--allow-missing", "--no-controls"]) == 1
    assert "s05,open," in (tmp_path / "cv" / "fold_0" / "problems.csv").read_text()
    assert json.loads((tmp_path / "cv" / "crossval.json").read_text())["folds"][0]["left_out"] == ["s05"]


def test_folds_whose_patients_all_have_slides_of_both_labels_end_with_a_table(tmp_path: Path) -> None:
    path = write_study(tmp_path, n=40, split=False)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    by_label = {label: [line for line in lines if line["label"] == label] for label in {x["label"] for x in lines}}
    for pair in zip(*by_label.values(), strict=False):
        for line in pair:
            line["case_id"] = pair[0]["slide_id"]
    kept = [line for pair in zip(*by_label.values(), strict=False) for line in pair]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(kept)
    cohort = read_cohort(path)
    result = cross_validate(cohort, tmp_path / "cv", make_folds(cohort, 2), replace(QUICK, epochs=1))
    assert not result.missing
    assert (tmp_path / "cv" / "patients.csv").read_text().startswith("fold,")
