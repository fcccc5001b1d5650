"""Arithmetic and communication of one step: FLOPs, exponentials, bytes between devices, and a lower bound of time.

Per token and layer the linear layers take 2 (4 D² + 2 D F) FLOPs. The embedding takes 2 · 3 P² D once. A convolution
of the stem takes 2 · 9 C C' per pixel of its result, from C to C' channels; backward runs it again. Attention takes
4 D/H FLOPs and one exponential per (query, key) pair and head (`attention.operators.attention_pairs`). Backward takes
twice the linear layers' forward, and 5/2 of attention's with its exponentials again. Recomputation adds the layers'
linear products once, except the FFN's second (attention's result is kept, the layer's is not needed).

Sequence parallelism: `parallel.shards.exchanged_bytes`, 2 Σ (w' − piece) / r · D numbers received per layer in
forward, as many sent back in backward, and one all-reduce of the parameters' gradients.

D width, F hidden width, P patch side, H heads, w segment length, r dilated ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from longvit.attention.operators import attention_pairs
from longvit.model.conv_stem import channels
from longvit.model.longvit import LongViTConfig
from longvit.parallel.shards import Shards, exchanged_bytes, shared_segments
from longvit.plan.devices import Device
from longvit.plan.memory import parameters


@dataclass(frozen=True)
class Work:
    """FLOPs and exponentials of a pass over the whole batch, on all devices together."""

    linear_flops: int
    attention_flops: int
    exponentials: int

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops


@dataclass(frozen=True)
class Floor:
    """Lower bound of a pass in seconds, with the work shared evenly over the devices."""

    matrix_s: float
    exponentials_s: float
    side_by_side: bool
    """True if matrix units and exponentials run concurrently: on a GPU; a CPU has one kind of unit for both."""

    @property
    def seconds(self) -> float:
        """The larger of the two, or their sum."""
        return (max if self.side_by_side else sum)((self.matrix_s, self.exponentials_s))


def forward_work(config: LongViTConfig, batch: int, patches: int, segments: Sequence[int]) -> Work:
    """Work of a forward pass of `batch` sequences of `patches` tokens."""
    d, tokens = config.embed_dim, batch * patches
    pairs = config.depth * attention_pairs(batch, patches, config.num_heads, segments, config.dilated_ratios)
    linear = tokens * sum(_embedding_flops(config)) + config.depth * _layer_flops(config, tokens)
    return Work(linear, 4 * d // config.num_heads * pairs, pairs)


def training_work(config: LongViTConfig, forward: Work, tokens: int, *, recompute: bool) -> Work:
    """Work of forward and backward; no pixel has a gradient, so backward of the first product is one, not two."""
    first, *others = _embedding_flops(config)
    embedding = tokens * (first - (first + sum(others) if config.stem == "conv" else 0))
    layer = _layer_flops(config, tokens) - 2 * tokens * config.embed_dim * config.ffn_dim
    recomputed = config.depth * layer if recompute else 0
    # a detached gradient recomputes each branch's output
    products, passes = (7, 3) if config.gradient == "detached" else (5, 2)
    return Work(
        3 * forward.linear_flops - embedding + recomputed,
        forward.attention_flops * (2 + products) // 2,
        passes * forward.exponentials,
    )


def _embedding_flops(config: LongViTConfig) -> list[int]:
    """FLOPs of each product of the embedding, per patch, the one that reads pixels first."""
    d, side = config.embed_dim, config.patch_px
    if config.stem == "linear":
        return [2 * 3 * side**2 * d]
    flops = []
    for i, o in pairwise([3, *channels(d, side)]):
        side //= 2
        flops.append(2 * 9 * i * o * side**2)
    return [*flops, 2 * 4 * d * d]


def _layer_flops(config: LongViTConfig, tokens: int) -> int:
    d = config.embed_dim
    return 2 * tokens * (4 * d * d + 2 * d * config.ffn_dim)


def floor(work: Work, config: LongViTConfig, device: Device, dtype: str, devices: int) -> Floor:
    """The lower bound of time for `work` on `devices` of one kind.

    The matrix units of a GPU take a head dim in steps of 16, in 16 bits: 24 costs as much as 32.
    """
    head_dim = config.embed_dim // config.num_heads
    padded = -(-head_dim // 16) * 16 if device.kind == "cuda" and dtype != "float32" else head_dim
    flops = work.linear_flops + work.attention_flops * padded / head_dim
    return Floor(
        flops / device.flops[dtype] / devices,
        work.exponentials / device.exponentials / devices,
        device.kind == "cuda",
    )


@dataclass(frozen=True)
class Exchange:
    """Bytes that the busiest device receives in one training step; it sends as many."""

    keys_and_values: int
    """Forward, all layers."""
    their_gradients: int
    """Backward, all layers."""
    parameter_gradients: int
    """All-reduce by a ring: 2 (R − 1) / R of the gradients."""
    shared_keys: int
    """Tokens of the keys and values of shared segments on a device, per layer and sequence."""

    @property
    def total(self) -> int:
        return self.keys_and_values + self.their_gradients + self.parameter_gradients


def exchange(
    config: LongViTConfig, batch: int, rows: int, columns: int, segments: Sequence[int], devices: int, itemsize: int
) -> Exchange:
    """Traffic of sequence parallelism for `rows` × `columns` patches in `devices` strips of whole rows."""
    if devices == 1:
        return Exchange(0, 0, 0, 0)
    shards = Shards.even(rows * columns, devices, step=columns)
    ratios = config.dilated_ratios
    per_layer = max(
        exchanged_bytes(
            shards,
            rank,
            segment_lengths=segments,
            dilated_ratios=ratios,
            embed_dim=config.embed_dim,
            itemsize=itemsize,
            batch=batch,
        )
        for rank in range(devices)
    )
    shared = shared_segments(shards, tuple(zip(segments, ratios, strict=True)))
    keys = max(sum(-(-(s.end - s.start) // s.ratio) for s in shared if rank in s.ranks) for rank in range(devices))
    moved = round(config.depth * per_layer)
    return Exchange(moved, moved, 2 * (devices - 1) * 4 * parameters(config) // devices, keys)
