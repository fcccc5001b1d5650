"""Recomputation and offload: values and gradients of the plain form to the last bit, and the tensors held meanwhile."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.model import encoder as encoder_file
from longvit.model import norm_linear as nl
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.offload import HostStore
from longvit.model.self_attention import DilatedSelfAttention

CONFIG = LongViTConfig(embed_dim=32, depth=4, num_heads=4, ffn_dim=48, num_classes=3, grid_patches=4)


class LateCopies:
    """Copies that, like those of a card, run as late as allowed: when `wait` is called."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.started = 0

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        sources = [weakref.ref(t) for t in tensors]
        hosts = [torch.full_like(t, float("nan")) for t in tensors]

        def arrive() -> None:
            for host, source in zip(hosts, sources, strict=True):
                t = source()
                assert t is not None, "its memory was freed before the copy"
                host.copy_(t)

        return hosts, self._event("out", arrive)

    def to_device(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        copies = [torch.full_like(t, float("nan")) for t in tensors]

        def arrive() -> None:
            for t, host in zip(copies, tensors, strict=True):
                t.copy_(host)

        return copies, self._event("back", arrive)

    def _event(self, direction: str, arrive: Any) -> Any:
        self.started += 1
        self.log.append((direction, self.started))
        return direction, self.started, arrive

    def wait(self, event: Any) -> None:
        direction, number, arrive = event
        if (f"{direction} done", number) not in self.log:
            self.log.append((f"{direction} done", number))
            arrive()

    def finish(self, event: Any) -> None:
        self.log.append(("finished", event[1]))
        self.wait(event)


def gradients(model: LongViT, images: Tensor, autocast: bool = False) -> list[Tensor]:
    torch.manual_seed(3)  # drop path
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def images(batch: int = 2, side_px: int = 160) -> Tensor:
    return torch.randint(0, 256, (batch, 3, side_px, side_px), dtype=torch.uint8)


@pytest.fixture
def model() -> LongViT:
    torch.manual_seed(0)
    return LongViT(CONFIG).train()


def offloaded(model: LongViT, monkeypatch: pytest.MonkeyPatch) -> LateCopies:
    """Offload as on a card, with `LateCopies`."""
    copies = LateCopies()
    monkeypatch.setattr(encoder_file, "host_store", lambda device: HostStore(copies))
    model.set_recompute(offload=True)
    return copies


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_recomputation_changes_no_bit_of_loss_and_gradients(
    monkeypatch, chunk: int, drop_path: float, dtype: torch.dtype, autocast: bool, gradient: str
) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    config = LongViTConfig(**{**vars(CONFIG), "drop_path": drop_path, "gradient": gradient})
    model, x = LongViT(config).train().to(dtype), images()
    plain = gradients(model, x, autocast)
    model.set_recompute()
    lean = gradients(model, x, autocast)
    assert len(plain) == len(list(model.parameters())) + 1
    assert all(torch.equal(a, b) for a, b in zip(plain, lean, strict=True))
    assert all(a.dtype == b.dtype for a, b in zip(plain, lean, strict=True))


@pytest.mark.parametrize("is_replaced", [False, True])
def test_rows_of_different_length_and_other_attentions_recompute_too(
    monkeypatch, model: LongViT, is_replaced: bool
) -> None:
    class Other(DilatedSelfAttention):
        """A replaced attention, as in longvit.parallel."""

    attended = 0
    forward = DilatedSelfAttention.attend

    def counted(self: Any, *args: Any) -> Tensor:
        nonlocal attended
        attended += 1
        return forward(self, *args)

    for block in model.blocks:
        block.attn.__class__ = Other if is_replaced else DilatedSelfAttention
    monkeypatch.setattr(DilatedSelfAttention, "attend", counted)
    lengths = None if is_replaced else [9, 4]
    results = []
    for recompute in (False, True):
        model.set_recompute(recompute)
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        model.zero_grad()
        model.blocks(x, model.pattern(9), lengths).square().sum().backward()
        assert x.grad is not None
        results.append([x.grad, *(p.grad.clone() for p in model.blocks.parameters() if p.grad is not None)])
    assert attended == 3 * CONFIG.depth
    assert len(results[0]) == 1 + 16 * CONFIG.depth
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_layer_keeps_only_its_input_and_its_attention(model: LongViT) -> None:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    model.set_recompute()
    x = torch.randn(1, 9, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.blocks(x, model.pattern(9))
    per_layer = 4 * 9 * (32 + 32 + 4)  # x, out, lse
    assert sum(kept.values()) == CONFIG.depth * per_layer


@pytest.mark.parametrize("autocast", [False, True])
def test_offload_changes_no_bit_of_loss_and_gradients(monkeypatch, model: LongViT, autocast: bool) -> None:
    x = images()
    model.set_recompute()
    stayed = gradients(model, x, autocast)
    copies = offloaded(model, monkeypatch)
    left = gradients(model, x, autocast)
    assert copies.log
    assert all(torch.equal(a, b) for a, b in zip(stayed, left, strict=True))


def test_each_layer_is_copied_out_once_and_fetched_one_layer_ahead(monkeypatch, model: LongViT) -> None:
    copies = offloaded(model, monkeypatch)
    gradients(model, images())
    # out 1 … 3: layers 1 … 3 (the last one stays); back 4, 5, 6: layers 3, 2, 1
    assert copies.log == [
        ("out", 1),
        ("out done", 1),
        ("out", 2),
        ("out done", 2),
        ("out", 3),
        ("out done", 3),
        ("back", 4),  # with the last layer's backward
        ("back done", 4),
        ("back", 5),  # before layer 3's own work
        ("back done", 5),
        ("back", 6),
        ("back done", 6),
    ]


def test_the_device_holds_the_tensors_of_two_layers_at_most(monkeypatch, model: LongViT) -> None:
    copies = offloaded(model, monkeypatch)
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    to_host, to_device = copies.to_host, copies.to_device

    def counted(on_device: Sequence[Tensor]) -> None:
        nonlocal most
        held.update(on_device)
        most = max(most, len(held))

    def counted_to_host(tensors: Sequence[Tensor]) -> Any:
        counted(tensors)
        return to_host(tensors)

    def counted_to_device(tensors: Sequence[Tensor]) -> Any:
        copies = to_device(tensors)
        counted(copies[0])
        return copies

    monkeypatch.setattr(copies, "to_host", counted_to_host)
    monkeypatch.setattr(copies, "to_device", counted_to_device)
    gradients(model, images())
    assert most == 2 * 3
    gc.collect()
    assert not held


def test_a_kept_graph_can_be_run_backward_twice_with_offload(monkeypatch, model: LongViT) -> None:
    offloaded(model, monkeypatch)
    loss = model(images()).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_forward_pass_without_backward_frees_its_host_memory(monkeypatch, model: LongViT) -> None:
    stores: list[weakref.ref[HostStore]] = []

    def store(device: torch.device) -> HostStore:
        host_store = HostStore(LateCopies())
        stores.append(weakref.ref(host_store))
        return host_store

    monkeypatch.setattr(encoder_file, "host_store", store)
    model.set_recompute(offload=True)
    gc.disable()
    try:
        logits = model(images())
        assert stores[0]() is not None
        del logits
        assert stores[0]() is None  # at once: no cycle waits for the garbage collector
    finally:
        gc.enable()


def test_an_unused_fetch_keeps_its_memory_until_its_copy_is_done(monkeypatch, model: LongViT) -> None:
    copies = offloaded(model, monkeypatch)
    loss = model(images()).square().sum()
    torch.autograd.grad(loss, model.blocks[-1].mlp.fc1.weight)  # layer 3 is being copied back and never used
    assert copies.log[-1] == ("back", 4)
    del loss
    gc.collect()
    assert copies.log[-2:] == [("finished", 4), ("back done", 4)]


def test_on_a_cpu_offload_keeps_what_recomputation_keeps(model: LongViT) -> None:
    model.set_recompute(offload=True)
    x = images()
    offloaded_ = gradients(model, x)
    model.set_recompute()
    assert all(torch.equal(a, b) for a, b in zip(offloaded_, gradients(model, x), strict=True))


def test_without_gradients_nothing_is_kept_or_sent(monkeypatch, model: LongViT) -> None:
    copies = offloaded(model, monkeypatch)
    with torch.no_grad():
        model(images())
    assert not copies.log


def test_frozen_layers_train_a_head_under_recomputation(model: LongViT) -> None:
    model.set_recompute()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("head"))
    results = gradients(model, images())
    assert len(results) == 1 + 2
