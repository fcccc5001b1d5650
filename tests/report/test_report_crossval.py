"""The report of a cross-validation: the numbers of its files, the warnings a reader needs, pictures beside it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.report.report_folders import subtyping_folder, survival_folder, write_folder
from tests.report.test_report import Links

from longvit.errors import InputError
from longvit.report import crossval_report
from longvit.report.crossval import crossval_warnings
from longvit.report.predictions import read_predicted
from longvit.report.worst_errors import worst_errors_section

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def brca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brca")
    crossval_report(subtyping_folder(folder, n_folds=4, slides=50), folder)
    return folder


@pytest.fixture(scope="module")
def ucec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ucec")
    crossval_report(survival_folder(folder, patients=150), folder)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "crossval.json").read_text())


def html(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def warnings_after(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    summary = summary_of(folder)
    change(summary)
    return " ".join(crossval_warnings(summary, read_predicted(folder / "predictions.csv", summary["classes"])))


def test_it_stands_alone_and_opens_offline(brca: Path, ucec: Path) -> None:
    for folder in (brca, ucec):
        links = Links(html(folder))
        assert links.fetched
        assert all(link.startswith("data:image/") for link in links.fetched)
        assert "script" not in links.elements


def test_it_shows_the_numbers_of_its_files(brca: Path, ucec: Path) -> None:
    for folder in (brca, ucec):
        summary, text = summary_of(folder), html(folder)
        main = summary["figure"]
        assert f"{summary['mean']:.3f} ± {summary['sd']:.3f}" in text
        for fold in summary["folds"]:
            assert f'<td>{fold["fold"]}</td><td class="number">{fold["last"][main]:.3f}</td>' in text
        for of in summary["pooled"].values():
            assert f"{of['low']:.3f}–{of['high']:.3f}" in text
        assert f"published: {summary['published']['row']}" in text
        assert summary["commit"] in text
        assert "longvit_small_patch32" in text


def test_every_picture_lies_beside_it_as_png_and_svg(brca: Path, ucec: Path) -> None:
    curves = {"folds", "roc", "precision_recall", "confusion", "calibration"}
    for folder, names in ((brca, curves), (ucec, {"folds", "kaplan_meier"})):
        found = {path.name for path in (folder / "pictures").iterdir()}
        assert found == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_a_leak_is_said_in_words(brca: Path) -> None:
    leaking = sum(fold["leaks"]["train_test"] for fold in summary_of(brca)["folds"])
    assert f"both in training and among the evaluated ones: {leaking}," in html(brca)

    def mend(summary: dict[str, Any]) -> None:
        for fold in summary["folds"]:
            fold["leaks"] = {"train_test": 0, "train_val": 2, "val_test": 0}

    assert "both in training" not in warnings_after(brca, mend)  # val is not what is evaluated here


def test_a_leak_into_val_counts_where_val_is_evaluated(ucec: Path) -> None:
    def leak(summary: dict[str, Any]) -> None:
        summary["folds"][0]["leaks"]["train_val"] = 3

    assert "among the evaluated ones: 3," in warnings_after(ucec, leak)


def test_an_optimistic_epoch_is_said_so(brca: Path, ucec: Path) -> None:
    assert "is optimistic" in html(ucec)
    assert "best epoch on val (optimistic)" in html(ucec)
    assert "optimistic" not in html(brca)


def test_a_control_as_good_as_the_model_is_said_so(brca: Path) -> None:
    def swap(summary: dict[str, Any]) -> None:
        for fold in summary["folds"]:
            fold["controls"]["mean_colour"]["auc"] = fold["last"]["auc"] + 0.01

    assert "The control mean colour is at least as good as the model" in warnings_after(brca, swap)
    assert "control" not in warnings_after(brca, lambda _: None)


def test_a_gap_within_the_interval_is_said_so(brca: Path) -> None:
    def near(summary: dict[str, Any]) -> None:
        for fold in summary["folds"]:
            fold["controls"]["random_encoder"]["auc"] = fold["last"]["auc"] - 0.005
        summary["gap"]["random_encoder"] = {"value": 0.005, "low": -0.02, "high": 0.03}

    words = warnings_after(brca, near)
    assert "ahead of the control random frozen encoder by +0.005" in words
    assert "−0.020 to +0.030" in words
    assert "mean colour" not in words
    assert "+0.120 to +0.290" in html(brca)


def test_an_interval_that_holds_one_half_is_said_so(ucec: Path) -> None:
    def widen(summary: dict[str, Any]) -> None:
        summary["pooled"]["c_index"]["low"] = 0.48

    assert "guessing is not ruled out" in warnings_after(ucec, widen)
    assert "guessing" not in warnings_after(ucec, lambda _: None)


def test_risks_that_cannot_be_compared_have_no_pooled_figure(ucec: Path, tmp_path: Path) -> None:
    shutil.copytree(ucec, tmp_path / "f")
    text = crossval_report({**summary_of(ucec), "pooled": {}}, tmp_path / "f").read_text(encoding="utf-8")
    assert "pooled over folds" not in text
    assert "0.5 is random guessing" in text


def test_repeated_splits_are_no_partition(brca: Path, ucec: Path) -> None:
    assert "repeated splits" in html(brca)
    assert "repeated splits" not in html(ucec)


@pytest.mark.slow
def test_the_losses_of_the_folds_are_shown_where_they_lie(brca: Path, tmp_path: Path) -> None:
    assert "Loss after each epoch" not in html(brca)
    shutil.copytree(brca, tmp_path / "f")
    (tmp_path / "f" / "fold_1").mkdir()
    (tmp_path / "f" / "fold_1" / "history.csv").write_text(
        "epoch,train_loss,val_loss,val_auc\n1,0.7,,0.5\n2,0.5,0.6,\n"
    )
    text = crossval_report(summary_of(brca), tmp_path / "f").read_text(encoding="utf-8")
    assert "Loss after each epoch" in text
    assert (tmp_path / "f" / "pictures" / "loss.svg").exists()


def test_a_fold_without_a_figure_is_named_and_a_dash(brca: Path, tmp_path: Path) -> None:
    shutil.copytree(brca, tmp_path / "f")
    summary = summary_of(brca)
    summary["folds"][2]["last"]["auc"] = None
    summary["folds"][2]["controls"] = {}
    summary["folds"][1]["best_val"] = None
    text = crossval_report(summary, tmp_path / "f").read_text(encoding="utf-8")
    assert "No AUC in fold 2" in text
    assert '<td>2</td><td class="number">–</td><td class="number">–</td>' in text


def test_little_is_known_and_it_still_reports(tmp_path: Path) -> None:
    """A single fold, no controls, no interval, nothing published, no settings, no commit; a new task's columns."""
    fold = {"fold": "0", "last": {"mae": 4.5}, "best_val": None, "controls": None, "leaks": {}, "slides": {}}
    summary = {
        **{"task": "age", "classes": [], "cell": None, "figure": "mae", "mean": 4.5, "sd": None, "ddof": 1},
        **{"folds": [fold], "pooled": {}, "published": None, "optimistic_best_val": False},
    }
    line = {"fold": 0, "case_id": "p", "slide_id": "s", "split": "test", "age": 61, "predicted_age": 57}
    text = crossval_report(write_folder(tmp_path, summary, [line]), tmp_path).read_text(encoding="utf-8")
    assert "Age: LongViT in 1-fold" in text
    assert "4.500" in text
    assert "Commit unknown" in text


def test_the_surest_mistakes_come_first_with_their_slide(brca: Path, tmp_path: Path) -> None:
    predicted = read_predicted(brca / "predictions.csv", ["IDC", "ILC"])
    (section,) = worst_errors_section(predicted)
    listed = [str(row.cells[0]) for row in section.tables[0].rows]
    with (brca / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    p: dict[str, list[float]] = {}
    for line in lines:
        p.setdefault(line["slide_id"], []).append(float(line[f"prob_{line['label']}"]))
    wrong = {line["slide_id"] for line in lines if line["label"] != line["prediction"]}
    assert listed == sorted(wrong, key=lambda name: (np.mean(p[name]), name))[:30]
    Image.fromarray(np.full((60, 90, 3), 150, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    images = {listed[1]: tmp_path / "a.png", listed[2]: tmp_path / "b.png", listed[3]: tmp_path / "absent.png"}
    (section,) = worst_errors_section(predicted, images)
    assert [plot.title for plot in section.gallery] == [listed[1]]
    assert section.gallery[0].data[:2] == b"\xff\xd8"


def test_the_patient_in_the_wrong_order_comes_first(tmp_path: Path) -> None:
    """b has the event first and the lowest risk of its fold; another fold's risks do not matter."""
    outcome = [("a", 0, 50, 0, 0.2), ("b", 0, 2, 1, 0.1), ("c", 0, 30, 1, 0.5), ("d", 0, 9, 1, 0.6), ("e", 1, 1, 1, 0)]
    lines = [
        {"fold": fold, "case_id": case, "slide_id": f"{case}{k}", "split": "val"}
        | {"survival_months": months, "event": event, "risk": risk}
        for case, fold, months, event, risk in outcome
        for k in (1, 2)
    ]
    write_folder(tmp_path, {}, lines)
    (section,) = worst_errors_section(read_predicted(tmp_path / "predictions.csv", []))
    rows = [row.cells for row in section.tables[0].rows]
    assert rows[0][:4] == ["b1", "b", "2.0", "yes"]
    assert rows[0][-1] == "100%"
    assert "e" not in [cells[1] for cells in rows]  # alone in its fold: no pair


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("slide_id", "slide", "no column 'slide_id'"),
        (",IDC,", ",XYZ,", "label 'XYZ' is not one of the classes"),
        (",0.", ",oops", "not a finite number"),
    ],
)
def test_a_broken_table_is_one_line(brca: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text((brca / "predictions.csv").read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=words) as error:
        read_predicted(path, ["IDC", "ILC"])
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_predicted(tmp_path / "absent.csv", [])


def test_val_rows_are_left_out_where_there_is_a_test_split(brca: Path, tmp_path: Path) -> None:
    text = (brca / "predictions.csv").read_text()
    path = tmp_path / "predictions.csv"
    path.write_text(re.sub(r",test,", ",val,", text, count=7))
    n = text.count("\n") - 1
    assert len(read_predicted(path, ["IDC", "ILC"])) == n - 7
