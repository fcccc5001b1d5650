"""HIPT: its two frozen transformers under the names of the published files, its regions, its slide level."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.baselines.made import WIDTH, arrays, bag, system
from tests.oracles import baselines as oracle

from longvit.baselines.bag import Bag
from longvit.baselines.hipt import Hipt, regions_of
from longvit.baselines.hipt_vits import Vit256, Vit4096, load_vit256, load_vit4096, normalised
from longvit.baselines.system import create_system
from longvit.errors import InputError

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def names(depth: int, first: list[str]) -> set[str]:
    """Of DINO's vision transformer."""
    layers = [f"blocks.{i}.{part}" for i in range(depth) for part in BLOCK] + ["norm", *first]
    return {"cls_token", "pos_embed"} | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def published(model: torch.nn.Module, path: Path) -> Path:
    """As DINO saves it: teacher with backbone and head, student with module. before."""
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    state["head.mlp.0.weight"] = torch.zeros(3, 3)
    torch.save({"teacher": state, "student": {f"module.{k}": v for k, v in state.items()}, "epoch": 99}, path)
    return path


def test_names_shapes_and_sizes_are_those_of_the_published_files() -> None:
    small, region = Vit256(), Vit4096()
    assert set(small.state_dict()) == names(12, ["patch_embed.proj"])
    assert set(region.state_dict()) == names(6, ["phi.0"])
    assert sum(p.numel() for p in small.parameters()) == 21_665_664  # DINO's ViT-S/16
    assert sum(p.numel() for p in region.parameters()) == 2_781_504
    shapes = {k: tuple(v.shape) for k, v in region.state_dict().items()}
    assert shapes["pos_embed"] == (1, 197, 192)
    assert shapes["phi.0.weight"] == (192, 384)
    assert tuple(small.state_dict()["patch_embed.proj.weight"].shape) == (384, 3, 16, 16)


def test_published_checkpoints_load_strictly(tmp_path: Path) -> None:
    for kind, load in ((Vit4096, load_vit4096), (Vit256, load_vit256)):
        torch.manual_seed(0)
        model = kind()
        loaded = load(published(model, tmp_path / "weights.pth"))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        assert not loaded.training
    with pytest.raises(InputError, match=r"weights\.pth: these are not the weights of this model"):
        load_vit4096(tmp_path / "weights.pth")


@pytest.mark.parametrize(("side", "masked"), [(14, False), (16, False), (16, True), (2, True)])
def test_region_transformer_against_the_equations(side: int, masked: bool) -> None:
    torch.manual_seed(0)
    model = Vit4096(in_dim=5, dim=12, depth=2, num_heads=3).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    tiles = torch.randn(2, side * side, 5).double()
    there = torch.rand(2, side * side) < (0.3 if masked else 2)
    found = model(tiles, there if masked else None).detach().numpy()
    w = arrays(model)
    for b in range(2):
        tokens = [oracle.gelu(oracle.linear(t, oracle.sub(w, "phi.0"))) for t in tiles[b].numpy()]
        expected = oracle.vit(tokens, w, 3, there[b].tolist() if masked else None)
        np.testing.assert_allclose(found[b], expected, rtol=0, atol=1e-11)


def test_tile_transformer_against_the_equations() -> None:
    torch.manual_seed(0)
    model = Vit256(dim=12, depth=2, num_heads=3).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.05)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    scaled = normalised(pixels)
    assert (scaled - (pixels / 255 - 0.5) / 0.5).abs().max() < 1e-6
    found = model(scaled.double())[0].detach().numpy()
    w, image = arrays(model), scaled[0].double().numpy()
    tokens = [
        np.array([(kernel * image[:, r : r + 16, c : c + 16]).sum() for kernel in w["patch_embed.proj.weight"]])
        + w["patch_embed.proj.bias"]
        for r in range(0, 64, 16)
        for c in range(0, 64, 16)
    ]
    np.testing.assert_allclose(found, oracle.vit(tokens, w, 3), rtol=0, atol=1e-11)


def test_hipt_from_tiles_to_logits_against_the_equations() -> None:
    made, given = system("hipt"), bag("hipt", 60)
    assert isinstance(made, Hipt)
    assert made.regions is not None
    assert given.coords is not None
    w = arrays(made)
    x, xy = given.features.numpy(), given.coords.numpy() // 256
    xy = xy - xy.min(0)
    grouped: dict[tuple[int, int], dict[int, int]] = {}
    for i, (column, row) in enumerate(xy):
        cell = int(row % 16 * 16 + column % 16)
        grouped.setdefault((int(row // 16), int(column // 16)), {})[cell] = i
    assert len(grouped) == 4
    regions, members = [], []
    for place in sorted(grouped):
        cells = grouped[place]
        of = oracle.sub(w, "regions")
        tokens = [x[cells[c]] if c in cells else np.zeros(WIDTH) for c in range(256)]
        tokens = [oracle.gelu(oracle.linear(t, oracle.sub(of, "phi.0"))) for t in tokens]
        regions.append(oracle.vit(tokens, of, 6, [c in cells for c in range(256)]))
        members.append(list(cells.values()))
    logits, a = oracle.hipt_slide(regions, w)
    expected = np.zeros(60)
    for weight, tiles in zip(a, members, strict=True):
        expected[tiles] = weight / len(tiles)
    found = made(given)
    np.testing.assert_allclose(found.logits.detach(), logits, rtol=0, atol=1e-10)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention, expected, rtol=0, atol=1e-10)


def test_regions_as_published_and_as_features_of_their_own() -> None:
    made = system("hipt")
    assert isinstance(made, Hipt)
    assert made.regions is not None
    grids = torch.randn(3, 256, WIDTH).double()
    found = made(Bag(grids))
    assert found.attention is not None
    assert found.attention.shape == (3,)
    cells = torch.arange(256)
    coords = torch.cat([torch.stack([cells % 16 + 16 * m, cells // 16], 1) for m in range(3)]) * 256
    of_tiles = made(Bag(grids.flatten(0, 1), coords))
    assert (of_tiles.logits - found.logits).abs().max() < 1e-12
    assert of_tiles.attention is not None
    assert (of_tiles.attention.view(3, 256).sum(1) - found.attention).abs().max() < 1e-12

    torch.manual_seed(0)
    slide_level = create_system("hipt", in_dim=192, outputs=3, level="region").double().eval()
    own = {k: v for k, v in made.state_dict().items() if not k.startswith("regions.")}
    slide_level.load_state_dict(own)
    assert (slide_level(Bag(made.regions(grids).detach())).logits - found.logits).abs().max() < 1e-12
    with pytest.raises(InputError, match="regions of 100 tiles; HIPT's have 256"):
        made(Bag(grids[:, :100]))


def test_with_a_checkpoint_the_regions_are_frozen_and_without_one_they_learn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = published(Vit4096(), tmp_path / "vit4k.pth")
    given = Bag(torch.randn(20, 384), torch.stack([torch.arange(20) % 5, torch.arange(20) // 5], 1) * 512)
    frozen = create_system("hipt", in_dim=384, outputs=2, region_checkpoint=str(weights))
    frozen(given).logits.sum().backward()
    assert all(p.grad is None and not p.requires_grad for n, p in frozen.named_parameters() if n.startswith("regions."))
    assert all(p.grad is not None for n, p in frozen.named_parameters() if not n.startswith("regions."))
    assert torch.equal(frozen.regions.pos_embed, load_vit4096(weights).pos_embed)
    learning = create_system("hipt", in_dim=384, outputs=2)
    learning(given).logits.sum().backward()
    assert all(p.grad is not None for p in learning.parameters())
    with pytest.raises(InputError, match=r"in_dim 12: .*vit4k\.pth takes the 384 of ViT-256"):
        create_system("hipt", in_dim=12, outputs=2, region_checkpoint=str(weights))


@pytest.mark.parametrize("step", [100, 256, 448])
def test_grid_of_regions_begins_at_the_first_tile_whatever_the_step(step: int) -> None:
    cells = torch.tensor([[0, 0], [15, 0], [16, 0], [0, 16], [17, 35], [3, 1]])
    given = Bag(torch.zeros(6, 1), cells * step + torch.tensor([777, 12]), name="a.svs")
    found = regions_of(given, None)
    assert found.count == 4
    assert found.region.tolist() == [0, 0, 1, 2, 3, 0]
    assert found.cell.tolist() == [0, 15, 0, 0, 3 * 16 + 1, 16 + 3]
    two = Bag(torch.zeros(12, 1), torch.cat([given.coords, given.coords]), slide_tiles=(6, 6))  # type: ignore[list-item]
    assert regions_of(two, step).region.tolist() == [0, 0, 1, 2, 3, 0, 4, 4, 5, 6, 7, 4]


def test_tiles_that_share_a_cell_are_named_with_the_way_out() -> None:
    given = Bag(torch.zeros(3, 1), torch.tensor([[0, 0], [100, 0], [512, 0]]), name="a.svs")
    with pytest.raises(InputError, match=r"a\.svs: 1 tiles share a cell of the grid; give tile_px"):
        regions_of(given, 256)
    assert regions_of(Bag(torch.zeros(1, 1), torch.tensor([[9, 9]])), None).count == 1


def test_recomputation_in_backward_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from longvit.baselines import hipt_vits

    torch.manual_seed(0)
    model = Vit4096(in_dim=5, dim=12, depth=2, num_heads=3).double()
    tiles = torch.randn(3, 256, 5).double()
    model(tiles).square().sum().backward()
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    monkeypatch.setattr(hipt_vits, "checkpoint", lambda f, *args, use_reentrant: f(*args))
    model(tiles).square().sum().backward()
    assert len(first) == len(list(model.parameters()))
    assert all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters(), strict=True) if p.grad is not None)
    assert math.isfinite(sum(float(g.sum()) for g in first))
