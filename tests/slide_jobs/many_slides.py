"""Runs by several processes, for tests: small slides, a slow model, counting of events."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.small_slides import write_model, write_slide

from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError
from longvit.processes.leases import read_lease
from longvit.slide_jobs.embed import FOLDER, embed_slides, read_features
from longvit.slide_jobs.run import RunSettings, SlideJobsResult
from longvit.slide_jobs.worker_log import LogTail


def make(folder: Path, n: int, image_px: int = 512) -> tuple[Path, tuple[ListedSlide, ...]]:
    """A model folder whose forward takes some 30 ms (with canvases of 1,024 px 150 ms), and n slides."""
    model = write_model(folder / "model", image_px=image_px, embed_dim=96, depth=6)
    for i in range(n):
        write_slide(folder / "slides" / f"s{i:02d}.tif", seed=i)
    return model, find_slides([folder / "slides"])


class Run(threading.Thread):
    """`embed_slides` beside the test; `result` waits for it."""

    def __init__(self, model: Path, slides: tuple[ListedSlide, ...], out: Path, **settings: Any) -> None:
        super().__init__(daemon=True)
        self.model, self.slides, self.out = model, slides, out
        self.settings = RunSettings(device="cpu", threads=1, **settings)
        self._result: SlideJobsResult | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = embed_slides(self.slides, self.out, self.model, run_settings=self.settings)
        except BaseException as error:
            self._result = error

    def result(self) -> SlideJobsResult:
        self.join(300)
        assert isinstance(self._result, SlideJobsResult), self._result
        return self._result

    def error(self) -> InputError:
        self.join(300)
        assert isinstance(self._result, InputError), self._result
        return self._result


def lines_of(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Log lines of all workers of the current run, with their names, in the order of time."""
    runs = [path for path in (out / "work" / "embed").glob("*/") if path.is_dir()]
    lines = [line for run in runs for line in LogTail(run).new_lines()]
    return sorted(lines, key=lambda line: line[1]["t"])


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)
    return found


def in_model(out: Path, among: set[int] | None = None) -> tuple[int, str] | None:
    """A worker that has a slide in its model and has finished two before: its process and the slide."""
    processes: dict[str, int] = {}
    slides: dict[str, str] = {}
    done: Counter[str] = Counter()
    for worker, line in lines_of(out):
        if line["event"] == "start":
            processes[worker] = line["process"]
        elif line["event"] == "model":
            slides[worker] = line["slide"]
        elif line.get("slide") == slides.get(worker):
            slides.pop(worker, None)
            done[worker] += line["event"] == "done"
    for worker, slide in slides.items():
        if done[worker] >= 2 and (among is None or processes[worker] in among):
            return processes[worker], slide
    return None


def assert_each_once(out: Path, slides: tuple[ListedSlide, ...]) -> None:
    """Every slide has ended as done, none was done by two."""
    (run,) = [path for path in (out / "work" / "embed").iterdir() if path.is_dir()]
    for listed in slides:
        content = read_lease(run / "slides" / f"{listed.slide_id}.json")
        assert (content.get("settled"), content.get("end")) == (True, "done"), (listed.slide_id, content)
    done = Counter(line["slide"] for _, line in lines_of(out) if line["event"] == "done")
    assert max(done.values()) == 1
    # A worker that is killed between the two leaves the end, and no line.
    assert len(slides) - 1 <= sum(done.values()) <= len(slides)


def assert_nothing_left(out: Path) -> None:
    """No lease and no half-written file remains."""
    left = [path for path in out.rglob("*") if path.suffix == ".claim" or ".part" in path.name or ".time" in path.name]
    assert not left
    for run in (out / "work" / "embed").iterdir():
        for path in (run / "slides").glob("*.json") if run.is_dir() else ():
            assert read_lease(path).get("settled"), f"{path} is still claimed"


def assert_same_bits(out: Path, other: Path, slides: tuple[ListedSlide, ...]) -> None:
    assert (out / "embeddings.csv").read_bytes() == (other / "embeddings.csv").read_bytes()
    for listed in slides:
        name = f"{FOLDER}/{listed.slide_id}.h5"
        np.testing.assert_array_equal(read_features(out / name), read_features(other / name))
