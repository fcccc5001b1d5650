"""Interface of a kernel that takes a whole branch in one launch, on (B, N, H, …) tensors.

B sequences, N tokens, H heads, D head dim, L tokens of one call, w segment length, r dilated ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BranchKernel:
    """Functions of a back end for all offset groups and segments of a branch.

    Operands are made once per call of dilated attention and serve all branches; views of them are passed on.

    forward_operands(q, k, v) → tensors (B, N, H, …).
    forward(operands, out, lse, w, r, scale, padded, first, others): merges the branch into out (B, N, H, D) and lse
        (B, N, H), float32, in place. lse is −inf (and out 0) where no branch has contributed. scale > 0. `padded`: zero
        keys fill up short offset groups (see `padding`), where r divides w or w ≥ N. `first`: out and lse are not read;
        the branch must reach every token and head (r = 1), or only what it reaches is wanted.
    backward_operands(grad_out, q, k, v, out, lse, scale) → tensors (B, N, H, …). grad_out, q, k, v have one dtype; lse
        is float32, of the merged softmax; out is of the merged softmax (detached: the branch's own).
    keys_backward(operands, (grad_k, grad_v), w, r, scale, first, others), queries_backward(operands, grad_q, …): add
        the branch's gradients to float32 (B, N, H, D), or, `first`, set them.

    `others`: number of keys (keys_backward: of queries) where it differs from that of the rows; −1: the same.
    """

    forward_operands: Callable[..., Sequence[Tensor]]
    forward: Callable[..., None]
    backward_operands: Callable[..., Sequence[Tensor]]
    keys_backward: Callable[..., None]
    queries_backward: Callable[..., None]

    def backward(
        self, operands: Sequence[Tensor], grads: Sequence[Tensor], w: int, r: int, scale: float, first: bool = False
    ) -> None:
        """Adds one branch's part to the gradients of q, k and v; `first`: sets them."""
        self.keys_backward(operands, grads[1:], w, r, scale, first)
        self.queries_backward(operands, grads[0], w, r, scale, first)

    def call_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """One fused call: (B, H, L, D), queries and keys of any two lengths → out (B, H, L, D), lse (B, H, L)."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        self.forward(self.forward_operands(q, k, v), out, lse, q.shape[1], 1, scale, False, True, k.shape[1])
        return out.transpose(1, 2), lse.transpose(1, 2)

    def call_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """→ the gradients of q, k and v, float32 (B, H, L, D), from any (out, lse)."""
        grad_out, q, k, v, out, lse = (t.transpose(1, 2) for t in (grad_out, q, k, v, out, lse))
        dq, dk, dv = (torch.empty(t.shape, dtype=torch.float32, device=q.device) for t in (q, k, v))
        operands = self.backward_operands(grad_out, q, k, v, out, lse, scale)
        self.keys_backward(operands, (dk, dv), k.shape[1], 1, scale, True, q.shape[1])
        self.queries_backward(operands, dq, q.shape[1], 1, scale, True, k.shape[1])
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
