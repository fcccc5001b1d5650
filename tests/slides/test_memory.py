"""The memory of a canvas is that of its raster and a few rows of tiles, whatever the slide and the threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.slides.slide_files import write_gigapixel

SCRIPT = """
import sys
import numpy as np
from longvit.slides.reader import open_slide
from longvit.slides.strips import canvas_strips

slide = open_slide(sys.argv[1])
raster = np.full((4096, 4096, 3), 1, np.uint8)  # what the whole canvas takes
first, end = map(int, sys.argv[2:4])
for strip in canvas_strips(slide, 4096, rows=(first, end), strip_px=64, threads=16):
    assert not strip.bad_tiles
    raster[strip.y_px : strip.y_px + len(strip.pixels)] = strip.pixels
assert slide.reader == "tiff", slide.reader_reason
assert raster[first:end].std() > 20
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
def test_100_000_px_slide_to_a_canvas_of_4096_stays_under_1_gb(tmp_path: Path) -> None:
    """Two stretches of the canvas, an eighth of its work: `benchmarks/canvas.py` does a whole one.

    With 16 threads, so that what is in flight is as much as the memory budget allows.
    """
    path = write_gigapixel(tmp_path / "giga.tif", 100_000)
    peaks_mb = []
    for first, end in [(0, 96), (2000, 2192)]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path), str(first), str(end)], capture_output=True, text=True, check=True
        )
        peaks_mb.append(int(done.stdout) / 1024)
    print(f"peak memory: {peaks_mb[0]:.0f} and {peaks_mb[1]:.0f} MB")
    assert max(peaks_mb) < 1000
    # Twice the rows take no more: the memory does not grow with the work.
    assert peaks_mb[1] < peaks_mb[0] + 100
