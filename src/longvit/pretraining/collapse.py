"""Collapse alarms of a pretraining run: trivial solutions and instabilities, with advice.

DINO's objective has two trivial solutions (Caron et al. 2021, section 5.3). All outputs are uniform where centring
dominates; all crops have the same output where sharpening dominates. With the entropy h of the teacher's output, the
entropy H of the mean output of a step, and K prototypes:

    uniform: log K − h ≈ 0        the same for all crops: H − h ≈ 0 although log K − h is not

H − h is the information of an output about its crop; two crops of each of B regions carry log B at most. The history
has both collapses as `kl_to_uniform` (log K − h) and `mean_kl_to_uniform` (log K − H).

An untrained network is close to the first state and leaves it. So alarms judge the last steps only, after the warm-up.
Every threshold is a constant here, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from longvit.dino.settings import DinoSettings

WINDOW_STEPS = 50
"""Least number of steps judged together, with at least a tenth of those so far: single steps fluctuate."""
UNIFORM_SHARE = 0.01
"""Fraction of log K: a teacher closer than this to uniform prefers a prototype no more than rounding and noise do.

Centring flattens the teacher early in training. A tiny network on one slide (K = 4,096, batch 16) fell from 24 % to
8 % in its first 220 steps, while its loss was 95 % of log K. The distance then rose again (2026-11)."""
SAME_SHARE = 0.03
"""H − h as a fraction of log K − h.

The minimum of a healthy run is log 2 / log 65,536 = 0.06: two regions per step, each with its own prototype."""
CHANCE_SHARE = 0.99
"""Fraction of log K: a loss above this is at the level of random guessing."""
RANK_SHARE = 0.25
"""Fraction of the highest RankMe after the warm-up.

A network first discards differences between crops of one region. In short runs on a single slide RankMe fell to 0.4
of its maximum and stayed there, with embeddings as far apart as before."""
LEAST_RANK = 2.0
"""RankMe of embeddings along little more than one direction."""
LEAST_SPREAD = 0.01
"""`feature_std`, 1 on the whole sphere: below this all regions have the same embedding up to rounding."""
GRADIENT_RATIO = 10.0
"""Multiple of the median since the warm-up. Gradients grow severalfold while the temperatures and the head sharpen."""
KNN_FALL = 0.1
"""Loss of balanced k-NN accuracy: mean of the last two epochs against the best two consecutive ones."""


@dataclass(frozen=True)
class Alarm:
    """Alarm of a pretraining run."""

    name: str
    seen: str
    """Observation, with its numbers."""
    advice: str
    """Suggested change."""


def alarms(
    history: Mapping[str, NDArray[np.float64]], epochs: Sequence[Mapping[str, float]], settings: DinoSettings
) -> tuple[Alarm, ...]:
    """Alarms of the current state; none during the warm-up or while the run is too short to judge.

    `history`: per optimiser step `loss`, `grad_norm`, `kl_to_uniform`, `mean_kl_to_uniform` (`TrainResult.history`).
    `epochs`: per epoch `epoch`, `step` and, where known, `rankme`, `feature_std`, `knn_balanced`. With one region per
    step an output has no other to be compared with, so it counts as the same for all crops.
    """
    if not epochs:
        return ()
    per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
    warmup_steps = round(settings.warmup_epochs * per_epoch)
    judged = [row for row in epochs if row["epoch"] > settings.warmup_epochs]
    raised = [
        *_outputs(history, warmup_steps, settings),
        *_gradients(history, warmup_steps),
        *_rank(judged),
        *_neighbours(judged),
    ]
    return tuple(raised)


def _window(steps: int, warmup_steps: int) -> slice | None:
    """Steps that are judged; None where they would overlap the warm-up."""
    start = steps - max(WINDOW_STEPS, steps // 10)
    return slice(start, steps) if start >= warmup_steps else None


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the finite values (a skipped step has none); NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _outputs(history: Mapping[str, NDArray[np.float64]], warmup_steps: int, settings: DinoSettings) -> list[Alarm]:
    """Alarm of one of the two collapses, or of a loss at chance level; none for an objective without a teacher."""
    window = _window(len(history["loss"]), warmup_steps)
    if window is None or "kl_to_uniform" not in history:
        return []
    log_k = math.log(settings.prototypes)
    loss, kl, mean_kl = (_mean(history[name][window]) for name in ("loss", "kl_to_uniform", "mean_kl_to_uniform"))
    if not math.isfinite(loss + kl + mean_kl):
        return []
    over = f"over the last {window.stop - window.start} steps"
    if kl < UNIFORM_SHARE * log_k:
        return [
            Alarm(
                "uniform outputs",
                f"The teacher's outputs are uniform: their entropy is {log_k - kl:.3f} of at most log K = {log_k:.3f} "
                f"nats {over}, with a loss of {loss:.3f}.",
                f"Sharpen the teacher: a teacher_temperature below {settings.teacher_temperature:g}, or a slower "
                f"centre (center_momentum above {settings.center_momentum:g}); a lower lr or a longer warm-up if the "
                "loss never left log K.",
            )
        ]
    if kl - mean_kl < SAME_SHARE * kl:
        return [
            Alarm(
                "the same output for every crop",
                f"All crops are assigned to the same prototypes: an output is {kl:.3f} nats from uniform, and "
                f"{mean_kl:.3f} of these are common to all crops of a step {over} (log K = {log_k:.3f}; loss "
                f"{loss:.3f}).",
                f"Make the centre follow faster: center_momentum below {settings.center_momentum:g}, more regions per "
                f"step; or a teacher_temperature above {settings.teacher_temperature:g}, a lower lr, more "
                "freeze_last_layer_epochs.",
            )
        ]
    if loss > CHANCE_SHARE * log_k:
        return [
            Alarm(
                "the student guesses",
                f"The loss is {loss:.3f} {over}, the level of random guessing (log K = {log_k:.3f}), although the "
                f"teacher's outputs are {kl:.3f} nats from uniform.",
                f"Check lr (peak {settings.lr:g} at a batch of {settings.lr_batch}): it may be too small to make "
                "progress, or too large to be stable. Use fewer prototypes for few regions.",
            )
        ]
    return []


def _gradients(history: Mapping[str, NDArray[np.float64]], warmup_steps: int) -> list[Alarm]:
    norms = history["grad_norm"]
    window = _window(len(norms), warmup_steps)
    if window is None or window.start - warmup_steps < WINDOW_STEPS:
        return []
    before, now = (norms[part][np.isfinite(norms[part])] for part in (slice(warmup_steps, window.start), window))
    if not len(before) or not len(now):
        return []
    usual, recent = float(np.median(before)), float(np.median(now))
    if recent <= GRADIENT_RATIO * usual:
        return []
    return [
        Alarm(
            "exploding gradients",
            f"The median gradient norm of the last {window.stop - window.start} steps is {recent:.3g}, "
            f"{recent / usual:.0f} times that of the steps since the warm-up ({usual:.3g}).",
            "Return to a checkpoint before the rise, with a lower lr, a smaller clip_norm or a longer warm-up.",
        )
    ]


def _rank(epochs: Sequence[Mapping[str, float]]) -> list[Alarm]:
    raised = []
    rows = [row for row in epochs if math.isfinite(row.get("rankme", math.nan))]
    if rows:
        now, best = rows[-1], max(rows, key=lambda row: row["rankme"])
        if now["rankme"] < max(LEAST_RANK, RANK_SHARE * best["rankme"]):
            raised.append(
                Alarm(
                    "low rank",
                    f"RankMe of the monitored regions is {now['rankme']:.1f}; its highest since the warm-up was "
                    f"{best['rankme']:.1f}, after epoch {best['epoch']:.0f}: the embeddings use few directions.",
                    "Check whether the k-NN accuracy falls as well, and return to the better epoch; use a lower lr or "
                    "weight_decay_end, a higher teacher_momentum, more diverse regions.",
                )
            )
    spreads = [row["feature_std"] for row in epochs if math.isfinite(row.get("feature_std", math.nan))]
    if spreads and (spread := spreads[-1]) < LEAST_SPREAD:
        raised.append(
            Alarm(
                "constant embeddings",
                f"All monitored regions have nearly the same embedding: feature_std is {spread:.4f}, and about 1 where "
                "embeddings cover the sphere.",
                "Stop the run: these weights do not recover. Use a lower lr and a longer warm-up, and check that the "
                "crops are not blank.",
            )
        )
    return raised


def _neighbours(epochs: Sequence[Mapping[str, float]]) -> list[Alarm]:
    values = np.array([row.get("knn_balanced", math.nan) for row in epochs])
    values = values[np.isfinite(values)]
    if len(values) < 3:
        return []
    pairs = (values[1:] + values[:-1]) / 2
    if pairs.max() - pairs[-1] <= KNN_FALL:
        return []
    return [
        Alarm(
            "falling k-NN",
            f"The balanced k-NN accuracy on the labelled regions is {pairs[-1]:.0%} (mean of two epochs), down from "
            f"{pairs.max():.0%}.",
            "Keep the weights of the better epoch, check whether RankMe falls as well, and lower lr.",
        )
    ]
