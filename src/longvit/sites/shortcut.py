"""Likely shortcut in the predictions of a run: the sentence of the site check, where it names one.

A run calls this at its end. So the cheap question comes first, whether the site shows the label at all. Only then is
the site predicted from the predictions, of at most `MAX_SAMPLES` samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longvit.data.cohort import SlideRow
from longvit.sites.association import association
from longvit.sites.check import is_linked, judge
from longvit.sites.samples import MIN_PATIENTS, log_odds

MAX_SAMPLES = 1000
"""Samples of patients that are judged: the time grows with their square."""


def likely_shortcut(
    rows: Sequence[SlideRow],
    labels: Sequence[str],
    predictions: NDArray[np.float64],
    *,
    are_probabilities: bool,
    seed: int = 0,
) -> str | None:
    """Sentence on a likely shortcut of predictions (N, D); None where none is found, or the rows do not suffice.

    As in a site check, a sample is a patient at a site, with the mean of its slides. Rows without a site do not count.
    `labels`: label of each row, as text.

    >>> import numpy as np
    >>> from longvit.data.cohort import SlideRow
    >>> from longvit.sites.shortcut import likely_shortcut
    >>> rows = [SlideRow(f"p{i}", f"s{i}", "", None, site="AB"[i % 2]) for i in range(60)]
    >>> risk = np.arange(60.0)[:, None] % 2
    >>> text = likely_shortcut(rows, ["low", "high"] * 30, risk, are_probabilities=False)
    >>> text.startswith("A shortcut is likely: the site predicts the label")
    True
    """
    units: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
    for row, label, vector in zip(rows, labels, predictions, strict=True):
        if row.site:
            units.setdefault((row.case_id, row.site, label), []).append(vector)
    if len(units) > MAX_SAMPLES:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(units))[:MAX_SAMPLES])
        keys = list(units)
        units = {keys[i]: units[keys[i]] for i in drawn}
    patients, sites, known = zip(*units, strict=True) if units else ((), (), ())
    if min(len(set(sites)), len(set(known))) < 2 or len(set(patients)) < MIN_PATIENTS:
        return None
    if not is_linked(association(known, sites, seed=seed)):
        return None
    means = np.stack([np.mean(vectors, axis=0) for vectors in units.values()])
    found = judge("predictions", log_odds(means) if are_probabilities else means, sites, patients, known, seed=seed)
    return found.sentence if found.shortcut else None
