"""Slides, patients and files that are in both cohorts are found, whatever their spelling; nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError
from longvit.external.overlap import find_overlap, resolve_overlap

SPELLINGS = {
    "capitals": str.swapcase,
    "blank": lambda name: f" {name} ",
    "dash": lambda name: name.replace("-", " - "),
    "underscore": lambda name: name.replace("-", "_"),
    "extension": lambda name: f"{name}.svs",
    "zeros": lambda name: re.sub(r"-(?=\d)", "-00", name),
    "same": lambda name: name,
}


def rows(prefix: str, n: int, first: int = 1) -> list[SlideRow]:
    return [
        SlideRow(f"{prefix}-{first + i // 2}", f"{prefix}-{first + i // 2}-s{i}", "x", Path(f"{prefix}{i}.svs"))
        for i in range(n)
    ]


def hashes(which: list[SlideRow]) -> dict[str, str]:
    return {row.slide_id: f"hash of {row.path}" for row in which}


@pytest.mark.parametrize("seed", range(50))
def test_a_planted_overlap_is_found_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rows("Berlin", 40), rows("Oslo", 30)
    b_content = hashes(b)
    i, k = int(rng.integers(30)), int(rng.integers(40))
    spelling = list(SPELLINGS.values())[seed % len(SPELLINGS)]
    kind = ("patients", "slides", "content")[seed % 3]
    row = b[i]
    if kind == "content":
        b_content[row.slide_id] = hashes(a)[a[k].slide_id]
    elif kind == "slides":
        b[i] = SlideRow(row.case_id, spelling(a[k].slide_id), "x", row.path)
    else:
        b[i] = SlideRow(spelling(a[k].case_id), row.slide_id, "x", row.path)
    overlap = find_overlap(b, b_content, a, hashes(a))
    found = {name: dict(getattr(overlap, name)) for name in ("patients", "slides", "content")}
    expected = {"patients": {}, "slides": {}, "content": {}}
    expected[kind] = {
        "patients": {b[i].case_id: a[k].case_id},
        "slides": {b[i].slide_id: a[k].slide_id},
        "content": {row.slide_id: a[k].slide_id},
    }[kind]
    assert found == expected
    assert overlap.rows(b) == (b[i],)
    cohort = Cohort(tuple(b), ("x",), "b.csv")
    with pytest.raises(
        InputError, match=r"b\.csv: also used in runs/a: 1 (patient|slide|file) \(.*--overlap drop"
    ) as e:
        resolve_overlap(cohort, overlap, "refuse", "runs/a")
    assert "\n" not in str(e.value)
    kept, resolved = resolve_overlap(cohort, overlap, "drop", "runs/a")
    assert len(kept.rows) == 29
    assert resolved.dropped == (b[i].slide_id,)
    assert "1 of 30 slides" in kept.notes[-1]


@pytest.mark.parametrize("seed", range(50))
def test_two_cohorts_without_a_common_patient_raise_no_alarm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(5000)
    style = ("TCGA-{:04d}", "P {:04d}", "{:05d}", "S-1{:04d}.2", "case_{:04d}a")[seed % 5]
    ids = [style.format(n) for n in numbers[:160]]
    cases = [SlideRow(name, f"{name}-{i % 2 + 1}", "x", Path(f"{name}.svs")) for i, name in enumerate(ids)]
    a, b = cases[:80], cases[80:]
    assert not find_overlap(b, hashes(b), a, hashes(a))


def test_a_table_without_patients_is_compared_by_its_slides_with_the_patients_of_the_other() -> None:
    a = [SlideRow("P7", "P7_HE", "x", Path("p.svs"))]
    b = [SlideRow("p7", "p7", "x", Path("q.svs"))]
    assert dict(find_overlap(b, {}, a, {}).patients) == {"p7": "P7"}
    assert dict(find_overlap(a, {}, b, {}).patients) == {"P7": "p7"}


def test_more_overlaps_than_fit_a_line_are_counted() -> None:
    a = rows("Berlin", 40)
    text = find_overlap(a, hashes(a), a, hashes(a)).text()
    assert text.startswith("20 patients (Berlin-1, Berlin-2, ")
    assert "and 15 more), 40 slides (" in text
    with pytest.raises(InputError, match="no slide of another patient stays"):
        resolve_overlap(Cohort(tuple(a), (), "b.csv"), find_overlap(a, {}, a, {}), "drop", "runs/a")
