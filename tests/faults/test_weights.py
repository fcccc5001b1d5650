"""Weights and published checkpoints that mean harm or do not fit: one line, no code, little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.faults import hostile_files, hostile_models

from longvit.errors import InputError
from longvit.model.checkpoints import filled
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.pretrained import convert
from longvit.torch_file import load_tensors


@pytest.mark.parametrize("case", hostile_files.small_cases("checkpoint .pth"))
def test_a_hostile_checkpoint_is_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


@pytest.mark.parametrize("case", hostile_files.small_cases("weights .safetensors"))
def test_hostile_weights_are_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


def test_float8_is_named_and_has_a_way_out(tmp_path: Path) -> None:
    content = hostile_models.published_checkpoint()
    content["pos_embed"] = content["pos_embed"].to(torch.float8_e4m3fn)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"pos_embed is of type float8_e4m3fn; save it as a plain tensor"):
        convert(tmp_path / "a.pth")


def test_a_model_that_does_not_fit_its_file_is_never_made() -> None:
    """10⁹ weights in the config, ten in the file: no memory is taken for them."""
    made = []

    def make() -> LongViT:
        model = LongViT(LongViTConfig(embed_dim=65_536, depth=2, num_heads=16, ffn_dim=2**20))
        made.append(model.fc_norm.weight.device.type)
        return model

    with pytest.raises(InputError, match="these are not the weights of this model"):
        filled(make, {"head.weight": torch.ones(2)}, "a.safetensors")
    assert made == ["meta"]


def test_filling_draws_the_weights_as_before(tmp_path: Path) -> None:
    """The look without memory takes no random numbers."""
    config = LongViTConfig(embed_dim=32, depth=1, num_heads=4, ffn_dim=64)
    torch.manual_seed(0)
    one = LongViT(config)
    after = torch.rand(1)
    torch.manual_seed(0)
    filled(lambda: LongViT(config), one.state_dict(), tmp_path)
    assert torch.equal(torch.rand(1), after)


def test_an_archive_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20 * 2**20))
    with pytest.raises(ValueError, match=r"it unpacks to 20,971,520 bytes from"):
        load_tensors(tmp_path / "a.pth")
    with pytest.raises(InputError, match="unpacks to"):
        convert(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_an_encoder_that_unpacks_to_much_is_refused(tmp_path: Path, kind: str) -> None:
    import zipfile

    from longvit.slide_jobs.tile_encoders import open_encoder

    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(80 * 2**20))
    with pytest.raises(InputError, match=r"a\.pt: unpacks to 83,886,080 bytes"):
        open_encoder(f"{kind}:{tmp_path / 'a.pt'}", 32)
