"""Dilated attention against a dense float64 oracle, PyTorch's attention, the authors' golden tensors, gradcheck."""

from __future__ import annotations

import json

import pytest
import torch
from tests.conftest import shared
from tests.oracles import dilated as oracle

from longvit.attention import dilated_attention, dilated_attention_packed

ODD = [  # segment lengths and ratios that divide nothing, or exceed the sequence or the heads
    ((5,), (3,)),
    ((3, 7, 31), (1, 2, 5)),
    ((1, 9, 200), (1, 4, 3)),
    ((16, 64), (2, 16)),
    ((13, 13, 50, 129), (1, 3, 7, 9)),
]


def inputs(
    batch: int, n: int, heads: int, dim: int, seed: int, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, heads, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


def run(function, tensors, *args, **kwargs):
    """→ output and the three gradients."""
    *qkv, grad_out = tensors
    leaves = [t.clone().requires_grad_() for t in qkv]
    out = function(*leaves, *args, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(ODD)))
@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("backend", ["auto", "cpu_flash"])  # short sequences in one call, or branch by branch
def test_every_length_from_1_to_130_matches_the_equation(case: int, heads: int, backend: str) -> None:
    segments, ratios = ODD[case]
    for n in range(1, 131):
        tensors = inputs(1 + n % 2, n, heads, 4 + n % 3, seed=n)
        ours = run(dilated_attention, tensors, segment_lengths=segments, dilated_ratios=ratios, backend=backend)
        want = run(oracle.dilated_attention, tensors, segments, ratios)
        for name, a, b in zip(["out", "q", "k", "v"], ours, want, strict=True):
            assert (a - b).abs().max() <= 1e-12, (n, name)


@pytest.mark.parametrize("backend", ["cpu_flash", "plain"])
@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_both_gradients_on_both_back_ends_match_the_equation(backend: str, gradient: str) -> None:
    for n in (1, 7, 64, 97):
        tensors = inputs(2, n, 4, 8, seed=n)
        segments, ratios = (8, 24, 64), (1, 2, 4)
        settings = {"segment_lengths": segments, "dilated_ratios": ratios, "gradient": gradient, "backend": backend}
        ours = run(dilated_attention, tensors, **settings)
        want = run(oracle.dilated_attention, tensors, segments, ratios, gradient == "detached")
        for a, b in zip(ours, want, strict=True):
            assert (a - b).abs().max() <= 1e-12, n


def test_detached_and_exact_gradients_differ() -> None:
    tensors = inputs(1, 64, 4, 8, seed=0)
    settings = {"segment_lengths": (16, 64), "dilated_ratios": (1, 2)}
    exact = run(dilated_attention, tensors, **settings)
    detached = run(dilated_attention, tensors, **settings, gradient="detached")
    assert torch.equal(exact[0], detached[0])
    assert (exact[1] - detached[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("heads", "ratio"), [(2, 8), (4, 2), (3, 2)])
def test_gradcheck(heads: int, ratio: int) -> None:
    q, k, v, _ = inputs(1, 11, heads, 3, seed=1)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: dilated_attention(q, k, v, segment_lengths=(4, 9), dilated_ratios=(1, ratio)), leaves
    )


@pytest.mark.parametrize(
    ("dtype", "dim"), [(d, n) for d in (torch.float32, torch.bfloat16, torch.float16) for n in (3, 24, 64)]
)
def test_low_precision_errs_at_most_twice_as_much_as_pytorch(dtype: torch.dtype, dim: int) -> None:
    # one branch over everything is plain attention: PyTorch's own error on it is the yardstick for five branches
    tensors = inputs(1, 256, 16, dim, seed=2)
    low = [t.to(dtype) for t in tensors]
    exact = [t.double() for t in low]
    plain = torch.nn.functional.scaled_dot_product_attention
    heads_first = lambda f: lambda q, k, v: f(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)  # noqa: E731
    yardstick = run(heads_first(plain), low)
    truth = run(heads_first(plain), exact)
    segments, ratios = (16, 32, 64, 128, 256), (1, 2, 4, 8, 16)
    ours = run(dilated_attention, low, segment_lengths=segments, dilated_ratios=ratios)
    want = run(oracle.dilated_attention, exact, segments, ratios)
    for name, a, b, c, d in zip(["out", "q", "k", "v"], ours, want, yardstick, truth, strict=True):
        assert a.dtype == dtype
        error = ((a.double() - b).abs().max() / b.abs().max()).item()
        pytorch = ((c.double() - d).abs().max() / d.abs().max()).item()
        assert error <= 2 * pytorch + torch.finfo(dtype).eps, (name, error, pytorch)


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "even_small",
        "segment_longer_than_sequence",
        "ragged_tail",
        "heads_not_divisible_by_ratio",
        "ratio_larger_than_heads",
        "segment_not_divisible_by_ratio",
        "length_one",
    ],
)
def test_golden_outputs_and_gradients_of_the_authors_code(name: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(shared("golden/dilated_attention.safetensors"))
    case = json.loads(shared("golden/dilated_attention.json").read_text())[name]
    ours = run(
        dilated_attention,
        [tensors[f"{name}.{x}"] for x in ("q", "k", "v", "grad_out")],
        segment_lengths=case["segment_lengths"],
        dilated_ratios=case["dilated_ratios"],
        gradient="detached",
        ragged="padded",
    )
    for got, key in zip(ours, ("out", "grad_q", "grad_k", "grad_v"), strict=True):
        want = tensors[f"{name}.{key}"]
        # with one key, q and k get 0 from the authors' code and grad_out · v − grad_out · out from ours: two sums of
        # the same terms, whose order, and so whose last bit, depends on the processor
        assert (got - want).abs().max() <= max(1e-10 * want.abs().max(), 1e-15), key


@pytest.mark.shared
@pytest.mark.parametrize(("n", "w", "r"), [(300, 75, 4), (143, 25, 16), (50, 3, 7), (97, 97, 8), (129, 16, 5)])
def test_published_code_run_side_by_side_where_nothing_divides(n: int, w: int, r: int) -> None:
    import sys

    sys.path.insert(0, str(shared("peers")))
    import peer

    tensors = inputs(2, n, 6, 8, seed=n)
    published = run(lambda q, k, v: peer.dilated_attention(q, k, v, [8, w], (1, r)), tensors)
    ours = run(
        dilated_attention,
        tensors,
        segment_lengths=[8, w],
        dilated_ratios=[1, r],
        gradient="detached",
        ragged="padded",
    )
    for a, b in zip(ours, published, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_a_fused_projection_gives_the_same_as_three_tensors() -> None:
    q, k, v, grad_out = inputs(2, 96, 4, 8, seed=3)
    settings = {"segment_lengths": (16, 96), "dilated_ratios": (1, 4)}
    want = run(dilated_attention, [q, k, v, grad_out], **settings)
    qkv = torch.stack([q, k, v], 2).requires_grad_()
    out = dilated_attention_packed(qkv, **settings)
    (grad,) = torch.autograd.grad(out, qkv, grad_out)
    assert torch.equal(out, want[0])
    assert all(torch.equal(a, b) for a, b in zip(grad.unbind(2), want[1:], strict=True))
