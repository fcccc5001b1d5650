"""`longvit features SLIDES… --encoder NAME`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import (
    Cluster,
    Device,
    MaxBadTiles,
    Mpp,
    Reader,
    Retries,
    Slides,
    SlidesDir,
    Threads,
    Workers,
    echo,
    end_of_batch,
    listed_slides,
)
from longvit.cli.tiles import (
    MaxHoleUm2,
    MinPieceUm2,
    MinTissue,
    OverlapPx,
    TileMpp,
    TilePx,
    say_counts,
    tissue_settings,
)


def features(
    slides: Slides,
    /,
    *,
    encoder: Annotated[
        str,
        Parameter(
            help="stain-texture (colour and texture statistics, no download), timm:NAME where timm is installed, "
            "hipt:FILE (ViT-256), longvit:FOLDER (or longvit:longvit-tiny-dino, which comes along), torchscript:FILE "
            "or export:FILE. The last two run the program in the file: open only those that you trust."
        ),
    ] = "stain-texture",
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("tiles"),
    layout: Annotated[
        Literal["trident", "clam"], Parameter(help="Whose files to write: one .h5 per slide, or h5_files and pt_files.")
    ] = "trident",
    tile_px: TilePx = 256,
    tile_mpp: TileMpp = 0.5,
    overlap_px: OverlapPx = 0,
    min_tissue: MinTissue = 0.25,
    min_piece_um2: MinPieceUm2 = 30_000.0,
    max_hole_um2: MaxHoleUm2 = 50_000.0,
    batch: Annotated[int, Parameter(help="Tiles that the encoder gets at once.")] = 64,
    device: Device = "auto",
    mpp: Mpp = None,
    max_bad_tiles: MaxBadTiles = None,
    reader: Reader = "auto",
    slides_dir: SlidesDir = None,
    threads: Threads = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    retries: Retries = 2,
    timeout_s: Annotated[
        float, Parameter(help="Seconds after which a slide that is still being worked on is given up. 0: never.")
    ] = 14_400.0,
) -> int:
    """A vector for every tile of every slide: feature bags, as multiple-instance learning wants them.

    Writes, in `OUT/20x_256px_0px_overlap/features_<encoder>`, `<slide_id>.h5` in TRIDENT's layout (or `h5_files` and
    `pt_files` in CLAM's) with a `.json` that says where it came from, and `features.csv`. Tiles are those of
    `longvit tiles` with the same settings. Finished slides are skipped when the command is given again; a slide that
    cannot be read costs one row of `OUT/problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit features slides/ --out job --encoder stain-texture
    longvit features slides/ --out job --encoder longvit:longvit-tiny-dino
    longvit features slides/ --out job --encoder longvit:run/model --workers 4
    longvit features slides/ --out job --encoder timm:resnet50.a1_in1k --layout clam
    longvit features cohort.csv --slides-dir /data/slides --out job --encoder hipt:vit256_small_dino.pth
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs import ReadSettings, RunSettings, feature_slides
    from longvit.slide_jobs.features import TABLE, encoder_needs_torch, feature_folder
    from longvit.slides.tiles import TileSettings

    wanted = TileSettings(tile_px, tile_mpp, overlap_px, min_tissue)
    tissue = tissue_settings(min_piece_um2, max_hole_um2)
    folder = feature_folder(out, wanted, encoder)
    run = RunSettings(workers, cluster, retries, timeout_s or None, reads_apart=True, device=device, threads=threads)
    if run.is_here and encoder_needs_torch(encoder):
        from longvit.device import pick_device

        echo(f"encoder {encoder} on {pick_device(device).name}")
    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = feature_slides(
        encoder,
        listed,
        out,
        wanted,
        tissue,
        ReadSettings(mpp, reader, max_bad_tiles),
        run,
        layout=layout,
        batch=batch,
    )
    say_counts(result)
    return end_of_batch(result, out, f"Features: {folder / TABLE}")
