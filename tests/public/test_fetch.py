"""A fetch gives the canvases of the source slides, each once, within its disk, whatever network and kills do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.public.archive import BUCKET, SIDE_PX, make_archive, settings, write_gdc
from tests.public.archive_server import ArchiveServer

from longvit.data.canvas_cache import CanvasSettings, cache_canvases, read_pixels
from longvit.data.cohort_table import read_cohort
from longvit.data.problems import read_problems
from longvit.errors import InputError
from longvit.public.archive_slide import ArchiveSlide
from longvit.public.fetch_job import fetch
from longvit.slide_jobs.status import status
from longvit.slides.canvas import read_canvas
from longvit.slides.reader import open_slide
from longvit.slides.tiles import TileSettings

pytest.importorskip("requests", reason="the extra public is not installed")

SCRIPT = Path(__file__).with_name("archive.py")


def assert_canvases_of_the_sources(folder: Path, out: Path, slides: list[ArchiveSlide], side_px: int = SIDE_PX) -> None:
    """Each canvas has the pixels of the source TIFF, whose tiles are those of the DICOM series."""
    for slide in slides:
        canvas = read_canvas(out / f"{slide.slide_id}.tif")
        with open_slide(folder / "source" / f"{slide.slide_id}.tif") as source:
            assert np.array_equal(canvas.pixels, source.canvas(side_px).pixels), slide.slide_id
        assert not canvas.bad_tiles


def assert_nothing_else(out: Path, slides: list[ArchiveSlide]) -> None:
    """No slide, no part, no lease is left; each slide has its canvas and its records."""
    assert not [path for path in (out / "work" / "downloads").iterdir() if not path.name.startswith(".")]
    assert not [path for path in out.rglob("*") if ".part" in path.name or path.suffix == ".claim"]
    names = sorted(slide.slide_id for slide in slides)
    assert sorted(path.stem for path in out.glob("*.tif")) == names
    assert sorted(path.stem for path in (out / "fetched").iterdir()) == names
    assert sorted(path.stem for path in (out / "records").iterdir()) == names


@contextmanager
def sampled(folder: Path, every_s: float = 0.005) -> Iterator[list[int]]:
    """Bytes of all files below a folder, sampled from a thread."""
    samples, end = list[int](), threading.Event()

    def sample() -> None:
        while not end.wait(every_s):
            total = 0
            try:
                paths = list(folder.rglob("*"))
            except FileNotFoundError:  # a slide was dropped meanwhile
                continue
            for path in paths:
                try:
                    total += path.stat().st_size if path.is_file() and path.suffix != ".claim" else 0
                except OSError:
                    continue
            samples.append(total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def test_canvases_are_those_of_the_sources_and_open_in_a_training_without_the_slides(tmp_path: Path) -> None:
    slides, out = [*make_archive(tmp_path, 3), *write_gdc(tmp_path, 1)], tmp_path / "out"
    with ArchiveServer(tmp_path / "served") as server:
        result = fetch(slides, out, settings(server.address))
        assert len(result.done) == 4
        assert not result.problems
        again = fetch(slides, out, settings(server.address))
        assert len(again.skipped) == 4
        assert set(server.gets.values()) == {1}
    assert_canvases_of_the_sources(tmp_path, out, slides[:3])
    assert_nothing_else(out, slides)
    assert status(out)[0].verb == "fetch"

    table = tmp_path / "cohort.csv"  # as of the published folds, which name SVS files
    table.write_text("slide_id,label\n" + "".join(f"{slide.slide_id}.svs,{n % 2}\n" for n, slide in enumerate(slides)))
    cohort = read_cohort(table, slides_dir=out)
    cached = cache_canvases(cohort.rows, CanvasSettings(SIDE_PX), tmp_path / "cache")
    assert len(cached.paths) == 4
    for slide in slides:
        wanted = read_canvas(out / f"{slide.slide_id}.tif").pixels
        assert np.array_equal(read_pixels(cached.paths[slide.slide_id]), wanted)


def test_a_bad_slide_costs_one_row_with_its_reason(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 4), tmp_path / "out"
    served = tmp_path / "served" / BUCKET
    for path in (served / "uid-001").iterdir():
        path.write_bytes(path.read_bytes()[:2000])  # cut off before it was stored
    slides[2] = replace(slides[2], location=f"s3://{BUCKET}/uid-none/*")
    damaged = f"/{BUCKET}/uid-003/0.dcm"
    with ArchiveServer(tmp_path / "served", fault=lambda path, n: "corrupt" if path == damaged else "") as server:
        result = fetch(slides, out, settings(server.address))
    assert result.done == (slides[0].slide_id,)
    problems = {problem.slide: problem for problem in read_problems(out / "problems.csv")}
    assert [problems[slide.slide_id].stage for slide in slides[1:]] == ["open", "fetch", "fetch"]
    assert "no object there" in problems[slides[2].slide_id].error
    assert "damaged on the way" in problems[slides[3].slide_id].error
    assert_nothing_else(out, slides[:1])


def test_features_need_one_download_and_kept_slides_none_again(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 2), tmp_path / "out"
    with ArchiveServer(tmp_path / "served") as server:
        first = settings(server.address, encoder="stain-texture", tiles=TileSettings(64), keep_slides=True)
        assert len(fetch(slides, out, first).done) == 2
        assert len(fetch(slides, out, replace(first, side_px=64)).done) == 2
        assert set(server.gets.values()) == {1}
        (out / "slides" / slides[0].slide_id / "0.dcm").rename(tmp_path / "0.dcm")
        (out / "slides" / slides[0].slide_id / "1.dcm").unlink()
        (out / "slides" / slides[0].slide_id).rmdir()
        result = fetch(slides, out, replace(first, side_px=64))
        assert (result.done, result.skipped) == ((slides[0].slide_id,), (slides[1].slide_id,))
    assert_canvases_of_the_sources(tmp_path, out, slides, 64)
    folder = out / "20x_64px_0px_overlap" / "features_stain-texture"
    assert sorted(path.name for path in folder.glob("*.h5")) == [f"{slide.slide_id}.h5" for slide in slides]
    assert (out / "slides" / slides[0].slide_id / "0.dcm").read_bytes() == (tmp_path / "0.dcm").read_bytes()
    record = json.loads((out / "fetched" / f"{slides[0].slide_id}.json").read_text())
    assert all(len(file["md5"]) == 32 for file in record["files"])


def test_settings_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    for wrong in ({"canvas": False}, {"disk_gb": 0.0}, {"endpoint": "s3.example"}, {"network_timeout_s": 0.0}):
        with pytest.raises(InputError):
            settings("http://localhost", **wrong)
    slide = ArchiveSlide("s", "p", "idc", "s3://a/1/*", 1, "c", "l")
    with pytest.raises(InputError, match="two slides of this id"):
        fetch([slide, replace(slide, location="s3://a/2/*")], tmp_path, settings("http://localhost"))


@pytest.mark.slow
def test_downloads_of_all_workers_stay_within_the_bound(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 40), tmp_path / "out"
    largest = max(slide.n_bytes for slide in slides)
    most = 3 * largest
    (out / "work" / "downloads").mkdir(parents=True)
    with (
        ArchiveServer(tmp_path / "served", rate=40 * largest) as server,
        sampled(out / "work" / "downloads") as samples,
    ):
        result = fetch(slides, out, settings(server.address, jobs=3, disk_gb=most / 2**30))
    assert not result.problems
    assert largest < max(samples) <= most
    assert_canvases_of_the_sources(tmp_path, out, slides)
    assert_nothing_else(out, slides)


@pytest.mark.slow
def test_a_bad_network_costs_no_slide(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 12), tmp_path / "out"
    faults = random.Random(0)
    kinds = ["reset", "truncate", "corrupt", "503", "silent", "ignore-range", "", ""]
    plan: dict[tuple[str, int], str] = {}

    def fault(path: str, number: int) -> str:
        kind = faults.choice(kinds) if number < 4 else ""
        if kind == "corrupt" and "corrupt" in [plan[key] for key in plan if key[0] == path]:
            kind = "reset"  # a file that is damaged twice is given up
        return plan.setdefault((path, number), kind)

    with ArchiveServer(tmp_path / "served", fault=fault) as server:
        result = fetch(slides, out, settings(server.address, jobs=2, network_timeout_s=1.0, retries=2))
    assert not result.problems
    assert len(result.done) == 12
    assert_canvases_of_the_sources(tmp_path, out, slides)
    assert_nothing_else(out, slides)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_at_random_instants_leave_every_slide_once_and_nothing_half(tmp_path: Path, jobs: int) -> None:
    slides, out, kills = make_archive(tmp_path, 40), tmp_path / "out", 20 // 2
    listed = [f"{s.slide_id}|{s.case_id}|{s.source}|{s.location}|{s.n_bytes}" for s in slides]
    (tmp_path / "slides.txt").write_text("\n".join(listed))
    largest = max(slide.n_bytes for slide in slides)
    instants = random.Random(jobs)
    finished: dict[str, int] = {}
    (out / "work" / "downloads").mkdir(parents=True)

    def command(address: str) -> subprocess.Popen[bytes]:
        arguments = (tmp_path, out, address, jobs, 3 * largest / 2**20, SIDE_PX)
        paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)

    with ArchiveServer(tmp_path / "served", rate=2 * largest) as server, sampled(out / "work" / "downloads") as samples:
        for _ in range(kills):
            run, begun = command(server.address), time.monotonic()
            wanted = len(list(out.glob("fetched/*.json"))) + instants.randrange(3)
            while len(list(out.glob("fetched/*.json"))) < wanted and time.monotonic() < begun + 60:
                time.sleep(0.01)
            time.sleep(instants.uniform(0, 2))  # in the start of a run, in a download, in a canvas, in a record
            os.kill(run.pid, signal.SIGKILL)
            run.communicate()
            time.sleep(0.3)
            for slide in slides:  # what is finished is whole
                if (out / "fetched" / f"{slide.slide_id}.json").exists() and slide.slide_id not in finished:
                    assert_canvases_of_the_sources(tmp_path, out, [slide])
                    finished[slide.slide_id] = sum(n for path, n in server.gets.items() if slide.location[5:-1] in path)
        server.rate = 0.0
        run = command(server.address)
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors.decode()
        assert max(samples) <= 3 * largest
        for slide_id, gets in finished.items():  # and is never downloaded again
            location = next(slide.location for slide in slides if slide.slide_id == slide_id)
            assert sum(n for path, n in server.gets.items() if location[5:-1] in path) == gets
    assert finished
    assert not read_problems(out / "problems.csv")
    assert_canvases_of_the_sources(tmp_path, out, slides)
    assert_nothing_else(out, slides)


@pytest.mark.slow
@pytest.mark.parametrize(("file_bytes", "side_px", "stage"), [(40_000, SIDE_PX, "downloads"), (250_000, 512, "canvas")])
def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    tmp_path: Path, file_bytes: int, side_px: int, stage: str
) -> None:
    slides, out = make_archive(tmp_path, 3), tmp_path / "out"
    listed = [f"{s.slide_id}|{s.case_id}|{s.source}|{s.location}|{s.n_bytes}" for s in slides]
    (tmp_path / "slides.txt").write_text("\n".join(listed))
    limited = f"""
import resource, runpy, sys
from longvit.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))
sys.argv = {[str(SCRIPT), str(tmp_path), str(out)]!r} + sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except InputError as error:
    print(error)
    sys.exit(2)
"""
    with ArchiveServer(tmp_path / "served") as server:
        for jobs in ("1", "2"):
            arguments = [sys.executable, "-c", limited, server.address, jobs, "10", str(side_px)]
            run = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
            assert run.returncode == 2, run.stderr
            assert len(run.stdout.splitlines()) == 1
            assert "not written" in run.stdout
            assert ("work/downloads" in run.stdout) == (stage == "downloads")
            assert not list(out.glob("*.tif"))
        assert len(fetch(slides, out, settings(server.address, side_px=side_px)).done) == 3
    assert_nothing_else(out, slides)
