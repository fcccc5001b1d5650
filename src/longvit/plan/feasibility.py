"""`plan`: will this image and model fit on these devices, what limits them, and which settings make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from longvit.errors import InputError
from longvit.model.longvit import SIZES, LongViTConfig, segment_schedule
from longvit.plan.devices import GIB, Device, device_named
from longvit.plan.memory import DTYPE_BYTES, Load, Memory, parameters, training_memory
from longvit.plan.work import Exchange, Floor, Work, exchange, floor, forward_work, training_work

MAX_GPUS = 64  # of the settings that are tried
CARDS_GB = (24, 32, 80, 141)  # what cards are sold with

EXISTS = {
    "recompute": "longvit train --recompute",
    "offload": "longvit train --recompute --offload",
    "dtype": "longvit train --dtype",
    "batch_size": "longvit train --batch-size",
    "gpus": "torchrun --nproc-per-node N -m longvit train --sequence-ranks N",
}
"""How each setting is reached today."""


@dataclass(frozen=True)
class PlanSettings:
    """What is asked about; raises InputError for what cannot be."""

    side_px: int
    gpus: int = 1
    gpu_gb: float | None = None
    """GiB of one device; None: what the named device has."""
    model: str = "longvit_small_patch32"
    dtype: str = "bfloat16"
    batch_size: int = 1
    """Images of one forward pass, over all devices together."""
    recompute: bool = False
    offload: bool = False
    """With `recompute`: what layers keep waits on the host."""
    device: str = "h100"
    num_classes: int = 2

    def __post_init__(self) -> None:
        if self.model not in SIZES:
            raise InputError(f"no model {self.model!r}; there are {', '.join(SIZES)}")
        patch = SIZES[self.model].patch_px
        if self.side_px < patch or self.side_px % patch:
            nearest = max(patch, round(self.side_px / patch) * patch)
            raise InputError(f"side {self.side_px} px is no multiple of the patch, {patch} px: try {nearest}")
        for name, value in (("GPUs", self.gpus), ("images per batch", self.batch_size)):
            if value < 1:
                raise InputError(f"{value} {name}: at least 1")
        if self.gpus > self.side_px // patch:
            raise InputError(f"{self.gpus} GPUs for {self.side_px // patch} rows of patches: at most one row each")
        if self.gpu_gb is not None and not self.gpu_gb > 0:
            raise InputError(f"{self.gpu_gb:g} GB of memory per device: above 0")
        if self.offload and not self.recompute:
            raise InputError("offload moves what recomputation keeps: give --recompute too")
        if self.offload and self.device == "cpu":
            raise InputError("offload moves tensors from a card to the host: there is no card in --device cpu")
        if self.offload and self.gpus > 1:
            raise InputError(f"offload is for one device, not for {self.gpus} that share an image: drop --offload")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(f"no dtype {self.dtype!r}; there are {', '.join(DTYPE_BYTES)}")

    @property
    def config(self) -> LongViTConfig:
        return replace(SIZES[self.model], num_classes=self.num_classes)


@dataclass(frozen=True)
class Alternative:
    """Other settings, and the memory of a training step with them."""

    changes: tuple[str, ...]
    """In words, those that differ; empty: as asked."""
    recompute: bool
    offload: bool
    dtype: str
    batch_size: int
    gpus: int
    total: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """The answer; bytes are of the device with the most to do."""

    settings: PlanSettings
    device: Device
    budget: int
    """Bytes for tensors on one device: its memory less what the process itself takes."""
    patches: int
    segment_lengths: tuple[int, ...]
    parameters: int
    plain: Memory
    """Without recomputation."""
    recomputed: Memory
    offloaded: Memory | None
    """None on a CPU, and where several devices share an image."""
    exchange: Exchange
    forward: Work
    training: Work
    forward_floor: Floor
    training_floor: Floor
    alternatives: tuple[Alternative, ...]
    """As asked, then the fewest changes first."""
    cards: dict[int, str | None]
    """GiB of a card → the first of "kept layers", "recompute", "recompute + offload" with which it is enough."""
    notes: tuple[str, ...]

    @property
    def memory(self) -> Memory:
        """With the settings as asked."""
        if self.settings.offload:
            assert self.offloaded is not None
            return self.offloaded
        return self.recomputed if self.settings.recompute else self.plain

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.budget


def plan(settings: PlanSettings) -> Plan:
    """Computes the plan of one training step; nothing is allocated (device "cpu" is timed for a moment)."""
    device, config = device_named(settings.device), settings.config
    rows = settings.side_px // config.patch_px
    patches, segments = rows * rows, segment_schedule(rows * rows)
    budget = round(GIB * ((settings.gpu_gb or device.memory_gib) - device.runtime_gib))
    forward = forward_work(config, settings.batch_size, patches, segments)
    training = training_work(config, forward, settings.batch_size * patches, recompute=settings.recompute)
    plain, recomputed = (_memory(replace(settings, recompute=r, offload=False), device) for r in (False, True))
    one_card = device.kind == "cuda" and settings.gpus == 1
    offloaded = _memory(replace(settings, recompute=True, offload=True), device) if one_card else None
    speed = settings.dtype, settings.gpus
    return Plan(
        settings,
        device,
        budget,
        patches,
        segments,
        parameters(config),
        plain,
        recomputed,
        offloaded,
        _exchange(settings),
        forward,
        training,
        floor(forward, config, device, *speed),
        floor(training, config, device, *speed),
        tuple(_alternatives(settings, device, budget)),
        _cards(device, plain, recomputed, offloaded) if device.kind == "cuda" else {},
        tuple(_notes(settings, device)),
    )


def _cards(device: Device, plain: Memory, recomputed: Memory, offloaded: Memory | None) -> dict[int, str | None]:
    ways = {"kept layers": plain, "recompute": recomputed, "recompute + offload": offloaded}
    found: dict[int, str | None] = {}
    for gb in CARDS_GB:
        budget = GIB * (gb - device.runtime_gib)
        found[gb] = next((way for way, memory in ways.items() if memory and memory.total <= budget), None)
    return found


def _exchange(s: PlanSettings) -> Exchange:
    rows = s.side_px // s.config.patch_px
    return exchange(s.config, s.batch_size, rows, rows, segment_schedule(rows * rows), s.gpus, DTYPE_BYTES[s.dtype])


def _memory(s: PlanSettings, device: Device) -> Memory:
    """Of the device with the most rows of patches."""
    rows = s.side_px // s.config.patch_px
    own_rows = -(-rows // s.gpus)
    return training_memory(
        Load(
            s.config,
            s.batch_size * own_rows * rows,
            s.batch_size * rows,
            segment_schedule(rows * rows)[0],
            s.dtype,
            s.recompute,
            offload=s.offload,
            device=device.kind,
            shared_keys=s.batch_size * _exchange(s).shared_keys,
        )
    )


def _alternatives(asked: PlanSettings, device: Device, budget: int) -> Iterator[Alternative]:
    """As asked, every single change, then the smallest combinations that fit where none of those does."""
    changes = _changes(asked)
    found = [_tried(asked, c, device, budget) for c in ([], *(c for c in changes if len(c) == 1))]
    yield from found
    if any(a.fits for a in found):
        return
    for size in (2, 3, 4):
        fitting = [a for c in changes if len(c) == size and (a := _tried(asked, c, device, budget)).fits]
        if fitting:
            yield from fitting
            return


def _changes(asked: PlanSettings) -> list[list[dict[str, object]]]:
    """Combinations of changes; of the numbers of GPUs the smallest one comes first."""
    rows = asked.side_px // asked.config.patch_px
    keeping: list[dict[str, object]] = [] if asked.recompute else [{"recompute": True}]
    if not asked.offload and asked.device != "cpu" and asked.gpus == 1:
        keeping.append({"offload": True} if asked.recompute else {"recompute": True, "offload": True})
    narrower: list[dict[str, object]] = [{"dtype": "bfloat16"}] if asked.dtype == "float32" else []
    smaller: list[dict[str, object]] = [{"batch_size": 1}] if asked.batch_size > 1 else []
    more: list[dict[str, object]] = []
    n = 2 * asked.gpus
    while n <= min(MAX_GPUS, rows) and asked.device != "cpu":
        more.append({"gpus": n})
        n *= 2
    sets: list[list[dict[str, object]]] = [[]]
    for options in (keeping, narrower, smaller, more):
        sets += [[*s, option] for s in sets for option in options]
    return [s for s in sets if s and _possible(asked, s)]


def _possible(asked: PlanSettings, changes: list[dict[str, object]]) -> bool:
    """Offload is for one device."""
    names = {name for change in changes for name in change}
    return not ("gpus" in names and (asked.offload or "offload" in names))


def _tried(asked: PlanSettings, changes: list[dict[str, object]], device: Device, budget: int) -> Alternative:
    merged = {name: value for change in changes for name, value in change.items()}
    s = replace(asked, **merged)  # type: ignore[arg-type]
    total = _memory(s, device).total
    words = {"dtype": s.dtype, "batch_size": "batch 1", "gpus": f"{s.gpus} GPUs"}
    named = tuple(words.get(name, name) for name in merged)
    return Alternative(named, s.recompute, s.offload, s.dtype, s.batch_size, s.gpus, total, total <= budget)


def _notes(s: PlanSettings, device: Device) -> Iterator[str]:
    if s.gpus > 1:
        yield f"more than one device: {EXISTS['gpus']}."
        yield "bytes between devices: as counted by the tests of longvit.parallel; memory per device: not measured yet."
    if device.kind == "cuda":
        yield "the memory formula is checked against measured peaks on a CPU; a GPU's temporaries are not checked yet."
        if s.dtype == "float32":
            yield "float32 attention runs the memory-efficient kernel, whose own workspace is estimated."
    if device.kind == "cpu":
        yield (
            "glibc's heap keeps holes between tensors: up to 1.8 times this up to 2,048² (benchmarks/plan.py); "
            "MALLOC_MMAP_THRESHOLD_=131072 in the environment avoids that."
        )
    if device.name.startswith("v100") and s.dtype == "bfloat16":
        yield "a V100 has no bfloat16 units and no fused kernel for it: take float16."
