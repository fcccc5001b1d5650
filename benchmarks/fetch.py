"""Benchmark of a fetch: downloads and canvases together, against the slower of the two alone, from a local server.

    python benchmarks/fetch.py [--setting 48x2] [--bound balanced] [--rounds 3] [--save]

The slides are DICOM series of 4,440 × 2,967 px (JPEG), copies of the real slide beside each other; canvases have
2,048 px. A setting is slides x jobs. The server limits its rate: `canvas-bound` without a limit; `balanced`, where
downloads alone take about as long as canvases alone; `download-bound`, twice as long. Each round measures the three in
turn, each as processes of their own; the time includes their start. `ratio` is the time of the slower part alone over
that of the fetch, the median of the rounds with their smallest and largest; goal: 0.9. Stored rows of other settings
stay.

`ratio_at_most` is what arithmetic allows on this machine. The last canvas begins when the last download has ended; one
worker makes it in canvas_seconds · jobs / slides. With as many jobs as cores, canvases alone keep the cores busy, and
the CPU seconds of the downloads and of the server come from the same cores: canvas_seconds · cpu_seconds /
canvas_cpu_seconds. The start of the workers, the same for any number of slides, is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX = 2048
GOAL = 0.9
SETTINGS = ("16x2", "48x2", "24x1")
RESULTS = ROOT / "benchmarks" / "results" / "fetch.json"
RATES = {"canvas-bound": None, "balanced": 1.0, "download-bound": 2.0}
_TILES = (2, 1)


def make(folder: Path, n: int) -> int:
    """Writes one series, and n links to it as slides of a bucket and as local slides; returns its bytes."""
    import numpy as np
    import tifffile

    sys.path.insert(0, str(ROOT))
    from tests.public.archive import BUCKET, write_series
    from tests.slides.slide_files import pyramid, write_svs

    pixels = np.tile(tifffile.imread(ROOT / "examples" / "CMU-1-Small-Region.svs", key=0), (*_TILES[::-1], 1))
    source = write_svs(folder / "source.tif", pyramid(pixels, 3), 0.25, photometric="ycbcr", tile_px=256)
    n_bytes = write_series(source, folder / "series")
    for number in range(n):
        for place in (folder / "served" / BUCKET / f"uid-{number:03d}", folder / "local" / f"s{number:03d}"):
            place.mkdir(parents=True)
            for file in (folder / "series").iterdir():
                os.link(file, place / file.name)
    return n_bytes


def one(part: str, folder: Path, out: Path, address: str, n: int, jobs: int) -> None:
    """Runs a part in this process and those that it starts."""
    sys.path.insert(0, str(ROOT))
    from tests.public.archive import BUCKET

    if part == "fetch":
        from longvit.public.archive_slide import ArchiveSlide
        from longvit.public.fetch_job import FetchSettings, fetch

        slides = [ArchiveSlide(f"s{i:03d}", "p", "idc", f"s3://{BUCKET}/uid-{i:03d}/*", 1, "c", "l") for i in range(n)]
        done = len(fetch(slides, out, FetchSettings(side_px=SIDE_PX, jobs=jobs, device="cpu", endpoint=address)).done)
    elif part == "canvas":
        from longvit.data.slide_list import ListedSlide
        from longvit.slide_jobs.canvas import canvas_slides
        from longvit.slide_jobs.run import RunSettings

        listed = [ListedSlide(f"s{i:03d}", folder / "local" / f"s{i:03d}") for i in range(n)]
        settings = RunSettings(workers=jobs, reads_apart=True, device="cpu")
        done = len(canvas_slides(listed, out, SIDE_PX, run_settings=settings).done)
    else:
        import threading
        from concurrent.futures import ThreadPoolExecutor

        from longvit.transfer.client import Client, Patience
        from longvit.transfer.download import download
        from longvit.transfer.remote_file import remote_files

        def get(number: int) -> int:
            place = out / str(number)
            place.mkdir(parents=True)
            with Client(Patience(), threading.Event()) as client:
                location = f"s3://{BUCKET}/uid-{number:03d}/*"
                for file in remote_files(client, "idc", location, stem="s", endpoint=address):
                    download(client, file, place).unlink()
            return 1

        with ThreadPoolExecutor(2 * jobs) as pool:
            done = sum(pool.map(get, range(n)))
    if done != n:
        raise SystemExit(f"{part}: {done} of {n} slides")


def measured(part: str, folder: Path, address: str, n: int, jobs: int) -> tuple[float, float]:
    """Wall seconds and CPU seconds of a part."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--one", part, str(folder), out, address, str(n), str(jobs)]
        begun, used = time.perf_counter(), cpu_seconds_of_children()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr[-2000:]}")
    return seconds, cpu_seconds_of_children() - used


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_seconds(process: int) -> float:
    """CPU seconds of a running process (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rows_of(n: int, jobs: int, bounds: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each rate of the server."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        n_bytes = make(folder, n)
        canvas_s, _ = measured("canvas", folder, "", n, jobs)  # sets the rates, and warms the caches
        for bound in bounds:
            factor = RATES[bound]
            rate = 0.0 if factor is None else n * n_bytes / (factor * canvas_s)
            script = ROOT / "tests" / "public" / "archive_server.py"
            command = [sys.executable, str(script), str(folder / "served"), str(rate)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
                wall: dict[str, list[float]] = {"canvas": [], "download": [], "fetch": []}
                cpu: dict[str, list[float]] = {"canvas": [], "download": [], "server": []}
                for number in range(rounds):
                    for part in ("download", "fetch", "canvas")[:: 1 if number % 2 == 0 else -1]:
                        before = cpu_seconds(server.pid)
                        seconds, used = measured(part, folder, address, n, jobs)
                        wall[part].append(seconds)
                        if part == "fetch":
                            cpu["server"].append(cpu_seconds(server.pid) - before)
                        else:
                            cpu[part].append(used)
            finally:
                server.kill()
                server.wait()
            row = {"bound": bound, "slides": n, "jobs": jobs, "MB_per_slide": round(n_bytes / 1e6, 2)}
            rows.append(row | ratios(wall, cpu, n, jobs))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ratios(wall: dict[str, list[float]], cpu: dict[str, list[float]], n: int, jobs: int) -> dict[str, Any]:
    """Medians of the rounds, the ratio, and what arithmetic allows."""
    rounds = zip(wall["canvas"], wall["download"], wall["fetch"], strict=True)
    found = sorted(max(canvas, download) / fetch for canvas, download, fetch in rounds)
    seconds = {part: statistics.median(values) for part, values in wall.items()}
    canvas_cpu_s = statistics.median(cpu["canvas"])
    cpu_s = sum(statistics.median(values) for values in cpu.values())
    slower_s = max(seconds["canvas"], seconds["download"])
    floor_s = seconds["download"] + seconds["canvas"] * jobs / n
    if jobs >= len(os.sched_getaffinity(0)):
        floor_s = max(floor_s, seconds["canvas"] * cpu_s / canvas_cpu_s)
    floor_s = max(floor_s, slower_s)
    return {
        **{f"{part}_seconds": round(value, 2) for part, value in seconds.items()},
        "canvas_cpu_seconds": round(canvas_cpu_s, 2),
        "cpu_seconds": round(cpu_s, 2),
        "ratio": round(statistics.median(found), 3),
        "ratios": [round(found[0], 3), round(found[-1], 3)],
        "ratio_at_most": round(slower_s / floor_s, 3),
        "within_goal": statistics.median(found) >= GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", nargs="+", default=SETTINGS, help="slides x jobs, such as 48x2")
    parser.add_argument("--bound", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/fetch.json")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, folder, out, address, n, jobs = options.one
        one(part, Path(folder), Path(out), address, int(n), int(jobs))
        return
    from side_by_side import report

    rows = []
    for setting in options.setting:
        n, jobs = map(int, setting.split("x"))
        rows += rows_of(n, jobs, options.bound, options.rounds)
    report("fetch", with_stored(rows), save=options.save)


def with_stored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and the stored ones of other settings, in the order of the settings."""

    def key(row: dict[str, Any]) -> tuple[int, int, str]:
        return row["jobs"], row["slides"], row["bound"]

    stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    return sorted({key(row): row for row in [*stored, *rows]}.values(), key=key)


if __name__ == "__main__":
    main()
