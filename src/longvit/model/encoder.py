"""The LongNet encoder: pre-norm blocks with sub-LayerNorm, dilated attention, drop path, recomputation.

A block (torchscale `architecture/encoder.py`, subln; MAGNETO, arXiv 2210.06423):

    x = x + drop_path(proj(norm(attention(qkv(norm1(x))))))       norm: over all heads together, before the projection
    x = x + drop_path(fc2(norm(gelu(fc1(norm2(x))))))             norm: over the hidden activations

Without `sub_norm` the two norms inside the branches are left out: a plain pre-norm block, which learns faster from few
slides.

Differences from the authors' code: q, k and v are one product. Backward needs per layer only x, qkv, the attention's
(out, lse), the middle x and the hidden activations; with recomputation only x and (out, lse) (`recomputation`).

B sequences, N tokens, D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from longvit.attention.pattern import DilatedPattern
from longvit.model.feedforward import FeedForward
from longvit.model.norm_linear import compute_dtype
from longvit.model.offload import host_store
from longvit.model.recomputation import Keeping, attend, finish, is_fused
from longvit.model.self_attention import DilatedSelfAttention


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Sets whole sequences of a batch to 0 with probability `rate` and scales the others by 1 / (1 − rate)."""
    scale = _drop_path_scale(x, rate, training, x.dtype)
    return x if scale is None else x * scale


def _drop_path_scale(x: Tensor, rate: float, training: bool, dtype: torch.dtype) -> Tensor | None:
    """Factors 0 or 1 / (1 − rate) per sequence, (B, 1, …, 1); None: 1 everywhere."""
    if rate == 0 or not training:
        return None
    keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=dtype).bernoulli_(1 - rate)
    return keep.div_(1 - rate)


Scales = tuple[Tensor | None, Tensor | None]
"""Drop path's factors of a block's two branches, attention's and the FFN's: (B, 1, 1), or one per token (B, N, 1), in
the dtype of the products. None: 1."""


class Block(nn.Module):
    """One LongNet layer."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, eps: float, drop_path_rate: float, *, sub_norm: bool = True
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.attn = DilatedSelfAttention(dim, num_heads, eps, sub_norm=sub_norm)
        self.mlp = FeedForward(dim, ffn_dim, eps, sub_norm=sub_norm)

    def forward(
        self,
        x: Tensor,
        pattern: DilatedPattern,
        lengths: Sequence[int] | None = None,
        scales: Scales | None = None,
    ) -> Tensor:
        """(B, N, D) → (B, N, D); `scales`: drop path's factors, where the caller has drawn them."""
        if not torch.is_grad_enabled() and self._is_fused(x):
            return finish(
                self.attn, self.mlp, x, self.attn.attend(x, pattern, lengths), self._drawn(x, scales), Keeping()
            )
        x = x + self._dropped(self.attn(x, pattern, lengths), scales, 0)
        return x + self._dropped(self.mlp(x), scales, 1)

    def _is_fused(self, x: Tensor) -> bool:
        """True if the second half runs as fused kernels (`recomputation.is_fused`)."""
        widths = x.shape[-1], self.mlp.fc1.out_features
        return is_fused(x, compute_dtype(x), widths, sub_norm=self.mlp.norm is not None)

    def _drawn(self, x: Tensor, scales: Scales | None) -> Scales:
        if scales is not None:
            return scales
        rate, dtype = self.drop_path_rate, compute_dtype(x)
        return _drop_path_scale(x, rate, self.training, dtype), _drop_path_scale(x, rate, self.training, dtype)

    def _dropped(self, branch: Tensor, scales: Scales | None, index: int) -> Tensor:
        if scales is None:
            return drop_path(branch, self.drop_path_rate, self.training)
        scale = scales[index]
        return branch if scale is None else branch * scale

    def recomputed(
        self,
        x: Tensor,
        pattern: DilatedPattern,
        lengths: Sequence[int] | None,
        keeping: Keeping,
        scales: Scales | None = None,
    ) -> Tensor:
        """`forward`, but only x and the attention's result are kept for backward (see `recomputation`)."""
        scales = self._drawn(x, scales)
        if lengths is None and type(self.attn) is DilatedSelfAttention:
            out = attend(self.attn, x, pattern, keeping)
        else:  # rows of different length, or a replaced attention: PyTorch's own recomputation
            keeping = Keeping()
            out = _checkpointed(self.attn.attend, x, pattern, lengths)
        return finish(self.attn, self.mlp, x, out, scales, keeping)


def _keep_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Checkpoint policy that keeps the attention's (out, lse), so that attention is not computed twice."""
    kept = op is torch.ops.longvit.dilated_attention.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    context = partial(create_selective_checkpoint_contexts, _keep_attention)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, context_fn=context)
    return result


class Encoder(nn.ModuleList):
    """`depth` blocks; drop path grows linearly from 0 to its rate. (B, N, D) → (B, N, D).

    Attributes:
        recompute: keeps only the input of every layer and the attention's result, and recomputes the rest in backward.
        offload: with `recompute` on a CUDA device, the kept tensors stay in host memory until backward.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        eps: float = 1e-5,
        drop_path_rate: float = 0.0,
        *,
        sub_norm: bool = True,
    ) -> None:
        rates = torch.linspace(0, drop_path_rate, depth, dtype=torch.float64, device="cpu").tolist()
        super().__init__(Block(dim, num_heads, ffn_dim, eps, rate, sub_norm=sub_norm) for rate in rates)
        self.recompute = self.offload = False

    def forward(
        self,
        x: Tensor,
        pattern: DilatedPattern,
        lengths: Sequence[int] | None = None,
        scales: Sequence[Scales] | None = None,
    ) -> Tensor:
        """(B, N, D) → (B, N, D).

        `lengths`: of the sequences in x, where they differ (see `dilated_attention`). `scales`: drop path's factors per
        layer, where the caller has drawn them.
        """
        recompute = self.recompute and torch.is_grad_enabled()
        store = host_store(x.device) if recompute and self.offload else None
        for i, block in enumerate(self):
            assert isinstance(block, Block)
            layer_scales = None if scales is None else scales[i]
            if recompute:
                is_offloaded = store is not None and i + 1 < len(self)
                x = block.recomputed(x, pattern, lengths, Keeping(i, store, is_offloaded), layer_scales)
            else:
                x = block(x, pattern, lengths, layer_scales)
        return x

    def get_intermediate_layers(self, x: Tensor, pattern: DilatedPattern) -> list[Tensor]:
        """The input and every layer's output, depth + 1 tensors (B, N, D)."""
        layers = [x]
        for block in self:
            layers.append(block(layers[-1], pattern))
        return layers


def init_weights(module: nn.Module) -> None:
    """Truncated normal (σ 0.02, cut at ± σ) for linear layers, 1 and 0 for norms: for `module.apply`.

    As in the authors' LongViT, this overwrites the sub-LayerNorm's own initial scale sqrt(ln 2L).
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform linear layers with bias 0, the default of transformers elsewhere; norms keep 1 and 0.

    Without sub-LayerNorm, small weights make the first updates of a block small: `benchmarks/trainability.py` has the
    numbers.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


INITIALISERS = {"published": init_weights, "xavier": init_xavier}
"""Initial weights by the name in `LongViTConfig.init`."""
