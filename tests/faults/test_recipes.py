"""Recipes that mean harm or are mistaken: one line, no code, no hang, whichever settings read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults import hostile_files

from longvit.comparison.settings import ComparisonSettings
from longvit.config import load_settings
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.pretraining.settings import PretrainSettings


@pytest.mark.parametrize("case", hostile_files.small_cases("recipe"))
def test_a_hostile_recipe_is_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\nepochs: *a\n", r"r\.yaml, line 2: an alias \(\*\) is not read"),
        ("? [a]\n: 1\n", r"r\.yaml, line 1: a key that is not text"),
        (f"seed: {2**70}\n", r"r\.yaml.*is too large for a whole number"),
        ("epochs: " + "[" * 5000, r"r\.yaml: nested too deeply"),
        ("epochs: !!binary aGVsbG8=\n", r"r\.yaml: b'hello': a bytes is not a setting"),
    ],
)
def test_the_line_names_the_file_and_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_settings(FinetuneSettings, tmp_path / "r.yaml")


def test_two_thousand_million_slides_in_a_step_are_divided_at_once() -> None:
    """Every number up to it was tried: a recipe with many digits never came back."""
    assert FinetuneSettings(batch_size=2**31 - 1).slides_per_forward() == 1
    assert FinetuneSettings(batch_size=2**30).slides_per_forward() == 16
    assert PretrainSettings(batch_size=2**31 - 1).regions_per_forward() == 1


@pytest.mark.parametrize(("batch", "side"), [(8, 1024), (12, 1024), (6, 4096), (100, 512), (48, 1024)])
def test_the_passes_are_the_largest_divisor_within_the_limit(batch: int, side: int) -> None:
    limit = max(1, 16_384 // (side // 32) ** 2)
    wanted = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit)
    assert FinetuneSettings(batch_size=batch, side_px=side).slides_per_forward() == wanted


@pytest.mark.parametrize("value", ["a: &a [x]\nb: *a", "!!python/name:os.system", "[" * 5000, "{a: {b"])
def test_a_setting_of_a_system_is_read_as_strictly(value: str) -> None:
    with pytest.raises(InputError, match=r"^(--)?set "):
        ComparisonSettings(set=(f"gcn_mil.graph={value}",))
