"""Alarms of a pretraining: what tells a run that learns from one that found a short cut, named, with what to do.

DINO's objective has two trivial solutions (Caron et al. 2021, section 5.3): every output uniform, where the centre wins
over the sharpening, and every crop with the same output, where the sharpening wins. With the entropy h of the teacher's
output, H that of the mean output of a step, K prototypes:

    uniform: log K − h ≈ 0        the same for all crops: H − h ≈ 0 although log K − h is not

H − h is what an output tells of its crop; two crops of each of B regions can tell log B at most. Both collapses stand
in the history as `kl_to_uniform` (log K − h) and `mean_kl_to_uniform` (log K − H).

A young network is close to the first state and leaves it: alarms judge only the last steps, none of them of the
warm-up. Every threshold is a constant here, with its reason.
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
"""At least so many steps are judged together, and at least a tenth of those so far: single steps jump."""
UNIFORM_SHARE = 0.01
"""Of log K: a teacher nearer than this to uniform prefers no prototype by more than rounding and noise would. The
centre flattens a young teacher: a tiny network on one slide (K = 4,096, batch 16) came from 24 % down to 8 % in its
first 220 steps, its loss to 95 % of log K, and rose again (2026-11)."""
SAME_SHARE = 0.03
"""H − h as a share of log K − h. The least of a healthy run is log 2 / log 65,536 = 0.06: two regions a step, of which
each has a prototype of its own."""
CHANCE_SHARE = 0.99
"""Of log K: a loss above this is that of a student that guesses."""
RANK_SHARE = 0.25
"""Of the highest RankMe after the warm-up. A network unlearns first what differs between crops of one region: in short
runs on a single slide RankMe fell to 0.4 of that and stayed there, with embeddings as far apart as before."""
LEAST_RANK = 2.0
"""RankMe of embeddings along little more than one direction."""
LEAST_SPREAD = 0.01
"""`feature_std`, 1 on the whole sphere: below this all regions have the same embedding but for rounding."""
GRADIENT_RATIO = 10.0
"""Of the median since the warm-up. Gradients grow a few times while the temperatures and the head sharpen."""
KNN_FALL = 0.1
"""Share of the regions, balanced, that are no longer recognised: mean of two epochs against the best two in a row."""


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at now."""

    name: str
    seen: str
    """What is seen, with the numbers."""
    advice: str
    """What to do."""


def alarms(
    history: Mapping[str, NDArray[np.float64]], epochs: Sequence[Mapping[str, float]], settings: DinoSettings
) -> tuple[Alarm, ...]:
    """What is wrong with the run as it stands; nothing while it warms up or is too short to judge.

    `history`: per optimiser step `loss`, `grad_norm`, `kl_to_uniform`, `mean_kl_to_uniform` (`TrainResult.history`).
    `epochs`: per epoch `epoch`, `step` and, where known, `rankme`, `feature_std`, `knn_balanced`. With one region a
    step there is nothing to compare an output with: it counts as the same for all crops.
    """
    if not epochs:
        return ()
    per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
    warmup_steps = round(settings.warmup_epochs * per_epoch)
    judged = [row for row in epochs if row["epoch"] > settings.warmup_epochs]
    found = [
        *_outputs(history, warmup_steps, settings),
        *_gradients(history, warmup_steps),
        *_rank(judged),
        *_neighbours(judged),
    ]
    return tuple(found)


def _window(steps: int, warmup_steps: int) -> slice | None:
    """The steps that are judged; None where they would reach into the warm-up."""
    start = steps - max(WINDOW_STEPS, steps // 10)
    return slice(start, steps) if start >= warmup_steps else None


def _mean(values: NDArray[np.float64]) -> float:
    """Of the finite ones (a skipped step has none); NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _outputs(history: Mapping[str, NDArray[np.float64]], warmup_steps: int, settings: DinoSettings) -> list[Alarm]:
    """At most one of the two collapses, or a student that guesses."""
    window = _window(len(history["loss"]), warmup_steps)
    if window is None:
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
                f"nats {over}, and the loss {loss:.3f}.",
                f"Sharpen the teacher: a teacher_temperature below {settings.teacher_temperature:g}, or a slower "
                f"centre (center_momentum above {settings.center_momentum:g}); a lower lr or a longer warm-up if the "
                "loss never left log K.",
            )
        ]
    if kl - mean_kl < SAME_SHARE * kl:
        return [
            Alarm(
                "the same output for every crop",
                f"All crops fall to the same prototypes: of the {kl:.3f} nats that an output is from uniform, "
                f"{mean_kl:.3f} are shared by all crops of a step {over} (log K = {log_k:.3f}; loss {loss:.3f}).",
                f"Let the centre keep up: center_momentum below {settings.center_momentum:g}, more regions a step; or "
                f"a teacher_temperature above {settings.teacher_temperature:g}, a lower lr, more "
                "freeze_last_layer_epochs.",
            )
        ]
    if loss > CHANCE_SHARE * log_k:
        return [
            Alarm(
                "the student guesses",
                f"The loss is {loss:.3f} {over}, that of guessing (log K = {log_k:.3f}), although the teacher's "
                f"outputs are {kl:.3f} nats from uniform.",
                f"Look at lr (peak {settings.lr:g} at a batch of {settings.lr_batch}): too small for the student to "
                "move, or so large that it jumps; fewer prototypes for few regions.",
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
    usual, lately = float(np.median(before)), float(np.median(now))
    if lately <= GRADIENT_RATIO * usual:
        return []
    return [
        Alarm(
            "exploding gradients",
            f"The gradient's norm is {lately:.3g} in the middle of the last {window.stop - window.start} steps, "
            f"{lately / usual:.0f} times that of the steps since the warm-up ({usual:.3g}).",
            "Go back to a checkpoint before it rose, with a lower lr, a smaller clip_norm or a longer warm-up.",
        )
    ]


def _rank(epochs: Sequence[Mapping[str, float]]) -> list[Alarm]:
    found = []
    rows = [row for row in epochs if math.isfinite(row.get("rankme", math.nan))]
    if rows:
        now, best = rows[-1], max(rows, key=lambda row: row["rankme"])
        if now["rankme"] < max(LEAST_RANK, RANK_SHARE * best["rankme"]):
            found.append(
                Alarm(
                    "low rank",
                    f"RankMe of the regions looked at is {now['rankme']:.1f}; its highest since the warm-up was "
                    f"{best['rankme']:.1f}, after epoch {best['epoch']:.0f}: the embeddings use few directions.",
                    "Look whether the k-NN falls as well, and go back to the better epoch; a lower lr or "
                    "weight_decay_end, a higher teacher_momentum, more different regions.",
                )
            )
    spreads = [row["feature_std"] for row in epochs if math.isfinite(row.get("feature_std", math.nan))]
    if spreads and (spread := spreads[-1]) < LEAST_SPREAD:
        found.append(
            Alarm(
                "constant embeddings",
                f"The embeddings of the regions looked at differ by {spread:.4f} of what they could (feature_std): all "
                "regions have the same one.",
                "Stop: nothing can be learned from these weights. A lower lr and a longer warm-up; look at the crops, "
                "whether they are blank.",
            )
        )
    return found


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
            f"The k-NN recognises {pairs[-1]:.0%} of the labelled regions (balanced, mean of two epochs), and had "
            f"recognised {pairs.max():.0%}.",
            "Keep the weights of the better epoch; see whether RankMe falls as well, and lower lr.",
        )
    ]
