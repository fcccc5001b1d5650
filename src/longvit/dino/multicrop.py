"""All crops of a step through a LongViT in one pass: crops of different size are concatenated in one sequence.

DINO makes one pass per crop size. Here the tokens of all crops are packed (`lengths` of dilated attention, where each
crop is a separate sequence), so the matrix products process all tokens at once. The result is that of separate passes.
Drop path is drawn for every crop and layer, as if each were a row of a batch.

A crop uses the segments of its length. Those of the longest crop, clipped to a shorter one, are the same up to
1,024² px (table 7 has one row there). Where they differ, the crops are split into several packs.

B regions, C crops, N tokens of a crop, T tokens of a pack, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longvit.attention.pattern import DilatedPattern
from longvit.model.encoder import Block, Encoder, Scales
from longvit.model.longvit import LongViT
from longvit.model.norm_linear import compute_dtype
from longvit.parallel import ShardedLongViT


@dataclass(frozen=True)
class Pack:
    """Crops that share a pass. crops: their indices; tokens: number for each; regions: B, rows of every crop."""

    crops: tuple[int, ...]
    tokens: tuple[int, ...]
    regions: int
    pattern: DilatedPattern

    @property
    def lengths(self) -> list[int]:
        """Length of every sequence in the pack: crop by crop, region by region."""
        return [n for n in self.tokens for _ in range(self.regions)]


def features(
    backbone: LongViT, crops: Sequence[Tensor], *, packed: bool = True, scales: Tensor | None = None
) -> Tensor:
    """Crops (B, 3, h, w) of any sizes, pixels in the model's input format → embeddings (C·B, D), crop by crop.

    `packed` False: one pass per size. A model sharded over the ranks of a sequence takes its strips of the crops,
    always in separate passes. `scales`: factors of drop path, `drop_path_scales`, drawn here if None; for packed
    passes. Raises ValueError for no crops or different numbers of regions.
    """
    regions = {len(crop) for crop in crops}
    if len(regions) != 1:
        raise ValueError(f"crops of one step need a row for every region, got {[len(c) for c in crops]} rows")
    if not packed or isinstance(backbone, ShardedLongViT):
        return _by_size(backbone, crops)
    if scales is None:
        scales = drop_path_scales(backbone.blocks, len(crops) * regions.pop())
    embeddings: dict[int, Tensor] = {}
    for pack in _packs(backbone, crops):
        for number, pooled in zip(pack.crops, _run(backbone, crops, pack, scales), strict=True):
            embeddings[number] = pooled
    return torch.cat([embeddings[i] for i in range(len(crops))])


def drop_path_scales(blocks: Encoder, sequences: int) -> Tensor | None:
    """(layers, 2, sequences): 0 with the layer's rate, else 1 / (1 − rate), for both branches of every block.

    None: nothing is dropped. Drawn on the device of the blocks, in one call, from the global random state.
    """
    rates = [_block(b).drop_path_rate if b.training else 0.0 for b in blocks]
    if not any(rates):
        return None
    weight = next(blocks.parameters())
    keep = 1 - torch.tensor(rates, dtype=torch.float64).view(-1, 1, 1)
    keep = keep.to(weight.device, weight.dtype)
    return torch.bernoulli(keep.expand(-1, 2, sequences)) / keep


def _block(module: nn.Module) -> Block:
    assert isinstance(module, Block)
    return module


def _by_size(backbone: LongViT, crops: Sequence[Tensor]) -> Tensor:
    """One pass per run of crops of equal size, as in the authors' code."""
    embeddings: list[Tensor] = []
    start = 0
    while start < len(crops):
        end = start + 1
        while end < len(crops) and crops[end].shape == crops[start].shape:
            end += 1
        images = crops[start] if end == start + 1 else torch.cat(list(crops[start:end]))
        embeddings.append(backbone.pool(backbone.forward_features(images)))
        start = end
    return torch.cat(embeddings)


def _packs(backbone: LongViT, crops: Sequence[Tensor]) -> Iterator[Pack]:
    """The crops in as few packs as their segments allow, longest first."""
    tokens = [grid.height * grid.width for grid in (backbone.patch_embed.patches(crop) for crop in crops)]
    remaining = sorted(range(len(crops)), key=lambda i: (-tokens[i], i))
    while remaining:
        pattern = backbone.pattern(tokens[remaining[0]])
        compatible = [
            i for i in remaining if _clipped(pattern, tokens[i]) == _clipped(backbone.pattern(tokens[i]), tokens[i])
        ]
        yield Pack(tuple(compatible), tuple(tokens[i] for i in compatible), len(crops[0]), pattern)
        remaining = [i for i in remaining if i not in compatible]


def _clipped(pattern: DilatedPattern, n: int) -> tuple[int, ...]:
    return tuple(min(w, n) for w in pattern.segment_lengths)


def _run(backbone: LongViT, crops: Sequence[Tensor], pack: Pack, scales: Tensor | None) -> Iterator[Tensor]:
    """→ embeddings (B, D) of each crop of the pack."""
    x = torch.cat([backbone.patch_embed(crops[i]).flatten(0, 1) for i in pack.crops]).unsqueeze(0)  # (1, T, D)
    per_token = None if scales is None else _per_token(backbone.blocks, x, len(crops), pack, scales)
    x = backbone.blocks(x, pack.pattern, pack.lengths, per_token)
    at = 0
    for n in pack.tokens:
        end = at + n * pack.regions
        yield backbone.pool(x[0, at:end].unflatten(0, (pack.regions, n)))
        at = end


def _per_token(blocks: Encoder, x: Tensor, crops: int, pack: Pack, scales: Tensor) -> list[Scales]:
    """Factors of all sequences (layers, 2, C·B) → for every layer those of the pack's tokens, (1, T, 1) each."""
    pack_scales = scales.unflatten(-1, (crops, pack.regions))[:, :, list(pack.crops)].flatten(-2)
    repeats = torch.tensor(pack.lengths, device=x.device)
    token_scales = pack_scales.repeat_interleave(repeats, -1, output_size=x.shape[1])  # (layers, 2, T)
    token_scales = token_scales.to(compute_dtype(x))[:, :, None, :, None]  # (layers, 2, 1, T, 1)
    return [
        (attn, mlp) if _block(block).drop_path_rate > 0 else (None, None)
        for block, (attn, mlp) in zip(blocks, token_scales, strict=True)
    ]
