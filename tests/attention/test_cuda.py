"""What runs on a GPU only, without one: tensors without data (device meta), and what each fused kernel is handed.

The rules are those of PyTorch's sources (aten/src/ATen/native/transformers/cuda); where a kernel breaks one it does
not say so, it reads other numbers.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longvit.attention import backends
from longvit.attention.backends import BACKENDS, pick
from longvit.attention.online_softmax import Settings, backward, forward

aten = torch.ops.aten
FLASH, EFFICIENT = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention
FLASH_BACK = aten._scaled_dot_product_flash_attention_backward
EFFICIENT_BACK = aten._scaled_dot_product_efficient_attention_backward


class Calls(TorchDispatchMode):
    """Keeps the arguments of the fused kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in (FLASH, EFFICIENT, FLASH_BACK, EFFICIENT_BACK):
            self.seen.append((packet, args))
        return func(*args, **(kwargs or {}))


def attend(name: str, dtype: torch.dtype, *, dim: int, detached: bool = False, packed: bool = True, **settings) -> list:
    """Forward and backward on a card that is not there → the calls of its kernels."""
    shape = (2, 97, 6, dim)
    s = Settings(
        settings.get("branches", ((16, 1), (48, 2), (97, 5))),
        settings.get("lengths"),
        detached,
        settings.get("padded", False),
        0.2,
        BACKENDS[name],
    )
    with Calls() as calls:
        if packed:
            q, k, v = torch.empty(2, 97, 3, 6, dim, device="meta", dtype=dtype).unbind(2)
        else:
            q, k, v = (torch.empty(2, 6, 97, dim, device="meta", dtype=dtype).transpose(1, 2) for _ in range(3))
        out, lse = forward(q, k, v, s)
        grads = backward(torch.empty(shape, device="meta", dtype=dtype), q, k, v, out, lse, s)
        assert (out.shape, out.dtype, out.device.type) == (shape, dtype, "meta")
        assert (lse.shape, lse.dtype) == (shape[:3], torch.float32)
        assert all(g.shape == shape and g.dtype == torch.float32 for g in grads)
    return calls.seen


CASES = [
    {"dim": 24},
    {"dim": 24, "packed": False},
    {"dim": 20},  # padded to 24
    {"dim": 24, "detached": True},
    {"dim": 24, "padded": True},
    {"dim": 24, "lengths": (97, 31)},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "dtype"), [("cuda_flash", torch.bfloat16), ("cuda_efficient", torch.float32)])
def test_the_fused_kernels_are_handed_what_they_can_read(name: str, dtype: torch.dtype, case: dict) -> None:
    calls = attend(name, dtype, **case)
    assert {packet for packet, _ in calls} == (
        {FLASH, FLASH_BACK} if name == "cuda_flash" else {EFFICIENT, EFFICIENT_BACK}
    )
    for packet, args in calls:
        whole = [t for t in args if isinstance(t, torch.Tensor) and t.ndim == 4]
        for t in whole:
            assert t.dtype == dtype
            assert t.stride(-1) == 1
            assert not any(stride % 8 for stride in (*t.shape[-1:], *t.stride()[:-1], t.storage_offset()))  # 16 bytes
        if packet is FLASH_BACK:
            lse = args[5]
            assert lse.shape == whole[1].shape[:3]
            assert lse.is_contiguous()  # read without its strides
        if packet is EFFICIENT_BACK:
            out, lse = args[5], args[6]
            assert out.transpose(1, 2).is_contiguous()  # the stride of its positions is taken to be H · D
            assert lse.shape[-1] == 32 * math.ceil(out.shape[2] / 32)
            assert lse.is_contiguous()


def test_a_segmented_sequence_of_more_rows_than_a_grid_has_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # 64-token segments of 4 slides of 1,048,576 patches are 65,536 rows, CUDA's grid takes 65,535
    assert backends._GRID_ROWS == 65_535
    monkeypatch.setattr(backends, "_GRID_ROWS", 5)
    calls = attend("cuda_flash", torch.bfloat16, dim=24, branches=((8, 1), (97, 2)))
    assert max(len(args[1]) for _, args in calls) == 5
    q, k, v, grad_out = (torch.randn(13, 2, 6, 4, dtype=torch.float64) for _ in range(4))
    plain = BACKENDS["plain"]
    out, lse = plain.forward(q, k, v, 0.3)
    for whole, parts in (
        ((out, lse), backends._in_parts(plain.forward)(q, k, v, 0.3)),
        (
            plain.backward(grad_out, q, k, v, out, lse, 0.3),
            backends._in_parts(plain.backward)(grad_out, q, k, v, out, lse, 0.3),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_queries_and_keys_of_two_lengths_pass_the_fused_kernels() -> None:
    for name, dtype in (("cuda_flash", torch.bfloat16), ("cuda_efficient", torch.float32)):
        with Calls() as calls:
            q, grad_out = (torch.empty(2, 3, 17, 24, device="meta", dtype=dtype) for _ in range(2))
            k, v = (torch.empty(2, 3, 40, 24, device="meta", dtype=dtype) for _ in range(2))
            out, lse = BACKENDS[name].forward(q, k, v, 0.2)
            grads = BACKENDS[name].backward(grad_out, q, k, v, out, lse, 0.2)
            assert [g.shape[2] for g in grads] == [17, 40, 40]
        if name == "cuda_flash":
            assert calls.seen[1][1][8:10] == (17, 40)


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "name", "why"),
    [
        ((9, 0), torch.bfloat16, 24, "triton_padded", "bfloat16, compute capability 9.0"),
        ((9, 0), torch.float16, 136, "cuda_flash", "float16"),
        ((8, 9), torch.bfloat16, 24, "cuda_flash", "bfloat16, compute capability 8.9"),
        ((8, 0), torch.float16, 256, "cuda_flash", "float16"),
        ((8, 0), torch.float16, 264, "cuda_efficient", "head dim 264"),
        ((9, 0), torch.float32, 24, "cuda_efficient", "float32"),
        ((9, 0), torch.float64, 24, "plain", "float64"),
        ((7, 0), torch.float16, 24, "cuda_efficient", "compute capability 7.0"),
        ((7, 0), torch.bfloat16, 24, "plain", "bfloat16 on compute capability 7.0"),
    ],
)
def test_the_choice_on_a_card_says_why(capability, dtype, dim, name, why, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    choice = pick(torch.device("cuda"), dtype, dim)
    assert choice.backend.name == name
    assert why in choice.reason


@pytest.mark.parametrize("missing", ["", "find_spec", "which", "compiled"])  # the package, a compiler, compiled kernels
def test_without_triton_a_new_card_takes_the_flash_kernel(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setenv("TRITON_INTERPRET", str(int(missing == "compiled")))
    for name in ("find_spec", "which"):
        monkeypatch.setattr(backends, name, lambda _, name=name: None if name == missing else "there")
    expected = "cuda_flash" if missing else "triton_padded"
    assert pick(torch.device("cuda"), torch.bfloat16, 24).backend.name == expected
