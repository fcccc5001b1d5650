"""Random-patch training: a sample in training, every tile in evaluation, never more pixels at once than stated."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from tests.baselines.made import bag, system

from longvit.baselines.bag import Bag
from longvit.errors import InputError


class Reads:
    """Pixel source that records which tiles are read together."""

    def __init__(self, given: Bag) -> None:
        assert given.pixels is not None
        self.pixels, self.calls = given.pixels, list[list[int]]()

    def __call__(self, numbers: np.ndarray, side: int) -> np.ndarray:
        self.calls.append(numbers.tolist())
        return self.pixels(numbers, side)


def recorded(tiles: int) -> tuple[Bag, Reads]:
    given = bag("patch_sampling", tiles)
    reads = Reads(given)
    return replace(given, pixels=reads), reads


def test_evaluation_reads_every_tile_once_and_a_chunk_at_a_time() -> None:
    given, reads = recorded(30)
    whole = system("patch_sampling", chunk=64)(given)
    assert reads.calls == [[*range(30)]]
    reads.calls.clear()
    parts = system("patch_sampling", chunk=8)(given)
    assert [len(call) for call in reads.calls] == [8, 8, 8, 6]
    assert sorted(chain.from_iterable(reads.calls)) == [*range(30)]
    assert (whole.logits - parts.logits).abs().max() < 1e-12
    assert whole.attention is not None
    assert whole.attention.shape == (30,)


def test_training_reads_a_sample_that_the_random_state_determines() -> None:
    given, reads = recorded(200)
    made = system("patch_sampling", tiles=12).train()
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        made(given)
    samples = reads.calls
    assert [len(set(sample)) for sample in samples] == [12, 12, 12]
    assert samples[0] == samples[2] != samples[1]


def test_the_gradient_reaches_the_first_convolution_from_the_logits() -> None:
    given, _ = recorded(20)
    made = system("patch_sampling").train()
    made(given).logits[0].backward()
    first = made.encoder[0].weight.grad  # type: ignore[union-attr, index]
    assert first is not None
    assert first.abs().max() > 0


def test_the_logits_do_not_depend_on_the_order_of_the_tiles() -> None:
    given, reads = recorded(25)
    order = np.random.default_rng(0).permutation(25)
    made = system("patch_sampling")
    shuffled = replace(given, pixels=lambda numbers, side: reads.pixels(order[numbers], side))
    assert (made(given).logits - made(shuffled).logits).abs().max() < 1e-12


def test_a_bag_without_pixels_is_one_line() -> None:
    with pytest.raises(InputError, match="bag of 5: no pixels, which patch_sampling reads from the slide"):
        system("patch_sampling")(replace(bag("patch_sampling", 5), pixels=None))
    with pytest.raises(InputError, match="width 20: a multiple of 8"):
        system("patch_sampling", width=20)
