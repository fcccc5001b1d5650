"""Edge cases: unreached tokens, strides, packed sequences, compile, FLOPs, wrong arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longvit.attention import attention_pairs, dilated_attention, dilated_attention_packed
from longvit.attention.backends import pick
from longvit.attention.branches import calls, sequence_groups

PAPER = {"segment_lengths": (64, 128, 256, 512, 1024), "dilated_ratios": (1, 2, 4, 8, 16)}


def qkv(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def test_a_token_that_no_branch_reaches_gives_zero_and_a_finite_gradient() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 10, 1, 4))
    out = dilated_attention(q, k, v, segment_lengths=(10,), dilated_ratios=(3,))
    assert torch.equal(out[0, 1], torch.zeros_like(out[0, 1]))
    assert out[0, 0].abs().sum() > 0
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert torch.isfinite(grad).all()
        assert torch.equal(grad[0, 1], torch.zeros_like(grad[0, 1]))


def test_a_log_sum_exp_of_exactly_zero_is_not_taken_for_absent() -> None:
    # the published code does: with q = 0 and one key, lse = 0 and the branch vanishes
    q, k, v = qkv(1, 4, 1, 4)
    out = dilated_attention(torch.zeros_like(q), k, v, segment_lengths=(1, 4), dilated_ratios=(1, 1))
    want = (v + v.sum(1, keepdim=True)) / 5  # its own key twice, the three others once
    assert torch.allclose(out, want, atol=1e-12)


@pytest.mark.parametrize("layout", ["heads first", "fused", "sliced", "expanded", "head dim last but one"])
def test_any_strides_give_the_same(layout: str) -> None:
    plain = qkv(2, 96, 4, 8)
    if layout == "heads first":
        odd = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in plain]
    elif layout == "fused":
        odd = list(torch.stack(plain, 2).unbind(2))
    elif layout == "sliced":
        odd = [torch.cat([t, t], 1)[:, :96] for t in plain]
    elif layout == "expanded":
        plain = [t[:1].expand(2, -1, -1, -1).contiguous() for t in plain]
        odd = [t[:1].expand(2, -1, -1, -1) for t in plain]
    else:
        odd = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in plain]
    settings = {"segment_lengths": (8, 24, 96), "dilated_ratios": (1, 2, 4)}
    want = dilated_attention(*plain, **settings)
    assert torch.allclose(dilated_attention(*odd, **settings), want, atol=1e-14)
    leaves = [t.detach().requires_grad_() for t in odd]
    dilated_attention(*leaves, **settings).sum().backward()  # an expanded gradient, stride 0
    assert all(torch.isfinite(t.grad).all() for t in leaves)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("ragged", ["masked", "padded"])
@pytest.mark.parametrize("packed", [False, True])
def test_sequences_of_different_length_equal_each_alone(packed: bool, ragged: str, gradient: str) -> None:
    lengths = [5, 48, 48, 0, 1, 31, 50]
    settings = {"segment_lengths": (8, 20, 64), "dilated_ratios": (1, 3, 4), "ragged": ragged, "gradient": gradient}
    parts = [qkv(1, n, 4, 8, seed=n) for n in lengths]
    alone, grads = [], []
    for part in parts:
        leaves = [t.requires_grad_() for t in part]
        out = dilated_attention(*leaves, **settings)
        out.square().sum().backward()
        alone.append(out.detach())
        grads.append([t.grad for t in leaves])
    if packed:
        joined = [torch.cat([p[i].detach() for p in parts], 1) for i in range(3)]
        cut = lambda t: list(t.split(lengths, 1))  # noqa: E731
    else:
        rows = [torch.full((len(lengths), 50, 4, 8), float("nan"), dtype=torch.float64) for _ in range(3)]
        for i, row in enumerate(rows):
            for b, p in enumerate(parts):
                row[b, : lengths[b]] = p[i][0].detach()
        joined = rows
        cut = lambda t: [t[b : b + 1, :n] for b, n in enumerate(lengths)]  # noqa: E731
    leaves = [t.requires_grad_() for t in joined]
    out = dilated_attention(*leaves, **settings, lengths=lengths)
    assert torch.isfinite(out).all()  # positions beyond a sequence are not read
    out.square().sum().backward()
    for got, want in zip(cut(out.detach()), alone, strict=True):
        assert torch.allclose(got, want, atol=1e-13)
    for i, leaf in enumerate(leaves):
        assert torch.isfinite(leaf.grad).all()
        for got, want in zip(cut(leaf.grad), (g[i] for g in grads), strict=True):
            assert torch.allclose(got, want, atol=1e-12)


def test_an_empty_sequence_gives_an_empty_result() -> None:
    q, k, v = qkv(2, 0, 4, 8)
    assert dilated_attention(q, k, v, **PAPER).shape == (2, 0, 4, 8)


def test_at_most_min_r_and_heads_over_r_calls_a_branch() -> None:
    (group,) = sequence_groups(1, 16384, None)
    for r, expected in zip((1, 2, 4, 8, 16), (1, 2, 4, 2, 1), strict=True):
        assert len(list(calls(group, 16, 4096, r, padded=False, rows_adjoin=True))) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_compile_gives_the_same(dtype: torch.dtype) -> None:
    tensors = qkv(1, 64, 4, 8, dtype=dtype)
    function = lambda q, k, v: dilated_attention(  # noqa: E731
        q * 2, k, v, segment_lengths=(16, 64), dilated_ratios=(1, 4)
    ).sin()
    results = []
    for f in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = f(*leaves)
        out.sum().backward()
        results.append([out.detach(), *(t.grad for t in leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_operators_pass_pytorchs_own_checks() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 40, 4, 8, dtype=torch.float32))
    settings = ([8, 40], [1, 2], None, False, False, 0.3, "auto")
    torch.library.opcheck(torch.ops.longvit.dilated_attention.default, ([q, k, v], *settings))
    torch.library.opcheck(torch.ops.longvit.dilated_attention.default, ([torch.stack([q, k, v], 2)], *settings))


def test_flops_are_counted_from_the_pairs() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 1024, 16, 24, dtype=torch.float32))
    pairs = 16 * 1024 * (64 + 128 // 4 + 256 // 16 + 512 // 64 + 1024 // 256)
    assert attention_pairs(1, 1024, 16, *PAPER.values()) == pairs
    with FlopCounterMode(display=False) as counter:
        out = dilated_attention(q, k, v, **PAPER)
    assert counter.get_total_flops() == 4 * 24 * pairs
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 10 * 24 * pairs


def test_the_back_end_gives_its_reason_and_refuses_the_wrong_device() -> None:
    cpu = torch.device("cpu")
    assert pick(cpu, torch.float32, 24).backend.name == "cpu_flash"
    assert "float32" in pick(cpu, torch.float32, 24).reason
    assert pick(torch.device("mps"), torch.float32, 24).backend.name == "plain"
    with pytest.raises(ValueError, match=r"cuda_flash.*cpu"):
        pick(cpu, torch.float32, 24, "cuda_flash")
    with pytest.raises(ValueError, match="plain"):
        pick(cpu, torch.float32, 24, "flash3")


def test_a_back_end_for_a_whole_model_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("LONGVIT_ATTENTION", "plain")
    assert pick(cpu, torch.float32, 24).backend.name == "plain"
    assert "LONGVIT_ATTENTION" in pick(cpu, torch.float32, 24).reason
    assert pick(cpu, torch.float32, 24, "cpu_flash").backend.name == "cpu_flash"  # a name in the call takes precedence
    monkeypatch.setenv("LONGVIT_ATTENTION", "cuda_flash")
    with pytest.raises(ValueError, match=r"cuda_flash.*cuda.*cpu"):
        pick(cpu, torch.float32, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_lengths": (8,)}, "1 segment lengths, 2 ratios"),
        ({"segment_lengths": (8, 0)}, r"segment length must be at least 1, got \(8, 0\)"),
        ({"dilated_ratios": (1, -2)}, "dilated ratio"),
        ({"gradient": "true"}, "'exact', 'detached'"),
        ({"ragged": "cut"}, "'masked', 'padded'"),
        ({"lengths": [9, 4, 4]}, "3 lengths for a batch of 2"),
        ({"lengths": [9, 40]}, r"\[9, 40\] do not fit into 16"),
        ({"backend": "flash3"}, "flash3"),
    ],
)
def test_wrong_settings_name_both_numbers(change: dict, message: str) -> None:
    settings = {"segment_lengths": (8, 16), "dilated_ratios": (1, 2)} | change
    with pytest.raises(ValueError, match=message):
        dilated_attention(*qkv(2, 16, 4, 8), **settings)


def test_wrong_tensors_name_their_shapes() -> None:
    q, k, v = qkv(2, 16, 4, 8)
    with pytest.raises(ValueError, match=r"\(2, 8, 4, 8\)"):
        dilated_attention(q, k[:, :8], v, **PAPER)
    with pytest.raises(ValueError, match="float32"):
        dilated_attention(q, k, v.float(), **PAPER)
    with pytest.raises(ValueError, match="floating point"):
        dilated_attention(*(t.long() for t in (q, k, v)), **PAPER)
    with pytest.raises(ValueError, match="3, heads"):
        dilated_attention_packed(q, **PAPER)


def test_the_precision_of_products_is_known_whichever_setting_was_used() -> None:
    # PyTorch raises where the older setting is read after the newer one was set
    code = """
import torch
from longvit.attention.backends import matmul_precision
assert matmul_precision() == "ieee"
for value, want in (("high", "tf32"), ("medium", "tf32"), ("highest", "ieee")):
    torch.set_float32_matmul_precision(value)
    assert matmul_precision() == want, value
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    for value in ("tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = value
        assert matmul_precision() == value
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
