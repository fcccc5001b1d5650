"""The verdict: limits, reasons in order of weight, and a pass that has none."""

from __future__ import annotations

from longvit.quality.focus import Focus
from longvit.quality.verdict import verdict_of

SHARP = Focus(0.2, 0.0, 16)


def test_nothing_found_is_a_pass_without_a_reason() -> None:
    verdict = verdict_of(5.0, SHARP, {"folds": 0.019, "pen": 0.0}, 0)
    assert (verdict.grade, verdict.reasons, verdict.badness) == ("pass", (), 0.0)


def test_limits_of_warning_and_failure_are_inclusive() -> None:
    assert verdict_of(5.0, SHARP, {"folds": 0.02}, 0).grade == "warn"
    assert verdict_of(5.0, SHARP, {"folds": 0.25}, 0).grade == "fail"
    assert verdict_of(5.0, Focus(-1.0, 0.25, 16), {}, 0).grade == "warn"
    assert verdict_of(5.0, Focus(-1.0, 0.5, 16), {}, 0).grade == "fail"
    assert verdict_of(0.099, SHARP, {}, 0).grade == "fail"
    assert verdict_of(5.0, SHARP, {}, 3).reasons == ("3 unreadable tiles, filled with background",)


def test_the_worst_reason_comes_first_and_a_worse_slide_sorts_first() -> None:
    both = verdict_of(5.0, Focus(-1.0, 0.9, 10), {"folds": 0.05, "pen": 0.4}, 0)
    assert both.reasons == ("9 of 10 probes out of focus", "pen on 40 % of the tissue", "folds on 5 % of the tissue")
    assert both.badness > verdict_of(5.0, SHARP, {"pen": 0.4}, 0).badness
