"""Published encoders: the table builds what the model cards describe, and refuses tiles that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.encoders.timm_here import require_timm

from longvit.cli import main
from longvit.encoders.presets import PRESETS, Preset, preset
from longvit.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_every_encoder_has_its_published_width_tokens_and_number_of_parameters(name: str) -> None:
    require_timm()
    from longvit.encoders.networks import PublishedEncoder

    row = preset(name)
    with torch.device("meta"), torch.inference_mode():  # shapes without memory: the largest has 4.5 GB of weights
        encoder = PublishedEncoder(row).eval()
        images = torch.zeros(2, 3, row.input_px, row.input_px)
        assert encoder(images).shape == (2, row.dim)
        if row.tokens:
            width = row.dim // 2 if row.pooling == "cls+mean" else encoder.trunk.num_features
            assert encoder.tokens(images).shape == (2, row.tokens, width)
            assert encoder.trunk.num_prefix_tokens == row.prefix_tokens
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert millions == pytest.approx(row.parameters_m, abs=0.06)


def test_the_table_is_complete() -> None:
    assert len(PRESETS) >= 14
    for name, row in PRESETS.items():
        assert row.name == name
        assert name == name.lower()
        assert row.hub.count("/") == 1
        assert row.citation
        assert row.licence
        assert row.input_px in (224, 448)
        json.dumps(row.as_json())


@pytest.mark.parametrize(
    ("name", "tile_px", "mpp", "line"),
    [
        (
            "virchow", 256, 0.5,
            "--encoder virchow: made for tiles of 224 px at 0.5 µm/px, not 256 px at 0.5; "
            "give --tile-px 224 --tile-mpp 0.5",
        ),
        (
            "conch-v1.5", 512, 1.0,
            "--encoder conch-v1.5: made for tiles of 512 or 448 px at 0.5 µm/px, not 512 px at 1; "
            "give --tile-px 512 --tile-mpp 0.5",
        ),
    ],
)  # fmt: skip
def test_tiles_that_the_encoder_was_not_made_for_are_one_line(name: str, tile_px: int, mpp: float, line: str) -> None:
    with pytest.raises(InputError) as caught:
        preset(name).check_tiles(tile_px, mpp)
    assert str(caught.value) == line


@pytest.mark.parametrize("row", PRESETS.values(), ids=PRESETS)
def test_the_tiles_of_the_authors_are_accepted(row: Preset) -> None:
    for side in row.tile_px:
        for mpp in row.mpp:
            row.check_tiles(side, mpp)


def test_the_command_lists_and_describes_the_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(PRESETS)
    assert all(name in line for name, line in zip(PRESETS, table[1:], strict=True))
    assert main(["encoders", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert rows[0]["page"] == "https://huggingface.co/MahmoodLab/UNI"
    assert main(["encoders", "uni2-h"]) == 0
    details = capsys.readouterr().out
    assert "CC-BY-NC-ND-4.0, gated: accept it on that page first" in details
    assert "longvit features slides/ --encoder uni2-h=pytorch_model.bin --tile-px 256 --tile-mpp 0.5" in details
    assert main(["encoders", "uni3"]) == 2
    assert "uni3: no such encoder; take one of uni, uni2-h" in capsys.readouterr().err


def test_a_comparison_needs_the_features_of_the_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "cohort.csv", "--encoder", "uni"]) == 2
    assert "--encoder uni needs --features, the folder of `longvit features`" in capsys.readouterr().err
    (tmp_path / "job").mkdir()
    assert main(["benchmark", "cohort.csv", "--encoder", "uni=a.bin", "--features", "job"]) == 2
    assert "job: no folder features_uni with features in it" in capsys.readouterr().err
