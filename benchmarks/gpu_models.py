"""The parts of `gpu.py` that run whole models: forward, training step, the published model, compilation and graphs.

LongViT-S, 12 layers; bfloat16 autocast over float32 weights. Contenders are named by their attention; `chunk_tokens`:
how many tokens a block's products take at once, where it is not what the model takes by itself.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gpu_parts import Bench, alternate, attention_by, noise_image, one_line, pairs_of, with_floors
from longvit.model import norm_linear
from longvit.model.longvit import LongViT, segment_schedule
from longvit.training.optim import adamw

OTHER_CHUNK = 16_384


def linear_flops(model: LongViT, n: int) -> int:
    """Of all products of weights with n tokens."""
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "pos_embed" not in name)
    return 2 * weights * n


def in_chunks(chunk: int | None, backend: str, step: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        before = norm_linear.CHUNK_TOKENS
        norm_linear.CHUNK_TOKENS = chunk
        try:
            with attention_by(backend):
                step()
        finally:
            norm_linear.CHUNK_TOKENS = before

    return run


def measured(
    b: Bench, image: int, steps: dict[str, Callable[[], Any]], model: LongViT, training: bool
) -> dict[str, Any]:
    n = (image // 32) ** 2
    pairs = model.config.depth * pairs_of(n, segment_schedule(n), model.config.num_heads)
    found = alternate(b, steps, 3)
    attention, linear = (7, 3) if training else (2, 1)
    flops = attention * 2 * 32 * pairs + linear * linear_flops(model, n)
    return {"image_px": image, "patches": n, **with_floors(b, found, pairs * (2 if training else 1), flops)}


def forward(b: Bench) -> Iterator[dict[str, Any]]:
    """Image (uint8, on the device) → logits."""
    model = b.model(2).eval()
    for image in b.images:
        if b.left() < 8 and not b.args.cpu_smoke:
            yield {"image_px": image, "skipped": "no time left"}
            continue
        pixels = noise_image(image).to(b.device)

        def step(pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode(), torch.autocast(b.device.type, b.half):
                model(pixels)

        steps = {name: in_chunks(None, name, step) for name in b.backends}
        first = b.backends[0]
        steps[f"{first} chunk_tokens={OTHER_CHUNK}"] = in_chunks(OTHER_CHUNK, first, step)
        yield measured(b, image, steps, model, training=False)


def training(b: Bench) -> Iterator[dict[str, Any]]:
    """Forward, backward and AdamW with recomputation; `offload`: what is kept waits on the host, as the image does."""
    model = b.model(2)
    optimizer = adamw(model, lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999))
    label = torch.tensor([1], device=b.device)

    def step(host: torch.Tensor, offload: bool) -> None:
        model.set_recompute(True, offload=offload)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(b.device.type, b.half):
            logits = model(host)  # goes to the device in strips
        F.cross_entropy(logits.float(), label).backward()
        optimizer.step()

    for image in b.images:
        if b.left() < 20 and not b.args.cpu_smoke:
            yield {"image_px": image, "skipped": "no time left"}
            continue
        host = noise_image(image)
        host = host.pin_memory() if b.cuda else host
        steps = {}
        for name in b.backends:
            steps[f"{name} offload"] = in_chunks(None, name, partial(step, host, True))
            steps[name] = in_chunks(None, name, partial(step, host, False))
        yield measured(b, image, steps, model, training=True)


def published(b: Bench) -> Iterator[dict[str, Any]]:
    """The authors' model, bfloat16: forward, and forward + backward with recomputation (no optimiser)."""
    if not Path(b.args.peer).is_file():
        yield {"skipped": f"published code: not at {b.args.peer}"}
        return
    for image in [128] if b.args.cpu_smoke else sorted(b.images):
        for backward in (False, True):
            command = [sys.executable, b.args.peer, "model", "--image", str(image), "--runs", "2"]
            command += ["--device", b.device.type, "--dtype", "bfloat16"]
            command += ["--segments", *map(str, segment_schedule((image // 32) ** 2))]
            command += ["--backward", "--recompute"] if backward else []
            row: dict[str, Any] = {"image_px": image, "what": "forward + backward" if backward else "forward"}
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=max(5.0, b.left()))
                result = json.loads(done.stdout.splitlines()[-1])
                row |= {"seconds": result["seconds"], "peak_gib": round(result["peak_mib"] / 1024, 2)}
            except subprocess.CalledProcessError as error:
                row["error"] = (error.stderr.strip().splitlines() or ["no message"])[-1][:300]
            except subprocess.TimeoutExpired:
                row["skipped"] = "no time left"
            yield row


def graphs(b: Bench) -> Iterator[dict[str, Any]]:
    """Savings of `torch.compile` and CUDA graphs on the encoder's forward, which may be bound by launches."""
    for image in [128] if b.args.cpu_smoke else [1024, 4096]:
        model = b.model().eval()
        n = (image // 32) ** 2
        x, pattern = torch.randn(1, n, model.config.embed_dim, device=b.device), model.pattern(n)
        compiled = torch.compile(copy.deepcopy(model.blocks), backend="inductor" if b.cuda else "aot_eager")
        steps: dict[str, Callable[[], Any]] = {
            "eager": partial(model.blocks, x, pattern),
            "torch.compile": partial(compiled, x, pattern),
        }
        row: dict[str, Any] = {"image_px": image, "patches": n}
        with torch.inference_mode(), torch.autocast(b.device.type, b.half):
            if b.cuda:
                try:
                    graph, out = captured(steps["eager"])
                    graph.replay()
                    row["graph_equals_eager"] = torch.equal(out, steps["eager"]())
                    steps["CUDA graph"] = graph.replay
                except RuntimeError as error:
                    row["CUDA graph"] = one_line(error)
            yield row | {"results": alternate(b, steps, 10)}


def captured(step: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Step captured as a graph, and the tensor of its result after each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


PARTS = (forward, training, published, graphs)
