"""Splits, curves and fits of `benchmarks/evidence.py`: a wrong split or a bold fit must not become evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import ROOT, shared

from longvit.data.cohort import Cohort, SlideRow


def made_cohort() -> Cohort:
    """Three sources of 8 units each, of which every second one is positive; a unit has two slides."""
    rows = [
        SlideRow(
            f"{fold}{unit}",
            f"{fold}{unit}_{i}",
            ("negative", "positive")[unit % 2],
            Path("x.png"),
            fold=fold,
            extra_columns={"unit": f"{fold}{unit}"},
        )
        for fold in "abc"
        for unit in range(8)
        for i in range(2)
    ]
    return Cohort(tuple(rows), ("negative", "positive"))


def test_smaller_shares_are_part_of_larger_ones_and_never_of_the_held_out_source() -> None:
    from evidence_systems import training_rows

    cohort, before = made_cohort(), set[str]()
    for share, units in ((0.01, 2), (0.25, 4), (0.5, 8), (1.0, 16)):
        rows = training_rows(cohort, "b", share, seed=3)
        names = {row.slide_id for row in rows}
        assert before <= names
        assert len(names) == 2 * units  # whole units, as many of each class
        assert {row.label for row in rows} == set(cohort.classes)
        assert "b" not in {row.fold for row in rows}
        before = names
    assert {r.slide_id for r in training_rows(cohort, "b", 0.5, 4)} != {
        r.slide_id for r in training_rows(cohort, "b", 0.5, 3)
    }


def test_every_trial_is_once_in_the_list_and_a_control_is_not_repeated_along_an_axis_without_effect() -> None:
    from evidence import AXES, GRIDS, MODEL, WEIGHTS, trial_of, trials_of
    from evidence_systems import SYSTEMS

    grid = GRIDS["oral_scc"]
    trials = trials_of("oral_scc", grid, SYSTEMS, list(AXES), 0, MODEL, WEIGHTS)
    assert len(trials) == len(set(trials))
    count = {system: sum(t.system == system for t in trials) / 3 for system in SYSTEMS}
    assert count["mean_colour"] == count["attention_mil"] == 1 + 3 + 2
    assert count["longvit_pretrained"] == 1 + 3 + 2 + 3
    assert count["longvit_random"] == 1 + 3 + 2 + 3 + 2
    assert trial_of("oral_scc", grid, "longvit_random", "0", 0, MODEL, WEIGHTS) in trials
    assert {t.weights for t in trials if t.system in ("longvit_random", "mean_colour")} == {None}


def test_a_power_law_is_found_and_nothing_else_is_called_one() -> None:
    from evidence import Point, PowerLaw, crossing, fit

    def points(aucs: list[float]) -> list[Point]:
        return [Point(50 * 2**i, auc, 0.0, 3) for i, auc in enumerate(aucs)]

    law = fit(points([1 - 0.9 * (50 * 2**i) ** -0.3 for i in range(4)]))
    assert law is not None
    assert (law.a, law.b, law.r2) == pytest.approx((0.9, 0.3, 1.0))
    assert fit(points([0.6, 0.7])) is None  # two sizes
    assert fit(points([0.8, 0.7, 0.6])) is None  # worse with more
    assert fit(points([0.6, 0.9, 0.65, 0.9])) is None  # no line
    assert fit(points([0.7, 0.7, 0.7])) is None
    other = PowerLaw(0.5, 0.1, 1.0)
    n = crossing(law, other)
    assert n is not None
    assert law.auc(n) == pytest.approx(other.auc(n))
    assert law.auc(2 * n) > other.auc(2 * n)
    assert crossing(other, law) is None


def rows_of(system: str, aucs: dict[float, float], **fixed: Any) -> list[dict[str, Any]]:
    from evidence import GRIDS, MODEL, WEIGHTS, trial_of
    from paired import scored

    rng, rows = np.random.default_rng(0), []
    for share, separation in aucs.items():
        for fold in "023":
            trial = trial_of("oral_scc", GRIDS["oral_scc"], system, fold, 0, MODEL, WEIGHTS, share=share)
            labels = np.arange(1000) % 2
            columns = scored(f"oral_scc {fold}", labels, separation * labels + rng.standard_normal(1000))
            rows.append(json.loads(json.dumps(vars(trial))) | {"slides": 400 * share, "parameters": 9} | columns)
    return rows


def test_the_table_has_the_paired_gap_at_the_base_and_states_what_is_extrapolated() -> None:
    from evidence import GRIDS, curve, table

    ours = rows_of("longvit_random", {0.125: 0.36, 0.25: 0.74, 0.5: 1.09, 1.0: 1.4})
    control = rows_of("mean_colour", {1.0: 0.2})
    grid = GRIDS["oral_scc"]
    text = table([*ours, *control], {"oral_scc": grid}, [], 5)
    (line,) = [line for line in text.splitlines() if "mean_colour" in line]
    low = float(line.split("[")[1].split(",")[0])
    assert 0.1 < low < 0.3
    assert "longvit_random: 1 − AUC = " in text
    assert "(fitted, extrapolates)" in text
    assert [point.x for point in curve(ours, "oral_scc", grid, "longvit_random", "slides")] == [50, 100, 200, 400]
    assert len(curve(control, "oral_scc", grid, "mean_colour", "epochs")) == 1


@pytest.mark.slow
@pytest.mark.shared
def test_the_command_trains_every_kind_of_system_and_resumes(tmp_path: Path) -> None:
    shared("slides/osteosarcoma/cohort.csv")
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "--quick", "--out", str(tmp_path / "r.json")]
    command += ["--fields", "osteosarcoma", "--axes", "slides", "--work", str(tmp_path / "work")]
    command += ["--systems", "longvit_random", "mean_pooling", "stain_texture"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 18
    assert not [row["failed"] for row in rows if "failed" in row]
    assert {row["slides"] for row in rows if row["share"] == 1 and row["fold"] == "Case-3"} == {41}
    second = subprocess.run([*command, "--plot"], capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
    assert "18 of 18 trials" in second.stdout
    assert (tmp_path / "r.png").stat().st_size > 1000
