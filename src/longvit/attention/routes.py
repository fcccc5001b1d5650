"""Routes of dilated attention: the ways to compute the branches of a sequence group, each with forward and backward.

- `DenseRoute`: a short sequence, all branches as one dense attention (`short`).
- `ShiftedRoute`: a branch whose results the published code returns at other positions (`padding`).
- `BranchRoute`: a whole branch in one launch, where the back end has such a kernel (`triton_branch`, `padded_branch`).
- `CallRoute`: one fused call of a branch (`branches`).

A group's routes run in order on one state (`online_softmax`). The first route may set its results instead of merging
them where it covers every token and head of the group.

B sequences, N tokens, H heads, D head dim, w segment length, r dilated ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.attention import short
from longvit.attention.branches import Call, SequenceGroup, calls, sequence_groups
from longvit.attention.online_softmax import (
    RunningGradients,
    RunningSoftmax,
    Settings,
    call_backward,
    rows_adjoin,
)
from longvit.attention.padding import gathered, is_shifted, spread, with_zero_keys


def forward(q: Tensor, k: Tensor, v: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """→ merged out (B, N, H, D), contiguous, and lse (B, N, H) with −inf where no branch reaches."""
    state = RunningSoftmax(q, k, v, s)
    for route, first in _all_routes(q, s, dense=s.allows_dense, adjoin=rows_adjoin(q, k, v)):
        route.forward(state, first)
    return state.result()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    s: Settings,
    into: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:
    """→ the gradients of q, k and v in `wide_dtype`, each (B, N, H, D): `into`, set whatever it held, or new ones."""
    state = RunningGradients((grad_out, q, k, v, out, lse), s, into)
    adjoin = rows_adjoin(q, k, v, grad_out, *(into or ()))
    for route, first in _all_routes(q, s, dense=s.allows_dense and not s.pattern.detached, adjoin=adjoin):
        route.backward(state, first)
    return state.grads()


def _all_routes(q: Tensor, s: Settings, *, dense: bool, adjoin: bool) -> Iterator[tuple[Route, bool]]:
    """→ every route, and True for one that is the first of its group and covers it."""
    B, N, H, _ = q.shape
    for group in sequence_groups(B, N, s.lengths):
        is_dense = dense and short.is_short(group.length, s.pattern.branches, q.device)
        routes = [DenseRoute(group)] if is_dense else _branch_routes(group, H, s, adjoin and group.length == N)
        for i, route in enumerate(routes):
            yield route, i == 0 and route.covers_group


def _branch_routes(group: SequenceGroup, heads: int, s: Settings, adjoin: bool) -> Iterator[Route]:
    for w, r in s.pattern.branches:
        if s.pattern.padded and is_shifted(group.length, w, r):
            yield ShiftedRoute(group, w, r)
        elif s.kernel.branches:
            yield BranchRoute(group, w, r)
        else:
            for call in calls(group, heads, w, r, padded=s.pattern.padded, rows_adjoin=adjoin):
                yield CallRoute(group, call, covers_group=call.queries == group.tokens * heads)


class Route(Protocol):
    """Part of the computation of one group; `first`: no route of the group ran before, and this one covers it."""

    @property
    def covers_group(self) -> bool:
        """True if every token and head of the group gets a result."""

    def forward(self, state: RunningSoftmax, first: bool) -> None: ...

    def backward(self, state: RunningGradients, first: bool) -> None: ...


@dataclass(frozen=True)
class DenseRoute:
    """All branches of a group of short sequences."""

    group: SequenceGroup
    covers_group: bool = True

    def forward(self, state: RunningSoftmax, first: bool) -> None:
        q, k, v = (self.group.view(t) for t in state.qkv)
        o, l = short.forward(q, k, v, state.settings.pattern.branches, state.settings.scale)
        if state.spans_all(self.group):
            state.adopt(o, l)
        else:
            state.add(self.group.view, o, l, first=first)

    def backward(self, state: RunningGradients, first: bool) -> None:
        tensors = [self.group.view(t) for t in state.tensors]
        parts = short.backward(tensors, state.settings.pattern.branches, state.settings.scale)
        state.add(self.group.view, parts, first=first, overwritten=state.spans_all(self.group))


@dataclass(frozen=True)
class BranchRoute:
    """A branch in one launch of the back end's branch kernel."""

    group: SequenceGroup
    w: int
    r: int

    @property
    def covers_group(self) -> bool:
        return self.r == 1

    def forward(self, state: RunningSoftmax, first: bool) -> None:
        out = state.out(overwritten=first and state.spans_all(self.group))
        self._merge_branch(state.operands(), out, state.lse, state.settings, first)

    def backward(self, state: RunningGradients, first: bool) -> None:
        s, view = state.settings, self.group.view
        assert s.kernel.branches
        grads = state.grads(overwritten=first and state.spans_all(self.group))
        operands = state.operands(self._own_out(state) if s.pattern.detached else None)
        s.kernel.branches.backward(
            [view(t) for t in operands], [view(grad) for grad in grads], self.w, self.r, s.scale, first
        )

    def _merge_branch(self, operands: Sequence[Tensor], out: Tensor, lse: Tensor, s: Settings, first: bool) -> None:
        assert s.kernel.branches
        views, padded = [self.group.view(t) for t in operands], s.pattern.padded
        s.kernel.branches.forward(
            views, self.group.view(out), self.group.view(lse), self.w, self.r, s.scale, padded, first
        )

    def _own_out(self, state: RunningGradients) -> Tensor:
        """(B, N, H, D) output of this branch alone, defined where it reaches."""
        _, q, k, v, _, _ = state.tensors
        out, lse = q.new_zeros(q.shape, dtype=state.wide), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
        assert state.settings.kernel.branches
        operands = state.settings.kernel.branches.forward_operands(q, k, v)
        self._merge_branch(operands, out, lse, state.settings, False)
        return out


@dataclass(frozen=True)
class CallRoute:
    """One fused call of a branch."""

    group: SequenceGroup
    call: Call
    covers_group: bool

    def forward(self, state: RunningSoftmax, first: bool) -> None:
        call, s = self.call, state.settings
        q, k, v = (call.view(t) for t in state.qkv)
        o, l = s.kernel.forward(q, k, v, s.scale)
        o, l = with_zero_keys(o, l.to(state.wide), call.pad_keys)
        if first and state.spans_all(self.group):
            # (B·S, H, L, D) as the kernels lay it out is (B, N, H, D) in memory
            state.adopt(o.to(state.wide).transpose(1, 2), l.transpose(1, 2))
        else:
            state.add(call.view, o, l, first=first)

    def backward(self, state: RunningGradients, first: bool) -> None:
        parts = call_backward(self.call, state.tensors, state.settings)
        spans_all = first and state.spans_all(self.group)
        if spans_all and state.into is None:
            state.adopt(parts)
        else:
            state.add(self.call.view, parts, first=first, overwritten=spans_all)


@dataclass(frozen=True)
class ShiftedRoute:
    """A branch on copies of q, k and v with the published code's zeros in place (see `padding`)."""

    group: SequenceGroup
    w: int
    r: int
    covers_group: bool = False

    def forward(self, state: RunningSoftmax, first: bool) -> None:
        q, k, v = (self.group.view(t) for t in state.qkv)
        n, s = q.shape[1], state.settings
        q, k, v = (spread(t, self.w, self.r) for t in (q, k, v))
        out, lse = q.new_zeros(q.shape, dtype=state.wide), q.new_full(q.shape[:3], -math.inf, dtype=state.wide)
        for call in self._calls(q):
            o, l = s.kernel.forward(call.view(q), call.view(k), call.view(v), s.scale)
            call.view(out).copy_(o)
            call.view(lse).copy_(l)
        state.add(self.group.view, out[:, :n], lse[:, :n], first=first)

    def backward(self, state: RunningGradients, first: bool) -> None:
        grad_out, q, k, v, out, lse = (self.group.view(t) for t in state.tensors)
        n = q.shape[1]
        q, k, v = (spread(t, self.w, self.r) for t in (q, k, v))
        excess = q.shape[1] - n  # results that the published code cuts off: no probability, no gradient
        grad_out, out = (F.pad(t, (0, 0, 0, 0, 0, excess)) for t in (grad_out, out))
        lse = F.pad(lse, (0, 0, 0, excess), value=math.inf)
        grads = [torch.zeros_like(q, dtype=lse.dtype) for _ in range(3)]
        for call in self._calls(q):
            parts = call_backward(call, (grad_out, q, k, v, out, lse), state.settings)
            for grad, part in zip(grads, parts, strict=True):
                call.view(grad).add_(part)
        state.add(self.group.view, [gathered(grad, n, self.w, self.r) for grad in grads], first=first)

    def _calls(self, q: Tensor) -> Iterator[Call]:
        B, N, H, _ = q.shape
        w, r = self.w, self.r
        # an offset group beyond w holds zero keys alone: it takes no part
        offsets = w if w < r else None
        return calls(SequenceGroup(B, N), H, w + -w % r, r, padded=False, rows_adjoin=True, offsets=offsets)
