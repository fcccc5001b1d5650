"""The published loops as a rule of our loop, against the same loops step by step (`oracles.published_loops`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.oracles.published_loops import Stepper
from torch import nn

from longvit.baselines.reference_training import PublishedTraining, Steps, adam
from longvit.comparison.reference_methods import ReferenceMethod
from longvit.errors import InputError
from longvit.training.loop import train
from longvit.training.settings import TrainSettings

N = 11


@dataclass(frozen=True)
class One:
    x: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...]


class Ones:
    """Eleven samples in the order of their numbers, turned by one place each epoch."""

    samples, batch_size = N, 1

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x, self.y = (torch.randn(N, k, generator=g, dtype=torch.float64) for k in (3, 2))

    def order(self, epoch: int) -> list[int]:
        return [(i + epoch) % N for i in range(N)]

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[One]:
        for i in (self.order(epoch)[n] for n in numbers):
            yield One(self.x[i], self.y[i], (str(i),))


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss_of(of: nn.Module, one: One) -> torch.Tensor:
    return (of(one.x) - one.y).square().sum()


def ours(folder: Path, training: PublishedTraining, epochs: int) -> nn.Module:
    found = model()
    train(
        found,
        Ones(),
        lambda m, one: {"loss": loss_of(m, one)},
        TrainSettings(epochs=epochs, accumulation=training.steps.bags, lr=training.lr),
        folder=folder,
        progress=False,
        method=ReferenceMethod(training, N),
    )
    return found


def published(training: PublishedTraining, epochs: int) -> nn.Module:
    found, data = model(), Ones()
    stepper = Stepper(adam(found.parameters(), training), training.steps)
    for epoch in range(epochs):
        for one in data.epoch(epoch, range(N)):
            stepper.add(loss_of(found, one))
        stepper.end_epoch()
    return found


@pytest.mark.parametrize(
    "steps",
    [
        Steps(bags=1, divisor=32),
        Steps(bags=4, divisor=4, rest="carried"),
        Steps(bags=4, divisor=32, rest="carried"),
        Steps(bags=4, divisor=4, rest="dropped"),
        Steps(bags=4, divisor=4, rest="stepped"),
    ],
    ids=str,
)
def test_our_loop_moves_the_weights_as_the_published_ones(tmp_path: Path, steps: Steps) -> None:
    training = PublishedTraining(steps, lr=0.01, weight_decay=0.1)
    for mine, theirs in zip(ours(tmp_path, training, 3).parameters(), published(training, 3).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_what_is_carried_outlives_an_interruption(tmp_path: Path) -> None:
    training = PublishedTraining(Steps(bags=4, divisor=4, rest="carried"), lr=0.01)

    class Stopped(Ones):
        def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[One]:
            if epoch == 1:
                raise RuntimeError("the power is gone")
            return super().epoch(epoch, numbers)

    settings = TrainSettings(epochs=2, accumulation=4, lr=training.lr)
    step = lambda m, one: {"loss": loss_of(m, one)}  # noqa: E731
    with pytest.raises(RuntimeError):
        train(model(), Stopped(), step, settings, folder=tmp_path, progress=False, method=ReferenceMethod(training, N))
    found = model()
    result = train(found, Ones(), step, settings, folder=tmp_path, progress=False, method=ReferenceMethod(training, N))
    assert result.resumed_at == 3
    for mine, theirs in zip(found.parameters(), published(training, 2).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_fewer_bags_than_a_step_takes_are_refused_not_left_untrained() -> None:
    training = PublishedTraining(Steps(bags=32, divisor=32, rest="carried"))
    with pytest.raises(InputError, match=r"11 training bags are fewer than the 32 of a step.*--bags-per-step"):
        ReferenceMethod(training, N)
    ReferenceMethod(PublishedTraining(Steps(bags=32, divisor=32, rest="stepped")), N)
