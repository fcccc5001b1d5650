"""LongViT in the table: its predictions on the same folds, the gap with its interval; other folds are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.comparison.made import QUICK, write_study

from longvit.comparison.compare import compare
from longvit.comparison.summary_table import table
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column, write_folds
from longvit.errors import InputError
from longvit.finetuning.results import write_logits
from longvit.tasks.task import Predictions
from longvit.training.resource_usage import write_cost

ONE = replace(QUICK, systems=("mean_pooling",), set=(), bootstrap=30)


def write_run(folder: Path, cohort: Cohort, *, without: str = "") -> float:
    """A cross-validation as `longvit train --folds column` leaves it, of a model that is nearly always right; → its
    mean AUC."""
    folds, aucs = folds_of_column(cohort), []
    write_folds(folder / "folds", folds)
    for fold in folds:
        rows = tuple(row for row in cohort.rows if row.slide_id in fold.test and row.slide_id != without)
        rng = np.random.default_rng(int(fold.name))
        logits = rng.normal(size=(len(rows), 2))
        logits[:, 1] += [3.0 * cohort.class_index(row) for row in rows]
        write_logits(folder / f"fold_{fold.name}" / "outputs.csv", {"model": {"test": Predictions(rows, logits, 0.0)}})
        (folder / f"fold_{fold.name}" / "metrics.json").write_text('{"training": {"parameters": 123}}')
        aucs.append(roc_auc_score([cohort.class_index(r) for r in rows], logits[:, 1] - logits[:, 0]))
    summary = {
        "task": "subtyping",
        "evaluated": "test",
        "folds": [{"fold": fold.name, "best_val": None} for fold in folds],
    }
    (folder / "crossval.json").write_text(json.dumps(summary))
    return float(np.mean(aucs))


def test_longvit_stands_in_the_table_with_its_gap(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path), need_files=False)
    mean = write_run(tmp_path / "cv", cohort)
    folds = folds_of_column(cohort)
    summary = compare(
        cohort, tmp_path / "out", folds, ONE, features=tmp_path / "features", longvit_run=tmp_path / "cv"
    ).summary
    system, longvit = summary["systems"]
    assert (longvit["system"], longvit["parameters"]) == ("longvit", 123)
    assert longvit["mean"] == pytest.approx(mean)
    gap = system["gap"]
    assert gap["value"] == pytest.approx(mean - system["mean"])
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_what_longvit_cost_stands_beside_what_the_others_cost(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path), need_files=False)
    write_run(tmp_path / "cv", cohort)

    def row() -> dict[str, str]:
        found = compare(
            cohort,
            tmp_path / "out",
            folds_of_column(cohort),
            ONE,
            features=tmp_path / "features",
            longvit_run=tmp_path / "cv",
        )
        header, rows = table(found.summary)
        return dict(zip(header, rows[1], strict=True))

    older = row()  # a run from before costs.json
    assert (older["seconds"], older["MiB"]) == ("–", "–")
    write_cost(tmp_path / "cv" / "fold_0", {"seconds": 1000.0, "cpu_seconds": 900.0, "peak_memory_mib": 50.0})
    write_cost(tmp_path / "cv" / "fold_1", {"seconds": 1480.0, "cpu_seconds": 950.0, "peak_memory_mib": 70.44})
    known = row()
    assert (known["seconds"], known["MiB"]) == ("1,240", "70.4")
    (tmp_path / "cv" / "fold_0" / "costs.json").write_text("{")
    assert row()["seconds"] == "1,480"


def test_a_slide_that_longvit_lacks_is_left_out_of_the_gap_alone(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path), need_files=False)
    write_run(tmp_path / "cv", cohort, without="s04")
    folds = folds_of_column(cohort)
    summary = compare(
        cohort, tmp_path / "out", folds, ONE, features=tmp_path / "features", longvit_run=tmp_path / "cv"
    ).summary
    system, longvit = summary["systems"]
    assert system["gap"]["value"] != pytest.approx(longvit["mean"] - system["mean"], abs=1e-12)
    assert abs(system["gap"]["value"] - (longvit["mean"] - system["mean"])) < 0.2


def test_longvit_on_other_folds_is_refused_in_one_line(tmp_path: Path) -> None:
    cohort = read_cohort(write_study(tmp_path), need_files=False)
    write_run(tmp_path / "cv", cohort)
    folds = folds_of_column(cohort)
    moved = (replace(folds[0], train=folds[0].train[1:]), folds[1])
    for other, words in ((moved, "has other slides in fold 0"), ((replace(folds[0], name="7"),), "has no fold 7")):
        with pytest.raises(InputError, match=f"{words}.*the same folds; give --folds .*cv/folds"):
            compare(cohort, tmp_path / "out", other, ONE, features=tmp_path / "features", longvit_run=tmp_path / "cv")
    with pytest.raises(InputError, match="no finished cross-validation"):
        compare(cohort, tmp_path / "out", folds, ONE, features=tmp_path / "features", longvit_run=tmp_path)


def test_survival_meets_longvit_on_patients_though_it_saw_a_slide_without_features(tmp_path: Path) -> None:
    write_study(tmp_path, 32, slides_of_a_patient=2)
    (tmp_path / "features" / "s00.h5").unlink()  # the first slide of patient P00, whose second one has features
    cohort = read_cohort(tmp_path / "cohort.csv", label_column=None, need_files=False)
    folds, rng = folds_of_column(cohort), np.random.default_rng(0)
    write_folds(tmp_path / "cv" / "folds", folds)
    for fold in folds:
        rows = tuple(row for row in cohort.rows if row.slide_id in fold.test)
        of = {"model": {"test": Predictions(rows, rng.normal(size=(len(rows), 2)), 0.0)}}
        write_logits(tmp_path / "cv" / f"fold_{fold.name}" / "outputs.csv", of)
        (tmp_path / "cv" / f"fold_{fold.name}" / "metrics.json").write_text('{"training": {"parameters": 1}}')
    summary = {"task": "survival", "evaluated": "test", "folds": [{"fold": f.name, "best_val": None} for f in folds]}
    (tmp_path / "cv" / "crossval.json").write_text(json.dumps(summary))
    found = compare(
        cohort,
        tmp_path / "out",
        folds,
        replace(ONE, task="survival", n_bins=2, bags_per_step=4),
        features=tmp_path / "features",
        longvit_run=tmp_path / "cv",
    ).summary
    system, longvit = found["systems"]
    assert found["problems"] == 1
    assert system["gap"]["value"] == pytest.approx(longvit["mean"] - system["mean"])  # the same patients
