"""Cells are those of the tables, each with its protocol and recipe; a wrong clone is refused by its counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.reproduce.checkouts import hipt_checkout, mcat_checkout

from longvit.cli import main
from longvit.comparison.settings import ComparisonSettings
from longvit.config import load_settings
from longvit.errors import InputError
from longvit.finetuning.paper_tables import published_rows
from longvit.finetuning.settings import FinetuneSettings
from longvit.reproduce.cells import cell_named, cells
from longvit.reproduce.cost import cell_cost
from longvit.reproduce.protocol import commit_of, read_protocol


def test_every_cell_and_every_published_row_has_a_name() -> None:
    names = [cell.name for cell in cells()]
    assert len(names) == len(set(names)) == 4 * 15 + len(published_rows(1)) + len(published_rows(2))
    baselines = [cell.published for cell in cells() if cell.system is not None]
    assert baselines == [
        row
        for table in (1, 2)
        for cohort in dict.fromkeys(row.cohort for row in published_rows(table))
        for row in published_rows(table)
        if row.cohort == cohort
    ]


def test_recipe_of_a_cell_measures_that_cell() -> None:
    for cell in cells():
        if cell.system is None:
            settings = load_settings(FinetuneSettings, cell.recipe)
            assert (settings.cell, settings.side_px, settings.task) == (cell.run_name, cell.side_px, cell.task)
        else:
            compared = load_settings(ComparisonSettings, cell.recipe)
            assert compared.cell == f"table{cell.table}/{cell.cohort}"
            assert cell.system in compared.systems


def test_misspelt_cell_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean table1/brca/clam_sb"):
        cell_named("table1/brca/clam-sb")


@pytest.mark.shared
def test_counts_of_the_published_files_are_the_known_ones(tmp_path: Path) -> None:
    clones = [hipt_checkout(tmp_path / "HIPT"), mcat_checkout(tmp_path / "MCAT")]
    for cell in cells():
        if cell.table < 3 and (cell.side_px == 1024 or cell.system in ("hipt", "mcat")):
            protocol = read_protocol(cell, clones)  # refuses any other count
            assert protocol.notes == ()
            assert cell.slides in (None, len(protocol.slides))


@pytest.mark.shared
def test_clone_with_other_folds_or_at_another_commit_is_seen(tmp_path: Path) -> None:
    cell, clone = cell_named("table1/rcc/1024"), hipt_checkout(tmp_path / "HIPT")
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    (clone / ".git" / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/master\n")
    assert commit_of(clone) == "a" * 40
    assert "at commit aaaaaaa" in read_protocol(cell, [clone]).notes[0]
    (clone / cell.protocol.folds / "splits_9.csv").unlink()
    with pytest.raises(InputError, match=r"9 folds .*, not 10 as in mahmoodlab/HIPT at 780fafa"):
        read_protocol(cell, [clone])


def test_command_without_a_clone_says_what_to_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table2/luad/4096"]) == 2
    assert "git clone https://github.com/mahmoodlab/MCAT && git -C MCAT checkout b9cca63" in capsys.readouterr().err
    assert main(["reproduce", "table2/luad/4096", "--protocol", str(tmp_path)]) == 2
    assert "no folder splits/5foldcv/tcga_luad in it" in capsys.readouterr().err


def test_list_without_a_clone_names_all_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["cell"] for entry in listed] == [cell.name for cell in cells()]
    assert {entry["cost"] is None for entry in listed} == {True}


@pytest.mark.shared
def test_hours_are_those_of_the_work_counted_by_hand(tmp_path: Path) -> None:
    from longvit.plan import PlanSettings, plan

    protocol = read_protocol(cell_named("table1/brca/4096"), [hipt_checkout(tmp_path)])
    step = plan(PlanSettings(4096))
    seconds = 0.0
    for fold in protocol.fold_sizes():
        training, forward = step.training_floor.seconds, step.forward_floor.seconds
        seconds += 10 * (fold.train * training + fold.evaluated * forward)  # 10 epochs
        seconds += 2 * (fold.train + fold.evaluated) * forward  # the random and the pretrained frozen encoder
    cost = cell_cost(protocol, None, disk_gb=50)
    assert cost.hours["h100"] == pytest.approx(seconds / 3600)
    assert cost.canvas_bytes == 875 * 3 * 4096**2
    assert cost.disk_bytes == cost.canvas_bytes + 50 * 2**30


@pytest.mark.shared
def test_card_that_is_too_small_for_a_batch_is_given_fewer_images(tmp_path: Path) -> None:
    protocol = read_protocol(cell_named("table1/brca/32768"), [hipt_checkout(tmp_path)])
    memory = cell_cost(protocol, None, disk_gb=50).memory
    assert memory == {"h100": "recompute + offload", "v100": "recompute + offload, forward_batch 1"}
    smaller = replace(load_settings(FinetuneSettings, protocol.cell.recipe), side_px=1024)
    assert cell_cost(protocol, None, disk_gb=50, settings=smaller).memory["v100"] == "kept layers"
