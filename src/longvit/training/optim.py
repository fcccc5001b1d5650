"""AdamW of the paper's fine-tuning (table 6): weight decay on matrices only, a cosine schedule with warm-up.

The schedule is a function of the optimiser step, so that a resumed run needs only the step number:

    lr(s) = min_lr + (lr - min_lr) (s + 1) / W                          s < W (warm-up)
    lr(s) = min_lr + (lr - min_lr) (1 + cos(pi (s - W) / (S - W))) / 2    W <= s < S

with W warm-up steps of S steps in all. The authors' code warms up from 1e-6 and ends near 1e-6; here both are
`min_lr`. Layer decay (a learning rate that shrinks towards the input) is off in the published recipes (1.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

from longvit.errors import InputError

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")
_BEFORE_LAYERS = re.compile(r"embed|position|cls_token|mask_token")


def learning_rate(step: int, *, lr: float, min_lr: float, warmup_steps: int, steps: int) -> float:
    """Learning rate of optimiser step `step` (0 … steps - 1)."""
    if step < warmup_steps:
        return min_lr + (lr - min_lr) * (step + 1) / warmup_steps
    fraction = (step - warmup_steps) / max(1, steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter: 0 the embedding, 1 … depth the blocks, depth + 1 norm and head."""
    if match := _LAYER.search(name):
        return int(match.group(1)) + 1
    return 0 if _BEFORE_LAYERS.search(name) else depth + 1


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, object]]:
    """Parameter groups of the optimiser, each with `weight_decay`, `lr_scale` and the names of its parameters.

    Weight decay applies to parameters with two or more axes that `model.no_weight_decay()` does not name. A name there
    may be that of a whole module. `lr_scale` is layer_decay^(depth + 1 - layer), 1 for the head. The order is that of
    `model.named_parameters()`, so it is the same in every run.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer decay {layer_decay}: above 0, at most 1 (1 is off)")
    spared = set(getattr(model, "no_weight_decay", set)())
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depth = 1 + max((int(m.group(1)) for name, _ in named if (m := _LAYER.search(name))), default=-1)
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, p in named:
        is_spared = name in spared or any(name.startswith(s + ".") or name.endswith("." + s) for s in spared)
        decay = 0.0 if p.ndim < 2 or is_spared else weight_decay
        scale = layer_decay ** (depth + 1 - layer_of(name, depth))
        group = groups.setdefault((scale, decay), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(p)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; fused on CPU and CUDA (one pass over the parameters)."""
    groups = parameter_groups(model, weight_decay=weight_decay, layer_decay=layer_decay)
    devices = {p.device.type for p in model.parameters()}
    fused = devices <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group: `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def named_parameters(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters of the optimiser, with their names in the model."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def first_non_finite(named: Iterable[tuple[str, torch.Tensor | None]]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, or None.

    A sum is several times as fast as `isfinite` on a CPU. A finite sum has finite terms; a sum that is not finite may
    be an overflow, so the terms are then checked.
    """
    finite: Callable[[torch.Tensor], torch.Tensor] = torch.isfinite
    for name, tensor in named:
        if tensor is None or not tensor.is_floating_point():
            continue
        if not bool(finite(tensor.sum())) and not bool(finite(tensor).all()):
            return name
    return None
