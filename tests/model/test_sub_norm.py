"""Blocks without sub-LayerNorm: the plain definition, and no bit changed by recomputation, offload and chunks."""

from __future__ import annotations

import pytest
import torch
from tests.model.test_recomputation import CONFIG, gradients, images, offloaded
from tests.oracles import dilated, stem

from longvit.attention.pattern import DilatedPattern
from longvit.model import norm_linear as nl
from longvit.model.encoder import Block
from longvit.model.longvit import LongViT, LongViTConfig


def test_a_block_and_its_gradients_are_those_of_the_plain_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", 4)
    torch.manual_seed(0)
    block = Block(8, 2, 12, 1e-5, 0.0, sub_norm=False).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(1, 11, 8, dtype=torch.float64, requires_grad=True)
    w = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    halves = [{n.removeprefix(h): p for n, p in w.items() if n.startswith(h)} for h in ("attn.", "mlp.")]
    q, k, v = (t.view(1, 11, 2, 4) for t in stem.queries_keys_values(x[0], halves[0]))
    attended = dilated.dilated_attention(q, k, v, (4, 16), (1, 2)).reshape(11, 8)
    plain = stem.ffn(stem.project(x[0], attended, halves[0]), halves[1])[None]
    ours = block(x, DilatedPattern((4, 16), (1, 2)))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, [x, *w.values()], grad)
    for a, b in zip(torch.autograd.grad(ours, [x, *block.parameters()], grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_no_norm_is_left_inside_the_branches() -> None:
    names = {name for name, _ in Block(8, 2, 12, 1e-5, 0.0, sub_norm=False).named_parameters()}
    with_norms = {name for name, _ in Block(8, 2, 12, 1e-5, 0.0).named_parameters()}
    assert with_norms - names == {"attn.norm.weight", "attn.norm.bias", "mlp.norm.weight", "mlp.norm.bias"}


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_recomputation_and_offload_change_no_bit_of_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype, autocast: bool
) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    settings = {**vars(CONFIG), "sub_norm": False, "stem": "conv", "drop_path": 0.5}
    model, x = LongViT(LongViTConfig(**settings)).train().to(dtype), images()
    plain = gradients(model, x, autocast)
    model.set_recompute()
    lean = gradients(model, x, autocast)
    copies = offloaded(model, monkeypatch)
    left = gradients(model, x, autocast)
    assert copies.log
    assert len(plain) == len(list(model.parameters())) + 1
    for others in (lean, left):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, others, strict=True))
