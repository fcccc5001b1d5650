"""Benchmark of a whole DINO step beside forward and backward of its crops, and beside the authors' published model.

    python benchmarks/pretrain_step.py [--save] [--quick] [--rounds 2] [--case small tiny]

`small`: LongViT-S, one region, 2 crops of 1,024² and 8 of 512² px, 65,536 prototypes (the paper's crops and head).
`tiny`: LongViT-tiny, 8 regions, crops of 256² and 128² px, the same head. Random pixels, float32, one process each, in
turn.

- `step`: forward of teacher and student, loss, backward, clipping, AdamW, EMA and centre, all crops in one pass;
  `parts` are its seconds
- `step, separate passes`: a pass for every crop size, as in the authors' code
- `forward + backward`: the student's backbone alone over the same crops
- `published`: the authors' forward + backward of one image of 1,024² px, without head or optimiser; the `small` step
  has the work of four of these and of two forwards
- `memory_above_inputs_mib`: without libraries, networks and pixels
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it; before torch is loaded

import torch

from longvit.dino.multicrop import features
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.model.longvit import SIZES
from longvit.pretraining.dino_method import DinoMethod, SelfDistillation
from side_by_side import has_published, measure, report, worker
from worker import memory_mib, reset_peak


@dataclass(frozen=True)
class Case:
    """Case of the benchmark: a model and the crops of its step."""

    model: str
    regions: int
    global_px: int
    local_px: int
    runs: int

    def crops(self, settings: DinoSettings) -> list[torch.Tensor]:
        sides = [self.global_px] * settings.global_crops + [self.local_px] * settings.local_crops
        return [torch.randint(0, 256, (self.regions, 3, s, s), dtype=torch.uint8) for s in sides]


CASES = {
    "small": Case("longvit_small_patch32", 1, 1024, 512, runs=2),
    "tiny": Case("longvit_tiny_patch32", 8, 256, 128, runs=5),
}
WHAT = ("step", "step, separate passes", "forward + backward")


class Clock:
    """Stopwatch: seconds since the last mark, by name."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self.last = now - self.last, now


def dino_step(
    model: SelfDistillation, method: DinoMethod, optimizer: torch.optim.Optimizer, crops: list[torch.Tensor], step: int
) -> dict[str, float]:
    """Runs one optimiser step as in the training loop; returns the seconds of its parts."""
    networks, settings = model.networks, model.networks.settings
    clock = Clock()
    method.before_step(optimizer, step)
    with torch.no_grad():
        teacher = networks.teacher(crops[: settings.global_crops], packed=method.packed)
    clock.mark("teacher")
    student = networks.student(crops, packed=method.packed)
    clock.mark("student")
    terms = model.loss(student, teacher, teacher_temperature=method.teacher_temperature)
    clock.mark("loss")
    terms.loss.backward()
    clock.mark("backward")
    gradients = [p.grad for p in networks.student.parameters() if p.grad is not None]
    method.transform_gradients(gradients, float(torch.nn.utils.get_total_norm(gradients)))
    clock.mark("clip")
    optimizer.step()
    optimizer.zero_grad()
    clock.mark("AdamW")
    method.after_step(step, terms.statistics)
    clock.mark("average, centre")
    return clock.parts


def one_measurement(case: Case, what: str) -> dict[str, Any]:
    """Seconds of every run after a warm-up, and peak memory; for a step also its parts."""
    torch.manual_seed(0)
    settings = DinoSettings()
    model = SelfDistillation(SIZES[case.model], settings).train()
    schedules = Schedules(settings, steps_per_epoch=100, batch=case.regions)
    method = DinoMethod(model, schedules, packed=what != WHAT[1])
    optimizer, crops = method.optimizer(model), case.crops(settings)
    direction = torch.randn(SIZES[case.model].embed_dim)
    before = memory_mib("VmRSS")
    reset_peak()
    seconds, parts = [], []
    for run in range(case.runs + 1):
        start = time.perf_counter()
        if what == WHAT[2]:
            (features(model.networks.student.backbone, crops) * direction).sum().backward()
            model.zero_grad()
        else:
            parts.append(dino_step(model, method, optimizer, crops, 100 + run))  # the last layer is no longer frozen
        seconds.append(time.perf_counter() - start)
    peak = memory_mib("VmHWM")
    return {"seconds": seconds[1:], "parts": parts[1:], "peak_mib": peak, "above_inputs_mib": peak - before}


def rows(name: str, rounds: int) -> list[dict[str, Any]]:
    case = CASES[name]
    commands = {what: [sys.executable, __file__, "--case", name, "--measure", what] for what in WHAT}
    if name == "small" and has_published():
        commands["published"] = worker("published", "model", "--image", "1024", "--backward", "--runs", str(case.runs))
    runs_of: dict[str, list[dict[str, Any]]] = {what: [] for what in commands}
    for _ in range(rounds):
        for what, command in commands.items():
            runs_of[what].append(measure(command))
    seconds = {what: statistics.median(s for r in results for s in r["seconds"]) for what, results in runs_of.items()}
    table = []
    for what, results in runs_of.items():
        row: dict[str, Any] = {"what": what, "model": case.model}
        if what == "published":
            row |= {"images_px": "1 x 1024"}
        else:
            row |= {"crops_px": f"2 x {case.global_px} + 8 x {case.local_px}", "regions": case.regions}
        row |= {
            "seconds": round(seconds[what], 3),
            "over_forward_backward": round(seconds[what] / seconds[WHAT[2]], 3),
            "peak_mib": round(statistics.median(r["peak_mib"] for r in results)),
            "memory_above_inputs_mib": round(statistics.median(r["above_inputs_mib"] for r in results)),
        }
        if "published" in seconds and what != "published":
            row["over_published"] = round(seconds[what] / seconds["published"], 3)
        if what == WHAT[0]:
            parts = [p for r in results for p in r["parts"]]
            row["parts"] = {key: round(statistics.median(p[key] for p in parts), 4) for key in parts[0]}
        table.append(row)
    if name == "small" and not has_published():
        table.append({"what": "published", "skipped": "the authors' code is not at ../shared/peers"})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=WHAT, help=argparse.SUPPRESS)  # in a separate process
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the tiny case, one round: does it run")
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(one_measurement(CASES[args.case[0]], args.measure)))
        return
    cases, rounds = (["tiny"], 1) if args.quick else (args.case, args.rounds)
    report("pretrain_step", [row for name in cases for row in rows(name, rounds)], args.save and not args.quick)


if __name__ == "__main__":
    main()
