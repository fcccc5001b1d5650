"""Triton kernels of dilated attention on padded operands: the idle columns of a tile do elementwise arithmetic.

A head dim of 24 takes 32 columns in the matrix units. These kernels fill the other eight, so that the products include
the sums that `triton_kernels` computes per pair of query and key (c = scale · log2 e, lse in base 2):

    keys        k' = [k | 1, 1, 1, 0 …]                 values    v' = [v | 1, 1, 1, 0 …]
    queries     q' = [q | −lse / c in three parts, 0 …]  gradient  g' = [g | −Σ_d g · out in three parts, 0 …]

    backward    p = exp2(c · q'·k')    dv += p · g'    dk += (p · g'·v') · q'    dq += (p · g'·v') · k'
    forward     p = exp2(c · q·k)      out += p · v',  whose column D is the denominator of the softmax

Three parts of 8 bits each hold a float32 to 2⁻²⁴. A missing token is a row of zeros: its p is multiplied by a zero row
of v' or g' and adds nothing, so there is no masked last step.

Forward without a running maximum: |q·k| ≤ |q| |k| (Cauchy–Schwarz). The bound is c times the largest |q| of a block
and the largest |k| of the head. Up to `FREE_LOGITS`, exp2 can neither overflow the sums nor lose the largest term.
Any other block uses the online softmax, in the same kernel, and gives the exact result for any input.

The plain twins are the kernels of `triton_kernels`, where the arguments are explained. `padded_branch` launches these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longvit.attention.triton_kernels import _SIZES, LN_2, LOG2_E, _add, _place, _tile

FREE_LOGITS = tl.constexpr(96.0)  # in base 2
FREE_VALUES = tl.constexpr(1024.0)  # 2^10 · 2^96 · 2^20 keys < the largest float32


# --- operands -------------------------------------------------------------------------------------------------------


@triton.jit
def _rows_of(X, row, n, h, d, valid, x_row, x_n, x_h):
    return tl.load(X + row * x_row + n * x_n + h * x_h + d, mask=valid, other=0.0)


@triton.jit
def _with_ones(x, d, D: tl.constexpr):
    return tl.where((d >= D) & (d < D + 3), 1.0, x.to(tl.float32)).to(x.dtype)


@triton.jit
def _with_parts(x, value, d, D: tl.constexpr):
    """(T, H, D_TILE) with −`value` (T, H, 1), float32, in columns D … D + 2 as three numbers of the dtype of x."""
    high = (-value).to(x.dtype)
    residue = -value - high.to(tl.float32)
    middle = residue.to(x.dtype)
    low = (residue - middle.to(tl.float32)).to(x.dtype)
    return tl.where(d < D, x, tl.where(d == D, high, tl.where(d == D + 1, middle, tl.where(d == D + 2, low, 0.0))))


@triton.jit
def _place_rows(N, H, D: tl.constexpr, D_TILE: tl.constexpr, H_TILE: tl.constexpr, tokens: tl.constexpr):
    """→ row of the batch, (T, 1, 1) positions, heads, columns, masks of elements and of rows, element offsets.

    The offsets are those in a contiguous (B, N, H, D_TILE)."""
    blocks = tl.cdiv(N, tokens)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks).to(tl.int64) * tokens + tl.arange(0, tokens)[:, None, None]
    h = tl.arange(0, H_TILE)[None, :, None]
    d = tl.arange(0, D_TILE)[None, None, :]
    own = (n < N) & (h < H)
    return row, n, h, d, own & (d < D), own, ((row * N + n) * H + h) * D_TILE + d


@triton.jit
def pad_keys(
    K, V, KP, VP, LARGEST, N, H, k_row, k_n, k_h, v_row, v_n, v_h,
    D: tl.constexpr, D_TILE: tl.constexpr, H_TILE: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    """Writes k' and v', and per program and head the largest |k|² and the largest |v|: (programs, H, 2)."""
    row, n, h, d, valid, own, at = _place_rows(N, H, D, D_TILE, H_TILE, tokens)
    own = own & (d < D_TILE)
    k = _rows_of(K, row, n, h, d, valid, k_row, k_n, k_h)
    tl.store(KP + at, _with_ones(k, d, D), mask=own)
    v = _rows_of(V, row, n, h, d, valid, v_row, v_n, v_h)
    tl.store(VP + at, _with_ones(v, d, D), mask=own)
    k = k.to(tl.float32)
    heads = tl.arange(0, H_TILE)
    LARGEST += (tl.program_id(0).to(tl.int64) * H + heads) * 2
    tl.store(LARGEST, tl.max(tl.sum(k * k, 2), 0), mask=heads < H)
    tl.store(LARGEST + 1, tl.max(tl.max(tl.abs(v.to(tl.float32)), 2), 0), mask=heads < H)


@triton.jit
def pad_queries(
    Q, GRAD, OUT, LSE, QP, GRADP, N, H, per_lse,
    q_row, q_n, q_h, grad_row, grad_n, grad_h, out_row, out_n, out_h, lse_row, lse_n, lse_h,
    D: tl.constexpr, D_TILE: tl.constexpr, H_TILE: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    """Writes q' and g'. A log-sum-exp of ±inf is replaced by one so large that the probabilities are 0."""
    row, n, h, d, valid, own, at = _place_rows(N, H, D, D_TILE, H_TILE, tokens)
    lse = tl.load(LSE + row * lse_row + n * lse_n + h * lse_h, mask=own, other=0.0)
    lse = tl.where(tl.abs(lse) < float("inf"), lse * per_lse, 1e30)
    grad = _rows_of(GRAD, row, n, h, d, valid, grad_row, grad_n, grad_h)
    out = _rows_of(OUT, row, n, h, d, valid, out_row, out_n, out_h)
    sums = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 2)[:, :, None]
    own = own & (d < D_TILE)
    tl.store(GRADP + at, _with_parts(grad, sums, d, D), mask=own)
    tl.store(QP + at, _with_parts(_rows_of(Q, row, n, h, d, valid, q_row, q_n, q_h), lse, d, D), mask=own)


# --- forward --------------------------------------------------------------------------------------------------------


_SPECIAL = "ex2.approx.ftz.f32 ${0}, ${1};"
_POLYNOMIAL = """{{
    .reg .f32 x, t, f; .reg .b32 n, y;
    max.f32 x, ${1}, 0fC2FA0000;
    add.rn.f32 t, x, 0f4B400000;
    sub.rn.f32 f, t, 0f4B400000;
    sub.rn.f32 f, x, f;
    fma.rn.f32 x, f, 0f3D61FB53, 0f3E786EE6;
    fma.rn.f32 x, x, f, 0f3F31798D;
    fma.rn.f32 x, x, f, 0f3F7FFB4A;
    mov.b32 n, t; mov.b32 y, x;
    shl.b32 n, n, 23;
    add.s32 y, y, n;
    mov.b32 ${0}, y;
}}"""


def _mix(kinds: str) -> str:
    """PTX of 2^x for four numbers: `s` on the special function unit, `p` as a polynomial.

    The polynomial: n = round(x), of x ≥ −125, 2^(x − n) of degree 3 (error at most 7.5e-5, a fiftieth of rounding to
    bfloat16), n into the exponent.
    """
    code = {"s": _SPECIAL, "p": _POLYNOMIAL}
    return "\n".join(code[kind].format(i, i + 4) for i, kind in enumerate(kinds))


_QUARTER, _HALF = tl.constexpr(_mix("sssp")), tl.constexpr(_mix("spsp"))


@triton.jit
def _probabilities(s, scale_log2, FOLDED: tl.constexpr, POLYNOMIALS: tl.constexpr):
    """exp2(c · s); `POLYNOMIALS`: 0, 1 or 2 of four values by polynomial (0 in the interpreter)."""
    if not FOLDED:
        s = s * scale_log2
    if POLYNOMIALS == 1:
        return tl.inline_asm_elementwise(_QUARTER, "=f,=f,=f,=f,f,f,f,f", [s], dtype=tl.float32, is_pure=True, pack=4)
    if POLYNOMIALS == 2:
        return tl.inline_asm_elementwise(_HALF, "=f,=f,=f,=f,f,f,f,f", [s], dtype=tl.float32, is_pure=True, pack=4)
    return tl.exp2(s)


@triton.jit
def _online(
    q, out, m, K, V, k_step, v_step, keys, scale_log2,
    columns: tl.constexpr, D_TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The online softmax over all keys; out holds its denominator in column D."""
    k_tile = _tile(k_step, columns, D_TILE)
    v_tile = _tile(v_step, columns, D_TILE)
    for n in range(0, keys, columns):
        own = n + tl.arange(0, columns) < keys
        k = tl.load(K + k_tile, mask=own[:, None], other=0.0)
        v = tl.load(V + v_tile, mask=own[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        s = tl.where(own[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        out = tl.dot(p.to(v.dtype), v, out * tl.exp2(m - m_new)[:, None], input_precision=PRECISION)
        m = m_new
        K += columns * k_step
        V += columns * v_step
    return out, m


@triton.jit
def _begin(OUT, LSE, i, r, L, zeros, out_n: tl.constexpr, lse_n: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr,
           FIRST: tl.constexpr, PADDED: tl.constexpr):  # fmt: skip
    """→ the state before this branch: out with its denominator in column D, m, of tokens i of an offset group.

    The denominator is 1, or 0 (and m = −inf) where no key has contributed. `zeros`: number of padding zero keys.
    """
    d = tl.arange(0, D_TILE)[None, :]
    own = i < L
    position = i.to(tl.int64) * r
    if FIRST:
        m = tl.full(i.shape, float("-inf"), tl.float32)
        out = tl.zeros([i.shape[0], D_TILE], tl.float32)
    else:
        m = tl.load(LSE + position * lse_n, mask=own, other=float("-inf")) * LOG2_E
        out = tl.load(OUT + position[:, None] * out_n + d, mask=own[:, None] & (d < D), other=0.0)
        out = tl.where(d == D, tl.where(m == float("-inf"), 0.0, 1.0)[:, None], out)
    if PADDED:
        m_new = tl.where(zeros > 0, tl.maximum(m, 0.0), m)
        fading = tl.where(m == float("-inf"), 0.0, tl.exp2(m - m_new))
        more = tl.where(zeros > 0, zeros * tl.exp2(0.0 - m_new), 0.0)
        out = out * fading[:, None] + tl.where(d == D, more[:, None], 0.0)
        m = m_new
    return out, m


@triton.jit
def _finish(OUT, LSE, out, m, i, r, L, out_n: tl.constexpr, lse_n: tl.constexpr, D: tl.constexpr,
            D_TILE: tl.constexpr):  # fmt: skip
    d = tl.arange(0, D_TILE)[None, :]
    own = i < L
    position = i.to(tl.int64) * r
    l = tl.sum(tl.where(d == D, out, 0.0), 1)
    tl.store(OUT + position[:, None] * out_n + d, out / l[:, None], mask=own[:, None] & (d < D))
    tl.store(LSE + position * lse_n, (m + tl.log2(l)) * LN_2, mask=own)


@triton.jit
def _largest(q, m):
    """→ the largest |q|² of a block and the largest |m| that is not infinite."""
    q = q.to(tl.float32)
    return tl.max(tl.sum(q * q, 1), 0), tl.max(tl.where(m == float("-inf"), 0.0, tl.abs(m)), 0)


@triton.jit(do_not_specialize=_SIZES)
def forward(
    Q, K, V, LARGEST, OUT, LSE, N, w, r, H, g, BLOCKS, others, group, scale_log2,
    q_row, k_row, v_row, largest_row, out_row, lse_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    largest_n: tl.constexpr, largest_h: tl.constexpr,
    out_n: tl.constexpr, out_h: tl.constexpr, lse_n: tl.constexpr, lse_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, TILES: tl.constexpr,
    FIRST: tl.constexpr, PADDED: tl.constexpr, FOLDED: tl.constexpr, PRECISION: tl.constexpr,
    POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """Continues the softmax (OUT, LSE) with the keys of one branch, for `TILES` tiles of `rows` queries."""
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows * TILES >= L:
        return
    d = tl.arange(0, D_TILE)[None, :]
    i = block * rows * TILES + tl.arange(0, rows)
    Q += row * q_row + head * q_h + first * q_n
    K += row * k_row + head * k_h + first * k_n
    V += row * v_row + head * v_h + first * v_n
    OUT += row * out_row + head * out_h + first * out_n
    LSE += row * lse_row + head * lse_h + first * lse_n
    LARGEST += row * largest_row + head * largest_h + first * largest_n
    keys = tl.where(others < 0, L, others)
    zeros = (group - L).to(tl.float32)
    q = tl.load(Q + (i.to(tl.int64) * r)[:, None] * q_n + d, mask=(i < L)[:, None] & (d < D), other=0.0)
    out, m = _begin(OUT, LSE, i, r, L, zeros, out_n, lse_n, D, D_TILE, FIRST, PADDED)
    most_q, most_m = _largest(q, m)
    if TILES == 2:
        j = i + rows
        q2 = tl.load(Q + (j.to(tl.int64) * r)[:, None] * q_n + d, mask=(j < L)[:, None] & (d < D), other=0.0)
        out2, m2 = _begin(OUT, LSE, j, r, L, zeros, out_n, lse_n, D, D_TILE, FIRST, PADDED)
        most_q2, most_m2 = _largest(q2, m2)
        most_q = tl.maximum(most_q, most_q2)
        most_m = tl.maximum(most_m, most_m2)
    bound = tl.sqrt(most_q * tl.load(LARGEST)) * scale_log2
    if (bound <= FREE_LOGITS) & (most_m <= FREE_LOGITS + 20.0) & (tl.load(LARGEST + 1) <= FREE_VALUES):
        k_tile = _tile(r * k_n, columns, D_TILE)
        v_tile = _tile(r * v_n, columns, D_TILE)
        out = out * tl.where(m == float("-inf"), 0.0, tl.exp2(m))[:, None]
        m = tl.zeros([rows], tl.float32)
        if TILES == 2:
            out2 = out2 * tl.where(m2 == float("-inf"), 0.0, tl.exp2(m2))[:, None]
            m2 = tl.zeros([rows], tl.float32)
        for n in range(0, keys, columns):
            own = (n + tl.arange(0, columns) < keys)[:, None]
            k = tl.load(K + k_tile, mask=own, other=0.0)
            v = tl.load(V + v_tile, mask=own, other=0.0)
            p = _probabilities(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale_log2, FOLDED, POLYNOMIALS)
            out = tl.dot(p.to(v.dtype), v, out, input_precision=PRECISION)
            if TILES == 2:
                p2 = _probabilities(tl.dot(q2, tl.trans(k), input_precision=PRECISION), scale_log2, FOLDED, POLYNOMIALS)
                out2 = tl.dot(p2.to(v.dtype), v, out2, input_precision=PRECISION)
            K += columns * r * k_n
            V += columns * r * v_n
    else:
        out, m = _online(q, out, m, K, V, r * k_n, r * v_n, keys, scale_log2, columns, D_TILE, PRECISION)
        if TILES == 2:
            out2, m2 = _online(q2, out2, m2, K, V, r * k_n, r * v_n, keys, scale_log2, columns, D_TILE, PRECISION)
    _finish(OUT, LSE, out, m, i, r, L, out_n, lse_n, D, D_TILE)
    if TILES == 2:
        _finish(OUT, LSE, out2, m2, j, r, L, out_n, lse_n, D, D_TILE)


# --- backward -------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def keys_backward(
    Q, K, V, GRAD, DK, DV, N, w, r, H, g, BLOCKS, others, scale, scale_log2,
    q_row, k_row, v_row, grad_row, dk_row, dv_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    grad_n: tl.constexpr, grad_h: tl.constexpr, dk_n: tl.constexpr, dk_h: tl.constexpr,
    dv_n: tl.constexpr, dv_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    FIRST: tl.constexpr, FOLDED: tl.constexpr, PRECISION: tl.constexpr,
    POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """dk and dv of `rows` keys; steps through the queries."""
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows >= L:
        return
    j = block * rows + tl.arange(0, rows)
    d = tl.arange(0, D_TILE)[None, :]
    own = (j < L)[:, None]
    position = (first + j.to(tl.int64) * r)[:, None]
    k = tl.load(K + row * k_row + head * k_h + position * k_n + d, mask=own, other=0.0)
    v = tl.load(V + row * v_row + head * v_h + position * v_n + d, mask=own, other=0.0)
    dk = tl.zeros([rows, D_TILE], tl.float32)
    dv = tl.zeros([rows, D_TILE], tl.float32)
    Q += row * q_row + head * q_h + first * q_n
    GRAD += row * grad_row + head * grad_h + first * grad_n
    q_tile = _tile(r * q_n, columns, D_TILE)
    grad_tile = _tile(r * grad_n, columns, D_TILE)
    queries = tl.where(others < 0, L, others)
    for n in range(0, queries, columns):
        valid_queries = (n + tl.arange(0, columns) < queries)[:, None]
        q = tl.load(Q + q_tile, mask=valid_queries, other=0.0)
        grad = tl.load(GRAD + grad_tile, mask=valid_queries, other=0.0)
        p = _probabilities(
            tl.dot(k, tl.trans(q), input_precision=PRECISION), scale_log2, FOLDED, POLYNOMIALS
        )  # keys × queries
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        ds = p * tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        Q += columns * r * q_n
        GRAD += columns * r * grad_n
    valid = own & (d < D)
    _add(DK + row * dk_row + head * dk_h + position * dk_n + d, dk * scale, valid, FIRST)
    _add(DV + row * dv_row + head * dv_h + position * dv_n + d, dv, valid, FIRST)


@triton.jit
def _queries(Q, GRAD, i, r, L, q_n: tl.constexpr, grad_n: tl.constexpr, D_TILE: tl.constexpr):
    position = (i.to(tl.int64) * r)[:, None]
    d = tl.arange(0, D_TILE)[None, :]
    own = (i < L)[:, None]
    return tl.load(Q + position * q_n + d, mask=own, other=0.0), tl.load(
        GRAD + position * grad_n + d, mask=own, other=0.0
    )


@triton.jit(do_not_specialize=_SIZES)
def queries_backward(
    Q, K, V, GRAD, DQ, N, w, r, H, g, BLOCKS, others, scale, scale_log2,
    q_row, k_row, v_row, grad_row, dq_row,
    q_n: tl.constexpr, q_h: tl.constexpr, k_n: tl.constexpr, k_h: tl.constexpr, v_n: tl.constexpr, v_h: tl.constexpr,
    grad_n: tl.constexpr, grad_h: tl.constexpr, dq_n: tl.constexpr, dq_h: tl.constexpr,
    D: tl.constexpr, D_TILE: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, TILES: tl.constexpr,
    FIRST: tl.constexpr, FOLDED: tl.constexpr, PRECISION: tl.constexpr,
    POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """dq of `TILES` tiles of `rows` queries; steps through the keys."""
    block, row, head, first, L = _place(tl.program_id(0), N, w, r, H, g, BLOCKS)
    if block * rows * TILES >= L:
        return
    d = tl.arange(0, D_TILE)[None, :]
    i = block * rows * TILES + tl.arange(0, rows)
    Q += row * q_row + head * q_h + first * q_n
    GRAD += row * grad_row + head * grad_h + first * grad_n
    K += row * k_row + head * k_h + first * k_n
    V += row * v_row + head * v_h + first * v_n
    DQ += row * dq_row + head * dq_h + first * dq_n
    q, grad = _queries(Q, GRAD, i, r, L, q_n, grad_n, D_TILE)
    dq = tl.zeros([rows, D_TILE], tl.float32)
    if TILES == 2:
        j = i + rows
        q2, grad2 = _queries(Q, GRAD, j, r, L, q_n, grad_n, D_TILE)
        dq2 = tl.zeros([rows, D_TILE], tl.float32)
    k_tile = _tile(r * k_n, columns, D_TILE)
    v_tile = _tile(r * v_n, columns, D_TILE)
    keys = tl.where(others < 0, L, others)
    for n in range(0, keys, columns):
        own = (n + tl.arange(0, columns) < keys)[:, None]
        k = tl.load(K + k_tile, mask=own, other=0.0)
        v = tl.load(V + v_tile, mask=own, other=0.0)
        p = _probabilities(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale_log2, FOLDED, POLYNOMIALS)
        ds = p * tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        if TILES == 2:
            p2 = _probabilities(tl.dot(q2, tl.trans(k), input_precision=PRECISION), scale_log2, FOLDED, POLYNOMIALS)
            ds2 = p2 * tl.dot(grad2, tl.trans(v), input_precision=PRECISION)
            dq2 = tl.dot(ds2.to(k.dtype), k, dq2, input_precision=PRECISION)
        K += columns * r * k_n
        V += columns * r * v_n
    _add(DQ + (i.to(tl.int64) * r)[:, None] * dq_n + d, dq * scale, (i < L)[:, None] & (d < D), FIRST)
    if TILES == 2:
        _add(DQ + (j.to(tl.int64) * r)[:, None] * dq_n + d, dq2 * scale, (j < L)[:, None] & (d < D), FIRST)
