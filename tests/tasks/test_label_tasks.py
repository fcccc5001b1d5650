"""Regression, ordinal and multilabel: losses against their definition, labels as tables have them, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.splits import split_by_patient
from longvit.errors import InputError
from longvit.tasks.label_cells import merged_strata, quantile_strata
from longvit.tasks.multilabel import Multilabel
from longvit.tasks.ordinal import Ordinal, checked_grades, grade_probabilities, grades_of, probabilities_above
from longvit.tasks.regression import Regression, scale_of
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import Predictions


def cohort_of(cells: Sequence[dict[str, str]], splits: Sequence[str] = (), classes: Sequence[str] = ()) -> Cohort:
    rows = tuple(
        SlideRow(
            case.get("case_id", f"P{i}"),
            f"s{i}",
            case.get("label", ""),
            Path(f"s{i}.svs"),
            split=splits[i] if splits else None,
            extra_columns={key.lower(): value for key, value in case.items()},
            line=i + 2,
        )
        for i, case in enumerate(cells)
    )
    return Cohort(rows, tuple(classes), "cohort.csv")


def settings(task: str, *columns: str) -> TaskSettings:
    return TaskSettings(task=task, label_columns=columns or ("label",))


def ordinal(n: int = 4) -> Ordinal:
    grades = [str(k) for k in range(n)]
    return Ordinal(cohort_of([{"label": grade} for grade in grades], classes=grades), settings("ordinal"))


def test_the_loss_of_a_grade_is_minus_the_logarithm_of_its_probability() -> None:
    task = ordinal(4)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (40, 3)))
    labels = torch.arange(40) % 4
    probabilities = grade_probabilities(logits.numpy())
    assert probabilities.sum(1) == pytest.approx(np.ones(40), abs=1e-12)
    wanted = -np.log(probabilities[np.arange(40), labels.numpy()])
    assert task.losses(logits, {"label": labels}).numpy() == pytest.approx(wanted, abs=1e-12)
    conditional = 1 / (1 + np.exp(-logits.numpy()))  # P(y > k | y ≥ k), by its definition
    above = np.cumprod(conditional, 1)
    assert probabilities_above(logits.numpy()) == pytest.approx(above, abs=1e-12)
    assert probabilities[:, 1] == pytest.approx(above[:, 0] - above[:, 1], abs=1e-12)
    assert (np.diff(above, axis=1) <= 0).all()


def test_grades_have_the_order_of_their_numbers_or_of_keep_and_no_other() -> None:
    def graded(*classes: str, is_ordered: bool = False) -> Cohort:
        return Cohort((), classes, "cohort.csv", is_ordered=is_ordered)

    assert checked_grades(graded("0", "1", "10")) == ("0", "1", "10")
    assert checked_grades(graded("G1", "G10", "G2")) == ("G1", "G2", "G10")
    assert checked_grades(graded("low", "high", is_ordered=True)) == ("low", "high")
    with pytest.raises(InputError, match="high, low, medium are names, of which the order is not known"):
        checked_grades(graded("high", "low", "medium"))
    assert grades_of(ordinal(4).output_names) == ("0", "1", "2", "3")
    with pytest.raises(InputError, match="not cuts"):
        grades_of(["0 | 1", "2 | 3"])


def test_keep_gives_the_order_of_named_grades(tmp_path: Path) -> None:
    lines = ["slide_id,label", *(f"s{i},{grade}" for i, grade in enumerate(["high", "low", "medium"] * 2))]
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    cohort = read_cohort(tmp_path / "cohort.csv", keep=["low", "medium", "high"], need_files=False)
    task = Ordinal(split_by_patient(cohort), settings("ordinal"))  # the split keeps the order
    assert task.output_names == ("low | medium", "medium | high")
    assert task.targets(cohort.rows)["label"].tolist() == [2, 0, 1, 2, 0, 1]


def test_the_scale_of_a_regression_is_that_of_the_training_slides_and_stays_with_the_model() -> None:
    cells = [{"age": text} for text in ("10", "20", "30", "1000")]
    task = Regression(cohort_of(cells, ["train", "train", "train", "test"]), settings("regression", "age"))
    column, mean, sd = scale_of(task.output_names)
    assert (column, mean, sd) == ("age", 20.0, np.std([10.0, 20.0, 30.0]))
    targets = task.targets(task.cohort.rows)["standardised"]
    assert targets[:3].mean() == pytest.approx(0, abs=1e-6)
    logits = targets.astype(np.float64)[:, None]
    assert task.predicted(logits) == pytest.approx([10, 20, 30, 1000], rel=1e-6)
    assert float(task.prediction_cells(logits[3], task.output_names)[0]) == pytest.approx(1000, rel=1e-6)
    assert task.losses(torch.from_numpy(logits), {"standardised": torch.from_numpy(targets)}).abs().max() < 1e-12
    other = Regression(cohort_of(cells, ["train", "test", "test", "train"]), settings("regression", "age"))
    again = other.rescaled(logits, task)
    assert other.predicted(again) == pytest.approx(task.predicted(logits))  # the same numbers, another scale
    with pytest.raises(InputError, match="without mean and SD"):
        scale_of(["age"])


def test_a_missing_label_adds_nothing_to_the_loss_and_no_gradient() -> None:
    cells = [{"MSI": "1", "KRAS": ""}, {"MSI": "0", "KRAS": "wt"}, {"MSI": "NA", "KRAS": "mut"}]
    task = Multilabel(cohort_of(cells), settings("multilabel", "MSI", "KRAS"))
    labels = task.labels(task.cohort.rows)
    assert np.array_equal(labels, [[1, math.nan], [0, 0], [math.nan, 1]], equal_nan=True)
    logits = torch.tensor([[0.5, 7.0], [-1.0, 2.0], [3.0, 0.1]], dtype=torch.float64, requires_grad=True)
    targets = {name: torch.from_numpy(value) for name, value in task.targets(task.cohort.rows).items()}
    losses = task.losses(logits, targets)
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    wanted = [-np.log(p[0, 0]) / 2, (-np.log(1 - p[1, 0]) - np.log(1 - p[1, 1])) / 2, -np.log(p[2, 1]) / 2]
    assert losses.detach().numpy() == pytest.approx(np.array(wanted), abs=1e-12)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == logits.grad[2, 0] == 0
    assert torch.isfinite(logits.grad).all()
    assert task.label_cells(task.cohort.rows[0]) == ("1", "")
    assert task.label_columns() == ("label_MSI", "label_KRAS")


def test_a_named_class_is_1_and_every_other_one_0() -> None:
    cells = [{"MSI": "MSI-H"}, {"MSI": "MSS"}, {"MSI": "MSI-L"}, {"MSI": ""}]
    task = Multilabel(cohort_of(cells), settings("multilabel", "MSI=MSI-H"))
    assert np.array_equal(task.labels(task.cohort.rows)[:, 0], [1, 0, 0, math.nan], equal_nan=True)
    with pytest.raises(InputError, match="line 2: slide s0: MSI is 'msi-h', which differs from 'MSI-H' in spelling"):
        Multilabel(cohort_of([{"MSI": "msi-h"}]), settings("multilabel", "MSI=MSI-H"))


def test_slides_without_any_label_are_left_out_with_a_note() -> None:
    cells = [{"MSI": "1", "KRAS": ""}, {"MSI": "", "KRAS": "nan"}]
    selected = Multilabel.select(cohort_of(cells), settings("multilabel", "MSI", "KRAS"))
    assert [row.slide_id for row in selected.rows] == ["s0"]
    assert "1 of 2 slides have no label in MSI, KRAS and are left out" in selected.notes[0]


@pytest.mark.parametrize(
    ("task", "columns", "cells", "message"),
    [
        ("regression", ("age",), [{"age": "old"}], "line 2: slide s0: age is 'old'; it must be a number"),
        ("regression", ("age",), [{"age": ""}], "line 2: slide s0: no age; fill it in or remove the row"),
        ("regression", ("age",), [{"age": "null"}], "age is 'null', which stands for none"),
        ("regression", ("age",), [{"years": "3"}], "no column 'age' (it has years); name it with --label-columns"),
        ("regression", ("a", "b"), [{"a": "3", "b": "4"}], "takes one of --label-columns, not 2"),
        ("multilabel", ("MSI",), [{"MSI": "MSI-H"}], "it must be 0 or 1 (or empty), or name the class that is 1"),
        ("multilabel", ("MSI",), [{"MSI": "2"}], "MSI is '2'; it must be 0 or 1"),
        ("multilabel", ("MSI", "msi"), [{"MSI": "1"}], "msi is named twice"),
        ("ordinal", (), [{"label": "1"}], "needs two or more grades"),
    ],
)
def test_labels_that_the_task_cannot_read_are_one_line(
    task: str, columns: tuple[str, ...], cells: list[dict[str, str]], message: str
) -> None:
    kind = {"regression": Regression, "multilabel": Multilabel, "ordinal": Ordinal}[task]
    with pytest.raises(InputError) as error:
        kind(cohort_of(cells, classes=["1"]), settings(task, *columns))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_training_slides_that_teach_nothing_are_refused() -> None:
    same = Regression(cohort_of([{"age": "3"}, {"age": "3"}]), settings("regression", "age"))
    with pytest.raises(InputError, match="the same age: nothing to learn"):
        same.check_training(same.cohort.rows, "")
    one = Multilabel(cohort_of([{"MSI": "1"}, {"MSI": ""}]), settings("multilabel", "MSI"))
    with pytest.raises(InputError, match="MSI has only 1 in split train"):
        one.check_training(one.cohort.rows, "")


def test_every_stratum_has_patients_for_each_split() -> None:
    patients = [f"P{i}" for i in range(12)]
    assert len(set(quantile_strata(list(range(12)), patients))) == 4
    assert set(quantile_strata([1, 2], ["P0", "P1"])) == {"all"}
    assert set(merged_strata(["a"] * 9 + ["b", "c", "d"], patients)) == {"a", "others"}
    assert set(merged_strata(["a"] * 11 + ["b"], patients)) == {"a"}
    for n in range(2, 30):
        names = [f"P{i}" for i in range(n)]
        strata = quantile_strata([float(i % 5) for i in range(n)], names)
        assert min(strata.count(name) for name in strata) >= min(3, n)


def test_controls_predict_what_they_were_fitted_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    cells = [
        {"age": str(5 + 2 * a), "label": str(int(np.digitize(a, [-0.7, 0.7]))), "MSI": "" if i % 3 else str(int(a > 0))}
        for i, a in enumerate(x[:, 0])
    ]
    cohort = cohort_of(cells, ["train"] * 60, ["0", "1", "2"])
    for kind, columns, least in ((Regression, ("age",), 0.95), (Ordinal, (), 0.8), (Multilabel, ("MSI",), 0.95)):
        task = kind(cohort, settings(kind.name, *columns))  # type: ignore[abstract]
        logits = task.control(x, cohort.rows, {"train": x, "none": x[:0]})
        assert logits["none"].shape == (0, len(task.output_names))
        assert task.main_metric(Predictions(cohort.rows, logits["train"], math.nan)) > least
