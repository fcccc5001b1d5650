"""A system of one's own is one file and one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from longvit.baselines.bag import Bag
from longvit.baselines.catalogue import SYSTEMS
from longvit.baselines.system import create_system

FILE = '''
"""Top-k MIL: the mean of the k tiles that a linear layer scores highest."""

from dataclasses import dataclass

from torch import nn

from longvit.baselines.bag import Prediction, packed
from longvit.baselines.fusion import Head
from longvit.baselines.system import System, check_settings


@dataclass(frozen=True)
class TopKSettings:
    k: int = 5
    """Tiles that count."""

    def __post_init__(self):
        check_settings(self, at_least={"k": 1})


class TopK(System):
    Settings = TopKSettings

    def __init__(self, shape, settings):
        super().__init__(shape)
        self.k = settings.k
        self.score = nn.Linear(shape.in_dim, 1)
        self.head = Head(shape.in_dim, shape)

    def encode(self, bags):
        return packed(self.score, bags)

    def pool(self, encoded, bag, label):
        best = encoded.squeeze(1).topk(min(self.k, len(bag)))
        weights = best.values.softmax(0)
        attention = weights.new_zeros(len(bag)).index_copy(0, best.indices, weights.detach())
        return Prediction(self.head(weights @ bag.features[best.indices], self.omics(bag)), attention)
'''


@pytest.fixture
def top_k() -> Iterator[None]:
    module = ModuleType("longvit.baselines.top_k")
    sys.modules[module.__name__] = module
    exec(compile(FILE, "top_k.py", "exec"), module.__dict__)
    SYSTEMS["top_k"] = "longvit.baselines.top_k:TopK"
    yield
    del sys.modules[module.__name__], SYSTEMS["top_k"]


@pytest.mark.usefixtures("top_k")
def test_a_system_of_ones_own_is_one_file_and_one_line() -> None:
    made = create_system("top_k", in_dim=6, outputs=3, k=2, omics=4, fusion="concat").eval()
    bags = [Bag(torch.randn(n, 6), omics=torch.randn(4)) for n in (1, 8, 3)]
    made.fit(bags)
    for bag, found in zip(bags, made.batch(bags), strict=True):
        assert found.logits.shape == (3,)
        assert found.attention is not None
        assert int((found.attention > 0).sum()) == min(2, len(bag))
        assert (made(bag).logits - found.logits).abs().max() < 1e-6
