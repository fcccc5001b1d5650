"""`longvit tiles SLIDES…`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import (
    Cluster,
    MaxBadTiles,
    Mpp,
    Reader,
    Retries,
    Slides,
    SlidesDir,
    Threads,
    TimeoutS,
    Workers,
    echo,
    end_of_batch,
    listed_slides,
)

if TYPE_CHECKING:
    from longvit.slide_jobs import SlideJobsResult
    from longvit.slides.tissue import TissueSettings

TilePx = Annotated[int, Parameter(help="Side of a tile in pixels, as the encoder sees it.")]
TileMpp = Annotated[
    float,
    Parameter(help="µm per pixel of the tiles, whatever the slide's own: 0.5 is what scanners call 20×, 0.25 40×."),
]
OverlapPx = Annotated[int, Parameter(help="By how much neighbouring tiles overlap, in pixels of the tile.")]
MinTissue = Annotated[float, Parameter(help="Least share of a tile that is tissue, 0 to 1. 0 takes the whole grid.")]
MinPieceUm2 = Annotated[float, Parameter(help="Pieces of tissue smaller than this, in µm², are left out.")]
MaxHoleUm2 = Annotated[float, Parameter(help="Holes in the tissue up to this, in µm², belong to it.")]


def tiles(
    slides: Slides,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("tiles"),
    tile_px: TilePx = 256,
    tile_mpp: TileMpp = 0.5,
    overlap_px: OverlapPx = 0,
    min_tissue: MinTissue = 0.25,
    min_piece_um2: MinPieceUm2 = 30_000.0,
    max_hole_um2: MaxHoleUm2 = 50_000.0,
    mpp: Mpp = None,
    max_bad_tiles: MaxBadTiles = None,
    reader: Reader = "auto",
    slides_dir: SlidesDir = None,
    threads: Threads = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    retries: Retries = 2,
    timeout_s: TimeoutS = 1800.0,
) -> int:
    """Finds the tissue of slides and cuts it into tiles: their coordinates, and a picture to check them by.

    Writes, in `OUT/20x_256px_0px_overlap` (named after the settings), `patches/<slide_id>_patches.h5` in TRIDENT's
    layout with a `.json` that says where it came from, `visualization/<slide_id>.jpg`, and `tiles.csv`. Coordinates are
    top-left corners in pixels of the largest level. A slide without tissue has no tiles, which is no problem. Finished
    slides are skipped when the command is given again; a slide that cannot be read, has no resolution or is smaller
    than a tile costs one row of `OUT/problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit tiles slides/ --out job
    longvit tiles slides/ --out job --tile-px 512 --tile-mpp 0.25 --overlap-px 64
    longvit tiles cohort.csv --slides-dir /data/slides --out job --min-tissue 0.5 --workers 4
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs import ReadSettings, RunSettings, tile_slides
    from longvit.slide_jobs.tiles import TABLE, tile_folder
    from longvit.slides.tiles import TileSettings

    wanted = TileSettings(tile_px, tile_mpp, overlap_px, min_tissue)
    tissue = tissue_settings(min_piece_um2, max_hole_um2)
    run = RunSettings(workers, cluster, retries, timeout_s or None, reads_apart=True, threads=threads)
    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = tile_slides(listed, out, wanted, tissue, ReadSettings(mpp, reader, max_bad_tiles), run)
    say_counts(result)
    return end_of_batch(result, out, f"Tiles: {tile_folder(out, wanted) / TABLE}")


def tissue_settings(min_piece_um2: float, max_hole_um2: float) -> TissueSettings:
    """From the command line."""
    from longvit.errors import InputError
    from longvit.slides.tissue import TissueSettings

    for name, value in (("min-piece-um2", min_piece_um2), ("max-hole-um2", max_hole_um2)):
        if value < 0:
            raise InputError(f"--{name} {value:g}: at least 0")
    return TissueSettings(min_piece_um2=min_piece_um2, max_hole_um2=max_hole_um2)


def say_counts(result: SlideJobsResult) -> None:
    """How many tiles there are, and which slides have none."""
    records: Sequence[dict[str, Any]] = result.records
    total = sum(record["tiles"] for record in records)
    blank = [record["slide_id"] for record in records if not record["tiles"]]
    echo(f"{total:,} tiles on {len(records) - len(blank):,} slides")
    if blank:
        more = f" and {len(blank) - 5} more" if len(blank) > 5 else ""
        echo(f"no tiles on {len(blank)}: {', '.join(blank[:5])}{more}")
