"""Processes that make crops of a small slide, as a script that can be killed: prints their numbers, then waits.

python region_run.py SLIDE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from longvit.data.slide_list import ListedSlide
from longvit.pretraining.regions.crops import CropSettings
from longvit.pretraining.regions.region_crops import CropJob, batch_bytes
from longvit.pretraining.regions.region_process import Part, RegionProcess, SharedMemory
from longvit.pretraining.regions.regions import RegionSettings, find_regions

SETTINGS = RegionSettings(region_px=(64, 96), per_slide=12)
CROPS = CropSettings(global_px=32, local_px=16, local_crops=2)

if __name__ == "__main__":
    path = Path(sys.argv[1])
    regions = find_regions([ListedSlide(path.stem, path)], SETTINGS, progress=False)
    processes = [RegionProcess(CropJob(regions, CROPS, 0), 60) for _ in range(2)]
    memory = SharedMemory(batch_bytes(CROPS, 2))
    for place, process in enumerate(processes):
        process.begin(Part(0, 2, (place,), (place,)), memory)
    for process in processes:
        process.finish()
        print(process.process, flush=True)
    time.sleep(600)
