"""Slides whose patch contributions a report shows: the best and the worst prediction of every task."""

from __future__ import annotations

from longvit.report.contributions import examples_of
from longvit.report.predictions import PredictedSlides


def test_numbers_show_the_nearest_and_the_farthest_prediction() -> None:
    lines = tuple(
        {"slide_id": f"s{i}", "case_id": "p", "value": str(v), "predicted_value": str(p)}
        for i, (v, p) in enumerate([(1, 3), (5, 5.5), (2, 9)])
    )
    near, far = examples_of(PredictedSlides(lines, ()), lines, ["age: mean 1, SD 1"])
    assert (near.slide_id, far.slide_id) == ("s1", "s2")
    assert far.title == "s2: predicted 9, labelled 2"
    assert near.output is None  # the one output


def test_labels_show_the_output_of_the_column_and_skip_missing_ones() -> None:
    cells = [("1", "", 0.9, 0.99), ("0", "1", 0.3, 0.1), ("", "0", 0.5, 0.4)]
    lines = tuple(
        {"slide_id": f"s{i}", "label_a": a, "label_b": b, "probability_a": str(p), "probability_b": str(q)}
        for i, (a, b, p, q) in enumerate(cells)
    )
    right, wrong = examples_of(PredictedSlides(lines, ()), lines, ["a", "b"])
    assert (right.slide_id, right.output) == ("s0", 0)
    assert (wrong.slide_id, wrong.output) == ("s1", 1)
    assert wrong.description == "the most confident wrong label (b)"


def test_grades_show_the_cut_of_the_task_and_classes_the_predicted_class() -> None:
    lines = tuple(
        {"slide_id": f"s{i}", "label": label, "prediction": guess, "prob_0": "0.4", "prob_1": "0.6"}
        for i, (label, guess) in enumerate([("0", "1"), ("1", "1")])
    )
    predicted = PredictedSlides(lines, ("0", "1"))
    right, wrong = examples_of(predicted, lines, ["0 | 1"])
    assert (right.slide_id, wrong.slide_id) == ("s1", "s0")
    assert right.output is None
    assert examples_of(predicted, lines, ["0", "1"])[0].output == 1
    followed = ({"slide_id": "s", "case_id": "p", "survival_months": "1", "event": "1", "risk": "0"},)
    assert examples_of(PredictedSlides(followed, ()), followed, ["bin"]) == []
