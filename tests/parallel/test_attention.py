"""Sequence-parallel dilated attention: results of one process on any number of ranks; the bytes of the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.parallel.ranks import on_ranks
from torch import Tensor

from longvit.attention import dilated_attention
from longvit.attention.pattern import DilatedPattern
from longvit.parallel import Shards, Wire, exchanged_bytes, sharded_dilated_attention

TOLERANCE = 1e-10


def tensors(n: int, heads: int = 4, batch: int = 2, dim: int = 3) -> list[Tensor]:
    """q, k, v and the gradient of the output, float64."""
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(batch, n, heads, dim, dtype=torch.float64, generator=generator) for _ in range(4)]


def whole(case: dict[str, Any]) -> list[Tensor]:
    """Output and gradients of one process."""
    q, k, v, grad = tensors(case["n"], case["heads"], case["batch"])
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = dilated_attention(*leaves, **case["settings"])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def sharded(case: dict[str, Any], shards: Shards, wire: Wire | None = None) -> list[Tensor]:
    """Output and gradients of this rank's tokens."""
    first, end = shards.shard(dist.get_rank())
    q, k, v, grad = (t[:, first:end] for t in tensors(case["n"], case["heads"], case["batch"]))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = sharded_dilated_attention(*leaves, DilatedPattern(**case["settings"]), shards=shards, wire=wire)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def settings(lengths: tuple[int, ...], ratios: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"segment_lengths": lengths, "dilated_ratios": ratios, **more}


CASES = {
    "segments_shorter_and_longer_than_a_shard": (37, 4, settings((4, 16, 64), (1, 2, 4))),
    "ratios_that_divide_nothing": (41, 5, settings((7, 13, 29), (2, 3, 5))),
    "ratio_larger_than_heads_and_segment": (23, 2, settings((3, 11), (5, 7))),
    "no_branch_reaches_every_token": (29, 3, settings((9, 29), (4, 8))),
    "all_segments_inside_a_shard": (48, 4, settings((2, 4), (1, 2))),
    "detached_gradient": (37, 4, settings((8, 37), (1, 2), gradient="detached")),
    "padded_where_nothing_is_padded": (48, 4, settings((8, 48), (1, 4), ragged="padded")),
}


def case_of(name: str, batch: int = 2) -> dict[str, Any]:
    n, heads, s = CASES[name]
    return {"n": n, "heads": heads, "batch": batch, "settings": s}


def uneven(n: int, ranks: int) -> Shards:
    """The last ranks hold more than the first, and with more than two ranks the second holds nothing."""
    weights = [p + 1 if p != 1 or ranks < 3 else 0 for p in range(ranks)]
    lengths = [n * w // sum(weights) for w in weights]
    lengths[-1] += n - sum(lengths)
    return Shards.of_lengths(lengths)


def all_cases(kinds: list[str]) -> dict[str, list[Tensor]]:
    results = {}
    for name in CASES:
        for batch in (1, 2):
            case, ranks = case_of(name, batch), dist.get_world_size()
            for kind in kinds:
                shards = Shards.even(case["n"], ranks) if kind == "even" else uneven(case["n"], ranks)
                results[f"{name}, batch {batch}, {kind}"] = sharded(case, shards)
    return results


def assert_same(rank_results: list[dict[str, list[Tensor]]]) -> None:
    expected = {(name, batch): whole(case_of(name, batch)) for name in CASES for batch in (1, 2)}
    for key in rank_results[0]:
        name, batch, _ = key.split(", ")
        for tensor, (i, e) in zip(
            ("out", "grad q", "grad k", "grad v"), enumerate(expected[name, int(batch[-1])]), strict=True
        ):
            joined = torch.cat([results[key][i] for results in rank_results], 1)
            assert (joined - e).abs().max() <= TOLERANCE, f"{key}: {tensor}"


def test_two_ranks_give_the_numbers_of_one_process() -> None:
    assert_same(on_ranks(2, all_cases, ["even"]))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 4, 8])
def test_any_number_of_ranks_gives_the_numbers_of_one_process(ranks: int) -> None:
    assert_same(on_ranks(ranks, all_cases, ["even", "uneven"]))


def traffic(all_shards: list[Shards], s: dict[str, Any], dtype: torch.dtype) -> list[dict[str, float]]:
    """Bytes of a forward and of its backward, and the formula."""
    traffic = []
    for shards in all_shards:
        wire, (first, end) = Wire(), shards.shard(dist.get_rank())
        q, k, v = (torch.randn(1, end - first, 4, 3, dtype=dtype, requires_grad=True) for _ in range(3))
        out = sharded_dilated_attention(q, k, v, DilatedPattern(**s), shards=shards, wire=wire)
        forward = replace(wire)
        out.sum().backward()
        traffic.append(
            {
                "received": forward.received,
                "sent": forward.sent,
                "received in backward": wire.received - forward.received,
                "sent in backward": wire.sent - forward.sent,
                "formula": exchanged_bytes(shards, dist.get_rank(), embed_dim=12, itemsize=dtype.itemsize, **s),
            }
        )
    return traffic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_on_the_wire_are_those_of_the_design_note(dtype: torch.dtype) -> None:
    """4 ranks with 64 tokens each: w = 64 needs no others, w = 128 64/2 keys of one rank, w = 256 192/4 of 3.

    With 128 tokens each it is 128/4, with 256 nothing; nothing divides 1,037 tokens.
    """
    s = settings((64, 128, 256), (1, 2, 4))
    per_token = 2 * 12 * dtype.itemsize  # keys and values, H·D numbers
    rank_traffic = on_ranks(4, traffic, [Shards.even(n, 4) for n in (256, 512, 1024)], s, dtype)
    for rows in rank_traffic:
        assert [f["formula"] for f in rows] == [keys * per_token for keys in (64 / 2 + 192 / 4, 128 / 4, 0)]
    rank_traffic += on_ranks(4, traffic, [Shards.even(1037, 4)], settings((300, 2000), (2, 4)), dtype)
    for f in (f for rows in rank_traffic for f in rows):
        assert f["received"] == pytest.approx(f["formula"], rel=0.01)
        assert f["sent in backward"] == f["received"]
        assert f["received in backward"] == f["sent"]


def test_bytes_on_the_wire_do_not_grow_with_the_sequence() -> None:
    """Segments of 64, 128 and 256 tokens, cut by the shards at the same positions."""
    shards = [Shards((0, 256 * k + 32, 512 * k + 32, 768 * k + 32, 1024 * k)) for k in (1, 2, 4)]
    for short, longer, longest in on_ranks(4, traffic, shards, settings((64, 128, 256), (1, 2, 4)), torch.float32):
        assert short == longer == longest
        assert short["received"] == pytest.approx(short["formula"], rel=0.01) != 0


def test_a_segment_over_two_of_four_ranks_costs_the_others_nothing() -> None:
    shards = Shards((0, 8, 16, 24, 32))
    s = {"segment_lengths": (16,), "dilated_ratios": (2,), "embed_dim": 12, "itemsize": 4}
    assert [exchanged_bytes(shards, p, **s) for p in range(4)] == [8 / 2 * 2 * 12 * 4] * 4
    assert exchanged_bytes(Shards((0, 8, 16, 32, 32)), 2, **s) == 0


def test_a_million_patches_on_8_ranks_cost_2_3_times_less_than_a_gather_over_all_ranks() -> None:
    n, ranks, dim, itemsize = 1 << 20, 8, 384, 2
    segments, ratios = (1_024, 4_096, 32_768, 262_144, 1_048_576), (1, 2, 4, 8, 16)  # table 7
    s = {"segment_lengths": segments, "dilated_ratios": ratios, "embed_dim": dim, "itemsize": itemsize}
    shard = n // ranks
    over_all = sum(2 * (n - shard) / r * dim * itemsize for w, r in zip(segments, ratios, strict=True) if w > shard)
    for rank in range(ranks):
        assert exchanged_bytes(Shards.even(n, ranks), rank, **s) == 108 * 2**20
        assert over_all / exchanged_bytes(Shards.even(n, ranks), rank, **s) == pytest.approx(2.33, abs=0.01)


def wrong_calls() -> list[str]:
    q = torch.zeros(1, 5, 2, 3)
    messages = []
    for shards, more in [(Shards((0, 4)), {}), (Shards((0, 2, 5)), {}), (Shards((0, 5)), {"ragged": "padded"})]:
        with pytest.raises(ValueError) as caught:
            sharded_dilated_attention(q, q, q, DilatedPattern((2,), (1,), **more), shards=shards)
        messages.append(str(caught.value))
    return messages


def test_wrong_calls_name_both_numbers() -> None:
    """One process without torch.distributed is one rank."""
    tokens, ranks, padded = wrong_calls()
    assert "4" in tokens
    assert "5" in tokens
    assert ranks == "2 shards for 1 ranks"
    assert "ragged='masked'" in padded
    with pytest.raises(ValueError, match="rise from 0"):
        Shards((0, 5, 3))
