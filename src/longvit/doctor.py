"""What is installed, what will be used and why, and a self-test against stored numbers, in about two seconds.

The self-test needs no download: a tiny model whose weights are a formula (so that no random generator of any torch
version plays a part) must give the stored embedding, and dilated attention must agree with its definition.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longvit import __version__

if TYPE_CHECKING:
    import numpy as np
    import torch

    from longvit.model.longvit import LongViT

Verdict = Literal["ok", "note", "wrong"]
PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "simplejpeg",
    "imagecodecs",
    "pillow",
    "h5py",
    "pandas",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "jinja2",
    "cyclopts",
    "rich",
    "pyyaml",
)


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    section: str
    name: str
    verdict: Verdict
    """`wrong` makes the command fail; `note` is worth knowing."""
    text: str


def examine(folder: str | Path = ".") -> tuple[Finding, ...]:
    """Everything the doctor looks at; `folder` is where results would be written. Never raises."""
    findings: list[Finding] = []
    for look in (_versions, _devices, _attention, _kernels, _readers, lambda: _disk(Path(folder)), _self_test):
        findings += _guarded(look)
    return tuple(findings)


def _guarded(look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as error:
        name = getattr(look, "__name__", "disk").strip("_").replace("_", " ").replace("<lambda>", "disk")
        return [Finding(name, "examined", "wrong", f"{type(error).__name__}: {' '.join(str(error).split())}")]


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "longvit", "ok", f"{__version__}, {Path(__file__).parent}"),
        Finding("versions", "python", "ok", f"{platform.python_version()}, {platform.platform()}"),
    ]
    there = []
    for name in PACKAGES:
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(Finding("versions", name, "wrong", "missing: pip install longvit brings it"))
    return [*found, Finding("versions", "packages", "ok", ", ".join(there))]


def _devices() -> list[Finding]:
    import torch

    from longvit.device import pick_device

    picked = pick_device("auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Finding("devices", "used", "ok", f"{picked.name} ({picked.reason})"),
        Finding("devices", "threads", "ok", f"{torch.get_num_threads()} for the model, {cores} cores to be had"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            text = f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute capability {card.major}.{card.minor}"
            found.append(Finding("devices", f"cuda:{index}", "ok", text))
    else:
        why = "this build of torch has none" if torch.version.cuda is None else "torch sees no card"
        found.append(Finding("devices", "cuda", "note", f"no CUDA: {why}; large canvases will be slow"))
    return found


def _attention() -> list[Finding]:
    import torch

    from longvit.attention.backends import pick
    from longvit.device import pick_device

    device = pick_device("auto").device
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        choice = pick(device, dtype, 24)
        name = f"{device.type} {str(dtype).removeprefix('torch.')}"
        found.append(Finding("attention", name, "ok", f"{choice.backend.name}: {choice.reason}"))
    return found


def _kernels() -> list[Finding]:
    """What else is chosen per device, beside attention."""
    import torch

    from longvit.device import pick_device
    from longvit.model import cuda_graph, fused_norms

    device = pick_device("auto").device
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        is_used, reason = fused_norms.choice(device, torch.float32, dtype, 384)
        name = f"fused norms, {device.type} {str(dtype).removeprefix('torch.')}"
        found.append(Finding("kernels", name, "ok", f"{'yes' if is_used else 'no'}: {reason}"))
    reason = cuda_graph.against(device)
    yes = f"yes: in embed and predict, up to {cuda_graph.MOST_PATCHES:,} patches are one launch"
    found.append(Finding("kernels", "CUDA graphs", "ok", f"no: {reason}" if reason else yes))
    return found


def _readers() -> list[Finding]:
    from longvit.slides.slide_info import describe_readers

    return [
        Finding("readers", reader.name, "ok", f"{', '.join(reader.formats)} ({reader.version}): {reader.note}")
        for reader in describe_readers()
    ]


def _disk(folder: Path) -> list[Finding]:
    folder = folder.resolve()
    free_gb = shutil.disk_usage(folder).free / 1e9
    writable = os.access(folder, os.W_OK | os.X_OK)
    text = f"{folder}: {free_gb:.1f} GB free" + ("" if writable else ", not writable")
    # A canvas of 32,768² is 3.2 GB.
    return [Finding("disk", "here", "ok" if writable and free_gb > 4 else "note", text)]


def _self_test() -> list[Finding]:
    return [model_test(), attention_test()]


def formula_model() -> LongViT:
    """A small LongViT whose weights are a formula of their position."""
    import torch

    from longvit.model.longvit import LongViT, LongViTConfig

    model = LongViT(LongViTConfig(embed_dim=48, depth=2, num_heads=4, ffn_dim=96, patch_px=32, num_classes=2))
    with torch.no_grad():
        for number, (_, tensor) in enumerate(sorted(model.state_dict().items())):
            index = torch.arange(tensor.numel(), dtype=torch.float64)
            wave = torch.sin(index * 0.7 + number) * torch.cos(index * 0.13)
            tensor.copy_((0.12 * wave + (1.0 if tensor.ndim == 1 else 0.0)).reshape(tensor.shape))
    return model.eval()


def formula_image() -> np.ndarray:
    """uint8 (320, 384, 3): 120 patches, so that a segment of 64 ends in the middle."""
    import numpy as np

    y, x, c = np.ogrid[:320, :384, :3]
    return (127.5 + 120 * np.sin(0.05 * x + 0.03 * y * (c + 1))).astype(np.uint8)


# The first numbers in float64 (float32 on a CPU differs by 4e-7, bfloat16 by 2e-2; torch 2.13, 2026-11).
GOLDEN_EMBEDDING = (
    -0.217374037,
    0.837630621,
    2.856709399,
    0.148776337,
    -0.057272858,
    2.793646436,
    0.4794855,
    -0.751376672,
)
GOLDEN_TOLERANCE = 2e-4


def formula_embedding(device: torch.device | None = None) -> np.ndarray:
    """The embedding of `formula_image` by `formula_model`, float32 (48,)."""
    return formula_model().to(device or "cpu").embed(formula_image())


def model_test() -> Finding:
    import numpy as np

    from longvit.device import pick_device

    device = pick_device("auto").device
    got = formula_embedding(device)[: len(GOLDEN_EMBEDDING)]
    error = float(np.abs(got - np.array(GOLDEN_EMBEDDING)).max())
    text = f"embedding on {device.type}: differs from the stored one by {error:.1g} (allowed {GOLDEN_TOLERANCE:g})"
    return Finding("self-test", "model", "ok" if error <= GOLDEN_TOLERANCE else "wrong", text)


def attention_test() -> Finding:
    """Output and gradients of dilated attention, on the device that will be used, against the definition in float64."""
    import torch

    from longvit.attention import dilated_attention
    from longvit.device import pick_device

    device = pick_device("auto").device
    length, heads, head_dim, segments, ratios = 75, 4, 8, (16, 32, 75), (1, 2, 4)
    wave = torch.sin(torch.arange(3 * length * heads * head_dim, dtype=torch.float64) ** 1.5)
    q, k, v = wave.reshape(3, 1, length, heads, head_dim)
    errors = []
    exact = [t.clone().requires_grad_() for t in (q, k, v)]
    ours = [t.float().to(device).requires_grad_() for t in (q, k, v)]
    out = dilated_attention(*ours, segment_lengths=segments, dilated_ratios=ratios)
    expected = attention_by_definition(exact[0][0], exact[1][0], exact[2][0], segments, ratios)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for got, want in [(out[0], expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]:
        assert got is not None
        assert want is not None
        errors.append(float((got.detach().cpu().double() - want.detach()).abs().max() / want.detach().abs().max()))
    worst = max(errors)
    text = f"dilated attention on {device.type}, output and gradients: relative error {worst:.1g} (allowed 1e-05)"
    return Finding("self-test", "attention", "ok" if worst <= 1e-5 else "wrong", text)


def attention_by_definition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: tuple[int, ...], ratios: tuple[int, ...]
) -> torch.Tensor:
    """Dilated attention of (N, H, D) as one dense softmax: a key counts as often as branches reach it."""
    import torch

    length, heads, head_dim = q.shape
    position = torch.arange(length)
    counts = torch.zeros(heads, length, length, dtype=q.dtype)
    for segment, ratio in zip(segments, ratios, strict=True):
        heads_per_offset = -(-heads // ratio)
        for head in range(heads):
            takes_part = (position % segment) % ratio == head // heads_per_offset
            same_segment = position[:, None] // segment == position // segment
            counts[head] += (same_segment & takes_part[:, None] & takes_part).to(q.dtype)
    scores = torch.einsum("qhd,khd->hqk", q, k) * head_dim**-0.5
    weights = counts * (scores - scores.detach().amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    return torch.einsum("hqk,khd->qhd", weights, v)
