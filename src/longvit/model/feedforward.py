"""The FFN of a LongNet block, fc2(LayerNorm(GELU(fc1(LayerNorm(x))))), in token chunks.

At 32,768² pixels the hidden activations of one layer are 6.4 GB in float32. Here they exist for one chunk of tokens.
Training keeps them (`keep_hidden=True`, no product is computed twice) or recomputes them in backward.

T tokens, D model width, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longvit.model import norm_linear as nl


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        n1w: Tensor,
        n1b: Tensor,
        w1: Tensor,
        b1: Tensor,
        n2w: Tensor | None,
        n2b: Tensor | None,
        w2: Tensor,
        b2: Tensor,
        eps: float,
        keep_hidden: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        first = n1w, n1b, w1.to(dtype), b1.to(dtype), eps, False
        second = n2w, n2b, w2.to(dtype), b2.to(dtype), eps, True
        hidden: list[Tensor] = []

        def chunk(c: slice, out: Tensor | None) -> Tensor:
            h = nl.forward_chunk(x[c], *first)
            if keep_hidden:
                hidden.append(h)
            return nl.forward_chunk(h, *second, out)

        y = nl.by_chunks(x, chunk)
        ctx.save_for_backward(x, n1w, n1b, w1, b1, n2w, n2b, w2, *hidden)
        ctx.eps, ctx.dtype = eps, dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, n1w, n1b, w1, b1, n2w, n2b, w2, *hidden = ctx.saved_tensors
        eps, kept = ctx.eps, iter(hidden)
        first, second = nl.Grads(n1w, w1), nl.Grads(n2w, w2)
        w1, b1, w2 = (t.to(ctx.dtype) for t in (w1, b1, w2))

        def chunk(c: slice, out: Tensor | None) -> Tensor:
            h = next(kept) if hidden else nl.forward_chunk(x[c], n1w, n1b, w1, b1, eps, False)
            grad_h = nl.backward_chunk(grad[c], h, n2w, n2b, w2, eps, True, second)
            return nl.backward_chunk(grad_h, x[c], n1w, n1b, w1, eps, False, first, out)

        grad_x = nl.by_chunks(x, chunk)
        return grad_x, *first.result(), *second.result(), None, None, None


class FeedForward(nn.Module):
    """(…, D) → (…, D) of the block's second half, its pre-norm included.

    `norm_in` is the block's LayerNorm, `norm` the sub-LayerNorm on the hidden activations (eps 1e-5 both), None without
    `sub_norm`.
    """

    def __init__(self, dim: int, hidden: int, eps: float, keep_hidden: bool = True, *, sub_norm: bool = True) -> None:
        super().__init__()
        self.keep_hidden = keep_hidden
        self.norm_in = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps) if sub_norm else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        dtype = nl.compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            y = _FeedForward.apply(
                x.reshape(-1, x.shape[-1]),
                self.norm_in.weight,
                self.norm_in.bias,
                self.fc1.weight,
                self.fc1.bias,
                *nl.norm_parameters(self.norm),
                self.fc2.weight,
                self.fc2.bias,
                self.norm_in.eps,
                self.keep_hidden and torch.is_grad_enabled(),
                dtype,
            )
        return y.view(x.shape)
