"""`longvit evaluate`: the published tables to three decimals, our own files, and what a CSV can get wrong."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import shared

from longvit.cli import main
from longvit.errors import InputError
from longvit.finetuning.evaluate import evaluate
from longvit.finetuning.paper_tables import published_rows
from longvit.metrics.classification import classification_metrics
from longvit.metrics.survival import bootstrap_c_index, c_index

SURVIVAL = "case_id,slide_id,split,fold,survival_months,event,risk\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text(text)
    return path


@pytest.mark.shared
def test_published_risks_give_table_2_to_three_decimals() -> None:
    found = evaluate(shared("data/mcat/published_survival_predictions.csv.gz"))
    ours = {
        (g.key["system"], g.key["inputs"], g.key["cohort"]): (
            round(g.metrics["c_index"].mean, 3),
            round(g.metrics["c_index"].sd, 3),
        )
        for g in found.groups
    }
    assert found.ddof == 0
    expected = {
        (row.system, row.inputs, row.cohort): (row.mean, row.sd)
        for row in published_rows(2)
        if row.system != "hipt"  # from another repository, whose risks are not in this file
    }
    assert len([key for key in expected if key[1] != "genomic"]) == 21
    assert {key: ours[key] for key in expected} == expected
    # What the protocol quotes of them by itself.
    assert ours["deep_sets", "image+genomic", "luad"][0] == 0.616
    assert ours["attention_mil", "image+genomic", "ucec"][0] == 0.614
    assert ours["deep_sets", "image", "ucec"] == (0.5, 0.0)


@pytest.mark.shared
def test_published_fold_aucs_give_table_1_to_three_decimals() -> None:
    found = evaluate(shared("data/hipt/published_fold_auc.csv"))
    assert found.ddof == 1
    means = {
        system: tuple(
            round(next(g for g in found.groups if g.key == {"system": system, "cohort": c}).metrics["test_auc"].mean, 3)
            for c in ("brca", "lung", "kidney")
        )
        for system in ("mil", "clam_sb", "deep_attn_misl", "gcn_mil", "ds_mil", "hipt")
    }
    assert means == {
        "mil": (0.778, 0.892, 0.959),
        "clam_sb": (0.858, 0.928, 0.973),
        "deep_attn_misl": (0.784, 0.778, 0.943),
        "gcn_mil": (0.840, 0.831, 0.957),
        "ds_mil": (0.838, 0.920, 0.971),
        "hipt": (0.874, 0.952, 0.980),
    }
    ours = {
        (g.key["system"], g.key["cohort"]): (
            round(g.metrics["test_auc"].mean, 3),
            round(g.metrics["test_auc"].sd, 3),
        )
        for g in found.groups
    }
    dataset = {"brca": "brca", "nsclc": "lung", "rcc": "kidney"}
    assert {(r.system, dataset[r.cohort]): (r.mean, r.sd) for r in published_rows(1)} == ours


def test_own_survival_folds_with_several_slides_a_patient(tmp_path: Path) -> None:
    """A patient's two slides count once, with the mean of their risks."""
    lines = ["a,a1,test,0,1,1,3", "a,a2,test,0,1,1,1", "b,b1,test,0,2,0,2.5", "c,c1,test,0,3,1,1", "d,d1,test,1,4,1,0"]
    found = evaluate(write(tmp_path, SURVIVAL + "\n".join(lines)))
    assert found.layout == "survival"
    (group,) = found.groups
    assert (group.rows, group.patients, group.events) == (5, 4, 3)
    figure = group.metrics["c_index"]
    assert figure.folds["0"] == 0.5  # a (risk 2) before b (2.5): wrong; before c: right
    assert math.isnan(figure.folds["1"])
    assert figure.mean == 0.5
    assert any("left out of a mean, in fold 1" in note for note in found.notes)


def test_censorship_is_the_opposite_of_event(tmp_path: Path) -> None:
    text = "months,{},risk\n1,{},3\n2,{},2\n3,{},2.5\n"
    by_event = evaluate(write(tmp_path, text.format("event", 1, 0, 1)), resamples=0).groups[0].metrics["c_index"].mean
    by_censorship = evaluate(write(tmp_path, text.format("censorship", 0, 1, 0)), resamples=0).groups[0]
    assert by_event == by_censorship.metrics["c_index"].mean == 1.0


def test_without_folds_there_is_the_patients_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    months, event, risk = rng.exponential(9, 50).round(2), rng.integers(0, 2, 50), rng.normal(size=50).round(3)
    lines = [f"p{i},{m},{e},{r}" for i, (m, e, r) in enumerate(zip(months, event, risk, strict=True))]
    found = evaluate(write(tmp_path, "case_id,survival_months,event,risk\n" + "\n".join(lines)), resamples=30)
    figure = found.groups[0].metrics["c_index"]
    assert figure.mean == c_index(months, event, risk)
    interval = bootstrap_c_index(months, event, risk, [f"p{i}" for i in range(50)], resamples=30)
    assert figure.interval == (interval.low, interval.high)


def test_own_subtyping_predictions_keep_the_case_of_class_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels, p = rng.integers(0, 2, 40), rng.random(40).round(6)
    lines = [
        f"c{i},s{i},{'val' if i < 20 else 'test'},{('IDC', 'ILC')[y]},{1 - x:.6f},{x},IDC"
        for i, (y, x) in enumerate(zip(labels, p, strict=True))
    ]
    text = "case_id,slide_id,split,label,prob_IDC,prob_ILC,prediction\n" + "\n".join(lines)
    path = tmp_path / "predictions.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    found = evaluate(path, resamples=20)
    assert [g.key["split"] for g in found.groups] == ["val", "test"]
    expected = classification_metrics(labels[20:], np.stack([1 - p[20:], p[20:]], 1))
    assert {name: f.mean for name, f in found.groups[1].metrics.items()} == pytest.approx(expected)
    assert found.groups[1].metrics["auc"].interval is not None


def test_ddof_of_the_spread_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "system,cohort,fold,test_auc\nx,brca,0,0.8\nx,brca,1,0.9\n")
    assert evaluate(path).groups[0].metrics["test_auc"].sd == pytest.approx(0.05 * math.sqrt(2))
    assert evaluate(path, ddof=0).groups[0].metrics["test_auc"].sd == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "empty"),
        ("risk,survival_months,event\n", "a header but no rows"),
        ("risk,survival_months,status\n1,2,1\n", "columns risk, survival_months, status; needed: "),
        ("risk,survival_months,event\n1,2,1\n\nx,2,1\n", "line 4: risk is 'x'; it must be a number"),
        ("risk,survival_months,event\n1,-2,1\n", "line 2: survival_months is '-2'; it must be a number, at least 0"),
        ("risk,survival_months,event\nnan,2,1\n", "line 2: risk is 'nan'"),
        ("risk,survival_months,event\n1,2,3\n", "line 2: event is 3; it must be 0 or 1"),
        ("risk,survival_months,event,censorship\n1,2,1,1\n", "line 2: event and censorship contradict"),
        ("case_id,risk,months,event\na,1,2,1\na,1,3,1\n", "patient a has rows with different times"),
        (
            "label,prob_IDC,prob_ILC\nidc,1,0\n",
            "line 2: label 'idc', but there is no column prob_idc; classes: IDC, ILC",
        ),
        ("label,prob_IDC,prob_ILC\nIDC,1.5,0\n", "line 2: prob_IDC is '1.5'; it must be a number in 0 … 1"),
        ("label,prob_IDC\nIDC,1\n", "one column of probabilities"),
        ("system,cohort,fold,test_auc\nx,a,0,0.5\nx,a,0,0.6\n", "fold 0 of x, a appears twice"),
        ("risk,Risk,event\n1,2,1\n", "two columns are called 'risk'"),
        ("risk,months,event\n1,2,1,4,5\n1,2\n", "line 2: 5 cells for 3 columns"),
    ],
)
def test_wrong_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(write(tmp_path, text))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_or_damaged_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(tmp_path / "nothing.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"risk,months,event\n" * 99)[:40])
    with pytest.raises(InputError, match="damaged"):
        evaluate(tmp_path / "cut.csv.gz")
    (tmp_path / "picture.csv").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="UTF-8"):
        evaluate(tmp_path / "picture.csv")


def test_command_prints_a_table_and_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SURVIVAL + "a,a1,test,0,1,1,3\nb,b1,test,0,2,0,2\nc,c1,test,1,3,1,1")
    assert main(["evaluate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "c index" in out
    assert "1.000 ± –" in out
    assert "ddof 0" in out
    assert main(["evaluate", str(path), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["figures"]["c_index"]["folds"] == {"0": 1.0, "1": None}
    assert main(["evaluate", str(tmp_path / "no.csv")]) == 2
