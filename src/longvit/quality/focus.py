"""Focus of a slide, from full-resolution probes: energy of fine detail relative to coarser detail of the same tissue.

Variance of the Laplacian (Pech-Pacheco et al. 2000) measures fine detail, and depends on the tissue as much as on the
focus. Here the energy of a band is divided by that of the band one octave coarser. In sharp tissue the two are alike,
and blur removes the finer one first.

Y is the luma and Gs a Gaussian filter of s px. E0 is the variance of Y - G1 Y, E1 of G1 Y - G2 Y, E2 of G2 Y - G4 Y.
The focus is the smaller of log2(E0 / E1) and log2(E1 / E2) + 0.5, in octaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MPP = 0.5
"""µm per pixel of a probe; that of the slide where it is coarser."""
PROBE_PX, PROBES = 256, 16
"""Side of a probe, and the largest number of probes of a slide."""
SHARP = -0.7
"""Focus below which a probe is blurred. One in 50 real fields of four sources is below it, and all after a blur of
1.5 px (`benchmarks/quality.py`)."""
_GLASS = 0.85
_LEAST_PX = 2000
_COARSE_OCTAVE = 0.5


@dataclass(frozen=True)
class Focus:
    """Focus of a slide."""

    octaves: float | None
    """Median over the probes; None without a probe."""
    blurred_share: float
    """Fraction of the probes below `SHARP`, 0 … 1."""
    probes: int


def probe_focus(pixels: NDArray[np.uint8], glass: tuple[float, float, float] = (1, 1, 1)) -> float | None:
    """Focus of a probe, uint8 (height, width, 3), in octaves; None where it holds too little tissue.

    `glass`: colour of the glass, 0 … 1.

    >>> import numpy
    >>> from longvit.quality.focus import probe_focus
    >>> probe_focus(numpy.full((256, 256, 3), 255, numpy.uint8)) is None
    True
    """
    from scipy.ndimage import gaussian_filter

    weights = np.array([0.299, 0.587, 0.114], np.float32)
    luma = pixels.astype(np.float32) @ weights
    glass_luma = 255 * float(np.dot(weights, np.array(glass, np.float32)))
    fine, middle, coarse = (gaussian_filter(luma, sigma, mode="nearest") for sigma in (1, 2, 4))
    tissue = coarse < _GLASS * glass_luma
    if tissue.sum() < _LEAST_PX:
        return None
    energies = [
        float(np.mean(np.square(a[tissue] - b[tissue]))) for a, b in ((luma, fine), (fine, middle), (middle, coarse))
    ]
    e0, e1, e2 = (max(energy, 1e-6) for energy in energies)
    return float(min(np.log2(e0 / e1), np.log2(e1 / e2) + _COARSE_OCTAVE))


def focus_of(probes: Sequence[float | None]) -> Focus:
    """Focus of a slide from that of its probes."""
    values = np.array([value for value in probes if value is not None])
    if not len(values):
        return Focus(None, 0.0, 0)
    return Focus(float(np.median(values)), float(np.mean(values < SHARP)), len(values))
