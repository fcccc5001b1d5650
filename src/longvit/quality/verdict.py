"""Verdict on a slide: pass, warn or fail, with the reasons.

The limits are choices of this project, not published ones: an artefact on 2 % of the tissue is worth a look, and one
on 25 % leaves too little to judge. A pass says only that none of these measures found anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from longvit.quality.focus import Focus

Grade = Literal["pass", "warn", "fail"]
WARN_SHARE, FAIL_SHARE = 0.02, 0.25
"""Share of the tissue under an artefact from which a slide is a warning, or fails."""
WARN_BLURRED, FAIL_BLURRED = 0.25, 0.5
"""Fraction of blurred probes from which a slide is a warning, or fails."""
LEAST_TISSUE_MM2 = 0.1
"""Tissue area below which a slide fails: six tiles of 256 px at 0.5 µm/px."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on a slide."""

    grade: Grade
    reasons: tuple[str, ...]
    """Reasons against the slide, the worst first; empty for a pass."""
    badness: float
    """Sort key, the worst slide has the largest."""


def verdict_of(tissue_mm2: float, focus: Focus, shares: Mapping[str, float], n_bad_tiles: int) -> Verdict:
    """Verdict from the measures; `shares`: name of an artefact -> share of the tissue, 0 … 1.

    >>> from longvit.quality.focus import Focus
    >>> from longvit.quality.verdict import verdict_of
    >>> verdict_of(20.0, Focus(0.3, 0.0, 16), {"folds": 0.05}, 0).reasons
    ('folds on 5 % of the tissue',)
    """
    found: list[tuple[float, bool, str]] = []
    if tissue_mm2 < LEAST_TISSUE_MM2:
        found.append((2.0, True, f"tissue {tissue_mm2:.2g} mm², less than {LEAST_TISSUE_MM2:g}"))
    if focus.blurred_share >= WARN_BLURRED:
        text = f"{round(focus.blurred_share * focus.probes)} of {focus.probes} probes out of focus"
        found.append((focus.blurred_share / FAIL_BLURRED, focus.blurred_share >= FAIL_BLURRED, text))
    for name, share in shares.items():
        if share >= WARN_SHARE:
            text = f"{name} on {100 * share:.0f} % of the tissue"
            found.append((share / FAIL_SHARE, share >= FAIL_SHARE, text))
    if n_bad_tiles:
        text = f"{n_bad_tiles} unreadable {'tile' if n_bad_tiles == 1 else 'tiles'}, filled with background"
        found.append((0.5, False, text))
    found.sort(key=lambda item: -item[0])
    grade: Grade = "pass" if not found else "fail" if any(fails for _, fails, _ in found) else "warn"
    return Verdict(grade, tuple(text for _, _, text in found), sum(badness for badness, _, _ in found))
