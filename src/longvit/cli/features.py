"""`longvit features SLIDES… --encoder NAME`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import (
    WORKERS,
    Out,
    Reading,
    Slides,
    SlidesDir,
    Tiling,
    TilingSettings,
    TissueMask,
    WorkerSettings,
    echo,
    listed_slides,
    print_outcome,
)
from longvit.cli.tiles import print_tile_counts
from longvit.slide_jobs.reading import ReadSettings
from longvit.slides.tissue import TissueSettings


@dataclass(frozen=True)
class EncoderWorkerSettings(WorkerSettings):
    """Worker settings with a longer time limit, because encoding tiles takes longer than reading a canvas."""

    timeout_s: float | None = 14_400.0
    """Seconds after which a slide that is still being processed is given up. 0: never."""


def features(
    slides: Slides,
    /,
    *,
    encoder: Annotated[
        str,
        Parameter(
            help="stain-texture (colour and texture statistics, no download), a published encoder as NAME=FILE or NAME "
            "(`longvit encoders` lists them), timm:NAME if timm is installed, "
            "hipt:FILE (ViT-256), longvit:FOLDER (or longvit:longvit-tiny-stem, which ships with the package), "
            "torchscript:FILE or export:FILE. The last two run the program in the file: open only files that you trust."
        ),
    ] = "stain-texture",
    out: Out = Path("tiles"),
    layout: Annotated[
        Literal["trident", "clam"],
        Parameter(help="File layout: trident, one .h5 per slide; clam, folders h5_files and pt_files."),
    ] = "trident",
    batch: Annotated[int, Parameter(help="Tiles per forward pass of the encoder.")] = 64,
    download: Annotated[
        bool,
        Parameter(negative="", help="Fetch the weights of a published encoder from the hub if they are not here."),
    ] = False,
    slides_dir: SlidesDir = None,
    tiling: Tiling = TilingSettings(),
    tissue: TissueMask = TissueSettings(),
    reading: Reading = ReadSettings(),
    workers: Annotated[EncoderWorkerSettings, WORKERS] = EncoderWorkerSettings(),
) -> int:
    """Encode the tiles of slides: a vector per tile, as feature bags for multiple-instance learning.

    Writes, in `OUT/20x_256px_0px_overlap/features_<encoder>`, `<slide_id>.h5` in TRIDENT's layout (or `h5_files` and
    `pt_files` in CLAM's) with a `.json` of its provenance, and `features.csv`. Tiles are those of `longvit tiles` with
    the same settings. Finished slides are skipped when the command is run again. A slide that cannot be read becomes a
    row of `OUT/problems.csv` and exit code 1; the run continues.

    **Examples**

    ```
    longvit features slides/ --out job --encoder stain-texture
    longvit features slides/ --out job --encoder longvit:longvit-tiny-stem
    longvit features slides/ --out job --encoder longvit:run/model --workers 4
    longvit features slides/ --out job --encoder uni2-h=pytorch_model.bin
    longvit features slides/ --out job --encoder phikon-v2 --tile-px 224 --download
    longvit features slides/ --out job --encoder timm:resnet50.a1_in1k --layout clam
    longvit features cohort.csv --slides-dir /data/slides --out job --encoder hipt:vit256_small_dino.pth
    longvit features slides/ --out job --regions annotations/ --exclude-class Artefact
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs.features import TABLE, encoder_needs_torch, feature_folder, feature_slides

    folder = feature_folder(out, tiling, encoder)
    if workers.is_here and encoder_needs_torch(encoder):
        from longvit.device import pick_device

        echo(f"encoder {encoder} on {pick_device(workers.device).name}")
    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = feature_slides(
        listed, out, encoder, tiling, tissue, reading, workers, layout=layout, batch=batch, download=download
    )
    print_tile_counts(result)
    return print_outcome(result, out, f"Features: {folder / TABLE}")
