"""Triton kernels of one branch of dilated attention, forward and backward: one launch, no copy.

Unlike PyTorch's fused kernels, a block derives its (segment, head) and the positions of its tokens (`_place`). So all
offset groups and segments, whole and ragged, are one grid. The branches are one softmax (see `dilated`): the forward
starts from the running (out, lse) of the branches before and continues with this branch's keys. There is no separate
branch output, and no merge afterwards.

The backward is flash-attention's (Dao 2023, arXiv 2307.08691, algorithm 2) with the merged (out, lse): one launch over
key blocks for dk and dv, one over query blocks for dq. P is computed twice, no atomics are needed, and every run gives
the same bits. Gradients are added to float32 buffers; each (token, head) has one writer.

A head dim of 24 is loaded unpadded; in registers a tile has 32 columns, the last 8 zero. Exponentials are exp2 with
log2(e) in the scale; sums and log-sum-exps are float32.

The kernels run on CUDA, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1). The plain twin is `routes` with the
`plain` back end. `triton_branch` launches these kernels.

Arguments:
- OUT …: pointers; LSE2: the log-sum-exp in base 2.
- x_row, x_n, x_h: strides of batch, position and head of x.
- others: number of tokens that a block steps through; −1: as many as its offset group has.
- B sequences, N tokens, H heads, D head dim, w segment length, r dilated ratio.
- g = ceil(H / r) heads of an offset group, L tokens of one offset group in one segment.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(pid, N, w, r, H, g, BLOCKS):
    """→ block within the offset group, row of the batch, head, first position, L of program `pid`."""
    block = pid % BLOCKS
    index = pid // BLOCKS
    head = index % H
    index = index // H
    segments = tl.cdiv(N, w)
    start = (index % segments) * w
    offset = head // g
    tokens = tl.minimum(w, N - start) - offset
    L = tl.cdiv(tl.maximum(tokens, 0), r)
    return block, (index // segments).to(tl.int64), head.to(tl.int64), (start + offset).to(tl.int64), L


# --- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(n_step, columns: tl.constexpr, D_TILE: tl.constexpr):
    """Offsets of a (columns, D_TILE) tile from its first token: int32, equal for every step of a loop."""
    return tl.arange(0, columns)[:, None] * n_step + tl.arange(0, D_TILE)[None, :]


@triton.jit
def _attend(
    q, out, m, l, K, V, k_step, v_step, start, end, L, scale,
    columns: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys `start` … `end`; K, V point to the first; `TAIL`: fewer than `columns` keys."""
    k_tile = _tile(k_step, columns, D_TILE)
    v_tile = _tile(v_step, columns, D_TILE)
    d = tl.arange(0, D_TILE)[None, :]
    for n in range(start, end, columns):
        valid = d < D
        if TAIL:
            valid = valid & (n + tl.arange(0, columns) < L)[:, None]
        k = tl.load(K + k_tile, mask=valid, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if TAIL:
            s = tl.where((n + tl.arange(0, columns) < L)[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)  # scale > 0: one product per row instead of one per pair
        p = tl.exp2(s * scale - m_new[:, None])
        fading = tl.exp2(m - m_new)
        l = l * fading + tl.sum(p, 1)
        v = tl.load(V + v_tile, mask=valid, other=0.0)
        out = tl.dot(p.to(v.dtype), v, out * fading[:, None], input_precision=PRECISION)
        m = m_new
        K += columns * k_step
        V += columns * v_step
    return out, m, l, K, V


_SIZES = ["N", "w", "r", "H", "g", "BLOCKS", "others", "group"]  # one compilation for all of their values


@triton.jit(do_not_specialize=_SIZES)
def forward(
    Q, K, V, OUT, LSE, N, w, r, H, g, BLOCKS, others, group, scale,
    q_row, k_row, v_row, out_row, lse_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    out_n: tl.constexpr, out_h: tl.constexpr, lse_n: tl.constexpr, lse_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    FIRST: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows >= L:
        return
    i = block * rows + tl.arange(0, rows)
    own = i < L
    d = tl.arange(0, D_TILE)
    valid = own[:, None] & (d < D)[None, :]
    position = first + i.to(tl.int64) * r
    q = tl.load(Q + row * q_row + head * q_h + position[:, None] * q_n + d[None, :], mask=valid, other=0.0)
    out_rows = OUT + row * out_row + head * out_h + position[:, None] * out_n + d[None, :]
    lse_rows = LSE + row * lse_row + head * lse_h + position * lse_n
    if FIRST:
        m = tl.full([rows], float("-inf"), tl.float32)
        l = tl.zeros([rows], tl.float32)
        out = tl.zeros([rows, D_TILE], tl.float32)
    else:  # the branches before, as one key with their weight
        m = tl.load(lse_rows, mask=own, other=float("-inf")) * LOG2_E
        l = tl.where(m == float("-inf"), 0.0, 1.0)
        out = tl.load(out_rows, mask=valid, other=0.0)
    if PADDED:  # zero keys that pad the group: logit 0, value 0
        zeros = (group - L).to(tl.float32)
        m_new = tl.where(zeros > 0, tl.maximum(m, 0.0), m)
        fading = tl.where(m == float("-inf"), 0.0, tl.exp2(m - m_new))
        l = l * fading + tl.where(zeros > 0, zeros * tl.exp2(0.0 - m_new), 0.0)
        out = out * fading[:, None]
        m = m_new
    K += row * k_row + head * k_h + first * k_n
    V += row * v_row + head * v_h + first * v_n
    keys = tl.where(others < 0, L, others)
    whole = keys // columns * columns
    out, m, l, K, V = _attend(
        q, out, m, l, K, V, r * k_n, r * v_n, 0, whole, keys, scale, columns, D, D_TILE, False, PRECISION
    )
    out, m, l, K, V = _attend(
        q, out, m, l, K, V, r * k_n, r * v_n, whole, keys, keys, scale, columns, D, D_TILE, True, PRECISION
    )
    tl.store(out_rows, out / l[:, None], mask=valid)
    tl.store(lse_rows, (m + tl.log2(l)) * LN_2, mask=own)


# --- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def row_sums(GRAD, OUT, SUMS, items, N, H, grad_row, grad_n, grad_h, out_row, out_n, out_h,
              D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr):  # fmt: skip
    """Σ_d grad_out · out per (sequence, token, head)."""
    i = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    d = tl.arange(0, D_TILE)
    valid = (i < items)[:, None] & (d < D)[None, :]
    head = i % H
    n = i // H % N
    row = i // H // N
    grad = tl.load(GRAD + (row * grad_row + n * grad_n + head * grad_h)[:, None] + d[None, :], mask=valid, other=0.0)
    out = tl.load(OUT + (row * out_row + n * out_n + head * out_h)[:, None] + d[None, :], mask=valid, other=0.0)
    tl.store(SUMS + i, tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1), mask=i < items)


@triton.jit
def _add(rows, x, valid, FIRST: tl.constexpr):
    if not FIRST:
        x += tl.load(rows, mask=valid, other=0.0)
    tl.store(rows, x, mask=valid)


@triton.jit
def _keys_step(
    k, v, dk, dv, Q, GRAD, LSE2, SUMS, q_step, grad_step, lse2_step, sums_step, start, end, L, scale_log2,
    columns: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    q_tile = _tile(q_step, columns, D_TILE)
    grad_tile = _tile(grad_step, columns, D_TILE)
    lse2_tile = tl.arange(0, columns) * lse2_step
    sums_tile = tl.arange(0, columns) * sums_step
    d = tl.arange(0, D_TILE)[None, :]
    for n in range(start, end, columns):
        valid = d < D
        if TAIL:
            own = n + tl.arange(0, columns) < L
            valid = valid & own[:, None]
            lse2 = tl.load(LSE2 + lse2_tile, mask=own, other=float("inf"))  # no query: no probability
            sums = tl.load(SUMS + sums_tile, mask=own, other=0.0)
        else:
            lse2 = tl.load(LSE2 + lse2_tile)
            sums = tl.load(SUMS + sums_tile)
        q = tl.load(Q + q_tile, mask=valid, other=0.0)
        grad = tl.load(GRAD + grad_tile, mask=valid, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 - lse2[None, :])  # keys × queries
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        ds = p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - sums[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        Q += columns * q_step
        GRAD += columns * grad_step
        LSE2 += columns * lse2_step
        SUMS += columns * sums_step
    return dk, dv, Q, GRAD, LSE2, SUMS


@triton.jit(do_not_specialize=_SIZES)
def keys_backward(
    Q, K, V, GRAD, LSE2, SUMS, DK, DV, N, w, r, H, g, BLOCKS, others, scale, scale_log2,
    q_row, k_row, v_row, grad_row, lse2_row, sums_row, dk_row, dv_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    grad_n: tl.constexpr, grad_h: tl.constexpr, lse2_n: tl.constexpr, lse2_h: tl.constexpr,
    sums_n: tl.constexpr, sums_h: tl.constexpr, dk_n: tl.constexpr, dk_h: tl.constexpr,
    dv_n: tl.constexpr, dv_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of `rows` keys; steps through the queries."""
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows >= L:
        return
    j = block * rows + tl.arange(0, rows)
    d = tl.arange(0, D_TILE)
    valid = (j < L)[:, None] & (d < D)[None, :]
    position = first + j.to(tl.int64) * r
    k = tl.load(K + row * k_row + head * k_h + position[:, None] * k_n + d[None, :], mask=valid, other=0.0)
    v = tl.load(V + row * v_row + head * v_h + position[:, None] * v_n + d[None, :], mask=valid, other=0.0)
    dk = tl.zeros([rows, D_TILE], tl.float32)
    dv = tl.zeros([rows, D_TILE], tl.float32)
    Q += row * q_row + head * q_h + first * q_n
    GRAD += row * grad_row + head * grad_h + first * grad_n
    LSE2 += row * lse2_row + head * lse2_h + first * lse2_n
    SUMS += row * sums_row + head * sums_h + first * sums_n
    queries = tl.where(others < 0, L, others)
    whole = queries // columns * columns
    dk, dv, Q, GRAD, LSE2, SUMS = _keys_step(
        k, v, dk, dv, Q, GRAD, LSE2, SUMS, r * q_n, r * grad_n, r * lse2_n, r * sums_n,
        0, whole, queries, scale_log2, columns, D, D_TILE, False, PRECISION,
    )  # fmt: skip
    dk, dv, Q, GRAD, LSE2, SUMS = _keys_step(
        k, v, dk, dv, Q, GRAD, LSE2, SUMS, r * q_n, r * grad_n, r * lse2_n, r * sums_n,
        whole, queries, queries, scale_log2, columns, D, D_TILE, True, PRECISION,
    )  # fmt: skip
    _add(DK + row * dk_row + head * dk_h + position[:, None] * dk_n + d[None, :], dk * scale, valid, FIRST)
    _add(DV + row * dv_row + head * dv_h + position[:, None] * dv_n + d[None, :], dv, valid, FIRST)


@triton.jit
def _queries_step(
    q, grad, lse2, sums, dq, K, V, k_step, v_step, start, end, L, scale_log2,
    columns: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k_tile = _tile(k_step, columns, D_TILE)
    v_tile = _tile(v_step, columns, D_TILE)
    d = tl.arange(0, D_TILE)[None, :]
    for n in range(start, end, columns):
        valid = d < D
        if TAIL:
            valid = valid & (n + tl.arange(0, columns) < L)[:, None]
        k = tl.load(K + k_tile, mask=valid, other=0.0)
        v = tl.load(V + v_tile, mask=valid, other=0.0)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2 - lse2[:, None])
        if TAIL:  # exp2(−lse) of a missing key may be infinite
            p = tl.where((n + tl.arange(0, columns) < L)[None, :], p, 0.0)
        ds = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - sums[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        K += columns * k_step
        V += columns * v_step
    return dq, K, V


@triton.jit(do_not_specialize=_SIZES)
def queries_backward(
    Q, K, V, GRAD, LSE2, SUMS, DQ, N, w, r, H, g, BLOCKS, others, scale, scale_log2,
    q_row, k_row, v_row, grad_row, lse2_row, sums_row, dq_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    grad_n: tl.constexpr, grad_h: tl.constexpr, lse2_n: tl.constexpr, lse2_h: tl.constexpr,
    sums_n: tl.constexpr, sums_h: tl.constexpr, dq_n: tl.constexpr, dq_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of `rows` queries; steps through the keys."""
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows >= L:
        return
    i = block * rows + tl.arange(0, rows)
    own = i < L
    d = tl.arange(0, D_TILE)
    valid = own[:, None] & (d < D)[None, :]
    position = first + i.to(tl.int64) * r
    q = tl.load(Q + row * q_row + head * q_h + position[:, None] * q_n + d[None, :], mask=valid, other=0.0)
    grad_rows = GRAD + row * grad_row + head * grad_h + position[:, None] * grad_n + d[None, :]
    grad = tl.load(grad_rows, mask=valid, other=0.0)
    lse2 = tl.load(LSE2 + row * lse2_row + head * lse2_h + position * lse2_n, mask=own, other=0.0)
    sums = tl.load(SUMS + row * sums_row + head * sums_h + position * sums_n, mask=own, other=0.0)
    dq = tl.zeros([rows, D_TILE], tl.float32)
    K += row * k_row + head * k_h + first * k_n
    V += row * v_row + head * v_h + first * v_n
    keys = tl.where(others < 0, L, others)
    whole = keys // columns * columns
    dq, K, V = _queries_step(
        q, grad, lse2, sums, dq, K, V, r * k_n, r * v_n,
        0, whole, keys, scale_log2, columns, D, D_TILE, False, PRECISION,
    )  # fmt: skip
    dq, K, V = _queries_step(
        q, grad, lse2, sums, dq, K, V, r * k_n, r * v_n,
        whole, keys, keys, scale_log2, columns, D, D_TILE, True, PRECISION,
    )  # fmt: skip
    _add(DQ + row * dq_row + head * dq_h + position[:, None] * dq_n + d[None, :], dq * scale, valid, FIRST)
