"""Kernels on padded operands, interpreted: their idle columns, their bound and their two loops."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from tests.oracles import dilated as oracle

from longvit.attention import backends, dilated_attention
from longvit.attention.backends import BACKENDS, pick
from longvit.model.longvit import create_model

pytest.importorskip("triton", reason="the package triton is not installed (1 GB: extra longvit[triton])")
from longvit.attention import padded_branch, padded_kernels
from longvit.attention.triton_branch import Tile

BRANCHES = {"segment_lengths": (16, 40), "dilated_ratios": (1, 2)}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = {name: Tile(16, 16, 4, 2, tiles=1 if name == "keys" else 2) for name in padded_branch.TILES}
    monkeypatch.setattr(padded_branch, "TILES", tiles)


def tensors(*shape: int, seed: int = 0, n: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(n)]


def run(function, inputs, *args, **kwargs) -> list[torch.Tensor]:
    """→ output and the three gradients."""
    *qkv, grad_out = inputs
    leaves = [t.clone().requires_grad_() for t in qkv]
    out = function(*leaves, *args, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def assert_matches_the_oracle(inputs, tolerance: float = 3e-6) -> None:
    ours = run(dilated_attention, inputs, **BRANCHES, backend="triton_padded")
    want = run(oracle.dilated_attention, [t.double() for t in inputs], *BRANCHES.values())
    for name, a, b in zip(["out", "q", "k", "v"], ours, want, strict=True):
        assert torch.isfinite(a).all(), name
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), name


def test_logits_beyond_the_bound_use_the_online_softmax() -> None:
    # exp2 without a maximum overflows at 88 nats, and loses every term below −88
    for factor in (60.0, 140.0, 300.0):  # the second is just beyond the bound, in both directions
        q, k, v, grad_out = tensors(1, 40, 2, 24)
        q[:], k[:] = factor * 24**-0.5, 1.0
        k[:, ::3] = -1.0  # logits of ± factor
        assert_matches_the_oracle([q, k, v, grad_out], 1e-4)


def test_all_logits_far_below_zero_do_not_lose_the_sum() -> None:
    for factor in (110.0, 300.0):
        q, k, v, grad_out = tensors(1, 40, 2, 24)
        q[:], k[:] = factor * 24**-0.5, -1.0
        assert_matches_the_oracle([q, k, v, grad_out], 1e-4)


def test_one_large_key_and_one_large_query_block_are_exact() -> None:
    q, k, v, grad_out = tensors(1, 40, 2, 24)
    k[:, 7] *= 100
    assert_matches_the_oracle([q, k, v, grad_out], 2e-4)  # float32 logits of hundreds
    q, k, v, grad_out = tensors(1, 40, 2, 24)
    q[:, 33:] *= 100  # the second tile of a program alone
    assert_matches_the_oracle([q, k, v, grad_out], 2e-4)  # float32 logits of hundreds


def test_logits_just_below_the_bound_times_large_values_do_not_overflow() -> None:
    q, k, v, grad_out = tensors(1, 40, 1, 24)
    q[:], k[:] = 95 * math.log(2) * 24**-0.5, 1.0  # 95 in base 2, on every pair
    assert_matches_the_oracle([q, k, v * 1e11, grad_out * 1e-11], 1e-4)


def test_tokens_of_zeros_and_a_sequence_of_nothing_else() -> None:
    q, k, v, grad_out = tensors(1, 40, 2, 24)
    for t in (q, k, v):
        t[:, :20] = 0
    assert_matches_the_oracle([q, k, v, grad_out])
    assert_matches_the_oracle([torch.zeros_like(q)] * 3 + [grad_out])


def test_two_runs_have_the_same_bits() -> None:
    inputs = tensors(1, 40, 2, 24)
    first, second = (run(dilated_attention, inputs, **BRANCHES, backend="triton_padded") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_first_branch_writes_every_number_and_reads_none() -> None:
    q, k, v, grad_out = tensors(1, 37, 2, 24)
    out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:3], math.nan)
    padded_branch.branch_forward(padded_branch.forward_operands(q, k, v), out, lse, 16, 1, 0.2, False, True)
    grads = [torch.full_like(q, math.nan) for _ in range(3)]
    operands = padded_branch.backward_operands(grad_out, q, k, v, out, lse, 0.2)
    BACKENDS["triton_padded"].branches.backward(operands, grads, 16, 1, 0.2, True)
    assert all(torch.isfinite(t).all() for t in (out, lse, *grads))


def test_idle_columns_hold_a_log_sum_exp_and_row_sums_to_24_bits() -> None:
    q, k, v, grad_out = (t.bfloat16() for t in tensors(1, 21, 3, 24))
    out = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    lse = torch.linspace(-80, 300, 63).view(1, 21, 3).clone()
    lse[0, 5, 1], lse[0, 6, 1] = math.inf, -math.inf
    scale = 24**-0.5
    q_padded, k_padded, v_padded, g_padded = padded_branch.backward_operands(grad_out, q, k, v, out, lse, scale)
    for padded, plain in ((q_padded, q), (k_padded, k), (v_padded, v), (g_padded, grad_out)):
        assert torch.equal(padded[..., :24], plain)
        assert not padded[..., 27:].any()
    assert (k_padded[..., 24:27] == 1).all()
    assert (v_padded[..., 24:27] == 1).all()
    stored_lse = -q_padded[..., 24:27].double().sum(-1) * scale
    finite = lse.isfinite()
    assert ((stored_lse - lse).abs() <= 2e-7 * lse.abs() + 1e-7)[finite].all()
    assert (stored_lse[~finite] > 1e20).all()  # no log-sum-exp: no probability
    sums = (grad_out.double() * out.double()).sum(-1)
    error = (-g_padded[..., 24:27].double().sum(-1) - sums).abs()
    assert (error <= 1e-6 * sums.abs().clamp(min=1)).all()


def test_a_folded_scale_gives_what_a_factor_per_pair_gives() -> None:
    q, k, v, grad_out = tensors(1, 40, 2, 24)
    factor = 24**-0.5 / math.log(2)
    plain = run(dilated_attention, [q, k, v, grad_out], **BRANCHES, backend="triton_padded")
    folded = run(
        dilated_attention, [q * factor, k, v, grad_out], **BRANCHES, scale=math.log(2), backend="triton_padded"
    )
    folded[1] = folded[1] * factor
    for a, b in zip(plain, folded, strict=True):
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()


def test_the_polynomial_of_a_kernel_is_two_to_the_x() -> None:
    # the interpreter runs no PTX: its constants, in the order of the instructions
    constants = [int(bits, 16) for bits in re.findall(r"0f([0-9A-F]{8})", padded_kernels._POLYNOMIAL)]
    least, magic, _, c3, c2, c1, c0 = np.array(constants, np.uint32).view(np.float32)
    x = np.maximum(np.linspace(-140, 120, 100_001, dtype=np.float32), least)
    shifted = x + magic
    f = x - (shifted - magic)
    y = ((f * c3 + c2) * f + c1) * f + c0
    y = (y.view(np.int32) + (shifted.view(np.int32) << 23)).view(np.float32)
    assert np.abs(y / np.exp2(x.astype(np.float64)) - 1).max() < 1e-4
    assert padded_kernels._mix("sp").count("ex2") == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_with_the_scale_in_its_weights_has_the_same_logits_and_gradients(monkeypatch, recompute: bool) -> None:
    torch.manual_seed(0)
    model = create_model("longvit_tiny_patch32", num_classes=2)
    model.set_recompute(recompute)
    image, results = torch.rand(1, 3, 96, 96), {}
    for name in ("plain", "triton_padded"):
        monkeypatch.setenv("LONGVIT_ATTENTION", name)
        model.zero_grad()
        logits = model(image)
        logits[0, 0].backward()
        results[name] = [logits.detach(), *(p.grad.clone() for p in model.parameters())]
    for a, b in zip(*results.values(), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "name", "reason"),
    [
        (torch.bfloat16, 24, "triton_padded", "padded operands"),
        (torch.bfloat16, 48, "triton_padded", "padded operands"),
        (torch.bfloat16, 64, "triton", "a head dim of 64 leaves 0 idle columns of 3"),
        (torch.bfloat16, 30, "triton", "a head dim of 30 leaves 2 idle columns of 3"),
        (torch.float16, 24, "triton", "float16 does not hold a log-sum-exp"),
    ],
)
def test_a_card_gets_padded_operands_where_they_fit_and_the_reason_where_not(
    dtype, head_dim, name, reason, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.delenv("LONGVIT_ATTENTION", raising=False)
    choice = pick(torch.device("cuda:0"), dtype, head_dim)
    assert choice.backend.name == name
    assert reason in choice.reason


def test_requesting_padded_operands_where_they_do_not_fit_names_the_way_out() -> None:
    with pytest.raises(ValueError, match="a head dim of 64 leaves 0 idle columns of 3; use 'triton'"):
        pick(torch.device("cpu"), torch.bfloat16, 64, "triton_padded")
    assert BACKENDS["triton_padded"].folds_scale
