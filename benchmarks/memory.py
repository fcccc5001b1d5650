"""Benchmark of the peak memory of a training step: ours with recomputation beside the authors' published code.

    python benchmarks/memory.py [--save] [--resume] [--quick] [--image 1024 2048 4096 8192]

LongViT-S, batch 1, float32, random pixels: mean of the tokens, norm, head, cross-entropy, forward and backward. Every
measurement runs in a separate process. `peak_mib` is VmHWM above VmRSS before the model is made (after a step of a tiny
one, which loads libraries). It has parameters, image, activations and gradients; no optimiser. Ours takes the image as
uint8, the published code the normalised float image, as each is used.

At 8,192² the published code would take some 60 GB. Its peak there is extrapolated from 2,048² and 4,096² (it is linear
in tokens) and marked `from_slope`, as for any size that does not fit into memory. Rows `curve` compare ours with the
formula of `longvit plan`, which is evaluated up to 1,048,576 patches. `time`: with and without recomputation in turn in
one process.

--save writes results/memory.json after every measurement and memory.png; --resume keeps the stored results. Some 20
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from longvit.figure import new_figure, write_figure
from side_by_side import HERE, PEERS, has_published, report
from worker import memory_mib, peer, reset_peak

Row = dict[str, Any]
SIZES_PX = (1024, 2048, 4096, 6144, 8192)
PUBLISHED_TO_PX = 4096
TIMED_TO_PX = 4096
EXTRAPOLATED_PX = (16_384, 32_768)
TIMEOUT_S = 900
GOALS = {4096: 1 / 6, 8192: 1 / 8}
TIME_GOAL = 1.35


# --- in a separate process ------------------------------------------------------------------------------------------


def step_of(code: str, image_px: int, recompute: bool, dtype: str) -> tuple[Any, Any]:
    """Function of one step, and our model to switch recomputation (None for the published code)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from longvit import create_model
    from longvit.model.longvit import segment_schedule

    torch.manual_seed(0)
    label, narrow = torch.zeros(1, dtype=torch.long), dtype == "bfloat16"
    if code == "ours":
        ours = create_model("longvit_small_patch32", num_classes=2)
        ours.set_recompute(recompute)
        image = torch.randint(0, 256, (1, 3, image_px, image_px), dtype=torch.uint8)
        parameters, logits = list(ours.parameters()), lambda: ours(image)
    else:
        segments = segment_schedule((image_px // 32) ** 2)
        published = peer().longvit(image_px, segments, recompute=recompute)
        norm, head = nn.LayerNorm(384), nn.Linear(384, 2)
        image = torch.randn(1, 3, image_px, image_px)
        parameters = [p for m in (published, norm, head) for p in m.parameters()]
        ours, logits = None, lambda: head(norm(published(image).mean(1)))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = F.cross_entropy(logits(), label)
        loss.backward()
        for p in parameters:
            p.grad = None

    return step, ours


def libraries(code: str) -> None:
    """Runs a step of a tiny model, so that kernels and autograd are loaded before the measurement."""
    import ctypes

    import torch

    from longvit import create_model

    model = create_model("longvit_tiny_patch32", grid_patches=2)
    model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).square().sum().backward()
    if code == "published":
        peer()
    del model
    ctypes.CDLL(None).malloc_trim(0)


def peak(args: argparse.Namespace) -> Row:
    libraries(args.who)
    reset_peak()
    before = memory_mib("VmRSS")
    step, _ = step_of(args.who, args.image[0], args.recompute, args.dtype)
    start = time.perf_counter()
    step()
    return {"peak_mib": round(memory_mib("VmHWM") - before), "seconds": round(time.perf_counter() - start, 1)}


def times(args: argparse.Namespace) -> Row:
    """Seconds with and without recomputation, in turn; also CPU seconds, which depend less on other load."""
    step, model = step_of("ours", args.image[0], True, args.dtype)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for i in range(args.rounds + 1):
        for recompute in found:
            model.set_recompute(recompute)
            start = time.perf_counter(), time.process_time()
            step()
            if i:
                found[recompute].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = ({r: statistics.median(s[k] for s in seconds) for r, seconds in found.items()} for k in (0, 1))
    return {
        "seconds": round(wall[True], 2),
        "kept_seconds": round(wall[False], 2),
        "ratio": round(wall[True] / wall[False], 3),
        "cpu_ratio": round(cpu[True] / cpu[False], 3),
    }


# --- the table ------------------------------------------------------------------------------------------------------


class Results:
    """Rows of the result file, saved after each measurement."""

    def __init__(self, save: bool, resume: bool) -> None:
        self.save, path = save, HERE / "results" / "memory.json"
        self.known = json.loads(path.read_text())["rows"] if resume and path.is_file() else []
        self.rows: list[Row] = []

    def measured(self, asked: Row, *flags: str) -> Row | None:
        """Row of a measurement, new or stored; None where it failed (the row has the reason)."""
        known = next((r for r in self.known if asked.items() <= r.items() and "failed" not in r), None)
        row = known or asked | self._run(asked, *flags)
        self.add(row)
        return None if "failed" in row else row

    def add(self, row: Row) -> None:
        print(json.dumps(row), file=sys.stderr, flush=True)
        self.rows.append(row)
        if self.save:
            from contextlib import redirect_stdout
            from io import StringIO

            with redirect_stdout(StringIO()):
                report("memory", self.rows, save=True)

    @staticmethod
    def _run(asked: Row, *flags: str) -> Row:
        command = [sys.executable, str(Path(__file__).resolve()), "--one", asked["what"]]
        command += ["--image", str(asked["image_px"]), "--dtype", asked["dtype"], *flags]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {"failed": f"longer than {TIMEOUT_S} s"}
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            return {"failed": f"exit code {done.returncode} {last}".strip()}
        row: Row = json.loads(done.stdout.strip().splitlines()[-1])
        return row


def available_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def from_slope(peaks: dict[int, float], image_px: int) -> float | None:
    """Peak extrapolated linearly in tokens from the two largest measured sizes."""
    if len(peaks) < 2:
        return None
    (n1, p1), (n2, p2) = sorted((px * px, p) for px, p in peaks.items())[-2:]
    return p2 + (image_px**2 - n2) * (p2 - p1) / (n2 - n1)


def peaks(results: Results, sizes: list[int], dtype: str) -> dict[tuple[str, bool], dict[int, float]]:
    """Peak memory in MiB: (code, recompute) → image side → MiB."""
    found: dict[tuple[str, bool], dict[int, float]] = {}
    for code, recompute in (("ours", True), ("ours", False), ("published", False), ("published", True)):
        if code == "published" and not has_published():
            continue
        by_size = found.setdefault((code, recompute), {})
        for px in sizes:
            if (code, recompute) != ("ours", True) and px > PUBLISHED_TO_PX:
                continue
            expected = from_slope(by_size, px) or 0
            asked = {"what": "peak", "who": code, "recompute": recompute, "image_px": px, "dtype": dtype}
            if expected * 1.1 > available_mib():
                results.add(asked | {"failed": f"needs {expected:.0f} MiB, {available_mib():.0f} are available"})
                continue
            row = results.measured(asked, "--who", code, *(["--recompute"] if recompute else []))
            if row:
                by_size[px] = row["peak_mib"]
    return found


def planned_mib(image_px: int, dtype: str, recompute: bool = True) -> float:
    """Peak memory by the formula, with the parameters, as measured here."""
    from dataclasses import replace

    from longvit.model.longvit import SIZES, segment_schedule
    from longvit.plan.memory import Load, training_memory

    rows = image_px // 32
    config = replace(SIZES["longvit_small_patch32"], num_classes=2)
    load = Load(config, rows * rows, rows, segment_schedule(rows * rows)[0], dtype, recompute)
    memory = training_memory(load)
    return (memory.peak + memory.parameters) / 2**20


def compared(found: dict[tuple[str, bool], dict[int, float]], sizes: list[int], dtype: str) -> list[Row]:
    """Ours with recomputation against the published code, with and without its recomputation; the goals."""
    rows = []
    for recompute in (False, True):
        ours, published = found[("ours", True)], found.get(("published", recompute), {})
        for px in sizes:
            published_mib = published.get(px) or from_slope(published, px)
            if px not in ours or published_mib is None:
                continue
            row: Row = {"what": "memory", "image_px": px, "dtype": dtype, "published_recomputes": recompute}
            row |= {"ours_mib": ours[px], "published_mib": round(published_mib), "from_slope": px not in published}
            row["ratio"] = round(ours[px] / published_mib, 4)
            if px in GOALS and not recompute:
                row |= {"goal": round(GOALS[px], 4), "reached": row["ratio"] <= GOALS[px]}
            rows.append(row)
    return rows


def curve(ours: dict[int, float], dtype: str) -> list[Row]:
    """Peak by number of patches: measured and by formula, then by formula alone."""
    rows = []
    for px in [*sorted(ours), *EXTRAPOLATED_PX]:
        planned = planned_mib(px, dtype)
        row: Row = {"what": "curve", "patches": (px // 32) ** 2, "image_px": px, "dtype": dtype}
        row |= {"measured_mib": ours.get(px), "planned_mib": round(planned)}
        rows.append(row | {"planned_to_measured": round(planned / ours[px], 3) if px in ours else None})
    return rows


def table(rows: list[Row]) -> str:
    lines = [f"{'image':>7} {'published':>22} {'MiB':>8} {'ours MiB':>9} {'ratio':>7}  goal"]
    for r in (r for r in rows if r["what"] == "memory"):
        how = ("recomputes" if r["published_recomputes"] else "as it is") + (", slope" if r["from_slope"] else "")
        goal = f"≤ {r['goal']:.4f} {'reached' if r['reached'] else 'MISSED'}" if "goal" in r else ""
        lines.append(
            f"{r['image_px']:>6}² {how:>22} {r['published_mib']:>8,} {r['ours_mib']:>9,.0f} {r['ratio']:>7.4f}  {goal}"
        )
    lines += ["", f"{'patches':>10} {'measured MiB':>13} {'formula MiB':>12} {'formula / measured':>19}"]
    for r in (r for r in rows if r["what"] == "curve"):
        measured = "" if r["measured_mib"] is None else f"{r['measured_mib']:,.0f}"
        lines.append(f"{r['patches']:>10,} {measured:>13} {r['planned_mib']:>12,} {r['planned_to_measured'] or '':>19}")
    for r in (r for r in rows if r["what"] == "time" and "ratio" in r):
        lines.append(
            f"time at {r['image_px']}²: with recomputation {r['seconds']} s, without {r['kept_seconds']} s: "
            f"{r['ratio']} × (CPU seconds {r['cpu_ratio']} ×), goal ≤ {TIME_GOAL}"
        )
    return "\n".join(lines)


def draw_curve(rows: list[Row], path: Path) -> None:
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    curve_rows = [r for r in rows if r["what"] == "curve"]
    formula = [r["planned_mib"] for r in curve_rows]
    axes.loglog([r["patches"] for r in curve_rows], formula, "-", label="ours, longvit plan's formula")
    measured = [(r["patches"], r["measured_mib"]) for r in curve_rows if r["measured_mib"]]
    axes.loglog(*zip(*measured, strict=True), "o", label="ours, measured")
    for slope, marker in ((False, "s"), (True, "x")):
        points = [
            ((r["image_px"] // 32) ** 2, r["published_mib"])
            for r in rows
            if r["what"] == "memory" and not r["published_recomputes"]
            if r["from_slope"] == slope
        ]
        if points:
            words = "from its slope" if slope else "measured"
            axes.loglog(*zip(*points, strict=True), marker, label=f"published code, {words}")
    axes.set(xlabel="patches", ylabel="peak of forward + backward, MiB", title="LongViT-S, float32, batch 1, one CPU")
    axes.grid(which="both", alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.legend()
    write_figure(figure, path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs="+", default=list(SIZES_PX))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="512² and 1,024² only, one round: does it run?")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", choices=("peak", "time"), help="one measurement in this process")
    parser.add_argument("--who", choices=("ours", "published"), default="ours")
    parser.add_argument("--recompute", action="store_true")
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"peak": peak, "time": times}[args.one](args)))
        return
    sizes, rounds = ([512, 1024], 1) if args.quick else (sorted(args.image), args.rounds)
    if not has_published():
        print(f"no published code at {PEERS}: measuring ours only", file=sys.stderr)
    results = Results(args.save and not args.quick, args.resume)
    timed_px = max((px for px in sizes if px <= TIMED_TO_PX), default=sizes[0])
    results.measured({"what": "time", "image_px": timed_px, "dtype": args.dtype}, "--rounds", str(rounds))
    found = peaks(results, sizes, args.dtype)
    for row in [*compared(found, sizes, args.dtype), *curve(found[("ours", True)], args.dtype)]:
        results.add(row)
    print(table(results.rows))
    if results.save:
        draw_curve(results.rows, HERE / "results" / "memory.png")


if __name__ == "__main__":
    main()
