"""Checkpoints in the layout of DINO's code: both directions to the bit, and what does not fit is named."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import shared
from torch import Tensor

from longvit.dino.dino_checkpoint import load_published, save_published
from longvit.dino.loss import DinoLoss
from longvit.dino.settings import DinoSettings
from longvit.dino.student_teacher import StudentTeacher
from longvit.errors import InputError
from longvit.model.longvit import LongViTConfig
from longvit.model.pretrained import convert

SETTINGS = DinoSettings(prototypes=40, head_hidden=24, head_bottleneck=8, local_crops=0, drop_path=0.1)
CONFIG = LongViTConfig(
    embed_dim=48,
    depth=3,
    num_heads=4,
    ffn_dim=192,
    patch_px=8,
    grid_patches=16,
    segment_lengths=(16, 64, 256),
    dilated_ratios=(1, 2, 4),
    ragged="padded",
    image_px=128,
)


def networks(seed: int, config: LongViTConfig = CONFIG, settings: DinoSettings = SETTINGS) -> StudentTeacher:
    """Student and teacher that differ, every parameter far from its first value."""
    torch.manual_seed(seed)
    both = StudentTeacher(config, settings).eval()
    with torch.no_grad():
        for p in both.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return both


def loss_with_center(seed: int, prototypes: int = 40) -> DinoLoss:
    loss = DinoLoss(prototypes)
    loss.center.copy_(torch.randn(1, prototypes, generator=torch.Generator().manual_seed(seed)))
    return loss


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_published(networks(0), tmp_path / "dino.pth", loss=loss_with_center(0), epoch=3)


def change(path: Path, edit: Any) -> Path:
    """Rewrites the file after `edit(content)`."""
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


# --- both directions ------------------------------------------------------------------------------------------------


def test_there_and_back_no_bit_of_networks_and_centre_changes(path: Path) -> None:
    both, loss = networks(1), loss_with_center(1)
    assert not same(both.state_dict(), networks(0).state_dict())
    assert load_published(both, path, loss=loss) == ()
    assert same(both.state_dict(), networks(0).state_dict())
    assert torch.equal(loss.center, loss_with_center(0).center)
    assert all(p.requires_grad for p in both.student.parameters())
    assert not any(p.requires_grad for p in both.teacher.parameters())


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_model_of_it_has_its_heads_and_segments_without_being_told(path: Path, which: str) -> None:
    model, backbone = convert(path, which=which), getattr(networks(0), which).backbone
    assert replace(model.config, drop_path=0.0) == replace(backbone.config, drop_path=0.0)
    assert same(model.state_dict(), backbone.state_dict())
    assert convert(path, which=which, num_heads=8, image_px=256).config.num_heads == 8


def test_the_file_has_the_names_of_dino_s_code_and_opens_without_its_classes(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"student", "teacher", "dino_loss", "epoch", "args"}
    assert content["epoch"] == 3
    assert content["dino_loss"]["center"].shape == (1, 40)
    layers = (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.inner_attn_ln", "self_attn.out_proj"),
        *("self_attn_layer_norm", "final_layer_norm", "ffn.fc1", "ffn.ffn_layernorm", "ffn.fc2"),
    )
    stems = ["patch_embed.proj", "norm", *(f"encoder.layers.{i}.{part}" for i in range(3) for part in layers)]
    expected = {"backbone.pos_embed", "head.last_layer.weight_g", "head.last_layer.weight_v"}
    for stem in (*(f"backbone.{s}" for s in stems), "head.mlp.0", "head.mlp.2", "head.mlp.4"):
        expected |= {f"{stem}.weight", f"{stem}.bias"}
    assert set(content["teacher"]) == expected
    assert set(content["student"]) == {f"module.{name}" for name in expected}


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    peers, folder = shared("peers/peer.py").parent, tmp_path_factory.mktemp("authors")

    def run(what: str, path: Path) -> dict[str, Tensor]:
        script = Path(__file__).with_name("authors_model.py")
        command = [sys.executable, str(script), str(peers), what, str(path), str(folder / "out.safetensors")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return load_file(folder / "out.safetensors")

    return run


@pytest.mark.shared
@pytest.mark.parametrize("direction", ["theirs to ours", "ours to theirs"])
def test_the_authors_model_gives_the_same_outputs(authors: Any, tmp_path: Path, direction: str) -> None:
    path, both, loss = tmp_path / "checkpoint.pth", networks(0), loss_with_center(0)
    if direction == "theirs to ours":
        found = authors("save", path)
        assert load_published(both, path, loss=loss) == ()
    else:
        save_published(both, path, loss=loss, epoch=1)
        found = authors("load", path)
    assert torch.equal(found["center"], loss.center)
    for name, network in (("teacher", both.teacher.double()), ("student", both.student.double())):
        told = {"num_heads": 4, "segment_lengths": (16, 64, 256), "dilated_ratios": (1, 2, 4), "ragged": "padded"}
        model = convert(path, which=name, **told).double()
        for side_px in (128, 64):
            pixels = found[f"pixels_{side_px}"]
            with torch.no_grad():
                embedding, output = model(pixels), network([pixels])
            assert (embedding - found[f"{name}_embedding_{side_px}"]).abs().max() <= 1e-6
            assert (output - found[f"{name}_output_{side_px}"]).abs().max() <= 1e-6
            assert found[f"{name}_output_{side_px}"].std() > 0.1, "outputs that are all alike show nothing"


# --- what a file lacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["teacher", "student"])
def test_one_network_alone_fills_both(path: Path, left: str) -> None:
    change(path, lambda content: [content.pop(key) for key in {"teacher", "student", "dino_loss"} - {left}])
    both, loss = networks(1), loss_with_center(1)
    assert load_published(both, path, loss=loss) == ("centre",)
    expected = getattr(networks(0), left).state_dict()
    assert same(both.student.state_dict(), expected)
    assert same(both.teacher.state_dict(), expected)
    assert torch.equal(loss.center, loss_with_center(1).center)


def without_head(content: dict[str, Any]) -> None:
    for name in ("teacher", "student"):
        content[name] = {key: value for key, value in content[name].items() if "head." not in key}


def test_a_backbone_without_head_says_so_or_keeps_the_fresh_one(path: Path) -> None:
    change(path, without_head)
    with pytest.raises(InputError, match=r"dino\.pth: no head in it.* start with a fresh head"):
        load_published(networks(1), path)


@pytest.mark.parametrize("has_head", [False, True])
def test_a_fresh_head_and_its_centre_stay_as_they_are(path: Path, has_head: bool) -> None:
    if not has_head:
        change(path, without_head)
    both, loss = networks(1), loss_with_center(1)
    saved, before = networks(0).state_dict(), networks(1).state_dict()
    kept = load_published(both, path, loss=loss, fresh_head=True)
    assert kept == ("head of the student", "head of the teacher", "centre")
    for name, value in both.state_dict().items():
        assert torch.equal(value, (before if ".head." in name else saved)[name]), name
    assert torch.equal(loss.center, loss_with_center(1).center)


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ({}, {"prototypes": 50}, r"head\.last_layer\.weight_v is 40 × 8 in the file, 50 × 8 in the model"),
        ({}, {"head_layers": 2}, r"also has head\.mlp\.4\.bias, head\.mlp\.4\.weight"),
        ({"embed_dim": 64}, {}, r"is .*48.* in the file, .*64.* in the model"),
        ({"depth": 4}, {}, r"lacks backbone\.blocks\.3\."),
        ({"grid_patches": 32}, {}, r"pos_embed is 1 × 256 × 48 in the file, 1 × 1024 × 48 in the model"),
        ({"num_heads": 8}, {}, "a model with 4 attention heads, this one has 8"),
    ],
)
def test_networks_of_another_size_are_named(path: Path, config: dict, settings: dict, message: str) -> None:
    both = networks(1, replace(CONFIG, **config), replace(SETTINGS, **settings))
    with pytest.raises(InputError, match=message) as error:
        load_published(both, path)
    assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/longvit-dino-was-here",)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(args=Evil()), r"refused: the pickle wants to run \S*system"),
        (lambda c: c.update(teacher=None), "its teacher is not a table of tensors"),
        (lambda c: c["teacher"].update(extra=torch.zeros(1)), "also has extra"),
        (lambda c: c["student"].pop("module.head.mlp.0.bias"), r"lacks head\.mlp\.0\.bias"),
        (lambda c: c["teacher"].pop("backbone.encoder.layers.1.self_attn.k_proj.bias"), r"lacks .*qkv\.bias"),
        (lambda c: c["teacher"]["backbone.norm.bias"].fill_(float("nan")), r"fc_norm\.bias is NaN"),
        (lambda c: c["dino_loss"].update(center=torch.zeros(1, 50)), "center is 1 × 50 in the file, 1 × 40 in"),
        (lambda c: [c.pop("teacher"), c.pop("student")], "neither teacher nor student in it; it holds dino_loss"),
    ],
)
def test_a_file_that_is_none_says_what_it_is(path: Path, edit: Any, message: str) -> None:
    change(path, edit)
    with pytest.raises(InputError, match=message):
        load_published(networks(1), path, loss=loss_with_center(1))
    assert not Path("/tmp/longvit-dino-was-here").exists()


@pytest.mark.parametrize("args", [argparse.Namespace(num_heads=8, arch="vit_small"), {"num_heads": 8}])
def test_options_of_another_program_are_not_believed(path: Path, args: Any) -> None:
    change(path, lambda content: content.update(args=args))
    assert load_published(networks(1), path) == ()
    assert convert(path, segment_lengths=(16, 64, 256), dilated_ratios=(1, 2, 4)).config.num_heads == 16


def test_a_folder_is_no_file_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder; give the checkpoint a file name"):
        save_published(networks(0), tmp_path)
    with pytest.raises(InputError, match="a folder, not a checkpoint"):
        load_published(networks(0), tmp_path)


def test_a_disk_that_is_full_leaves_the_old_file(path: Path) -> None:
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # bytes of a file
    try:
        with pytest.raises(InputError, match=r"dino\.pth: not written: File too large"):
            save_published(networks(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
