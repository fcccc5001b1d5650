"""Several processes share one folder of canvases: each is made once, a dead process holds up nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.shared_cache import rows_of

from longvit.data.canvas_cache import CanvasSettings, cache_canvases, read_pixels
from longvit.process_identity import this_host
from longvit.processes import leases as lease_module
from longvit.processes.leases import Leases

SCRIPT = Path(__file__).with_name("shared_cache.py")
SETTINGS = CanvasSettings(64)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """10 images, each with its own noise."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"s{i}.png")
    return folder


def filling(slides: Path, log: str, seconds: float, stop_after: int = 0) -> subprocess.Popen[bytes]:
    cache = slides.parent / "cache"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(slides), str(cache), str(slides.parent / log), str(seconds), str(stop_after)]
    )


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_whole(slides: Path) -> None:
    """Every canvas is there and right, nothing else is."""
    cache = slides.parent / "cache"
    cached = cache_canvases(rows_of(slides), SETTINGS, cache)
    assert cached.made == 0
    assert not cached.problems
    fresh = cache_canvases(rows_of(slides), SETTINGS, slides.parent / "fresh")
    for name, path in cached.paths.items():
        assert np.array_equal(read_pixels(path), read_pixels(fresh.paths[name]))
    assert len([path for path in cache.iterdir() if path.name != ".claims.lock"]) == 20  # canvas and record each


@pytest.mark.slow
def test_two_processes_make_every_canvas_once(tmp_path: Path, slides: Path) -> None:
    processes = [filling(slides, f"log{i}", 0.3) for i in (0, 1)]
    assert [p.wait(120) for p in processes] == [0, 0]
    of_each = [lines(tmp_path / f"log{i}") for i in (0, 1)]
    assert sorted(of_each[0] + of_each[1]) == [f"s{i}" for i in range(10)]
    assert_whole(slides)


@pytest.mark.slow
def test_a_killed_process_holds_up_nobody(tmp_path: Path, slides: Path) -> None:
    """Killed in its third canvas: the other one, which waits for that one canvas, takes it over."""
    first = filling(slides, "first", 0, stop_after=3)
    wait_for(lambda: len(lines(tmp_path / "first")) == 3)
    second = filling(slides, "second", 0)
    wait_for(lambda: len(lines(tmp_path / "second")) == 7)  # all but the two that are there and the claimed one
    time.sleep(0.5)
    assert second.poll() is None
    assert len(list((tmp_path / "cache").glob("*.claim"))) == 1
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.wait(60) == 0
    made_before = lines(tmp_path / "first")[:2]
    assert sorted([*made_before, *lines(tmp_path / "second")]) == [f"s{i}" for i in range(10)]
    assert_whole(slides)


def foreign(path: Path, host: str = "elsewhere", process: int = 1) -> Path:
    lease_path = path.with_name(f"{path.name}.claim")
    lease_path.write_text(json.dumps({"host": host, "process": process, "token": "theirs"}))
    return lease_path


def test_another_machines_claim_counts_while_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its clock says: only that the time changes matters."""
    monkeypatch.setattr(lease_module, "EXPIRES_AFTER_S", 0.2)
    lease_path = foreign(tmp_path / "x")
    with Leases() as ours:
        for beat in range(20):
            os.utime(lease_path, (beat, beat))  # in 1970
            with ours.take(tmp_path / "x") as is_ours:
                assert not is_ours
            time.sleep(0.02)
        wait_for(lambda: ours.is_free(tmp_path / "x"), 10)
        with ours.take(tmp_path / "x") as is_ours:
            assert is_ours
            assert json.loads(lease_path.read_text())["process"] == os.getpid()
    assert not lease_path.exists()


def test_a_holder_keeps_its_claim_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    with Leases() as ours, ours.take(tmp_path / "x") as is_ours:
        assert is_ours
        lease_path = tmp_path / "x.claim"
        os.utime(lease_path, (0, 0))
        wait_for(lambda: lease_path.stat().st_mtime > 0, 10)
    assert not lease_path.exists()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    foreign(tmp_path / "x", this_host(), done.pid)
    with Leases() as ours, ours.take(tmp_path / "x") as is_ours:
        assert is_ours


def test_a_claim_that_was_only_begun_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.claim").touch()
    with Leases() as ours:
        with ours.take(tmp_path / "x") as is_ours:
            assert not is_ours
        monkeypatch.setattr(lease_module, "EXPIRES_AFTER_S", -1.0)
        with ours.take(tmp_path / "x") as is_ours:
            assert is_ours


def test_a_process_that_slept_does_not_remove_the_claim_of_its_heir(tmp_path: Path) -> None:
    with Leases() as ours, ours.take(tmp_path / "x"):
        lease_path = foreign(tmp_path / "x")
    assert json.loads(lease_path.read_text())["token"] == "theirs"


def test_of_many_that_take_over_one_wins(tmp_path: Path) -> None:
    for _ in range(100):
        lease_path = foreign(tmp_path / "x", this_host(), 2**22 + 1)  # above the largest process id
        barrier, winners, release = threading.Barrier(4), [], threading.Event()

        def contend(
            barrier: threading.Barrier = barrier, winners: list[int] = winners, release: threading.Event = release
        ) -> None:
            with Leases() as ours:
                barrier.wait()
                with ours.take(tmp_path / "x") as is_ours:
                    winners += [1] if is_ours else []
                    barrier.wait()
                    release.wait()

        threads = [threading.Thread(target=contend) for _ in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait(10)
        barrier.wait(10)
        release.set()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert not lease_path.exists()


def test_an_error_and_an_interrupt_leave_no_claim(tmp_path: Path, slides: Path) -> None:
    (slides / "s3.png").write_bytes((slides / "s3.png").read_bytes()[:3000])
    cached = cache_canvases(rows_of(slides), SETTINGS, tmp_path / "cache")
    assert [p.slide for p in cached.problems] == ["s3"]
    assert not list((tmp_path / "cache").glob("*.claim"))


def test_a_canvas_given_as_slide_is_used_without_a_copy(slides: Path) -> None:
    from longvit.data.cohort import SlideRow
    from longvit.slides.canvas import write_canvas
    from longvit.slides.reader import open_slide

    cache = slides.parent / "cache"
    with open_slide(slides / "s0.png") as slide:
        made = write_canvas(slide.canvas(64), slides.parent / "s0.tif")
    row = SlideRow("s0", "s0", "", made)
    cached = cache_canvases([row], SETTINGS, cache)
    assert (cached.paths, cached.made, list(cache.iterdir())) == ({"s0": made}, 0, [])
    for other in (CanvasSettings(32), CanvasSettings(64, "pad")):
        assert cache_canvases([row], other, cache).paths["s0"].parent == cache
    again = read_pixels(cache_canvases([row], CanvasSettings(64, "pad"), cache).paths["s0"])
    assert np.array_equal(read_pixels(made), again)  # a square stays as it is under both fits
