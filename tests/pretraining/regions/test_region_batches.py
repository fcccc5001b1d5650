"""Batches of crops: the same bits in any process, whatever is damaged, dies or hangs; no process outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import EXAMPLE_SLIDE
from tests.pretraining.regions.region_run import CROPS, SETTINGS
from tests.slides.slide_files import tissue, write_jpeg
from tests.small_slides import write_slide
from threadpoolctl import threadpool_info, threadpool_limits

from longvit.data.problems import Problem
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.pretraining.regions import region_process
from longvit.pretraining.regions.crops import CropSettings
from longvit.pretraining.regions.region_batches import CropBatch, RegionBatches
from longvit.pretraining.regions.regions import RegionSettings, find_regions

SCRIPT = Path(__file__).with_name("region_run.py")


@pytest.fixture
def slides(tmp_path: Path) -> list[ListedSlide]:
    """Two slides."""
    paths = [write_slide(tmp_path / f"{name}.tif", seed=i, size_px=(300, 200)) for i, name in enumerate("ab")]
    return [ListedSlide(path.stem, path) for path in paths]


def batches(slides: list[ListedSlide], **settings: object) -> RegionBatches:
    regions = find_regions(slides, SETTINGS, progress=False)
    return RegionBatches(regions, CROPS, batch_size=5, **settings)  # type: ignore[arg-type]


def same(a: CropBatch, b: CropBatch) -> bool:
    return a.names == b.names and all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))


def all_same(a: list[CropBatch], b: list[CropBatch]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def test_the_same_bits_whatever_the_number_of_processes(slides: list[ListedSlide]) -> None:
    alone = list(batches(slides, workers=0).epoch(1))
    assert [len(batch.names) for batch in alone] == [5, 5, 5, 5, 4]
    assert [tuple(crop.shape) for crop in alone[-1].crops] == [(4, 3, 32, 32)] * 2 + [(4, 3, 16, 16)] * 2
    assert {crop.dtype for crop in alone[0].crops} == {torch.uint8}
    for workers in (1, 2, 4):
        assert all_same(list(batches(slides, workers=workers).epoch(1)), alone)


def test_the_threads_of_the_caller_change_no_bit_of_a_large_crop() -> None:
    """Products of this size are shared out over threads where the process has some; those of the others have one."""
    settings = RegionSettings(region_px=(1024, 1200), per_slide=2)
    regions = find_regions([ListedSlide("real", EXAMPLE_SLIDE)], settings, progress=False)
    crops = CropSettings(local_crops=1)
    with threadpool_limits(2, "blas"):
        here = list(RegionBatches(regions, crops, workers=0).epoch(0))
        assert all(pool["num_threads"] > 1 for pool in threadpool_info() if pool["user_api"] == "blas")
    assert all_same(here, list(RegionBatches(regions, crops, workers=1).epoch(0)))


def test_any_batch_can_be_had_by_itself_as_a_resumed_run_does(slides: list[ListedSlide]) -> None:
    whole = list(batches(slides, workers=0).epoch(3))
    assert all_same(list(batches(slides, workers=1).epoch(3, [4, 1])), [whole[4], whole[1]])
    assert list(batches(slides, workers=2).epoch(3, [])) == []


def test_every_region_comes_once_an_epoch_in_another_order_with_other_crops(slides: list[ListedSlide]) -> None:
    ours = batches(slides, workers=0)
    first, second = list(ours.epoch(0)), list(ours.epoch(1))
    names = [[name for batch in epoch for name in batch.names] for epoch in (first, second)]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1]) == sorted(f"{s}#{i}" for s in "ab" for i in range(12))
    place = [n.index("a#3") for n in names]
    one, other = (epoch[p // 5].crops[0][p % 5] for epoch, p in zip((first, second), place, strict=True))
    assert not torch.equal(one, other)
    again = batches(slides, workers=0, seed=1)
    assert not all_same(list(again.epoch(0)), first)


def test_a_batch_is_the_callers_to_keep(slides: list[ListedSlide]) -> None:
    kept, copies = [], []
    for batch in batches(slides, workers=1, ahead_mb=0).epoch(0):
        kept.append(batch)
        copies.append(CropBatch([crop.clone() for crop in batch.crops], batch.names))
    assert all_same(kept, copies)


def test_a_folder_of_regions_changes_no_bit(slides: list[ListedSlide], tmp_path: Path) -> None:
    ours = batches(slides, workers=2, cache=tmp_path / "regions")
    alone = list(batches(slides, workers=0).epoch(0))
    assert all_same(list(ours.epoch(0)), alone)
    assert len(list((tmp_path / "regions").iterdir())) == 24
    for slide in slides:  # nothing is read of the slides any more
        slide.path.write_bytes(b"")
    assert all_same(list(ours.epoch(0)), alone)
    assert not ours.problems


def damaged(tmp_path: Path, slides: list[ListedSlide]) -> list[ListedSlide]:
    """With a slide that opens and cannot be read."""
    path = write_jpeg(tmp_path / "cut.jpg", tissue(300, 200), dpi=(50800, 50800))
    path.write_bytes(path.read_bytes()[:-3000])
    return [*slides, ListedSlide("cut", path)]


def test_a_region_that_cannot_be_read_is_replaced_by_the_same_one_whoever_reads(
    slides: list[ListedSlide], tmp_path: Path
) -> None:
    three = damaged(tmp_path, slides)
    told: list[Problem] = []
    alone = batches(three, workers=0, on_problem=told.append)
    assert alone.samples == 36
    whole = list(alone.epoch(0))
    names = [name for batch in whole for name in batch.names]
    assert len(names) == 36
    assert {name.split("#")[0] for name in names} == {"a", "b"}
    assert len(told) == 12  # each region once, not each slide: how much is lost can be seen
    assert {p.slide for p in told} == {"cut"}
    assert "cut.jpg: damaged or cut off" in told[0].error
    assert "is replaced" in told[0].error
    list(alone.epoch(1))
    assert len(told) == len(alone.problems) == 12
    resumed = batches(three, workers=2)
    assert all_same(list(resumed.epoch(0, [5, 6, 7])), whole[5:])
    assert resumed.problems.keys() <= alone.problems.keys()
    # Its replacement is no black square, and has crops that differ from those of other regions.
    place = next(i for i, index in enumerate(alone.order(0)) if index >= 24)
    assert whole[place // 5].crops[0][place % 5].float().std() > 3


def test_nothing_but_damage_ends_the_run_with_the_first_problem(slides: list[ListedSlide], tmp_path: Path) -> None:
    only = damaged(tmp_path, [])
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"12 regions in a row cannot be read, the first: .*cut\.jpg: damaged"):
            list(batches(only, workers=workers).epoch(0))


def test_bad_tiles_replace_a_region_unless_they_are_allowed(
    slides: list[ListedSlide], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvit.slides.pixel_reader import BadTile
    from longvit.slides.reader import Slide

    read_block = Slide.read_block

    def holes(self: Slide, *arguments: object) -> list[BadTile]:
        found = read_block(self, *arguments)  # type: ignore[arg-type]
        return [*found, BadTile(0, 0, 0, 64, 64, "broken")] if self.path.stem == "a" else found

    monkeypatch.setattr(Slide, "read_block", holes)
    names = [name for batch in batches(slides, workers=0).epoch(0) for name in batch.names]
    assert {name[0] for name in names} == {"b"}
    regions = find_regions(slides, replace(SETTINGS, max_bad_tiles=1), progress=False)
    names = [name for batch in RegionBatches(regions, CROPS, workers=0).epoch(0) for name in batch.names]
    assert {name[0] for name in names} == {"a", "b"}


def processes_of(monkeypatch: pytest.MonkeyPatch) -> list[region_process.RegionProcess]:
    """Every process that is started from now on."""
    from longvit.pretraining.regions import region_batches

    seen: list[region_process.RegionProcess] = []

    class Seen(region_process.RegionProcess):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            seen.append(self)

    monkeypatch.setattr(region_batches, "RegionProcess", Seen)
    return seen


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_end_with_the_iterator_also_half_way(
    slides: list[ListedSlide], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = processes_of(monkeypatch)
    stream = batches(slides, workers=2).epoch(0)
    next(stream)
    assert [is_running(p.process) for p in seen] == [True, True]
    stream.close()  # type: ignore[attr-defined]
    assert [is_running(p.process) for p in seen] == [False, False]
    list(batches(slides, workers=2).epoch(0))
    assert len(seen) == 4
    assert not any(is_running(p.process) for p in seen)


def test_a_process_that_dies_is_named_with_its_slide(
    slides: list[ListedSlide], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = processes_of(monkeypatch)
    stream = batches(slides, workers=1).epoch(0)
    next(stream)
    os.kill(seen[0].process, signal.SIGSEGV)
    with pytest.raises(InputError, match=r"[ab]\.tif: region [ab]#\d+ was not read: .* died \(SIGSEGV\)") as error:
        list(stream)
    assert "\n" not in str(error.value)
    assert not is_running(seen[0].process)


def test_a_slide_that_hangs_is_named(slides: list[ListedSlide], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = processes_of(monkeypatch)
    stream = batches(slides, workers=1, timeout_s=1.0).epoch(0)
    next(stream)
    os.kill(seen[0].process, signal.SIGSTOP)
    seen[0]._status[:] = 13, time.monotonic()  # as if it had just begun to read
    with pytest.raises(InputError, match=r"b\.tif: region b#1 was not read within 1 s"):
        list(stream)
    assert not is_running(seen[0].process)


def test_a_process_that_waits_for_a_slow_step_does_not_hang(slides: list[ListedSlide]) -> None:
    stream = batches(slides, workers=1, timeout_s=1.0).epoch(0)
    next(stream)
    time.sleep(2.5)
    assert len(list(stream)) == 4


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_when_their_parent_is_killed_or_interrupted(slides: list[ListedSlide], how: int) -> None:
    command = [sys.executable, str(SCRIPT), str(slides[0].path)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert run.stdout is not None
    processes = [int(run.stdout.readline()) for _ in range(2)]
    assert all(map(is_running, processes))
    run.send_signal(how)
    run.wait(60)
    wait_for(lambda: not any(map(is_running, processes)))


def test_processes_load_no_torch() -> None:
    code = "import sys, longvit.pretraining.regions.region_process as _"
    code += "; print(*sorted({'torch', 'pandas', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_full_disk_under_the_folder_of_regions_ends_the_run(slides: list[ListedSlide], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"not written: a part of the path is a file"):
            list(batches(slides, workers=workers, cache=blocked / "regions").epoch(0))


@dataclass(frozen=True)
class More(RegionSettings, CropSettings):
    """Settings of a run, which hold those of the regions and the crops."""

    folder: Path = Path("x")


def test_settings_of_a_run_that_hold_more_will_do(slides: list[ListedSlide]) -> None:
    more = More(**{**vars(SETTINGS), **vars(CROPS)})
    regions = find_regions(slides, more, progress=False)
    assert regions.fingerprint == find_regions(slides, SETTINGS, progress=False).fingerprint
    assert all_same(list(RegionBatches(regions, more, 5).epoch(0)), list(batches(slides, workers=0).epoch(0)))


def test_the_training_loop_takes_them(slides: list[ListedSlide], tmp_path: Path) -> None:
    from longvit.training.loop import train
    from longvit.training.settings import TrainSettings

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, 3))

        def forward(self, crops: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([crop.float().mean((2, 3)) for crop in crops]).mean(0) @ self.weight / 255

    def step(model: torch.nn.Module, batch: CropBatch) -> dict[str, torch.Tensor]:
        return {"loss": model(batch.crops).square().mean()}

    result = train(Mean(), batches(slides), step, TrainSettings(epochs=2), folder=tmp_path / "run", progress=False)
    assert result.steps == 10
    assert np.isfinite(result.history["loss"]).all()
