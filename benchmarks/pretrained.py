"""Benchmark of fine-tuning from pretrained weights against random weights, on fields that no pretraining has seen.

    python benchmarks/pretrained.py [--save] [--quick] [--fields squares …] [--weights NAME] [--seeds 0 1 2]

Both start as the same network and have the same batches: AdamW, 3e-4, 40 steps of 16 fields (as many of each class),
turned and mirrored. Nothing is tuned.

- squares: 576 squares of 64 px of the example slide, a proxy label of grain (`folds.py`), five folds by block
- colon: 338 fields reduced to 224 px, adenocarcinoma or healthy; trained on random crops of 128 px in random colours,
  tested on whole fields of held-out sources (needs ../shared)
- oral_scc: the same for carcinoma or normal at 400×; tested on the stainings of the fold that pretraining left out

The gap is the mean over folds and seeds of the difference of AUCs; its 95 % interval resamples the test cases, the same
ones for both, then folds and seeds (`paired.py`). Trials are stored one by one, and finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.model.longvit import LongViT, create_model
from paired import gap, rounds_of, scored
from pretraining import MODEL, TESTED, Fields, real, squares
from side_by_side import HERE
from trainability_tasks import recoloured, why_absent
from trials import Row, TrialFile, run_trials

RESULT = HERE / "results" / "pretrained.json"
CROP_PX = {"squares": 64, "colon": 128, "oral_scc": 128}
BATCH, WARMUP_STEPS, LR, WEIGHT_DECAY = 16, 8, 3e-4, 0.05


@dataclass(frozen=True)
class Trial:
    """One training."""

    fields: str
    weights: str | None
    """None: random."""
    fold: str
    seed: int
    steps: int = 40


@lru_cache(maxsize=1)
def fields_of(name: str) -> Fields:
    if name == "squares":
        with tempfile.TemporaryDirectory() as folder:
            return squares(Path(folder), 64)
    return real(name, TESTED[name])


def batch_of(fields: Fields, train: np.ndarray, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training images (16, 3, S, S), normalised, and labels."""
    chosen = []
    for label in (0, 1):
        index = np.flatnonzero(train & (fields.labels == label))
        chosen.append(index[torch.randint(len(index), (BATCH // 2,), generator=g).numpy()])
    index, side = np.concatenate(chosen), CROP_PX[fields.name]
    images = []
    for image in torch.from_numpy(fields.pixels[index]).permute(0, 3, 1, 2):
        top, left = torch.randint(image.shape[1] - side + 1, (2,), generator=g).tolist()
        crop = image[:, top : top + side, left : left + side]
        crop = crop.rot90(int(torch.randint(4, (1,), generator=g)), (1, 2))
        images.append(crop.flip(2) if torch.rand(1, generator=g) < 0.5 else crop)
    x = normalised(torch.stack(images))
    return x if fields.name == "squares" else recoloured(x, g), torch.from_numpy(fields.labels[index])


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images.float() - mean) / std


def train(model: LongViT, fields: Fields, trains: np.ndarray, trial: Trial) -> None:
    """Trains a model in place."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in model.no_weight_decay()]
    kept = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in kept]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}], lr=LR)
    g = torch.Generator().manual_seed(1000 + trial.seed)
    model.train()
    for step in range(trial.steps):
        share = max(0, step - WARMUP_STEPS) / max(1, trial.steps - WARMUP_STEPS)
        for group in optimiser.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP_STEPS, (1 + np.cos(np.pi * share)) / 2)
        images, labels = batch_of(fields, trains, g)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def run(trial: Trial) -> Row:
    """Trains on the other folds, tests on one."""
    fields = fields_of(trial.fields)
    torch.manual_seed(trial.seed)
    model = create_model(MODEL, pretrained=trial.weights or False, num_classes=2)
    test = fields.folds == trial.fold
    train(model, fields, ~test, trial)
    pixels = torch.from_numpy(fields.pixels[test]).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model(part.contiguous()).float() for part in pixels.split(32)])
    cases = [case for case, is_tested in zip(fields.cases, test, strict=True) if is_tested]
    return scored(f"{trial.fields} {trial.fold}", fields.labels[test], (logits[:, 1] - logits[:, 0]).numpy(), cases)


def summary(fields: str, weights: str, rows: list[Row]) -> dict[str, Any]:
    """AUCs from random and from pretrained weights, and their gap."""
    done = [row for row in rows if row["fields"] == fields and "failed" not in row]
    random, ours = ([row for row in done if row["weights"] == name] for name in (None, weights))
    return {
        "fields": fields,
        "trials": len(ours),
        "random": round(statistics.mean(row["auc"] for row in random), 3),
        "pretrained": round(statistics.mean(row["auc"] for row in ours), 3),
        "gap": gap(rounds_of(ours, random)).text(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="*", default=list(CROP_PX), choices=list(CROP_PX))
    parser.add_argument("--weights", default="longvit-tiny-stem")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one fold of the squares, two steps: does it run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        file = TrialFile(RESULT if args.save and not args.quick else Path(temporary) / RESULT.name, "pretrained")
        for name in ["squares"] if args.quick else args.fields:
            if reason := why_absent(name):
                print(reason)
                continue
            make = partial(Trial, name, steps=2 if args.quick else 40)
            trials = [
                make(weights, fold, seed)
                for seed in (args.seeds[:1] if args.quick else args.seeds)
                for fold in (fields_of(name).tested[:1] if args.quick else fields_of(name).tested)
                for weights in (None, args.weights)
            ]
            print(summary(name, args.weights, run_trials(file, trials, run)))


if __name__ == "__main__":
    main()
