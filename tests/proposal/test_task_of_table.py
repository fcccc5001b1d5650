"""The task of a table by its columns: a wrong one would train on the wrong label, or be refused by train."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvit.proposal.task_of_table import task_of_table
from longvit.tasks.settings import TaskSettings


@pytest.mark.parametrize(
    ("header", "row", "label_column", "label_columns", "task"),
    [
        ("slide_id,label", "a,luad", "label", ("label",), "subtyping"),
        ("slide_id,label", "a,2", "label", ("label",), "subtyping"),
        ("slide_id,label", "a,2.5", "label", ("label",), "regression"),
        ("slide_id,age", "a,61.5", "age", ("label",), "regression"),
        ("slide_id,age", "a,61.5", "label", ("age",), "regression"),
        ("slide_id,survival_months,event", "a,12,1", "label", ("label",), "survival"),
        ("slide_id,label,survival_months,event", "a,luad,12,1", "label", ("label",), "subtyping"),
        ("slide_id,survival_months,event", "a,12,1", "grade", ("label",), "subtyping"),  # train names the column
        ("slide_id,MSI,BRAF", "a,1,0", "label", ("MSI", "BRAF"), "multilabel"),
        ("slide_id,MSI", "a,MSI-H", "label", ("MSI=MSI-H",), "multilabel"),
        ("slide_id,label", "a,", "label", ("label",), "subtyping"),
    ],
)
def test_columns_suggest_the_task(
    header: str, row: str, label_column: str, label_columns: tuple[str, ...], task: str, tmp_path: Path
) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(f"{header}\n{row}\n")
    found, why = task_of_table(table, label_column, TaskSettings(label_columns=label_columns))
    assert found.task == task
    assert why
    if task == "regression":
        assert found.label_columns == (("age",) if "age" in header else ("label",))
