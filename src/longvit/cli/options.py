"""What several commands ask for, in one wording."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from longvit.errors import InputError

if TYPE_CHECKING:
    from longvit.batch import BatchResult
    from longvit.model.longvit import LongViT

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
    Path | None, Parameter(help="Where the slides of a CSV lie, if not beside it.", show_default=False)
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
Threads = Annotated[int | None, Parameter(help="CPU threads of the model. Default: one per core.")]


def load_longvit(folder: Path, device: str, threads: int | None) -> LongViT:
    """A LongViT on the device that was asked for; the choice is printed."""
    from longvit.device import pick_device, set_threads

    set_threads(threads)
    chosen = pick_device(device)
    from longvit.model.longvit import LongViT
    from longvit.model.pretrained import load_model

    model = load_model(folder)
    if not isinstance(model, LongViT):
        raise InputError(f"{folder}: a {type(model).__name__}: it reads tile features, not slides; use it from Python")
    say(f"model {folder} on {chosen.name}")
    return model.to(chosen.device)


def say(text: Any) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    print(text, file=sys.stderr, flush=True)


def end_of_batch(result: BatchResult, out: Path, results: str) -> int:
    """Prints what a run over many slides did; returns 1 where a slide has no result."""
    parts = [f"{len(result.done)} done"]
    if result.skipped:
        parts.append(f"{len(result.skipped)} finished before")
    if result.left_out:
        parts.append(f"{len(result.left_out)} without a result")
    if holes := len(result.problems) - len(result.left_out):
        parts.append(f"{holes} with unreadable tiles filled")
    if result.problems:
        parts[-1] += f", see {out / 'problems.csv'}"
    say(f"{', '.join(parts)}. {results}")
    return 1 if result.left_out else 0
