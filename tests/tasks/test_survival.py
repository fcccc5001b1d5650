"""Survival as a task: what the CSV must say, patients with several slides, the bins' edges, a run from end to end."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.finetuning.study import SETTINGS as QUICK

import longvit
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.finetuning.run import finetune
from longvit.report.finetuning import finetune_report
from longvit.slide_jobs.predict import predict_slides
from longvit.tasks.survival import Survival, risk_of
from longvit.tasks.task import Predictions

SETTINGS = replace(QUICK, task="survival", lr=3e-3)


def rows(cells: list[dict[str, str]], split: str = "train") -> tuple[SlideRow, ...]:
    return tuple(
        SlideRow(c.get("case", f"P{i}"), f"s{i}", "", Path("none"), split=split, extra_columns=c)
        for i, c in enumerate(cells)
    )


def task(cells: list[dict[str, str]], **settings: object) -> Survival:
    return Survival(Cohort(rows(cells), (), "c.csv"), replace(SETTINGS, **settings))  # type: ignore[arg-type]


EIGHT = [{"survival_months": str(m), "event": "1"} for m in (1, 2, 3, 4, 5, 6, 7, 8)]


def test_censorship_is_the_opposite_of_event_and_only_its_name_tells() -> None:
    mirrored = [{"survival_months": c["survival_months"], "censorship": "0"} for c in EIGHT]
    assert np.array_equal(task(EIGHT).times(rows(EIGHT)).event, task(mirrored).times(rows(mirrored)).event)
    renamed = [{"survival_months": c["survival_months"], "dead": "1"} for c in EIGHT]
    assert task(renamed, event_column="dead").times(rows(renamed)).event.all()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            {"survival_months": "-1"},
            {},
            r"c.csv: slide s7: survival_months is '-1'; it must be a number of",
        ),
        ({"survival_months": "nan"}, {}, r"slide s7: survival_months is 'nan'"),
        ({"event": "2"}, {}, r"slide s7: event is '2'; it must be 0 or 1"),
        ({"censorship": "1"}, {}, r"slide s7: event and censorship contradict each other"),
        ({}, {"event_column": "dead"}, r"c.csv: no column 'dead'"),
        ({}, {"time_column": "os"}, r"c.csv: no column 'os'; name it with --time-column"),
    ],
)
def test_what_makes_no_sense_names_the_slide(change: dict[str, str], settings: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task([*EIGHT[:7], EIGHT[7] | change], **settings)


def test_neither_event_nor_censorship_is_asked_for_and_not_guessed() -> None:
    with pytest.raises(InputError, match=r"no column 'event' .* or 'censorship' .*the numbers do not tell"):
        task([{"survival_months": "3", "vital": "1"}] * 8)


def test_all_censored_has_nothing_to_learn() -> None:
    with pytest.raises(InputError, match=r"c.csv: all 8 survival times are censored"):
        task([c | {"event": "0"} for c in EIGHT])


def test_a_patient_has_one_outcome() -> None:
    with pytest.raises(InputError, match=r"slides s6 and s7 of patient A have different times or events"):
        task([*EIGHT[:6], EIGHT[6] | {"case": "A"}, EIGHT[7] | {"case": "A"}])


def test_edges_come_from_the_training_patients_unless_asked_otherwise() -> None:
    late = tuple(
        replace(row, split="test", slide_id=f"t{i}", case_id=f"Q{i}")
        for i, row in enumerate(rows([{"survival_months": "99", "event": "1"}] * 8))
    )
    cohort = Cohort((*rows(EIGHT), *late), (), "c.csv")
    assert np.allclose(Survival(cohort, SETTINGS).edges[1:-1], np.quantile(range(1, 9), [0.25, 0.5, 0.75]))
    everyone = Survival(cohort, replace(SETTINGS, bins="cohort", n_bins=2))
    assert everyone.edges[1] > 8


def test_slides_of_a_patient_are_averaged_or_only_the_first_is_used() -> None:
    cells = [c | {"case": "A"} if i in (0, 1) else c for i, c in enumerate(EIGHT)]
    cells[1] = cells[1] | {"survival_months": "1"}
    of = task(cells)
    logits = np.random.default_rng(0).normal(size=(8, 4))
    patients, risk, curves = of.by_patient(Predictions(rows(cells), logits, 0.0))
    assert [row.case_id for row in patients] == ["A", *(f"P{i}" for i in range(2, 8))]
    assert np.isclose(risk[0], risk_of(logits[:2]).mean())
    assert curves is not None
    assert np.allclose(-curves.sum(1), risk)
    first = Survival.select(Cohort(rows(cells), (), "c.csv"), replace(SETTINGS, slides="first"))
    assert [row.slide_id for row in first.rows] == ["s0", *(f"s{i}" for i in range(2, 8))]
    assert "first slide of each patient: 7 of 8 slides" in first.notes[-1]


def write_cohort(folder: Path, n: int = 48) -> Path:
    """Dark images die early; every fourth patient is censored."""
    lines = ["case_id,slide_id,survival_months,censorship"]
    for i in range(n):
        rng = np.random.default_rng(i)
        months = 2 + i
        pixels = np.clip(rng.normal(60 + 3 * i, 10, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"s{i:02d}.png")
        lines.append(f"P{i},s{i:02d},{months},{int(i % 4 == 3)}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.mark.parametrize("loss", ["nll", "cox"])
def test_it_learns_and_predicts_from_end_to_end(tmp_path: Path, loss: str) -> None:
    cohort = read_cohort(write_cohort(tmp_path), label_column=None)
    settings = replace(SETTINGS, survival_loss=loss, epochs=6, forward_batch=4)
    result = finetune(cohort, tmp_path / "run", settings)
    test = result.metrics["splits"]["test"]
    assert test["c_index"] > 0.8
    assert result.metrics["controls"]["mean_colour"]["test"]["c_index"] > 0.9  # the risk is the darkness
    assert test["c_index_interval"][0] <= test["c_index"] <= test["c_index_interval"][1]
    assert "test: c-index" in result.summary()
    with result.predictions_csv.open() as file:
        lines = list(csv.DictReader(file))
    model = longvit.load_model(result.model_dir)
    assert model.config.task == "survival"
    slides = find_slides([tmp_path / "s00.png"])
    predicted = predict_slides(slides, tmp_path / "predicted", model, pictures=True, heatmaps=("png",))
    with (tmp_path / "predicted" / "predictions.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert set(line) >= {"risk"} | {c for c in lines[0] if c.startswith("survival_") and c != "survival_months"}
    assert (tmp_path / "run" / "kaplan_meier_test.png").exists()
    (record,) = predicted.records
    assert record["heatmaps"]["measurement"] == "contribution to risk"
    assert record["heatmaps"]["meaning"]["score"] == pytest.approx(float(line["risk"]), abs=1e-5)
    assert record["picture"] == "s00.png"
    text = finetune_report(result, cohort, settings).read_text(encoding="utf-8")
    assert "Mean over 8 held-out slides, in risk;" in text
