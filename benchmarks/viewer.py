"""Benchmark of the viewer: time to the first view, time of a tile, memory after 2,000 tiles over 20 slides.

    python benchmarks/viewer.py [--small] [--save]      (10 minutes; 7 GB of disk)

The slides are made in a temporary folder from the JPEG tiles of the example (`tiled_slide.py`), as files with levels of
1 and 1/4 (`two levels`), and with levels down to 1/64 as scanners write them (`scanner levels`).

- `first_view_s`: from a fresh server: page, list, properties, and the whole slide on 1,280 × 800 px, as tiles, or as a
  blurred preview while a file without small levels is read for its overview
- `sharp_view_s`: the same to the last of those tiles; `sharp_view_cpu_s`: CPU seconds of the server up to then
- `tile_ms`: of 300 random tiles of all levels, each asked for once, one after another over one connection: median, p95
- `memory`: growth of the process's memory (VmRSS, and its peak) over 2,000 tiles of 20 slides of 20,000² px

Prints JSON, with the load of the machine: other processes make all times longer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tiled_slide import make_slide

TARGETS = {"first_view_s": 1.5, "tile_ms_p95": 30, "memory_mib": 150}
SCANNER = (4, 16, 64)


class Client:
    """One connection to a server."""

    def __init__(self, url: str) -> None:
        self.url = url
        host, _, token = url.removeprefix("http://").partition("/")
        self.root = f"/{token}"
        self.connection = http.client.HTTPConnection(host, timeout=600)

    def get(self, path: str) -> bytes:
        self.connection.request("GET", self.root + path)
        reply = self.connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status}")
        return body


def serve(paths: list[Path]) -> tuple[subprocess.Popen[str], Client]:
    """`longvit view` in a separate process."""
    command = [sys.executable, "-m", "longvit", "view", *map(str, paths), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, Client(process.stdout.readline().strip())


def first_tiles(slide: dict[str, Any], width_px: int = 670, height_px: int = 757) -> list[tuple[int, int, int]]:
    """Tiles of the view of the whole slide on a stage of this size: the level with at least its pixels."""
    step, level = 1, slide["max_level"]
    scale = min(width_px / slide["width"], height_px / slide["height"])
    while level and scale * step * 2 <= 1:
        step, level = step * 2, level - 1
    side = step * slide["tile_px"]
    columns, rows = -(-slide["width"] // side), -(-slide["height"] // side)
    return [(level, x, y) for y in range(rows) for x in range(columns)]


def times(path: Path, tiles: int) -> dict[str, float]:
    """First view, then random tiles of all levels."""
    process, client = serve([path])
    other = Client(client.url)
    try:
        start, before = time.perf_counter(), cpu_s(process.pid)
        for name in ("", "static/viewer.css", "static/openseadragon.min.js", "static/viewer.js", "list"):
            client.get(name)
        slide = json.loads(client.get("slide/0"))
        tile = f"tile/0/{slide['digest']}"
        seen: list[float] = []
        if slide["has_preview"]:  # over a connection of its own, as in a browser
            place = f"preview/0/{slide['digest']}.jpg"
            preview = threading.Thread(target=lambda: (other.get(place), seen.append(time.perf_counter() - start)))
            preview.start()
        for level, x, y in first_tiles(slide):
            client.get(f"{tile}/{level}/{x}_{y}.jpg")
        sharp_view, sharp_cpu = time.perf_counter() - start, cpu_s(process.pid) - before
        if slide["has_preview"]:
            preview.join()
        generator, seconds = random.Random(0), []
        for _ in range(tiles):
            level = generator.randint(0, slide["max_level"])
            side = slide["tile_px"] * 2 ** (slide["max_level"] - level)
            x, y = (generator.randrange(-(-slide[name] // side)) for name in ("width", "height"))
            start = time.perf_counter()
            client.get(f"{tile}/{level}/{x}_{y}.jpg")
            seconds.append(time.perf_counter() - start)
        milliseconds = sorted(1e3 * s for s in seconds)
        return {
            "first_view_s": min([sharp_view, *seen]),
            "sharp_view_s": sharp_view,
            "sharp_view_cpu_s": sharp_cpu,
            "has_preview": slide["has_preview"],
            "tile_ms_median": statistics.median(milliseconds),
            "tile_ms_p95": milliseconds[int(0.95 * len(milliseconds))],
            "needs_overview": slide["overview_level"] >= 0,
        }
    finally:
        process.terminate()
        process.wait()


def cpu_s(process: int) -> float:
    """CPU seconds of a process so far, of all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(process: int, name: str) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def memory(paths: list[Path], tiles: int) -> dict[str, float]:
    """Growth of the server's memory over tiles of all slides in turn."""
    process, client = serve(paths)
    try:
        client.get("list")
        before = memory_mib(process.pid, "VmRSS")
        slides = [json.loads(client.get(f"slide/{n}")) for n in range(len(paths))]
        generator = random.Random(0)
        for i in range(tiles):
            slide = slides[i * len(paths) // tiles]
            level = generator.randint(max(0, slide["max_level"] - 3), slide["max_level"])
            side = slide["tile_px"] * 2 ** (slide["max_level"] - level)
            x, y = (generator.randrange(-(-slide[name] // side)) for name in ("width", "height"))
            client.get(f"tile/{slide['number']}/{slide['digest']}/{level}/{x}_{y}.jpg")
        return {
            "tiles": tiles,
            "before_mib": before,
            "growth_mib": memory_mib(process.pid, "VmRSS") - before,
            "peak_growth_mib": memory_mib(process.pid, "VmHWM") - before,
        }
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small slides, few tiles")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/viewer.json")
    parser.add_argument("--keep", type=Path, help="folder of the slides, kept for another run")
    args = parser.parse_args()
    sizes = (4_000, 8_000) if args.small else (20_000, 100_000)
    tiles = 30 if args.small else 300
    result: dict[str, Any] = {"targets": TARGETS, "load_before": os.getloadavg(), "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        for size in sizes:
            for name, downsamples in (("two levels", (4,)), ("scanner levels", SCANNER)):
                path = folder / f"{size}-{len(downsamples)}.svs"
                if not path.exists():
                    make_slide(path, size, pyramid=True, downsamples=downsamples)
                result[f"{size:,}², {name}"] = times(path, tiles)
                print(json.dumps({f"{size:,}², {name}": result[f"{size:,}², {name}"]}), flush=True)
        copies = []
        for i in range(20):
            copy = folder / f"copy{i}.svs"
            shutil.copyfile(folder / f"{sizes[0]}-{len(SCANNER)}.svs", copy)
            with copy.open("ab") as file:  # another content hash: no tile is shared
                file.write(bytes(i + 1))
            copies.append(copy)
        result["memory"] = memory(copies, 200 if args.small else 2000)
    result["load_after"] = os.getloadavg()
    print(json.dumps(result, indent=1))
    if args.save:
        text = json.dumps(result, indent=1) + "\n"
        (Path(__file__).parent / "results" / "viewer.json").write_text(text)


if __name__ == "__main__":
    main()
