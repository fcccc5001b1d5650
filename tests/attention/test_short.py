"""Short sequences in one dense call: the same numbers, and only where nothing else was asked for."""

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
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that went this way."""
    lengths: list[int] = []
    forward = short.forward

    def counting(q, *rest):
        lengths.append(q.shape[1])
        return forward(q, *rest)

    monkeypatch.setattr(short, "forward", counting)
    return lengths


@pytest.mark.parametrize("fused", [True, False])  # the CPU's kernel, and the products that a card takes
def test_one_dense_call_equals_the_branches(fused: bool, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "_has_fused_kernel", lambda _: fused)
    for n in (1, 5, 23, 64):
        for a, b in zip(attend(n), attend(n, backend="plain"), strict=True):
            assert (a - b).abs().max() <= 1e-13, n
    assert taken == [1, 5, 23, 64]


def test_sequences_of_different_length_packed_and_padded(taken: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, lengths in (((1, 60, 6, 4), [23, 23, 9]), ((3, 30, 6, 4), [30, 4, 0])):
        tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(4)]
        found = []
        for backend in ("auto", "plain"):
            leaves = [t.clone().requires_grad_() for t in tensors[:3]]
            out = dilated_attention(*leaves, **SETTINGS, lengths=lengths, backend=backend)
            found.append([out, *torch.autograd.grad(out, leaves, tensors[3])])
        for a, b in zip(*found, strict=True):
            assert (a - b).abs().max() <= 1e-13
    assert taken == [23, 9, 30, 4]


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "cpu_flash"},
        {"ragged": "padded"},
        {"dilated_ratios": (2, 3, 5)},  # some queries have no key at all
    ],
)
def test_what_was_asked_for_is_what_is_computed(settings: dict, taken: list[int]) -> None:
    attend(30, **settings)
    assert not taken


def test_detached_gradients_are_those_of_each_branch(taken: list[int]) -> None:
    exact, detached, want = (
        attend(30),
        attend(30, gradient="detached"),
        attend(30, gradient="detached", backend="plain"),
    )
    assert torch.equal(exact[0], detached[0])
    assert all((a - b).abs().max() <= 1e-13 for a, b in zip(detached, want, strict=True))
    assert (exact[1] - detached[1]).abs().max() > 1e-3
    assert taken == [30, 30]


def test_a_back_end_in_the_environment_is_asked_for_too(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGVIT_ATTENTION", "plain")
    attend(30)
    assert not taken


def test_long_sequences_go_branch_by_branch(taken: list[int]) -> None:
    q, k, v = torch.randn(3, 1, 300, 6, 4, dtype=torch.float64)
    out = dilated_attention(q, k, v, **SETTINGS)
    assert not taken
    assert (out - oracle.dilated_attention(q, k, v, SEGMENTS, RATIOS)).abs().max() <= 1e-12


def test_what_was_made_without_gradients_serves_a_training_later() -> None:
    short._log_counts.cache_clear()
    with torch.inference_mode():
        dilated_attention(*torch.randn(3, 1, 30, 6, 4), **SETTINGS)
    q = torch.randn(1, 30, 6, 4, requires_grad=True)
    dilated_attention(q, q, q, **SETTINGS).sum().backward()
    assert q.grad is not None
