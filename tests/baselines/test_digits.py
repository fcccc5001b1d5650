"""A bag problem with a known answer (as Ilse et al. 2018 built it): a bag of digits is positive if there is a 9 in it.

scikit-learn's digits, 8 × 8 px, 1,797 of them; bags of N(10, 2) digits, half of them with one or two 9s. What the
systems attend to in positive bags of unseen digits must be the 9s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from longvit.baselines.bag import Bag
from longvit.baselines.system import System, create_system

KEY = 9


@dataclass(frozen=True)
class Bags:
    """bags; labels: 1 where a 9 is in it; keys: of each bag which digits are 9s."""

    bags: list[Bag]
    labels: torch.Tensor
    keys: list[np.ndarray]


def make_bags(images: np.ndarray, digits: np.ndarray, count: int, seed: int) -> Bags:
    rng = np.random.default_rng(seed)
    bags, keys = [], []
    nines, others = np.flatnonzero(digits == KEY), np.flatnonzero(digits != KEY)
    for i in range(count):
        size = max(3, round(rng.normal(10, 2)))
        drawn = rng.choice(others, size, replace=False)
        if i % 2:
            few = rng.integers(1, 3)
            drawn[:few] = rng.choice(nines, few, replace=False)
        rng.shuffle(drawn)
        bags.append(Bag(torch.tensor(images[drawn] / 16, dtype=torch.float32)))
        keys.append(digits[drawn] == KEY)
    return Bags(bags, torch.arange(count) % 2, keys)


@pytest.fixture(scope="module")
def problem() -> tuple[Bags, Bags]:
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    train, test = order[:1200], order[1200:]
    return make_bags(images[train], digits[train], 200, 1), make_bags(images[test], digits[test], 100, 2)


def train(made: System, bags: Bags, lr: float, steps: int) -> None:
    made.fit(bags.bags)
    prepared = [made.prepare(b) for b in bags.bags]
    optimizer = torch.optim.Adam(made.parameters(), lr=lr, weight_decay=1e-5)
    made.train()
    for _ in range(steps):
        found = made.batch(prepared, bags.labels)
        losses = functional.cross_entropy(torch.stack([p.logits for p in found]), bags.labels, reduction="none")
        optimizer.zero_grad()
        torch.stack([p.total(of) for p, of in zip(found, losses, strict=True)]).mean().backward()
        optimizer.step()
    made.eval()


@pytest.mark.parametrize(
    ("name", "settings", "lr", "steps"),
    [
        ("mil", {"hidden": 64}, 5e-3, 50),
        ("attention_mil", {"hidden": 64, "gate": 32, "rho": 32}, 5e-3, 40),
        pytest.param("clam_sb", {"hidden": 64, "gate": 32, "k": 1}, 5e-3, 40, marks=pytest.mark.slow),
        pytest.param("ds_mil", {}, 3e-3, 80, marks=pytest.mark.slow),
    ],
)
def test_attention_finds_the_nines(
    name: str, settings: dict[str, Any], lr: float, steps: int, problem: tuple[Bags, Bags]
) -> None:
    torch.manual_seed(0)
    made = create_system(name, in_dim=64, outputs=2, **settings)
    train(made, problem[0], lr, steps)
    with torch.no_grad():
        found = made.batch(problem[1].bags)
    p = torch.stack([f.logits for f in found]).softmax(1)[:, 1].tolist()
    assert roc_auc_score(problem[1].labels.tolist(), p) >= 0.88
    within = [
        roc_auc_score(keys, f.attention)
        for f, keys, label in zip(found, problem[1].keys, problem[1].labels, strict=True)
        if label and f.attention is not None
    ]
    assert len(within) == 50
    assert np.mean(within) >= 0.9
