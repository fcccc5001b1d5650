"""Running softmax of dilated attention: branches merged into one (out, lse), gradients added up from that pair alone.

The mixture of the branches is one softmax of each query over the multiset union of its branches' keys (see `dilated`).
Each branch result (o, l) is merged in place. The backward calls each branch's flash backward with the merged
(out, lse). The routes that compute a branch are in `routes`.

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longvit.attention.backends import Backend
from longvit.attention.branches import Call, SequenceGroup
from longvit.attention.padding import with_zero_keys
from longvit.attention.pattern import DilatedPattern

View = Callable[[Tensor], Tensor]
"""A strided view of part of a (B, N, H, …) tensor: `SequenceGroup.view` or `Call.view`."""


@dataclass(frozen=True)
class Settings:
    """Settings of one operator call."""

    pattern: DilatedPattern
    scale: float  # factor on q·k
    kernel: Backend
    lengths: tuple[int, ...] | None = None  # see `branches.sequence_groups`
    allows_dense: bool = False  # short sequences may run as one dense attention; not with ragged "padded"


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-sum-exps."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_adjoin(*tensors: Tensor) -> bool:
    """True if the rows of every (B, N, …) tensor are contiguous."""
    return all(t.stride(0) == t.shape[1] * t.stride(1) for t in tensors)


def merge_into(out: Tensor, lse: Tensor, o: Tensor, l: Tensor) -> None:
    """Equations 9 and 10, one branch at a time, in place: (out, lse) ← (out, lse) ∪ (o, l). No part: l = −inf."""
    weight = torch.sigmoid(l - lse).nan_to_num_(0.0)  # exp(l) / (exp(l) + exp(lse)); both −inf: nan
    out.lerp_(o.to(out.dtype), weight.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, l))


def call_backward(call: Call, tensors: Sequence[Tensor], s: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """One call's part of the gradients, from (grad_out, q, k, v, out, lse) and the merged softmax in the last two."""
    grad_out, q, k, v, out, lse = (call.view(t) for t in tensors)
    if s.pattern.detached:  # P of the merged softmax, but the row sum of this branch's own output
        out, own_lse = s.kernel.forward(q, k, v, s.scale)
        out, _ = with_zero_keys(out, own_lse.to(lse.dtype), call.pad_keys)
    return s.kernel.backward(grad_out, q, k, v, out, lse, s.scale)


class RunningSoftmax:
    """State of a forward: the merged out (B, N, H, D) and lse (B, N, H) so far, in `wide_dtype`.

    lse is −inf where no branch has contributed yet. out is allocated by the first route.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> None:
        self.qkv, self.settings = (q, k, v), settings
        self.wide = wide_dtype(q.dtype)
        self.lse = q.new_full(q.shape[:3], -math.inf, dtype=self.wide)
        self._out: Tensor | None = None
        self._operands: Sequence[Tensor] = ()

    def spans_all(self, group: SequenceGroup) -> bool:
        """True if the group holds every token."""
        return group.tokens == self.lse.shape[0] * self.lse.shape[1]

    def out(self, *, overwritten: bool = False) -> Tensor:
        """The output so far; `overwritten`: the caller sets every element now."""
        if self._out is None:
            q = self.qkv[0]
            self._out = (q.new_empty if overwritten else q.new_zeros)(q.shape, dtype=self.wide)
        return self._out

    def operands(self) -> Sequence[Tensor]:
        """Operands of the back end's branch kernel, made once."""
        assert self.settings.kernel.branches
        self._operands = self._operands or self.settings.kernel.branches.forward_operands(*self.qkv)
        return self._operands

    def adopt(self, o: Tensor, l: Tensor) -> None:
        """Takes the result of all tokens and heads, o and l in the memory order of (B, N, H, D)."""
        self._out, self.lse = o.contiguous().view(self.qkv[0].shape), l.contiguous().view(self.lse.shape)

    def add(self, view: View, o: Tensor, l: Tensor, *, first: bool) -> None:
        """Merges a route's result into its view; `first`: sets it."""
        out = self.out()
        if first:
            view(out).copy_(o)
            view(self.lse).copy_(l)
        else:
            merge_into(view(out), view(self.lse), o, l)

    def result(self) -> tuple[Tensor, Tensor]:
        """→ out (B, N, H, D) in the dtype of q, 0 where no branch reaches, and lse (B, N, H)."""
        q = self.qkv[0]
        return q.new_zeros(q.shape) if self._out is None else self._out.to(q.dtype), self.lse


class RunningGradients:
    """State of a backward: the gradients of q, k and v so far, (B, N, H, D) each in `wide_dtype`.

    tensors: grad_out, q, k, v, merged out (B, N, H, D) and merged lse (B, N, H).
    into: buffers for the gradients, whatever they held; None: new ones.
    """

    def __init__(self, tensors: Sequence[Tensor], settings: Settings, into: Sequence[Tensor] | None) -> None:
        self.tensors, self.settings, self.into = tensors, settings, into
        self.wide = wide_dtype(tensors[1].dtype)
        self._grads: Sequence[Tensor] | None = None
        self._operands: Sequence[Tensor] = ()

    def spans_all(self, group: SequenceGroup) -> bool:
        """True if the group holds every token."""
        q = self.tensors[1]
        return group.tokens == q.shape[0] * q.shape[1]

    def grads(self, *, overwritten: bool = False) -> Sequence[Tensor]:
        """The gradients so far; `overwritten`: the caller sets every element now."""
        if self._grads is None:
            q = self.tensors[1]
            if self.into is None:
                new = q.new_empty if overwritten else q.new_zeros
                self._grads = [new(q.shape, dtype=self.wide) for _ in range(3)]
            else:
                self._grads = self.into if overwritten else [grad.zero_() for grad in self.into]
        return self._grads

    def operands(self, branch_out: Tensor | None) -> Sequence[Tensor]:
        """Operands of the back end's branch kernel: made once, or for each branch from its own output."""
        assert self.settings.kernel.branches
        if branch_out is not None or not self._operands:
            *inputs, out, lse = self.tensors
            out = out if branch_out is None else branch_out
            self._operands = self.settings.kernel.branches.backward_operands(*inputs, out, lse, self.settings.scale)
        return self._operands

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Takes the gradients of all tokens and heads, in the memory order of (B, N, H, D)."""
        shape = self.tensors[1].shape
        self._grads = [part.to(self.wide).transpose(1, 2).contiguous().view(shape) for part in parts]

    def add(self, view: View, parts: Sequence[Tensor], *, first: bool, overwritten: bool = False) -> None:
        """Adds a route's gradients to its view; `first`: sets them. `overwritten`: the view is everything."""
        for grad, part in zip(self.grads(overwritten=overwritten), parts, strict=True):
            view(grad).copy_(part) if first else view(grad).add_(part)
