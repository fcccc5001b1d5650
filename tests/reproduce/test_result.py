"""The table states the gap to the right published row, with the interval of the measured mean moved by it."""

from __future__ import annotations

import pytest

from longvit.reproduce.cells import cell_named
from longvit.reproduce.result import Measured, gaps, table_lines


def test_longvit_is_compared_with_every_row_of_its_column() -> None:
    cell = cell_named("table4/luad/1024")
    measured = Measured(0.6, 0.04, 0.55, 0.66, 5)
    found = {(gap.system, gap.inputs): (gap.value, gap.low, gap.high) for gap in gaps(cell, measured)}
    assert len(found) == 9  # the rows of LUAD in table 2, HIPT's among them
    assert found["MCAT", "image+genomic"] == pytest.approx((-0.02, -0.07, 0.04))
    assert found["SNN", "genomic"] == pytest.approx((0.061, 0.011, 0.121))
    text = "\n".join(table_lines(cell, measured))
    assert "table4/luad/1024: mean ± SD over 5 folds" in text
    assert "LongViT, 1,024 px, measured" in text
    assert "-0.070 … +0.040" in text
    assert "LongViT, published: arXiv 2312.03558" in text


def test_baseline_is_compared_with_its_own_row_only() -> None:
    cell = cell_named("table2/ucec/deep_sets+concat")
    (gap,) = gaps(cell, Measured(0.6, 0.1, 0.5, 0.7, 5))
    assert (gap.system, gap.inputs, gap.published_mean) == ("Deep Sets", "image+genomic", 0.598)


def test_metric_that_is_not_defined_gives_no_gap() -> None:
    cell = cell_named("table1/brca/1024")
    measured = Measured(None, None, None, None, 10)
    assert {gap.value for gap in gaps(cell, measured)} == {None}
    assert "– … –" in "\n".join(table_lines(cell, measured))
