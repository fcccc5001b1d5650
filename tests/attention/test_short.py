"""Short sequences as one dense call: equal to the branches, and only without a requested back end or padding."""

from __future__ import annotations

import pytest
import torch
from tests.oracles import dilated as oracle

from longvit.attention import dilated_attention, short

SEGMENTS, RATIOS = (5, 12, 40), (1, 2, 5)
SETTINGS = {"segment_lengths": SEGMENTS, "dilated_ratios": RATIOS}


def attend(n: int, **settings) -> list[torch.Tensor]:
    """→ output and the three gradients, float64."""
    generator = torch.Generator().manual_seed(n)
    q, k, v, grad_out = (torch.randn(2, n, 6, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = dilated_attention(*leaves, **(SETTINGS | settings))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


@pytest.fixture
def dense_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences computed as one dense call."""
    lengths: list[int] = []
    forward = short.forward

    def counting(q, *others):
        lengths.append(q.shape[1])
        return forward(q, *others)

    monkeypatch.setattr(short, "forward", counting)
    return lengths


@pytest.mark.parametrize("fused", [True, False])  # the CPU's kernel, and the matrix products of a card
def test_one_dense_call_equals_the_branches(
    fused: bool, dense_lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short, "_has_fused_kernel", lambda _: fused)
    for n in (1, 5, 23, 64):
        for a, b in zip(attend(n), attend(n, backend="plain"), strict=True):
            assert (a - b).abs().max() <= 1e-13, n
    assert dense_lengths == [1, 5, 23, 64]


def test_sequences_of_different_length_packed_and_padded(dense_lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, lengths in (((1, 60, 6, 4), [23, 23, 9]), ((3, 30, 6, 4), [30, 4, 0])):
        tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(4)]
        results = []
        for backend in ("auto", "plain"):
            leaves = [t.clone().requires_grad_() for t in tensors[:3]]
            out = dilated_attention(*leaves, **SETTINGS, lengths=lengths, backend=backend)
            results.append([out, *torch.autograd.grad(out, leaves, tensors[3])])
        for a, b in zip(*results, strict=True):
            assert (a - b).abs().max() <= 1e-13
    assert dense_lengths == [23, 9, 30, 4]


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "cpu_flash"},
        {"ragged": "padded"},
        {"dilated_ratios": (2, 3, 5)},  # some queries have no key at all
    ],
)
def test_requested_settings_are_not_replaced_by_the_dense_call(settings: dict, dense_lengths: list[int]) -> None:
    attend(30, **settings)
    assert not dense_lengths


def test_detached_gradients_are_those_of_each_branch(dense_lengths: list[int]) -> None:
    exact, detached, want = (
        attend(30),
        attend(30, gradient="detached"),
        attend(30, gradient="detached", backend="plain"),
    )
    assert torch.equal(exact[0], detached[0])
    assert all((a - b).abs().max() <= 1e-13 for a, b in zip(detached, want, strict=True))
    assert (exact[1] - detached[1]).abs().max() > 1e-3
    assert dense_lengths == [30, 30]


def test_a_back_end_in_the_environment_counts_as_requested(
    dense_lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGVIT_ATTENTION", "plain")
    attend(30)
    assert not dense_lengths


def test_long_sequences_run_branch_by_branch(dense_lengths: list[int]) -> None:
    q, k, v = torch.randn(3, 1, 300, 6, 4, dtype=torch.float64)
    out = dilated_attention(q, k, v, **SETTINGS)
    assert not dense_lengths
    assert (out - oracle.dilated_attention(q, k, v, SEGMENTS, RATIOS)).abs().max() <= 1e-12


def test_a_bias_cached_in_inference_mode_serves_training_too() -> None:
    short._log_counts.cache_clear()
    with torch.inference_mode():
        dilated_attention(*torch.randn(3, 1, 30, 6, 4), **SETTINGS)
    q = torch.randn(1, 30, 6, 4, requires_grad=True)
    dilated_attention(q, q, q, **SETTINGS).sum().backward()
    assert q.grad is not None
