"""Colour tells nothing: a control that finds the class in unmatched fields is at chance on matched ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longvit.synthetic import Field, SyntheticSettings, colour_controls, drawn_fields, make_slides, match_colours

SETTINGS = SyntheticSettings(task="share", side_px=128, square_px=32, block_px=32, pairs=16, patients=1)


def coloured_fields() -> tuple[Field, ...]:
    """Drawn fields, those of tumour darker and bluer."""
    fields = drawn_fields(patients=16, fields=1, side_px=64, nucleus_px=7)
    tint = np.array([0.5, 0.6, 1.0])
    return tuple(
        replace(field, pixels=(field.pixels * tint).astype(np.uint8)) if field.is_tumour else field for field in fields
    )


def test_matched_fields_have_one_distribution_of_colours() -> None:
    fields = coloured_fields()
    axis = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]  # a direction that was not matched

    def spread(fields: Sequence[Field]) -> float:
        levels = np.linspace(0.05, 0.95, 19)
        quantiles = np.array([np.quantile(field.pixels.reshape(-1, 3) @ axis, levels, axis=0) for field in fields])
        return float(np.abs(quantiles - quantiles.mean(0)).mean())

    matched = match_colours(fields)
    assert spread(matched) < spread(fields) / 4
    assert len({field.pixels.tobytes() for field in matched}) == len(fields)


def test_a_control_on_colour_is_at_chance_only_after_matching(tmp_path: Path) -> None:
    raw = colour_controls(make_slides(coloured_fields(), tmp_path / "raw", SETTINGS))
    assert raw["mean_colour"].auc > 0.85
    matched = colour_controls(make_slides(match_colours(coloured_fields()), tmp_path / "matched", SETTINGS))
    assert abs(matched["mean_colour"].auc - 0.5) < 0.12
    assert matched["colour_histogram"].low < 0.5 + 0.05  # 32 slides: an interval of ± 0.15
    assert min(control.auc for control in raw.values()) > max(control.auc for control in matched.values())


def test_a_task_of_place_has_the_same_colours_in_both_classes(tmp_path: Path) -> None:
    border = replace(SETTINGS, task="border", pairs=4)
    found = colour_controls(make_slides(coloured_fields(), tmp_path, border))
    assert all(abs(control.auc - 0.5) < 0.05 for control in found.values()), found
