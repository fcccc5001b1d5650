"""The loops of HIPT and MCAT, with their quirks, against sums of gradients by hand."""

from __future__ import annotations

import pytest
import torch
from tests.oracles.published_loops import Stepper
from torch import nn

from longvit.baselines.reference_training import SUBTYPING, SUBTYPING_CLAM, SURVIVAL, PublishedTraining, Steps, adam
from longvit.errors import InputError


def trained(steps: Steps, epochs: int, bags: int) -> tuple[float, int]:
    """Plain gradient descent with rate 1 on w · i for bag i = 1, 2, … → w after all epochs, number of steps."""
    w = nn.Parameter(torch.zeros((), dtype=torch.float64))
    stepper, count = Stepper(torch.optim.SGD([w], lr=1.0), steps), 0
    for _ in range(epochs):
        for i in range(1, bags + 1):
            count += stepper.add(w * i)
        stepper.end_epoch()
    return w.item(), count


def test_hipt_divides_the_loss_and_steps_after_every_bag() -> None:
    assert SUBTYPING.steps == Steps(bags=1, divisor=32)
    value, steps = trained(SUBTYPING.steps, 2, 7)
    assert steps == 14
    assert abs(value + 2 * sum(range(1, 8)) / 32) < 1e-12
    assert SUBTYPING_CLAM.steps.divisor == 1


def test_mcat_carries_the_rest_of_an_epoch_into_the_next() -> None:
    assert SURVIVAL.steps == Steps(bags=32, divisor=32, rest="carried")
    # 70 bags: steps after 32 and 64; the gradient of 65 … 70 waits, and joins bags 1 … 32 of the next epoch
    value, steps = trained(SURVIVAL.steps, 1, 70)
    assert steps == 2
    assert abs(value + sum(range(1, 65)) / 32) < 1e-12
    value, steps = trained(SURVIVAL.steps, 2, 70)
    assert steps == 4
    assert abs(value + (2 * sum(range(1, 65)) + sum(range(65, 71))) / 32) < 1e-12


@pytest.mark.parametrize(("rest", "expected"), [("stepped", sum(range(1, 71))), ("dropped", sum(range(1, 65)))])
def test_the_rest_of_an_epoch_can_be_stepped_or_dropped(rest: str, expected: int) -> None:
    value, _ = trained(Steps(bags=32, divisor=32, rest=rest), 2, 70)  # type: ignore[arg-type]
    assert abs(value + 2 * expected / 32) < 1e-12


def test_optimiser_is_adam_with_its_own_weight_decay_and_leaves_frozen_levels_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = adam(model.parameters(), PublishedTraining(Steps()))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (2e-4, 1e-5, 2)
    assert type(optimizer) is torch.optim.Adam


def test_steps_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="bags 0, divisor 1"):
        Steps(bags=0)
