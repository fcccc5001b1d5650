"""Benchmark of learning on little data: LongViT-tiny with and without parts, beside a plain vision transformer.

    python benchmarks/trainability.py [--save] [--tasks texture …] [--variants longvit …] [--seeds 0 1 2] [--jobs 2]
    python benchmarks/trainability.py --save --table        # tables of the stored trials, by settings; nothing runs
    python benchmarks/trainability.py --quick               # every part at toy size, in a temporary file

A trial is a task (`trainability_tasks.py`), a variant (`trainability_models.py`) and a seed. It takes 220 steps of 16
images, AdamW, warm-up over 40 steps, then cosine; decay 0.05 on matrices. Its AUC is that of unseen images: 256 new
ones, or the fields of another source (stain, patient). The learning rate is chosen among `--rates` by trainings of half
the steps, on validation images of a separate seed or source. One rate in the list skips this.

`--equal-time` adds trials with as many steps as fit into the reference's seconds of the same task, from the CPU seconds
of both at equal steps. Gaps to the reference are paired: same seeds, same test images (`paired.py`).

`--save` keeps trials in results/trainability.json and draws trainability.png; `--out FILE` names another file. Both
resume: finished trials are not repeated. A trial takes one to two minutes on a thread of its own, with three rates
2.5 times as long. Tasks on real fields need ../shared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from longvit.figure import new_figure, write_figure
from paired import gap, rounds_of, scored
from side_by_side import HERE
from trainability_models import REFERENCE, VARIANTS
from trainability_tasks import TASKS, Data, HeldOut, open_data, why_absent
from trials import Row, TrialFile, finished, run_trials

RESULT = HERE / "results" / "trainability.json"
WARMUP_STEPS, WEIGHT_DECAY, CLIP_NORM = 40, 0.05, 1.0


@dataclass(frozen=True)
class Trial:
    """One training, as it is named in the result file."""

    task: str
    variant: str
    seed: int
    budget: str = "steps"
    """"steps": as many as asked. "time of 220 steps": as many as fit into the reference's seconds for 220 steps."""
    steps: int = 220
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    image_px: int = 256
    batch: int = 16
    n_test: int = 256


def train(model: nn.Module, data: Data, trial: Trial, lr: float, steps: int, *, search: bool) -> dict[str, float]:
    """Trains a model in place. CPU seconds and the mean loss of the last ten steps."""
    undecayed = getattr(model, "no_weight_decay", set)()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and name not in undecayed].append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": p, "weight_decay": WEIGHT_DECAY * decays} for decays, p in groups.items()]
    )
    generator = torch.Generator().manual_seed(1000 + trial.seed)
    warmup, losses, start = min(WARMUP_STEPS, max(1, steps // 4)), [], time.process_time()
    model.train()
    for step in range(steps):
        after = max(0, step - warmup) / max(1, steps - warmup)
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * after))
        images, labels = data.batch(trial.batch, generator, search=search)
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        losses.append(loss.item())
    return {"cpu_seconds": time.process_time() - start, "loss": statistics.mean(losses[-10:])}


@torch.inference_mode()
def scores_of(model: nn.Module, held_out: HeldOut) -> np.ndarray:
    """Difference of the two logits of every image."""
    model.eval()
    logits = torch.cat([model(images) for images in held_out.batches()])
    return (logits[:, 1] - logits[:, 0]).numpy()


def run_trial(trial: Trial) -> Row:
    """Chooses the learning rate, trains and tests."""
    data = open_data(trial.task, trial.seed, trial.image_px, trial.n_test)
    side_px = next(iter(data.held_out(search=False).batches())).shape[-1]

    def new_model() -> nn.Module:
        torch.manual_seed(trial.seed)
        return VARIANTS[trial.variant](side_px)

    found: dict[float, float] = {}
    for lr in trial.rates if len(trial.rates) > 1 else ():
        model, validation = new_model(), data.held_out(search=True)
        train(model, data, trial, lr, max(1, trial.steps // 2), search=True)
        found[lr] = round(float(roc_auc_score(validation.labels, scores_of(model, validation))), 4)
    lr = max(found, key=lambda rate: found[rate]) if found else trial.rates[0]
    model, test = new_model(), data.held_out(search=False)
    cost = train(model, data, trial, lr, trial.steps, search=False)
    return {
        "lr": lr,
        "validation_auc": {f"{rate:g}": auc for rate, auc in found.items()},
        "loss": round(cost["loss"], 4),
        "cpu_seconds": round(cost["cpu_seconds"], 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        **scored(test.test_set, test.labels, scores_of(model, test), test.cases),
    }


def equal_time(trial: Trial, rows: Sequence[Row]) -> Trial | None:
    """The trial with the steps that fit into the reference's seconds; None where a measurement is missing."""
    ours, reference = finished(rows, trial), finished(rows, replace(trial, variant=REFERENCE))
    if ours is None or reference is None or trial.variant == REFERENCE:
        return None
    steps = round(trial.steps * reference["cpu_seconds"] / ours["cpu_seconds"])
    return replace(trial, budget=f"time of {trial.steps} steps", steps=max(1, steps), rates=(ours["lr"],))


# --- table and plot -------------------------------------------------------------------------------------------------


def cell(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    """Summary of a task and variant: AUC over seeds, and the gap to the reference."""
    aucs = [row["auc"] for row in rows]
    ahead = gap(rounds_of(rows, reference))
    return {
        "seeds": len(aucs),
        "mean": statistics.mean(aucs),
        "sd": statistics.stdev(aucs) if len(aucs) > 1 else math.nan,
        "gap": ahead,
        "cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows),
        "steps": statistics.median(row["steps"] for row in rows),
    }


def cells(rows: Sequence[Row], budget: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, variant) -> summary of the finished trials of a budget."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of_budget = row["budget"].startswith("steps" if row["variant"] == REFERENCE else budget)
        if "failed" not in row and of_budget:
            groups.setdefault((row["task"], row["variant"]), []).append(row)
    return {key: cell(found, groups.get((key[0], REFERENCE), [])) for key, found in groups.items()}


def table(rows: Sequence[Row], asked: Sequence[Trial]) -> str:
    """Text of the table: a line per task and variant, at equal steps and, where measured, at equal time."""
    done = sum(finished(rows, trial) is not None for trial in asked)
    lines = [f"{done} of {len(asked)} trials at equal steps; reference {REFERENCE}; AUC on unseen images, mean ± SD"]
    lines += [f"failed: {r['task']} {r['variant']} seed {r['seed']}: {r['failed']}" for r in rows if "failed" in r]
    for budget in ("steps", "time"):
        summary = cells(rows, budget)
        if budget == "time" and all(row["budget"] == "steps" for row in rows):
            continue
        lines += ["", f"at equal {budget}", f"{'task':14}{'variant':31}{'AUC (seeds)':19}{'gap to reference':25}CPU s"]
        for task in TASKS:
            for variant in VARIANTS:
                if c := summary.get((task, variant)):
                    mean = f"{c['mean']:.3f} ± {c['sd']:.3f} ({c['seeds']})".replace("nan", "–")
                    ahead = "" if variant == REFERENCE else c["gap"].text()
                    lines.append(f"{task:14}{variant:31}{mean:19}{ahead:25}{c['cpu_seconds']:5.0f}")
    return "\n".join(lines)


def stored_settings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Settings of the stored trials at equal steps, those with most trials first."""
    keys = ("steps", "rates", "image_px", "batch", "n_test")
    found = [tuple(row[key] if key != "rates" else tuple(row[key]) for key in keys) for row in rows]
    counts = Counter(values for values, row in zip(found, rows, strict=True) if row["budget"] == "steps")
    return [dict(zip(keys, values, strict=True)) for values, _ in counts.most_common()]


def of_protocol(rows: Sequence[Row], trial: Trial) -> list[Row]:
    """Rows of trials with the settings of `trial`; a table never mixes settings."""
    settings = {key: getattr(trial, key) for key in ("image_px", "batch", "n_test")}
    at_steps = settings | {"steps": trial.steps, "rates": list(trial.rates), "budget": "steps"}
    at_time = settings | {"budget": f"time of {trial.steps} steps"}
    return [row for row in rows if any(wanted.items() <= row.items() for wanted in (at_steps, at_time))]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Dots: the AUC of each task and variant, with its SD over seeds; hollow at equal time."""
    figure = new_figure(9, 4.2)
    axes = figure.subplots()
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    for budget, marker in (("steps", "o"), ("time", "D")):
        summary = cells([row for row in rows if budget == "steps" or row["variant"] != REFERENCE], budget)
        for i, variant in enumerate(VARIANTS):
            points = [(tasks.index(task) + 0.12 * (i - 3), c) for (task, v), c in summary.items() if v == variant]
            if points:
                x, found = zip(*points, strict=True)
                axes.errorbar(
                    x,
                    [c["mean"] for c in found],
                    [0 if math.isnan(c["sd"]) else c["sd"] for c in found],
                    fmt=marker,
                    color=f"C{i}",
                    markerfacecolor=f"C{i}" if budget == "steps" else "none",
                    label=f"{variant}, equal {budget}",
                )
    axes.axhline(0.5, color="#777777", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylabel("AUC on unseen images")
    figure.legend(fontsize=7, loc="outside right upper")
    write_figure(figure, path, dpi=120)


# --- command --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=Trial.steps)
    parser.add_argument("--rates", nargs="*", type=float, default=list(Trial.rates))
    parser.add_argument("--image", type=int, default=Trial.image_px, help="side of synthetic images, px")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once, each in a process")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--equal-time", action="store_true")
    parser.add_argument("--quick", action="store_true", help="toy size: 2 steps of 64 px")
    parser.add_argument("--table", action="store_true", help="print the table of the stored trials only")
    parser.add_argument("--out", type=Path, help="file of the trials, to be resumed; default: a temporary one")
    parser.add_argument("--save", action="store_true", help="keep the trials in benchmarks/results/")
    args = parser.parse_args()
    size = {"steps": args.steps, "rates": tuple(args.rates), "image_px": args.image}
    if args.quick:
        size, args.seeds = {"steps": 2, "rates": (1e-4, 1e-3), "image_px": 64, "batch": 4, "n_test": 8}, [0]
    tasks = []
    for task in args.tasks:
        if reason := why_absent(task):
            print(reason)
        else:
            tasks.append(task)
    trials = [Trial(task, variant, s, **size) for s in args.seeds for task in tasks for variant in args.variants]
    with tempfile.TemporaryDirectory() as temporary:
        path = args.out or (RESULT if args.save else Path(temporary) / RESULT.name)
        file = TrialFile(path, "trainability")
        if not args.table:
            run_trials(file, trials, run_trial, jobs=args.jobs, threads=args.threads)
            if args.equal_time:
                rows = file.rows()
                more = [at_time for trial in trials if (at_time := equal_time(trial, rows))]
                run_trials(file, more, run_trial, jobs=args.jobs, threads=args.threads)
        stored = stored_settings(file.rows())
        for settings in stored if args.table else [size]:
            asked = [replace(trial, **settings) for trial in trials]
            print(", ".join(f"{name} {value}" for name, value in settings.items()))
            print(table(of_protocol(file.rows(), asked[0]), asked), end="\n\n")
        if stored and path.parent != Path(temporary):
            plot(of_protocol(file.rows(), Trial("", "", 0, **stored[0])), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
