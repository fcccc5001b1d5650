"""Attention back ends: kernels of one fused call, with (out, lse) forward and backward from any (out, lse).

Flash-attention's backward recomputes P = exp(s − lse) and needs, beside q, k and v, only `out` and `lse`. Called with
another pair than its own forward returned (the merged state of all branches), it yields the gradient of the merged
softmax. So PyTorch's own kernels serve dilated attention unchanged.

All tensors are (B, H, L, D) views with stride 1 in the last axis. `lse` is (B, H, L), float32 (float64 for float64).
The function `pick` decides once per call, in one place, and gives the reason, which `longvit doctor` prints.

The requirements of the CUDA kernels were read in PyTorch's sources (aten/src/ATen/native/transformers/cuda:
flash_attn/flash_api.cpp, mem_eff_attention/kernel_backward.h). Comments name them where they matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.attention.branch_kernel import BranchKernel

aten = torch.ops.aten
VARIABLE = "LONGVIT_ATTENTION"
_SCORES = 1 << 24  # elements of the score matrix that the plain back end holds at once


@dataclass(frozen=True)
class Backend:
    """One kernel pair.

    forward(q, k, v, scale) → (out, lse); backward(grad_out, q, k, v, out, lse, scale) → (grad_q, grad_k, grad_v).
    Results may be wider than the inputs.
    """

    name: str
    runs_on: str  # a device type, or "any"
    forward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    branches: BranchKernel | None = None
    folds_scale: bool = False
    """True if it is faster where the scale is part of q, with `scale` ln 2 (see `model.query_scale`)."""


@dataclass(frozen=True)
class Choice:
    """Back end chosen by `pick`, and the reason."""

    backend: Backend
    reason: str
    is_free: bool = True
    """No back end was requested: short sequences may run as dense attention instead (`short`)."""


def pick(device: torch.device, dtype: torch.dtype, head_dim: int, name: str = "auto") -> Choice:
    """The back end for tensors of this device, dtype and head dim; `name` forces one of `BACKENDS`.

    Where `name` is "auto", the environment variable LONGVIT_ATTENTION may name one instead (for whole models).

    Raises:
        ValueError: `name` is unknown, or does not run on that device.
    """
    reason = "requested" if name != "auto" else f"requested by {VARIABLE}"
    name = os.environ.get(VARIABLE, name) if name == "auto" else name
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"no attention back end {name!r}; there are {', '.join(['auto', *BACKENDS])}")
        if name.startswith("triton"):
            _check_triton(name, device, dtype, head_dim)
        elif BACKENDS[name].runs_on not in ("any", device.type):
            raise ValueError(
                f"attention back end {name!r} runs on {BACKENDS[name].runs_on}, the tensors are on {device.type}"
            )
        return Choice(BACKENDS[name], reason, is_free=False)
    if device.type == "cpu":
        if dtype in _CPU_DTYPES:
            return Choice(BACKENDS["cpu_flash"], f"PyTorch's fused CPU kernel takes {_short(dtype)}")
        return Choice(BACKENDS["plain"], f"PyTorch's fused CPU kernel does not take {_short(dtype)}")
    if device.type == "cuda":
        return _pick_cuda(device, dtype, head_dim)
    return Choice(BACKENDS["plain"], f"no fused kernel with a log-sum-exp on {device.type}")


def _pick_cuda(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    major, minor = torch.cuda.get_device_capability(device)
    if dtype == torch.float64:
        return Choice(BACKENDS["plain"], "no fused CUDA kernel takes float64")
    if torch.version.hip is not None:
        return Choice(BACKENDS["plain"], "the fused kernels are only known to take any (out, lse) on NVIDIA cards")
    half = dtype in (torch.float16, torch.bfloat16)
    if half and major >= 9 and head_dim <= 128 and _has_triton():
        if reason := unpadded_reason(dtype, head_dim):
            return Choice(BACKENDS["triton"], f"our kernel, compute capability {major}.{minor}; not padded: {reason}")
        why = f"our kernel on padded operands: {_short(dtype)}, compute capability {major}.{minor}"
        return Choice(BACKENDS["triton_padded"], why)
    if half and major >= 8 and head_dim <= 256:
        return Choice(BACKENDS["cuda_flash"], f"flash kernel: {_short(dtype)}, compute capability {major}.{minor}")
    if dtype == torch.bfloat16 and major < 8:
        return Choice(BACKENDS["plain"], f"no fused kernel for bfloat16 on compute capability {major}.{minor}")
    why = "float32" if not half else f"compute capability {major}.{minor}, head dim {head_dim}"
    return Choice(BACKENDS["cuda_efficient"], f"memory-efficient kernel: {why}")


def matmul_precision() -> str:
    """Precision of float32 products on a card, by PyTorch's older or newer setting: "tf32" or "ieee"."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9; once set, reading the older setting is an error
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# --- PyTorch's fused CPU kernel -------------------------------------------------------------------------------------

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# The kernel runs 16-bit tensors faster in float32 than in their own dtype: forward 1.1 × (bfloat16), 2 × (float16),
# backward 5 × at 64 tokens and 10 × for float16 at any length. Only the bfloat16 backward of long segments gains from
# its own dtype (1.25 × at 1,024 tokens; AMD EPYC with AVX-512 bf16, torch 2.13, 2026-11).
_CPU_BFLOAT16_BACKWARD_TOKENS = 512


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (_wide(t) for t in (q, k, v))
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)


def _cpu_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    narrow = q.dtype == torch.bfloat16 and q.shape[2] >= _CPU_BFLOAT16_BACKWARD_TOKENS
    tensors = [t.to(q.dtype) if narrow else _wide(t) for t in (grad_out, q, k, v, out)]
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, lse, 0.0, False, scale=scale)


# --- PyTorch's fused CUDA kernels -----------------------------------------------------------------------------------


# The kernels put the batch (here B · segments) on the second or third axis of the grid, which CUDA limits to this.
# Newer versions of PyTorch split it themselves for the memory-efficient kernel, none does for flash.
_GRID_ROWS = 65_535


def _in_parts(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a kernel of (tensors …, scale) take any batch, in parts of at most `_GRID_ROWS` rows."""

    @wraps(kernel)
    def run(*args: Any) -> Any:
        *tensors, scale = args
        if len(tensors[0]) <= _GRID_ROWS:
            return kernel(*args)
        parts = [kernel(*part, scale) for part in zip(*(t.split(_GRID_ROWS) for t in tensors), strict=True)]
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    return run


def _aligned(x: Tensor, multiple: int) -> Tensor:
    """Head dim and strides as multiples of `multiple` elements, by zero padding or a copy where they are not."""
    if x.shape[-1] % multiple:
        return F.pad(x, (0, -x.shape[-1] % multiple))
    if any(s % multiple for s in x.stride()[:-1]) or x.storage_offset() % multiple or x.stride(-1) != 1:
        return x.contiguous()
    return x


@_in_parts
def _flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    D = v.shape[-1]
    q, k, v = (_aligned(t, 8) for t in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)
    return out.narrow(-1, 0, D), lse


@_in_parts
def _flash_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    D, L, M = q.shape[-1], q.shape[-2], k.shape[-2]
    grad_out, q, k, v, out = (_aligned(t, 8) for t in (grad_out, q, k, v, out))
    rng = torch.empty(2, dtype=torch.uint64, device=q.device)  # unread: there is no dropout
    grads = (
        aten._scaled_dot_product_flash_attention_backward(  # reads lse as (B, H, L) without gaps, whatever its strides
            grad_out, q, k, v, out, lse.contiguous(), None, None, L, M, 0.0, False, rng, rng, scale=scale
        )
    )
    return tuple(g.narrow(-1, 0, D) for g in grads)


@_in_parts
def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    D = v.shape[-1]
    q, k, v = (_aligned(t, 8) for t in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, False, scale=scale)
    return out.narrow(-1, 0, D), lse.narrow(-1, 0, q.shape[-2])  # the kernel rounds the length of lse up to 32


@_in_parts
def _efficient_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    D = q.shape[-1]
    grad_out, q, k, v, out = (_aligned(t, 8) for t in (grad_out, q, k, v, out))
    # Of `out` the kernel reads the strides of batch and head, and takes H · D for that of the position (o_strideM): a
    # strided view would be misread without an error. `grad_out` is copied by the operator itself.
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf")).contiguous()  # as its forward pads it
    seed = torch.empty((), dtype=torch.int64, device=q.device)  # unread: there is no dropout
    grads = aten._scaled_dot_product_efficient_attention_backward(
        grad_out, q, k, v, None, out, lse, seed, seed, 0.0, (True, True, True, False), False, scale=scale
    )
    return tuple(g.narrow(-1, 0, D) for g in grads[:3])


# --- own kernels, in Triton (see `triton_branch`) -------------------------------------------------------------------


def _has_triton() -> bool:
    """True if triton is installed with a C compiler, with which it builds its launchers. The interpreter is no gain."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return False
    return _are_installed(find_spec, which, os.environ.get("CC"), os.environ.get("PATH"))


@lru_cache(maxsize=8)  # `pick` needs it at every layer; the file system is slow
def _are_installed(find: Callable[..., Any], where: Callable[..., Any], cc: str | None, path: str | None) -> bool:
    """True if the triton package and a C compiler are installed. `path`: the search path that `where` uses."""
    return find("triton") is not None and any(name and where(name) for name in (cc, "cc", "gcc", "clang"))


def _check_triton(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises ValueError, in one line, where the kernel cannot run."""
    if find_spec("triton") is None:
        raise ValueError(f"attention back end {name!r} needs the package triton: pip install 'longvit[triton]'")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"attention back end {name!r} runs on cuda, the tensors are on cpu (TRITON_INTERPRET=1 to test it)"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"attention back end {name!r} runs on cuda, the tensors are on {device.type}")
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        raise ValueError(
            f"attention back end {name!r} needs compute capability 8.0, {device} has {capability[0]}.{capability[1]}"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"attention back end {name!r} takes float32, bfloat16 or float16, got {_short(dtype)}")
    if head_dim > 128:
        raise ValueError(f"attention back end {name!r} takes head dims up to 128, got {head_dim}")
    if name == "triton_padded" and (reason := unpadded_reason(dtype, head_dim)):
        raise ValueError(f"attention back end 'triton_padded': {reason}; use 'triton'")


def unpadded_reason(dtype: torch.dtype, head_dim: int) -> str:
    """Reason against the kernels on padded operands for this dtype and head dim; empty where they fit.

    They need three idle columns in a tile, whose width is a power of two and at least 16. A wider tile would cost more
    matrix products than the columns save. The log-sum-exp, its parts and exp2 without a maximum exceed float16.
    """
    if dtype == torch.float16:
        return "float16 does not hold a log-sum-exp in its columns"
    width = max(16, 1 << (head_dim - 1).bit_length())
    return "" if head_dim + 3 <= width else f"a head dim of {head_dim} leaves {width - head_dim} idle columns of 3"


def _branch_kernel(module: str) -> BranchKernel:
    """The functions of `triton_branch` or `padded_branch`, which are imported at their first call: they need triton."""

    def function(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return getattr(import_module(f"longvit.attention.{module}"), name)(*args)

        return call

    names = ("forward_operands", "branch_forward", "backward_operands", "keys_backward", "queries_backward")
    return BranchKernel(*map(function, names))


def _triton(name: str, module: str, *, folds_scale: bool = False) -> Backend:
    kernel = _branch_kernel(module)
    return Backend(name, "cuda", kernel.call_forward, kernel.call_backward, kernel, folds_scale)


# --- plain torch, for everything else -------------------------------------------------------------------------------


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of the query axis whose score matrices hold at most `_SCORES` elements."""
    per_query = max(1, q.shape[0] * q.shape[1] * k.shape[2])
    step = max(1, _SCORES // per_query)
    return [slice(i, min(i + step, q.shape[2])) for i in range(0, q.shape[2], step)]


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    k_t, v_wide = _wide(k).transpose(-1, -2), _wide(v)
    outs, lses = [], []
    for part in _chunks(q, k):
        s = (_wide(q[:, :, part]) * scale) @ k_t
        lse = s.logsumexp(-1)
        outs.append(((s - lse.unsqueeze(-1)).exp_() @ v_wide).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _plain_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    k_wide, v_t = _wide(k), _wide(v).transpose(-1, -2)
    grad_k, grad_v = torch.zeros_like(k_wide), torch.zeros_like(k_wide)
    grad_qs = []
    for part in _chunks(q, k):
        q_c, do = _wide(q[:, :, part]), _wide(grad_out[:, :, part])
        p = ((q_c * scale) @ k_wide.transpose(-1, -2) - lse[:, :, part].unsqueeze(-1)).exp_()
        grad_v += p.transpose(-1, -2) @ do
        delta = (do * _wide(out[:, :, part])).sum(-1, keepdim=True)
        ds = p.mul_((do @ v_t).sub_(delta)).mul_(scale)
        grad_qs.append((ds @ k_wide).to(q.dtype))
        grad_k += ds.transpose(-1, -2) @ q_c
    return torch.cat(grad_qs, 2), grad_k.to(k.dtype), grad_v.to(v.dtype)


BACKENDS = {
    b.name: b
    for b in (
        Backend("cpu_flash", "cpu", _cpu_forward, _cpu_backward),
        Backend("cuda_flash", "cuda", _flash_forward, _flash_backward),
        Backend("cuda_efficient", "cuda", _efficient_forward, _efficient_backward),
        _triton("triton", "triton_branch"),
        _triton("triton_padded", "padded_branch", folds_scale=True),
        Backend("plain", "any", _plain_forward, _plain_backward),
    )
}
