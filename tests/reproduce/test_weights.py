"""A reproduction starts from the weights that it names, and weights that do not fit end it before any download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.model.test_pretrained import published
from tests.public.archive_server import ArchiveServer
from tests.reproduce.test_reproduce import TINY, reduced, result_of

from longvit.cli import main
from longvit.config import load_settings
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.pretrained import load_model, save_pretrained
from longvit.public.selection import Selection
from longvit.reproduce.cells import cell_named
from longvit.reproduce.prepare import Reproduction
from longvit.reproduce.settings import ReproduceSettings
from longvit.reproduce.stages import starting_weights


def write_checkpoint(path: Path, seed: int = 0, **more: Any) -> LongViT:
    """Writes a random LongViT in the layout of the authors' DINO checkpoint: heads are not stated in it."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 16, "ffn_dim": 64, "grid_patches": 4}
    model = LongViT(LongViTConfig(**(sizes | more), pool_norm="token_norm")).eval()
    tensors = {name: value for name, value in published(model).items() if not name.startswith("fc_norm")}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in tensors.items()}, "epoch": 99}, path)
    return model


def with_weights(weights: Path | None, **changes: Any) -> Reproduction:
    cell = cell_named("table1/brca/1024")
    settings = replace(load_settings(FinetuneSettings, cell.recipe), **changes)
    options = ReproduceSettings(weights=weights)
    nothing = cast(Any, None)
    return Reproduction(cell, nothing, Selection(()), settings, changes, options, nothing)


def test_a_checkpoint_of_the_authors_is_converted_once_to_the_same_model(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "longvit.pth", tmp_path / "out"
    model = write_checkpoint(checkpoint)
    reproduction = with_weights(checkpoint)
    folder = starting_weights(reproduction, out)
    assert folder == out / "weights"
    again = cast(LongViT, load_model(folder))
    image = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.eval()(image), model(image))
    written_ns = (folder / "model.safetensors").stat().st_mtime_ns
    assert starting_weights(reproduction, out) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written_ns
    write_checkpoint(checkpoint, seed=1)
    with pytest.raises(InputError, match="converted from another checkpoint"):
        starting_weights(reproduction, out)


def test_start_in_words_tells_a_checkpoint_a_model_and_random_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "longvit.pth")
    assert with_weights(tmp_path / "longvit.pth").start == f"the checkpoint {tmp_path / 'longvit.pth'}"
    assert with_weights(Path("longvit-tiny-stem")).start == "the model longvit-tiny-stem"
    random = with_weights(None, model="longvit_tiny_stem_patch32")
    assert random.start.startswith("random weights")
    assert starting_weights(with_weights(Path("longvit-tiny-stem")), tmp_path) == Path("longvit-tiny-stem")
    assert starting_weights(random, tmp_path) is None


def test_weights_that_do_not_fit_are_found_before_any_download(tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"broken\.pth"):
        starting_weights(with_weights(broken), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        starting_weights(with_weights(tmp_path / "empty"), out)
    tiles = GigaPathConfig(in_dim=6, embed_dim=16, depth=1, num_heads=4, ffn_dim=32, grid_tiles=8, pool="mean")
    with pytest.raises(InputError, match="a model of tile features"):
        starting_weights(with_weights(save_pretrained(GigaPathSlideEncoder(tiles), tmp_path / "tiles")), out)
    per_patch = write_model_per_patch(tmp_path / "per_patch")
    with pytest.raises(InputError, match="one position per patch of 160 px"):
        starting_weights(with_weights(per_patch), out)
    assert starting_weights(with_weights(per_patch, side_px=160), out) == per_patch
    with pytest.raises(InputError, match="--model huge"):
        starting_weights(with_weights(None, model="huge"), out)
    assert not out.exists()


def write_model_per_patch(folder: Path) -> Path:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 4, "ffn_dim": 64, "patch_px": 32, "grid_patches": 4}
    return save_pretrained(LongViT(LongViTConfig(**sizes, positions="per_patch", image_px=160)), folder)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1800)
def test_a_cell_is_reproduced_from_a_checkpoint_that_the_result_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("requests", reason="needs the extra public")
    pytest.importorskip("duckdb", reason="needs the extra public")
    checkpoint = tmp_path / "longvit.pth"
    write_checkpoint(checkpoint)
    with ArchiveServer(tmp_path / "served") as server:
        small = reduced("table4/luad/1024", 30, tmp_path, server)
        changes, out = tmp_path / "tiny.yaml", tmp_path / "out"
        changes.write_text(TINY.replace("controls: false", "controls: true"))
        command = small.command(out, changes, "--weights", str(checkpoint))
        assert main(command) == 1  # the other slides of the table are left out
    capsys.readouterr()
    result = result_of(out)
    assert result["starts_from"] == f"the checkpoint {checkpoint}"
    assert len(result["checkpoint_sha256"]) == 64
    metrics = json.loads((out / "run" / "fold_0" / "metrics.json").read_text())
    assert metrics["training"]["starts_from"] == str(out / "weights")
    assert "frozen_weights" in metrics["controls"]
    trained = cast(LongViT, load_model(out / "run" / "fold_0" / "model"))
    assert (trained.config.embed_dim, trained.config.num_heads) == (32, 16)
