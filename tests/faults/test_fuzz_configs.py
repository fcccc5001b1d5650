"""Configs, recipes and checkpoints of any content: a model, settings, or a refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.fuzz import NASTY, json_values, nasty_text, result_or_input_error
from tests.small_slides import write_model

KEYS = ("model", "format", "embed_dim", "depth", "num_heads", "ffn_dim", "patch_px", "grid_patches", "image_px",
    "fit", "num_classes",
        "class_names", "segment_lengths", "dilated_ratios", "drop_path", "positions", "pool_norm", "longvit_version",
        "weights_dtype", "stem", "sub_norm",
        "nothing", "")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


@given(
    edits=st.dictionaries(st.sampled_from(KEYS), st.one_of(st.just("remove"), json_values()), min_size=1, max_size=3)
)
def test_any_config_makes_a_model_or_is_refused_in_one_line(model: Path, tmp_path: Path, edits: dict[str, Any]) -> None:
    from longvit.model.pretrained import load_model

    config = json.loads((model / "config.json").read_text())
    for key, value in edits.items():
        if value == "remove":
            config.pop(key, None)
        else:
            config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not (tmp_path / "model.safetensors").exists():
        (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    loaded = result_or_input_error(lambda: load_model(tmp_path), tmp_path)
    if loaded is not None:
        assert all(isinstance(name, str) for name in loaded.config.class_names)


@given(value=json_values())
def test_any_json_as_config_is_refused_in_one_line(model: Path, tmp_path: Path, value: Any) -> None:
    from longvit.model.pretrained import load_model

    (tmp_path / "config.json").write_text(json.dumps(value))
    assert result_or_input_error(lambda: load_model(tmp_path), tmp_path) is None


@given(
    head=st.one_of(st.none(), st.dictionaries(st.sampled_from(["head.weight", "a", "__metadata__", "norm.weight"]),
        json_values(), max_size=3)),
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=3),
)  # fmt: skip
def test_any_safetensors_file_is_read_or_refused_in_one_line(
    model: Path, tmp_path: Path, head: Any, flips: Any
) -> None:
    from longvit.model.checkpoints import read_tensors

    path = tmp_path / "a.safetensors"
    content = bytearray((model / "model.safetensors").read_bytes())
    if head is not None:
        text = json.dumps(head).encode()
        content = bytearray(len(text).to_bytes(8, "little") + text + bytes(64))
    for at, mask in flips:
        content[at % len(content)] ^= mask
    path.write_bytes(bytes(content))
    result_or_input_error(lambda: read_tensors(path), path)


RECIPE_KEYS = ("lr", "epochs", "batch_size", "side_px", "seed", "mpp", "fit", "task", "layer_decay", "drop_path",
    "workers", "batch-size",
               "augmentation", "betas", "weights", "precision", "nothing")  # fmt: skip
SCALARS = ("1", "1.5", "-1", "1e-4", "1e30", "1" + "0" * 30, "0x1F", "true", "no", "null", "~", "2026-11-27",
    "!!binary aGk=", "!!python/none",
           "!!python/object/apply:os.system ['true']", "!!set {a, b}", "!!float nan", ".inf", "&a [*a]", "*b",
           "{a: *c}", "'x'", '"\\u0000"',
           "[1, 2]", "{a: 1}", "{[1]: 2}", "|\n  x", "? x", "- -", "[" * 60, "@", "%", "\t")  # fmt: skip


@given(
    lines=st.lists(
        st.tuples(
            st.one_of(st.sampled_from(RECIPE_KEYS), nasty_text(1), st.sampled_from(["[1, 2]", "{a: 1}", "? [a]",
                "<<"])),
            st.one_of(st.sampled_from(SCALARS), json_values().map(json.dumps), st.sampled_from(NASTY)),
        ),
        max_size=4,
    )
)  # fmt: skip
def test_any_recipe_gives_settings_or_is_refused_in_one_line(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    from longvit.config import load_settings, settings_yaml
    from longvit.finetuning.settings import FinetuneSettings

    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines), encoding="utf-8", newline="")
    found = result_or_input_error(lambda: load_settings(FinetuneSettings, path))
    if found is not None:
        assert isinstance(yaml.safe_load(settings_yaml(found)), dict)


@given(content=json_values(), cut=st.integers(0, 400))
def test_any_checkpoint_record_is_skipped_or_refused_in_one_line(tmp_path: Path, content: Any, cut: int) -> None:
    from longvit.training.checkpoint import read_checkpoint

    (tmp_path / "step-000001.json").write_text(json.dumps(content)[: cut or None])
    result_or_input_error(lambda: read_checkpoint(tmp_path))
