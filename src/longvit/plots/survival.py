"""Kaplan-Meier plot of risk groups with confidence bands, censoring ticks and numbers at risk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.plots.style import GREY, blank, colour, safe_plot, save, write_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = ("lower risk", "higher risk")


def risk_halves(fold: Sequence[str], patient: Sequence[str], risk: np.ndarray) -> np.ndarray:
    """Mask of the rows in the higher half of risk, bool (N,).

    A patient's risk in a fold is the mean over its rows. Risks of two folds come from two models and cannot be
    compared, so a patient counts by its rank within the fold, and by its mean rank over several folds. All rows of a
    patient are in one half. Where all risks of a fold are equal, none is higher.
    """
    from scipy.stats import rankdata

    names, patient_of = np.unique(np.asarray(patient), return_inverse=True)
    folds, risk = np.asarray(fold), np.asarray(risk, dtype=np.float64)
    ranks, times = np.zeros(len(names)), np.zeros(len(names))
    for name in np.unique(folds):
        in_fold = folds == name
        rows = np.bincount(patient_of[in_fold], minlength=len(names))
        patients = np.flatnonzero(rows)
        sums = np.bincount(patient_of[in_fold], risk[in_fold], minlength=len(names))
        mean = sums[patients] / rows[patients]
        ranks[patients] += (rankdata(mean) - 0.5) / len(patients)
        times[patients] += 1
    return (ranks / times)[patient_of] > 0.5 + 1e-9


@safe_plot
def kaplan_meier_plot(
    months: np.ndarray,
    event: np.ndarray,
    group: np.ndarray,
    path: str | Path,
    *,
    names: Sequence[str] = GROUPS,
    title: str = "",
) -> None:
    """Kaplan-Meier curves of the groups with 95 % bands, a tick per censored patient and the log-rank p.

    One row per patient: `months` (N,) ≥ 0, `event` 1 = happened, 0 = censored, `group` an index into `names`. Under
    the axis: number of patients at risk just before that month.
    """
    from longvit.metrics.survival import log_rank

    months, event = np.asarray(months, dtype=np.float64), np.asarray(event, dtype=bool)
    group = np.asarray(group, dtype=np.int64)
    figure, (axes, below) = blank(5.2, 4.9, rows=2, heights=(5, 1))
    present = [g for g in range(len(names)) if (group == g).any()]
    if not present:
        write_note(axes, "no patients:\nno curves")
        below.set_axis_off()
        save(figure, path)
        return
    for g in present:
        _curve(axes, months[group == g], event[group == g], g, names[g])
    note = "all risks are equal: one group" if len(present) == 1 else p_text(float(log_rank(months, event, group)[1]))
    axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=9)
    axes.set(ylim=(0, 1.02), xlim=(0, months.max() * 1.02 or 1), ylabel="survival", title=title)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(-0.02, 1.0))  # above: off the curves
    _numbers_at_risk(axes, below, months, group, present, names)
    save(figure, path)


def p_text(p: float) -> str:
    """Log-rank p as text: `log-rank p = 0.012`, or `log-rank p < 0.001`."""
    if math.isnan(p):
        return "log-rank p not defined"
    return "log-rank p < 0.001" if p < 0.001 else f"log-rank p = {p:.3f}" if p < 0.1 else f"log-rank p = {p:.2f}"


def _curve(axes: Axes, months: np.ndarray, event: np.ndarray, g: int, name: str) -> None:
    from longvit.metrics.survival import kaplan_meier

    km: Any = kaplan_meier(months, event)
    times = np.r_[0.0, km.times, months.max()]
    alive, low, high = (
        np.r_[1.0, values, values[-1] if len(values) else 1.0] for values in (km.survival, km.lower, km.upper)
    )
    label = f"{name}: {len(months)} patients, {int(event.sum())} events"
    axes.fill_between(times, low, high, step="post", color=colour(g), alpha=0.15, linewidth=0)
    axes.step(times, alive, where="post", color=colour(g), linewidth=1.8, label=label)
    censored = np.sort(months[~event])
    heights = alive[np.searchsorted(times[:-1], censored, side="right") - 1]
    axes.plot(censored, heights, linestyle="", marker="|", markersize=6, markeredgewidth=0.9, color=colour(g))


def _numbers_at_risk(
    axes: Axes, below: Axes, months: np.ndarray, group: np.ndarray, present: Sequence[int], names: Sequence[str]
) -> None:
    """Writes the numbers at risk under the ticks of the axis, a row per group."""
    from matplotlib.ticker import MaxNLocator

    ticks = [t for t in MaxNLocator(nbins=6, steps=[1, 2, 3, 6, 10]).tick_values(0, months.max()) if t <= months.max()]
    axes.set_xticks(ticks)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("months")
    for row, g in enumerate(present):
        for t in ticks:
            count = int((months[group == g] >= t).sum())
            below.text(t, row, str(count), ha="center", va="center", fontsize=8.5, color=colour(g), clip_on=False)
    below.set_ylim(len(present) - 0.4, -0.6)
    below.set_yticks(range(len(present)), [names[g] for g in present], fontsize=8.5)
    below.set_title("at risk", loc="left", fontsize=8.5, color=GREY)
    below.spines[:].set_visible(False)
    below.tick_params(left=False, bottom=False, labelbottom=False)
    below.tick_params(axis="y", pad=14)  # the first number is centred on month 0
