"""A fine-tuning, end to end on small real files: the files it writes, its resume, its errors."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.finetuning.study import SETTINGS, study, write_study

import longvit
from longvit.comparison.settings import ComparisonSettings
from longvit.config import load_settings
from longvit.data.cohort_table import read_cohort
from longvit.errors import InputError
from longvit.finetuning.run import FinetuneResult, FinetuneSettings, finetune
from longvit.finetuning.starting_model import starting_model
from longvit.metrics.classification import classification_metrics
from longvit.pretraining.settings import PretrainSettings
from longvit.training.resource_usage import read_cost

SCRIPT = Path(__file__).with_name("study.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("study")
    return finetune(study(folder / "slides"), folder / "run", SETTINGS)


def predictions(result: FinetuneResult) -> list[dict[str, str]]:
    with result.predictions_csv.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_what_is_there_to_learn(finished: FinetuneResult) -> None:
    for split in ("val", "test"):
        metrics = finished.metrics["splits"][split]
        assert metrics["slides"] == 4
        assert metrics["patients"] == 2
        assert metrics["auc"] == metrics["balanced_accuracy"] == 1.0
        assert metrics["auc_interval"] == [1.0, 1.0]
    assert finished.metrics["classes"] == ["pale", "stained"]
    assert not finished.was_finished


def test_predictions_are_those_of_the_model_that_was_saved(finished: FinetuneResult) -> None:
    rows = predictions(finished)
    assert list(rows[0]) == ["case_id", "slide_id", "split", "label", "prob_pale", "prob_stained", "prediction"]
    assert [row["split"] for row in rows] == ["val"] * 4 + ["test"] * 4
    model = longvit.load_model(finished.model_dir)
    assert model.config.class_names == ("pale", "stained")
    assert (model.config.image_px, model.config.fit, model.config.num_classes) == (64, "stretch", 2)
    slides = finished.folder.parent / "slides"
    for row in rows:
        pixels = longvit.open_slide(slides / f"{row['slide_id']}.png").canvas(64).pixels
        with torch.no_grad():
            p = torch.softmax(model(torch.from_numpy(pixels).permute(2, 0, 1)[None]), 1)[0]
        assert float(row["prob_stained"]) == pytest.approx(p[1].item(), abs=1e-5)
        assert row["prediction"] == ("stained" if p[1] > 0.5 else "pale")


def test_figures_follow_from_the_predictions(finished: FinetuneResult) -> None:
    rows = [row for row in predictions(finished) if row["split"] == "test"]
    p = np.array([[float(row["prob_pale"]), float(row["prob_stained"])] for row in rows])
    metrics = classification_metrics([row["label"] == "stained" for row in rows], p)
    # nine digits of every probability
    assert {k: v for k, v in finished.metrics["splits"]["test"].items() if k in metrics} == pytest.approx(
        metrics, abs=1e-8
    )


def test_controls_and_the_best_epoch_stand_beside_it(finished: FinetuneResult) -> None:
    assert set(finished.metrics["controls"]) == {"mean_colour", "random_encoder"}
    assert finished.metrics["controls"]["mean_colour"]["test"]["auc"] == 1.0  # the label is the darkness
    with finished.history_csv.open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    best = finished.metrics["best_val"]
    values = [float(row["val_auc"]) for row in history]
    assert best["epoch"] == 1 + values.index(max(values))
    assert best["test"]["auc"] == float(history[best["epoch"] - 1]["test_auc"])
    assert "controls: mean colour 1.00" in finished.summary()


def test_metrics_are_strict_json_and_settings_a_recipe(finished: FinetuneResult) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    assert json.loads(finished.metrics_json.read_text(), parse_constant=refuse) == finished.metrics
    assert load_settings(FinetuneSettings, finished.settings_yaml) == SETTINGS


def test_pictures_are_pictures(finished: FinetuneResult) -> None:
    for path in (finished.loss_png, finished.roc_png):
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_a_finished_run_started_again_says_so_and_computes_nothing(
    finished: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longvit.finetuning.run._Finetuning.run", None)
    cohort = read_cohort(finished.folder.parent / "slides" / "cohort.csv")
    again = finetune(cohort, finished.folder, replace(SETTINGS, num_workers=7, threads=2))
    assert again.was_finished
    assert again.metrics == finished.metrics


def test_other_settings_or_another_cohort_show_the_difference(finished: FinetuneResult) -> None:
    slides = finished.folder.parent / "slides"
    cohort = read_cohort(slides / "cohort.csv")
    with pytest.raises(InputError, match=r"run: started with other settings \(lr 0.001 -> 0.002\); give the same"):
        finetune(cohort, finished.folder, replace(SETTINGS, lr=2e-3))
    with pytest.raises(InputError, match=r"other settings \(decode exact -> reduced\)"):
        finetune(cohort, finished.folder, replace(SETTINGS, decode="reduced"))
    moved = cohort.with_splits([{"val": "test", "test": "val"}.get(str(r.split), "train") for r in cohort.rows])
    with pytest.raises(InputError, match=r"other settings \(cohort \w+ -> \w+\)"):
        finetune(moved, finished.folder, SETTINGS)


def kill_when(process: subprocess.Popen[bytes], path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_while_training_and_started_again_ends_with_the_same_bytes(
    finished: FinetuneResult, tmp_path: Path
) -> None:
    """The killed run is a process with another number of loader threads."""
    csv_path = finished.folder.parent / "slides" / "cohort.csv"
    command = [sys.executable, str(SCRIPT), str(csv_path), str(tmp_path / "run")]
    kill_when(subprocess.Popen(command), tmp_path / "run" / "checkpoints" / "step-00000005.json")
    kill_when(subprocess.Popen(command), tmp_path / "run" / "predictions.csv")  # before the metrics
    assert not (tmp_path / "run" / "metrics.json").exists()
    subprocess.run(command, check=True)
    for name in ("predictions.csv", "metrics.json", "history.csv", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished.folder / name).read_bytes(), name
    whole, part = read_cost(finished.folder), read_cost(tmp_path / "run")
    assert whole["seconds"] is not None
    assert whole["seconds"] > 0
    assert part["seconds"] is None, "the last part of a run passed for its whole"


def test_a_slide_that_cannot_be_read_costs_a_row(tmp_path: Path) -> None:
    cohort = study(tmp_path)
    (tmp_path / "s00.png").write_bytes(b"")
    (tmp_path / "s12.png").write_text("no slide")
    result = finetune(cohort, tmp_path / "run", replace(SETTINGS, epochs=1, controls=False))
    assert [(p.slide, p.stage) for p in result.problems] == [("s00", "open"), ("s12", "open")]
    assert result.metrics["left_out"] == ["s00", "s12"]
    assert result.metrics["training"]["slides"] == 11
    assert result.metrics["splits"]["val"]["slides"] == 3
    assert result.metrics["controls"] == {}
    assert result.problems_csv.read_text().count("\n") == 3
    assert finetune(cohort, tmp_path / "run", replace(SETTINGS, epochs=1, controls=False)).problems == result.problems


def test_nothing_left_of_a_class_is_an_error_that_names_the_first_slide(tmp_path: Path) -> None:
    cohort = study(tmp_path, n=20)
    for row in cohort.split("train"):
        if row.label == "stained":
            row.path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no slide of class 'stained' in split train; 6 slides cannot be read.*s02"):
        finetune(cohort, tmp_path / "run", SETTINGS)


def test_the_same_file_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    (tmp_path / "s12.png").write_bytes((tmp_path / "s00.png").read_bytes())
    with pytest.raises(InputError, match=r"slides s00 \(train\) and s12 \(val\) are the same file"):
        finetune(read_cohort(path), tmp_path / "run", SETTINGS)


def test_three_classes_without_a_split_column(tmp_path: Path) -> None:
    cohort = study(tmp_path, classes=("a", "b", "c"), n=36, split=False)
    result = finetune(cohort, tmp_path / "run", replace(SETTINGS, epochs=2, split=(0.5, 0.0, 0.5)))
    assert set(result.metrics["splits"]) == {"test"}
    assert result.metrics["best_val"] is None
    assert any("split by patient with seed 0" in note for note in result.metrics["notes"])
    assert list(predictions(result)[0])[4:7] == ["prob_a", "prob_b", "prob_c"]
    assert 0.5 < result.metrics["splits"]["test"]["auc"] <= 1


def test_a_test_split_of_one_class_has_no_auc_and_says_so(tmp_path: Path) -> None:
    cohort = study(tmp_path)
    rows = cohort.rows
    only = cohort.with_splits([None if r.split == "test" and r.label == "pale" else r.split for r in rows])
    result = finetune(only, tmp_path / "run", replace(SETTINGS, epochs=1, controls=False))
    metrics = result.metrics["splits"]["test"]
    assert metrics["auc"] is None
    assert metrics["auc_interval"] == [None, None]
    assert metrics["slides"] == 2
    assert "test: AUC not defined, balanced accuracy" in result.summary()


def test_bfloat16_and_recomputation_learn_the_same(tmp_path: Path) -> None:
    settings = replace(SETTINGS, dtype="bfloat16", recompute=True, clip_norm=1.0, controls=False)
    result = finetune(study(tmp_path), tmp_path / "run", settings)
    assert result.metrics["splits"]["test"]["auc"] == 1.0
    assert {p.dtype for p in longvit.load_model(result.model_dir).parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_model_with_a_stem_is_trained_resumed_and_starts_another(tmp_path: Path) -> None:
    settings = replace(SETTINGS, model="longvit_tiny_stem_patch32", epochs=1, controls=False, bootstrap=0)
    cohort, folder = study(tmp_path), tmp_path / "run"
    model_dir = finetune(cohort, folder, settings).model_dir
    names = "predictions.csv", "model/model.safetensors"
    whole = [(folder / name).read_bytes() for name in names]
    steps = sorted(path.stem for path in (folder / "checkpoints").glob("*.json"))
    assert len(steps) == 2
    for path in (folder / "checkpoints").glob(f"{steps[1]}.*"):  # as if the run had stopped before its last step
        path.unlink()
    shutil.rmtree(model_dir)
    (folder / "metrics.json").unlink()
    finetune(cohort, folder, settings)
    assert [(folder / name).read_bytes() for name in names] == whole
    config = longvit.load_model(model_dir).config
    assert (config.stem, config.sub_norm, config.pool_norm) == ("conv", False, "token_norm")
    start = starting_model(replace(settings, weights=model_dir), ("a", "b", "c"))
    weights = load_file(model_dir / "model.safetensors")
    assert torch.equal(start.patch_embed.stem.convs[0].weight, weights["patch_embed.stem.convs.0.weight"])
    assert start.config.num_classes == 3


def test_out_of_memory_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("longvit.tasks.subtyping.Subtyping.losses", full)
    with pytest.raises(
        InputError, match=r"out of memory with 2 slides of 64 px .*; try --forward-batch 1, --recompute"
    ):
        finetune(study(tmp_path), tmp_path / "run", replace(SETTINGS, controls=False))


def test_two_processes_in_one_folder_do_not_trip_over_each_other(tmp_path: Path) -> None:
    cohort = study(tmp_path)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "run.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is using it"):
            finetune(cohort, tmp_path / "run", SETTINGS)


@pytest.mark.parametrize(("split", "words"), [("train", "val or test"), ("val", "of split train")])
def test_a_cohort_without_a_side_is_refused(tmp_path: Path, split: str, words: str) -> None:
    cohort = study(tmp_path, split=False)
    with pytest.raises(InputError, match=words):
        finetune(cohort.with_splits([split] * len(cohort.rows)), tmp_path / "run", SETTINGS)


def test_it_starts_from_weights_with_a_new_head(finished: FinetuneResult) -> None:
    settings = replace(SETTINGS, weights=finished.model_dir, side_px=96, drop_path=0.2)
    model = starting_model(settings, ("a", "b", "c"))
    trained = longvit.load_model(finished.model_dir)
    own, theirs = model.state_dict(), trained.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs if not name.startswith("head."))
    assert tuple(own["head.weight"].shape) == (3, 192)
    assert (model.config.class_names, model.config.image_px, model.config.drop_path) == (("a", "b", "c"), 96, 0.2)
    random = starting_model(settings, ("a", "b", "c"), random=True).state_dict()
    assert not torch.equal(random["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])


def test_nan_weights_name_the_layer(finished: FinetuneResult, tmp_path: Path) -> None:
    model = longvit.load_model(finished.model_dir)
    with torch.no_grad():
        model.fc_norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"fc_norm.weight"):
        finetune(study(tmp_path / "s"), tmp_path / "run", replace(SETTINGS, weights=tmp_path / "broken"))


def test_what_is_not_there_is_said_before_any_canvas_is_made(tmp_path: Path) -> None:
    cohort = study(tmp_path)
    wrong = [
        (replace(SETTINGS, model="longvit_huge"), "--model longvit_huge: choose longvit_tiny_patch32"),
        (replace(SETTINGS, weights=tmp_path / "none"), "none"),
        (replace(SETTINGS, device="cuda:7"), "cuda"),
    ]
    for i, (settings, words) in enumerate(wrong):
        with pytest.raises(InputError, match=words):
            finetune(cohort, tmp_path / f"run{i}", settings)
        assert not (tmp_path / f"run{i}" / "canvases").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not written"):
        finetune(cohort, tmp_path / "file" / "run", SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"side_px": 1000}, "side_px 1000: a multiple of 32 is needed, for example 992"),
        ({"batch_size": 8, "forward_batch": 3}, "forward_batch 3: it must divide batch_size 8"),
        ({"drop_path": 1.0}, "drop_path 1.0"),
        ({"bootstrap": -1}, "bootstrap -1"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"augmentation": "mirror"}, r"augmentation 'mirror': choose none, flips, flips\+stain, flips\+colour"),
        ({"dtype": "float8"}, "dtype 'float8': choose float32, bfloat16, float16"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        FinetuneSettings(**wrong)  # type: ignore[arg-type]


def test_slides_per_forward_follows_its_rule() -> None:
    sides = {1024: 8, 2048: 4, 4096: 1, 8192: 1}
    assert {side: FinetuneSettings(side_px=side).slides_per_forward() for side in sides} == sides
    assert FinetuneSettings(side_px=1024, batch_size=24).slides_per_forward() == 12
    assert FinetuneSettings(side_px=2048).training().accumulation == 2


@pytest.mark.parametrize("kind", [FinetuneSettings, PretrainSettings, ComparisonSettings])
def test_every_setting_has_its_help(kind: Any) -> None:
    """The docs under the fields are what `longvit train --help` prints."""
    from docstring_parser import parse_from_object

    documented = {param.arg_name for base in kind.__mro__[:-1] for param in parse_from_object(base).params}
    assert documented == set(kind.__dataclass_fields__)


def test_offload_leaves_the_numbers_and_needs_recomputation(tmp_path: Path) -> None:
    """On a CPU the host is where tensors are already; the settings and the way of the images are the same."""
    settings = replace(SETTINGS, epochs=1, recompute=True, controls=False)
    cohort = study(tmp_path / "slides")
    plain = finetune(cohort, tmp_path / "run", settings)
    (tmp_path / "run" / "metrics.json").unlink()
    offloaded = finetune(cohort, tmp_path / "offloaded", replace(settings, offload=True))
    assert offloaded.metrics == plain.metrics
    assert not finetune(cohort, tmp_path / "run", replace(settings, offload=True)).was_finished  # it may resume
    with pytest.raises(InputError, match="give --recompute too"):
        replace(SETTINGS, offload=True)
    with pytest.raises(InputError, match="offload is for slides on one device"):
        replace(SETTINGS, offload=True, recompute=True, sequence_ranks=2)
