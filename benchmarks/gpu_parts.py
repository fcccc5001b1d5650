"""Parts of `gpu.py`: each part runs in a separate process and prints one JSON object per line.

    python benchmarks/gpu_parts.py attention --seconds 60

Times are medians of CUDA events (on a CPU of the clock), contenders in turn (A B A B …) after a warm-up each. A
contender that fails is a row with the error's first line. B = 1 slide, N patches, 16 heads of 24: LongViT-S.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from longvit.attention import attention_pairs, dilated_attention, dilated_attention_packed  # noqa: E402
from longvit.model.longvit import DILATED_RATIOS, LongViT, create_model, segment_schedule  # noqa: E402

HEADS, DIM = 16, 24
aten = torch.ops.aten


class Bench:
    """Device, time limit, sizes and back ends of a measurement."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device("cpu" if args.cpu_smoke else "cuda")
        self.cuda = self.device.type == "cuda"
        self.deadline = time.monotonic() + args.seconds
        self.images = [128] if args.cpu_smoke else args.images or [32768, 4096, 8192, 16384]
        self.backends = args.backends or (["cuda_flash", "triton"] if self.cuda else ["cpu_flash"])
        self.half = torch.bfloat16
        if args.tiles and "triton" in self.backends:
            from longvit.attention import triton_branch

            triton_branch.TILES |= {k: triton_branch.Tile(*v) for k, v in json.loads(args.tiles).items()}

    def model(self, num_classes: int | None = None) -> LongViT:
        """LongViT-S on the device, with random weights; --cpu-smoke: two layers with two heads of 24."""
        toy = {"embed_dim": 48, "depth": 2, "num_heads": 2, "ffn_dim": 96} if self.args.cpu_smoke else {}
        return create_model("longvit_small_patch32", num_classes=num_classes, **toy).to(self.device)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def rate(self) -> dict[str, float]:
        """Exponentials and 16-bit matrix FLOPs per second: 16 of the former per multiprocessor and clock."""
        if not self.cuda:
            return {"exponentials": 1e9, "flops": 1e11}
        card = torch.cuda.get_device_properties(self.device)
        per_clock = {9: 4096, 10: 8192}.get(card.major, 2048 if (card.major, card.minor) == (8, 0) else 1024)
        clocks = card.multi_processor_count * sm_clock_hz()
        return {"exponentials": 16 * clocks, "flops": per_clock * clocks}


def sm_clock_hz() -> float:
    """Highest clock of the card by nvidia-smi; 1.83 GHz (an H100's boost) where that fails."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return float(done.stdout.split()[0]) * 1e6
    return 1.83e9


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def alternate(b: Bench, steps: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, Any]]:
    """name → step, in turn → name → {seconds, peak_gib, above_inputs_gib} or {error}."""
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        if b.left() < 0:
            found[name] = {"skipped": "no time left"}
            continue
        try:
            if b.cuda:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            step()  # warm-up: compiles, and sets the peak
            found[name] = {}
            if b.cuda:
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated()
                found[name] = {
                    "peak_gib": round(peak / 2**30, 3),
                    "above_inputs_gib": round((peak - before) / 2**30, 3),
                }
            times[name] = []
        except Exception as error:  # a contender that fails is a result
            found[name] = {"error": one_line(error)}
    for _ in range(runs):
        for name in times:
            if not times[name] or b.left() > 3 * times[name][-1]:
                times[name].append(timed(b, steps[name]))
    for name, seconds in times.items():
        found[name] |= {"seconds": round(statistics.median(seconds), 6), "runs": len(seconds)}
    return found


def timed(b: Bench, step: Callable[[], Any]) -> float:
    if not b.cuda:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def with_floors(b: Bench, found: dict[str, dict[str, Any]], exponentials: float, flops: float) -> dict[str, Any]:
    """Results with their lower bound, the larger of both, and the fraction that each reaches (1 is the bound)."""
    rate = b.rate()
    floors = {"exponentials": exponentials / rate["exponentials"], "matrix": flops / rate["flops"]}
    for result in found.values():
        if "seconds" in result:
            result["of_floor"] = round(max(floors.values()) / result["seconds"], 3)
    return {"floor_s": {k: round(v, 5) for k, v in floors.items()}, "results": found}


def pairs_of(n: int, segments: tuple[int, ...], heads: int = HEADS) -> int:
    return attention_pairs(1, n, heads, segments, DILATED_RATIOS)


def peer(b: Bench) -> Any:
    """The authors' code as a module (see ../shared/peers); `ImportError` in one line where it is absent."""
    path = Path(b.args.peer)
    if not path.is_file():
        raise ImportError(f"not at {path}")
    sys.path.insert(0, str(path.parent))
    import peer

    return peer


def noise_image(side_px: int) -> torch.Tensor:
    """Noise image uint8 (1, 3, side, side) on the host, repeated every 1,024 px (3 GB would take a minute)."""
    noise = torch.randint(0, 256, (1, 3, min(side_px, 1024), min(side_px, 1024)), dtype=torch.uint8)
    return noise.repeat(1, 1, side_px // noise.shape[2], side_px // noise.shape[3])


@contextlib.contextmanager
def attention_by(name: str) -> Iterator[None]:
    """Selects the attention back end of whole models."""
    before = os.environ.get("LONGVIT_ATTENTION")
    os.environ["LONGVIT_ATTENTION"] = name
    try:
        yield
    finally:
        os.environ.pop("LONGVIT_ATTENTION") if before is None else os.environ.update(LONGVIT_ATTENTION=before)


# --- the parts: generators of rows ----------------------------------------------------------------------------------


def device(b: Bench) -> Iterator[dict[str, Any]]:
    """Properties of the device."""
    if not b.cuda:
        yield {"device": "cpu", "threads": torch.get_num_threads()}
        return
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --cpu-smoke runs the same code at tiny sizes")
    card = torch.cuda.get_device_properties(b.device)
    with contextlib.suppress(ImportError):
        import triton
    yield {
        "device": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "clock_ghz": round(sm_clock_hz() / 1e9, 3),
        "memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "triton": triton.__version__ if "triton" in sys.modules else None,
        "per_second": {k: float(f"{v:.4g}") for k, v in b.rate().items()},
    }


def check(b: Bench) -> Iterator[dict[str, Any]]:
    """Attention of each back end and dtype against float32 on the CPU from the same (rounded) inputs."""
    n = 256 if b.args.cpu_smoke else 16_384
    segments = segment_schedule(n)
    dtypes = {"cuda_efficient": [torch.float32], "triton": [torch.bfloat16, torch.float16, torch.float32]}
    for backend in b.backends:
        for dtype in dtypes.get(backend, [torch.bfloat16]):
            generator = torch.Generator().manual_seed(0)
            inputs = [torch.randn(1, n, HEADS, DIM, generator=generator).to(dtype) for _ in range(4)]
            results = []
            for device, name, kind in ((torch.device("cpu"), "cpu_flash", torch.float32), (b.device, backend, dtype)):
                *qkv, grad_out = (t.to(device, kind) for t in inputs)
                leaves = [t.requires_grad_() for t in qkv]
                out = dilated_attention(*leaves, segment_lengths=segments, dilated_ratios=DILATED_RATIOS, backend=name)
                grads = torch.autograd.grad(out, leaves, grad_out)
                results.append([t.detach().float().cpu() for t in (out, *grads)])
            errors = {
                name: ((ours - want).abs().max() / want.abs().max()).item()
                for name, want, ours in zip(["out", "grad_q", "grad_k", "grad_v"], *results, strict=True)
            }
            limit = {torch.float32: 5e-3, torch.float16: 5e-3}.get(dtype, 3e-2)
            yield {
                "backend": backend,
                "dtype": str(dtype).removeprefix("torch."),
                "patches": n,
                "largest_error": {k: float(f"{v:.2g}") for k, v in errors.items()},
                "agrees": all(math.isfinite(v) and v <= limit for v in errors.values()),
            }


def check_model(b: Bench) -> Iterator[dict[str, Any]]:
    """Logits and the gradient of every parameter: bfloat16 autocast on the device against float32 on the CPU."""
    image = 128 if b.args.cpu_smoke else 4096
    pixels = noise_image(image)
    torch.manual_seed(0)
    model = b.model(2)
    model.set_recompute(True)
    want, want_grads = logits_and_gradient(model, pixels, torch.device("cpu"), None)
    for name in b.backends:
        with attention_by(name):
            logits, grads = logits_and_gradient(model, pixels, b.device, b.half)
        cosines = [torch.cosine_similarity(g, w, 0).item() for g, w in zip(grads, want_grads, strict=True)]
        yield {
            "image_px": image,
            "backend": name,
            "largest_logit_difference": round((logits - want).abs().max().item(), 6),
            "cosine_of_gradient": round(torch.cosine_similarity(torch.cat(grads), torch.cat(want_grads), 0).item(), 6),
            "least_cosine_of_a_parameter": round(min(cosines), 5),
        }


def logits_and_gradient(
    model: torch.nn.Module, pixels: torch.Tensor, device: torch.device, autocast: torch.dtype | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """→ logits and each parameter's gradient, float64 on the CPU."""
    model.zero_grad(set_to_none=True)
    model.to(device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        logits = model(pixels.to(device))
    F.cross_entropy(logits.float(), torch.tensor([1], device=device)).backward()
    return logits.detach().double().cpu(), [p.grad.double().cpu().flatten() for p in model.parameters()]


TILES = {  # rows × columns × warps × stages of the kernels' blocks that are tried
    "forward": "128x64x4x3 64x64x4x3 64x128x4x3 128x128x8x3 128x64x8x3 128x32x4x3 "
    "128x128x4x2 128x128x4x3 128x64x4x2 64x128x4x2 64x256x4x2 256x64x8x2",
    "keys": "64x64x4x3 128x64x4x3 128x64x8x3 64x32x4x4 128x32x4x3 64x128x4x2 "
    "128x128x8x2 64x64x4x2 128x64x8x2 64x32x4x2 32x64x2x2 32x64x4x3",
    "queries": "64x64x4x3 128x64x4x3 128x64x8x3 64x128x4x3 128x32x4x3 64x32x4x4 "
    "128x128x8x2 64x64x4x2 128x64x8x2 128x64x4x2 64x128x4x2 128x128x4x2",
}


def kernel_launches(b: Bench, n: int) -> dict[str, Callable[[str], None]]:
    """kernel → its launches over all branches of n patches, with blocks of a given size."""
    from longvit.attention import triton_branch as tb

    q, k, v = torch.randn(1, n, 3, HEADS, DIM, device=b.device, dtype=b.half).unbind(2)
    grad_out, out = (torch.randn(1, n, HEADS, DIM, device=b.device, dtype=d) for d in (b.half, torch.float32))
    lse = torch.full((1, n, HEADS), 8.0, device=b.device)
    operands = grad_out, q, k, v, lse, tb.row_sums(grad_out, out)
    grads = torch.zeros(1, n, 3, HEADS, DIM, device=b.device).unbind(2)
    branches = list(zip(segment_schedule(n), DILATED_RATIOS, strict=True))
    scale = DIM**-0.5
    kernels = {
        "forward": lambda w, r: tb.branch_forward((q, k, v), out, lse, w, r, scale),
        "keys": lambda w, r: tb.keys_backward(operands, grads[1:], w, r, scale),
        "queries": lambda w, r: tb.queries_backward(operands, grads[0], w, r, scale),
    }

    def launch(name: str, tile: str) -> None:
        before = tb.TILES[name]
        tb.TILES[name] = tb.Tile(*map(int, tile.split("x")))
        try:
            for w, r in branches:
                kernels[name](w, r)
        finally:
            tb.TILES[name] = before

    return {name: partial(launch, name) for name in kernels}


def compile_tiles(b: Bench) -> Iterator[dict[str, Any]]:
    """Compiles a share of the kernels into Triton's cache on the disk; `tune` starts several such processes."""
    launches = kernel_launches(b, 16_384)
    share, n = b.args.share
    every = [(kernel, tile) for kernel, tiles in TILES.items() for tile in tiles.split()]
    for kernel, tile in every[share::n]:
        with contextlib.suppress(Exception):  # `tune` reports what does not compile
            launches[kernel](tile)
    yield {"share": share}


def tune(b: Bench) -> Iterator[dict[str, Any]]:
    """Tunes the block sizes of the Triton kernels on the segments of 16,384² px."""
    if not b.cuda:
        yield {"skipped": "the Triton kernels are tuned on a card"}
        return
    processes = max(1, min(12, (os.cpu_count() or 1) - 2))
    command = [sys.executable, __file__, "compile_tiles", "--share"]
    children = [
        subprocess.Popen([*command, str(i), str(processes)], stdout=subprocess.DEVNULL) for i in range(processes)
    ]
    for child in children:
        child.wait()
    n = 262_144
    for name, launch in kernel_launches(b, n).items():
        found = alternate(b, {tile: partial(launch, tile) for tile in TILES[name].split()}, 3)
        measured = {k: r["seconds"] for k, r in found.items() if "seconds" in r}
        best = min(measured, key=lambda tile: measured[tile]) if measured else None
        row = with_floors(b, found, pairs_of(n, segment_schedule(n)), 0)
        yield {"kernel": name, "tile": best and [int(x) for x in best.split("x")], **row}


def attention(b: Bench) -> Iterator[dict[str, Any]]:
    """One layer's attention: ours by back end, the published code, one dense flash call of as many pairs."""
    published = None
    try:
        published = peer(b)
    except ImportError as error:
        yield {"skipped": f"published code: {error}"}
    for image in b.images:
        n = (image // 32) ** 2
        segments = segment_schedule(n)
        pairs = pairs_of(n, segments)
        for backward in (False, True):
            if b.left() < 10 and not b.args.cpu_smoke:
                yield {"image_px": image, "skipped": "no time left"}
                continue
            _INPUTS.clear()
            steps = {name: of_packed(b, n, segments, name, backward) for name in b.backends}
            if published:
                steps["published"] = of_three(
                    b, n, lambda *qkv, s=segments: published.dilated_attention(*qkv, s), backward
                )
            steps["dense"] = dense(b, pairs, backward)
            found = alternate(b, steps, 5 if image < 16384 else 3)
            exponentials, products = pairs * (2 if backward else 1), 7 if backward else 2
            what = "forward + backward" if backward else "forward"
            row = with_floors(b, found, exponentials, products * 2 * 32 * pairs)  # a head dim of 24 takes 32 columns
            yield {"image_px": image, "patches": n, "what": what, "pairs": pairs, **row}


_INPUTS: dict[tuple[int, ...], torch.Tensor] = {}  # random numbers of the present row, drawn once per shape


def leaf(b: Bench, *shape: int) -> torch.Tensor:
    if shape not in _INPUTS:
        _INPUTS[shape] = torch.randn(shape, device=b.device, dtype=b.half)
    return _INPUTS[shape].detach()


def of_packed(b: Bench, n: int, segments: tuple[int, ...], name: str, backward: bool) -> Callable[[], None]:
    qkv = leaf(b, 1, n, 3, HEADS, DIM)
    settings: dict[str, Any] = {"segment_lengths": segments, "dilated_ratios": DILATED_RATIOS, "backend": name}

    def step() -> None:
        out = dilated_attention_packed(qkv.detach().requires_grad_(backward), **settings)
        if backward:
            out.backward(out.detach())

    return step


def of_three(b: Bench, n: int, attend: Callable[..., torch.Tensor], backward: bool) -> Callable[[], None]:
    x = leaf(b, 1, n, HEADS, DIM)

    def step() -> None:
        out = attend(*(x.detach().requires_grad_(backward) for _ in range(3)))
        if backward:
            out.backward(out.detach())

    return step


def dense(b: Bench, pairs: int, backward: bool) -> Callable[[], None]:
    """PyTorch's flash attention over as many pairs, without segments."""
    tokens = max(128, round(math.sqrt(pairs / HEADS) / 128) * 128)
    plain = lambda *qkv: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv))  # noqa: E731
    return of_three(b, tokens, plain, backward)


def main() -> None:
    import gpu_models

    parts = {f.__name__: f for f in (device, check, check_model, compile_tiles, tune, attention, *gpu_models.PARTS)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--backends", nargs="+")
    parser.add_argument("--tiles")
    parser.add_argument("--images", nargs="+", type=int)
    parser.add_argument("--peer", default=str(ROOT.parent / "shared" / "peers" / "peer.py"))
    parser.add_argument("--share", nargs=2, type=int, default=(0, 1), metavar=("NUMBER", "OF"))
    parser.add_argument("--cpu-smoke", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(args)
    for name in args.parts:
        for row in parts[name](bench):
            print(json.dumps({"part": name, **row}), flush=True)


if __name__ == "__main__":
    main()
