"""Batches of a small slide, as a script that can be killed: prints the processes that make them, then waits.

python region_run.py SLIDE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from longvit.data.crops import CropSettings
from longvit.data.region_batches import RegionBatches
from longvit.data.regions import RegionSettings, find_regions
from longvit.data.slide_list import ListedSlide

SETTINGS = RegionSettings(region_px=(64, 96), per_slide=12)
CROPS = CropSettings(global_px=32, local_px=16, local_crops=2)

if __name__ == "__main__":
    from longvit.data import region_batches

    class Told(region_batches.RegionProcess):
        """Says which process it is."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            print(self.process, flush=True)

    region_batches.RegionProcess = Told  # type: ignore[misc]
    path = Path(sys.argv[1])
    regions = find_regions([ListedSlide(path.stem, path)], SETTINGS, progress=False)
    for _ in RegionBatches(regions, CROPS, batch_size=4, workers=2).epoch(0):
        print("batch", flush=True)
        time.sleep(600)
