"""Training bags of a trial, in the order of the training loop, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from longvit.baselines.bag import Bag
from longvit.baselines.system import System
from longvit.comparison.bag_cohort import BagCohort
from longvit.comparison.system_spec import SystemSpec
from longvit.data.cohort import SlideRow

if TYPE_CHECKING:
    from longvit.tasks.task import Task

_ORDER = 7  # separate random stream


class Bags(Sequence[Bag]):
    """Bags of rows, loaded on access; the preparation of a system (graphs, clusters) is kept, the features are not."""

    def __init__(self, bag_cohort: BagCohort, rows: Sequence[SlideRow], spec: SystemSpec, device: torch.device) -> None:
        self.bag_cohort, self.rows, self.spec, self.device = bag_cohort, tuple(rows), spec, device
        self.prepared: dict[int, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Bag:  # type: ignore[override]
        if not 0 <= i < len(self.rows):
            raise IndexError(i)
        bag = self.bag_cohort.bag(self.rows[i], self.spec).to(self.device)
        if i in self.prepared:
            clusters, neighbours = self.prepared[i]
            bag = replace(bag, clusters=clusters, neighbours=neighbours)
        return bag

    def prepare(self, system: System) -> None:
        """Prepares phenotypes and graphs of all bags, once."""
        for i, bag in enumerate(self):
            prepared = system.prepare(bag)
            self.prepared[i] = prepared.clusters, prepared.neighbours


@dataclass(frozen=True)
class BagBatch:
    """Batch of one bag with its label."""

    bag: Bag
    targets: Mapping[str, torch.Tensor]
    """Name -> (1,)."""
    names: tuple[str, ...]


@dataclass(frozen=True)
class TrainingBags:
    """Training batches (`training.batches.Batches`) of one bag each."""

    bags: Bags
    targets: Mapping[str, np.ndarray] = field(repr=False)
    strata: Sequence[str] = field(repr=False)
    balanced: bool
    seed: int
    batch_size: int = 1

    @classmethod
    def for_task(cls, bags: Bags, task: Task, *, balanced: bool, seed: int) -> TrainingBags:
        """Training bags with the labels of `task`."""
        targets = task.targets(bags.rows)
        return cls(bags, targets, strata_of(targets), balanced, seed)

    @property
    def samples(self) -> int:
        """Number of bags per epoch."""
        return len(self.bags)

    def order(self, epoch: int) -> np.ndarray:
        """Order of the bags in an epoch, as indices; a function of (seed, epoch)."""
        rng = np.random.default_rng([self.seed, epoch, _ORDER])
        if not self.balanced or len(set(self.strata)) == 1:
            return rng.permutation(self.samples)
        _, stratum, count = np.unique(np.asarray(self.strata, str), return_inverse=True, return_counts=True)
        weight = 1 / count[stratum]
        return rng.choice(self.samples, self.samples, p=weight / weight.sum())

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[BagBatch]:
        """Batches of `epoch` (0 …) at these positions of its order."""
        order = self.order(epoch)
        for i in (int(order[number]) for number in numbers):
            targets = {name: torch.from_numpy(y[i : i + 1]).to(self.bags.device) for name, y in self.targets.items()}
            yield BagBatch(self.bags[i], targets, (self.bags.rows[i].slide_id,))


def strata_of(targets: Mapping[str, np.ndarray]) -> list[str]:
    """Strata that are sampled equally often: classes, or time bins with and without event (MCAT's eight)."""
    names = [name for name in ("label", "bin", "event") if name in targets]
    n = len(next(iter(targets.values())))
    return ["/".join(str(targets[name][i]) for name in names) for i in range(n)]
