"""What happens to a step with a NaN or an infinity: skipped, named, and after a few in a row the end.

In float16 small gradients would vanish, so the loss is multiplied by a scale before the backward pass and the
gradients divided by it. A scale that was too large shows as an infinite gradient at a finite loss: that step is
skipped too, but it says nothing about the data; the scale is halved and not a word is lost about it.
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
    """A NaN or an infinity, with the samples or the parameter that it comes from."""


class Verdict(IntEnum):
    """What a step is; the worst of all processes counts for each of them."""

    BAD = 0
    """Non-finite loss or gradient: the step is skipped and counted."""
    OVERFLOW = 1
    """The float16 scale was too large: the step is skipped."""
    FINE = 2


@dataclass(frozen=True)
class Seen:
    """What is remembered of a batch until its step is done: names, and figures weighted by its share of the samples."""

    names: Sequence[str]
    metrics: dict[str, torch.Tensor]
    losses: torch.Tensor | None

    def culprits(self) -> Sequence[str]:
        """The samples whose own loss is not finite; all of them where that is not known."""
        if self.losses is None:
            return self.names
        finite = torch.isfinite(self.losses).tolist()
        return [name for name, ok in zip(self.names, finite, strict=True) if not ok] or self.names


def judge(
    model: nn.Module, optimizer: torch.optim.Optimizer, seen: Sequence[Seen], *, at: str, scale: float
) -> tuple[Verdict, str]:
    """What the step `at` is in which some figure is not finite, and the culprit: samples, or a layer and the samples.

    Raises `NonFiniteError` where a parameter is not finite: no later step could mend that.
    """
    if name := first_non_finite(model.named_parameters()):
        raise NonFiniteError(f"{at}: parameter {name} holds a NaN or an infinity; {ADVICE}")
    for batch in seen:
        if not math.isfinite(loss := batch.metrics["loss"].item()):
            return Verdict.BAD, f"{at}: the loss is {loss} on {', '.join(batch.culprits())}"
    if name := first_non_finite((name, p.grad) for name, p in named_parameters(optimizer)):
        of = ", ".join(name for batch in seen for name in batch.names)
        return Verdict.OVERFLOW if scale > 1 else Verdict.BAD, f"{at}: the gradient of {name} is not finite on {of}"
    # What is left is a figure beside the loss, or a norm that overflowed: neither poisons the parameters.
    return Verdict.FINE, ""


def agreed(own: tuple[Verdict, str], ranks: Ranks) -> tuple[Verdict, str]:
    """The worst verdict of all ranks, which skip a step together or not at all, and the first culprit behind it: a
    rank whose own loss is not finite before one that has only the gradient of all."""
    said = ranks.from_all([int(own[0]), own[1]])
    worst = min(verdict for verdict, _ in said)
    culprits = [culprit for verdict, culprit in said if verdict == worst]
    return Verdict(worst), next((c for c in culprits if ": the loss is " in c), culprits[0])


def next_scale(scale: float, steps_since: int, verdict: Verdict) -> tuple[float, int]:
    """The float16 scale after a step and the steps since it changed: halved at an overflow, doubled after 2,000."""
    if verdict is Verdict.OVERFLOW:
        return scale / 2, 0
    if verdict is Verdict.FINE and steps_since + 1 == _STEPS_TO_DOUBLE:
        return scale * 2, 0
    return scale, steps_since + (verdict is Verdict.FINE)
