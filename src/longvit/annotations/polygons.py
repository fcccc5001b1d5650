"""Polygons with holes on a grid of points: membership by a scanline, exact and independent of the rows asked for.

A polygon is a list of directed edges, the shell in one direction and the holes in the other. The winding number of a
point is the sum of the signs of the edges to its left. For valid polygons it counts those that contain the point, so
one pass serves the union of all. A point on a left or upper edge is inside, on a right or lower edge outside: areas
that share an edge neither share a point nor leave a gap.

E edges, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Limits of one pass: points of the grid (4 bytes each) and crossings of edges with rows (some 40 bytes each).
_MOST_POINTS = 2**22
_MOST_CROSSINGS = 2**21

Ring = NDArray[np.float64]
"""Vertices (N, 2) as (x, y); the last one need not repeat the first."""


@dataclass(frozen=True)
class Polygons:
    """Union of valid polygons with holes.

    >>> import numpy as np
    >>> square = np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]])
    >>> Polygons.from_rings([[square]]).inside(np.arange(5) + 0.5, np.array([0.5, 1.5])).astype(int).tolist()
    [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
    """

    low: NDArray[np.float64] = field(repr=False)
    """(E, 2): end of each edge with the smaller y. Horizontal edges are left out."""
    high: NDArray[np.float64] = field(repr=False)
    """(E, 2): the other end."""
    sign: NDArray[np.int32] = field(repr=False)
    """(E,): 1 or -1."""

    @classmethod
    def from_rings(cls, polygons: Sequence[Sequence[Ring]]) -> Polygons:
        """Polygons from their rings: the shell first, then the holes, each in any direction."""
        starts, ends = [np.empty((0, 2))], [np.empty((0, 2))]
        for rings in polygons:
            for number, ring in enumerate(rings):
                after = np.roll(ring, -1, axis=0)
                is_reversed = (signed_area(ring) > 0) != (number == 0)
                starts.append(after if is_reversed else ring)
                ends.append(ring if is_reversed else after)
        start, end = np.concatenate(starts), np.concatenate(ends)
        keep = start[:, 1] != end[:, 1]
        start, end = start[keep], end[keep]
        is_up = (start[:, 1] < end[:, 1])[:, None]
        # A shell is traversed with positive area, so its left edges lead to smaller y.
        return cls(
            np.where(is_up, start, end), np.where(is_up, end, start), np.where(is_up[:, 0], -1, 1).astype(np.int32)
        )

    def inside(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """(R, C): True where the point (x[column], y[row]) is inside; x (C,) and y (R,) are in increasing order."""
        result = np.zeros((len(y), len(x)), bool)
        for first, end in self._passes(x, y):
            result[first:end] = self._winding(x, y[first:end]) > 0
        return result

    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        points = np.concatenate([self.low, self.high])
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return float(left), float(top), float(right), float(bottom)

    def _passes(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose points and crossings fit into the limits; a single row always does."""
        # counts[r]: edges that cross row r.
        counts = np.bincount(np.searchsorted(y, self.low[:, 1]), minlength=len(y) + 1).cumsum()
        counts -= np.bincount(np.searchsorted(y, self.high[:, 1]), minlength=len(y) + 1).cumsum()
        total = np.concatenate([[0], counts[: len(y)].cumsum()])
        rows = max(1, _MOST_POINTS // (len(x) + 1))
        first = 0
        while first < len(y):
            fits = int(np.searchsorted(total, total[first] + _MOST_CROSSINGS, side="right")) - 1
            end = min(len(y), first + rows, max(first + 1, fits))
            if total[end] > total[first]:
                yield first, end
            first = end

    def _winding(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int32]:
        first_row = np.searchsorted(y, self.low[:, 1])
        n_rows = np.searchsorted(y, self.high[:, 1]) - first_row
        crossing = n_rows > 0
        low, high, sign = self.low[crossing], self.high[crossing], self.sign[crossing]
        n = n_rows[crossing]
        edge = np.repeat(np.arange(len(n)), n)
        row = np.arange(len(edge)) - np.repeat(n.cumsum() - n, n) + np.repeat(first_row[crossing], n)
        slope = (high[:, 0] - low[:, 0]) / (high[:, 1] - low[:, 1])
        at_x = low[edge, 0] + (y[row] - low[edge, 1]) * slope[edge]
        counts = np.zeros((len(y), len(x) + 1), np.int32)
        np.add.at(counts, (row, np.searchsorted(x, at_x)), sign[edge])
        return np.cumsum(counts[:, :-1], axis=1, out=counts[:, :-1])


def signed_area(ring: Ring) -> float:
    """Area of a ring: positive where it turns from the x axis to the y axis."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2
