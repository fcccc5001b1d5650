"""Membership of points in polygons with holes, against shapely's."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from tests.annotations.made import random_polygon, rectangle

from longvit.annotations import polygons as module
from longvit.annotations.polygons import Polygons

X, Y = (np.arange(97) + 0.5) * 10.3, (np.arange(83) + 0.5) * 9.7


def test_200_random_polygons_hold_the_points_that_shapely_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rings = random_polygon(rng, 1000, 800)
        expected = shapely.contains_xy(shapely.Polygon(rings[0], rings[1:]), *np.meshgrid(X, Y))
        assert expected.any()
        assert np.array_equal(Polygons.from_rings([rings]).inside(X, Y), expected)


def test_polygons_that_overlap_are_a_union_and_not_their_difference() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        some = [random_polygon(rng, 1000, 800) for _ in range(4)]
        union = shapely.union_all([shapely.Polygon(rings[0], rings[1:]) for rings in some])
        assert np.array_equal(Polygons.from_rings(some).inside(X, Y), shapely.contains_xy(union, *np.meshgrid(X, Y)))


def test_rows_asked_for_alone_and_in_small_passes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = Polygons.from_rings([random_polygon(np.random.default_rng(2), 1000, 800)])
    whole = polygons.inside(X, Y)
    assert whole.any()
    for points, crossings in [(2**22, 2**21), (1, 2**21), (2**22, 1), (300, 20)]:
        monkeypatch.setattr(module, "_MOST_POINTS", points)
        monkeypatch.setattr(module, "_MOST_CROSSINGS", crossings)
        assert np.array_equal(polygons.inside(X, Y), whole)
        for first, end in [(0, 1), (13, 14), (40, 83), (82, 83)]:
            assert np.array_equal(polygons.inside(X, Y[first:end]), whole[first:end])


def test_areas_with_a_common_edge_share_no_point_and_leave_none_out() -> None:
    x = y = np.arange(0, 12, dtype=float)  # points on the edges
    left = Polygons.from_rings([rectangle(2, 2, 5, 9)]).inside(x, y)
    right = Polygons.from_rings([rectangle(5, 2, 8, 9)]).inside(x, y)
    assert not (left & right).any()
    both = Polygons.from_rings([rectangle(2, 2, 8, 9)]).inside(x, y)
    assert np.array_equal(left | right, both)
    assert (both.sum(), both[2, 2], both[9, 2], both[2, 8]) == (42, True, False, False)
