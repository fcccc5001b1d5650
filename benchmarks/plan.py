"""Benchmark of `longvit plan`: its memory formula against the measured peak of one training step per process.

    python benchmarks/plan.py [--save] [--image 1024 2048 4096 8192] [--dtype float32 bfloat16]

LongViT-S, uint8 image, loss, forward and backward.

- `measured`: VmHWM above VmRSS before the step (after a step on one 64² image, which loads libraries); a fixed
  MALLOC_MMAP_THRESHOLD_ makes every large tensor a separate mapping, returned to the system when freed
- `default_malloc`: the same without that setting, up to 2,048²; glibc raises the threshold to 32 MB and its heap
  fragments
- `ratio`: formula / measured, goal within 15 %

8,192² with recomputation only. Saving keeps the stored rows of other sizes and dtypes. bfloat16 takes hours on a
processor without instructions for it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from side_by_side import HERE, measure, report
from worker import memory_mib, reset_peak

WITHIN = 0.15
_RECOMPUTE_ONLY_FROM_PX = 8192  # without recomputation: 12 GiB in float32
_DEFAULT_MALLOC_TO_PX = 2048
_THRESHOLD_BYTES = 131072  # initial value of glibc; fixed if set in the environment


def step(image_px: int, dtype: str, recompute: bool) -> dict[str, float]:
    """Peak of one training step in this process, in MiB above the resident memory before it."""
    import torch
    import torch.nn.functional as F

    import longvit

    torch.manual_seed(0)
    model = longvit.create_model("longvit_small_patch32", num_classes=2)
    model.set_recompute(recompute)

    def once(side_px: int) -> None:
        image = torch.randint(0, 256, (1, 3, side_px, side_px), dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = F.cross_entropy(model(image), torch.zeros(1, dtype=torch.long))
        loss.backward()
        model.zero_grad()

    once(64)
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by the first step is not resident before the second
    before = memory_mib("VmRSS")
    reset_peak()
    once(image_px)
    return {"peak_mib": memory_mib("VmHWM") - before}


def planned_mib(image_px: int, dtype: str, recompute: bool) -> tuple[float, str]:
    """Peak by the formula above the parameters, and its stage."""
    from longvit.model.longvit import SIZES, segment_schedule
    from longvit.plan.memory import Load, training_memory

    rows = image_px // 32
    config = replace(SIZES["longvit_small_patch32"], num_classes=2)
    memory = training_memory(Load(config, rows * rows, rows, segment_schedule(rows * rows)[0], dtype, recompute))
    return memory.peak / 2**20, memory.moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("PX", "DTYPE", "RECOMPUTE"), help="one step in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(step(int(args.one[0]), args.one[1], args.one[2] == "True")))
        return
    is_kept = [row["image_px"] not in args.image or row["dtype"] not in args.dtype for row in saved_rows()]
    rows = [row for row, kept in zip(saved_rows(), is_kept, strict=True) if kept] if args.save else []
    for image_px in args.image:
        for recompute in (False, True) if image_px < _RECOMPUTE_ONLY_FROM_PX else (True,):
            rows += [compared(image_px, dtype, recompute) for dtype in args.dtype]
    order = sorted(rows, key=lambda row: (row["image_px"], row["recompute"], row["dtype"] != "float32"))
    report("plan", order, args.save)


def saved_rows() -> list[dict[str, Any]]:
    path = HERE / "results" / "plan.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def compared(image_px: int, dtype: str, recompute: bool) -> dict[str, Any]:
    """Row of the table: formula, measurement and their ratio."""
    one = [sys.executable, str(Path(__file__).resolve()), "--one", str(image_px), dtype, str(recompute)]
    measured = measure(["env", f"MALLOC_MMAP_THRESHOLD_={_THRESHOLD_BYTES}", *one])["peak_mib"]
    by_default = measure(one)["peak_mib"] if image_px <= _DEFAULT_MALLOC_TO_PX else None
    planned, moment = planned_mib(image_px, dtype, recompute)
    row = {
        "image_px": image_px,
        "dtype": dtype,
        "recompute": recompute,
        "planned_mib": round(planned),
        "measured_mib": round(measured),
        "ratio": round(planned / measured, 3),
        "within": abs(planned / measured - 1) <= WITHIN,
        "default_malloc_mib": None if by_default is None else round(by_default),
        "moment": moment,
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
