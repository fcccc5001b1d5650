"""Measurements of `gpu_kernels.py`. Each part runs in its own process and prints JSON lines.

    python benchmarks/gpu_kernel_parts.py check --seconds 60

A variant is a kernel with a tile: "padded forward 2·64x64x4x3" is `padded_kernels.forward` with two tiles of 64 queries
by 64 keys, 4 warps and 3 stages. "scaled" multiplies by the scale per pair, "≤128" caps the registers, "p1" makes one
of four exponentials a polynomial. Shapes are those of LongViT-S: one slide, N patches, 16 heads of 24. Seconds are
medians of CUDA events, contenders in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

SMOKE = "--cpu-smoke" in sys.argv
if SMOKE:
    os.environ["TRITON_INTERPRET"] = "1"
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from gpu_parts import DIM, HEADS, Bench, alternate, attention_by, noise_image, one_line, pairs_of, timed  # noqa: E402
from longvit.attention import padded_branch, padded_kernels, triton_branch  # noqa: E402
from longvit.attention.dilated import dilated_attention  # noqa: E402
from longvit.attention.operators import forward_op  # noqa: E402
from longvit.model import norm_linear  # noqa: E402
from longvit.model.longvit import DILATED_RATIOS, segment_schedule  # noqa: E402

HEADS = 2 if SMOKE else HEADS
FOLDED = math.log(2)  # a scale that is part of the queries: exp2 of the product itself
SCALE = DIM**-0.5
BRANCHES = {"triton": triton_branch, "padded": padded_branch}
SHAPES = {
    "triton forward": "128x64x8x3",
    "triton keys": "64x128x4x2 64x128x4x3 64x128x4x4",
    "triton queries": "64x64x4x3",
    "padded forward": "2·64x64x4x3 2·64x64x4x4 2·64x64x4x2 64x64x4x3 64x64x4x4 64x128x4x3≤128 128x64x8x3 128x64x8x4 "
    "128x64x4x3 2·64x128x4x3 2·64x32x4x4 2·64x64x4x3≤128 64x64x4x3≤96 64x32x4x4 2·64x32x4x3≤128 "
    "2·64x64x4x3≤128p1 2·64x64x4x3≤128p2 2·64x64x4x3p1 64x64x4x3≤96p1",
    "padded keys": "64x64x4x3 64x64x4x4 64x128x4x3 64x128x4x4 128x64x8x3 128x64x4x3 64x32x4x4 128x32x4x4 "
    "64x64x4x3≤128 64x64x4x2≤128 64x32x4x3 128x64x8x3≤128 64x64x4x3≤128p1",
    "padded queries": "2·64x64x4x3 2·64x64x4x4 64x64x4x3 64x64x4x4 64x128x4x3 128x64x8x3 128x64x4x3 2·64x32x4x4 "
    "2·64x64x4x3≤128 2·64x64x4x3≤128p1 2·64x64x4x3≤128p2",
}
if SMOKE:
    SHAPES = {
        "triton forward": "16x16x4x2",
        "triton keys": "16x16x4x2",
        "triton queries": "16x16x4x2",
        "padded forward": "2·16x16x4x2 16x16x4x2",
        "padded keys": "16x16x4x2",
        "padded queries": "2·16x16x4x2",
    }


class Variant:
    """`family kernel shape [scaled]`; see the head of this file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.family, self.kernel, shape, *rest = name.split()
        self.folded = self.family == "padded" and "scaled" not in rest
        match = re.fullmatch(r"(2·)?(\d+)x(\d+)x(\d+)x(\d+)(?:≤(\d+))?(?:p(\d))?", shape)
        assert match, name
        numbers = [int(x) for x in match.groups()[1:5]]
        registers = int(match[6]) if match[6] else None
        polynomials = int(match[7] or 0)
        self.tile = triton_branch.Tile(*numbers, 2 if match[1] else 1, registers, polynomials)
        self.branch = BRANCHES[self.family]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        before = self.branch.TILES[self.kernel]
        self.branch.TILES[self.kernel] = self.tile
        try:
            yield
        finally:
            self.branch.TILES[self.kernel] = before


def variants(kernels: tuple[str, ...] = ("forward", "keys", "queries")) -> list[Variant]:
    found = []
    for head, shapes in SHAPES.items():
        family, kernel = head.split()
        for shape in shapes.split() if kernel in kernels else ():
            found.append(Variant(f"{head} {shape}"))
        if family == "padded" and kernel in kernels:
            found.append(Variant(f"{head} {shapes.split()[0]} scaled"))
    return found


# --- clocks ---------------------------------------------------------------------------------------------------------


class Clocks:
    """SM clock and power of the card over time, by nvidia-smi every 50 ms."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []
        command = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-lms", "50"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self.process = None
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process
        assert self.process.stdout
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                clock, power = (float(x) for x in line.split(",")[:2])
                self.samples.append((time.monotonic(), clock, power))

    def since(self, start: float) -> dict[str, float]:
        seen = [(c, p) for at, c, p in self.samples if at >= start]
        if not seen:
            return {}
        clocks, powers = zip(*seen, strict=True)
        return {"sm_mhz": statistics.median(clocks), "sm_mhz_least": min(clocks), "watt": round(max(powers))}

    def close(self) -> None:
        if self.process:
            self.process.kill()


# --- inputs ---------------------------------------------------------------------------------------------------------


class Layer:
    """One layer's attention: inputs, merged result, and the launches of single kernels over all its branches."""

    def __init__(self, b: Bench, n: int, qkv: torch.Tensor | None = None, seed: int = 0) -> None:
        generator = torch.Generator(device=b.device).manual_seed(seed)
        if qkv is None:
            qkv = torch.randn(1, n, 3, HEADS, DIM, device=b.device, generator=generator)
        self.n, self.device = n, b.device
        self.qkv = qkv.to(b.half)
        self.q, self.k, self.v = self.qkv.unbind(2)
        self.grad_out = torch.randn(1, n, HEADS, DIM, device=b.device, generator=generator).to(b.half)
        self.branches = list(zip(segment_schedule(n), DILATED_RATIOS, strict=True))
        self.out = torch.randn(1, n, HEADS, DIM, device=b.device, generator=generator)
        self.lse = torch.full((1, n, HEADS), 8.0, device=b.device)
        self._operands: dict[Any, Any] = {}

    def operands(self, variant: Variant) -> Any:
        key = (variant.family, variant.kernel == "forward", variant.folded)
        if key not in self._operands:
            if variant.kernel == "forward":
                made = variant.branch.forward_operands(self.q, self.k, self.v)
            else:
                scale = FOLDED if variant.folded else SCALE
                made = variant.branch.backward_operands(
                    self.grad_out, self.q, self.k, self.v, self.out.to(self.q.dtype), self.lse, scale
                )
            self._operands[key] = made
        return self._operands[key]

    def run(self, variant: Variant, into: tuple[torch.Tensor, ...], branches: Any = None) -> None:
        """Over all branches; `into`: (out, lse), (dk, dv) or (dq,). The first branch sets them."""
        scale = FOLDED if variant.folded else SCALE
        operands = self.operands(variant)
        with variant.in_use():
            for i, (w, r) in enumerate(branches or self.branches):
                first = i == 0 and r == 1
                if variant.kernel == "forward":
                    variant.branch.branch_forward(operands, *into, w, r, scale, False, first)
                elif variant.kernel == "keys":
                    variant.branch.keys_backward(operands, into, w, r, scale, first)
                else:
                    variant.branch.queries_backward(operands, into[0], w, r, scale, first)

    def empty(self, variant: Variant) -> tuple[torch.Tensor, ...]:
        """Output tensors of a variant, filled with NaN."""
        if variant.kernel == "forward":
            lse = torch.full((1, self.n, HEADS), math.nan, device=self.device)
            return torch.full((1, self.n, HEADS, DIM), math.nan, device=self.device), lse
        fused = torch.full((1, self.n, 3, HEADS, DIM), math.nan, device=self.device).unbind(2)
        return fused[1:] if variant.kernel == "keys" else fused[:1]


# --- parts ----------------------------------------------------------------------------------------------------------


def ceilings(b: Bench) -> Iterator[dict[str, Any]]:
    """The card, and what it reaches: matrix product, copy, exponentials, at which clock."""
    if not b.cuda:
        yield {"device": "cpu", "torch": torch.__version__}
        return
    import triton

    card = torch.cuda.get_device_properties(b.device)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    yield {
        "device": card.name, "capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1), "torch": torch.__version__, "triton": triton.__version__,
        "driver": driver,
    }  # fmt: skip
    clocks = Clocks()
    a, c = (torch.randn(8192, 8192, device=b.device, dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(1 << 31, dtype=torch.uint8, device=b.device)
    other = torch.empty_like(big)
    x = torch.randn(132 * 64, 1024, device=b.device)
    jobs = {
        "matrix 8192³": (lambda: [a @ c for _ in range(10)], 10 * 2 * 8192**3 / 1e12, "TFLOP/s"),
        "copy": (lambda: [other.copy_(big) for _ in range(5)], 5 * 2 * 2**31 / 1e12, "TB/s"),
        "exp2": (lambda: exponentials(x, 512), x.numel() * 512 / 1e12, "T/s"),
    }
    for name, (job, amount, unit) in jobs.items():
        job()
        start = time.monotonic()
        seconds = statistics.median(timed(b, job) for _ in range(5))
        time.sleep(0.1)
        yield {"what": name, "rate": round(amount / seconds, 3), "unit": unit, **clocks.since(start)}
    clocks.close()


def exponentials(x: torch.Tensor, times: int) -> None:
    import triton
    import triton.language as tl

    global _exp_kernel
    if "_exp_kernel" not in globals():
        globals()["tl"] = tl

        @triton.jit
        def _exp_kernel(X, times, SIZE: tl.constexpr):
            at = X + tl.program_id(0) * SIZE + tl.arange(0, SIZE)
            x = tl.load(at)
            for _ in range(times):
                x = tl.exp2(x)
            tl.store(at, x)

    _exp_kernel[(len(x),)](x, times, SIZE=x.shape[1])


def compile(b: Bench) -> Iterator[dict[str, Any]]:
    """Compiles every variant into Triton's cache on the disk, by several processes."""
    if not b.cuda:
        yield {"skipped": "nothing to compile in the interpreter"}
        return
    start = time.monotonic()
    n = max(1, min(14, (os.cpu_count() or 1) - 1))
    command = [sys.executable, __file__, "compile_share", "--share"]
    children = [subprocess.Popen([*command, str(i), str(n)], stdout=subprocess.DEVNULL) for i in range(n)]
    for child in children:
        child.wait()
    yield {"variants": len(variants()), "seconds": round(time.monotonic() - start, 1)}


def compile_share(b: Bench) -> Iterator[dict[str, Any]]:
    share, n = b.args.share
    layer = Layer(b, 16_384)
    for variant in variants()[share::n]:
        with contextlib.suppress(Exception):  # `check` reports what does not compile
            layer.run(variant, layer.empty(variant))
    yield {"share": share}


CASES = ("random", "ragged", "large logits", "one large key", "zeros", "one block over the bound")


def case(b: Bench, name: str) -> Layer:
    """Inputs that are numerically difficult for kernels."""
    n = 32 if SMOKE else 16_384
    n = (37 if SMOKE else 5003) if name == "ragged" else n
    generator = torch.Generator().manual_seed(len(name))
    qkv = torch.randn(1, n, 3, HEADS, DIM, generator=generator)
    if name == "large logits":  # ± 60 nats
        qkv[:, :, 0] *= 60 / (SCALE * DIM)
        qkv[:, :, :2] = qkv[:, :, :2].clamp(-60, 60)
    if name == "one large key":
        qkv[:, n // 3, 1] *= 300 / (SCALE * DIM)
    if name == "zeros":
        qkv[:, : n // 2] = 0
    if name == "one block over the bound":
        qkv[:, n // 2 : n // 2 + 40, 0] *= 60
    return Layer(b, n, qkv.to(b.device))


def check(b: Bench) -> Iterator[dict[str, Any]]:
    """Every variant against float32 on the CPU, beside today's kernel: error, twice the same bits, all written."""
    layers, wants = [], []
    errors: dict[str, dict[str, float]]
    for name in CASES:
        layer = case(b, name)
        *qkv, grad_out = (t.float() for t in (layer.q, layer.k, layer.v, layer.grad_out))
        both = {}
        for folded in (False, True):
            # a folded scale is ln 2: the queries are scaled so that the logits are the same
            factor = SCALE / FOLDED if folded else 1.0
            q = (qkv[0] * factor).to(b.half).float() if folded else qkv[0]
            settings = [layer.branches, FOLDED if folded else SCALE]
            both[folded] = reference(q, qkv[1], qkv[2], grad_out, *settings)
        layers.append((name, layer))
        wants.append(both)
    for (name, layer), both in zip(layers, wants, strict=True):
        errors = {}
        for backend in ("triton", "triton_padded"):
            ours = whole(layer.q, layer.k, layer.v, layer.grad_out, layer.branches, SCALE, backend)
            errors[backend] = {k: relative(t.cpu(), both[False][k]) for k, t in ours.items()}
        ratios = [errors["triton_padded"][k] / max(e, 1e-7) for k, e in errors["triton"].items()]
        yield {"what": "forward and backward", "case": name, "errors_of_today": max(ratios), **errors}
    today: dict[tuple[str, str], float] = {}
    for variant in sorted(variants(), key=lambda v: v.family != "triton"):
        errors = {}
        same = True
        try:
            for (name, layer), both in zip(layers, wants, strict=True):
                q_before = layer.q
                if variant.folded:
                    layer.q = (layer.q.float() * (SCALE / FOLDED)).to(b.half)
                want = both[variant.folded]
                layer.out, layer.lse = want["out"].to(b.device), want["lse"].to(b.device)
                layer._operands = {}
                results = []
                for _ in range(2):
                    into = layer.empty(variant)
                    layer.run(variant, into)
                    results.append([t.float().cpu() for t in into])
                layer.q, layer._operands = q_before, {}
                same &= all(torch.equal(x, y) for x, y in zip(*results, strict=True))
                names = {"forward": ["out", "lse"], "keys": ["grad_k", "grad_v"], "queries": ["grad_q"]}[variant.kernel]
                # as the operator returns them: in the dtype of q, k and v, but for the log-sum-exp
                rounded = [x if k == "lse" else x.to(b.half) for k, x in zip(names, results[0], strict=True)]
                errors[name] = {k: relative(x, want[k]) for k, x in zip(names, rounded, strict=True)}
        except Exception as error:
            yield {"variant": variant.name, "error": one_line(error)}
            continue
        worst = 0.0
        for name, found in errors.items():
            for k, value in found.items():
                if variant.family == "triton" and (variant.kernel, f"{name} {k}") not in today:
                    today[variant.kernel, f"{name} {k}"] = value
                limit = 1.2 * today[variant.kernel, f"{name} {k}"] + 2e-5
                limit = max(limit, 1e-4) if k == "lse" else limit  # a sum of rounded probabilities, as out is
                worst = max(worst, value / limit) if math.isfinite(value) else math.inf
        yield {
            "variant": variant.name,
            "right": bool(same and worst <= 1),
            "same_bits_twice": same,
            "of_allowed_error": round(worst, 3),
            "errors": {n: {k: float(f"{v:.2g}") for k, v in e.items()} for n, e in errors.items()},
        }


def relative(ours: torch.Tensor, want: torch.Tensor) -> float:
    """‖ours − want‖ / ‖want‖, NaN where anything is not finite."""
    if not torch.isfinite(ours).all():
        return math.nan
    return ((ours.double() - want.double()).norm() / want.double().norm().clamp(min=1e-20)).item()


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad_out: torch.Tensor, branches: Any, scale: float
) -> dict[str, torch.Tensor]:
    """float32, by PyTorch's own kernels, from the same rounded inputs."""
    segments, ratios = zip(*branches, strict=True)
    name = "cuda_efficient" if q.is_cuda else "cpu_flash"
    found = whole(q, k, v, grad_out, branches, scale, name)
    with torch.no_grad():
        lse = forward_op([q, k, v], list(segments), list(ratios), None, False, False, scale, name)[1]
    return {k: t.cpu() for k, t in (found | {"lse": lse}).items()}


def whole(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad_out: torch.Tensor, branches: Any, scale: float, name: str
) -> dict[str, torch.Tensor]:
    """Output and gradients of dilated attention by the back end `name`."""
    segments, ratios = zip(*branches, strict=True)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    out = dilated_attention(*leaves, segment_lengths=segments, dilated_ratios=ratios, scale=scale, backend=name)
    grads = torch.autograd.grad(out, leaves, grad_out)
    return {"out": out.detach(), **dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))}


def time_(b: Bench) -> Iterator[dict[str, Any]]:
    """Right variants of each kernel in turn on the segments of 16,384² px."""
    n = 32 if SMOKE else 262_144
    layer, clocks = Layer(b, n), Clocks()
    pairs = pairs_of(n, segment_schedule(n))
    for kernel in ("forward", "keys", "queries"):
        chosen = [v for v in variants((kernel,)) if v.name in (b.args.variants or [v.name])]
        into = layer.empty(Variant(f"triton {kernel} 64x64x4x3"))
        start = time.monotonic()
        found = alternate(b, {v.name: partial(layer.run, v, into) for v in chosen}, 1 if SMOKE else 5)
        times = {name: r["seconds"] for name, r in found.items() if "seconds" in r}
        rows = {
            name: {"ms": round(s * 1e3, 3), "cycles": round(s * 1980e6 * 132 * 4 * 32 / pairs, 2)}
            for name, s in times.items()
        }
        yield {
            "kernel": kernel, "patches": n, "pairs": pairs, "fastest": min(times, key=lambda x: times[x], default=None),
            "results": rows, "errors": {k: r["error"] for k, r in found.items() if "error" in r},
            **clocks.since(start),
        }  # fmt: skip
    clocks.close()


def use_fastest(b: Bench) -> None:
    """Sets the tiles of the padded kernels to the fastest that `time` found."""
    for kernel, name in json.loads(b.args.fastest or "{}").items():
        variant = Variant(name)
        if variant.family == "padded":
            padded_branch.TILES[kernel] = variant.tile


_EXP = ("return tl.exp2(s)\n", "return s\n")
_KEYS_ADVANCE = "            K += columns * r * k_n\n            V += columns * r * v_n\n    else"
_QUERIES_ADVANCE = "        Q += columns * r * q_n\n        GRAD += columns * r * grad_n\n    valid"


def _no_product(name: str, left: str, right: str, rest: str) -> tuple[str, str]:
    """Replacement of a product by a sum over rows; `rest`: the text after it, which identifies it."""
    return f"{name} = tl.dot({left}, {right}, {name}, input_precision=PRECISION)\n{rest}", (
        f"{name} += tl.sum({left.split('.')[0]}, 1)[:, None]\n{rest}"
    )


CUTS = {  # what is left out of a padded kernel, by replacing text of its source
    "forward": {
        "no exponentials": [_EXP],
        "no value product": [
            _no_product("out", "p.to(v.dtype)", "v", "            if"),
            _no_product("out2", "p2.to(v.dtype)", "v", "            K"),
        ],
        "keys and values stay": [(_KEYS_ADVANCE, "    else")],
    },
    "keys": {
        "no exponentials": [_EXP],
        "no key product": [_no_product("dk", "ds.to(q.dtype)", "q", "        Q")],
        "queries and gradients stay": [(_QUERIES_ADVANCE, "    valid")],
    },
}


def knockouts(b: Bench) -> Iterator[dict[str, Any]]:
    """The fastest padded kernels with a part left out: what the time goes into. Their results are wrong by design."""
    use_fastest(b)
    n = 32 if SMOKE else 262_144
    layer = Layer(b, n)
    source = Path(padded_kernels.__file__).read_text()
    for kernel, cuts in CUTS.items():
        tile = padded_branch.TILES[kernel]
        shape = f"{'2·' if tile.tiles == 2 else ''}{tile.rows}x{tile.columns}x{tile.warps}x{tile.stages}"
        variant = Variant(f"padded {kernel} {shape}" if not SMOKE else f"padded {kernel} 16x16x4x2")
        into = layer.empty(variant)
        layer.operands(variant)
        steps: dict[str, Callable[[], Any]] = {"whole": partial(layer.run, variant, into)}
        with tempfile.TemporaryDirectory() as folder:
            for i, (name, replacements) in enumerate(cuts.items()):
                text = source
                for old, new in replacements:
                    assert old in text, (name, old)
                    text = text.replace(old, new)
                path = Path(folder) / f"cut_{kernel}_{i}.py"
                path.write_text(text)
                spec = importlib.util.spec_from_file_location(path.stem, path)
                assert spec
                assert spec.loader
                module = importlib.util.module_from_spec(spec)
                sys.modules[path.stem] = module
                spec.loader.exec_module(module)
                steps[name] = partial(_with_kernels, module, partial(layer.run, variant, into))
            found = alternate(b, steps, 1 if SMOKE else 5)
        yield {"kernel": kernel, "variant": variant.name, "results": milliseconds(found)}
    return


def _with_kernels(module: Any, step: Callable[[], Any]) -> None:
    before = padded_branch.padded_kernels
    padded_branch.padded_kernels = module
    try:
        step()
    finally:
        padded_branch.padded_kernels = before


def milliseconds(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {k: round(r["seconds"] * 1e3, 3) if "seconds" in r else r for k, r in found.items()}


def branches(b: Bench) -> Iterator[dict[str, Any]]:
    """Each branch alone at 1,048,576 patches: today's kernels and the fastest; then what surrounds the kernels."""
    use_fastest(b)
    n = 32 if SMOKE else 1 << 20
    layer = Layer(b, n)
    chosen = {k: Variant(v) for k, v in json.loads(b.args.fastest or "{}").items()}
    old = {"forward": "128x64x8x3", "keys": "64x128x4x2", "queries": "64x64x4x3"}
    for kernel, shape in old.items():
        both = [Variant(f"triton {kernel} {'16x16x4x2' if SMOKE else shape}")]
        both += [chosen[kernel]] if kernel in chosen and chosen[kernel].family == "padded" else []
        into = layer.empty(both[0])
        for t in into:
            t.zero_()
        row: dict[str, Any] = {"kernel": kernel, "patches": n}
        for w, r in layer.branches:
            steps = {v.name: partial(layer.run, v, into, [(w, r)]) for v in both}
            row[f"w {w} r {r}"] = milliseconds(alternate(b, steps, 1 if SMOKE else 3))
        if len(both) == 2:  # the same with the rows of one head side by side in memory
            made = layer.operands(both[1])
            turned = tuple(t.transpose(1, 2).contiguous().transpose(1, 2) if t.ndim == 4 else t for t in made)
            steps = {"heads inside": partial(layer.run, both[1], into)}
            steps["tokens inside"] = partial(_with_operands, layer, turned, both[1], into)
            row["layout"] = milliseconds(alternate(b, steps, 1 if SMOKE else 3))
        layer._operands = {}
        yield row
    q, k, v, out, lse = layer.q, layer.k, layer.v, layer.out, layer.lse
    half = out.to(q.dtype)
    steps = {
        "padded forward operands": lambda: padded_branch.forward_operands(q, k, v),
        "padded backward operands": lambda: padded_branch.backward_operands(layer.grad_out, q, k, v, half, lse, SCALE),
        "today's backward operands": lambda: triton_branch.backward_operands(layer.grad_out, q, k, v, half, lse, SCALE),
        "out to bfloat16": lambda: out.to(q.dtype),
    }
    for tokens in (4, 8, 32):  # of a program that pads
        steps[f"padded forward operands, {tokens} tokens"] = partial(_padded_by, tokens, layer)
    yield {"what": "around the kernels", "patches": n, "results": milliseconds(alternate(b, steps, 3))}


def _padded_by(tokens: int, layer: Layer) -> None:
    before = padded_branch._TOKENS
    padded_branch._TOKENS = tokens
    try:
        padded_branch.forward_operands(layer.q, layer.k, layer.v)
    finally:
        padded_branch._TOKENS = before


def _with_operands(layer: Layer, operands: Any, variant: Variant, into: Any) -> None:
    before = layer._operands
    layer._operands = dict.fromkeys(before, operands)
    try:
        layer.run(variant, into)
    finally:
        layer._operands = before


def contenders() -> list[tuple[str, dict[str, str]]]:
    """(name, environment) of whole models: today's kernels, the padded ones, and with fused norms."""
    found = [("triton", {"LONGVIT_ATTENTION": "triton"}), ("padded", {"LONGVIT_ATTENTION": "triton_padded"})]
    if importlib.util.find_spec("longvit.model.fused_norms"):
        values = {"LONGVIT_ATTENTION": "triton_padded", "LONGVIT_FUSED": "1"}
        found.append(("padded, fused norms", values))
        found += [
            (f"padded, fused norms, chunks of {n}", values | {"CHUNK": str(n)}) for n in (65_536, 262_144) if not SMOKE
        ]
    return found


def with_environment(values: dict[str, str], step: Callable[[], Any]) -> Any:
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    norm_linear.CHUNK_TOKENS = int(values["CHUNK"]) if "CHUNK" in values else None
    try:
        return step()
    finally:
        norm_linear.CHUNK_TOKENS = None
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})


def models(b: Bench) -> Iterator[dict[str, Any]]:
    """LongViT-S whole: logits and gradients of the contenders against today's, then forward and step at 32,768²."""
    from longvit.training.optim import adamw

    use_fastest(b)
    torch.manual_seed(0)
    model = b.model(2)
    label = torch.tensor([1], device=b.device)
    small = noise_image(64 if SMOKE else 4096).to(b.device)
    first: list[torch.Tensor] = []
    fine = []
    for name, values in contenders():
        try:
            grads = with_environment(values, partial(gradients, b, model, small, label))
        except Exception as error:
            yield {"what": "agreement", "contender": name, "error": one_line(error)}
            continue
        first = first or grads
        cosines = [torch.cosine_similarity(x, y, 0).item() for x, y in zip(grads, first, strict=True)]
        seen = {"least_cosine": round(min(cosines), 5), "logits": [round(x, 5) for x in grads[0].tolist()]}
        yield {"what": "agreement", "contender": name, "image_px": small.shape[-1], **seen}
        fine += [(name, values)] if min(cosines) > 0.98 else []
    clocks = Clocks()
    optimizer = adamw(model, lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999))
    for image in [64] if SMOKE else [32768, 16384, 4096]:
        n = (image // 32) ** 2
        host = noise_image(image)
        host = host.pin_memory() if b.cuda else host
        on_card = host.to(b.device)

        def forward(pixels: torch.Tensor = on_card) -> None:
            with torch.inference_mode(), torch.autocast(b.device.type, b.half):
                model(pixels)

        def step(offload: bool, host: torch.Tensor = host) -> None:
            model.set_recompute(True, offload=offload and b.cuda)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(b.device.type, b.half):
                logits = model(host)
            F.cross_entropy(logits.float(), label).backward()
            optimizer.step()

        start = time.monotonic()
        steps = {name: partial(with_environment, v, forward) for name, v in fine}
        found = alternate(b, steps, 1 if SMOKE else 3)
        yield {"what": "forward", "image_px": image, "patches": n, "results": found, **clocks.since(start)}
        if image == 16384:
            continue
        del on_card, forward
        start = time.monotonic()
        steps = {}
        for name, v in [*fine[1:], *fine[:1]]:  # today's last: its step is the longest
            steps[f"{name} offload"] = partial(with_environment, v, partial(step, True))
        found = alternate(b, steps, 1 if SMOKE else 2)
        yield {"what": "training", "image_px": image, "patches": n, "results": found, **clocks.since(start)}
        del host
    clocks.close()


def gradients(b: Bench, model: torch.nn.Module, pixels: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
    """→ logits, then the gradient of each parameter, flat, float32."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(b.device.type, b.half):
        logits = model(pixels)
    F.cross_entropy(logits.float(), label).backward()
    return [logits.detach().float().flatten(), *(p.grad.float().flatten() for p in model.parameters())]


def fused(b: Bench) -> Iterator[dict[str, Any]]:
    """Fused norms, by `gpu_fused.py`."""
    if not importlib.util.find_spec("gpu_fused"):
        yield {"skipped": "no fused norms"}
        return
    import gpu_fused

    parts = ("embeddings", "graphs", "shapes", "weight_gradient", "kernels", "layers")
    yield from gpu_fused.rows(b.device, SMOKE, b.args.rows or parts)


def graphs(b: Bench) -> Iterator[dict[str, Any]]:
    """CUDA graph and torch.compile of the encoder's forward where launches may be what it waits for."""
    from gpu_models import graphs as encoder_graphs

    use_fastest(b)
    for name in ("triton", "triton_padded"):
        with attention_by(name if b.cuda else "auto"):
            for row in encoder_graphs(b):
                yield {"attention": name, **row}
        if b.left() < 15:
            return


def profile(b: Bench) -> Iterator[dict[str, Any]]:
    """A training step at 16,384² by kernel, the 25 that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    use_fastest(b)
    image = 64 if SMOKE else 16_384
    model = b.model(2)
    model.set_recompute(True, offload=b.cuda)
    host, label = noise_image(image), torch.tensor([1], device=b.device)
    large = noise_image(64 if SMOKE else 32_768).to(b.device)
    jobs = [("forward", large.shape[-1], contenders()[2], partial(logits_alone, b, model, large))]
    jobs += [("step", image, c, partial(gradients_in_strips, b, model, host, label)) for c in contenders()[1:3]]
    for what, side, (name, values), step in jobs:
        if b.cuda:  # compiles, outside the profile
            with_environment(values, step)
        kind = ProfilerActivity.CUDA if b.cuda else ProfilerActivity.CPU
        with profiler(activities=[kind]) as seen:
            with_environment(values, step)
            if b.cuda:
                torch.cuda.synchronize()
        total = lambda e: e.device_time_total if b.cuda else e.cpu_time_total  # noqa: E731
        events = sorted(seen.key_averages(), key=total, reverse=True)
        rows = [[e.key[:90], e.count, round(total(e) / 1e3, 2)] for e in events[:25]]
        yield {
            "what": what,
            "contender": name,
            "image_px": side,
            "kernels_count_ms": rows,
            "all_ms": round(sum(map(total, events)) / 1e3, 1),
        }


def logits_alone(b: Bench, model: torch.nn.Module, pixels: torch.Tensor) -> None:
    with torch.inference_mode(), torch.autocast(b.device.type, b.half):
        model(pixels)


def gradients_in_strips(b: Bench, model: torch.nn.Module, host: torch.Tensor, label: torch.Tensor) -> None:
    with torch.autocast(b.device.type, b.half):
        logits = model(host)
    F.cross_entropy(logits.float(), label).backward()


METRICS = ",".join(
    (
        "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
        "sm__inst_issued.avg.pct_of_peak_sustained_active",
        "sm__warps_active.avg.per_cycle_active",
        "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio",
        "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_active",
        "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
        "gpu__time_duration.sum",
    )
)


def counters(b: Bench) -> Iterator[dict[str, Any]]:
    """Hardware counters of one launch each (ncu): which pipe is busy, what warps wait for."""
    from shutil import which

    if not b.cuda or not which("ncu"):
        yield {"skipped": "needs ncu and a card"}
        return
    command = ["ncu", "--clock-control", "none", "--metrics", METRICS, "--csv", "--launch-skip", "0"]
    command += ["--kernel-name", "regex:forward|keys_backward|queries_backward"]
    command += [sys.executable, __file__, "counted", "--fastest", b.args.fastest or "{}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(10.0, b.left()))
    rows: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        cells = re.findall(r'"((?:[^"]|"")*)"', line)
        if len(cells) > 10 and cells[0].isdigit():
            with contextlib.suppress(ValueError):
                rows.setdefault(f"{cells[0]} {cells[4][:40]}", {})[cells[-3]] = float(cells[-1].replace(",", ""))
    if not rows:
        yield {"error": (done.stderr or done.stdout).strip()[-300:]}
    for name, values in rows.items():
        yield {"launch": name, **values}


def counted(b: Bench) -> Iterator[dict[str, Any]]:
    """One launch of today's and of the fastest kernels, branch w 16,384 r 4 of 262,144 patches."""
    layer = Layer(b, 262_144)
    names = ["triton forward 128x64x8x3", "triton keys 64x128x4x2", "triton queries 64x64x4x3"]
    names += [v for v in json.loads(b.args.fastest or "{}").values() if v.startswith("padded")]
    branch = [(w, r) for w, r in layer.branches if r == 4]
    for name in names:
        variant = Variant(name)
        into = layer.empty(variant)
        for t in into:
            t.zero_()
        layer.run(variant, into, branch)
        torch.cuda.synchronize()
        layer._operands = {}
        yield {"launched": name}


def libraries(b: Bench) -> Iterator[dict[str, Any]]:
    """Dense attention of PyTorch's libraries with as many pairs as a layer at 16,384²: whether one beats us."""
    if not b.cuda:
        yield {"skipped": "needs a card"}
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens = round(math.sqrt(pairs_of(262_144, segment_schedule(262_144)) / HEADS) / 128) * 128
    for dim in (24, 32):
        steps: dict[str, Callable[[], Any]] = {}
        for backward in (False, True):
            x = torch.randn(1, HEADS, tokens, dim, device=b.device, dtype=b.half)

            def step(kind: SDPBackend, backward: bool = backward, x: torch.Tensor = x) -> None:
                with sdpa_kernel(kind):
                    leaf = x.detach().requires_grad_(backward)
                    out = F.scaled_dot_product_attention(leaf, leaf, leaf)
                    if backward:
                        out.backward(x)

            for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                what = "forward + backward" if backward else "forward"
                steps[f"{kind.name.lower()} {what}"] = partial(step, kind)
        found = alternate(b, steps, 3)
        yield {"head_dim": dim, "tokens": tokens, "results": milliseconds(found)}


PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "time": time_,
    **{f.__name__: f for f in (
        ceilings, compile, compile_share, check, models, knockouts, branches, fused, graphs, profile, counters, counted,
        libraries,
    )},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--variants", nargs="*")
    parser.add_argument("--fastest", help="JSON: kernel → name of a variant")
    parser.add_argument("--share", nargs=2, type=int)
    parser.add_argument("--rows", nargs="+", help="of `gpu_fused.py`: only these")
    parser.add_argument("--cpu-smoke", action="store_true")
    args = parser.parse_args()
    args.images = args.backends = args.tiles = None
    b = Bench(args)
    if not b.cuda:
        b.half = torch.float32  # the interpreter's products of bfloat16 are wrong
        for branch in BRANCHES.values():
            branch.TILES.update({k: triton_branch.Tile(16, 16, 4, 2) for k in branch.TILES})
    for row in PARTS[args.part](b):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
