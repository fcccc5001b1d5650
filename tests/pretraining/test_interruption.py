"""A pretraining that was stopped at any instant ends with the same bits; another one starts where it ended."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from longvit.data.slide_list import find_slides
from longvit.pretraining.export_dino import publish
from longvit.pretraining.run import pretrain
from pretraining.interrupted_run import settings_of, whole_run, write_inputs
from training.test_interruption import assert_same, code_of, forked, newest


@pytest.mark.slow
def test_twenty_interruptions_end_with_the_same_bits(tmp_path: Path) -> None:
    """10 by SIGTERM, 10 by SIGKILL, at random instants; regions are cut in this process or in one of its own."""
    write_inputs(tmp_path)
    assert code_of(forked(whole_run, tmp_path, tmp_path / "warm")) == 0  # the server starts
    begin = time.monotonic()
    assert code_of(forked(whole_run, tmp_path, tmp_path / "whole")) == 0
    seconds = time.monotonic() - begin
    whole = newest(tmp_path / "whole" / "checkpoints")
    assert whole.step == 8
    assert {"model.networks.teacher.head.mlp.0.weight", "model.loss.center"} <= whole.tensors.keys()
    rng, codes, resumed_at = random.Random(1), Counter[int](), set()
    for i in range(20):
        out, share, code = tmp_path / str(i), 0.95, 0
        while code == 0:  # it was over before: once more, earlier
            process = forked(whole_run, tmp_path, out, i % 2)
            time.sleep(rng.uniform(0, share) * seconds)
            process.terminate() if i < 10 else process.kill()
            code = code_of(process)
            if code == 0:
                out, share = out.with_name(f"{out.name}_"), share * 0.7
        codes[code] += 1
        saved = sorted((out / "checkpoints").glob("step-*.json"))
        resumed_at.add(saved[-1].stem if saved else "")
        assert code_of(forked(whole_run, tmp_path, out)) == 0
        assert_same(newest(out / "checkpoints"), whole)
        teacher, expected = (load_file(of / "teacher" / "model.safetensors") for of in (out, tmp_path / "whole"))
        assert all((teacher[name] == value).all() for name, value in expected.items())
    assert codes[-signal.SIGKILL] == 10
    assert len(resumed_at) >= 4, resumed_at


def test_settings_that_change_nothing_of_the_result_may_differ_when_it_goes_on(tmp_path: Path) -> None:
    before = settings_of(tmp_path).result_settings()
    assert settings_of(tmp_path, num_workers=3, report_minutes=9.0, device="auto").result_settings() == before
    assert settings_of(tmp_path, local_crops=4).result_settings() != before


def test_a_checkpoint_in_the_layout_of_dino_starts_another_pretraining(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    slides, first, second = find_slides([tmp_path / "slides"]), tmp_path / "first", tmp_path / "second"
    pretrain(slides, first, settings_of(tmp_path, epochs=1))
    publish(first, tmp_path / "dino.pth")
    pretrain(slides, second, settings_of(tmp_path, weights=tmp_path / "dino.pth", lr=0.0, min_lr=0.0, epochs=1))
    before, after = (newest(of / "checkpoints").tensors for of in (first, second))
    name = "model.networks.student.head.last_layer.weight_v"
    assert torch.equal(after[name], before[name])  # the student stands still at lr 0: heads and all come from the file
    assert not torch.equal(after["model.loss.center"], torch.zeros_like(after["model.loss.center"]))
