"""Bags of a study: nothing of the evaluated patients is fitted, classes come equally often, omics are found by name."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.comparison.made import GENES, QUICK, WIDTH, write_features, write_study

from longvit.comparison.bag_cohort import make_bag_cohort
from longvit.comparison.bags import Bags, TrainingBags
from longvit.comparison.compare import compare
from longvit.comparison.omics import OmicTable, read_omics
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import system_spec
from longvit.comparison.trial import bags_of_fold, make_system
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column
from longvit.errors import InputError

SURVIVAL = replace(QUICK, task="survival", n_bins=2)
CPU = torch.device("cpu")


def read(folder: Path, task: str = "survival") -> Cohort:
    return read_cohort(folder / "cohort.csv", label_column="label" if task == "subtyping" else None, need_files=False)


def trained(folder: Path, out: str, settings: ComparisonSettings) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Fold 0: every weight, whatever was fitted among them; the names of the outputs, which hold the bins' edges."""
    cohort = read(folder)
    (name,) = settings.systems
    compare(
        cohort,
        folder / out,
        folds_of_column(cohort),
        settings,
        features=folder / "features",
        omics=read_omics(folder / "omics.csv"),
        only=("0",),
    )
    trial = folder / out / name / "fold_0"
    outputs: list[str] = json.loads((trial / "metrics.json").read_text())["outputs"]
    return load_file(trial / "model.safetensors"), outputs


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        ("snn", "omic_scales.0.mean"),
        ("deep_attn_misl", "centers"),
        ("deep_sets+concat", "omic_scales.0.sd"),
    ],
)
def test_whatever_the_evaluated_patients_are_not_a_bit_of_the_model_changes(
    tmp_path: Path, name: str, fitted: str
) -> None:
    write_study(tmp_path)
    settings = replace(
        SURVIVAL, systems=(name,), set=("deep_attn_misl.phenotypes=3",), epochs=1, bags_per_step=4, bootstrap=0
    )
    weights, outputs = trained(tmp_path, "before", settings)
    evaluated = [row for row in read(tmp_path).rows if row.fold == "0"]
    cases = {row.case_id for row in evaluated}
    for row in evaluated:
        write_features(tmp_path / "features", row.slide_id, np.full((9, WIDTH), 50.0))
    rewrite(tmp_path / "omics.csv", cases, dict.fromkeys(GENES, "99"))
    rewrite(tmp_path / "cohort.csv", cases, {"survival_months": "11.5"})
    others, other_outputs = trained(tmp_path, "after", settings)
    assert outputs == other_outputs
    assert fitted in weights
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert torch.equal(value, others[key]), key


def rewrite(path: Path, cases: set[str], trials: dict[str, str]) -> None:
    """Other cells for these patients."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | trials if row["case_id"] in cases else row for row in rows)


def test_z_scores_are_those_of_the_training_fold(tmp_path: Path) -> None:
    write_study(tmp_path)
    cohort, omics = read(tmp_path), read_omics(tmp_path / "omics.csv")
    bag_cohort = make_bag_cohort(cohort, "survival", None, omics, 100)
    of = bags_of_fold(bag_cohort, folds_of_column(cohort)[0], SURVIVAL)
    spec = system_spec("snn")
    system = make_system(spec, bag_cohort, of.task, SURVIVAL)
    train = Bags(bag_cohort, of.cohort.split("train"), spec, CPU)
    system.fit(train)
    z = torch.stack([system.omics(bag)[0] for bag in train])
    raw = np.array([omics.vector(row.case_id) for row in train.rows], dtype=np.float64)
    np.testing.assert_allclose(z.numpy(), (raw - raw.mean(0)) / raw.std(0), rtol=1e-4, atol=1e-5)


def test_rare_classes_are_drawn_as_often_as_others(tmp_path: Path) -> None:
    write_study(tmp_path)
    bag_cohort = make_bag_cohort(read(tmp_path, "subtyping"), "subtyping", tmp_path / "features", None, 100)
    rows = [row for row in bag_cohort.cohort.rows if row.label == "benign" or row.slide_id == "s01"]
    bags = Bags(bag_cohort, rows, system_spec("mil"), CPU)
    strata = [row.label for row in rows]
    batches = TrainingBags(bags, {"label": np.zeros(len(rows), np.int64)}, strata, balanced=True, seed=1)
    drawn = np.concatenate([batches.order(epoch) for epoch in range(200)])
    share = np.mean([strata[i] == "tumour" for i in drawn])
    assert abs(share - 0.5) < 4 * 0.5 / len(drawn) ** 0.5
    assert (batches.order(3) == batches.order(3)).all()
    plain = replace_balanced(batches)
    assert sorted(plain.order(0)) == list(range(len(rows)))


def replace_balanced(of: TrainingBags) -> TrainingBags:
    return TrainingBags(of.bags, of.targets, of.strata, balanced=False, seed=of.seed)


def test_strata_of_survival_are_bins_with_and_without_the_event(tmp_path: Path) -> None:
    from longvit.comparison.bags import strata_of

    found = strata_of({"bin": np.array([0, 1, 1]), "event": np.array([1, 1, 0]), "months": np.array([1.0, 2, 3])})
    assert found == ["0/1", "1/1", "1/0"]


def test_bags_beyond_the_memory_are_read_anew_and_equal(tmp_path: Path) -> None:
    write_study(tmp_path, 8, slides_of_a_patient=2)
    cohort = read(tmp_path)
    studies = [make_bag_cohort(cohort, "survival", tmp_path / "features", None, mb) for mb in (100, 0)]
    assert [len(bag_cohort.kept) for bag_cohort in studies] == [4, 0]
    row = studies[0].unit_rows(cohort.rows)[1]
    one, other = (bag_cohort.bag(row, system_spec("mil")) for bag_cohort in studies)
    assert torch.equal(one.features, other.features)
    assert one.coords is not None
    assert other.coords is not None
    assert torch.equal(one.coords, other.coords)
    assert one.slide_tiles == other.slide_tiles == (14, 15)


def test_signatures_take_their_genes_in_all_kinds(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = read_omics(tmp_path / "omics.csv", tmp_path / "signatures.csv")
    assert [[GENES[i] for i in places] for places in found.signatures.values()] == [
        ["AAA_cnv", "AAA_rnaseq", "BBB_cnv", "BBB_rnaseq"],
        ["BBB_cnv", "BBB_rnaseq", "CCC_cnv", "CCC_rnaseq"],
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient,TP53_cnv\nP00,1\n", "no column case_id"),
        ("case_id,TP53\nP00,1\n", "no column ends with _mut, _cnv, _rnaseq"),
        ("case_id,TP53_cnv\nP00,1\nP01,high\n", "column TP53_cnv holds 'high'"),
        ("case_id,TP53_cnv\nP00,inf\n", "column TP53_cnv holds an infinity"),
    ],
)
def test_omics_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "omics.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_omics(path)


def test_a_signature_without_any_gene_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "none.csv").write_text("first,other\nAAA,QQQ\n")
    with pytest.raises(InputError, match="none of its 6 columns is of signature 'other'"):
        read_omics(tmp_path / "omics.csv", tmp_path / "none.csv")


def test_patients_without_omics_leave_all_systems(tmp_path: Path) -> None:
    write_study(tmp_path)
    omics = read_omics(tmp_path / "omics.csv")
    fewer = OmicTable(omics.columns, {k: v for k, v in omics.of_case.items() if k != "P03"}, {}, "omics.csv")
    bag_cohort = make_bag_cohort(read(tmp_path), "survival", tmp_path / "features", fewer, 100)
    assert [(p.slide, p.error) for p in bag_cohort.problems] == [("s03", "omics.csv: no row of patient P03")]
    assert "s03" not in bag_cohort.slides_of


def test_numbers_of_systems_may_be_written_as_people_write_them() -> None:
    settings = ComparisonSettings(set=("snn.l1=1e-4", "snn.blocks=2", "gcn_mil.graph=coordinates"))
    assert settings.system_settings == {"snn": {"l1": 1e-4, "blocks": 2}, "gcn_mil": {"graph": "coordinates"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"systems": ("clamm",)}, "system 'clamm': did you mean 'clam_sb'"),
        ({"systems": ("mil+product",)}, "after .\\+., expected concat or bilinear"),
        ({"systems": ("snn+concat",)}, "snn already uses omics"),
        ({"set": ("hidden=3",)}, "--set hidden=3: expected a form such as"),
        ({"task": "grading"}, "task 'grading': choose"),
        ({"rest": "kept"}, "rest 'kept': choose carried, stepped, dropped"),
        ({"epochs": 0}, "epochs 0: at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ComparisonSettings(**given)
