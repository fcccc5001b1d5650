"""Tables with any cells: each reader of a CSV gives its rows, or refuses in one line."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.faults.fuzz import nasty_text, result_or_input_error

COLUMNS = ("slide_id", "case_id", "path", "label", "mpp", "split", "fold", "site", "wsi", "train", "val", "test",
    "event",
           "survival_months", "risk", "system", "cohort", "test_auc", "prob_a", "prob_b", "Slide ID", "")  # fmt: skip
FITTING = {
    "slide_id": ["a", "b", "c.svs"], "case_id": ["P1", "P2"], "label": ["a", "b"], "mpp": ["0.5", ""], "fold": ["0",
    "1"],
    "split": ["train", "val", "test"], "event": ["0", "1"], "survival_months": ["1.5", "30"], "risk": ["0.1", "-2"],
    "prob_a": ["0.25", "0.75"], "prob_b": ["0.75", "0.25"], "test_auc": ["0.9"], "path": ["a.svs", "b.tif"],
}  # fmt: skip


@st.composite
def csv_files(draw: st.DrawFn, columns: tuple[str, ...] = COLUMNS) -> bytes:
    """A CSV that is nearly right: some cells of nasty text, quoted or not, in some encoding."""
    names = draw(st.lists(st.sampled_from(columns), min_size=0, max_size=7, unique=True))
    cells = [st.one_of(st.sampled_from(FITTING.get(name, ["a", "b", "1"])), nasty_text()) for name in names]
    rows = draw(st.lists(st.tuples(*cells), max_size=6))
    delimiter = draw(st.sampled_from([",", ",", ";", "\t"]))
    quoted = draw(st.booleans())

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted else text

    lines = [delimiter.join(names), *(delimiter.join(cell(text) for text in row) for row in rows)]
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), errors="replace")


@given(data=csv_files())
def test_any_table_is_read_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.data.table import read_table

    path = _write(tmp_path, data)
    found = result_or_input_error(lambda: read_table(path), path)
    if found is not None:
        columns, rows = found
        assert rows
        assert all(set(cells) <= set(columns) for _, cells in rows)


@given(data=csv_files(("slide_id", "case_id", "path", "label", "mpp", "split", "fold")))
def test_any_manifest_is_a_cohort_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.data.cohort_table import read_cohort
    from longvit.data.splits import split_by_patient

    path = _write(tmp_path, data)
    cohort = result_or_input_error(lambda: read_cohort(path, need_files=False), path)
    if cohort is not None:
        assert len(cohort.classes) >= 2
        assert all(row.label in cohort.classes for row in cohort.rows)
        assert all(row.mpp is None or (row.mpp > 0 and math.isfinite(row.mpp)) for row in cohort.rows)
        split = result_or_input_error(lambda: split_by_patient(cohort))
        assert split is None or len(split.rows) == len(cohort.rows)


@given(data=csv_files(("slide_id", "path", "wsi", "mpp")))
def test_any_list_of_slides_is_listed_whole_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.data.slide_list import find_slides
    from longvit.data.table import read_table

    path = _write(tmp_path, data)
    found = result_or_input_error(lambda: find_slides([path]))
    if found is not None:
        ids = [slide.slide_id for slide in found]
        assert len(set(ids)) == len(ids)
        assert len(ids) <= len(read_table(path)[1])


@given(data=csv_files(("train", "val", "test", "slide_id")))
def test_any_table_of_folds_is_read_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.data.folds import read_folds

    path = _write(tmp_path, data, "splits_0.csv")
    found = result_or_input_error(lambda: read_folds(path), path)
    if found is not None:
        assert all(fold.train for fold in found)


@given(data=csv_files(("case_id", "slide_id", "label", "prob_a", "prob_b", "split", "fold", "system")))
def test_any_predictions_are_evaluated_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.finetuning.evaluate import evaluate

    path = _write(tmp_path, data)
    found = result_or_input_error(lambda: evaluate(path, resamples=10), path)
    assert found is None or found.groups


@given(
    data=csv_files(("case_id", "slide_id", "risk", "survival_months", "event", "split", "fold", "cohort", "test_auc"))
)
def test_any_survival_predictions_are_evaluated_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.finetuning.evaluate import evaluate

    path = _write(tmp_path, data)
    found = result_or_input_error(lambda: evaluate(path, resamples=10), path)
    assert found is None or found.groups


@given(data=csv_files(("case_id", "slide_id", "risk", "prob_a", "label", "event")))
def test_any_table_of_omics_is_read_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    from longvit.comparison.omics import read_omics

    path = _write(tmp_path, data)
    result_or_input_error(lambda: read_omics(path), path)


def _write(folder: Path, data: bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
