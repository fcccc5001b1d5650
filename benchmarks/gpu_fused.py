"""Benchmark of fused norm kernels, larger chunks of patches and CUDA graphs against the plain model, on one card.

    python benchmarks/gpu_fused.py [--seconds 150] [--quick]
    TRITON_INTERPRET=1 python benchmarks/gpu_fused.py --cpu-smoke      the same code at toy sizes, no card needed

One JSON object per line, the most important first; `rows(device, quick)` yields them to other scripts. Contenders run
in turn (A B A B …) after a warm-up each; times are medians. Sizes are those of LongViT-S at 1,048,576 patches, with
bfloat16 autocast over a float32 stream. Chunks have 65,536 tokens, width 384 and hidden width 1,536. Single kernels
take four chunks at once, so that launches do not count.
`gb_s`: bytes that must move (each tensor once) per second.
`error`: largest difference from float32 PyTorch over the largest number, per result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if "--cpu-smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from longvit.model import cuda_graph, embedding, fused_norms
from longvit.model import norm_linear as nl
from longvit.model.longvit import LongViT, LongViTConfig

aten = torch.ops.aten
EPS = 1e-5


@contextlib.contextmanager
def fused(value: str) -> Iterator[None]:
    before = os.environ.get(fused_norms.VARIABLE)
    os.environ[fused_norms.VARIABLE] = value
    try:
        yield
    finally:
        os.environ.pop(fused_norms.VARIABLE) if before is None else os.environ.update({fused_norms.VARIABLE: before})


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def in_turn(
    device: torch.device, steps: dict[str, Callable[[], Any]], rounds: int = 5, repeats: int = 10
) -> dict[str, dict[str, Any]]:
    """name → step → name → {ms, least_ms} or {error}; each time is that of `repeats` calls, divided."""
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        try:
            step()
            if device.type == "cuda":
                step()
            times[name] = []
        except Exception as error:  # a contender that fails is a result
            found[name] = {"error": one_line(error)}
    for _ in range(rounds):
        for name in times:
            times[name].append(timed(device, steps[name], repeats))
    for name, seconds in times.items():
        found[name] = {"ms": round(1e3 * statistics.median(seconds), 4), "least_ms": round(1e3 * min(seconds), 4)}
    return found


def timed(device: torch.device, step: Callable[[], Any], repeats: int) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def errors(ours: Sequence[Tensor], want: Sequence[Tensor]) -> list[float]:
    return [
        float(f"{((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30)).item():.2g}")
        for a, b in zip(ours, want, strict=True)
    ]


class Sizes:
    """Of everything that is measured."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick, self.card = device, quick, device.type == "cuda"
        self.tokens, self.dim, self.hidden = (65_536, 384, 1536) if self.card else (13, 24, 40)
        self.layer_tokens = (65_536 if quick else 262_144) if self.card else 21
        self.rounds, self.repeats = (5 if not quick else 3, 10) if self.card else (1, 1)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype)

    def vectors(self, width: int) -> tuple[Tensor, Tensor]:
        return 1 + 0.1 * self.normal(width, dtype=torch.float32, seed=1), self.normal(
            width, dtype=torch.float32, seed=2
        )


# --- single kernels -------------------------------------------------------------------------------------------------


def torch_norm(x: Tensor, w: Tensor, b: Tensor, gelu: bool, dtype: torch.dtype) -> Tensor:
    return nl._normalised(x, w, b, EPS, gelu, dtype)[0]


def torch_add_norm(x: Tensor, y: Tensor, w: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    total = x + y
    return total, torch_norm(total, w, b, False, dtype)


def torch_backward(
    x: Tensor, grad: Tensor, w: Tensor, b: Tensor, gelu: bool, residual: Tensor | None
) -> tuple[Tensor, ...]:
    """As the model does without fused kernels: norm once more, its backward, sums; with a residual sum and cast."""
    n, a, mean, rstd = nl._normalised(x, w, b, EPS, gelu, grad.dtype)
    of_a, of_w, of_b = aten.native_layer_norm_backward(
        grad.to(a.dtype), a, a.shape[-1:], mean, rstd, w.to(a.dtype), b.to(a.dtype), [True, True, True]
    )
    of_x = aten.gelu_backward(of_a, x) if gelu else of_a
    if residual is None:
        return of_x, n, of_w, of_b, of_x.sum(0, dtype=torch.float32)
    of_x = of_x + residual
    narrow = of_x.to(grad.dtype)
    return of_x, narrow, of_w, of_b, narrow.sum(0, dtype=torch.float32)


def fused_backward(
    x: Tensor, grad: Tensor, w: Tensor, b: Tensor, gelu: bool, residual: Tensor | None
) -> tuple[Tensor, ...]:
    sums, second = fused_norms.RowSums(x), torch.empty_like(grad)
    more: dict[str, Any] = {"n": second} if residual is None else {"residual": residual, "narrow": second}
    of_x = fused_norms.norm_backward(x, grad, w, b, EPS, gelu, sums, **more, sum_out=True)
    return of_x, second, *sums.result()


def kernel_cases(s: Sizes) -> Iterator[tuple[str, int, Callable[[], Any], Callable[[], Any], Callable[[], Any]]]:
    """name, bytes that must move, PyTorch's way, the fused one, the same in float32."""
    half, wide = torch.bfloat16, torch.float32
    t, d, f = s.tokens, s.dim, s.hidden
    h, gh = s.normal(t, f, seed=5), s.normal(t, f, seed=6)
    t = 4 * t if s.card else t
    x, y, g = s.normal(t, d, dtype=wide), s.normal(t, d, seed=3), s.normal(t, d, seed=4)
    (w, b), (wf, bf) = s.vectors(d), s.vectors(f)
    norm = fused_norms.norm
    yield (
        "norm, hidden, GELU", s.tokens * f * 4,
        lambda: (torch_norm(h, wf, bf, True, half),),
        lambda: (norm(h, wf, bf, EPS, True, half),),
        lambda: (fused_norms.plain_norm(h, wf, bf, EPS, True, wide),),
    )  # fmt: skip
    yield (
        "backward, hidden, GELU", s.tokens * f * 8,
        lambda: torch_backward(h, gh, wf, bf, True, None),
        lambda: fused_backward(h, gh, wf, bf, True, None),
        lambda: in_float32(h, gh, wf, bf, True, None),
    )  # fmt: skip
    yield (
        "sum and norm, stream", t * d * 12,
        lambda: torch_add_norm(x, y, w, b, half),
        lambda: fused_norms.add_norm(x, y, None, w, b, EPS, half),
        lambda: fused_norms.plain_add_norm(x, y, None, w, b, EPS, wide),
    )  # fmt: skip
    yield (
        "sum, stream", t * d * 10,
        lambda: (torch.add(x, y),),
        lambda: (fused_norms.add(x, y, torch.empty_like(x)),),
        lambda: (x + y.float(),),
    )  # fmt: skip
    yield (
        "backward, stream, residual", t * d * 16,
        lambda: torch_backward(x, g, w, b, False, x),
        lambda: fused_backward(x, g, w, b, False, x),
        lambda: in_float32(x, g, w, b, False, x),
    )  # fmt: skip
    yield (
        "backward, stream", t * d * 12,
        lambda: torch_backward(x, g, w, b, False, None),
        lambda: fused_backward(x, g, w, b, False, None),
        lambda: in_float32(x, g, w, b, False, None),
    )  # fmt: skip
    yield (
        "norm, stream", t * d * 6,
        lambda: (torch_norm(x, w, b, False, half),),
        lambda: (norm(x, w, b, EPS, False, half),),
        lambda: (fused_norms.plain_norm(x, w, b, EPS, False, wide),),
    )  # fmt: skip
    yield (
        "norm, heads", t * d * 4,
        lambda: (torch_norm(y, w, b, False, half),),
        lambda: (norm(y, w, b, EPS, False, half),),
        lambda: (fused_norms.plain_norm(y, w, b, EPS, False, wide),),
    )  # fmt: skip
    yield (
        "backward, heads", t * d * 8,
        lambda: torch_backward(y, g, w, b, False, None),
        lambda: fused_backward(y, g, w, b, False, None),
        lambda: in_float32(y, g, w, b, False, None),
    )  # fmt: skip

    def cast() -> tuple[Tensor, Tensor]:
        sums = fused_norms.RowSums(x, "cast")
        return fused_norms.cast_and_sum(x, None, half, sums), sums.result()[0]

    def torch_cast() -> tuple[Tensor, Tensor]:
        narrow = x.to(half)
        return narrow, narrow.sum(0, dtype=wide)

    yield "cast and sum", t * d * 6, torch_cast, cast, lambda: (x, x.sum(0))
    side, rows = (1024 * 32, 16 * 32) if s.card else (64, 32)
    strip = torch.randint(0, 256, (1, 3, rows, side), dtype=torch.uint8, device=s.device)
    like = torch.empty(1, 3072, dtype=half, device=s.device)
    for name, pixels in (
        ("patches, planes", strip),
        ("patches, colours side by side", strip.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    ):
        plain = partial(embedding._patches, pixels, slice(0, rows // 32), 32, 128, like)
        yield (
            name, strip.numel() * 3,
            lambda plain=plain: (plain_path(plain),),
            lambda pixels=pixels: (fused_norms.patches(pixels, 32, 128, half),),
            lambda plain=plain: (plain_path(plain),),
        )  # fmt: skip


def plain_path(step: Callable[[], Any]) -> Any:
    with fused("0"):
        return step()


def in_float32(x, grad, w, b, gelu: bool, residual: Tensor | None) -> tuple[Tensor, ...]:
    of_x, scaled, sums = fused_norms.plain_norm_backward(x, grad, w, b, EPS, gelu, residual=residual)
    second = fused_norms.plain_norm(x, w, b, EPS, gelu, torch.float32) if residual is None else scaled
    return of_x, second, *sums


def kernels(s: Sizes) -> Iterator[dict[str, Any]]:
    """Each kernel: right first, then timed."""
    for name, moved, plain, ours, exact in kernel_cases(s):
        row: dict[str, Any] = {"what": "kernel", "kernel": name}
        try:
            want, first, again = exact(), ours(), ours()
            row["error"] = {"torch": errors(plain(), want), "fused": errors(first, want)}
            row["same_bits_twice"] = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
            row["finite"] = all(bool(torch.isfinite(t).all()) for t in first)
            del want, first, again
        except Exception as error:  # a kernel that fails is a result
            yield row | {"error": one_line(error)}
            continue
        found = in_turn(s.device, {"torch": plain, "fused": ours}, s.rounds, s.repeats)
        for result in found.values():
            if "ms" in result:
                result["gb_s"] = round(moved / result["ms"] / 1e6, 1)
        if all("ms" in r for r in found.values()):
            row["faster"] = round(found["torch"]["ms"] / found["fused"]["ms"], 2)
        yield row | {"gigabytes": round(moved / 1e9, 4), "at_4300_gb_s_ms": round(moved / 4.3e9, 4), "results": found}


SHAPES_TRIED = {  # kernel of `kernel_cases` → rows, warps, stages, programs of a multiprocessor
    "norm, hidden, GELU": ("forward", "1x2x1x10 1x4x1x9 2x4x1x5 1x2x2x10 1x8x1x6 1x2x1x20 1x2x1x5"),
    "backward, hidden, GELU": ("backward", "1x4x2x3 1x4x1x3 1x2x1x4 1x2x2x4 1x8x1x3 1x8x2x3 1x4x2x6"),
    "sum and norm, stream": ("forward", "4x4x1x8 1x1x1x32 2x2x1x18 4x4x2x8 8x4x1x4 4x4x1x16 4x4x1x4"),
    "backward, stream, residual": ("backward", "4x4x1x4 4x4x2x4 1x1x1x16 1x1x2x17 2x2x1x8 2x4x1x7 4x4x1x8"),
    "norm, heads": ("forward", "4x4x1x8 1x1x1x32 4x4x2x8 8x4x1x5 4x4x1x16"),
    "backward, heads": ("backward", "4x4x1x5 4x4x2x5 1x1x1x16 2x2x1x8 2x4x1x8"),
}


def shapes(s: Sizes) -> Iterator[dict[str, Any]]:
    """Fastest tiles, warps, stages and programs of each kernel."""
    cases = {name: (moved, ours) for name, moved, _, ours, _ in kernel_cases(s)}
    for name, (kernel, tried) in SHAPES_TRIED.items():
        moved, ours = cases[name]

        def with_shape(text: str, kernel: str = kernel, ours: Callable[[], Any] = ours) -> None:
            before = fused_norms.SHAPES[kernel]
            fused_norms.SHAPES[kernel] = ((0, fused_norms.Shape(*map(int, text.split("x")))),)
            try:
                ours()
            finally:
                fused_norms.SHAPES[kernel] = before

        few = tried.split() if s.card else tried.split()[:2]
        found = in_turn(s.device, {text: partial(with_shape, text) for text in few}, min(3, s.rounds), s.repeats)
        best = min((r["ms"], text) for text, r in found.items() if "ms" in r)
        rate = round(moved / best[0] / 1e6, 1)
        yield {"what": "shapes", "kernel": name, "best": best[1], "gb_s": rate, "results": found}


# --- layers, model, graphs ------------------------------------------------------------------------------------------


def network(s: Sizes) -> LongViT:
    torch.manual_seed(0)
    depth = 12 if s.card else 1
    config = LongViTConfig(embed_dim=s.dim, depth=depth, num_heads=s.dim // 24 or 1, ffn_dim=s.hidden, num_classes=2)
    return LongViT(config).to(s.device)


def both(step: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    def run(value: str) -> Any:
        with fused(value):
            return step()

    return {"torch": partial(run, "0"), "fused": partial(run, "1")}


def layers(s: Sizes) -> Iterator[dict[str, Any]]:
    """A block without its attention: the FFN alone, and all of the second half with recomputation; chunk sizes."""
    from longvit.model.recomputation import Keeping, finish

    block = network(s).blocks[0]
    x = s.normal(1, s.layer_tokens, s.dim, dtype=torch.float32).requires_grad_()
    out = s.normal(1, s.layer_tokens, s.dim, seed=3).unflatten(-1, (-1, min(24, s.dim))).requires_grad_()
    grad = s.normal(1, s.layer_tokens, s.dim, dtype=torch.float32, seed=4)

    def autocast() -> Any:
        return torch.autocast(s.device.type, torch.bfloat16)

    def forward_only() -> Tensor:
        with torch.no_grad(), autocast():
            return finish(block.attn, block.mlp, x, out, (None, None), Keeping())

    def projected() -> Tensor:
        with torch.no_grad(), autocast():
            return nl.norm_linear(x, block.attn.norm_in, block.attn.qkv)

    def step(kind: str) -> tuple[Tensor, ...]:
        with autocast():
            if kind == "second half":
                y = finish(block.attn, block.mlp, x, out, (None, None), Keeping())
            elif kind == "FFN":
                y = block.mlp(x)
            else:
                y = nl.norm_linear(x, block.attn.norm_in, block.attn.qkv)
        grads = grad.to(y.dtype) if y.shape == grad.shape else torch.cat([grad] * 3, -1).to(y.dtype)
        inputs = [x, out] if kind == "second half" else [x]
        return torch.autograd.grad(y, [*inputs, *block.parameters()], grads, allow_unused=True)

    cases: dict[str, Callable[[], Any]] = {
        "second half, forward": forward_only,
        "second half, forward and backward, recomputed": partial(step, "second half"),
        "q, k, v, forward": projected,
        "q, k, v, forward and backward": partial(step, "q, k, v"),
        "FFN, forward and backward, hidden kept": partial(step, "FFN"),
    }
    chunk_sizes = [16_384, 65_536, 262_144] if s.card and not s.quick else [nl.CHUNK_TOKENS]
    for chunk in chunk_sizes:
        before, nl.CHUNK_TOKENS = nl.CHUNK_TOKENS, chunk
        try:
            for name, case in cases.items() if chunk in (None, 65_536) else list(cases.items())[:2]:
                found = in_turn(s.device, both(case), min(3, s.rounds), 2 if s.card else 1)
                row = {"what": "layer", "layer": name, "tokens": s.layer_tokens, "chunk_tokens": chunk}
                yield row | {"results": found}
        finally:
            nl.CHUNK_TOKENS = before


def weight_gradient(s: Sizes) -> Iterator[dict[str, Any]]:
    """gradᵀ @ n of one chunk: one product, or slices of its tokens as a batch: few output tiles fill few processors."""
    for out_width, in_width in ((s.hidden, s.dim), (s.dim, s.hidden), (3 * s.dim, s.dim), (s.dim, s.dim)):
        t = s.tokens if s.card else 16
        g, n = s.normal(t, out_width), s.normal(t, in_width, seed=1)

        def sliced(parts: int, g: Tensor = g, n: Tensor = n) -> Tensor:
            a, b = (x.unflatten(0, (parts, -1)) for x in (g, n))
            return torch.bmm(a.transpose(1, 2), b).sum(0, dtype=torch.float32)

        steps: dict[str, Callable[[], Any]] = {"one product": lambda g=g, n=n: (g.t() @ n).float()}
        steps |= {f"{parts} slices": partial(sliced, parts) for parts in (2, 4, 8, 16)}
        found = in_turn(s.device, steps, min(3, s.rounds), s.repeats)
        for result in found.values():
            if "ms" in result:
                result["tflops"] = round(2 * t * out_width * in_width / result["ms"] / 1e9, 1)
        yield {"what": "weight gradient", "shape": [out_width, in_width], "tokens": t, "results": found}


def embeddings(s: Sizes) -> Iterator[dict[str, Any]]:
    """Image (uint8, on the device) → tokens, by patches at once."""
    module = network(s).patch_embed
    for side in ([4096, 32768] if not s.quick else [32768]) if s.card else [64]:
        image = noise_image(s, side)

        def step(value: str, chunk: int, image: Tensor = image) -> Tensor:
            before = embedding.GPU_CHUNK_PATCHES
            embedding.GPU_CHUNK_PATCHES = chunk
            try:
                with fused(value), torch.no_grad(), torch.autocast(s.device.type, torch.bfloat16):
                    return module(image)
            finally:
                embedding.GPU_CHUNK_PATCHES = before

        steps: dict[str, Callable[[], Any]] = {
            f"{name} {chunk}": partial(step, value, chunk)
            for chunk in ((2048, 16_384, 65_536) if s.card else (2048,))
            for name, value in (("torch", "0"), ("fused", "1"))
        }
        row = {"what": "embedding", "image_px": side, "patches": (side // 32) ** 2}
        yield row | {"results": in_turn(s.device, steps, min(3, s.rounds), 1)}
        del image, steps


def graphed_forward(model: LongViT, images: Tensor) -> Tensor:
    return model.forward_head(cuda_graph.encode(model, model.patch_embed(images)))


def graphs(s: Sizes) -> Iterator[dict[str, Any]]:
    """The whole forward pass eager against its CUDA graph."""
    model = network(s).eval()
    for side in (4096, 1024) if s.card else (64,):
        for value in ("0", "1"):
            images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=s.device)
            graphed = partial(graphed_forward, model)
            row: dict[str, Any] = {"what": "graph", "image_px": side, "fused": value == "1"}
            with fused(value), torch.inference_mode(), torch.autocast(s.device.type, torch.bfloat16):
                try:
                    eager = model(images)
                    row["equals_eager"] = bool(torch.equal(graphed(images), eager))
                    row["again"] = bool(torch.equal(graphed(images), eager))
                    row["recorded"] = bool(cuda_graph.recorded(model))
                except Exception as error:  # a graph that fails is a result
                    yield row | {"error": one_line(error)}
                    continue
                steps = {"eager": partial(model, images), "graph": partial(graphed, images)}
                yield row | {"results": in_turn(s.device, steps, s.rounds, 5)}


def noise_image(s: Sizes, side: int) -> Tensor:
    """uint8 (1, 3, side, side) on the device: noise, repeated every 1,024 px."""
    noise = torch.randint(0, 256, (1, 3, min(side, 1024), min(side, 1024)), dtype=torch.uint8, device=s.device)
    return noise.repeat(1, 1, side // noise.shape[2], side // noise.shape[3])


def training_step(model: LongViT, images: Tensor) -> Tensor:
    """Forward and backward → the gradient of all parameters."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = model(images)
    F.cross_entropy(logits.float(), torch.ones(1, dtype=torch.long, device=images.device)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def models(s: Sizes) -> Iterator[dict[str, Any]]:
    """Forward and a training step with recomputation, plain against fused; logits and gradients compared."""
    model = network(s)
    model.set_recompute(True)
    for side in ([4096, 16384] if not s.quick else [4096]) if s.card else [64]:
        images = noise_image(s, side)

        def forward(images: Tensor = images) -> Tensor:
            with torch.inference_mode(), torch.autocast(s.device.type, torch.bfloat16):
                return model(images)

        step = partial(training_step, model, images)
        row: dict[str, Any] = {"what": "model", "image_px": side}
        try:
            logits = {name: f() for name, f in both(forward).items()}
            grads = {name: f() for name, f in both(step).items()}
            again = both(step)["fused"]()
            row["largest_logit_difference"] = float(f"{(logits['torch'] - logits['fused']).abs().max().item():.2g}")
            cosine = torch.cosine_similarity(grads["torch"].double(), grads["fused"].double(), 0)
            row |= {
                "cosine_of_gradient": round(cosine.item(), 7),
                "same_bits_twice": torch.equal(again, grads["fused"]),
            }
            del grads, again
        except Exception as error:  # a model that fails is a result
            yield row | {"error": one_line(error)}
            continue
        yield row | {
            "forward": in_turn(s.device, both(forward), min(3, s.rounds), 1),
            "step": in_turn(s.device, both(step), 2 if s.card else 1, 1),
        }


def profile(s: Sizes) -> Iterator[dict[str, Any]]:
    """The 25 largest kernels of a training step with recomputation, by name: ms on the device, launches."""
    model, images = network(s), noise_image(s, 16_384 if s.card else 64)
    model.set_recompute(True)
    kind = torch.profiler.ProfilerActivity.CUDA if s.card else torch.profiler.ProfilerActivity.CPU
    for name, step in both(partial(training_step, model, images)).items():
        step()
        with torch.profiler.profile(activities=[kind]) as found:
            step()
            if s.card:
                torch.cuda.synchronize()
        times = [
            (e.self_device_time_total if s.card else e.self_cpu_time_total, e.count, e.key)
            for e in found.key_averages()
        ]
        largest = [
            {"kernel": key[:120], "ms": round(t / 1e3, 3), "launches": n} for t, n, key in sorted(times)[:-26:-1]
        ]
        total = round(sum(t for t, _, _ in times) / 1e3, 2)
        yield {"what": "profile", "path": name, "patches": images.numel() // 3072, "ms": total, "largest": largest}


PARTS = (kernels, layers, embeddings, models, graphs, shapes, weight_gradient, profile)


def rows(device: torch.device, quick: bool, parts: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """All rows, the most important first; a part that fails is a row with its error."""
    sizes = Sizes(torch.device(device), quick)
    for part in PARTS:
        if parts and part.__name__ not in parts:
            continue
        start = time.monotonic()
        try:
            yield from part(sizes)
        except Exception as error:  # later parts still run
            yield {"what": part.__name__, "error": one_line(error)}
        if sizes.card:
            torch.cuda.empty_cache()
        yield {"what": "seconds", "of": part.__name__, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150.0, help="no new row after this")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--parts", nargs="+", default=[], choices=[p.__name__ for p in PARTS])
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="toy sizes in Triton's interpreter, to test this script"
    )
    args = parser.parse_args()
    start = time.monotonic()
    for row in rows(torch.device("cpu" if args.cpu_smoke else "cuda"), args.quick, args.parts):
        print(json.dumps(row), flush=True)
        if time.monotonic() - start > args.seconds and not args.cpu_smoke:
            break


if __name__ == "__main__":
    main()
