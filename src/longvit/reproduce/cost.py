"""Cost of a cell before anything runs: bytes to download, disk, and the least hours on three devices by `longvit.plan`.

Hours are those of arithmetic alone, from the devices' data sheets: training, evaluation after each epoch, and the
frozen encoders of the controls. Downloads, canvases, features and the training of baselines on features are not in
them. A V100 computes in float16, since it has no bfloat16 units, and the CPU in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from longvit.config import load_settings
from longvit.finetuning.settings import FinetuneSettings
from longvit.plan import Plan, PlanSettings, plan
from longvit.plan.devices import CARDS, GIB, Device
from longvit.plan.work import Work, floor
from longvit.public.archive_slide import ArchiveSlide
from longvit.reproduce.protocol import CellProtocol

# 32 cores at 3.25 GHz, two units of 8 float32 multiply-adds each. An exponential takes 20 instructions on 8 numbers.
CPU = Device(
    "32-core CPU (EPYC 9354)",
    "cpu",
    384.0,
    {"float32": 32 * 3.25e9 * 2 * 8 * 2},
    32 * 3.25e9 * 2 * 8 / 20,
    0.5,
    "data sheet; 20 instructions for an exponential",
)
DEVICES: dict[str, tuple[Device, str]] = {
    "h100": (CARDS["h100"], "bfloat16"),
    "v100": (CARDS["v100-32gb"], "float16"),
    "cpu": (CPU, "float32"),
}
"""Key of the hours -> device, arithmetic."""


@dataclass(frozen=True)
class Cost:
    """Cost of a cell; bytes, and hours on one device."""

    slides: int
    """Slides to download."""
    download_bytes: int | None
    """Bytes to download; None where no index was asked."""
    canvas_bytes: int | None
    """Bytes of all canvases without compression; None for a baseline, whose features depend on the tissue."""
    disk_bytes: int
    """Bytes on disk at most: canvases, and the slides in transit. Features of a baseline are not included."""
    hours: dict[str, float]
    """Device -> least hours of all folds; empty for a baseline."""
    memory: dict[str, str]
    """Card -> way to fit one step into its memory: kept layers, recompute, recompute + offload, or too small."""

    def to_json(self) -> dict[str, Any]:
        """The cost as JSON values, in GiB and hours."""
        return {
            "slides": self.slides,
            "download_gib": None if self.download_bytes is None else round(self.download_bytes / GIB, 1),
            "canvases_gib": None if self.canvas_bytes is None else round(self.canvas_bytes / GIB, 1),
            "disk_gib": round(self.disk_bytes / GIB, 1),
            "hours": {name: float(f"{hours:.3g}") for name, hours in self.hours.items()},
            "memory": self.memory,
        }


def cell_cost(
    protocol: CellProtocol,
    slides: Sequence[ArchiveSlide] | None,
    *,
    disk_gb: float,
    settings: FinetuneSettings | None = None,
    keep_slides: bool = False,
    has_weights: bool = True,
) -> Cost:
    """Cost of a cell. `slides`: those of the archive; None: unknown. `settings`: of LongViT, else those of the recipe.

    `has_weights`: the run starts from pretrained weights, whose frozen encoder is one more control.
    """
    cell = protocol.cell
    n = len(protocol.slides)
    download = None if slides is None else sum(slide.n_bytes for slide in slides)
    bound = 0 if not n else round(disk_gb * GIB)
    in_transit = bound if download is None else download if keep_slides else min(download, bound)
    if cell.system is not None:
        return Cost(n, download, None, in_transit, {}, {})
    settings = settings or load_settings(FinetuneSettings, cell.recipe)
    canvases = 3 * settings.side_px**2 * n
    planned = _plan(settings.side_px, settings.model, settings.recompute, settings.slides_per_forward())
    hours = {
        name: _hours(protocol, settings, planned, device, dtype, has_weights=has_weights)
        for name, (device, dtype) in DEVICES.items()
    }
    return Cost(n, download, canvases, canvases + in_transit, hours, _ways(settings, planned))


def _ways(settings: FinetuneSettings, planned: Plan) -> dict[str, str]:
    """Card -> way to fit a step into its memory, with the images of one forward pass where they must be fewer."""
    one_by_one = _plan(settings.side_px, settings.model, settings.recompute, 1)
    ways = {}
    for card, gib in (("h100", 80), ("v100", 32)):
        alone = one_by_one.cards[gib]
        ways[card] = planned.cards[gib] or (f"{alone}, forward_batch 1" if alone else "too small")
    return ways


@cache
def _plan(side_px: int, model: str, recompute: bool, batch_size: int) -> Plan:
    """Plan of one training step on an H100."""
    return plan(PlanSettings(side_px, model=model, recompute=recompute, batch_size=batch_size))


def _hours(
    protocol: CellProtocol, settings: FinetuneSettings, planned: Plan, device: Device, dtype: str, *, has_weights: bool
) -> float:
    def seconds(work: Work) -> float:
        """Least seconds for one slide."""
        return floor(work, planned.settings.config, device, dtype, 1).seconds / planned.settings.batch_size

    training, forward = seconds(planned.training), seconds(planned.forward)
    encoders = (1 + has_weights) * settings.controls
    total = 0.0
    for fold in protocol.fold_sizes():
        total += settings.epochs * (fold.train * training + fold.evaluated * forward)
        total += encoders * (fold.train + fold.evaluated) * forward
    return total / 3600
