"""The report: one self-contained file that states its caveats and escapes what users wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.finetuning.study import SETTINGS, study
from tests.report.report_folders import survival_folder

from longvit.data.cohort_table import read_cohort
from longvit.finetuning.run import FinetuneResult, finetune
from longvit.report import MetricCard, Report, ReportImage, Row, Section, Table, finetune_report, write_report
from longvit.report.finetuning import warnings_of
from longvit.report.page import number, thumbnail_of

pytestmark = pytest.mark.xdist_group("report")  # one worker: the fixture trains


def page(**changes: Any) -> Report:
    parts = Report(
        title="A <b>title</b>",
        lead=("One & two.",),
        notes=("Beware.",),
        cards=(MetricCard("AUC", "0.91", "24 slides"),),
        sections=(
            Section(
                "Table",
                tables=(Table(("slide", "p"), (Row(("<script>alert(1)</script>", "0.5"), "wrong"),), frozenset({1})),),
                plots=(thumbnail_of(np.zeros((300, 200, 3), np.uint8), 'a "quoted" name'),),
            ),
        ),
    )
    return replace(parts, **changes)


class Links(HTMLParser):
    """Everything that a browser would fetch, and every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.elements: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]


def test_the_file_stands_alone(tmp_path: Path) -> None:
    text = write_report(page(), tmp_path / "index.html").read_text(encoding="utf-8")
    links = Links(text)
    assert links.fetched
    assert all(link.startswith("data:image/") for link in links.fetched)
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_what_a_user_wrote_is_text_not_markup(tmp_path: Path) -> None:
    text = write_report(page(), tmp_path / "index.html").read_text(encoding="utf-8")
    links = Links(text)
    assert "script" not in links.elements
    assert "&lt;script&gt;" in text
    assert "<b>title" not in text


def test_a_phone_gets_its_own_width(tmp_path: Path) -> None:
    text = write_report(page(), tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.search(r'<meta name="viewport" content="width=device-width', text)
    assert "overflow-x: auto" in text  # a wide table scrolls, the page does not


def test_a_picture_knows_its_kind() -> None:
    assert ReportImage("", b"\x89PNG\r\n").uri.startswith("data:image/png;base64,")
    assert ReportImage("", b"\xff\xd8\xff").uri.startswith("data:image/jpeg;base64,")
    assert ReportImage("", b"<svg/>").uri.startswith("data:image/svg+xml;base64,")


def test_a_figure_that_is_not_defined_is_a_dash() -> None:
    assert number(None) == "–"
    assert number(0.912) == "0.91"


def metrics(**metrics: Any) -> dict[str, Any]:
    test = {"auc": 0.9, "auc_interval": [0.7, 1.0], "balanced_accuracy": 0.8, **metrics}
    return {"splits": {"test": test}, "controls": {}, "left_out": []}


def test_a_control_that_does_as_well_is_said_so() -> None:
    controls = {"mean_colour": {"test": {"auc": 0.93}}, "random_encoder": {"test": {"auc": 0.7}}}
    (warning,) = warnings_of({**metrics(), "controls": controls}, "test")
    assert "mean colour (0.93)" in warning
    assert "encoder" not in warning


def test_an_interval_that_holds_one_half_is_said_so() -> None:
    assert "guessing" in " ".join(warnings_of(metrics(auc_interval=[0.4, 0.9]), "test"))
    assert warnings_of(metrics(), "test") == []


def test_an_auc_that_is_not_defined_is_said_so() -> None:
    assert "one class" in " ".join(warnings_of(metrics(auc=None, auc_interval=[None, None]), "test"))


def test_a_patient_on_two_sides_is_said_so() -> None:
    leaks = {"train_val": 5, "train_test": 1, "val_test": 2}
    (warning,) = warnings_of({**metrics(), "leaks": leaks}, "test")
    assert "1 patient with slides both in training and among the test slides" in warning


def test_a_survival_run_reports_curves_and_risks(tmp_path: Path) -> None:
    """No classes: Kaplan-Meier and the patients in the wrong order, in place of ROC and mistakes."""
    survival_folder(tmp_path, n_folds=1, patients=60)
    (tmp_path / "loss.png").write_bytes(b"\x89PNG\r\n")
    test = {"slides": 66, "patients": 60, "c_index": 0.61, "c_index_interval": [0.47, 0.7], "integrated_brier": 0.2}
    training = {"parameters": 1, "slides": 9, "patients": 9, "epochs": 2, "starts_from": "x", "device": "cpu"}
    facts = {"task": "survival", "figure": "c_index", "classes": ["0-9 months", "9-end months"], "best_val": None}
    controls = {"mean_colour": {"val": {"c_index": 0.62}}}
    facts |= {"splits": {"val": test}, "controls": controls, "training": training, "left_out": [], "notes": []}
    result = FinetuneResult(tmp_path, facts)
    settings = replace(SETTINGS, deletion_slides=0)  # these numbers have no model
    text = finetune_report(result, study(tmp_path / "data"), settings).read_text(encoding="utf-8")
    for words in (
        "Survival: A LongViT",
        "c-index, validation",
        "0.47–0.70",
        "integrated Brier score",
        "Kaplan–Meier",
        "discordant pairs",
        "survival months",
        "The interval of the c-index contains 0.5",
        "c-index of mean colour (0.62) is at least as high",
    ):
        assert words in text, words
    assert "ROC" not in text
    assert (tmp_path / "pictures" / "kaplan_meier.png").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneResult, str]:
    folder = tmp_path_factory.mktemp("run")
    cohort = study(folder / "data")
    settings = replace(SETTINGS, epochs=2)
    result = finetune(cohort, folder / "out", settings)
    return result, finetune_report(result, cohort, settings).read_text(encoding="utf-8")


def test_the_report_of_a_run_holds_what_a_reader_looks_for(finished: tuple[FinetuneResult, str]) -> None:
    result, text = finished
    for words in (
        "AUC, test",
        "control: mean colour",
        "control: random frozen encoder",
        "95 % interval",
        "ROC",
        "Precision and recall",
        "Confusion",
        "Calibration",
        "Loss",
        "Patch contributions",
        "Deletion test",
        "highest first, below random",
        "Predictions",
        "Settings and versions",
        "batch_size",
        "torch",
    ):
        assert words in text, words
    assert f"{result.metrics['splits']['test']['auc']:.2f}" in text


def test_the_deletion_test_can_be_switched_off_and_is_not_run_where_it_takes_long(
    finished: tuple[FinetuneResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = finished
    cohort = read_cohort(result.folder.parent / "data" / "cohort.csv")
    settings = replace(SETTINGS, epochs=2)
    none = finetune_report(result, cohort, replace(settings, deletion_slides=0)).read_text(encoding="utf-8")
    assert "Deletion test" not in none
    monkeypatch.setattr("longvit.report.deletion.MOST_MULTIPLICATIONS", 1.0)
    text = finetune_report(result, cohort, settings).read_text(encoding="utf-8")
    assert "--deletion-slides 8 runs it" in text
    asked = finetune_report(result, cohort, replace(settings, deletion_slides=2)).read_text(encoding="utf-8")
    assert "Mean over 2 held-out slides" in asked


def test_every_evaluated_slide_stands_in_the_table_with_its_thumbnail(finished: tuple[FinetuneResult, str]) -> None:
    _, text = finished
    rows = re.findall(r"<tr[^>]*><td><img src=\"data:image/jpeg[^>]*></td><td>(s\d+)</td>", text)
    assert len(rows) == len(set(rows)) == 8  # 4 val, 4 test


def test_a_run_in_which_slides_were_lost_says_which_and_why(tmp_path: Path) -> None:
    cohort = study(tmp_path / "data")
    (tmp_path / "data" / "s02.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    settings = replace(SETTINGS, epochs=1, controls=False)
    result = finetune(cohort, tmp_path / "out", settings)
    text = finetune_report(result, cohort, settings).read_text(encoding="utf-8")
    assert "Problems" in text
    assert "s02" in text
    assert "1 slide could not be read" in text


def test_canvases_too_large_to_look_at_are_left_out(
    finished: tuple[FinetuneResult, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = finished
    monkeypatch.setattr("longvit.report.finetuning.MAX_HEATMAP_SIDE_PX", 32)
    cohort = study(tmp_path / "data")
    text = finetune_report(result, cohort, replace(SETTINGS, epochs=2)).read_text(encoding="utf-8")
    assert "data:image/jpeg" not in text
    assert "Predictions" in text


def test_with_more_slides_than_thumbnails_the_telling_ones_are_still_shown(
    finished: tuple[FinetuneResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = finished
    monkeypatch.setattr("longvit.report.finetuning.MAX_THUMBNAILS", 3)
    monkeypatch.setattr("longvit.report.finetuning.MAX_ROWS", 5)
    cohort = read_cohort(result.folder.parent / "data" / "cohort.csv")
    text = finetune_report(result, cohort, replace(SETTINGS, epochs=2)).read_text(encoding="utf-8")
    assert "data:image/jpeg" not in text
    assert "Patch contributions" in text
    assert "The first 5 rows are shown" in text
