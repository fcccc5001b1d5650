"""Dilated attention of a sequence whose tokens lie on several ranks: outputs and gradients of the single process.

Each rank computes the rows of its own queries. Branches whose segments lie inside a shard run as in one process; for
the others the keys and values that a segment needs are brought together first (see `shards`). The branches are merged
by their log-sum-exp at the query's rank, so nothing else has to travel.

    forward     start the exchange of keys and values │ own segments │ wait │ shared segments
    backward    shared segments │ start the exchange of their gradients │ own segments │ wait, add

As in `longvit.attention.dilated` the backward of each branch is the ordinary flash backward, called with the merged
(out, lse). Kept for it, beside those and q, k, v: the keys and values of the shared segments, Σ w/r tokens.

B sequences, n tokens of this rank, H heads, D head dim, J groups of g heads, L keys of a group in a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from longvit.attention.backends import Backend, pick
from longvit.attention.branches import Call, Run, calls
from longvit.attention.online_softmax import Settings, call_backward, merge_into, wide_dtype
from longvit.parallel.exchange import Exchange, Wire
from longvit.parallel.shards import Comb, Shards, SharedSegment, combs, shared_segments


def sharded_dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    shards: Shards,
    group: dist.ProcessGroup | None = None,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    gradient: Literal["exact", "detached"] = "exact",
    ragged: Literal["masked", "padded"] = "masked",
    scale: float | None = None,
    backend: str = "auto",
    wire: Wire | None = None,
    keep: list[Tensor] | None = None,
) -> Tensor:
    """This rank's part of `longvit.attention.dilated_attention` of the whole sequence.

    A collective call: every rank of the group makes it, with the same settings, batch and dtype, and every rank runs
    its backward or none does. Gradients of shared keys travel in the dtype of k and are added up in float32 (float64).

    Args:
        q, k, v: (B, n, H, D), the tokens of this rank; n may be 0, and differ between ranks.
        shards: who holds which tokens, the same on every rank.
        group: the ranks of the sequence, in the order of the shards; None: all there are.
        segment_lengths, dilated_ratios, gradient, scale, backend: see `dilated_attention`.
        ragged: "padded" only where nothing is padded (the segments divide the sequence, the ratios the segments).
        wire: counts the bytes that travel.
        keep: for a call that is made again in backward (recomputation). An empty list is filled with what was computed
            and received; a filled one is used instead of computing and exchanging again, and emptied.

    Returns:
        (B, n, H, D) in the dtype of q.

    Raises:
        ValueError: shapes, ranks or settings that do not fit, with both numbers.
    """
    ranks = dist.get_world_size(group) if dist.is_initialized() else 1
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    branches = tuple((int(w), int(r)) for w, r in zip(segment_lengths, dilated_ratios, strict=True))
    _check(q, k, v, shards, rank, ranks, branches, gradient, ragged)
    settings = Settings(
        branches,
        None,
        gradient == "detached",
        False,
        q.shape[-1] ** -0.5 if scale is None else float(scale),
        pick(q.device, q.dtype, q.shape[-1], backend).backend,
    )
    part = _Part(shards, rank, q.shape[2], settings, group, wire)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    return _Attention.apply(q, k, v, part, keep)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shards: Shards,
    rank: int,
    ranks: int,
    branches: Sequence[tuple[int, int]],
    gradient: str,
    ragged: str,
) -> None:
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"q, k and v must share one shape (batch, length, heads, head_dim); got {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}"
        )
    if shards.ranks != ranks:
        raise ValueError(f"{shards.ranks} shards for {ranks} ranks")
    first, end = shards.shard(rank)
    if q.shape[1] != end - first:
        raise ValueError(f"rank {rank} holds tokens {first} … {end}, {end - first} of them, but was given {q.shape[1]}")
    if not branches or min(min(b) for b in branches) < 1:
        raise ValueError(f"every segment length and dilated ratio must be at least 1, got {branches}")
    if gradient not in ("exact", "detached") or ragged not in ("masked", "padded"):
        raise ValueError(f"no gradient={gradient!r}, ragged={ragged!r}; see dilated_attention")
    for w, r in branches if ragged == "padded" else ():
        w = min(w, shards.tokens)
        if w and (shards.tokens % w or w % r):
            raise ValueError(
                f"ragged='padded' over several ranks needs segments that divide the sequence and ratios that divide "
                f"the segments, got {shards.tokens} tokens, segment {w}, ratio {r}; use ragged='masked'"
            )


@dataclass(frozen=True)
class _Shared:
    """A shared segment as one rank sees it: its own combs, and those of each other rank that holds some of it."""

    segment: SharedSegment
    own: tuple[Comb, ...]
    others: tuple[tuple[int, tuple[Comb, ...]], ...]


@dataclass(frozen=True)
class _Part:
    """One rank's part in one call."""

    shards: Shards
    rank: int
    heads: int
    settings: Settings
    group: dist.ProcessGroup | None
    wire: Wire | None

    @property
    def first(self) -> int:
        return self.shards.bounds[self.rank]

    @property
    def kernel(self) -> Backend:
        return self.settings.kernel

    @property
    def exchanges(self) -> bool:
        """Whether any rank shares a segment: then all of them take part in the exchange."""
        return bool(shared_segments(self.shards, self.settings.branches))

    def shared(self) -> list[_Shared]:
        found = []
        for s in shared_segments(self.shards, self.settings.branches):
            if self.rank in s.ranks:
                of = {p: combs(s, s.piece(self.shards, p), self.heads) for p in s.ranks}
                found.append(_Shared(s, of.pop(self.rank), tuple(of.items())))
        return found

    def own_calls(self, batch: int, adjoin: bool) -> Iterator[Call]:
        """The fused calls of all segments that lie inside the shard, positions counted from its first token."""
        first, end = self.shards.shard(self.rank)
        for w, r in self.settings.branches:
            tokens = self.shards.whole_segments(self.rank, w)
            if tokens:
                run = Run(batch, tokens[1] - tokens[0], first_position=tokens[0] - first)
                gapless = adjoin and tokens == (first, end)
                yield from calls(run, self.heads, w, r, padded=False, rows_adjoin=gapless)

    def numbers(self, sets: Sequence[tuple[Comb, ...]], like: Tensor) -> int:
        """Numbers of the keys and values of several sets of combs."""
        return 2 * sum(c.numel(len(like), like.shape[-1]) for s in sets for c in s)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, part: _Part, keep: list[Tensor] | None) -> Tensor:
        out, lse, *gathered = keep or _forward(q, k, v, part)
        if keep:
            keep.clear()
        elif keep is not None:
            keep += [out.detach(), lse, *gathered]  # a tensor of its own: autograd marks the one that is returned
        ctx.save_for_backward(q, k, v, out, lse, *gathered)
        ctx.part = part
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *gathered = ctx.saved_tensors
        part: _Part = ctx.part
        if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
            grad_out = grad_out.contiguous()  # an expanded gradient (of a sum or mean)
        shared = part.shared()
        grads = [torch.zeros(q.shape, dtype=lse.dtype, device=q.device) for _ in range(3)]
        shared_grads = []
        for s, keys, values in zip(shared, gathered[::2], gathered[1::2], strict=True):
            shared_grads += _shared_backward(s, (grad_out, q, keys, values, out, lse), grads, part)
        exchange = _send_grads(k, shared_grads, shared, part) if part.exchanges else None
        for call in part.own_calls(len(q), _adjoin(q, k, v, grad_out)):
            tensors = (grad_out, q, k, v, out, lse)
            for grad, piece in zip(grads, call_backward(call, tensors, part.settings), strict=True):
                call.view(grad).add_(piece)
        if exchange:
            _add_grads(exchange.wait(), grads[1], grads[2], shared, part)
        return *(g.to(q.dtype) for g in grads), None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, part: _Part) -> list[Tensor]:
    """→ merged out (B, n, H, D) and lse (B, n, H), then the keys and the values of each shared segment."""
    shared = part.shared()
    exchange = _send_keys(k, v, shared, part) if part.exchanges else None
    wide = wide_dtype(q.dtype)
    out = torch.zeros(q.shape, dtype=wide, device=q.device)
    lse = out.new_full(q.shape[:3], -math.inf)
    for call in part.own_calls(len(q), _adjoin(q, k, v)):
        o, l = part.kernel.forward(call.view(q), call.view(k), call.view(v), part.settings.scale)
        merge_into(call.view(out), call.view(lse), o, l.to(wide))
    gathered = _receive_keys(exchange.wait(), k, v, shared, part) if exchange else []
    for s, keys, values in zip(shared, gathered[::2], gathered[1::2], strict=True):
        for comb in s.own:
            q_c = comb.view(q, part.first).flatten(1, 2)
            k_c, v_c = (comb.all_tokens(t).flatten(1, 2) for t in (keys, values))
            o, l = part.kernel.forward(q_c, k_c, v_c, part.settings.scale)
            groups = (comb.groups, comb.heads)
            o, l = o.unflatten(1, groups), l.to(wide).unflatten(1, groups)
            merge_into(comb.view(out, part.first), comb.view(lse, part.first), o, l)
    return [out.to(q.dtype), lse, *gathered]


def _adjoin(*tensors: Tensor) -> bool:
    return all(t.stride(0) == t.shape[1] * t.stride(1) for t in tensors)


def _shared_backward(s: _Shared, tensors: Sequence[Tensor], grads: Sequence[Tensor], part: _Part) -> list[Tensor]:
    """Adds to this rank's gradients what its queries in one segment give; → gradients of all the segment's k and v."""
    grad_out, q, keys, values, out, lse = tensors
    grad_keys, grad_values = (torch.zeros_like(t, dtype=lse.dtype) for t in (keys, values))
    for comb in s.own:
        do_c, q_c, out_c, lse_c = (comb.view(t, part.first).flatten(1, 2) for t in (grad_out, q, out, lse))
        k_c, v_c = (comb.all_tokens(t).flatten(1, 2) for t in (keys, values))
        if part.settings.detached:  # P of the merged softmax, but the row sum of this branch's own output
            out_c, _ = part.kernel.forward(q_c, k_c, v_c, part.settings.scale)
        pieces = part.kernel.backward(do_c, q_c, k_c, v_c, out_c, lse_c, part.settings.scale)
        dq, dk, dv = (t.unflatten(1, (comb.groups, comb.heads)) for t in pieces)
        comb.view(grads[0], part.first).add_(dq)
        comb.all_tokens(grad_keys).copy_(dk)  # every group is in one comb only
        comb.all_tokens(grad_values).copy_(dv)
    for comb in s.own:
        comb.view(grads[1], part.first).add_(comb.of_segment(grad_keys))
        comb.view(grads[2], part.first).add_(comb.of_segment(grad_values))
    return [grad_keys, grad_values]


# --- what travels: per shared segment the keys, then the values, comb by comb ---------------------------------------


def _send_keys(k: Tensor, v: Tensor, shared: Sequence[_Shared], part: _Part) -> Exchange:
    outgoing: list[list[Tensor]] = [[] for _ in range(part.shards.ranks)]
    incoming = [0] * part.shards.ranks
    for s in shared:
        mine = [comb.view(t, part.first) for t in (k, v) for comb in s.own]
        for peer, theirs in s.others:
            outgoing[peer] += mine
            incoming[peer] += part.numbers([theirs], k)
    return Exchange(outgoing, incoming, k, part.group, part.wire)


def _receive_keys(received: list[Tensor], k: Tensor, v: Tensor, shared: Sequence[_Shared], part: _Part) -> list[Tensor]:
    """→ per shared segment its keys and its values, each (B, groups, g, L, D)."""
    at = [0] * len(received)
    gathered = []
    for s in shared:
        r, tokens = s.segment.ratio, s.segment.end - s.segment.start
        g = -(-part.heads // r)
        size = (len(k), min(r, -(-part.heads // g)), g, -(-tokens // r), k.shape[-1])
        for t in (k, v):
            whole = k.new_empty(size)
            for comb in s.own:
                comb.of_segment(whole).copy_(comb.view(t, part.first))
            for peer, theirs in s.others:
                for comb in theirs:
                    at[peer] += _take(received[peer], at[peer], comb.of_segment(whole))
            gathered.append(whole)
    return gathered


def _take(flat: Tensor, at: int, into: Tensor) -> int:
    into.copy_(flat[at : at + into.numel()].view(into.shape))
    return into.numel()


def _send_grads(k: Tensor, shared_grads: Sequence[Tensor], shared: Sequence[_Shared], part: _Part) -> Exchange:
    """Back the way they came: to each rank the gradients of its keys and values."""
    outgoing: list[list[Tensor]] = [[] for _ in range(part.shards.ranks)]
    incoming = [0] * part.shards.ranks
    for i, s in enumerate(shared):
        for peer, theirs in s.others:
            outgoing[peer] += [comb.of_segment(t) for t in shared_grads[2 * i : 2 * i + 2] for comb in theirs]
            incoming[peer] += part.numbers([s.own], k)
    return Exchange(outgoing, incoming, k, part.group, part.wire)


def _add_grads(received: list[Tensor], grad_k: Tensor, grad_v: Tensor, shared: Sequence[_Shared], part: _Part) -> None:
    at = [0] * len(received)
    for s in shared:
        for peer, _ in s.others:
            for grad in (grad_k, grad_v):
                for comb in s.own:
                    view = comb.view(grad, part.first)
                    n = view.numel()
                    view.add_(received[peer][at[peer] : at[peer] + n].view(view.shape))
                    at[peer] += n
