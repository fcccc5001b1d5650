"""The fused norm kernels on a CPU: interpreted, against float64 PyTorch; in the model, against the plain path.

Tiles are small here, so that every program takes several of them and the last one is ragged.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.model import embedding, fused_norms
from longvit.model import norm_linear as nl
from longvit.model.longvit import LongViT, LongViTConfig

pytest.importorskip("triton", reason="the package triton is not installed (1 GB: extra longvit[triton])")

EPS = 1e-5


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {kernel: ((0, fused_norms.Shape(4, 1, 1, 3)),) for kernel in fused_norms.SHAPES}
    monkeypatch.setattr(fused_norms, "SHAPES", small)


def rows(kind: str, tokens: int, width: int) -> Tensor:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(width))
    if kind == "far from 0":
        return 1e3 + x
    if kind == "nearly constant":
        return 1e-4 * x
    if kind == "zero rows":
        x[::2] = 0
    if kind == "strided":
        return torch.cat([x, x], 1).view(tokens, 2, width)[:, 0]
    return x


def parameters(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return 1 + 0.3 * torch.randn(width, generator=generator), torch.randn(width, generator=generator)


def exact(x: Tensor, w: Tensor, b: Tensor, gelu: bool, grad: Tensor) -> list[Tensor]:
    """float64 → the norm, gradients of x, w and b."""
    leaves = [t.double().requires_grad_() for t in (x, w, b)]
    a = F.gelu(leaves[0]) if gelu else leaves[0]
    n = F.layer_norm(a, a.shape[-1:], leaves[1], leaves[2], EPS)
    return [n.detach(), *torch.autograd.grad(n, leaves, grad.double())]


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def close(ours: Tensor, want: Tensor, tolerance: float) -> None:
    assert (ours.double() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-30)


KINDS = ["plain", "far from 0", "nearly constant", "zero rows", "strided"]
SIZES = [(23, 24), (7, 40), (5, 96), (21, 384), (6, 1536), (3, 200), (9, 1), (1, 16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
@pytest.mark.parametrize("gelu", [False, True])
def test_values_gradients_and_sums_over_rows_match_float64(kind: str, tokens: int, width: int, gelu: bool) -> None:
    x, (w, b) = rows(kind, tokens, width), parameters(width)
    grad = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))
    want = exact(x, w, b, gelu, grad)
    # a deviation is exact to 6e-8 of its value, and divided by σ: float32 itself, not the kernel, sets the limit
    a = F.gelu(x.double()) if gelu else x.double()
    sigma = (a.var(-1, unbiased=False) + EPS).sqrt()
    limit = 4e-6 + 1.5e-7 * float((a.abs().amax(-1) / sigma).max())
    again, sums = poisoned(tokens, width), fused_norms.RowSums(x)
    n = fused_norms.norm(x, w, b, EPS, gelu, torch.float32)
    grad_x = fused_norms.norm_backward(x, grad, w, b, EPS, gelu, sums, n=again)
    assert torch.equal(n, again)
    close(n, want[0], limit)
    if width > 1:  # else the gradient of x is 0, a difference of two equal numbers
        close(grad_x, want[1], 3 * limit)
    grad_w, grad_b, unused = sums.result()
    assert (grad_w - want[2]).abs().max() <= 1e-6 + 3 * limit * (grad.double() * (want[0] - b) / w).abs().sum(0).max()
    close(grad_b, want[3], 1e-6)
    assert not unused.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
def test_every_dtype_errs_by_its_own_rounding_alone(dtype: torch.dtype, gelu: bool) -> None:
    x, (w, b), grad = 2 * rows("plain", 21, 96).to(dtype), parameters(96), rows("far from 0", 21, 96).to(dtype)
    want, sums = exact(x, w, b, gelu, grad), fused_norms.RowSums(x)
    n = fused_norms.norm(x, w, b, EPS, gelu, dtype)
    grad_x = fused_norms.norm_backward(x, grad, w, b, EPS, gelu, sums)
    assert n.dtype == grad_x.dtype == dtype
    one = torch.finfo(dtype).eps  # the interpreter truncates bfloat16, a card rounds it
    close(n, want[0], one + 4e-6)
    close(grad_x, want[1], one + 4e-5)
    for ours, exactly in zip(sums.result()[:2], want[2:], strict=True):
        close(ours, exactly, 2e-5)


def test_gelu_of_16_bit_numbers_is_the_exact_one_to_float32() -> None:
    x = torch.linspace(-9, 9, 4096).to(torch.bfloat16).view(1, -1)
    ours = fused_norms.norm(x, torch.ones(4096), torch.zeros(4096), EPS, True, torch.float32)
    want = exact(x, torch.ones(4096), torch.zeros(4096), True, torch.zeros(1, 4096))[0]
    assert (ours - want).abs().max() < 1e-6


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_scale_and_narrow_copy_are_written_in_one_pass(scaled: bool, dtype: torch.dtype) -> None:
    tokens, width = 19, 96
    x, residual, y = (torch.randn(tokens, width, generator=torch.Generator().manual_seed(i)) for i in range(3))
    (w, b), y = parameters(width), y.to(dtype)
    scale = torch.tensor([0.0, 1.25]).repeat(10)[:tokens].view(-1, 1).to(dtype) if scaled else None
    ours, want = (f(x, y, scale, w, b, EPS, torch.float32) for f in (fused_norms.add_norm, fused_norms.plain_add_norm))
    for a, c in zip(ours, want, strict=True):
        close(a, c.double(), 3e-6)
    sums, narrow, out = fused_norms.RowSums(x), poisoned(tokens, width, dtype=dtype), poisoned(tokens, width)
    settings = {"residual": residual, "scale": scale}
    fused_norms.norm_backward(x, y, w, b, EPS, False, sums, **settings, out=out, narrow=narrow, sum_out=True)
    grad_x, scaled_grad, want_sums = fused_norms.plain_norm_backward(x, y, w, b, EPS, False, **settings)
    close(out, grad_x.double(), 3e-6)
    close(narrow, scaled_grad.double(), 3e-6 + torch.finfo(dtype).eps)
    for a, c in zip(sums.result(), want_sums, strict=True):
        close(a, c.double(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 40, 96, 384])
def test_the_sum_alone_has_torch_s_bits_and_may_replace_its_input(dtype: torch.dtype, width: int) -> None:
    x, y = 1e3 * rows("strided", 23, width), rows("far from 0", 23, width).to(dtype)
    x[3], y[5, 0] = float("inf"), float("nan")
    want, out = x + y, poisoned(23, width)
    assert fused_norms.add(x, y, out) is out
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(fused_norms.add(x, y, x), want, rtol=0, atol=0, equal_nan=True)
    assert fused_norms.add(x[:0], y[:0], x[:0]).shape == (0, width)


def test_a_block_without_gradients_adds_its_second_branch_in_one_pass(monkeypatch) -> None:
    monkeypatch.setenv(fused_norms.VARIABLE, "1")
    model = LongViT(LongViTConfig(embed_dim=24, depth=1, num_heads=2, ffn_dim=40, grid_patches=2)).eval()
    x, added = torch.randn(1, 9, 24), []
    add = fused_norms.add
    monkeypatch.setattr(fused_norms, "add", lambda *args: added.append(args[1].dtype) or add(*args))
    monkeypatch.setattr(nl, "CHUNK_TOKENS", 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model.encode(x)
        assert added == [torch.bfloat16] * 3
        monkeypatch.setattr(fused_norms, "add", lambda x, y, out: torch.add(x, y, out=out))
        assert torch.equal(ours, model.encode(x))


def test_sums_over_chunks_of_different_size_repeat_to_the_bit() -> None:
    x, (w, b), grad = rows("plain", 50, 24), parameters(24), rows("plain", 50, 24)
    results = []
    for _ in range(2):
        sums, cast_sums = fused_norms.RowSums(x[:23]), fused_norms.RowSums(x[:23], "cast")
        for c in (slice(0, 23), slice(23, 46), slice(46, 50), slice(50, 50)):
            fused_norms.norm_backward(x[c], grad[c], w, b, EPS, True, sums, sum_out=True)
            fused_norms.cast_and_sum(grad[c], None, torch.bfloat16, cast_sums)
        results.append([sums.result(), cast_sums.result()[0]])
    assert all(torch.equal(a, c) for a, c in zip(*results, strict=True))
    _, scaled, want = fused_norms.plain_norm_backward(x, grad, w, b, EPS, True)
    close(results[0][0], want.double(), 1e-5)
    close(results[0][0][2], scaled.sum(0).double(), 1e-5)
    close(results[0][1], grad.double().sum(0), 1e-6)


def test_rows_of_zero_variance_with_eps_0_leave_no_nan_in_the_sums_of_others() -> None:
    x, (w, b) = rows("plain", 5, 24), parameters(24)  # 5 rows in tiles of 4: three rows of zeros beyond the end
    sums = fused_norms.RowSums(x)
    fused_norms.norm_backward(x, x, w, b, 0.0, False, sums, sum_out=True)
    assert torch.isfinite(sums.result()).all()


@pytest.mark.parametrize("patch_px", [8, 12])
def test_patches_are_those_of_the_plain_path_whatever_the_strides(patch_px: int) -> None:
    image = torch.randint(0, 256, (2, 3, 2 * patch_px, 5 * patch_px), dtype=torch.uint8)
    interleaved = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    like = torch.empty(1, 1, dtype=torch.bfloat16)
    want = embedding._patches(image, slice(0, 2), patch_px, 128, like)
    for view in (image, interleaved):
        assert torch.equal(fused_norms.patches(view, patch_px, 128, torch.bfloat16), want)


# --- in the model ---------------------------------------------------------------------------------------------------

CONFIG = LongViTConfig(
    embed_dim=24, depth=2, num_heads=2, ffn_dim=40, num_classes=3, grid_patches=2, patch_px=4, image_px=8, drop_path=0.4
)


def model() -> LongViT:
    torch.manual_seed(0)
    made = LongViT(CONFIG).train()
    for name, p in made.named_parameters():
        if "norm" in name or name.endswith("bias"):
            p.data.add_(0.3 * torch.randn_like(p))
    return made


def loss_and_gradients(made: LongViT, autocast: bool) -> list[Tensor]:
    torch.manual_seed(4)  # drop path
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    made.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(made(images).float(), torch.tensor([0, 2]))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in made.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_has_the_plain_path_s_gradients(monkeypatch, recompute: bool) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", 5)
    made = model()
    made.set_recompute(recompute)
    want = loss_and_gradients(made, False)
    monkeypatch.setenv(fused_norms.VARIABLE, "1")
    ours, again = (loss_and_gradients(made, False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    for a, b in zip(ours, want, strict=True):
        assert a.dtype == b.dtype
        close(a, b.double(), 2e-5)


def test_bfloat16_gradients_are_no_further_from_float32_than_the_plain_path_s(monkeypatch) -> None:
    made = model()
    made.set_recompute()
    exactly = torch.cat([g.flatten() for g in loss_and_gradients(made, False)])
    plain = torch.cat([g.flatten() for g in loss_and_gradients(made, True)])
    monkeypatch.setenv(fused_norms.VARIABLE, "1")
    ours = torch.cat([g.flatten() for g in loss_and_gradients(made, True)])
    assert (ours - exactly).norm() <= 1.5 * (plain - exactly).norm()


def test_without_gradients_the_block_is_one_function_with_the_same_values(monkeypatch) -> None:
    made = model().eval()
    images = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8)
    launched = []
    add_norm = fused_norms.add_norm
    monkeypatch.setattr(fused_norms, "add_norm", lambda *args: launched.append(1) or add_norm(*args))
    with torch.no_grad():
        want = made.forward_features(images)
        assert not launched
        monkeypatch.setenv(fused_norms.VARIABLE, "1")
        ours = made.forward_features(images)
    assert len(launched) == CONFIG.depth
    close(ours, want.double(), 1e-5)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_a_cpu_uses_the_kernels_only_on_request(monkeypatch) -> None:
    x = torch.zeros(1, 24)
    monkeypatch.setattr(fused_norms, "ON_CARDS", True)
    assert not fused_norms.uses(x, torch.float32)
    monkeypatch.setenv(fused_norms.VARIABLE, "0")
    assert not fused_norms.uses(x, torch.float32)
    monkeypatch.setenv(fused_norms.VARIABLE, "1")
    assert fused_norms.uses(x, torch.bfloat16)


@pytest.mark.parametrize(
    ("value", "dtype", "width", "interpret", "message"),
    [
        ("on", torch.float32, 24, "1", "LONGVIT_FUSED must be 0, 1 or auto, got 'on'"),
        ("1", torch.float64, 24, "1", "float32, bfloat16 or float16, got float64"),
        ("1", torch.float32, 4097, "1", "widths up to 4096, got 4097"),
        ("1", torch.float32, 24, "0", "run on cuda, the tensors are on cpu"),
    ],
)
def test_what_the_kernels_cannot_do_is_one_line(monkeypatch, value, dtype, width, interpret, message) -> None:
    fused_norms._cannot.cache_clear()
    monkeypatch.setenv(fused_norms.VARIABLE, value)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError, match=message):
        fused_norms.uses(torch.zeros(1, width, dtype=dtype), dtype)
    fused_norms._cannot.cache_clear()


def test_without_triton_auto_takes_the_plain_path_and_1_names_the_way_out(monkeypatch) -> None:
    fused_norms._cannot.cache_clear()
    monkeypatch.setattr(fused_norms, "find_spec", lambda _: None)
    assert not fused_norms.uses(torch.zeros(1, 24), torch.float32)
    monkeypatch.setenv(fused_norms.VARIABLE, "1")
    with pytest.raises(ValueError, match=r"pip install 'longvit\[triton\]'"):
        fused_norms.uses(torch.zeros(1, 24), torch.float32)
    fused_norms._cannot.cache_clear()


def test_the_kernels_compile_without_a_card_and_a_row_is_read_in_whole_sectors() -> None:
    # the interpreter accepts code that the compiler refuses; other numbers of rows must not be recompiled
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "compile_without_card.py"), "norms", "90"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "norm_forward 8 4 True",
        "norm_backward 6 3 True",
        "cast_and_sum 2 1 True",
        "patches 2 1 True",
    ]


def test_three_pieces_hold_a_row_only_where_the_first_two_are_full() -> None:
    # the kernels mask the last piece alone
    for width in range(1, fused_norms.WIDEST + 1):
        pieces = fused_norms._pieces(width)
        held = pieces["K"] * pieces["BLOCK"]
        assert width <= held < 2 * width or width == held == 1
        assert pieces["K"] == 1 or width > 2 * pieces["BLOCK"]
