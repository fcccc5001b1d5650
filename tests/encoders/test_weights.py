"""Weights of published encoders: names of every kind of file, refusals in one line, nothing fetched unasked."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.encoders.timm_here import require_timm, small
from tests.slide_jobs.test_tiles import write_slides
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu, softmax

from longvit.encoders import networks, presets
from longvit.encoders.attention_pooling import HEADS, PooledByMultihead, PooledByProjections
from longvit.encoders.presets import PRESETS, Preset, preset
from longvit.encoders.weights import resized_positions, weights_file
from longvit.errors import InputError
from longvit.slide_jobs.encoder_names import absolute, encoder_name, located
from longvit.slide_jobs.features import feature_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.tile_encoders import open_encoder
from longvit.slides.tiles import TileSettings

WIDTH = 32


def random_encoder(row: Preset) -> nn.Module:
    """A network of a preset with random weights, none of which is 0 or 1."""
    require_timm()
    torch.manual_seed(0)
    encoder = networks.PublishedEncoder(row).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def images(n: int = 3, side_px: int = 28) -> Tensor:
    return torch.rand(n, 3, side_px, side_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


def published_names(row: Preset, encoder: nn.Module) -> dict[str, Tensor]:
    """The weights as the published file names them."""
    state = {key: value.clone() for key, value in encoder.state_dict().items() if "num_batches" not in key}
    if row.names == "conch":
        extra = {"attn_pool_caption.query": torch.zeros(2, 2), "proj_contrast": torch.zeros(2, 2)}
        return {f"visual.{key}": value for key, value in (state | extra).items()} | {"logit_scale": torch.zeros(1)}
    if row.names == "conch_v1_5":
        return state
    state = {key.removeprefix("trunk."): value for key, value in state.items()}
    if row.names == "timm":
        return state
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    names |= {f"patch_embed.proj.{x}": f"embeddings.patch_embeddings.projection.{x}" for x in ("weight", "bias")}
    published: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros(1, 1, WIDTH)}
    dinov2 = any("ls1" in key for key in state)
    for key, value in state.items():
        if not key.startswith("blocks."):
            published[names.get(key, key.replace("norm.", "layernorm."))] = value
            continue
        _, layer, part = key.split(".", 2)
        start, kind = f"encoder.layer.{layer}", part.rsplit(".", 1)[1]
        if part.startswith("attn.qkv"):
            for name, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                published[f"{start}.attention.attention.{name}.{kind}"] = piece.clone()
        elif part.startswith("attn.proj"):
            published[f"{start}.attention.output.dense.{kind}"] = value
        elif part.startswith("ls"):
            published[f"{start}.layer_scale{part[2]}.lambda1"] = value
        elif not dinov2:
            plain = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
            published[f"{start}.{plain.get(part.rsplit('.', 1)[0], 'output.dense')}.{kind}"] = value
        else:
            swiglu = {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"} if "midnight" in row.name else {}
            published[f"{start}.{swiglu.get(part.rsplit('.', 1)[0], part.rsplit('.', 1)[0])}.{kind}"] = value
    return published


def forward_of_transformers(state: dict[str, Tensor], x: Tensor, eps: float) -> Tensor:
    """Tokens (B, N, C) of a ViT or a DINOv2 from transformers' names, in float64, written from its equations."""
    w = {key: value.double() for key, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    projection = "embeddings.patch_embeddings.projection"
    patches = nn.functional.conv2d(x.double(), w[f"{projection}.weight"], w[f"{projection}.bias"], stride=14)
    tokens = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + w["embeddings.position_embeddings"]
    for i in range(2):
        at = f"encoder.layer.{i}"
        dinov2 = f"{at}.norm1.weight" in w
        h = norm(f"{at}.norm1" if dinov2 else f"{at}.layernorm_before", tokens)
        q, k, v = (linear(f"{at}.attention.attention.{n}", h).unflatten(-1, (2, -1)) for n in ("query", "key", "value"))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        h = torch.einsum("bhnm,bmhd->bnhd", softmax(scores, -1), v).flatten(2)
        h = linear(f"{at}.attention.output.dense", h)
        tokens = tokens + (h * w[f"{at}.layer_scale1.lambda1"] if dinov2 else h)
        h = norm(f"{at}.norm2" if dinov2 else f"{at}.layernorm_after", tokens)
        if f"{at}.mlp.weights_in.weight" in w:
            gate, value = linear(f"{at}.mlp.weights_in", h).chunk(2, -1)
            h = linear(f"{at}.mlp.weights_out", silu(gate) * value)
        elif dinov2:
            h = linear(f"{at}.mlp.fc2", gelu(linear(f"{at}.mlp.fc1", h)))
        else:
            h = linear(f"{at}.output.dense", gelu(linear(f"{at}.intermediate.dense", h)))
        tokens = tokens + (h * w[f"{at}.layer_scale2.lambda1"] if dinov2 else h)
    return norm("layernorm", tokens)


@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "midnight-12k"])
def test_a_file_of_transformers_gives_the_tokens_of_its_equations(name: str, tmp_path: Path) -> None:
    row = small(name)
    state = published_names(row, random_encoder(row))
    save_file(state, tmp_path / "model.safetensors")
    from longvit.encoders.weights import load_encoder

    encoder = load_encoder(row, tmp_path / "model.safetensors")
    wanted = forward_of_transformers(state, images(), row.norm_eps)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.tokens(images()).double(), wanted, rtol=1e-4, atol=1e-4)
        pooled = wanted[:, 0] if row.pooling == "cls" else torch.cat([wanted[:, 0], wanted[:, 1:].mean(1)], 1)
        torch.testing.assert_close(encoder(images()).double(), pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("phikon", "ViT"), ("phikon-v2", "Dinov2"), ("midnight-12k", "Dinov2")])
def test_a_model_saved_by_transformers_gives_the_same_tokens(name: str, kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    require_timm()
    row = replace(small(name), tokens=10, input_px=42)
    arguments: dict[str, Any] = {"img_size": 42} | ({"mlp_ratio": 5.5} if "midnight" in name else {})  # 176 hidden
    row = replace(row, arguments={**row.arguments, **arguments})
    settings: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    settings |= {"intermediate_size": 4 * WIDTH} if kind == "ViT" else {"use_swiglu_ffn": "midnight" in name}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)  # release 5 has other names in memory, and the published ones in files
    from longvit.encoders.weights import load_encoder

    encoder, pixels = load_encoder(row, tmp_path / "model.safetensors"), images(side_px=42)
    with torch.inference_mode():  # 3 × 3 patches with the positions of 2 × 2
        wanted = model(pixels, **({"interpolate_pos_encoding": True} if kind == "ViT" else {})).last_hidden_state
        torch.testing.assert_close(encoder.tokens(pixels), wanted, rtol=1e-4, atol=1e-4)


def test_positions_are_resized_only_where_the_grid_differs() -> None:
    positions = torch.randn(1, 1 + 16, 8)
    assert resized_positions(positions, 16) is positions
    assert resized_positions(positions[:, :12], 9).shape == (1, 12, 8)  # no square grid: not changed, does not fit
    resized = resized_positions(positions, 4)
    assert resized.shape == (1, 5, 8)
    assert torch.equal(resized[:, 0], positions[:, 0])


def attention_by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query (D,) over (N, D), head by head."""
    parts = []
    for q, k, v in zip(query.chunk(HEADS), key.chunk(HEADS, 1), value.chunk(HEADS, 1), strict=True):
        parts.append(softmax(k @ q / len(q) ** 0.5, 0) @ v)
    return torch.cat(parts)


@pytest.mark.parametrize("kind", [PooledByMultihead, PooledByProjections])
def test_attention_pooling_is_that_of_its_equation(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    pool = kind(24, 16).double().eval()
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 5, 24).double()
    w = dict(pool.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    for row, found in zip(tokens, pool(tokens), strict=True):
        query, keys = norm("ln_q", w["query"])[0], norm("ln_k", row)
        if kind is PooledByProjections:
            key, value = (keys @ w["to_kv.weight"].T).chunk(2, 1)
            wanted = w["to_out.weight"] @ attention_by_hand(w["to_q.weight"] @ query, key, value)
        else:
            bias = w["attn.in_proj_bias"].chunk(3)
            key = keys @ w["attn.k_proj_weight"].T + bias[1]
            value = keys @ w["attn.v_proj_weight"].T + bias[2]
            pooled = attention_by_hand(w["attn.q_proj_weight"] @ query + bias[0], key, value)
            wanted = w["attn.out_proj.weight"] @ pooled + w["attn.out_proj.bias"]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["uni2-h", "virchow2", "h0-mini", "conch", "conch-v1.5", "resnet50"])
def test_a_file_with_published_names_gives_the_vectors_of_its_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_timm()
    row = small(name) if name != "resnet50" else replace(preset(name), input_px=64, tile_px=(64,))
    monkeypatch.setitem(presets.PRESETS, name, row)  # type: ignore[index]
    encoder = random_encoder(row) if name != "resnet50" else networks.PublishedEncoder(row).eval()
    path = tmp_path / "pytorch_model.bin"
    extra = {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)} if name == "resnet50" else {}
    torch.save(published_names(row, encoder) | extra, path)
    monkeypatch.chdir(tmp_path)
    opened = open_encoder(f"{name}=pytorch_model.bin", row.input_px)
    assert (opened.name, opened.dim) == (name, row.dim)
    pixels = np.random.default_rng(0).integers(0, 256, (3, row.input_px, row.input_px, 3)).astype(np.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in row.normalisation)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        if name == "resnet50":
            wanted = encoder.trunk.forward_features(x).mean((2, 3))
        else:
            tokens = encoder.trunk.forward_features(x)
            patches = tokens[:, -4:].mean(1)  # four patches: registers are not among them
            wanted = torch.cat([tokens[:, 0], patches], 1) if row.pooling == "cls+mean" else tokens[:, 0]
            if row.pooling == "attention":
                wanted = encoder.ln_contrast(encoder.attn_pool_contrast(tokens))
    np.testing.assert_allclose(opened.encode(pixels), wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_features_of_slides_are_written_under_the_name_of_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("uni")
    encoder = random_encoder(row)
    monkeypatch.setitem(presets.PRESETS, "uni", row)  # type: ignore[index]
    torch.save(published_names(row, encoder), tmp_path / "uni.bin")
    slides = write_slides(tmp_path / "slides", 1)
    spec, tiles = f"uni={tmp_path / 'uni.bin'}", TileSettings(28, 0.5, min_tissue=0)
    here = RunSettings(device="cpu")
    with pytest.raises(InputError, match=r"--encoder uni: made for tiles of 28 px at 0.5 µm/px, not 28 px at 0.25"):
        feature_slides(slides, tmp_path / "job", spec, replace(tiles, mpp=0.25), run_settings=here)
    assert not (tmp_path / "job").exists()
    record = feature_slides(slides, tmp_path / "job", spec, tiles, run_settings=here).records[0]
    assert (record["encoder"]["name"], record["features"]["dim"]) == ("uni", 32)
    assert len(list((tmp_path / "job").glob("*/features_uni/*.h5"))) == 1


def test_a_tile_larger_than_the_input_is_cropped_or_resized_as_its_authors_do() -> None:
    from longvit.slide_jobs.tile_encoders import TorchEncoder

    def mean_of(resizing: str, pixels: np.ndarray) -> float:
        encoder = TorchEncoder(
            "a", lambda x: x.mean((2, 3)), "", 32, mean=(0, 0, 0), std=(1, 1, 1), input_px=28,
            resizing=resizing,  # type: ignore[arg-type]
        )  # fmt: skip
        return float(encoder.encode(pixels)[0, 0])

    tile = np.zeros((1, 32, 32, 3), np.uint8)
    tile[:, 2:-2, 2:-2] = 255
    assert mean_of("crop", tile) == 1
    assert 0.7 < mean_of("bilinear", tile) < 0.85


def test_a_pickle_that_runs_code_is_refused_in_one_line(tmp_path: Path) -> None:
    require_timm()

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"cls_token": torch.zeros(1), "x": Harmful()}, tmp_path / "uni.bin")
    with pytest.raises(InputError, match=r"uni\.bin: refused: the pickle wants to run \S*mkdir"):
        open_encoder(f"uni={tmp_path / 'uni.bin'}", 224)
    assert not (tmp_path / "harm").exists()


def test_the_file_of_another_encoder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = small("virchow")
    path = tmp_path / "other.bin"
    torch.save(published_names(row, random_encoder(row)), path)
    monkeypatch.setitem(presets.PRESETS, "virchow2", small("virchow2"))  # type: ignore[index]
    with pytest.raises(
        InputError, match=r"other\.bin: these are not the weights of this model: the file lacks trunk.reg"
    ):
        open_encoder(f"virchow2={path}", 28)
    with pytest.raises(InputError, match=r"none\.bin: no such file"):
        open_encoder(f"virchow={tmp_path / 'none.bin'}", 28)


def hub(monkeypatch: pytest.MonkeyPatch, download: Any, cached: dict[str, str] | None = None) -> list[str]:
    """A hub package in memory; returns the files that were asked of the network."""
    asked: list[str] = []

    class EntryNotFoundError(Exception):
        pass

    class LocalEntryNotFoundError(EntryNotFoundError):
        pass

    class GatedRepoError(Exception):
        pass

    errors = types.ModuleType("huggingface_hub.errors")
    for error in (EntryNotFoundError, LocalEntryNotFoundError, GatedRepoError):
        setattr(errors, error.__name__, error)
    package = types.ModuleType("huggingface_hub")

    def hf_hub_download(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        return download(name, errors)

    package.try_to_load_from_cache = lambda repository, name: (cached or {}).get(name)  # type: ignore[attr-defined]
    package.hf_hub_download, package.errors = hf_hub_download, errors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def raising(kind: str, text: str = "") -> Any:
    def download(name: str, errors: Any) -> str:
        raise getattr(errors, kind, OSError)(text)

    return download


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, lambda name, errors: "/nowhere")
    with pytest.raises(InputError) as caught:
        located("uni2-h")
    assert str(caught.value) == (
        "--encoder uni2-h: its weights are not on this machine; download pytorch_model.bin from "
        "https://huggingface.co/MahmoodLab/UNI2-h and give --encoder uni2-h=FILE (gated: accept its licence, "
        "CC-BY-NC-ND-4.0, there first), or add --download"
    )
    assert asked == []
    assert located("uni2-h", download=True) == "uni2-h=/nowhere"
    assert asked == ["MahmoodLab/UNI2-h/pytorch_model.bin"]


def test_the_cache_is_used_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, raising("GatedRepoError"), {"pytorch_model.bin": "/cache/pytorch_model.bin"})
    assert weights_file(PRESETS["phikon"]) == Path("/cache/pytorch_model.bin")
    assert asked == []


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        (
            "uni",
            "GatedRepoError",
            r"uni: gated; accept its licence \(CC-BY-NC-ND-4.0\) on https://huggingface.co/Mahm\S+",
        ),
        (
            "phikon",
            "LocalEntryNotFoundError",
            r"not downloaded \(no connection to the hub\); download model.saf",
        ),
        (
            "phikon",
            "OSError",
            r"not downloaded \(offline\); download model.safetensors from https://huggingface.co/owkin",
        ),
        ("phikon", "EntryNotFoundError", r"not downloaded \(no file of weights there\)"),
    ],
)
def test_a_download_that_fails_is_one_line_with_the_page(
    name: str, kind: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, raising(kind, "offline"))
    with pytest.raises(InputError, match=line) as caught:
        located(name, download=True)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        InputError, match=r"huggingface-hub is not installed; pip install 'longvit\[encoders\]', or down"
    ):
        located("phikon", download=True)
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"timm is not installed; pip install 'longvit\[encoders\]'"):
        networks.timm_package()


def test_a_torchvision_of_another_build_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        InputError, match=r"cannot be imported \(operator torchvision::nms does not exist\); install the"
    ):
        networks.timm_package()


def test_a_timm_that_is_too_old_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("__version__ = '1.0.15'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InputError, match=r"timm 1.0.15 is too old; pip install -U 'longvit\[encoders\]'"):
        networks.timm_package()


def test_names_of_published_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert encoder_name("uni2-h") == encoder_name("uni2-h=a/b.bin") == "uni2-h"
    assert absolute("uni2-h=b.bin") == f"uni2-h={tmp_path / 'b.bin'}"
    assert absolute("uni2-h") == "uni2-h"
    assert located("uni2-h=b.bin") == "uni2-h=b.bin"
    assert located("stain-texture") == "stain-texture"
