"""Checkpoints under damage: whatever happened to the newest, the newest valid one is found."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from longvit.errors import InputError
from longvit.training.checkpoint import read_checkpoint, settings_difference, write_checkpoint


def tensors(step: int) -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0).reshape(3, 4) + step
    return {"a": shared, "a_again": shared, "a_transposed": shared.T, "part": shared[1], "n": torch.tensor(step)}


def test_what_was_written_is_read_also_shared_memory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 7, tensors(7), {"x": 0.1, "nan": float("nan"), "list": [1, "ä"]})
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 7
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # readable for a group, if its JSON is
    assert saved.state["x"] == 0.1
    for name, tensor in tensors(7).items():
        assert torch.equal(saved.tensors[name], tensor)


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "nowhere") is None


def test_sixty_ways_to_damage_the_newest(tmp_path: Path) -> None:
    rng = random.Random(1)
    for round_ in range(60):
        folder = tmp_path / str(round_)
        write_checkpoint(folder, 1, tensors(1), {"v": 1})
        path = write_checkpoint(folder, 2, tensors(2), {"v": 2})
        victim = path if round_ % 2 else path.with_suffix(".safetensors")
        data = bytearray(victim.read_bytes())
        match (round_ // 2) % 5:
            case 0:
                data = data[: rng.randrange(len(data))]
            case 1:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                data = bytearray()
            case 3:
                victim.unlink()
            case 4:  # power was lost: the length is right, the blocks at the end never came
                half = rng.randrange(len(data))
                data[half:] = bytes(len(data) - half)
                (folder / f".{victim.name}.4711.part{victim.suffix}").write_bytes(data[:half])
        if victim.exists():
            victim.write_bytes(data)
        saved = read_checkpoint(folder)
        assert saved is not None
        # a flipped bit may fall on JSON's spaces, which mean nothing
        assert saved.step == 1 or (saved.step == 2 and victim == path and saved.state == {"v": 2})
        if victim.exists():
            assert saved.step == 2 or saved.skipped


def test_a_json_that_still_reads_but_was_changed_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, tensors(1), {"lr": 0.1})
    path = write_checkpoint(tmp_path, 2, tensors(2), {"lr": 0.1})
    path.write_text(path.read_text().replace("0.1", "0.3"))
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert "its checksum does not match" in saved.skipped[0]


def test_all_damaged_says_so(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, tensors(1), {})
    path.with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"0 of \d+ bytes; no older checkpoint is valid: remove the folder"):
        read_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, 1, tensors(1), {"v": 1})

    def full(*args: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("longvit.training.checkpoint.save_file", full)
    with pytest.raises(InputError, match="no space left"):
        write_checkpoint(tmp_path, 2, tensors(2), {"v": 2})
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001.json", "step-00000001.safetensors"]


def test_only_the_newest_are_kept_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.safetensors.4711.part.safetensors").touch()
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, tensors(step), {}, keep=3)
    assert {p.stem for p in tmp_path.iterdir()} == {f"step-{s:08d}" for s in (3, 4, 5)}


def test_a_damaged_newer_checkpoint_is_not_kept_in_place_of_the_valid_one(tmp_path: Path) -> None:
    """The run resumes from 5, since 7 is damaged, and saves 6: with one to keep, that must be 6."""
    write_checkpoint(tmp_path, 5, tensors(5), {})
    write_checkpoint(tmp_path, 7, tensors(7), {}, keep=2).with_suffix(".safetensors").write_bytes(b"")
    write_checkpoint(tmp_path, 6, tensors(6), {}, keep=1)
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, saved.skipped) == (6, ())
    assert {p.stem for p in tmp_path.iterdir()} == {"step-00000006"}


def test_a_step_saved_again_is_whole_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one to keep, the first save may not go before the second one stands: killed at every file operation."""

    class Killed(BaseException):
        pass

    for end in range(1, 100):
        folder = tmp_path / str(end)
        for v in (1, 2):  # the second save takes the other name, the third the first one again
            write_checkpoint(folder, 3, tensors(v), {"v": v}, keep=1)
        left = [end]

        def dying(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            patch.setattr("os.fsync", dying(os.fsync))
            with contextlib.suppress(Killed):
                write_checkpoint(folder, 3, tensors(9), {"v": 9}, keep=1)
        saved = read_checkpoint(folder)
        assert saved is not None
        assert saved.state["v"] in (2, 9)
        assert torch.equal(saved.tensors["a"], tensors(saved.state["v"])["a"])
        if left[0] > 0:
            assert end > 6
            return
    raise AssertionError("a save never ends")


def test_differences_are_shown_key_by_key() -> None:
    assert settings_difference({"a": [1, 2], "b": 1, "c": 3}, {"a": (1, 2), "b": 2}) == ["b 1 -> 2", "c 3 -> (absent)"]
