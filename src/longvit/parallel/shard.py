"""A LongViT over several ranks, put on from outside: `shard(model, mesh)` swaps embedding, attention and pooling.

Each rank reads its own strip of the image (whole rows of patches), embeds it with its positions, and runs the encoder
on its tokens; attention brings together what shared segments need, the mean over tokens is a sum over ranks.

    model = shard(create_model("longvit_small_patch32", num_classes=2), mesh)
    first_px, end_px = model.rows_px(32_768)            # this rank's rows of the canvas
    loss = F.cross_entropy(model(images[:, :, first_px:end_px]), labels)     # the same on every rank of the sequence
    loss.backward()
    average_gradients(model.parameters())               # or DistributedDataParallel, which does the same

One convention for all parameters: the *average* over ranks of their gradients is the gradient of the single process
(of the mean over the slides of the data axis, where there is one). All ranks of a sequence must draw the same random
numbers (drop path): seed them alike. Every one of them must call backward.

B slides, n tokens of this rank, N of all ranks, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from longvit.model.encoder import AttentionPattern, Block, DilatedSelfAttention
from longvit.model.longvit import LongViT, image_of
from longvit.model.norm_linear import compute_dtype, norm_linear
from longvit.model.query_scale import projection
from longvit.parallel.exchange import Wire
from longvit.parallel.sharded_attention import sharded_dilated_attention
from longvit.parallel.shards import Shards
from longvit.parallel.watchdog import waiting


def shard(model: LongViT, mesh: DeviceMesh | dist.ProcessGroup | None = None) -> ShardedLongViT:
    """`model` on this rank's strip of each image; parameters and their names are shared with `model`.

    `mesh`: a DeviceMesh with an axis "sequence", or the process group of the sequence's ranks, or None: all ranks.
    """
    if isinstance(mesh, DeviceMesh):
        if "sequence" not in (mesh.mesh_dim_names or ()):
            raise ValueError(f"the mesh has no axis 'sequence', only {mesh.mesh_dim_names}")
        mesh = mesh.get_group("sequence")
    return ShardedLongViT(model, mesh)


def average_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Averages the gradients over the ranks of `group` (None: all ranks, of every axis of the mesh), in place."""
    if not dist.is_initialized():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for grads in by_dtype.values():
        flat = torch.cat([g.flatten() for g in grads])
        with waiting():
            dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for g, averaged in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(averaged.view_as(g))


class ShardedLongViT(LongViT):
    """A LongViT whose images are strips: (B, 3, this rank's rows, W), the strips of the ranks one below the other.

    `forward`, `forward_head`, `pool` and `embed` return on every rank what the single process returns;
    `forward_features` returns this rank's tokens. `wire` counts the bytes of the attention's exchanges.
    """

    def __init__(self, model: LongViT, group: dist.ProcessGroup | None) -> None:
        nn.Module.__init__(self)
        twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # modules of its own, the same parameters
        self.config, self.group, self.wire = model.config, group, Wire()
        self.patch_embed, self.blocks, self.fc_norm, self.head = twin.patch_embed, twin.blocks, twin.fc_norm, twin.head
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn = _ShardedSelfAttention(block.attn, group, self.wire)
        self.train(model.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedLongViT:
        memo[id(self.group)] = self.group  # a process group is not copied
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def rows_px(self, height_px: int) -> tuple[int, int]:
        """[first, end) of the image rows of this rank, where strips are as even as rows of patches allow."""
        rank, ranks = _place(self.group)
        rows = height_px // self.config.patch_px
        if rows < ranks:  # on every rank: an empty strip would be found by one of them alone
            raise ValueError(f"{rows} rows of patches do not give {ranks} ranks one each; use at most {rows} ranks")
        return Shards.even(height_px, ranks, step=self.config.patch_px).shard(rank)

    def forward_features(self, images: Tensor) -> Tensor:
        """This rank's strip (B, 3, rows, W) → its tokens (B, n, D), row-major."""
        strips, columns = self._strips(images)
        rank, _ = _place(self.group)
        x = self.patch_embed(images, first=strips.bounds[rank], rows=strips.tokens)
        return self._encode(x, Shards(tuple(b * columns for b in strips.bounds)))

    def _encode(self, x: Tensor, shards: Shards) -> Tensor:
        """This rank's embedded patches (B, n, D) → its tokens."""
        p = self.pattern(shards.tokens)
        kept: dict[int, list[Tensor]] | None = {} if self.blocks.recompute else None
        pattern = _ShardedPattern(p.segment_lengths, p.dilated_ratios, p.gradient, p.ragged, shards, kept)
        return self.blocks(x, pattern)

    def _strips(self, images: Tensor) -> tuple[Shards, int]:
        """→ who holds which rows of patches, and the columns; raises on every rank where one strip does not fit."""
        if images.ndim != 4:
            raise ValueError(f"images must be (B, 3, rows, W), got {tuple(images.shape)}")
        _, ranks = _place(self.group)
        mine = torch.tensor(images.shape, device=self.fc_norm.weight.device)  # images may be in host memory
        shapes = [torch.empty_like(mine) for _ in range(ranks)]
        if dist.is_initialized():
            with waiting():
                dist.all_gather(shapes, mine, group=self.group)
        else:
            shapes = [mine]
        found = [tuple(s.tolist()) for s in shapes]
        p = self.config.patch_px
        if len({(b, w) for b, _, _, w in found}) > 1:
            raise ValueError(f"the strips of one batch share batch size and width, got (B, 3, rows, W) {found}")
        for rank, (_, channels, height, width) in enumerate(found):
            if channels != 3 or height % p or width % p or not height or not width:
                raise ValueError(
                    f"rank {rank}: a strip of {height} × {width} px is not made of rows of {p} × {p} px patches"
                )
        return Shards.of_lengths([height // p for _, _, height, _ in found]), found[0][3] // p

    def pool(self, tokens: Tensor) -> Tensor:
        """This rank's tokens (B, n, D) → (B, D), the mean of all ranks' tokens and its LayerNorm, on every rank."""
        token_norm = self.config.pool_norm == "token_norm"
        x = self.fc_norm(tokens) if token_norm else tokens
        sums = x.sum(1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        count = sums.new_full((len(sums), 1), tokens.shape[1])  # exact in float32 up to 16 M tokens
        total = _SumOverRanks.apply(torch.cat([sums, count], 1), self.group)
        mean = (total[:, :-1] / total[:, -1:].detach()).to(x.dtype)
        return mean if token_norm else self.fc_norm(mean)

    def tokens_of(self, slide: Any) -> Tensor:
        """For `embed`: each rank reads only the rows of the slide that its strip needs."""
        if not hasattr(slide, "strips"):
            pixels = np.asarray(slide)
            first_px, end_px = self.rows_px(len(pixels))
            return self.forward_features(image_of(pixels[first_px:end_px]))
        side_px, p = self.config.image_px, self.config.patch_px
        image = self.patch_embed.patches_in(side_px, side_px)
        rows = self.rows_px(side_px)
        strips = slide.strips(side_px, self.config.fit, rows=rows, strip_px=self.patch_embed.strip_px(side_px))
        x = self.patch_embed.from_strips(
            (strip.pixels for strip in strips), image, first=rows[0] // p, end=rows[1] // p
        )
        _, ranks = _place(self.group)
        return self._encode(x, Shards.even(image.height * image.width, ranks, step=image.width))


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This rank in the group, and its size; one process without torch.distributed is one rank."""
    return (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)


@dataclass(frozen=True)
class _ShardedPattern(AttentionPattern):
    """It goes through the encoder with the tokens, so that recomputation sees the shards of its own forward."""

    shards: Shards = field(default_factory=lambda: Shards((0, 0)))
    kept: dict[int, list[Tensor]] | None = None  # with recomputation: each layer's attention, until its backward


class _ShardedSelfAttention(DilatedSelfAttention):
    """`DilatedSelfAttention` of this rank's tokens, with that one's parameters."""

    def __init__(self, whole: DilatedSelfAttention, group: dist.ProcessGroup | None, wire: Wire) -> None:
        nn.Module.__init__(self)
        self.num_heads = whole.num_heads
        self.norm_in, self.qkv, self.norm, self.proj = whole.norm_in, whole.qkv, whole.norm, whole.proj
        self.group, self.wire = group, wire

    def attend(self, x: Tensor, pattern: AttentionPattern, lengths: Any = None) -> Tensor:
        assert isinstance(pattern, _ShardedPattern), pattern
        assert lengths is None, "one sequence over several ranks has no rows of different length"
        keep = None
        if pattern.kept is not None and torch.is_grad_enabled():
            keep = pattern.kept.setdefault(id(self), [])
        weights = projection(self.qkv, self.num_heads, compute_dtype(x))
        qkv = norm_linear(x, self.norm_in, weights)
        return sharded_dilated_attention(
            *qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2),
            shards=pattern.shards,
            group=self.group,
            segment_lengths=pattern.segment_lengths,
            dilated_ratios=pattern.dilated_ratios,
            gradient=pattern.gradient,
            ragged=pattern.ragged,
            scale=weights.scale,
            wire=self.wire,
            keep=keep,
        )


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks, the same on each; its adjoint sums the gradients over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group), None


def _summed(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        with waiting():
            dist.all_reduce(x, group=group)
    return x
