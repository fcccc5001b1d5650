"""The reports of runs whose sites share stain and label name the shortcut; those of mixed sites do not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.external.cohorts import longvit
from tests.finetuning.study import write_study

TRAIN = (
    *("--model", "longvit_tiny_patch32", "--side-px", "64", "--epochs", "4", "--lr", "1e-3", "--batch-size", "4"),
    *("--device", "cpu", "--threads", "1", "--num-workers", "1", "--bootstrap", "0"),
    *("--no-controls", "--deletion-slides", "0"),
)
SENTENCE = "A shortcut is likely: the site predicts the label"


def write_sites(folder: Path, name: str, *, is_linked: bool) -> Path:
    """A cohort whose site is that of the class (and so of the stain), or shared by the classes; one slide a patient."""
    table = write_study(folder, n=48, split=False)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "label", "site", "split"])
        for i, row in enumerate(rows):
            site = row["label"] == "stained" if is_linked else i % 2 == 0
            split = "train" if i < 20 else "test"
            writer.writerow([f"{name}{i}", row["slide_id"], row["label"], "north" if site else "south", split])
    return path


@pytest.mark.slow
def test_reports_name_a_planted_shortcut_and_no_other(tmp_path: Path) -> None:
    linked = write_sites(tmp_path / "slides", "linked", is_linked=True)
    mixed = write_sites(tmp_path / "slides", "mixed", is_linked=False)
    for table, is_named in ((linked, True), (mixed, False)):
        out = tmp_path / table.stem
        for run, more in ((out, ()), *([(out / "cv", ("--folds", "2"))] if is_named else [])):
            code, _, error = longvit("train", table, "--out", run, *more, *TRAIN)
            assert code == 0, error
            stored = json.loads((run / ("crossval.json" if more else "metrics.json")).read_text())
            assert (stored["shortcut"] is not None) is is_named
            assert (SENTENCE in (run / "index.html").read_text()) is is_named
        assert (SENTENCE in (out / "MODEL_CARD.md").read_text()) is is_named
        b = tmp_path / "b" / table.stem
        predict = ("--overlap", "allow", "--device", "cpu", "--threads", "1", "--bootstrap", "0")
        code, _, error = longvit("predict", out, table, "--out", b, *predict)
        assert code == 0, error
        page = (b / "external" / "index.html").read_text()
        assert page.count(f": a{SENTENCE[1:]}") == (2 if is_named else 0)  # of B, and within A
