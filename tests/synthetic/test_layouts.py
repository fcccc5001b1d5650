"""Layouts: the class is in the composition or in the place, and in nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from longvit.errors import InputError
from longvit.synthetic.layouts import Layout, draw_layouts
from longvit.synthetic.settings import SyntheticSettings


def pairs(task: str, n: int = 20, **settings: int) -> list[tuple[Layout, Layout]]:
    given = {"side_px": 512, "square_px": 32, "block_px": 128} | settings
    made = SyntheticSettings(task=task, **given)  # type: ignore[arg-type]
    return [draw_layouts(made, np.random.default_rng(seed)) for seed in range(n)]


def blocks(layout: Layout, per_block: int = 4) -> Counter[bytes]:
    """Multiset of the blocks of a slide: their squares and tissue."""
    n = len(layout.draw)
    step = range(0, n, per_block)
    parts = [np.s_[row : row + per_block, column : column + per_block] for row in step for column in step]
    return Counter(layout.draw[part].tobytes() + layout.is_tumour[part].tobytes() for part in parts)


@pytest.mark.parametrize("task", ["border", "arrangement"])
def test_a_model_of_single_blocks_cannot_see_the_class_of_a_task_of_place(task: str) -> None:
    for negative, positive in pairs(task):
        assert blocks(negative) == blocks(positive)
        assert not np.array_equal(negative.is_tumour, positive.is_tumour)


def test_tumour_of_task_border_is_only_where_its_class_says() -> None:
    edge = np.ones((16, 16), bool)
    edge[4:-4, 4:-4] = False  # the outer blocks
    for inside, border in pairs("border"):
        assert not inside.is_tumour[edge].any()
        assert not border.is_tumour[~edge].any()
        assert inside.is_tumour.sum() == border.is_tumour.sum() > 0


def test_tissues_of_task_arrangement_are_two_halves_or_a_chessboard() -> None:
    for mixed, apart in pairs("arrangement"):
        steps = [int((np.diff(layout.is_tumour[::4, ::4].astype(int), axis=0) != 0).sum()) for layout in (mixed, apart)]
        assert steps[0] == 12
        assert steps[1] in (0, 4)
        assert mixed.is_tumour.mean() == apart.is_tumour.mean() == 0.5


def test_the_first_two_halves_of_task_arrangement_are_the_top_and_the_left() -> None:
    starts = {
        (bool(layout.is_tumour[0, -1]), bool(layout.is_tumour[-1, 0])) for _, layout in pairs("arrangement", halves=2)
    }
    assert starts == {(True, False), (False, True)}


def test_fractions_of_task_share_never_come_near_the_threshold() -> None:
    found = [(below.is_tumour.mean(), above.is_tumour.mean()) for below, above in pairs("share", 50)]
    assert all(0.19 < below < 0.41 and below + above == pytest.approx(1) for below, above in found)
    assert len(set(found)) > 20


def test_task_any_has_its_number_of_tumour_squares_or_none() -> None:
    found = [(none.is_tumour.sum(), some.is_tumour.sum()) for none, some in pairs("any", tumour_squares=3)]
    assert set(found) == {(0, 3)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"square_px": 40}, "square_px 40: a multiple of 16"),
        ({"block_px": 48, "square_px": 32, "side_px": 480}, "each must be a multiple of the next"),
        ({"task": "border", "side_px": 256, "block_px": 128, "square_px": 32}, "at least 3 × 3 blocks, not 2 × 2"),
        ({"task": "arrangement", "side_px": 384, "block_px": 128, "square_px": 32}, "an even number of blocks"),
        ({"task": "any", "tumour_squares": 300}, "tumour_squares 300: the slide has 256 squares"),
        ({"halves": 5}, "halves 5"),
        ({"task": "place"}, "task 'place': choose share, any, border, arrangement"),
        ({"mpp": 0.0}, "mpp 0: more than 0"),
    ],
)
def test_settings_of_which_no_slide_can_be_made_are_refused_in_one_line(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticSettings(**settings)  # type: ignore[arg-type]
