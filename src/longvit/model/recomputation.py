"""Recomputation of a LongNet block: it keeps its input and its attention's (out, lse), and recomputes the rest.

Only attention mixes tokens. So a block is two functions, of which the second works token by token:

    out = attention(qkv(norm1(x)))                                     kept: x, out, lse
    y   = mid + fc2(norm(gelu(fc1(norm2(mid))))),  mid = x + proj(norm(out))          the same x and out, nothing else

Backward of the second runs chunk by chunk. It computes mid, the hidden activations, their gradients and those of x and
out; the former two exist for one chunk only. The product of fc2 is not recomputed. Backward of the first recomputes q,
k, v and calls attention's backward. `torch.utils.checkpoint` would run the whole block again, and then hold everything
that a plain forward keeps.

Values and gradients are those of `Block.forward`, to the last bit. On a CUDA device the kept tensors can stay in host
memory until backward (`offload`).

B sequences, N tokens, T = B·N, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longvit.attention.operators import backward_op, flat_settings, forward_op
from longvit.attention.pattern import DilatedPattern
from longvit.model import fused_norms
from longvit.model import norm_linear as nl
from longvit.model.feedforward import FeedForward
from longvit.model.offload import HostStore
from longvit.model.query_scale import Projection, projection
from longvit.model.self_attention import DilatedSelfAttention


@dataclass(frozen=True)
class Keeping:
    """Place of the kept tensors of layer `index`: autograd, or (`is_offloaded`) `store`."""

    index: int = 0
    store: HostStore | None = None
    is_offloaded: bool = False
    """False for the last layer, whose backward follows its forward: it stays on the device, and prefetches others."""

    def keep(
        self, ctx: Any, tensors: Sequence[Tensor], parameters: Sequence[Tensor | None], *, again: bool = False
    ) -> None:
        """Keeps `tensors` for backward; `again`: those of the layer's first function, already in the store."""
        ctx.keeping, ctx.parameters = self, len(parameters)
        ctx.save_for_backward(*parameters, *(() if self.is_offloaded else tensors))
        if self.is_offloaded and not again:
            assert self.store is not None
            self.store.put(self.index, tensors)

    @staticmethod
    def kept(ctx: Any) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """→ tensors, parameters."""
        keeping: Keeping = ctx.keeping
        saved = ctx.saved_tensors
        parameters, tensors = saved[: ctx.parameters], saved[ctx.parameters :]
        if keeping.store is not None:
            tensors = keeping.store.take(keeping.index) if keeping.is_offloaded else tensors
            keeping.store.prefetch(keeping.index - 1)
        return tensors, parameters


class _Linear(NamedTuple):
    """A norm (or None) and the linear layer after it, the latter in the compute dtype."""

    norm_w: Tensor | None
    norm_b: Tensor | None
    w: Tensor
    b: Tensor
    eps: float
    gelu: bool

    @property
    def norm(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a norm that there is."""
        assert self.norm_w is not None
        assert self.norm_b is not None
        return self.norm_w, self.norm_b

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return nl.forward_chunk(x, *self, out)

    def backward(self, grad: Tensor, x: Tensor, sums: nl.Grads, grad_x: Tensor | None = None) -> Tensor:
        return nl.backward_chunk(grad, x, self.norm_w, self.norm_b, self.w, self.eps, self.gelu, sums, grad_x)


def _linears(parameters: Sequence[Tensor | None], eps: Sequence[float], dtype: torch.dtype) -> list[_Linear]:
    """Layers of four parameters each; the third layer of a block's second half follows GELU."""
    linears = []
    for i, e in enumerate(eps):
        norm_w, norm_b, w, b = parameters[4 * i : 4 * i + 4]
        assert w is not None
        assert b is not None
        linears.append(_Linear(norm_w, norm_b, w.to(dtype), b.to(dtype), e, gelu=i == 2))
    return linears


def _parameters(*pairs: tuple[nn.LayerNorm | None, nn.Linear | Projection]) -> list[Tensor | None]:
    return [t for norm, linear in pairs for t in (*nl.norm_parameters(norm), linear.weight, linear.bias)]


def _sums(parameters: Sequence[Tensor | None], index: int) -> nl.Grads:
    """Empty sums for the gradients of layer `index`."""
    norm_w, _, w, _ = parameters[4 * index : 4 * index + 4]
    assert w is not None
    return nl.Grads(norm_w, w)


# --- first half -----------------------------------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        heads: int,
        settings: tuple[Any, ...],
        eps: float,
        dtype: torch.dtype,
        keeping: Keeping,
        *parameters: Tensor | None,
    ) -> Tensor:
        qkv = _projected(x, parameters, eps, dtype, heads)
        out, lse = forward_op([qkv], *settings)
        del qkv
        ctx.heads, ctx.settings, ctx.eps, ctx.dtype = heads, settings, eps, dtype
        keeping.keep(ctx, (x, out, lse), parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (x, out, lse), parameters = Keeping.kept(ctx)
        qkv = _projected(x, parameters, ctx.eps, ctx.dtype, ctx.heads)
        (grad_qkv,) = backward_op(grad_out, [qkv], out, lse, *ctx.settings)
        del qkv, out, lse, grad_out
        (linear,), sums = _linears(parameters, [ctx.eps], ctx.dtype), _sums(parameters, 0)
        flat, grad = x.flatten(0, 1), grad_qkv.flatten(0, 1).flatten(1)
        grad_x = torch.empty_like(flat)
        for c in nl.chunks(flat):
            linear.backward(grad[c], flat[c], sums, grad_x[c])
        if ctx.keeping.is_offloaded:
            ctx.keeping.store.drop(ctx.keeping.index)
        return grad_x.view(x.shape), None, None, None, None, None, *sums.result()


def _projected(x: Tensor, parameters: Sequence[Tensor | None], eps: float, dtype: torch.dtype, heads: int) -> Tensor:
    """(B, N, D) → q, k, v (B, N, 3, H, D / H)."""
    (linear,) = _linears(parameters, [eps], dtype)
    flat = x.flatten(0, 1)
    qkv = nl.by_chunks(flat, lambda c, out: linear.forward(flat[c], out))
    return qkv.view(*x.shape[:2], 3, heads, -1)


def attend(attn: DilatedSelfAttention, x: Tensor, pattern: DilatedPattern, keeping: Keeping) -> Tensor:
    """(B, N, D) → (B, N, H, D / H): `DilatedSelfAttention.attend` with recomputation."""
    dtype = nl.compute_dtype(x)
    weights = projection(attn.qkv, attn.num_heads, dtype)
    settings = flat_settings(pattern, None, weights.scale)
    parameters = _parameters((attn.norm_in, weights))
    with torch.autocast(x.device.type, enabled=False):
        return _Attend.apply(x.contiguous(), attn.num_heads, settings, attn.norm_in.eps, dtype, keeping, *parameters)


# --- second half ----------------------------------------------------------------------------------------------------


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        out: Tensor,
        scales: Any,
        eps: Sequence[float],
        dtype: torch.dtype,
        keeping: Keeping,
        *parameters: Tensor | None,
    ) -> Tensor:
        flat, heads = x.flatten(0, 1), out.flatten(0, 1).flatten(1)
        proj, fc1, fc2 = _linears(parameters, eps, dtype)
        ctx.scales, ctx.eps, ctx.dtype = scales, eps, dtype
        keeping.keep(ctx, (x, out), parameters, again=True)

        def chunk(c: slice, into: Tensor | None) -> Tensor:
            mid, hidden, n = _middle(flat[c], heads[c], proj, fc1, scales[0], c)
            branch = fc2.forward(hidden)
            if n is not None and scales[1] is None and branch.dtype != mid.dtype:
                return fused_norms.add(mid, branch, mid if into is None else into)
            branch = _scaled(branch, scales[1], c)
            return mid + branch if into is None else torch.add(mid, branch, out=into)

        return nl.by_chunks(flat, chunk).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, out, *_), parameters = Keeping.kept(ctx)
        proj, fc1, fc2 = _linears(parameters, ctx.eps, ctx.dtype)
        sums = [_sums(parameters, i) for i in (0, 1, 2)]
        flat, heads, grad = x.flatten(0, 1), out.flatten(0, 1).flatten(1), grad.reshape(-1, x.shape[-1])
        grad_x, grad_out = torch.empty_like(flat), torch.empty_like(heads)
        bias_sums = None
        for c in nl.chunks(flat):
            mid, hidden, n = _middle(flat[c], heads[c], proj, fc1, ctx.scales[0], c)
            if n is not None:
                bias_sums = bias_sums or fused_norms.RowSums(grad[c], "cast")
                _fused_backward(
                    grad[c], heads[c], mid, n, hidden, (proj, fc1, fc2), sums, bias_sums,
                    [None if s is None else s[c] for s in ctx.scales], grad_x[c], grad_out[c],
                )  # fmt: skip
                continue
            grad_branch = _scaled(grad[c].to(ctx.dtype), ctx.scales[1], c)
            grad_hidden = fc2.backward(grad_branch, hidden, sums[2])
            grad_mid = torch.add(grad[c], fc1.backward(grad_hidden, mid, sums[1]), out=grad_x[c])
            proj.backward(_scaled(grad_mid.to(ctx.dtype), ctx.scales[0], c), heads[c], sums[0], grad_out[c])
        biases: list[Tensor | None] = [None] * 3
        if bias_sums is not None:
            biases = [sums[1].layer_before(), sums[2].layer_before(), bias_sums.result()[0]]
        results = [t for s, bias in zip(sums, biases, strict=True) for t in s.result(bias)]
        return grad_x.view(x.shape), grad_out.view(out.shape), None, None, None, None, *results


def _middle(
    x: Tensor, heads: Tensor, proj: _Linear, fc1: _Linear, scale: Tensor | None, c: slice
) -> tuple[Tensor, Tensor, Tensor | None]:
    """→ x + proj(norm(heads)) and the hidden activations of a chunk; the input of fc1, where kernels are fused."""
    branch, dtype = proj.forward(heads), fc1.w.dtype
    if is_fused(x, dtype, (x.shape[-1], len(fc1.w)), sub_norm=proj.norm_w is not None):
        s = None if scale is None else scale[c]
        mid, n = fused_norms.add_norm(x, branch, s, *fc1.norm, fc1.eps, dtype)
        return mid, nl.linear(n, fc1.w, fc1.b), n
    mid = x + _scaled(branch, scale, c)
    return mid, fc1.forward(mid), None


def is_fused(x: Tensor, dtype: torch.dtype, widths: Sequence[int], *, sub_norm: bool) -> bool:
    """True if the second half runs as fused kernels (`fused_norms`): they take every norm of it.

    A block without sub-LayerNorm runs in the plain form, with a fused kernel for its pre-norms alone.
    """
    return sub_norm and all(fused_norms.uses(x, dtype, width) for width in widths)


def _fused_backward(
    grad: Tensor,
    heads: Tensor,
    mid: Tensor,
    n: Tensor,
    hidden: Tensor,
    linears: tuple[_Linear, _Linear, _Linear],
    sums: Sequence[nl.Grads],
    bias_sums: fused_norms.RowSums,
    scales: Sequence[Tensor | None],
    grad_x: Tensor,
    grad_out: Tensor,
) -> None:
    """Backward of a chunk of `_Finish`, with the fused kernels: every tensor is read once and written once.

    The row sum that is a bias's gradient comes from the kernel that writes the summed gradient.
    """
    proj, fc1, fc2 = linears
    grad_branch = fused_norms.cast_and_sum(grad, scales[1], fc2.w.dtype, bias_sums)
    normed = torch.empty(hidden.shape, dtype=fc2.w.dtype, device=hidden.device)
    grad_hidden = fused_norms.norm_backward(
        hidden, nl.linear(grad_branch, fc2.w.t()), *fc2.norm, fc2.eps, True, sums[2].rows_of(hidden),
        n=normed, sum_out=True,
    )  # fmt: skip
    sums[2].add_product(grad_branch, normed)
    grad_proj = torch.empty(mid.shape, dtype=proj.w.dtype, device=mid.device)
    fused_norms.norm_backward(
        mid, nl.linear(grad_hidden, fc1.w.t()), *fc1.norm, fc1.eps, False, sums[1].rows_of(mid),
        residual=grad, scale=scales[0], out=grad_x, narrow=grad_proj, sum_out=True,
    )  # fmt: skip
    sums[1].add_product(grad_hidden, n)
    normed = torch.empty(heads.shape, dtype=proj.w.dtype, device=heads.device)
    fused_norms.norm_backward(
        heads, nl.linear(grad_proj, proj.w.t()), *proj.norm, proj.eps, False, sums[0].rows_of(heads),
        out=grad_out, n=normed,
    )  # fmt: skip
    sums[0].add_product(grad_proj, normed)


def _scaled(branch: Tensor, scale: Tensor | None, c: slice) -> Tensor:
    return branch if scale is None else branch * scale[c]


def finish(
    attn: DilatedSelfAttention,
    mlp: FeedForward,
    x: Tensor,
    out: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    keeping: Keeping,
) -> Tensor:
    """The block's result (B, N, D) from its input and its attention's (B, N, H, D / H).

    `scales`: drop path's factor (B, 1, 1) of each branch, or None: 1.
    """
    layers = (attn.norm, attn.proj), (mlp.norm_in, mlp.fc1), (mlp.norm, mlp.fc2)
    per_token = tuple(None if s is None else s.expand(*x.shape[:2], 1).reshape(-1, 1) for s in scales)
    eps, dtype = [nl.eps_of(norm) for norm, _ in layers], nl.compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _Finish.apply(x.contiguous(), out, per_token, eps, dtype, keeping, *_parameters(*layers))
