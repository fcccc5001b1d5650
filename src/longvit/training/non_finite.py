"""Skips and logs steps with a NaN or an infinity; the loop aborts after several in a row.

In float16 small gradients would vanish, so the loss is multiplied by a scale before the backward pass and the
gradients are divided by it. Too large a scale shows as an infinite gradient at a finite loss. That step is skipped
too and the scale is halved, without a log line: it does not depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import nn

from longvit.errors import InputError
from longvit.parallel.ranks import Ranks
from longvit.training.optim import first_non_finite, named_parameters

FIRST_SCALE = 2.0**16
_STEPS_TO_DOUBLE = 2000  # as torch.amp.GradScaler has it
ADVICE = "look at it, or lower the learning rate"


class NonFiniteError(InputError):
    """Error for a NaN or an infinity, with its samples or parameter."""


class Verdict(IntEnum):
    """Verdict on a step; the worst of all ranks applies to each of them."""

    BAD = 0
    """Non-finite loss or gradient: the step is skipped and counted."""
    OVERFLOW = 1
    """The float16 scale was too large: the step is skipped."""
    FINE = 2


@dataclass(frozen=True)
class Seen:
    """Record of a batch until its step is done: names, and metrics weighted by its fraction of the samples."""

    names: Sequence[str]
    metrics: dict[str, torch.Tensor]
    losses: torch.Tensor | None

    def culprits(self) -> Sequence[str]:
        """Samples whose own loss is not finite; all samples without losses per sample."""
        if self.losses is None:
            return self.names
        finite = torch.isfinite(self.losses).tolist()
        return [name for name, ok in zip(self.names, finite, strict=True) if not ok] or self.names


def judge(
    model: nn.Module, optimizer: torch.optim.Optimizer, seen: Sequence[Seen], *, at: str, scale: float
) -> tuple[Verdict, str]:
    """Verdict on the step `at`, in which some metric is not finite, and the culprit: samples, or a layer and samples.

    Raises `NonFiniteError` where a parameter is not finite: no later step could repair that.
    """
    if name := first_non_finite(model.named_parameters()):
        raise NonFiniteError(f"{at}: parameter {name} holds a NaN or an infinity; {ADVICE}")
    for batch in seen:
        if not math.isfinite(loss := batch.metrics["loss"].item()):
            return Verdict.BAD, f"{at}: the loss is {loss} on {', '.join(batch.culprits())}"
    if name := first_non_finite((name, p.grad) for name, p in named_parameters(optimizer)):
        samples = ", ".join(name for batch in seen for name in batch.names)
        text = f"{at}: the gradient of {name} is not finite on {samples}"
        return Verdict.OVERFLOW if scale > 1 else Verdict.BAD, text
    # Otherwise another metric than the loss, or an overflow of the norm: neither harms the parameters.
    return Verdict.FINE, ""


def agreed(own: tuple[Verdict, str], ranks: Ranks) -> tuple[Verdict, str]:
    """Worst verdict of all ranks, which skip a step together, and its first culprit.

    A rank whose own loss is not finite comes before one that has only the gradient of all.
    """
    verdicts = ranks.from_all([int(own[0]), own[1]])
    worst = min(verdict for verdict, _ in verdicts)
    culprits = [culprit for verdict, culprit in verdicts if verdict == worst]
    return Verdict(worst), next((c for c in culprits if ": the loss is " in c), culprits[0])


def next_scale(scale: float, steps_since: int, verdict: Verdict) -> tuple[float, int]:
    """Float16 scale after a step, and steps since its last change: halved at an overflow, doubled after 2,000 steps."""
    if verdict is Verdict.OVERFLOW:
        return scale / 2, 0
    if verdict is Verdict.FINE and steps_since + 1 == _STEPS_TO_DOUBLE:
        return scale * 2, 0
    return scale, steps_since + (verdict is Verdict.FINE)
