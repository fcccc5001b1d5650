"""FEATHER: published files load strictly by their own names, and give the published equations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.baselines.made import WIDTH, bag
from tests.comparison.made import QUICK
from tests.comparison.made import WIDTH as FEATURES
from tests.comparison.test_label_tasks import write_study

from longvit.baselines.feather import Feather
from longvit.baselines.system import create_system
from longvit.comparison.compare import compare
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column
from longvit.errors import InputError

SHAPES = {
    "patch_embed.0.weight": (512, WIDTH),
    "patch_embed.0.bias": (512,),
    "global_attn.attention_a.0.weight": (384, 512),
    "global_attn.attention_a.0.bias": (384,),
    "global_attn.attention_b.0.weight": (384, 512),
    "global_attn.attention_b.0.bias": (384,),
    "global_attn.attention_c.weight": (1, 384),
    "global_attn.attention_c.bias": (1,),
}
"""Names and shapes of a published file, for features of `WIDTH`."""


def write_published(path: Path, prefix: str = "model.", width: int = WIDTH) -> dict[str, torch.Tensor]:
    """A file of random weights under the published names."""
    g = torch.Generator().manual_seed(5)
    shapes = SHAPES | {"patch_embed.0.weight": (512, width)}
    tensors = {name: torch.randn(shape, generator=g) * 0.05 for name, shape in shapes.items()}
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    return tensors


def fitted(path: Path, **settings: object) -> Feather:
    made = create_system("feather", in_dim=WIDTH, outputs=3, checkpoint=str(path), **settings).double().eval()
    assert isinstance(made, Feather)
    made.fit([bag("feather", 4)])
    return made


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_published_file_gives_the_published_slide_vector(prefix: str, tmp_path: Path) -> None:
    w = {name: tensor.double().numpy() for name, tensor in write_published(tmp_path / "w.safetensors", prefix).items()}
    made, given = fitted(tmp_path / "w.safetensors"), bag("feather", 9)
    x = given.features.numpy()
    h = np.maximum(x @ w["patch_embed.0.weight"].T + w["patch_embed.0.bias"], 0)
    a, b = (h @ w[f"global_attn.attention_{k}.0.weight"].T + w[f"global_attn.attention_{k}.0.bias"] for k in "ab")
    score = (np.tanh(a) / (1 + np.exp(-b))) @ w["global_attn.attention_c.weight"][0]
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    found = made(given)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention.numpy(), weight, atol=1e-12)
    expected = made.head(torch.from_numpy(weight @ h), ())
    np.testing.assert_allclose(found.logits.detach().numpy(), expected.detach().numpy(), atol=1e-12)


def test_files_of_other_encoders_and_other_layers_are_refused_in_one_line(tmp_path: Path) -> None:
    write_published(tmp_path / "uni.safetensors", width=1024)
    with pytest.raises(InputError, match=r"for features 1024 wide, these are 12 wide \(1024: UNI"):
        fitted(tmp_path / "uni.safetensors")
    tensors = write_published(tmp_path / "w.safetensors")
    tensors.pop("global_attn.attention_c.bias")
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"less.safetensors.*attention.score.bias"):
        fitted(tmp_path / "less.safetensors")
    save_file(tensors | {"global_attn.attention_c.bias": torch.zeros(1), "text.weight": torch.zeros(1)},
              tmp_path / "more.safetensors")  # fmt: skip
    with pytest.raises(InputError, match=r"more.safetensors.*text.weight"):
        fitted(tmp_path / "more.safetensors")
    with pytest.raises(InputError, match=r"frozen: only weights of a checkpoint"):
        create_system("feather", in_dim=WIDTH, outputs=2, frozen=True)


def test_a_head_in_the_file_is_left_out_and_frozen_trains_the_head_alone(tmp_path: Path) -> None:
    tensors = write_published(tmp_path / "w.safetensors")
    save_file(tensors | {"classifier.weight": torch.zeros(108, 512)}, tmp_path / "head.safetensors")
    made = fitted(tmp_path / "head.safetensors", frozen=True)
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert trained == {"head.classifier.weight", "head.classifier.bias"}


@pytest.mark.slow
def test_it_is_a_row_of_the_table_and_starts_from_the_file(tmp_path: Path) -> None:
    write_study(tmp_path)
    save_path = tmp_path / "w.safetensors"
    cohort = read_cohort(tmp_path / "cohort.csv", need_files=False)
    tensors = write_published(save_path, width=FEATURES)
    settings = replace(
        QUICK, systems=("feather",), set=(f"feather.checkpoint={save_path}", "feather.frozen=true"), epochs=1
    )
    out = tmp_path / "out"
    compare(cohort, out, folds_of_column(cohort), settings, features=tmp_path / "features")
    (row,) = json.loads((out / "benchmark.json").read_text())["systems"]
    assert row["words"] == "FEATHER"
    assert row["mean"] is not None
    stored = load_file(out / "feather" / "fold_0" / "model.safetensors")
    assert torch.equal(stored["pooling.phi.0.weight"], tensors["patch_embed.0.weight"])
