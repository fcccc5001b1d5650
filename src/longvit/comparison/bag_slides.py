"""slides.csv of a comparison: its slides with patients, labels and the content hash of their features.

The table is that of a fine-tuning (`finetuning.run_slides`), with features in place of slide files: the same tiles by
the same encoder are the same content, whatever the file is called.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from longvit.comparison.bag_cohort import BagCohort
from longvit.data.bags import read_bag
from longvit.errors import InputError
from longvit.finetuning.run_slides import SLIDES_CSV, read_run_slides, write_run_slides
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import task_class


def feature_hashes(bag_cohort: BagCohort) -> dict[str, str]:
    """slide_id -> 32 hex digits over the features of its tiles; a slide without features is absent."""
    hashes = {}
    for slide, path in bag_cohort.paths.items():
        kept = bag_cohort.kept.get(slide)
        try:
            whole = kept is not None and kept.slides == (slide,)
            features = kept.features if kept is not None and whole else read_bag(path).features
        except InputError:  # it was readable before; the trial that needs it reports the error
            continue
        hashes[slide] = hashlib.blake2b(features.tobytes(), digest_size=16).hexdigest()
    return hashes


def write_bag_slides(folder: Path, bag_cohort: BagCohort, settings: TaskSettings) -> None:
    """Writes slides.csv, unless the folder has one with the same slides."""
    rows = bag_cohort.cohort.rows
    known = read_run_slides(folder)
    if known is not None and [row.slide_id for row in known.rows] == [row.slide_id for row in rows]:
        return
    task = task_class(settings.task)(bag_cohort.cohort, settings)
    write_run_slides(folder / SLIDES_CSV, task, rows, feature_hashes(bag_cohort))
