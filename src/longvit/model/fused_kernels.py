"""Triton kernels of the fused norms.

A program holds whole rows in registers. It takes the statistics there in two passes (mean, then deviations), as exact
as float32 allows for any mean. The backward takes them again instead of reading them. Arithmetic is float32 for every
dtype of the tensors. A row of C elements is one piece of BLOCK elements, a power of two, or three of them (`K`). So
384 = 3 · 128 and 1,536 = 3 · 512 leave no lane idle. The three pieces are added up before lanes and warps are.

GELU is exact, x Φ(x). For float32 Φ comes from the library's erf. For 16-bit tensors it is Abramowitz and Stegun's
7.1.26, with an error of at most 1.5e-7 (the library's rounding of 1 + erf is 0.6e-7). It takes half the instructions,
and its exponential is the one in the derivative.

Row sums (gradients of weights and biases) are taken without atomics. Program p adds tiles p, p + P, p + 2P … to row p
of a (P, C) buffer, which the caller adds up. With the same P every run gives the same bits.

`fused_norms` launches these kernels and holds their plain twins.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["rows", "programs"]  # one compilation for all of their values


@triton.jit
def _gelu(x, EXACT: tl.constexpr):
    """→ GELU(x) and its derivative."""
    bell = tl.exp2(x * x * -0.7213475204444817)  # exp(−x² / 2)
    if EXACT:
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        y = x * below
    else:
        size = tl.abs(x)
        t = tl.rsqrt(1.0 + 0.23164188870285 * size)
        t *= t  # one instruction of the special function unit; a division takes six more
        beyond = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
        beyond *= bell  # Φ(−|x|)
        below = tl.where(x < 0, beyond, 1.0 - beyond)
        y = tl.maximum(x, 0.0) - size * beyond
    return y, below + x * bell * 0.3989422804014327


@triton.jit
def _inside(own, c, C: tl.constexpr, END: tl.constexpr):
    """Mask of the existing rows (`own`), for columns `c` up to END."""
    mask = own[:, None]
    if END > C:
        mask = mask & (c < C)[None, :]
    return mask


@triton.jit
def _load(P, row, step, c, own, C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    """Rows `row` (int64) as `K` pieces in float32; 0 beyond the end."""
    at = P + row[:, None] * step + c[None, :]
    a = tl.load(at, mask=_inside(own, c, C, BLOCK), other=0.0).to(tl.float32)
    b, d = a, a
    if K == 3:
        b = tl.load(at + BLOCK, mask=own[:, None], other=0.0).to(tl.float32)
        d = tl.load(at + 2 * BLOCK, mask=_inside(own, c + 2 * BLOCK, C, 3 * BLOCK), other=0.0).to(tl.float32)
    return a, b, d


@triton.jit
def _store(P, row, step, c, own, a, b, d, C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    at = P + row[:, None] * step + c[None, :]
    tl.store(at, a, mask=_inside(own, c, C, BLOCK))
    if K == 3:
        tl.store(at + BLOCK, b, mask=own[:, None])
        tl.store(at + 2 * BLOCK, d, mask=_inside(own, c + 2 * BLOCK, C, 3 * BLOCK))


@triton.jit
def _vector(P, c, C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    """A vector of C numbers as `K` pieces (1, BLOCK), float32."""
    a = tl.load(P + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    b, d = a, a
    if K == 3:
        b = tl.load(P + BLOCK + c).to(tl.float32)[None, :]
        d = tl.load(P + 2 * BLOCK + c, mask=c + 2 * BLOCK < C, other=0.0).to(tl.float32)[None, :]
    return a, b, d


@triton.jit
def _mean(a, b, d, C: tl.constexpr, K: tl.constexpr):
    """Mean of each row over all pieces, (rows, 1)."""
    if K == 3:
        a = a + b + d
    return (tl.sum(a, 1) / C)[:, None]


@triton.jit
def _standardised(a, b, d, c, own, eps, C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    """→ (x − mean) / σ of all pieces, 1/σ; all 0 beyond the end and in missing rows."""
    mean = _mean(a, b, d, C, K)
    a = a - mean
    b = b - mean
    d = d - mean
    if K * BLOCK != C:  # of three pieces only the last is ragged: else one piece would hold the row
        if K == 1:
            a = tl.where((c < C)[None, :], a, 0.0)
        else:
            d = tl.where((c + 2 * BLOCK < C)[None, :], d, 0.0)
    rstd = 1.0 / tl.sqrt_rn(_mean(a * a, b * b, d * d, C, K) + eps)
    rstd = tl.where(own[:, None], rstd, 0.0)  # eps may be 0: no NaN from rows beyond the end
    return a * rstd, b * rstd, d * rstd, rstd


@triton.jit(do_not_specialize=_SIZES)
def norm_forward(
    X, Y, SCALE, W, B, SUM, N, rows, programs, eps, x_row, y_row, sum_row, n_row,
    C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    GELU: tl.constexpr, EXACT: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """N = LayerNorm(GELU(X)); with `ADD` SUM = X + SCALE · Y and N = LayerNorm(SUM). SCALE: one number per row.

    Without `NORM` only SUM is written."""
    c = tl.arange(0, BLOCK)
    if NORM:
        w_a, w_b, w_d = _vector(W, c, C, BLOCK, K)
        b_a, b_b, b_d = _vector(B, c, C, BLOCK, K)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        own = row < rows
        a, b, d = _load(X, row, x_row, c, own, C, BLOCK, K)
        if ADD:
            y_a, y_b, y_d = _load(Y, row, y_row, c, own, C, BLOCK, K)
            if SCALED:
                scale = tl.load(SCALE + row, mask=own, other=0.0).to(tl.float32)[:, None]
                y_a *= scale
                y_b *= scale
                y_d *= scale
            a += y_a
            b += y_b
            d += y_d
            _store(SUM, row, sum_row, c, own, a, b, d, C, BLOCK, K)
        if GELU:
            a, _ = _gelu(a, EXACT)
            b, _ = _gelu(b, EXACT)
            d, _ = _gelu(d, EXACT)
        if NORM:
            a, b, d, _ = _standardised(a, b, d, c, own, eps, C, BLOCK, K)
            _store(N, row, n_row, c, own, a * w_a + b_a, b * w_b + b_b, d * w_d + b_d, C, BLOCK, K)


@triton.jit
def _add_to(P, c, C: tl.constexpr, tile):
    """Adds the sum over a tile's rows to row p of a (P, C) buffer, at columns `c`."""
    at = P + tl.program_id(0).to(tl.int64) * C + c
    tl.store(at, tl.load(at, mask=c < C, other=0.0) + tl.sum(tile, 0), mask=c < C)


@triton.jit
def _add_all_to(P, c, a, b, d, C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    _add_to(P, c, C, a)
    if K == 3:
        _add_to(P, c + BLOCK, C, b)
        _add_to(P, c + 2 * BLOCK, C, d)


@triton.jit(do_not_specialize=_SIZES)
def norm_backward(
    X, G, W, B, R, SCALE, GX, NARROW, N, SUM_W, SUM_B, SUM_GX, rows, programs, eps,
    x_row, g_row, r_row, gx_row, narrow_row, n_row,
    C: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    GELU: tl.constexpr, EXACT: tl.constexpr, RESIDUAL: tl.constexpr, SCALED: tl.constexpr,
    HAS_NARROW: tl.constexpr, WRITE_N: tl.constexpr, SUM_OUT: tl.constexpr,
):  # fmt: skip
    """Backward of N = LayerNorm(GELU(X)) from the gradient G of N.

    GX = gradient of X, with `RESIDUAL` plus R; with `HAS_NARROW` NARROW = SCALE · GX too; with `WRITE_N` N once more.
    SUM_W, SUM_B += gradients of weight and bias; with `SUM_OUT` SUM_GX += SCALE · GX, all (P, C) float32.
    """
    c = tl.arange(0, BLOCK)
    w_a, w_b, w_d = _vector(W, c, C, BLOCK, K)
    dw_a = tl.zeros([ROWS, BLOCK], tl.float32)
    db_a = tl.zeros([ROWS, BLOCK], tl.float32)
    ds_a = tl.zeros([ROWS, BLOCK], tl.float32)
    dw_b, db_b, ds_b, dw_d, db_d, ds_d = dw_a, db_a, ds_a, dw_a, db_a, ds_a
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        own = row < rows
        a, b, d = _load(X, row, x_row, c, own, C, BLOCK, K)
        g_a, g_b, g_d = _load(G, row, g_row, c, own, C, BLOCK, K)
        s_a, s_b, s_d = a, b, d
        if GELU:
            a, s_a = _gelu(a, EXACT)
            b, s_b = _gelu(b, EXACT)
            d, s_d = _gelu(d, EXACT)
        a, b, d, rstd = _standardised(a, b, d, c, own, eps, C, BLOCK, K)
        if WRITE_N:  # the bias is read from the cache: registers are scarce
            b_a, b_b, b_d = _vector(B, c, C, BLOCK, K)
            _store(N, row, n_row, c, own, a * w_a + b_a, b * w_b + b_b, d * w_d + b_d, C, BLOCK, K)
        dw_a += g_a * a
        db_a += g_a
        g_a *= w_a
        if K == 3:
            dw_b += g_b * b
            db_b += g_b
            g_b *= w_b
            dw_d += g_d * d
            db_d += g_d
            g_d *= w_d
        mean_g = _mean(g_a, g_b, g_d, C, K)
        mean_gx = _mean(g_a * a, g_b * b, g_d * d, C, K)
        a = (g_a - mean_g - a * mean_gx) * rstd
        b = (g_b - mean_g - b * mean_gx) * rstd
        d = (g_d - mean_g - d * mean_gx) * rstd
        if GELU:
            a *= s_a
            b *= s_b
            d *= s_d
        if RESIDUAL:
            r_a, r_b, r_d = _load(R, row, r_row, c, own, C, BLOCK, K)
            a += r_a
            b += r_b
            d += r_d
        _store(GX, row, gx_row, c, own, a, b, d, C, BLOCK, K)
        if SCALED:
            scale = tl.load(SCALE + row, mask=own, other=0.0).to(tl.float32)[:, None]
            a *= scale
            b *= scale
            d *= scale
        if HAS_NARROW:
            _store(NARROW, row, narrow_row, c, own, a, b, d, C, BLOCK, K)
        if SUM_OUT:
            ds_a += a
            if K == 3:
                ds_b += b
                ds_d += d
    _add_all_to(SUM_W, c, dw_a, dw_b, dw_d, C, BLOCK, K)
    _add_all_to(SUM_B, c, db_a, db_b, db_d, C, BLOCK, K)
    if SUM_OUT:
        _add_all_to(SUM_GX, c, ds_a, ds_b, ds_d, C, BLOCK, K)


@triton.jit(do_not_specialize=_SIZES)
def cast_and_sum(
    G, SCALE, NARROW, SUM, rows, programs, g_row, narrow_row,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """NARROW = SCALE · G; SUM (P, C) += its sum over rows. The second grid axis indexes blocks of columns."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (c < C)[None, :]
        g = tl.load(G + row[:, None] * g_row + c[None, :], mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            g *= tl.load(SCALE + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        tl.store(NARROW + row[:, None] * narrow_row + c[None, :], g, mask=inside)
        total += g
    _add_to(SUM, c, C, total)


@triton.jit(do_not_specialize=["width", "strips"])
def patches(
    IMAGE, OUT, width, strips, image_b, image_c, image_y, image_x: tl.constexpr,
    SHIFT: tl.constexpr, P: tl.constexpr, P_TILE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """uint8 (B, 3, strips · P, width · P) → (B · strips · width, 3 · P · P) minus SHIFT.

    Each program copies one row of pixels of one colour, in PATCHES patches.
    """
    y = tl.program_id(0) % P
    strip = tl.program_id(0) // P
    image, row = (strip // strips).to(tl.int64), strip % strips
    colour = tl.program_id(1).to(tl.int64)  # a plane of 32,768² px has 2³⁰ bytes
    patch = tl.program_id(2) * PATCHES + tl.arange(0, PATCHES)
    x = tl.arange(0, P_TILE)
    inside = (patch < width)[:, None] & (x < P)[None, :]
    source = IMAGE + image * image_b + colour * image_c + (row * P + y).to(tl.int64) * image_y
    u = tl.load(source + (patch[:, None] * P + x[None, :]) * image_x, mask=inside, other=0)
    target = OUT + (strip.to(tl.int64) * width + patch[:, None]) * (3 * P * P) + (colour * P + y) * P + x[None, :]
    tl.store(target, u.to(tl.float32) - SHIFT, mask=inside)
