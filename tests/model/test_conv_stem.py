"""The convolutional stem: the plain definition, patches that see nothing else, strips, memory, files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.oracles import stem as oracle

import longvit
from longvit.errors import InputError
from longvit.model import conv_stem, embedding
from longvit.model.conv_stem import ConvPatchEmbedding, channels
from longvit.model.dino_checkpoint import DinoCheckpoint, write_dino
from longvit.model.longvit import SIZES, LongViT, LongViTConfig
from longvit.model.positions import PatchGrid
from longvit.model.pretrained import convert, load_model

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "ffn_dim": 24, "patch_px": 8, "grid_patches": 4}


def stem_embedding(patch_px: int = 8, dtype: torch.dtype = torch.float64) -> ConvPatchEmbedding:
    """Every parameter far from its initial value."""
    torch.manual_seed(0)
    embed = ConvPatchEmbedding(12, patch_px, PatchGrid(4, 4)).to(dtype)
    with torch.no_grad():
        for p in embed.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return embed


def pixels(batch: int, rows: int, columns: int, patch_px: int = 8) -> torch.Tensor:
    shape = (batch, 3, rows * patch_px, columns * patch_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows_of_patches: int = 12, patches: int = 5) -> None:
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", rows_of_patches)
    monkeypatch.setattr(conv_stem, "CPU_CHUNK", patches)


def with_gradients(embed: ConvPatchEmbedding, images: torch.Tensor) -> list[torch.Tensor]:
    embed.zero_grad()
    tokens = embed(images)
    tokens.square().sum().backward()
    return [tokens.detach(), *(p.grad.clone() for p in embed.parameters() if p.grad is not None)]


# --- the definition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_px", [4, 8, 32])
def test_tokens_and_gradients_are_those_of_the_plain_definition(monkeypatch: pytest.MonkeyPatch, patch_px: int) -> None:
    small_chunks(monkeypatch)
    embed, images = stem_embedding(patch_px), pixels(2, 4, 4, patch_px)  # the grid's own positions
    ours = with_gradients(embed, images)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in embed.named_parameters()}
    stem = {name.removeprefix("stem."): p for name, p in leaves.items() if name.startswith("stem.")}
    plain = torch.stack([oracle.tokens(image, patch_px, stem) for image in images]) + leaves["pos_embed"]
    gradients = torch.autograd.grad(plain.square().sum(), list(leaves.values()))
    for a, b in zip(ours, [plain, *gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_token_depends_on_the_pixels_of_its_patch_alone() -> None:
    embed, images = stem_embedding(dtype=torch.float32), pixels(1, 3, 4)
    changed = images.clone()
    changed[:, :, 8:16, 16:24] = 255 - changed[:, :, 8:16, 16:24]  # row 1, column 2
    with torch.no_grad():
        differs = (embed(images) != embed(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_a_uint8_image_equals_the_normalised_float_image_and_its_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    embed, images = stem_embedding(), pixels(2, 3, 5)
    normalised = (images.double() / 255 - oracle.MEAN.view(3, 1, 1)) / oracle.STD.view(3, 1, 1)
    saliency = normalised.clone().requires_grad_()
    raw = with_gradients(embed, images)
    for others in (with_gradients(embed, normalised), with_gradients(embed, saliency)):
        for a, b in zip(raw, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert saliency.grad is not None
    assert (saliency.grad != 0).all()


@pytest.mark.parametrize(("patch_px", "widths"), [(32, [24, 48, 96, 192]), (16, [48, 96, 192]), (4, [192])])
def test_channels_double_up_to_the_width_of_the_model(patch_px: int, widths: list[int]) -> None:
    assert channels(192, patch_px) == widths


# --- strips and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (13, 7), (1, 20), (20, 1)])
@pytest.mark.parametrize("autocast", [False, True])
def test_strips_give_the_bits_of_the_whole_image(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, autocast: bool
) -> None:
    small_chunks(monkeypatch, 32)
    embed, images = stem_embedding(dtype=torch.float32), pixels(1, rows, columns)
    array = images[0].permute(1, 2, 0).numpy()
    strip_px = embed.strip_px(columns * 8)
    strips = [np.ascontiguousarray(array[y : y + strip_px]) for y in range(0, len(array), strip_px)]
    with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        assert torch.equal(embed.from_strips(strips, PatchGrid(rows, columns)), embed(images))


def test_a_strip_gives_its_rows_of_the_tokens_and_its_part_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    whole, parts, images = stem_embedding(), stem_embedding(), pixels(2, 7, 3)
    expected = whole(images)
    grad = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(grad)
    for first, end in ((0, 2), (2, 3), (3, 7)):
        tokens = parts(images[:, :, 8 * first : 8 * end], first=first, rows=7)
        torch.testing.assert_close(tokens, expected[:, 3 * first : 3 * end], rtol=0, atol=1e-12)
        tokens.backward(grad[:, 3 * first : 3 * end])
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-10)


def test_only_the_pixels_are_kept_for_backward_and_a_chunk_is_convolved_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All layers of the stem of LongViT-tiny for a whole slide at once are 145 GB in float32."""
    small_chunks(monkeypatch)
    embed, images, kept, sizes = stem_embedding(), pixels(1, 6, 4), [], []
    own = {p.untyped_storage().data_ptr() for p in embed.parameters()}
    convolved = conv_stem.convolved

    def record(x: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
        sizes.append(len(x))
        return convolved(x, parameters)

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own and t.numel() >= images.numel() // 4:
            kept.append(t)
        return t

    monkeypatch.setattr(conv_stem, "convolved", record)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        tokens = embed(images)
    assert {t.data_ptr() for t in kept} == {images.data_ptr()}
    tokens.sum().backward()
    assert sizes == [5, 5, 2] * 4  # twice two chunks of three rows


def test_an_image_in_host_memory_is_moved_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    moved: list[int] = []
    original = embedding._moved

    def record(strip: torch.Tensor, device: torch.device) -> torch.Tensor:
        moved.append(strip.shape[2])
        return original(strip, device)

    monkeypatch.setattr(embedding, "_moved", record)
    monkeypatch.setattr(embedding, "compute_dtype", lambda weight: weight.dtype)  # "meta" has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    embed = stem_embedding(dtype=torch.float32).to("meta")
    tokens = embed(pixels(1, 7, 4))
    assert (tokens.device.type, tokens.shape) == ("meta", (1, 28, 12))
    tokens.sum().backward()
    assert moved == [24, 24, 8] * 2


# --- models and files -----------------------------------------------------------------------------------------------


def stem_model(**more: object) -> LongViT:
    torch.manual_seed(0)
    settings = {**SMALL, "stem": "conv", "sub_norm": False, "pool_norm": "token_norm", **more}
    return LongViT(LongViTConfig(**settings)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "millions"), [("tiny", 3.2), ("small", 23.2), ("base", 91.7)])
def test_named_models_with_a_stem_differ_from_their_size_in_four_settings(name: str, millions: float) -> None:
    stem, plain = SIZES[f"longvit_{name}_stem_patch32"], SIZES[f"longvit_{name}_patch32"]
    differing = {key for key, value in vars(plain).items() if vars(stem)[key] != value}
    assert differing == {"stem", "sub_norm", "pool_norm", "init"}
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LongViT(stem).parameters())
    assert round(parameters / 1e6, 1) == millions


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    for patch_px in (2, 24):
        with pytest.raises(ValueError, match=f"patch_px {patch_px} is no power of two"):
            LongViTConfig(patch_px=patch_px, stem="conv")
    assert LongViTConfig(patch_px=24).patch_px == 24


def test_a_model_folder_states_the_stem_and_one_without_these_settings_is_the_papers(tmp_path: Path) -> None:
    model, images = stem_model(num_classes=2), pixels(1, 4, 4)
    folder = model.save_pretrained(tmp_path / "stem")
    again = load_model(folder)
    assert again.config == model.config
    assert torch.equal(again(images), model(images))
    config = json.loads((folder / "config.json").read_text())
    older = LongViT(LongViTConfig(**SMALL)).save_pretrained(tmp_path / "older")  # type: ignore[arg-type]
    settings = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in ("stem", "sub_norm")}))
    assert (load_model(older).config.stem, load_model(older).config.sub_norm) == ("linear", True)
    (folder / "config.json").write_text(json.dumps({**config, "patch_px": 16}))
    with pytest.raises(InputError, match=r"lacks patch_embed\.stem\.convs\.2\.weight"):
        load_model(folder)


@pytest.mark.parametrize("stem", ["conv", "linear"])
@pytest.mark.parametrize("sub_norm", [False, True])
def test_a_dino_checkpoint_gives_back_stem_and_blocks(tmp_path: Path, stem: str, sub_norm: bool) -> None:
    model, images = stem_model(stem=stem, sub_norm=sub_norm), pixels(1, 4, 4)
    tensors = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    path = write_dino(tmp_path / "dino.pth", DinoCheckpoint(teacher=tensors, settings=vars(model.config)))
    again = convert(path)
    assert again.config == model.config
    assert torch.equal(again(images), model(images))


def test_half_a_stem_in_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    tensors = {f"backbone.{name}": value for name, value in stem_model().state_dict().items()}
    for name, says in (
        ("stem.proj.weight", r"lacks patch_embed\.stem\.proj\.weight"),
        ("stem.convs.0.weight", "positions|image_px|lacks|is .* in the file"),
        ("stem.norms.1.bias", r"lacks patch_embed\.stem\.norms\.1\.bias"),
    ):
        left = {key: value for key, value in tensors.items() if not key.endswith(name)}
        path = write_dino(tmp_path / "dino.pth", DinoCheckpoint(teacher=left, settings={"num_heads": 2}))
        with pytest.raises(InputError, match=says):
            convert(path)


def test_weights_of_another_stem_do_not_start_a_named_model(tmp_path: Path) -> None:
    folder = longvit.create_model("longvit_tiny_patch32").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="stem linear, but longvit_tiny_stem_patch32 has conv"):
        longvit.create_model("longvit_tiny_stem_patch32", folder)
    with pytest.raises(ValueError, match="sub_norm: fixed by the pretrained weights"):
        longvit.create_model("longvit_tiny_patch32", folder, sub_norm=False)


def test_a_stream_gives_the_bits_of_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import EXAMPLE_SLIDE

    small_chunks(monkeypatch, 64, 24)
    model = stem_model(patch_px=16, image_px=16 * 26)
    with longvit.open_slide(EXAMPLE_SLIDE) as slide:
        assert np.array_equal(model.embed(slide), model.embed(slide.canvas(16 * 26, "stretch")))


def test_results_of_older_versions_stay_those_of_the_model() -> None:
    from longvit.slide_jobs.job import model_digest, weights_digest

    paper = LongViT(LongViTConfig(**SMALL))  # type: ignore[arg-type]
    older = {name: value for name, value in vars(paper.config).items() if name not in ("stem", "sub_norm", "init")}
    assert model_digest(paper) == weights_digest(paper, json.dumps(older, sort_keys=True, default=str))
    stem = stem_model()
    assert model_digest(stem) != weights_digest(stem, json.dumps(older, sort_keys=True, default=str))


def test_weight_decay_and_layer_decay_treat_the_stem_as_the_embedding() -> None:
    from longvit.training.optim import parameter_groups

    for group in parameter_groups(stem_model(), weight_decay=0.05, layer_decay=0.5):
        for name in (n for n in group["names"] if "stem" in n):  # type: ignore[attr-defined]
            assert group["lr_scale"] == 0.5**3
            assert group["weight_decay"] == (0.05 if name.split(".")[2] != "norms" and "bias" not in name else 0.0)
