"""Weights on disk: round trips, published layouts, damaged and foreign files."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import longvit
from longvit.errors import InputError
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.pretrained import convert, load_model, save_pretrained

SETTINGS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 64, "patch_px": 8, "grid_patches": 4}


@pytest.fixture
def model() -> LongViT:
    torch.manual_seed(0)
    return LongViT(LongViTConfig(**SETTINGS, num_classes=2, class_names=("benign", "tumour"), fit="pad")).eval()


@pytest.fixture
def folder(model: LongViT, tmp_path: Path) -> Path:
    return model.save_pretrained(tmp_path / "model")


def published(model: LongViT) -> dict[str, torch.Tensor]:
    """A model's tensors under the authors' names."""
    back = {
        "attn.norm_in": "self_attn_layer_norm",
        "attn.norm": "self_attn.inner_attn_ln",
        "attn.proj": "self_attn.out_proj",
        "mlp.norm_in": "final_layer_norm",
        "mlp.fc1": "ffn.fc1",
        "mlp.norm": "ffn.ffn_layernorm",
        "mlp.fc2": "ffn.fc2",
    }
    tensors = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] != "blocks":
            tensors[name.replace("patch_embed.pos_embed", "pos_embed")] = value.clone()
            continue
        stem, kind = ".".join(parts[2:-1]), parts[-1]
        prefix = f"encoder.layers.{parts[1]}."
        if stem == "attn.qkv":
            for x, part in zip("qkv", value.chunk(3), strict=True):
                tensors[f"{prefix}self_attn.{x}_proj.{kind}"] = part.clone()
        else:
            tensors[f"{prefix}{back[stem]}.{kind}"] = value.clone()
    return tensors


def images() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_saving_and_loading_gives_the_same_model(model: LongViT, folder: Path) -> None:
    again = longvit.load_model(folder)
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(images()), model(images()))


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_the_bytes_round_the_weights_and_load_as_float32(
    model: LongViT, folder: Path, tmp_path: Path, dtype: str, bits: int
) -> None:
    half = model.save_pretrained(tmp_path / "half", dtype=dtype)
    assert json.loads((half / "config.json").read_text())["weights_dtype"] == dtype
    assert "weights_dtype" not in json.loads((folder / "config.json").read_text())
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, folder)]
    assert 2 * sizes[0] <= sizes[1] + 8_192  # the table of names
    again, weights = load_model(half), model.state_dict()
    assert again.config == model.config
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert (value - weights[name]).abs().max() <= weights[name].abs().max() * 2**-bits, name
    assert torch.equal(load_model(half.parent / "half")(images()), again(images()))


def test_longvit_tiny_with_half_the_bytes_is_below_12_mb(tmp_path: Path) -> None:
    folder = longvit.create_model("longvit_tiny_patch32").save_pretrained(tmp_path, dtype="float16")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 12e6


def test_a_weight_beyond_float16_is_named_and_nothing_is_written(model: LongViT, tmp_path: Path) -> None:
    with torch.no_grad():
        model.head.bias[1] = 7e4
    with pytest.raises(InputError, match=r"not written: head\.bias does not fit float16; take bfloat16"):
        model.save_pretrained(tmp_path, dtype="float16")
    assert not list(tmp_path.iterdir())
    assert load_model(model.save_pretrained(tmp_path, dtype="bfloat16")).head.bias[1] == 70144  # 7e4 in 8 bits


def test_a_gigapath_encoder_round_trips_too(tmp_path: Path) -> None:
    config = GigaPathConfig(in_dim=6, embed_dim=16, depth=1, num_heads=4, ffn_dim=32, grid_tiles=8, pool="mean")
    encoder = GigaPathSlideEncoder(config).eval()
    again = load_model(save_pretrained(encoder, tmp_path))
    features, coords = torch.randn(1, 5, 6), torch.randint(0, 2048, (1, 5, 2))
    assert torch.equal(again(features, coords), encoder(features, coords))
    with pytest.raises(ValueError, match="grid of 8"):
        encoder(features, coords + 2048)
    with pytest.raises(ValueError, match=r"\(1, 5, 6\) and \(1, 4, 2\)"):
        encoder(features, coords[:, :4])


@pytest.mark.parametrize("wrapper", ["bare", "model", "module.", "model."])
def test_a_fine_tuned_checkpoint_of_the_authors_loads(model: LongViT, tmp_path: Path, wrapper: str) -> None:
    tensors = published(model)
    if wrapper == "model.":  # the layout of their classifier: everything but head and fc_norm below `model`
        tensors = {k if k.startswith(("head", "fc_norm")) else f"model.{k}": v for k, v in tensors.items()}
    elif wrapper == "module.":
        tensors = {f"module.{k}": v for k, v in tensors.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": tensors, "epoch": 9} if wrapper == "model" else tensors, path)
    again = convert(path, num_heads=4, class_names=("benign", "tumour"))
    assert again.config.num_classes == 2
    assert torch.equal(again(images()), model(images()))


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_dino_checkpoint_gives_its_teacher_or_student(tmp_path: Path, which: str) -> None:
    files, models = {}, {}
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        models[name] = LongViT(LongViTConfig(**SETTINGS, pool_norm="token_norm")).eval()
        tensors = {k: v for k, v in published(models[name]).items() if not k.startswith("fc_norm")}
        prefix = "module.backbone." if name == "student" else "backbone."
        files[name] = {f"{prefix}{k}": v for k, v in tensors.items()}
        files[name][prefix.replace("backbone.", "head.mlp.0.weight")] = torch.zeros(4, 32)
        files[name][prefix.replace("backbone.", "head.last_layer.weight_g")] = torch.zeros(4, 1)
    path = tmp_path / "dino.pth"
    torch.save({**files, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, path)
    again = convert(path, num_heads=4, which=which)
    assert again.config.pool_norm == "token_norm"
    assert torch.equal(again(images()), models[which](images()))


def test_a_position_per_patch_is_recognised(tmp_path: Path) -> None:
    model = LongViT(LongViTConfig(**SETTINGS | {"patch_px": 4}, positions="per_patch", image_px=160)).eval()
    path = tmp_path / "fine_tuned.safetensors"
    save_file(published(model), path)
    again = convert(path, num_heads=4)
    assert (again.config.positions, again.config.image_px) == ("per_patch", 160)
    assert again.patch_embed.pos_embed.shape == (1, 1600, 32)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/longvit-was-here",)


def test_a_pickle_that_wants_to_run_code_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(InputError, match=r"evil\.pth: refused: .*(posix|system)"):
        convert(path)
    assert not Path("/tmp/longvit-was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 704238867\n", "Git-LFS pointer"),
        (b"", "empty"),
        (b"not a checkpoint at all", "not a readable checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_its_kind(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and "readable" in message:
        message = "not a whole safetensors file"
    with pytest.raises(InputError, match=message):
        convert(path)


def change(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("head.bias"), r"lacks head\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "also has extra"),
        (lambda t: t.update({"head.weight": torch.zeros(3, 32)}), r"head\.weight is 3 × 32 in the file, 2 × 32"),
        (lambda t: t["blocks.1.mlp.fc1.weight"].fill_(float("nan")), r"blocks\.1\.mlp\.fc1\.weight is NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, edit, message: str) -> None:
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_a_checkpoint_of_another_size_names_both_shapes(model: LongViT, tmp_path: Path) -> None:
    tensors = published(model)
    tensors["encoder.layers.1.ffn.fc1.weight"] = torch.zeros(128, 32)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=r"128 × 32 in the file, 64 × 32 in the model"):
        convert(tmp_path / "odd.safetensors", num_heads=4)


def test_a_missing_folder_config_or_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: no such file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"unheard_of": 1}, "unknown settings unheard_of"),
        ({"format": 99}, "newer than this longvit"),
        ({"model": "resnet"}, "resnet"),
        ({"num_heads": 5}, "32 is not a multiple of num_heads 5"),
    ],
)
def test_a_config_from_elsewhere_is_refused(folder: Path, edit: dict, message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_a_broken_config_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match="not the config") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_saved_model_has_the_permissions_of_other_files(tmp_path: Path) -> None:
    folder = longvit.create_model("longvit_tiny_patch32").save_pretrained(tmp_path / "model")
    (tmp_path / "plain").touch()
    assert (folder / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_shipped_weights_load_by_name_and_fit_the_package() -> None:
    from longvit.model.pretrained import SHIPPED, shipped_names

    assert shipped_names() == ("longvit-tiny-stem",)
    model = load_model("longvit-tiny-stem")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (SHIPPED / "longvit-tiny-stem" / "model.safetensors").stat().st_size < 12_000_000
    card = (SHIPPED / "longvit-tiny-stem" / "README.md").read_text(encoding="utf-8")
    assert all(f"## {part}" in card for part in ("Data", "Training", "What it brings", "Limits", "Licence"))
