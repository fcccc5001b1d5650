"""The recipes of the baselines: each can be read, and names the systems of its column of the paper's tables."""

from __future__ import annotations

import pytest

from longvit.comparison.settings import ComparisonSettings
from longvit.config import load_settings, recipe_names, recipe_path
from longvit.finetuning.paper_tables import published_rows

BASELINES = [name for name in recipe_names() if name.startswith("baselines_")]


def test_every_column_has_a_recipe() -> None:
    assert len(BASELINES) == 6


@pytest.mark.parametrize("name", BASELINES)
def test_recipe_names_the_systems_of_its_column(name: str) -> None:
    settings = load_settings(ComparisonSettings, recipe_path(name))
    assert settings.cell is not None
    table, cohort = settings.cell.split("/")
    published = {(r.system, r.inputs) for r in published_rows(int(table[-1])) if r.cohort == cohort}
    ours = {(each.system, each.inputs) for each in settings.system_specs()}
    assert published <= ours
    assert ours - published <= {("hipt", "image")}  # no figure for UCEC
    assert f"--recipe {name} " in recipe_path(name).read_text()
