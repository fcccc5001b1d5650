"""Triton kernels on a CPU: interpreted, against the float64 oracle and the plain twin; and through the compiler.

Blocks are 16 × 16 here, so that short sequences have several of them and a ragged last one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.oracles import dilated as oracle

from longvit.attention import backends, dilated_attention, dilated_attention_packed
from longvit.attention.backends import BACKENDS, pick

pytest.importorskip("triton", reason="the package triton is not installed (1 GB: extra longvit[triton])")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from longvit.attention import padded_branch, triton_branch

    small = {name: triton_branch.Tile(16, 16, 4, 2) for name in triton_branch.TILES}
    monkeypatch.setattr(triton_branch, "TILES", small)
    two = {name: triton_branch.Tile(16, 16, 4, 2, 1 if name == "keys" else 2) for name in padded_branch.TILES}
    monkeypatch.setattr(padded_branch, "TILES", two)


KERNELS = pytest.mark.parametrize("backend", ["triton", "triton_padded"])


def tensors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, n: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for _ in range(n)]


def run(function, inputs, *args, **kwargs) -> list[torch.Tensor]:
    """→ output and the three gradients."""
    *qkv, grad_out = inputs
    leaves = [t.clone().requires_grad_() for t in qkv]
    out = function(*leaves, *args, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def close(ours, want, tolerance: float = 3e-6) -> None:
    for name, a, b in zip(["out", "q", "k", "v"], ours, want, strict=True):
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp(min=1), name


@pytest.mark.parametrize(
    ("shape", "segments", "ratios"),
    [
        ((1, 50, 4, 24), (16, 48), (1, 2)),  # tail of 2 tokens, several blocks
        ((1, 150, 3, 48), (100, 150), (1, 3)),  # two tiles per program, the second of them part empty
        ((2, 41, 3, 8), (13, 13, 29, 129), (1, 3, 7, 9)),  # nothing divides; a segment longer than the sequence
        ((1, 40, 4, 24), (8, 40), (2, 16)),  # ratio 16 of 4 heads; tokens that no branch reaches
        ((2, 7, 2, 3), (5,), (3,)),  # segments shorter than the ratio's last offset
        ((1, 1, 1, 40), (4, 9), (1, 5)),
    ],
)
@KERNELS
def test_outputs_and_gradients_match_the_equation(shape, segments, ratios, backend) -> None:
    inputs = tensors(*shape, seed=shape[1])
    ours = run(dilated_attention, inputs, segment_lengths=segments, dilated_ratios=ratios, backend=backend)
    close(ours, run(oracle.dilated_attention, [t.double() for t in inputs], segments, ratios))


@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("ragged", ["masked", "padded"])
@KERNELS
def test_padding_lengths_and_detached_gradients_match_the_plain_twin(gradient: str, ragged: str, backend: str) -> None:
    settings = {"segment_lengths": (16, 18, 40), "dilated_ratios": (1, 4, 3), "gradient": gradient, "ragged": ragged}
    for shape, lengths in (((1, 39, 4, 8), None), ((3, 19, 3, 8), [19, 0, 11]), ((1, 30, 3, 8), [11, 11, 5])):
        inputs = tensors(*shape, seed=1)
        results = [
            run(dilated_attention, inputs, **settings, lengths=lengths, backend=name) for name in (backend, "plain")
        ]
        close(*results)


@KERNELS
def test_positions_beyond_a_sequence_are_not_read(backend: str) -> None:
    q, k, v, grad_out = tensors(2, 20, 2, 8)
    for t in (q, k, v):
        t[0, 13:] = float("nan")
    settings = {"segment_lengths": (8, 20), "dilated_ratios": (1, 2), "lengths": [13, 20], "backend": backend}
    for result in run(dilated_attention, [q, k, v, grad_out], **settings):
        assert torch.isfinite(result).all()
        assert not result[0, 13:].any()


@KERNELS
def test_a_fused_projection_and_an_expanded_gradient_are_read_in_place(backend: str) -> None:
    q, k, v, _ = tensors(2, 36, 4, 24)
    settings = {"segment_lengths": (16, 36), "dilated_ratios": (1, 4), "backend": backend}
    want = run(dilated_attention, [q, k, v, torch.ones_like(q)], **settings)
    qkv = torch.stack([q, k, v], 2).requires_grad_()
    out = dilated_attention_packed(qkv, **settings)
    out.sum().backward()
    assert torch.equal(out, want[0])
    assert all(torch.equal(a, b) for a, b in zip(qkv.grad.unbind(2), want[1:], strict=True))


@pytest.fixture
def _dot_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 as integers (triton 3.9): this converts them to float32."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def dot(self, a, b, d, *options):
        a, b = (self.cast_impl(t, float32) if t.dtype.scalar == bfloat16 else t for t in (a, b))
        return plain(self, a, b, d, *options)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.mark.usefixtures("_dot_of_bfloat16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_pytorch(dtype: torch.dtype) -> None:
    inputs = tensors(1, 64, 4, 24, seed=2, dtype=dtype)
    exact = [t.double() for t in inputs]
    heads_first = lambda f: lambda q, k, v: f(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)  # noqa: E731
    plain = heads_first(torch.nn.functional.scaled_dot_product_attention)
    yardstick, truth = run(plain, inputs), run(plain, exact)
    ours = run(dilated_attention, inputs, segment_lengths=(16, 64), dilated_ratios=(1, 4), backend="triton")
    want = run(oracle.dilated_attention, exact, (16, 64), (1, 4))
    for a, b, c, d in zip(ours, want, yardstick, truth, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error <= 2 * (c.double() - d).abs().max() / d.abs().max() + torch.finfo(dtype).eps


@pytest.mark.parametrize(("queries", "keys"), [(5, 37), (33, 16)])
@KERNELS
def test_a_call_takes_queries_and_keys_of_two_lengths(queries: int, keys: int, backend: str) -> None:
    # a rank's own queries over the keys of a shared segment
    q, grad_out = (t.transpose(1, 2) for t in tensors(2, queries, 3, 24, seed=3, n=2))
    k, v = (t.transpose(1, 2) for t in tensors(2, keys, 3, 24, seed=4, n=2))
    results = []
    for name in (backend, "plain"):
        out, lse = BACKENDS[name].forward(q, k, v, 0.3)
        merged = lse + 1.5  # backward takes any (out, lse)
        results.append([out, lse, *BACKENDS[name].backward(grad_out, q, k, v, out, merged, 0.3)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()


@KERNELS
def test_very_negative_scores_of_absent_keys_give_no_nan(backend: str) -> None:
    # lse far below 0: exp(−lse) of a key beyond the end would be infinite
    q, k, v, grad_out = tensors(1, 19, 1, 8)
    q, k = q * 0 + 40.0, k * 0 - 40.0
    for result in run(
        dilated_attention, [q, k, v, grad_out], segment_lengths=(19,), dilated_ratios=(1,), backend=backend
    ):
        assert torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "interpret", "message"),
    [
        (torch.float64, 24, "1", "float32, bfloat16 or float16, got float64"),
        (torch.float32, 200, "1", "head dims up to 128, got 200"),
        (torch.float32, 24, "0", "runs on cuda, the tensors are on cpu"),
    ],
)
def test_what_the_kernel_cannot_do_is_one_line(dtype, head_dim, interpret, message, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError, match=message):
        pick(torch.device("cpu"), dtype, head_dim, "triton")


def test_an_old_card_and_a_scale_of_zero_are_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    with pytest.raises(ValueError, match=r"compute capability 8.0, cuda:0 has 7.0"):
        pick(torch.device("cuda:0"), torch.float16, 24, "triton")
    q, k, v, _ = tensors(1, 4, 1, 8)
    with pytest.raises(ValueError, match="scale above 0, got 0"):
        dilated_attention(q, k, v, segment_lengths=(4,), dilated_ratios=(1,), scale=0.0, backend="triton")


def test_without_triton_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'longvit\[triton\]'"):
        pick(torch.device("cpu"), torch.float32, 24, "triton")


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_card_and_read_16_bytes_at_once(capability: int) -> None:
    # the interpreter accepts code that the compiler refuses; a row of 24 bfloat16 must not be read element by element;
    # ratios and segments must not be recompiled (seconds each): two compilations, for the first branch and the others
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "compile_without_card.py"), "attention", str(capability)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "row_sums 1 1 False",
        "forward 3 2 True",
        "keys_backward 3 2 True",
        "queries_backward 3 2 True",
    ]


class Kernel:
    """Replaces a kernel: records the arguments of its launches by name."""

    def __init__(self, kernel) -> None:
        self.arg_names = kernel.arg_names
        self.launches: list[dict] = []

    def __getitem__(self, grid):
        def start(*args, **options) -> None:
            assert len(args) == len(self.arg_names)
            self.launches.append(dict(zip(self.arg_names, args, strict=True)) | options | {"grid": grid})

        return start


def test_a_launch_is_planned_once_per_strides_tiles_and_branch(monkeypatch) -> None:
    from longvit.attention import triton_branch

    kernel = Kernel(triton_branch.triton_kernels.forward)
    monkeypatch.setattr(triton_branch.triton_kernels, "forward", kernel)
    fused, apart = torch.zeros(2, 40, 3, 4, 24).unbind(2), [torch.zeros(2, 40, 4, 24) for _ in range(3)]
    out, lse = torch.zeros(2, 40, 4, 24), torch.zeros(2, 40, 4)

    def planned(operands, w: int, r: int, scale: float = 0.2) -> tuple[int, dict]:
        before = triton_branch._planned.cache_info().misses
        triton_branch.branch_forward(operands, out, lse, w, r, scale)
        return triton_branch._planned.cache_info().misses - before, kernel.launches[-1]

    new, first = planned(fused, 16, 1)
    assert new == 1
    assert [first[f"{name}_n"] for name in ("q", "k", "v", "out", "lse")] == [288, 288, 288, 96, 4]
    assert [first[f"{name}_row"] for name in ("q", "out", "lse")] == [11520, 3840, 160]
    assert (first["N"], first["w"], first["r"], first["H"], first["g"], first["group"]) == (40, 16, 1, 4, 4, 16)
    assert (first["D"], first["D_TILE"], first["num_warps"], first["grid"]) == (24, 32, 4, (24,))
    assert [first["K"] is t for t in fused] == [False, True, False]
    new, again = planned([t.contiguous() for t in fused], 16, 1)  # other strides
    assert (new, again["q_n"]) == (1, 96)
    assert planned(apart, 16, 1)[0] == 0  # the same strides, other tensors
    assert kernel.launches[-1]["Q"] is apart[0]
    assert planned(apart, 16, 2)[0] == planned(apart, 8, 2)[0] == planned(apart, 8, 2, 0.3)[0] == 1
    assert kernel.launches[-1]["scale"] == pytest.approx(0.3 * triton_branch.LOG2_E)
    monkeypatch.setitem(triton_branch.TILES, "forward", triton_branch.Tile(32, 16, 8, 3))
    new, last = planned(apart, 16, 1)
    assert (new, last["num_warps"], last["num_stages"]) == (1, 8, 3)
    triton_branch.branch_forward([t[:0] for t in apart], out[:0], lse[:0], 16, 1, 0.2)
    assert kernel.launches[-1] is last  # nothing to do
