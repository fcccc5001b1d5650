"""LayerNorm fused with GELU, residual sum and casts: one pass over memory where PyTorch takes three to six.

Functions, each with a plain twin of PyTorch operations (`plain_…`), which is what it is tested against:

    norm            LayerNorm(GELU(x)) in the arithmetic's dtype
    add_norm        x + s · y, and its LayerNorm; `add` is the sum alone
    norm_backward   from the gradient of the norm: that of x plus a residual, cast; the norm again; sums over rows

They serve CUDA cards through Triton (`fused_kernels`). `uses` decides, in one place: the environment variable
LONGVIT_FUSED says 1, 0 or auto; auto is `ON_CARDS`. A CPU computes as before, to the last bit.

T tokens (rows), C their width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.attention.backends import _has_triton

VARIABLE = "LONGVIT_FUSED"
ON_CARDS = True
"""What "auto" means on a CUDA card. H200, 1,048,576 patches: forward 1.14 → 1.02 s, training step 4.46 → 3.82 s."""
WIDEST = 4096
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def uses(x: Tensor, dtype: torch.dtype, width: int | None = None) -> bool:
    """Whether rows like x (T, C), or `width` wide, are normalised by the fused kernels, for products in `dtype`.

    Raises:
        ValueError: LONGVIT_FUSED is not 0, 1 or auto; or it is 1 and the kernels cannot take these tensors.
    """
    return choice(x.device, x.dtype, dtype, width or x.shape[-1])[0]


def choice(device: torch.device, of_x: torch.dtype, dtype: torch.dtype, width: int) -> tuple[bool, str]:
    """`uses` of rows in `of_x`, and why. Raises ValueError as that does."""
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in ("0", "1", "auto"):
        raise ValueError(f"{VARIABLE} must be 0, 1 or auto, got {asked!r}")
    if asked == "0":
        return False, f"{VARIABLE}=0"
    if asked == "auto" and not (ON_CARDS and device.type == "cuda"):
        return False, f"the kernels are for cards, the model is on {device.type}"
    reason = _cannot(device, of_x, dtype, width)
    if reason and asked == "1":
        raise ValueError(f"{VARIABLE}=1, but {reason}")
    return reason is None, reason or ("asked for" if asked == "1" else "one pass over memory instead of three to six")


@lru_cache
def _cannot(device: torch.device, of_x: torch.dtype, dtype: torch.dtype, width: int) -> str | None:
    """Why the kernels do not take these; None: they do."""
    if find_spec("triton") is None:
        return "the package triton is not installed: pip install 'longvit[triton]'"
    if device.type == "cuda":
        if not _has_triton():
            return "Triton needs a C compiler and no TRITON_INTERPRET=1"
        if (found := torch.cuda.get_device_capability(device)) < (8, 0):
            return f"the kernels need compute capability 8.0, {device} has {found[0]}.{found[1]}"
    elif device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"the kernels run on cuda, the tensors are on {device.type} (TRITON_INTERPRET=1 to test them)"
    for name in (of_x, dtype):
        if name not in _DTYPES:
            return f"the kernels take float32, bfloat16 or float16, got {str(name).removeprefix('torch.')}"
    if not 1 <= width <= WIDEST:
        return f"the kernels take widths up to {WIDEST}, got {width}"
    return None


# --- launches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Rows of a tile, warps of a program, stages of its pipeline (1: none), programs of a multiprocessor."""

    rows: int
    warps: int
    stages: int
    programs: int


# kernel → (width from which, shape). Chosen by what the compiler makes for sm_90: no spills, loads of 16 bytes where
# rows are long enough, as many programs as fit at once; then the fastest of five to seven on an H200
# (`benchmarks/gpu_fused.py`, 2026-11).
SHAPES = {
    "forward": (
        (0, Shape(4, 4, 1, 8)),
        (513, Shape(2, 4, 1, 8)),
        (1025, Shape(1, 2, 2, 10)),
        (1537, Shape(1, 8, 1, 4)),
    ),
    "backward": (
        (0, Shape(1, 1, 1, 16)),
        (513, Shape(2, 4, 1, 3)),
        (1025, Shape(1, 2, 2, 4)),
        (1537, Shape(1, 8, 1, 1)),
    ),
    "cast": ((0, Shape(8, 4, 1, 4)),),
}
CAST_COLUMNS = 128
CPU_MULTIPROCESSORS = 1  # the interpreter: several rounds of each program even in small tests


def _shape(kernel: str, width: int) -> Shape:
    return [shape for least, shape in SHAPES[kernel] if width >= least][-1]


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def _programs(kernel: str, x: Tensor) -> int:
    """As many as the device runs at once, at most one for each tile of rows."""
    shape = _shape(kernel, x.shape[-1])
    return max(1, min(-(-len(x) // shape.rows), shape.programs * (_multiprocessors(x.device) or CPU_MULTIPROCESSORS)))


def _pieces(width: int) -> dict[str, int]:
    """`C`, `BLOCK`, `K`: a row as one or three blocks of a power of two, whichever leaves fewer lanes idle."""
    one, third = (1 << (n - 1).bit_length() for n in (width, -(-width // 3)))
    return {"C": width, "BLOCK": one, "K": 1} if one <= 3 * third else {"C": width, "BLOCK": third, "K": 3}


def _kernels() -> Any:
    from longvit.model import fused_kernels  # needs triton

    return fused_kernels


def _rows(x: Tensor) -> Tensor:
    """Stride 1 in the last axis, or a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class RowSums:
    """Sums over rows of any number of chunks, float32: weight's and bias's gradient, and that of what comes before.

    (3, P, C): one row per program of the kernel that adds to it, added up in `result`; the order is always the same.
    """

    def __init__(self, x: Tensor, kernel: str = "backward") -> None:
        """x: the first chunk, the largest."""
        self.parts = torch.zeros(3, _programs(kernel, x), x.shape[-1], dtype=torch.float32, device=x.device)

    @property
    def programs(self) -> int:
        return self.parts.shape[1]

    def result(self) -> Tensor:
        """(3, C): of the norm's weight, of its bias, of the bias of the layer before (0 where it was not asked for)."""
        return self.parts.sum(1)


def norm(x: Tensor, w: Tensor, b: Tensor, eps: float, gelu: bool, dtype: torch.dtype) -> Tensor:
    """Rows (T, C) → LayerNorm(GELU(x)) in `dtype`; without `gelu` LayerNorm(x). Statistics in float32."""
    n = torch.empty(x.shape, dtype=dtype, device=x.device)
    _forward(x, None, None, w, b, eps, gelu, None, n)
    return n


def add_norm(
    x: Tensor, y: Tensor, scale: Tensor | None, w: Tensor, b: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows x, y (T, C) and scale (T, 1) or None → x + scale · y in the dtype of x, and its LayerNorm in `dtype`."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n = torch.empty(x.shape, dtype=dtype, device=x.device)
    _forward(x, y, scale, w, b, eps, False, total, n)
    return total, n


def add(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Rows x, y (T, C) of any two dtypes → x + y in float32, as the dtype of `out`, which may be x.

    Of float32 and a 16-bit y the bits of `torch.add`, whose kernel for two dtypes takes 1.6 × what its bytes need.
    """
    _forward(x, y, None, x, x, 0.0, False, out, None)
    return out


def _forward(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    w: Tensor,
    b: Tensor,
    eps: float,
    gelu: bool,
    total: Tensor | None,
    n: Tensor | None,
) -> None:
    """`total`, `n`: where the sum and the norm go, or None; total may be x."""
    if not len(x):
        return
    x, shape, programs = _rows(x), _shape("forward", x.shape[-1]), _programs("forward", x)
    y = x if y is None else _rows(y)
    scaled, has_norm = scale is not None, n is not None
    scale = x if scale is None else scale.contiguous()
    into = n if total is None else total
    assert into is not None, "neither a sum nor a norm to write"
    n = into if n is None else n
    with torch.cuda.device_of(x):  # Triton launches on the current card
        _kernels().norm_forward[(programs,)](
            x, y, scale, w, b, into, n, len(x), programs, eps, x.stride(0), y.stride(0), into.stride(0), n.stride(0),
            **_pieces(x.shape[-1]), ROWS=shape.rows, STAGES=shape.stages, GELU=gelu, EXACT=x.dtype == torch.float32,
            ADD=total is not None, SCALED=scaled, NORM=has_norm, num_warps=shape.warps,
        )  # fmt: skip


def norm_backward(
    x: Tensor,
    grad: Tensor,
    w: Tensor,
    b: Tensor,
    eps: float,
    gelu: bool,
    sums: RowSums,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out: Tensor | None = None,
    n: Tensor | None = None,
    narrow: Tensor | None = None,
    sum_out: bool = False,
) -> Tensor:
    """Backward of LayerNorm(GELU(x)) of rows (T, C): → the gradient of x, in its dtype, in `out` where given.

    Args:
        grad: gradient of the norm (T, C).
        residual: added to the gradient of x.
        n: where the norm is written again, in any dtype.
        narrow: where the gradient of x, times `scale` (T, 1), is written once more, in any dtype.
        sums: the gradients of w and b are added to it; with `sum_out` what `narrow` gets, summed, too.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if not len(x):
        return out
    x, grad, shape = _rows(x), _rows(grad), _shape("backward", x.shape[-1])
    r = x if residual is None else _rows(residual)
    s = x if scale is None else scale.contiguous()
    again, second = out if n is None else n, out if narrow is None else narrow
    with torch.cuda.device_of(x):
        _kernels().norm_backward[(sums.programs,)](
            x, grad, w, b, r, s, out, second, again, *sums.parts, len(x), sums.programs, eps,
            x.stride(0), grad.stride(0), r.stride(0), out.stride(0), second.stride(0), again.stride(0),
            **_pieces(x.shape[-1]), ROWS=shape.rows, STAGES=shape.stages, GELU=gelu,
            EXACT=x.dtype == torch.float32, RESIDUAL=residual is not None, SCALED=scale is not None,
            HAS_NARROW=narrow is not None, WRITE_N=n is not None, SUM_OUT=sum_out, num_warps=shape.warps,
        )  # fmt: skip
    return out


def cast_and_sum(grad: Tensor, scale: Tensor | None, dtype: torch.dtype, sums: RowSums) -> Tensor:
    """Rows (T, C) · scale (T, 1) in `dtype`; their sum is added to the first row of `sums` (kernel "cast")."""
    out = torch.empty(grad.shape, dtype=dtype, device=grad.device)
    if not len(grad):
        return out
    grad, shape, width = _rows(grad), _shape("cast", grad.shape[-1]), grad.shape[-1]
    s = grad if scale is None else scale.contiguous()
    with torch.cuda.device_of(grad):
        _kernels().cast_and_sum[(sums.programs, -(-width // CAST_COLUMNS))](
            grad, s, out, sums.parts[0], len(grad), sums.programs, grad.stride(0), out.stride(0),
            C=width, BLOCK=CAST_COLUMNS, ROWS=shape.rows, STAGES=shape.stages, SCALED=scale is not None,
            num_warps=shape.warps,
        )  # fmt: skip
    return out


def patches(strip: Tensor, patch_px: int, shift: int, dtype: torch.dtype) -> Tensor:
    """uint8 (B, 3, H, W), any strides → (B · h · w, 3 · P · P) minus `shift` in `dtype`, patches in row-major order."""
    B, _, height, width = strip.shape
    h, w = height // patch_px, width // patch_px
    out = torch.empty(B * h * w, 3 * patch_px * patch_px, dtype=dtype, device=strip.device)
    if not out.numel():
        return out
    tile = 1 << (patch_px - 1).bit_length()
    at_once = max(1, min(4096 // tile, 1 << (w - 1).bit_length()))
    with torch.cuda.device_of(strip):
        _kernels().patches[(B * h * patch_px, 3, -(-w // at_once))](
            strip, out, w, h, strip.stride(0), strip.stride(1), strip.stride(2), strip.stride(3),
            SHIFT=shift, P=patch_px, P_TILE=tile, PATCHES=at_once, num_warps=4,
        )  # fmt: skip
    return out


# --- plain twins ----------------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, w: Tensor, b: Tensor, eps: float, gelu: bool, dtype: torch.dtype) -> Tensor:
    """`norm` by PyTorch, in float32."""
    a = F.gelu(x.float()) if gelu else x.float()
    return F.layer_norm(a, a.shape[-1:], w.float(), b.float(), eps).to(dtype)


def plain_add_norm(
    x: Tensor, y: Tensor, scale: Tensor | None, w: Tensor, b: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`add_norm` by PyTorch, in float32."""
    total = x.float() + (y.float() if scale is None else y.float() * scale.float())
    return total.to(x.dtype), plain_norm(total, w, b, eps, False, dtype)


def plain_norm_backward(
    x: Tensor,
    grad: Tensor,
    w: Tensor,
    b: Tensor,
    eps: float,
    gelu: bool,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_backward` by PyTorch, in float32: → gradient of x (with the residual), that times scale, sums (3, C)."""
    leaves = [t.detach().float().requires_grad_() for t in (x, w, b)]
    with torch.enable_grad():
        n = plain_norm(leaves[0], leaves[1], leaves[2], eps, gelu, torch.float32)
    of_x, of_w, of_b = torch.autograd.grad(n, leaves, grad.float())
    of_x = of_x if residual is None else of_x + residual.float()
    scaled = of_x if scale is None else of_x * scale.float()
    return of_x.to(x.dtype), scaled, torch.stack([of_w, of_b, scaled.sum(0)])
