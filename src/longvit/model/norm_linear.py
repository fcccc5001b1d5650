"""Norm and linear layer of a LongNet block, y = Linear(LayerNorm(act(x))), in token chunks with a lean backward.

All four products of a block have this form:
- qkv and fc1 after the pre-norm;
- the output projection after the sub-LayerNorm of the heads;
- fc2 after GELU and the sub-LayerNorm of the hidden activations.

In a block without sub-LayerNorm the last two have no norm: y = Linear(act(x)). `norm_w` and `norm_b` are None then.

Plain autograd keeps the result of every step. Here only `x` is kept. The (cheap) activation and norm are recomputed in
backward, chunk by chunk, while they are still in the cache. The results are those of the plain form to rounding.

T tokens, I features in, O features out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvit.model import fused_norms
from longvit.model.query_scale import Projection

aten = torch.ops.aten
CHUNK_TOKENS: int | None = None
"""Tokens per chunk; None: a default for the device (`chunk_tokens`)."""
CPU_CHUNK_TOKENS = 1024  # stays in the cache
GPU_CHUNK_TOKENS = 131_072  # fills a card (H200: 0.8 % faster than 65,536 at 1 M tokens); 0.4 GB of hidden activations
_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x @ wᵀ + b, without autograd, into `out` where given.

    float32 on a CPU goes to oneDNN, which is 6–10 % faster than the BLAS of `addmm` (AMD EPYC, 2026-11).
    """
    if _onednn is not None and x.dtype == torch.float32 and x.device.type == "cpu":
        y = _onednn(x, w, b, "none", [], "")
        return y if out is None else out.copy_(y)
    if b is None:
        return torch.mm(x, w.t(), out=out)
    return torch.addmm(b, x, w.t(), out=out)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_w: Tensor | None,
        norm_b: Tensor | None,
        w: Tensor,
        b: Tensor,
        eps: float,
        gelu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, norm_w, norm_b, w)
        ctx.eps, ctx.gelu, ctx.dtype = eps, gelu, dtype
        w, b = w.to(dtype), b.to(dtype)
        return by_chunks(x, lambda c, out: forward_chunk(x[c], norm_w, norm_b, w, b, eps, gelu, out))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_w, norm_b, w = ctx.saved_tensors
        sums, w_cast = Grads(norm_w, w), w.to(ctx.dtype)

        def chunk(c: slice, out: Tensor | None) -> Tensor:
            return backward_chunk(grad[c], x[c], norm_w, norm_b, w_cast, ctx.eps, ctx.gelu, sums, out)

        return by_chunks(x, chunk), *sums.result(), None, None, None


def norm_linear(x: Tensor, norm: nn.LayerNorm | None, linear: nn.Linear | Projection, *, gelu: bool = False) -> Tensor:
    """(…, I) → (…, O), in the dtype of autocast where it is on, else that of `x`."""
    dtype, flat = compute_dtype(x), x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):
        y = _NormLinear.apply(flat, *norm_parameters(norm), linear.weight, linear.bias, eps_of(norm), gelu, dtype)
    return y.unflatten(0, x.shape[:-1])


def norm_parameters(norm: nn.LayerNorm | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a norm; None, None for no norm."""
    return (None, None) if norm is None else (norm.weight, norm.bias)


def eps_of(norm: nn.LayerNorm | None) -> float:
    """Epsilon of a norm; 0 for no norm, which has no use for it."""
    return 0.0 if norm is None else norm.eps


def chunk_tokens(device: torch.device) -> int:
    """Tokens per chunk on this device."""
    return CHUNK_TOKENS or (CPU_CHUNK_TOKENS if device.type == "cpu" else GPU_CHUNK_TOKENS)


def chunks(x: Tensor) -> list[slice]:
    """Slices of the token axis (the first one) of `x`."""
    tokens, step = len(x), chunk_tokens(x.device)
    return [slice(i, min(i + step, tokens)) for i in range(0, tokens, step)]


def by_chunks(x: Tensor, function: Callable[[slice, Tensor | None], Tensor]) -> Tensor:
    """Joins the results of `function`(slice of the token axis of `x`, output tensor or None) over all chunks.

    The result of a single chunk is returned uncopied. Several are written into one tensor with the dtype of the first.
    """
    slices = chunks(x) or [slice(0, 0)]
    first = function(slices[0], None)
    if len(slices) == 1:
        return first
    joined = first.new_empty((len(x), *first.shape[1:]))
    joined[slices[0]] = first
    del first
    for c in slices[1:]:
        function(c, joined[c])
    return joined


def _normalised(
    x: Tensor, w: Tensor, b: Tensor, eps: float, gelu: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """→ LayerNorm(act(x)) in `dtype`, act(x), mean, 1/σ of a chunk; statistics in float32 or wider."""
    a = F.gelu(x) if gelu else x
    n, mean, rstd = aten.native_layer_norm(a, a.shape[-1:], w.to(a.dtype), b.to(a.dtype), eps)
    return n.to(dtype), a, mean, rstd


def forward_chunk(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    w: Tensor,
    b: Tensor,
    eps: float,
    gelu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """One chunk (T, I) → (T, O) in the dtype of w, into `out` where given; without autograd."""
    if norm_w is None or norm_b is None:
        n = (F.gelu(x) if gelu else x).to(w.dtype)
    elif fused_norms.uses(x, w.dtype):
        n = fused_norms.norm(x, norm_w, norm_b, eps, gelu, w.dtype)
    else:
        n, *_ = _normalised(x, norm_w, norm_b, eps, gelu, w.dtype)
    return linear(n, w, b, out)


class Grads:
    """Gradients of one norm (None: of none) and one linear layer, summed over chunks in float32 or wider."""

    def __init__(self, norm_w: Tensor | None, w: Tensor) -> None:
        self.dtypes = (w if norm_w is None else norm_w).dtype, w.dtype
        self.has_norm = norm_w is not None
        self.sums: list[Tensor] = []
        self.rows: fused_norms.RowSums | None = None  # from the fused kernels, instead of the norm's sums

    def rows_of(self, x: Tensor) -> fused_norms.RowSums:
        """The buffer for the norm's gradients from the fused kernels; x: a chunk of its input."""
        if self.rows is None:
            self.rows = fused_norms.RowSums(x)
        return self.rows

    def add(self, grad: Tensor, n: Tensor, *norm_grads: Tensor) -> None:
        """Adds a chunk: gradient (T, O) and input (T, I) of the linear layer, gradients of the norm's parameters."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        self.add_product(grad, n, *norm_grads, grad.sum(0, dtype=wide))

    def add_product(self, grad: Tensor, n: Tensor, *vectors: Tensor) -> None:
        """`add` with known row sums: gradients of the norm's weight and bias and of the bias, or fewer."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        if not self.sums:
            self.sums = [(grad.t() @ n).to(wide), *(v.to(wide) for v in vectors)]
            return
        for total, v in zip(self.sums[1:], vectors, strict=True):
            total += v
        if grad.dtype == wide:
            self.sums[0].addmm_(grad.t(), n)  # the large one, without a tensor in between
        else:
            self.sums[0] += grad.t() @ n

    def layer_before(self) -> Tensor:
        """Gradient of the bias before the norm: the fused kernels' row sum of the norm's input gradient."""
        assert self.rows is not None
        return self.rows.result()[2]

    def result(self, bias: Tensor | None = None) -> list[Tensor | None]:
        """→ norm weight, norm bias, weight, bias in the parameters' dtypes; `bias`: its gradient, if not added here."""
        norm_dtype, dtype = self.dtypes
        if not self.has_norm:
            return [None, None, *(x.to(dtype) for x in self.sums)]
        w, *vectors = self.sums
        if self.rows is not None:
            vectors = [*self.rows.result()[:2], *vectors]
        if bias is not None:
            vectors.append(bias)
        norm_w, norm_b, b = vectors
        return [norm_w.to(norm_dtype), norm_b.to(norm_dtype), w.to(dtype), b.to(dtype)]


def backward_chunk(
    grad: Tensor,
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    w: Tensor,
    eps: float,
    gelu: bool,
    grads: Grads,
    grad_x: Tensor | None = None,
) -> Tensor:
    """Backward of one chunk: adds to `grads`, → gradient of x (written to `grad_x` where given)."""
    if norm_w is None or norm_b is None:
        grads.add(grad, (F.gelu(x) if gelu else x).to(w.dtype))
        grad_a = linear(grad, w.t()).to(x.dtype)
        result = aten.gelu_backward(grad_a, x) if gelu else grad_a
        return result if grad_x is None else grad_x.copy_(result)
    if fused_norms.uses(x, w.dtype):
        n = torch.empty(x.shape, dtype=w.dtype, device=x.device)
        result = fused_norms.norm_backward(
            x, linear(grad, w.t()), norm_w, norm_b, eps, gelu, grads.rows_of(x), out=grad_x, n=n
        )
        grads.add(grad, n)
        return result
    n, a, mean, rstd = _normalised(x, norm_w, norm_b, eps, gelu, w.dtype)
    grad_n = linear(grad, w.t()).to(a.dtype)
    grad_a, d_norm_w, d_norm_b = aten.native_layer_norm_backward(
        grad_n, a, a.shape[-1:], mean, rstd, norm_w.to(a.dtype), norm_b.to(a.dtype), [True, True, True]
    )
    grads.add(grad, n, d_norm_w, d_norm_b)
    result = aten.gelu_backward(grad_a, x) if gelu else grad_a
    return result if grad_x is None else grad_x.copy_(result)
