"""The sentence on a shortcut in a run's report: planted ones are named, clean cohorts raise no alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.sites.made import Made, made, write

from longvit.data.cohort import SlideRow
from longvit.sites.check import site_check
from longvit.sites.shortcut import likely_shortcut


def rows_of(data: Made) -> list[SlideRow]:
    return [
        SlideRow(patient, f"s{i}", label, Path(f"s{i}.svs"), site=site)
        for i, (patient, label, site) in enumerate(zip(data.patients, data.labels, data.sites, strict=True))
    ]


def predicted(data: Made, seed: int, *, follows: str) -> np.ndarray:
    """Probabilities (N, 2) that follow the site (as stain does) or the label."""
    wanted = np.array(data.sites) == "B" if follows == "site" else np.array(data.labels) == "tumour"
    z = np.where(wanted, 1.5, -1.5) + np.random.default_rng([seed, 1]).normal(size=len(wanted))
    p = 1 / (1 + np.exp(-z))
    return np.stack([1 - p, p], 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_shortcut_is_named(seed: int) -> None:
    data = made(seed, linked=True, stained=True, n=300)
    p = predicted(data, seed, follows="site")
    text = likely_shortcut(rows_of(data), data.labels, p, are_probabilities=True, seed=seed)
    assert text is not None
    assert text.startswith("A shortcut is likely: the site predicts the label (balanced accuracy ")
    assert "the prediction shows the site beyond the label" in text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("linked", "follows"), [(False, "site"), (False, "label"), (True, "label")])
def test_a_clean_run_raises_no_alarm(linked: bool, follows: str, seed: int) -> None:
    data = made(seed, linked=linked, stained=False)
    p = predicted(data, seed, follows=follows)
    assert likely_shortcut(rows_of(data), data.labels, p, are_probabilities=True, seed=seed) is None


def test_the_sentence_is_that_of_the_site_check(tmp_path: Path) -> None:
    data = made(1, linked=True, stained=True, n=300)
    data.vectors[:, 0] = np.log(predicted(data, 1, follows="site")) @ [-1, 1]
    cohort, table = write(tmp_path, data, probabilities=True)
    p = np.array([line.split(",")[1:] for line in table.read_text().splitlines()[1:]], dtype=float)
    text = likely_shortcut(rows_of(data), data.labels, p, are_probabilities=True)
    assert text == site_check(table, cohort).sentence


def test_too_few_patients_or_one_site_give_no_sentence() -> None:
    data = made(2, linked=True, stained=True, n=150)
    rows, p = rows_of(data), predicted(data, 2, follows="site")
    few = [i for i, row in enumerate(rows) if int(row.case_id[1:]) < 9]
    assert (
        likely_shortcut([rows[i] for i in few], [data.labels[i] for i in few], p[few], are_probabilities=True) is None
    )
    for site in ("A", None):
        alone = [replace(row, site=site) for row in rows]
        assert likely_shortcut(alone, data.labels, p, are_probabilities=True) is None
