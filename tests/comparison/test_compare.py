"""`compare`: every system on every fold, one table; what is finished stays, what fails says why."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.comparison.made import QUICK, WIDTH, write_features, write_study

from longvit.comparison import trial as cell_module
from longvit.comparison.compare import Comparison, compare
from longvit.comparison.omics import read_omics
from longvit.comparison.settings import ComparisonSettings
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column
from longvit.errors import InputError

SURVIVAL = replace(QUICK, task="survival", n_bins=2, bags_per_step=4)


def run(folder: Path, settings: ComparisonSettings = QUICK, out: str = "out", **inputs: Any) -> Comparison:
    """On the column fold of the study in `folder`."""
    cohort = read_cohort(
        folder / "cohort.csv", label_column="label" if settings.task == "subtyping" else None, need_files=False
    )
    inputs.setdefault("features", folder / "features")
    return compare(cohort, folder / out, folds_of_column(cohort), settings, **inputs)


def auc_from_the_files(folder: Path, system: str, fold: str) -> float:
    """Of outputs.csv, by scikit-learn."""
    with (folder / "cohort.csv").open() as file:
        label = {row["slide_id"]: row["label"] for row in csv.DictReader(file)}
    with (folder / "out" / system / f"fold_{fold}" / "outputs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    score = [float(row["output_1"]) - float(row["output_0"]) for row in rows]
    return float(roc_auc_score([label[row["slide_id"]] == "tumour" for row in rows], score))


def test_two_systems_on_two_folds_make_one_table(tmp_path: Path) -> None:
    write_study(tmp_path)
    summary = run(tmp_path).summary
    assert [row["system"] for row in summary["systems"]] == ["mean_pooling", "attention_mil"]
    for row in summary["systems"]:
        values = [auc_from_the_files(tmp_path, row["system"], fold) for fold in "01"]
        assert [c["value"] for c in row["cells"]] == pytest.approx(values, abs=1e-9)
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        assert row["low"] <= row["mean"] + 0.2
        assert row["parameters"] > 0
        assert row["seconds"] > 0
    assert summary["systems"][1]["mean"] > 0.8  # it learns
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert written["systems"][0]["mean"] == summary["systems"][0]["mean"]
    with (tmp_path / "out" / "benchmark.csv").open() as file:
        assert [row["system"] for row in csv.DictReader(file)] == ["mean_pooling", "attention_mil"]


def test_a_finished_cell_is_not_computed_again_and_a_new_system_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path)
    first = run(tmp_path).summary
    computed = []
    inner = cell_module.train
    monkeypatch.setattr(cell_module, "train", lambda *a, **k: computed.append(k["folder"]) or inner(*a, **k))
    again = run(tmp_path, replace(QUICK, systems=(*QUICK.systems, "mil"), set=(*QUICK.set, "mil.hidden=8"))).summary
    assert {path.parts[-3] for path in computed} == {"mil"}
    assert again["systems"][:2] == first["systems"]


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_study(tmp_path)
    run(tmp_path)
    with pytest.raises(InputError, match=r"started with other settings \(.*lr 0.01 -> 0.02"):
        run(tmp_path, replace(QUICK, lr=0.02))


def test_an_interrupted_cell_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SURVIVAL, rest="carried", systems=("attention_mil",))
    write_study(tmp_path, 26)  # 4 bags a step do not go into the 13 or 14 of a fold: a rest is carried
    run(tmp_path, settings, "whole")
    inner, calls = cell_module.run_trial, []

    def stopped(*args: Any, **more: Any) -> Any:
        def epoch_done() -> None:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        return inner(*args, **{**more, "epoch_done": epoch_done})

    from longvit.comparison import compare as compare_module

    monkeypatch.setattr(compare_module, "run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings)
    monkeypatch.setattr(compare_module, "run_trial", inner)
    run(tmp_path, settings)
    for fold in "01":
        path = Path("attention_mil", f"fold_{fold}", "outputs.csv")
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    metrics = json.loads((tmp_path / "out" / "attention_mil" / "fold_0" / "metrics.json").read_text())
    assert metrics["training"]["seconds"] is None  # the total time is not known


def test_a_failed_cell_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    write_study(tmp_path)
    missing = "hipt.region_checkpoint=nowhere.pth"
    result = run(tmp_path, replace(QUICK, systems=("mcat", "hipt", "mean_pooling"), set=(missing,)))
    failed = {row["system"]: [c["error"] for c in row["cells"]] for row in result.summary["systems"]}
    assert all("needs omics; give --omics" in error for error in failed["mcat"])
    assert all("nowhere.pth" in error for error in failed["hipt"])
    assert len(result.failed) == 4
    fine = run(tmp_path, replace(QUICK, systems=("mcat", "mean_pooling"), set=()))
    assert [row["mean"] is None for row in fine.summary["systems"]] == [True, False]
    problems = (tmp_path / "out" / "problems.csv").read_text()
    assert '"mcat, fold 0",cell,' in problems


def test_a_wrong_setting_of_a_system_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_study(tmp_path)
    for given, words in (
        ("mean_pooling.hidden=3", "mean_pooling: unknown key 'hidden'"),
        ("mil.hiden=8", r"did you mean 'hidden'\? \(its settings: hidden"),
        ("mil.hidden=much", "mil: hidden 'much' is not a whole number"),
        ("mil.dropout=2", "dropout 2: at least 0 and below 1"),
    ):
        with pytest.raises(InputError, match=words):
            run(tmp_path, replace(QUICK, systems=("attention_mil",), set=(given,)))
    assert not list((tmp_path / "out").glob("*/fold_*"))


def test_a_bag_of_another_encoder_costs_itself_unless_nobody_knows_which_is_meant(tmp_path: Path) -> None:
    write_study(tmp_path)
    for i, slide in enumerate(("s00", "s05")):
        write_features(tmp_path / "features", slide, np.ones((5 + i, WIDTH + 3)))
    result = run(tmp_path)
    assert (result.summary["bags"], result.summary["width"]) == (22, WIDTH)
    with (tmp_path / "out" / "problems.csv").open() as file:
        rows = [(row["slide"], row["stage"], row["error"]) for row in csv.DictReader(file)]
    words = f"features of width {WIDTH + 3}, those of most slides have {WIDTH}"
    assert [(slide, stage) for slide, stage, _ in rows] == [("s00", "read"), ("s05", "read")]
    assert all(words in error for _, _, error in rows)
    write_features(tmp_path / "features", "s07", np.ones((5, WIDTH + 3)))
    with pytest.raises(InputError, match=r"width .* while .* has .*; were both made by the same encoder"):
        run(tmp_path, out="other")


def test_damaged_bags_are_left_out_for_all_systems_and_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    features = np.ones((5, WIDTH))
    features[3, 2] = np.nan
    write_features(tmp_path / "features", "s03", features)
    (tmp_path / "features" / "s08.h5").unlink()
    (tmp_path / "features" / "s10.h5").write_bytes(b"no HDF5")
    summary = run(tmp_path).summary
    with (tmp_path / "out" / "problems.csv").open() as file:
        errors = {row["slide"]: row["error"] for row in csv.DictReader(file)}
    assert sorted(errors) == ["s03", "s08", "s10"]
    assert "1 of 5 tiles" in errors["s03"]
    assert summary["bags"] == 21
    assert any("3 of 24 slides are left out" in note for note in summary["notes"])


def test_survival_takes_all_slides_of_a_patient_as_one_bag(tmp_path: Path) -> None:
    write_study(tmp_path, 32, slides_of_a_patient=2)
    summary = run(tmp_path, SURVIVAL).summary
    assert summary["bags"] == 16
    assert summary["ddof"] == 0
    assert summary["folds"][0]["bags"] == {"train": 8, "val": 0, "test": 8}
    with h5py.File(tmp_path / "out" / "attention_mil" / "fold_0" / "attention.h5") as file:
        assert len(file) == 16  # both slides of the eight patients
        assert "P02" not in {group.attrs["case_id"] for group in file.values()}  # it trains
        two = [group["scores"][()].sum() for group in file.values() if group.attrs["case_id"] == "P00"]
        assert len(two) == 2
        assert sum(two) == pytest.approx(1, abs=1e-5)


def test_omics_alone_need_no_slides_and_fusions_join_them(tmp_path: Path) -> None:
    write_study(tmp_path)
    omics = read_omics(tmp_path / "omics.csv", tmp_path / "signatures.csv")
    settings = replace(SURVIVAL, systems=("snn",), set=("snn.hidden=8",), epochs=8)
    alone = run(tmp_path, settings, "alone", features=None, omics=omics).summary["systems"][0]
    assert (alone["inputs"], alone["mean"] > 0.6) == ("genomic", True)
    both = run(tmp_path, replace(SURVIVAL, systems=("mcat", "deep_sets+concat"), set=()), "both", omics=omics).summary
    assert [row["inputs"] for row in both["systems"]] == ["image+genomic"] * 2
    assert not any(c["error"] for row in both["systems"] for c in row["cells"])


def test_everyone_whom_the_inputs_allow_takes_part(tmp_path: Path) -> None:
    from longvit.comparison.system_spec import all_system_specs

    names = [each.name for each in all_system_specs(tiles=True, omics=False, signatures=False)]
    assert {"mil", "clam_sb", "ds_mil", "gcn_mil", "hipt", "longnet"} < set(names)
    assert not {"snn", "mcat"} & set(names)
    assert [e.name for e in all_system_specs(tiles=False, omics=True, signatures=True)] == ["snn"]
    names = [each.name for each in all_system_specs(tiles=True, omics=True, signatures=True)]
    assert {"snn", "mcat", "deep_sets+concat", "attention_mil"} < set(names)


def test_published_row_stands_beside_the_system_of_its_cell(tmp_path: Path) -> None:
    write_study(tmp_path)
    settings = replace(QUICK, systems=("mil",), set=("mil.hidden=8",), cell="table1/brca")
    summary = run(tmp_path, settings).summary
    assert summary["systems"][0]["published"] == {"mean": 0.778, "sd": 0.091}
    assert {row["words"] for row in summary["published"]} == {"CLAM-SB", "DeepAttnMISL", "GCN-MIL", "DS-MIL", "HIPT"}
    with pytest.raises(InputError, match="cell 'table2/ucec': choose table1/brca"):
        run(tmp_path, replace(settings, cell="table2/ucec"))
