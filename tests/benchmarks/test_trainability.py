"""Tasks, variants and table of `benchmarks/trainability.py`, so that hours of trials are not spent on a wrong task."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tests.conftest import ROOT, shared

TASKS = ("texture", "counting", "shape", "rare_patch", "relation")


@pytest.mark.parametrize("task", TASKS)
def test_mean_colour_does_not_tell_the_class(task: str) -> None:
    from trainability_tasks import open_data

    data = open_data(task, 0, 128, 8)
    drawn = [data.batch(100, torch.Generator().manual_seed(seed), search=False) for seed in (0, 1, 2, 3)]
    colour = np.concatenate([images.mean((2, 3)).numpy() for images, _ in drawn])
    labels = np.concatenate([labels.numpy() for _, labels in drawn])
    fitted = LogisticRegression().fit(colour[:200], labels[:200])
    assert 0.4 < roc_auc_score(labels[200:], fitted.decision_function(colour[200:])) < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_test_images_are_the_same_for_every_seed_and_are_never_trained_on(task: str) -> None:
    from trainability_tasks import open_data

    first, second = (open_data(task, seed, 64, 8) for seed in (0, 1))
    tests = [next(iter(data.held_out(search=False).batches())) for data in (first, second)]
    assert torch.equal(*tests)
    searched = next(iter(first.held_out(search=True).batches()))
    trained, _ = first.batch(8, torch.Generator().manual_seed(1000), search=False)
    assert not torch.equal(tests[0], searched)
    assert not torch.equal(tests[0], trained)


def test_the_pattern_of_a_class_is_what_its_name_says() -> None:
    from trainability_tasks import SYNTHETIC

    labels = torch.tensor([0, 1] * 8)
    drawn = {task: pattern(labels, 128, torch.Generator().manual_seed(0)) for task, (pattern, _) in SYNTHETIC.items()}
    down, right = (drawn["texture"].diff(dim=axis).square().mean((1, 2)) for axis in (1, 2))
    assert ((down > right) == labels.bool()).all()  # stripes of class 1 change faster downwards
    covered = (drawn["rare_patch"] != 0).sum((1, 2))
    assert covered.tolist() == [0, 1024] * 8
    assert drawn["counting"][1::2].mean() > 1.4 * drawn["counting"][::2].mean()
    areas = drawn["shape"].mean((1, 2))
    assert abs(areas[::2].mean() / areas[1::2].mean() - 1) < 0.15
    changes = drawn["relation"].diff(dim=2).abs()  # stripes do not change to the right inside their patch
    upper, lower = changes[:, :64].sum((1, 2)), changes[:, 64:].sum((1, 2))
    assert ((upper > lower) == labels.bool()).all()


@pytest.mark.shared
@pytest.mark.parametrize(("task", "folder"), [("oral_scc", "oral-scc"), ("osteosarcoma", "osteosarcoma")])
def test_real_fields_of_the_test_source_are_never_trained_on(task: str, folder: str) -> None:
    shared(f"slides/{folder}/cohort.csv")
    from trainability_tasks import REAL, Real

    fields = replace(REAL[task], side_px=32)
    for seed in range(3):
        data = Real(task, fields, seed)
        held_out = data.held_out(search=False)
        assert set(held_out.labels) == {0, 1}
        marked = torch.zeros(len(data.source), 3, 32, 32, dtype=torch.uint8)
        marked[data.source == data.test], marked[data.source == data.val] = 255, 128
        data.pixels = marked
        for search in (False, True):
            import trainability_tasks

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainability_tasks, "recoloured", lambda images, _: images)
                images, _ = data.batch(64, torch.Generator().manual_seed(0), search=search)
            values = set((images * trainability_tasks._STD + trainability_tasks._MEAN).round().unique().tolist())
            assert 255 not in values
            assert (128 in values) != search


def test_the_references_differ_only_at_the_borders_of_patches() -> None:
    from trainability_models import PlainViT

    torch.manual_seed(0)
    by_patch, whole = PlainViT(64, by_patch=True).eval(), PlainViT(64).eval()
    whole.load_state_dict(by_patch.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(by_patch(images), whole(images))
    single, single_by_patch = PlainViT(32).eval(), PlainViT(32, by_patch=True).eval()
    single_by_patch.load_state_dict(single.state_dict())
    torch.testing.assert_close(single(images[..., :32, :32]), single_by_patch(images[..., :32, :32]))


def test_equal_time_gives_a_slower_variant_fewer_steps() -> None:
    from trainability import REFERENCE, Trial, equal_time

    trial = Trial("texture", "longvit", 0, steps=100)
    columns = {"task": "texture", "seed": 0, "budget": "steps", "steps": 100, "rates": list(trial.rates)}
    columns |= {"image_px": 256, "batch": 16, "n_test": 256}
    rows = [
        {**columns, "variant": REFERENCE, "cpu_seconds": 30.0, "lr": 1e-3},
        {**columns, "variant": "longvit", "cpu_seconds": 60.0, "lr": 1e-4},
    ]
    assert equal_time(trial, rows) == replace(trial, budget="time of 100 steps", steps=50, rates=(1e-4,))
    assert equal_time(trial, rows[1:]) is None


def test_the_table_counts_trials_and_never_mixes_settings(tmp_path: Path) -> None:
    from paired import scored
    from trainability import Trial, of_protocol, plot, stored_settings, table

    def row(variant: str, separation: float, **changed: Any) -> dict[str, Any]:
        labels, noise = np.arange(400) % 2, np.random.default_rng(0).standard_normal(400)
        trial = replace(Trial("shape", variant, 0, rates=(3e-4,)), **changed)
        columns = {**vars(trial), "rates": list(trial.rates), "cpu_seconds": 9.0}
        return columns | scored("shape", labels, separation * labels + noise)

    rows = [
        row("plain_stem", 2.0),
        row("longvit", 1.0),
        row("longvit", 1.5, budget="time of 220 steps", steps=300),
        row("longvit", 9.0, steps=500),
        row("longvit", 9.0, budget="time of 500 steps", steps=700),
    ]
    settings, others = stored_settings(rows)
    assert (settings["steps"], others["steps"]) == (220, 500)
    asked = [Trial("shape", variant, seed, **settings) for variant in ("plain_stem", "longvit") for seed in (0, 1)]
    chosen = of_protocol(rows, asked[0])
    assert chosen == rows[:3]
    text = table([*chosen, {**rows[1], "seed": 1, "failed": "no memory"}], asked)
    assert "2 of 4 trials at equal steps" in text
    assert "failed: shape longvit seed 1: no memory" in text
    gaps = [
        float(line.split(")")[1].split("[")[0])
        for line in text.splitlines()
        if line.startswith("shape  ") and "[" in line
    ]
    aucs = [r["auc"] for r in rows]
    assert gaps == pytest.approx([aucs[1] - aucs[0], aucs[2] - aucs[0]], abs=1e-3)
    plot(chosen, tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_command_runs_resumes_and_states_how_many_trials_are_done(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "trainability.py"),
        "--quick",
        "--out",
        str(tmp_path / "r.json"),
    ]
    command += ["--tasks", "texture", "shape", "--variants", "plain_stem", "longvit"]
    first, second = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        for more in (["--equal-time"], ["--table"])
    )
    assert "4 of 4 trials at equal steps" in first.stdout
    assert "at equal time" in first.stdout
    assert second.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]  # after the settings
    assert (tmp_path / "r.png").stat().st_size > 1000
