"""Survival from omic tables without images: a check of folds, labels, losses and the c-index on real patients.

    python benchmarks/omics.py [--save] [--quick] [--cohorts ucec luad]

The published folds and tables of two cohorts (UCEC: 123 copy numbers; LUAD: 3,096 copy numbers and expressions), each
feature standardised on the training part of the fold. Two models, each with the same settings everywhere:

    ridge Cox     our Cox loss per event + 2 |w|², minimised to convergence. The protocol's sanity values come from such
                  a model (UCEC .628 ± .074, LUAD .622 ± .037; "l2 = 2"). Of six scalings of loss and penalty that were
                  tried, this one meets both; so it checks the arithmetic and is not a result
    linear NLL    the head of a survival task: one linear layer to 4 bins and the discrete-time likelihood, trained by
                  the package's loop; settings chosen before its first run and not changed since

Needs ../shared/data/mcat beside the project.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import nn

from longvit.finetuning.evaluate import spread
from longvit.metrics.survival import c_index
from longvit.tasks.survival_loss import bin_of, cox_loss, nll_loss, risk, time_bins
from longvit.training.loop import train
from longvit.training.settings import TrainSettings
from side_by_side import HERE, report

MCAT = HERE.parents[1] / "shared" / "data" / "mcat"
PROTOCOL = {"ucec": "0.628 ± 0.074", "luad": "0.622 ± 0.037"}
L2 = 2.0
BATCH = 32
SETTINGS = TrainSettings(epochs=20, lr=1e-4, warmup_epochs=1, weight_decay=0.05)


@dataclass(frozen=True)
class Fold:
    """Features standardised on the training patients; months and event of both parts."""

    x_train: np.ndarray
    x_val: np.ndarray
    months_train: np.ndarray
    months_val: np.ndarray
    event_train: np.ndarray
    event_val: np.ndarray


def folds_of(cohort: str) -> Iterator[Fold]:
    """Reads the five published folds."""
    table = pd.read_csv(MCAT / "clinical" / f"tcga_{cohort}_all_clean.csv.zip", low_memory=False)
    table = table.drop_duplicates("case_id").set_index("case_id")
    features = table[[c for c in table.columns if c.endswith(("_mut", "_cnv", "_rnaseq"))]].astype(np.float64)
    months, event = table["survival_months"], 1 - table["censorship"]
    for k in range(5):
        split = pd.read_csv(MCAT / "splits" / f"tcga_{cohort}" / f"splits_{k}.csv")
        train_ids, val_ids = split["train"].dropna(), split["val"].dropna()
        x, mean, sd = features.loc[train_ids], features.loc[train_ids].mean(), features.loc[train_ids].std()
        varies = sd[sd > 0].index
        scaled = [((part - mean) / sd)[varies].to_numpy() for part in (x, features.loc[val_ids])]
        yield Fold(
            *scaled,
            *(months.loc[ids].to_numpy() for ids in (train_ids, val_ids)),
            *(event.loc[ids].to_numpy() for ids in (train_ids, val_ids)),
        )


def ridge_cox(fold: Fold) -> np.ndarray:
    """Risk of the val patients. Solved in the axes of the training patients: 362 weights instead of 3,096."""
    _, size, axes = np.linalg.svd(fold.x_train, full_matrices=False)
    axes = axes[size > 1e-8 * size[0]]
    x = torch.tensor(fold.x_train @ axes.T)
    months, event = torch.tensor(fold.months_train), torch.tensor(fold.event_train)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(weights, requires_grad=True)
        value = cox_loss(x @ w, months, event).mean() + L2 * w.square().sum()
        value.backward()
        assert w.grad is not None
        return value.item(), w.grad.numpy()

    solution = minimize(
        objective, np.zeros(len(axes)), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13}
    )
    return fold.x_val @ axes.T @ solution.x


@dataclass(frozen=True)
class Batch:
    """Patients of one step."""

    names: tuple[str, ...]
    x: torch.Tensor
    bin: torch.Tensor
    event: torch.Tensor


class Patients:
    """Training patients, reshuffled in every epoch."""

    batch_size = BATCH

    def __init__(self, fold: Fold, edges: np.ndarray) -> None:
        self.x = torch.tensor(fold.x_train, dtype=torch.float32)
        self.bin = torch.tensor(bin_of(fold.months_train, edges))
        self.event = torch.tensor(fold.event_train)
        self.samples = len(self.x)

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[Batch]:
        order = np.random.default_rng((SETTINGS.seed, epoch)).permutation(self.samples)
        for number in numbers:
            rows = torch.tensor(order[number * BATCH : (number + 1) * BATCH])
            yield Batch(tuple(map(str, rows.tolist())), self.x[rows], self.bin[rows], self.event[rows])


def step(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    losses = nll_loss(model(batch.x), batch.bin, batch.event)
    return {"loss": losses.mean(), "losses": losses}


def linear_nll(fold: Fold, folder: Path) -> np.ndarray:
    """Risk of the val patients after the last epoch."""
    model = nn.Linear(fold.x_train.shape[1], 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    edges = time_bins(fold.months_train, fold.event_train)
    train(model, Patients(fold, edges), step, SETTINGS, folder=folder, progress=False)
    with torch.no_grad():
        return risk(model(torch.tensor(fold.x_val, dtype=torch.float32)).double()).numpy()


def row(cohort: str, model: str, values: list[float]) -> dict[str, Any]:
    mean, sd = spread(values, 1)
    result = {
        "cohort": cohort,
        "model": model,
        "folds": [round(v, 4) for v in values],
        "c_index": f"{mean:.3f} ± {sd:.3f}",
    }
    return result | ({"protocol": PROTOCOL[cohort]} if model == "ridge_cox" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", nargs="*", default=list(PROTOCOL), choices=list(PROTOCOL))
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one cohort, one fold: does it run")
    args = parser.parse_args()
    if not MCAT.is_dir():
        raise SystemExit("needs the reference material: data/mcat is not at ../shared")
    rows = []
    for cohort in args.cohorts[:1] if args.quick else args.cohorts:
        values: dict[str, list[float]] = {"ridge_cox": [], "linear_nll": []}
        for k, fold in enumerate(islice(folds_of(cohort), 1 if args.quick else None)):
            with tempfile.TemporaryDirectory() as folder:
                risks = {"ridge_cox": ridge_cox(fold), "linear_nll": linear_nll(fold, Path(folder) / str(k))}
            for name, predicted in risks.items():
                values[name].append(c_index(fold.months_val, fold.event_val, predicted))
        rows += [row(cohort, name, c_indices) for name, c_indices in values.items()]
    report("omics", rows, args.save and not args.quick)


if __name__ == "__main__":
    main()
