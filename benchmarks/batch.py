"""Many slides: 200 crops of the example slide by two workers, one of them killed halfway; what a slide costs in all.

    python benchmarks/batch.py [--slides 200] [--workers 2] [--rounds 3] [--save]

Each round runs, one after another on the same slides with one thread per process:

- `bare`: a loop in one process that opens, reads, embeds and writes each slide: the pure work, no more;
- `batch`: `longvit.batch` with the workers, undisturbed;
- `killed`: the same, one worker killed (SIGKILL) when half of the slides are done.

Overhead per slide, in ms: (workers × wall of the batch − wall of the bare loop) / slides. So it counts all that the
workers' cores did or waited for: claims, the reading processes and their pixels, the end of the list, and in `all` also
what is paid once (start of Python, torch and the model, the worker that takes the dead one's place). `steady` leaves
that out: from the first slide that went into a model to the last end. Where others were using the machine (see
`load`) these figures are too large; `cpu` is the same in processor seconds of all our processes, which holds then too
but counts no waiting: (CPU of the batch, start-up and all − CPU of the bare loop) / slides.

`parts` are measured in place, alone: the claim of a slide with its end and its log, and reading through a process minus
reading here. Goal: ≤ 50 ms. `each_once`: no slide was done twice, all have ended, the vectors are those of the bare
loop to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from side_by_side import report

GOAL_MS = 50.0
CROP_PX, SIDE_PX = 512, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/batch.json")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.slides, options.workers, options.rounds)
        report("batch", rows, save=options.save)


def measure(folder: Path, n: int, workers: int, rounds: int) -> list[dict[str, Any]]:
    from longvit.data.slide_list import find_slides

    make_slides(folder / "slides", n)
    model = make_model(folder / "model")
    slides = find_slides([folder / "slides"])
    results: list[dict[str, Any]] = []
    for number in range(rounds):
        load = os.getloadavg()[0]
        cpu = cpu_s()
        bare_s = bare_loop(model, slides, folder / f"bare{number}")
        cpu = cpu_s() - cpu
        found: dict[str, Any] = {
            "load_before": round(load, 2),
            "bare_ms_per_slide": round(1e3 * bare_s / n, 1),
            "bare_cpu_ms_per_slide": round(1e3 * cpu / n, 1),
        }
        for name, kills in (("batch", False), ("killed", True)):
            out = folder / f"{name}{number}"
            found[name] = batch(model, slides, out, workers, bare_s, cpu, kills=kills)
            found[name]["same_bits_as_bare"] = same_bits(out, folder / f"bare{number}", slides)
        results.append(found)
        print(f"round {number}: {json.dumps(found)}", file=sys.stderr, flush=True)

    def median(name: str, figure: str) -> float:
        return round(statistics.median(one[name][figure] for one in results), 2)

    overheads = {
        f"{name}_{figure}_ms": median(name, f"overhead_{figure}_ms")
        for name in ("batch", "killed")
        for figure in ("all", "steady", "cpu")
    }
    summary = {
        "slides": n,
        "workers": workers,
        "model": f"LongViT-tiny, {SIDE_PX} px",
        "overhead": overheads,
        "goal_ms": GOAL_MS,
        "meets_goal": overheads["killed_steady_ms"] <= GOAL_MS,
        "each_once": all(
            one[name]["each_once"] and one[name]["same_bits_as_bare"] for one in results for name in ("batch", "killed")
        ),
        "parts": parts(folder, slides),
    }
    return [summary, *results]


def make_slides(folder: Path, n: int) -> None:
    """n crops of the example slide, each at another place."""
    import longvit
    from longvit.demo import write_region

    slide = longvit.open_slide(Path(__file__).resolve().parents[1] / "examples" / "CMU-1-Small-Region.svs")
    width_px, height_px = slide.size_px
    columns = 20
    for i in range(n):
        x = (i % columns) * (width_px - CROP_PX) // columns
        y = (i // columns) * (height_px - CROP_PX) // max(1, -(-n // columns))
        mpp = slide.require_mpp()
        write_region(slide.read_region(x, y, 0, CROP_PX, CROP_PX), (mpp.x, mpp.y), folder / f"crop{i:03d}.tif")


def make_model(folder: Path) -> Path:
    import torch

    import longvit

    torch.manual_seed(0)
    longvit.create_model("longvit_tiny_patch32", image_px=SIDE_PX).save_pretrained(folder)
    return folder


def bare_loop(model_folder: Path, slides: Any, out: Path) -> float:
    """Seconds for the pure work, the model being loaded before."""
    import longvit
    from longvit.batch.embed import FOLDER, EmbedJob

    job = EmbedJob(longvit.load_model(model_folder), out / FOLDER)
    (out / FOLDER).mkdir(parents=True)
    begun = time.perf_counter()
    for listed in slides:
        with longvit.open_slide(listed.path) as slide:
            request = job.request(listed)
            digest = job.digest(slide.identity(), request)
            job.finish(listed, digest, slide.canvas(request.side_px, request.fit, threads=1))
    return time.perf_counter() - begun


def batch(
    model: Path, slides: Any, out: Path, workers: int, bare_s: float, bare_cpu_s: float, *, kills: bool
) -> dict[str, Any]:
    """A run by several workers; with `kills` one of them is killed halfway."""
    from longvit.batch import RunSettings, embed_slides
    from longvit.batch.worker_log import LogTail

    settings = RunSettings(workers=workers, device="cpu", threads=1)
    results: list[Any] = []
    cpu = cpu_s()
    begun = time.perf_counter()
    thread = threading.Thread(
        target=lambda: results.append(embed_slides(model, slides, out, run_settings=settings)), daemon=True
    )
    thread.start()
    killed = kill_halfway(out, len(slides) // 2, thread) if kills else None
    thread.join()
    wall_s = time.perf_counter() - begun
    cpu = cpu_s() - cpu
    (result,) = results
    (run,) = [path for path in (out / "work" / "embed").iterdir() if path.is_dir()]
    lines = [line for _, line in LogTail(run).new_lines()]
    done = Counter(line["slide"] for line in lines if line["event"] == "done")
    steady_s = max(line["t"] for line in lines if line["event"] == "done") - min(
        line["t"] for line in lines if line["event"] == "model"
    )
    n = len(slides)
    return {
        "wall_s": round(wall_s, 3),
        "steady_s": round(steady_s, 3),
        "overhead_all_ms": round(1e3 * (workers * wall_s - bare_s) / n, 2),
        "overhead_steady_ms": round(1e3 * (workers * steady_s - bare_s) / n, 2),
        "overhead_cpu_ms": round(1e3 * (cpu - bare_cpu_s) / n, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "done": len(result.done),
        "done_twice": sum(count > 1 for count in done.values()),
        "each_once": len(result.done) == n and not result.problems and max(done.values()) == 1,
        "workers_started": sum(line["event"] == "start" for line in lines),
        "tried_again": sum(line["event"] == "again" for line in lines),
        "killed": killed,
    }


def kill_halfway(out: Path, after: int, run: threading.Thread) -> int | None:
    """Kills the first worker that says `model` when so many slides are done; its process."""
    from longvit.batch.worker_log import LogTail

    processes: dict[str, int] = {}
    tails: dict[Path, LogTail] = {}
    n_done = 0
    while run.is_alive():
        for folder in (out / "work" / "embed").glob("*/"):
            for worker, line in tails.setdefault(folder, LogTail(folder)).new_lines():
                n_done += line["event"] == "done"
                if line["event"] == "start":
                    processes[worker] = line["process"]
                elif line["event"] == "model" and n_done >= after:
                    os.kill(processes[worker], signal.SIGKILL)
                    return processes[worker]
        time.sleep(0.005)
    return None


def cpu_s() -> float:
    """Processor seconds of this process and of all that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def same_bits(out: Path, other: Path, slides: Any) -> bool:
    from longvit.batch.embed import FOLDER, read_features

    names = [f"{FOLDER}/{listed.slide_id}.h5" for listed in slides]
    return all((read_features(out / name) == read_features(other / name)).all() for name in names)


def parts(folder: Path, slides: Any) -> dict[str, float]:
    """ms per slide of what the batch adds, each alone."""
    from longvit.batch.read_process import ReadProcess
    from longvit.batch.reading import Reader, ReadRequest, ReadSettings, ThreadReader
    from longvit.batch.work_list import Taking, WorkList
    from longvit.batch.worker_log import WorkerLog
    from longvit.data.claims import Claims

    listed = WorkList.begin(folder / "parts", "embed", slides, retries=2, facts={})
    with Claims() as claims:
        taking = Taking(listed, claims, WorkerLog(listed.folder, "alone"))
        begun = time.perf_counter()
        while (taken := taking.next()) is not None:
            taking.ended(taken, "done")
        claim_s = (time.perf_counter() - begun) / len(slides)

    def read_s(reader: Reader) -> float:
        times = []
        for slide in slides:
            begun = time.perf_counter()
            reader.read(ReadRequest(slide.path, SIDE_PX, "stretch", ReadSettings()), bool)
            times.append(time.perf_counter() - begun)
        reader.stop()
        return statistics.median(times)

    here_s, apart_s = read_s(ThreadReader(1)), read_s(ReadProcess(None, 1))
    return {
        "claim_end_log_ms": round(1e3 * claim_s, 3),
        "read_here_ms": round(1e3 * here_s, 3),
        "read_in_a_process_ms": round(1e3 * apart_s, 3),
    }


if __name__ == "__main__":
    main()
