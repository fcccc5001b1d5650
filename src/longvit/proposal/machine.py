"""Memory and speed of this machine as `longvit plan` computes them, and the largest canvas that it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.plan import Plan, PlanSettings, plan
from longvit.plan.devices import CARDS, GIB

SIDES = tuple(2**n for n in range(6, 16))
"""Sides of a canvas that are proposed, in px: 64 … 32,768."""
SMALLEST_OF_PAPER = 1024
FLOOR_RATIO = 3.0
"""Seconds of a step per second of its floor: 2.9 on an H200 at 32,768 px."""
MAX_HOURS = 12.0
"""Longest training for which a canvas larger than 1,024 px is proposed: one night."""
_HEAP = 1.8
"""Memory that glibc's heap takes per byte of tensors, at most (a note of `longvit plan --device cpu`)."""


@dataclass(frozen=True)
class Canvas:
    """Canvas of a proposal, with the settings that make it fit."""

    settings: FinetuneSettings
    plan: Plan
    limit: str
    """Reason why the canvas is no larger: `slides`, `memory`, `time` or `recipe`."""

    @property
    def peak(self) -> int:
        """Bytes of a training step, by the plan."""
        return self.plan.memory.total


def choose_canvas(
    settings: FinetuneSettings, device: torch.device, longer_px: float, passes: int, most_px: int = SIDES[-1]
) -> Canvas:
    """The largest canvas of at most `most_px` that is no larger than the slides, fits into memory and takes one night.

    `passes`: slides that are trained on in all epochs and runs. From 1,024 px down, time sets no limit. Raises
    `InputError` where not even the smallest canvas fits.
    """
    sides = [side for side in SIDES if side <= min(longer_px, most_px)] or [SIDES[0]]
    limit = "recipe" if sides[-1] == most_px else "slides"
    for side_px in reversed(sides):
        fitting = next(
            (c for way in _ways(settings, device, side_px) if (c := _planned(way, device)) is not None), None
        )
        if fitting is None:
            limit = "memory"
            continue
        hours = floor_s(fitting.plan) * FLOOR_RATIO * passes / 3600
        if side_px > SMALLEST_OF_PAPER and hours > MAX_HOURS:
            limit = "time"
            continue
        return replace(fitting, limit=limit)
    raise InputError(f"no canvas fits into the memory of this machine ({device.type}); name another --device")


def floor_s(planned: Plan) -> float:
    """Least seconds of a training step per slide, by the plan."""
    return planned.training_floor.seconds / planned.settings.batch_size


def _ways(settings: FinetuneSettings, device: torch.device, side_px: int) -> list[FinetuneSettings]:
    """Settings with this side, the fastest first."""
    plain = replace(settings, side_px=side_px)
    ways = [plain, replace(plain, recompute=True)]
    return [*ways, replace(plain, recompute=True, offload=True)] if device.type == "cuda" else ways


def _planned(settings: FinetuneSettings, device: torch.device) -> Canvas | None:
    """The canvas of these settings; None where a step does not fit."""
    name, memory_gib = _device(device)
    planned = plan(
        PlanSettings(
            side_px=settings.side_px,
            gpu_gb=memory_gib,
            model=settings.model,
            dtype=settings.dtype,
            batch_size=settings.slides_per_forward(),
            recompute=settings.recompute,
            offload=settings.offload,
            device=name,
        )
    )
    needed = planned.memory.total * (_HEAP if name == "cpu" else 1.0)
    return Canvas(settings, planned, "") if needed <= planned.budget else None


@cache
def _device(device: torch.device) -> tuple[str, float | None]:
    """Device of the plan, and its memory in GiB (None: as the plan has it). An Apple GPU has the memory of the CPU."""
    if device.type != "cuda":
        return "cpu", None
    properties = torch.cuda.get_device_properties(device)
    name = properties.name.lower()
    card = next((card for card in CARDS if card.split("-")[0] in name), "h100")
    return card, properties.total_memory / GIB
