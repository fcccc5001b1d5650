"""What several commands ask for, in one wording."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from longvit.data.slide_list import ListedSlide
    from longvit.model.longvit import LongViT
    from longvit.slide_jobs import RunSettings, SlideJobsResult

SETTINGS = Group("Settings (also keys of a recipe)", sort_key=1)
Recipe = Annotated[
    str | None,
    Parameter(
        help="YAML file with settings, or the name of one that comes along (`longvit recipes` lists them).",
        show_default=False,
    ),
]
Model = Annotated[
    Path, Parameter(help="Model folder (config.json, model.safetensors), as `longvit train` and `convert` write it.")
]
Slides = Annotated[
    tuple[Path, ...],
    Parameter(
        help="Slide files, folders (searched to any depth), globs in quotes, or a CSV with a column slide_id, path or "
        "wsi, and optionally mpp."
    ),
]
SlidesDir = Annotated[
    Path | None, Parameter(help="Where the slides of a CSV lie (to any depth), if not beside it.", show_default=False)
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda (or cuda:1) or mps. auto takes a GPU where there is one.")]
Mpp = Annotated[
    float | None,
    Parameter(
        help="µm per pixel of the largest level, instead of what the file says. A column mpp of a CSV goes first."
    ),
]
Reader = Annotated[
    Literal["auto", "openslide", "tiff"],
    Parameter(help="Which reader decodes: tiff is the fast path for tiled TIFF and SVS; auto picks per slide."),
]
MaxBadTiles = Annotated[
    int | None,
    Parameter(
        help="Count a slide with more unreadable tiles than this as a problem. Without it they are filled with "
        "background and counted."
    ),
]
Threads = Annotated[
    int | None,
    Parameter(help="CPU threads of the model, in each worker. Default: one per core, divided by the workers."),
]
Workers = Annotated[
    int,
    Parameter(help="Processes that work at the same time, each with a model of its own (on each node of a cluster)."),
]
Cluster = Annotated[
    str | None,
    Parameter(
        help="A Dask scheduler, tcp://host:8786: its workers, on as many machines as it has, do the work. They must "
        "see the same files. Needs `pip install longvit[cluster]`.",
        show_default=False,
    ),
]
Retries = Annotated[int, Parameter(help="How often a slide is tried again that failed for a reason that may pass.")]
TimeoutS = Annotated[
    float, Parameter(help="Seconds after which a slide that is still being read is given up. 0: never.")
]


def model_and_run(
    folder: Path,
    device: str,
    threads: int | None,
    workers: int,
    cluster: str | None,
    retries: int,
    timeout_s: float,
) -> tuple[LongViT | Path, RunSettings]:
    """What a run over many slides needs: the model on its device, which is printed; or its folder, where others load
    it."""
    from longvit.device import pick_device, set_threads
    from longvit.slide_jobs import RunSettings
    from longvit.slide_jobs.job import config_of, load_longvit

    settings = RunSettings(
        workers, cluster, retries, timeout_s or None, reads_apart=True, device=device, threads=threads
    )
    if not settings.is_here:
        config_of(folder)
        where = "" if cluster is None else f" on each node of {cluster}"
        echo(f"model {folder} in {workers} process{'es' * (workers != 1)}{where}")
        return folder, settings
    set_threads(threads)
    chosen = pick_device(device)
    model = load_longvit(folder)
    echo(f"model {folder} on {chosen.name}")
    return model.to(chosen.device), settings


def listed_slides(slides: Sequence[Path], slides_dir: Path | None, out: Path) -> tuple[ListedSlide, ...]:
    """The slides that a command works on; what a search passed over is said, by one rank."""
    from longvit.data.slide_list import find_slides

    is_first = os.environ.get("RANK", "0") == "0"
    return find_slides(slides, slides_dir=slides_dir, leave_out=out, note=echo if is_first else lambda _: None)


def echo(text: Any) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    print(text, file=sys.stderr, flush=True)


def end_of_batch(result: SlideJobsResult, out: Path, results: str) -> int:
    """Prints what a run over many slides did; returns 1 where a slide has no result, or not its picture."""
    parts = [f"{len(result.done)} done"]
    if result.skipped:
        parts.append(f"{len(result.skipped)} finished before")
    if result.left_out:
        parts.append(f"{len(result.left_out)} without a result")
    if undrawn := sum(problem.stage == "picture" for problem in result.problems):
        parts.append(f"{undrawn} without a picture")
    if holes := len(result.problems) - len(result.left_out) - undrawn:
        parts.append(f"{holes} with unreadable tiles filled")
    if result.problems:
        parts[-1] += f", see {out / 'problems.csv'}"
    echo(f"{', '.join(parts)}. {results}")
    return 1 if result.left_out or undrawn else 0
