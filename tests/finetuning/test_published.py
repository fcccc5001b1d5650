"""`longvit tables` and `recipes`: published metrics as published, measured ones only from runs, a recipe per cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.conftest import shared

from longvit.cli import main
from longvit.config import RECIPES, load_settings
from longvit.errors import InputError
from longvit.finetuning.paper_tables import (
    COHORTS,
    RESOLUTIONS_PX,
    best_published,
    measured_cells,
    metric_text,
    paper_tables,
    published_rows,
)
from longvit.finetuning.settings import FinetuneSettings

CELLS = [
    (task, cohort, px)
    for n, task in ((1, "subtyping"), (2, "survival"))
    for cohort in COHORTS[n]
    for px in RESOLUTIONS_PX
]


def crossval(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "cell": "table1/brca/1024",
        "task": "subtyping",
        "figure": "auc",
        "mean": 0.8,
        "sd": 0.05,
        "ddof": 1,
        "folds": [{"fold": str(k)} for k in range(10)],
        **values,
    }
    path = folder / "crossval.json"
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))
    return path


@pytest.mark.shared
def test_published_survival_cells_are_those_of_an_independent_library() -> None:
    metrics = pytest.importorskip("sksurv.metrics")
    table = pd.read_csv(shared("data/mcat/published_survival_predictions.csv.gz"))
    for row in published_rows(2):
        if row.system == "hipt":
            continue
        of = table[(table["system"] == row.system) & (table["inputs"] == row.inputs) & (table["cohort"] == row.cohort)]
        folds = [
            metrics.concordance_index_censored(f["censorship"].to_numpy() == 0, f["survival_months"], f["risk"])[0]
            for _, f in of.groupby("fold")
        ]
        assert (round(float(np.mean(folds)), 3), round(float(np.std(folds)), 3)) == (row.mean, row.sd)
        assert (len(folds), row.ddof) == (row.folds, 0)


def test_tables_hold_every_published_baseline_and_no_longvit_figure() -> None:
    one, two, three, four = paper_tables()
    assert [len(t.rows) for t in (one, two, three, four)] == [6 + 2, 9 + 2, 6, 6]
    assert next(r for r in one.rows if r.system == "HIPT").cells == ("0.874 ± 0.060", "0.952 ± 0.021", "0.980 ± 0.013")
    assert next(r for r in two.rows if r.system == "HIPT").cells == ("0.634", "0.538", "–")
    for table in (one, two, three, four):
        for row in table.rows:
            if row.system.startswith("LongViT"):
                assert row.cells == ("–", "–", "–")


def test_measured_cells_stand_in_both_of_their_tables_and_nowhere_else(tmp_path: Path) -> None:
    crossval(tmp_path / "a" / "deep")
    crossval(tmp_path / "b", cell="table4/luad/32768", figure="c_index", mean=0.61, sd=0.02, ddof=0)
    crossval(tmp_path / "own", cell=None)
    one, two, three, four = paper_tables(measured_cells([tmp_path]))
    filled = {
        (table.number, row.system, column): cell
        for table in (one, two, three, four)
        for row in table.rows
        if row.measured
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell != "–"
    }
    assert filled == {
        (1, "LongViT, measured here, 1,024 px", "brca"): "0.800 ± 0.050",
        (3, "LongViT, measured here, 1,024 px", "brca"): "0.800 ± 0.050",
        (2, "LongViT, measured here, 32,768 px", "luad"): "0.610 ± 0.020",
        (4, "LongViT, measured here, 32,768 px", "luad"): "0.610 ± 0.020",
    }


def test_cell_measured_twice_shows_both_and_one_file_named_twice_counts_once(tmp_path: Path) -> None:
    crossval(tmp_path / "a")
    crossval(tmp_path / "b", mean=0.9)
    cells = measured_cells([tmp_path, tmp_path / "a", tmp_path / "a" / "crossval.json"])
    assert len(cells) == 2
    row = next(r for r in paper_tables(cells)[2].rows if r.system.endswith("1,024 px"))
    assert row.cells[0] == "0.800 ± 0.050 | 0.900 ± 0.050"


def test_undefined_figure_is_a_dash(tmp_path: Path) -> None:
    crossval(tmp_path, mean=None, sd=None)
    row = next(r for r in paper_tables(measured_cells([tmp_path]))[2].rows if r.system.endswith("1,024 px"))
    assert row.cells[0] == "–"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"cell": "table1/luad/1024"}, "cell 'table1/luad/1024' is none of the paper's"),
        ({"cell": "table1/brca/1000"}, "is none of the paper's"),
        ({"cell": "brca"}, "is none of the paper's"),
        ({"figure": "c_index"}, "cell table1/brca/1024 is measured by auc, not by c_index"),
        ({"sd": "absent"}, "no key 'sd'"),
        ({"mean": "high"}, "damaged"),
    ],
)
def test_crossval_that_does_not_fit_is_one_line(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    path = crossval(tmp_path, **values)
    with pytest.raises(InputError) as caught:
        measured_cells([tmp_path])
    assert line in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_file_and_absent_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        measured_cells([tmp_path / "nothing"])
    (tmp_path / "crossval.json").write_text('{"cell": ')
    with pytest.raises(InputError, match="damaged"):
        measured_cells([tmp_path])


def test_tables_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = crossval(tmp_path)
    assert main(["tables", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"Table {n}: " in out for n in (1, 2, 3, 4))
    assert "arXiv 2312.03558" in out
    assert "0.800 ± 0.050" in out
    assert str(path) in out
    assert main(["tables", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["number"] for t in found["tables"]] == [1, 2, 3, 4]
    assert found["measured_from"] == []


@pytest.mark.parametrize(("task", "cohort", "side_px"), CELLS)
def test_every_cell_has_a_recipe_with_its_command_hours_and_published_number(
    task: str, cohort: str, side_px: int
) -> None:
    name = f"{task}_{cohort}_{side_px}"
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"--recipe {name}" in head
    assert "TFLOP" in head
    best = best_published(1 if task == "subtyping" else 2, cohort)
    assert metric_text(best.mean, best.sd) in head
    settings = load_settings(FinetuneSettings, name)
    assert (settings.task, settings.side_px, settings.batch_size) == (task, side_px, 8)
    assert settings.cell == f"table{1 if task == 'subtyping' else 2}/{cohort}/{side_px}"
    assert (settings.epochs, settings.warmup_epochs, settings.lr) == (10, 1, 5e-5)
    assert (settings.weight_decay, settings.drop_path) == (0.05, 0.1)
    if side_px == 32768:
        assert settings.slides_per_forward() == 2
    if task == "survival":
        assert (settings.bins, settings.slides, settings.n_bins, settings.alpha) == ("cohort", "first", 4, 0)


def test_recipes_command_lists_all_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(f"{task}_{cohort}_{px}" in out for task, cohort, px in CELLS)
    assert main(["recipes", "subtyping_brca_1024"]) == 0
    assert "side_px: 1024" in capsys.readouterr().out
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"subtyping_rcc_32768", "tiny"} <= {each["name"] for each in listed}
    assert main(["recipes", "subtyping_brca_1025"]) == 2
    assert "did you mean 'subtyping_brca_1024'" in capsys.readouterr().err


def test_a_measured_cell_carries_its_leaks(tmp_path: Path) -> None:
    path = tmp_path / "crossval.json"
    leaking = {"leaks": {"train_val": 1, "train_test": 2, "val_test": 0}}
    keys = {"cell": "table1/brca/1024", "figure": "auc", "mean": 0.8, "sd": 0.1, "ddof": 1, "folds": [leaking, leaking]}
    path.write_text(json.dumps(keys))
    (cell,) = measured_cells([tmp_path])
    assert cell.leaks == 6
    rows = [row for row in paper_tables([cell])[0].rows if row.measured]
    assert rows[0].cells[0] == "0.800 ± 0.100 (6 leaks)"
