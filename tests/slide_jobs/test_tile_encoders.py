"""Encoders of tiles by name: what cannot be used is one line, files run no pickled code, numbers are the model's."""

from __future__ import annotations

import importlib.machinery
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small_slides import write_model
from torch import nn

from longvit.errors import InputError
from longvit.model.pretrained import SHIPPED, load_model
from longvit.slide_jobs import tile_encoders
from longvit.slide_jobs.encoder_names import absolute, encoder_name
from longvit.slide_jobs.stain_texture import describe_tile
from longvit.slide_jobs.tile_encoders import TorchEncoder, open_encoder

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Small(nn.Module):
    """(B, 3, P, P) -> the mean of each channel, and of its square, 6 wide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), (x * x).mean((2, 3))], 1)


def tiles(n: int = 3, side_px: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side_px, side_px, 3)).astype(np.uint8)


def wanted(pixels: np.ndarray, mean: np.ndarray = MEAN, std: np.ndarray = STD) -> np.ndarray:
    x = (pixels / 255.0 - mean) / std
    return np.concatenate([x.mean((1, 2)), (x * x).mean((1, 2))], 1)


def test_stain_texture_describes_every_tile() -> None:
    encoder = open_encoder("stain-texture", 32)
    pixels = tiles()
    features = encoder.encode(pixels)
    assert (features.shape, features.dtype) == ((3, encoder.dim), np.float32)
    for row, tile in zip(features, pixels, strict=True):
        np.testing.assert_array_equal(row, describe_tile(tile))
    with pytest.raises(InputError, match="--tile-px 16: stain-texture needs tiles of at least 32 px"):
        open_encoder("stain-texture", 16)


@pytest.mark.parametrize("given", ["resnet5", "stain-texture:x", "timm:", "uni:", "uni=", ""])
def test_a_name_that_there_is_not_lists_those_that_there_are(given: str) -> None:
    with pytest.raises(InputError, match=r"--encoder .*: take one of stain-texture, timm:NAME, .*export:FILE"):
        open_encoder(given, 256)


def test_the_name_makes_a_folder() -> None:
    names = {
        "stain-texture": "stain-texture",
        "timm:vit_small_patch16_224.dino": "timm-vit_small_patch16_224.dino",
        "timm:hf-hub:owner/name": "timm-hf-hub-owner-name",
        "hipt:weights/vit256_small_dino.pth": "hipt-vit256_small_dino",
        "longvit:run/model": "longvit-model",
        "torchscript:a b.ts": "torchscript-a-b",
    }
    assert {given: encoder_name(given) for given in names} == names


def test_a_torchscript_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "small.ts"
    torch.jit.save(torch.jit.script(Small()), path)
    encoder = open_encoder(f"torchscript:{path}", 32)
    assert encoder.dim == 6
    np.testing.assert_allclose(encoder.encode(tiles()), wanted(tiles()), rtol=1e-5, atol=1e-6)
    other = tmp_path / "other" / "small.ts"
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    assert open_encoder(f"torchscript:{other}", 32).digest == encoder.digest


def exported(path: Path, module: nn.Module | None = None, **settings: Any) -> Path:
    program = torch.export.export(module or Small(), (torch.zeros(2, 3, 32, 32),), **settings)
    torch.export.save(program, path)
    return path


def test_an_exported_program_is_run_with_any_batch(tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    path = exported(tmp_path / "small.pt2", dynamic_shapes={"x": batch})
    encoder = open_encoder(f"export:{path}", 32)
    for n in (1, 3, 5):
        np.testing.assert_allclose(encoder.encode(tiles(n)), wanted(tiles(n)), rtol=1e-5, atol=1e-6)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("harm", "w"))


def test_an_exported_program_with_pickled_code_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = exported(tmp_path / "small.pt2", dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.save(((_Harmful(),), {}), tmp_path / "harmful.pt")
    harmful = tmp_path / "harmful.pt2"
    replaced = 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(harmful, "w") as new:
        for name in old.namelist():
            is_sample = "sample_inputs" in name
            replaced += is_sample
            new.writestr(name, (tmp_path / "harmful.pt").read_bytes() if is_sample else old.read(name))
    assert replaced == 1
    with pytest.raises(InputError, match=r"not a file of torch\.export\.save, or damaged"):
        open_encoder(f"export:{harmful}", 32)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(harmful, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("small/data/constants/opaque_obj_0", b"")
    with pytest.raises(InputError, match="holds small/data/constants/opaque_obj_0, which only running code"):
        open_encoder(f"export:{harmful}", 32)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_file_that_is_none_is_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_encoder(f"{kind}:{tmp_path / 'a.pt2'}", 32)
    (tmp_path / "a.pt2").write_bytes(b"nothing of use")
    with pytest.raises(InputError, match="or damaged") as caught:
        open_encoder(f"{kind}:{tmp_path / 'a.pt2'}", 32)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_take_such_tiles_says_so_before_any_slide(tmp_path: Path) -> None:
    path = exported(tmp_path / "fixed.pt2")
    with pytest.raises(InputError, match=r"export-fixed: does not accept two tiles of 64 × 64 px"):
        open_encoder(f"export:{path}", 64)
    torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / "same.ts")
    with pytest.raises(InputError, match=r"gives \(2, 3, 32, 32\) for two tiles, not \(2, width\)"):
        open_encoder(f"torchscript:{tmp_path / 'same.ts'}", 32)


def test_a_longvit_gives_its_mean_token(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model = load_model(folder)
    encoder = open_encoder(f"longvit:{folder}", 64)
    pixels = tiles(2, 64)
    features = encoder.encode(pixels)
    assert features.shape == (2, 32)
    for row, tile in zip(features, pixels, strict=True):
        np.testing.assert_allclose(row, model.embed(tile), atol=1e-5)
    with pytest.raises(InputError, match="--tile-px 50: not a multiple of the 32 px of a patch"):
        open_encoder(f"longvit:{folder}", 50)


def test_the_longvit_that_comes_along_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "longvit-tiny-stem"
    encoder = open_encoder(f"longvit:{name}", 64)
    assert (encoder.name, encoder.dim) == ("longvit-longvit-tiny-stem", 192)
    assert absolute(f"longvit:{name}") == f"longvit:{name}"  # other processes find it by its name, too
    model, pixels = load_model(name), tiles(2, 64)
    for row, tile in zip(encoder.encode(pixels), pixels, strict=True):
        np.testing.assert_allclose(row, model.embed(tile), atol=1e-5)
    assert open_encoder(f"longvit:{SHIPPED / name}", 64).digest == encoder.digest
    with pytest.raises(InputError, match=r"longvit-tiny-ste: no such folder; .* longvit-tiny-stem"):
        open_encoder("longvit:longvit-tiny-ste", 64)
    model.save_pretrained(name)  # a folder wins, as everywhere
    assert absolute(f"longvit:{name}") == f"longvit:{tmp_path / name}"


def test_timm_is_asked_for_by_name_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_encoders, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"timm:resnet50: the package timm is not installed; pip install timm"):
        open_encoder("timm:resnet50", 256)


def test_a_timm_model_gets_its_own_size_and_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create_model(name: str, **settings: Any) -> nn.Module:
        asked.update(settings, name=name)
        if name == "none":
            raise RuntimeError("Unknown model (none)\nsecond line")
        return Small()

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 16, 16)}
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda module: config)
    timm.__spec__ = importlib.machinery.ModuleSpec("timm", None)
    monkeypatch.setitem(sys.modules, "timm", timm)
    encoder = open_encoder("timm:small", 32)
    assert asked == {"name": "small", "pretrained": True, "num_classes": 0}
    pixels = tiles()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    half = wanted(255 * small.permute(0, 2, 3, 1).double().numpy(), np.full(3, 0.5), np.full(3, 0.25))
    np.testing.assert_allclose(encoder.encode(pixels), half, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"--encoder timm:none: Unknown model \(none\) second line"):
        open_encoder("timm:none", 32)


@pytest.mark.slow
def test_hipts_vit256_normalises_with_one_half(tmp_path: Path) -> None:
    from longvit.baselines.hipt_vits import Vit256

    torch.manual_seed(0)
    model = Vit256().eval()
    path = tmp_path / "vit256_small_dino.pth"
    torch.save({"teacher": {f"backbone.{name}": value for name, value in model.state_dict().items()}}, path)
    encoder = open_encoder(f"hipt:{path}", 256)
    assert encoder.dim == 384
    pixels = tiles(1, 256)
    with torch.inference_mode():
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        np.testing.assert_allclose(encoder.encode(pixels), model(x).numpy(), atol=1e-4)


def test_tiles_are_resized_only_where_the_model_wants_it() -> None:
    seen = []

    def module(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x.mean((2, 3))

    TorchEncoder("a", module, "", 48)
    TorchEncoder("a", module, "", 48, input_px=32)
    assert seen == [(2, 3, 48, 48), (2, 3, 32, 32)]


def test_other_processes_find_a_file_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ts").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert absolute("torchscript:a.ts") == f"torchscript:{tmp_path / 'a.ts'}"
    assert absolute("stain-texture") == "stain-texture"
    assert absolute("longvit:owner/name") == "longvit:owner/name"
