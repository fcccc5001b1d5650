"""Single measurement in a separate process: ours, the authors' published code, or the bare fused calls.

    python benchmarks/worker.py ours model --image 1024 --backward
    python benchmarks/worker.py published attention --tokens 16384

Prints one JSON line: seconds of every run after a warm-up, peak memory of the process and above its inputs (MiB). The
published code is in ../shared/peers (see `side_by_side.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

PEERS = Path(__file__).resolve().parents[1].parent / "shared" / "peers"
RATIOS = (1, 2, 4, 8, 16)


def memory_mib(field: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def attention_step(args: argparse.Namespace, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    from longvit.model.longvit import segment_schedule

    segments = tuple(args.segments or segment_schedule(args.tokens))
    qkv = [torch.randn(1, args.tokens, 16, 24, dtype=dtype).requires_grad_(args.backward) for _ in range(3)]
    if args.who == "ours":
        from longvit.attention import dilated_attention

        return lambda: dilated_attention(*qkv, segment_lengths=segments, dilated_ratios=RATIOS)
    if args.who == "bare":
        return bare_calls(args, segments, dtype)
    return lambda: peer().dilated_attention(*qkv, segments)


def bare_calls(args: argparse.Namespace, segments: tuple[int, ...], dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Bare fused calls on contiguous data: the lower bound of a CPU implementation."""
    aten, inputs = torch.ops.aten, []
    for w, r in zip(segments, RATIOS, strict=True):
        shape = (args.tokens // w, w // r, max(r, 16 // r), 24)
        for _ in range(min(r, 16 // r)):
            inputs.append([torch.randn(shape, dtype=dtype).transpose(1, 2) for _ in range(3)])

    def step() -> torch.Tensor:
        for q, k, v in inputs:
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
            if args.backward:
                aten._scaled_dot_product_flash_attention_for_cpu_backward(out, q, k, v, out, lse, 0.0, False)
        return torch.zeros((), requires_grad=True)

    return step


def model_step(args: argparse.Namespace, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    segments = tuple(args.segments) if args.segments else None
    if args.who == "published":
        model = peer().longvit(args.image, segments, recompute=args.recompute).to(dtype)
        x = torch.randn(1, 3, args.image, args.image, dtype=dtype)
        return lambda: model(x)
    import longvit

    model = longvit.create_model("longvit_small_patch32", segment_lengths=segments or "auto")
    model.set_recompute(args.recompute)
    model.to(dtype)
    image = torch.randint(0, 256, (1, 3, args.image, args.image), dtype=torch.uint8)
    return lambda: model.forward_features(image)


def peer():  # type: ignore[no-untyped-def]
    """The authors' code as a module."""
    sys.path.insert(0, str(PEERS))
    import peer

    return peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=("ours", "published", "bare"))
    parser.add_argument("what", choices=("attention", "model"))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--image", type=int, default=1024)
    parser.add_argument("--segments", type=int, nargs="+")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    step = (attention_step if args.what == "attention" else model_step)(args, dtype)
    before = memory_mib("VmRSS")
    reset_peak()
    seconds = []
    for _ in range(args.runs + 1):
        start = time.perf_counter()
        with torch.set_grad_enabled(args.backward):
            out = step()
            if args.backward and args.who != "bare":
                out.float().mean().backward()
        seconds.append(time.perf_counter() - start)
        del out
    peak = memory_mib("VmHWM")
    print(json.dumps({"seconds": seconds[1:], "peak_mib": peak, "above_inputs_mib": peak - before}))


if __name__ == "__main__":
    main()
