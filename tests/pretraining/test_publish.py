"""`longvit convert --to dino`: a pretraining or a model as DINO's code would have left it, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.dino.test_published import CONFIG, SETTINGS, same

from longvit.cli import main
from longvit.dino.dino_checkpoint import load_published
from longvit.dino.loss import DinoLoss
from longvit.dino.schedules import Schedules
from longvit.dino.student_teacher import StudentTeacher
from longvit.errors import InputError
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.pretrained import load_model, save_pretrained
from longvit.pretraining.dino_method import DinoMethod, SelfDistillation
from longvit.pretraining.export_dino import publish
from longvit.training.checkpoint import write_checkpoint
from longvit.training.optim import adamw
from longvit.training.state import RunState, pack


def distillation(seed: int) -> SelfDistillation:
    torch.manual_seed(seed)
    model = SelfDistillation(CONFIG, SETTINGS)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.loss.center):
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a pretraining after two epochs, as the loop leaves it: optimiser and all."""
    model = distillation(0)
    optimizer = DinoMethod(model, Schedules(SETTINGS, 1, 1)).optimizer(model)
    sum(p.sum() for p in model.networks.student.parameters()).backward()
    state = RunState(step=2, columns=("loss",), rows=[[1.0], [1.0]], epochs=[{"epoch": 1.0}, {"epoch": 2.0}])
    write_checkpoint(tmp_path / "run" / "checkpoints", 2, *pack(model, optimizer, state))
    model.networks.teacher.backbone.save_pretrained(tmp_path / "run" / "teacher", dtype="float16")
    return tmp_path / "run"


def test_a_run_goes_out_and_comes_back_with_every_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "dino.pth"
    assert main(["convert", str(run), str(out), "--to", "dino"]) == 0
    assert "student and teacher with their heads, centre, after 2 epochs" in capsys.readouterr().err
    both, loss, expected = StudentTeacher(CONFIG, SETTINGS), DinoLoss(SETTINGS.prototypes), distillation(0)
    assert load_published(both, out, loss=loss) == ()
    assert same(both.state_dict(), expected.networks.state_dict())
    assert torch.equal(loss.center, expected.loss.center)
    for which in ("teacher", "student"):
        assert main(["convert", str(out), str(tmp_path / which), "--which", which]) == 0
        model, backbone = load_model(tmp_path / which), getattr(expected.networks, which).backbone
        assert same(model.state_dict(), backbone.state_dict())
        assert replace(model.config, drop_path=0.0) == replace(backbone.config, drop_path=0.0)


def test_a_model_folder_gives_a_teacher_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teacher.pth"
    assert main(["convert", str(run / "teacher"), str(out), "--to", "dino"]) == 0
    assert "the teacher's backbone" in capsys.readouterr().err
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"teacher", "args"}
    assert all(name.startswith("backbone.") for name in content["teacher"])
    assert main(["convert", str(out), str(tmp_path / "again")]) == 0
    before, after = load_model(run / "teacher"), load_model(tmp_path / "again")
    assert after.config == before.config
    assert same(after.state_dict(), before.state_dict())


def test_folders_of_another_kind_are_one_line(run: Path, tmp_path: Path) -> None:
    small = {"embed_dim": 16, "depth": 1, "num_heads": 4, "ffn_dim": 32}
    LongViT(LongViTConfig(**small, num_classes=2)).save_pretrained(tmp_path / "tuned")
    LongViT(LongViTConfig(**small)).save_pretrained(tmp_path / "random")
    save_pretrained(GigaPathSlideEncoder(GigaPathConfig(in_dim=6, **small, grid_tiles=8)), tmp_path / "tiles")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, words in {
        "tuned": r"a fine-tuned model \(a head for 2 outputs\)",
        "random": r"\(its norm after the mean\)",
        "tiles": "a model of tile features",
        "empty": "neither a model folder",
        "file": "a file; give a model folder",
        "nowhere": "no such folder",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            publish(tmp_path / name, tmp_path / "out.pth")
        assert "\n" not in str(error.value)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no checkpoint in it; give .*teacher for the teacher's backbone"):
        publish(run, tmp_path / "out.pth")
    model = distillation(0).networks.student.backbone
    optimizer = adamw(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    write_checkpoint(run / "checkpoints", 1, *pack(model, optimizer, RunState(columns=("loss",))))
    with pytest.raises(InputError, match="not a checkpoint of a pretraining"):
        publish(run, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_options_for_reading_are_refused_for_writing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(run), str(tmp_path / "out.pth"), "--to", "dino"]
    assert main([*words, "--num-heads", "8", "--which", "student"]) == 2
    assert "--which, --num-heads: for reading a published checkpoint" in capsys.readouterr().err
    assert main(["convert", str(run), str(tmp_path / "out")]) == 2
    assert "a folder, not a checkpoint; `longvit convert --to dino`" in capsys.readouterr().err
