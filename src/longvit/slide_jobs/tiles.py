"""Tiles of many slides: where they lie, as TRIDENT writes it, and a picture of each slide that shows them.

    OUT/20x_256px_0px_overlap/patches/<slide_id>_patches.h5   coords int64 (N, 2), with TRIDENT's attributes
    OUT/20x_256px_0px_overlap/patches/<slide_id>.json         where they came from: slide, mpp and its source, settings
    OUT/20x_256px_0px_overlap/visualization/<slide_id>.jpg    the slide, its tissue outlined, its tiles
    OUT/20x_256px_0px_overlap/tiles.csv                       slide_id, path, coordinates, tiles, tissue_mm2, …

A slide is read once, as a thumbnail. One without tissue has a file with no tiles: it is an answer, not a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.bag_layouts import tile_attributes, write_coordinates
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.figure import not_drawn
from longvit.files import file_stem, printable
from longvit.slide_jobs.job import SlideJob, read_record, write_table
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError, with_mpp
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas
    from longvit.slides.tiles import TileGrid, TileSettings
    from longvit.slides.tissue import Tissue, TissueSettings

PATCHES, PICTURES = "patches", "visualization"
TABLE = "tiles.csv"
COLUMNS = ("slide_id", "path", "coordinates", "tiles", "tissue_mm2", "ink_mm2", "n_bad_tiles", "mpp", "mpp_source")
_THUMBNAIL_PX = 1024


def tile_slides(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    tiles: TileSettings | None = None,
    tissue: TissueSettings | None = None,
    settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Writes the coordinates of every slide's tiles and a picture of them, and `tiles.csv` for all.

    Raises `InputError` where the folder cannot be written to; a slide that fails (no resolution, smaller than a tile,
    unreadable) becomes a row of `problems.csv`.
    """
    from longvit.slides.tiles import TileSettings
    from longvit.slides.tissue import TissueSettings

    tiles, tissue, settings = tiles or TileSettings(), tissue or TissueSettings(), settings or ReadSettings()
    folder = tile_folder(out_dir, tiles)
    facts = {"tiles": asdict(tiles), "tissue": asdict(tissue)}
    job = JobSpec(TilesJob.verb, folder / PATCHES, facts, lambda record: [folder / PATCHES / record["coordinates"]])

    def build() -> TilesJob:
        return TilesJob(folder / PATCHES, tiles, tissue, settings)

    result = run(build, job, slides, out_dir, settings, run_settings)
    rows = [{name: _cell(record, name) for name in COLUMNS} for record in result.records]
    write_table(folder / TABLE, COLUMNS, rows)
    return result


def tile_folder(out_dir: str | Path, tiles: TileSettings) -> Path:
    """OUT/20x_256px_0px_overlap, as TRIDENT names it: 20× stands for 0.5 µm/px."""
    return Path(out_dir) / f"{10 / tiles.mpp:.4g}x_{tiles.tile_px}px_{tiles.overlap_px}px_overlap"


def _cell(record: Mapping[str, Any], name: str) -> Any:
    if name in ("mpp", "mpp_source"):
        return record["mpp"]["x" if name == "mpp" else "source"]
    return record[name]


class TiledJob(SlideJob):
    """A job on the tiles of a slide: thumbnail -> tissue -> grid."""

    def __init__(
        self, folder: str | Path, tiles: TileSettings, tissue: TissueSettings, settings: ReadSettings | None = None
    ) -> None:
        super().__init__(folder, _THUMBNAIL_PX, "pad", settings)
        self.tiles, self.tissue = tiles, tissue
        self.rests_on = {"tiles": asdict(tiles), "tissue": asdict(tissue)}

    def request(self, listed: ListedSlide) -> ReadRequest:
        """A thumbnail that is at least as fine as the mask of the tissue."""
        settings = with_mpp(self.settings, listed.mpp)
        return ReadRequest(listed.path, self.side_px, self.fit, settings, coarsest_mpp=self.tissue.mpp)

    def tissue_and_grid(self, listed: ListedSlide, canvas: Canvas) -> tuple[Tissue, TileGrid]:
        """Raises `SlideFailedError` for a slide that has no place for a tile."""
        from longvit.slides.tiles import tile_grid
        from longvit.slides.tissue import tissue_of_canvas

        assert canvas.source.mpp is not None  # the request asked for it
        tissue = tissue_of_canvas(canvas, self.tissue)
        try:
            return tissue, tile_grid(tissue, canvas.source.mpp, self.tiles)
        except InputError as error:
            raise SlideFailedError("read", f"{listed.path}: {error}") from error

    def facts(self, tissue: Tissue, grid: TileGrid) -> dict[str, Any]:
        """What a record says of them."""
        return {
            "tiles": len(grid),
            "places": grid.places,
            "tile": asdict(self.tiles),
            "tile_level0_px": [grid.width_level0_px, grid.height_level0_px],
            "tissue": asdict(self.tissue),
            "tissue_mm2": round(tissue.area_mm2, 6),
            "ink_mm2": round(tissue.ink_mm2, 6),
            "glass": tissue.glass,
            "saturation_threshold": tissue.threshold,
        }

    def attributes(self, canvas: Canvas) -> dict[str, Any]:
        """TRIDENT's, of `coords`."""
        mpp = canvas.source.mpp
        assert mpp is not None
        settings = self.tiles
        return tile_attributes(
            tile_px=settings.tile_px,
            tile_mpp=settings.mpp,
            overlap_px=settings.overlap_px,
            mpp=(mpp.x, mpp.y),
            size_px=canvas.source.size_px,
        )


class TilesJob(TiledJob):
    """Slide -> coordinates of its tiles, and a picture."""

    verb = "tiles"

    @classmethod
    def of(cls, folder: Path, given: Mapping[str, Any], settings: ReadSettings) -> TilesJob:
        """As run.json describes it."""
        from longvit.slides.tiles import TileSettings
        from longvit.slides.tissue import TissueSettings

        return cls(folder, TileSettings(**given["tiles"]), TissueSettings(**given["tissue"]), settings)

    def coordinates_path(self, slide_id: str) -> Path:
        """The slide's coordinates."""
        return self.folder / f"{file_stem(slide_id)}_patches.h5"

    def picture_path(self, slide_id: str) -> Path:
        """The slide's picture."""
        return self.folder.parent / PICTURES / f"{file_stem(slide_id)}.jpg"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """The record is of this digest, and both files have the size that it says."""
        record = read_record(self.record_path(slide_id))
        paths = (self.coordinates_path(slide_id), self.picture_path(slide_id))
        return record.get("digest") == digest and has_sizes(paths, record.get("bytes"))

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        from longvit.slides.tile_overview import draw_tiles

        tissue, grid = self.tissue_and_grid(listed, canvas)
        attributes = self.attributes(canvas)
        path = write_coordinates(self.coordinates_path(listed.slide_id), listed.slide_id, grid.coords, attributes)
        title = printable(listed.slide_id)
        with not_drawn() as problems:
            picture = draw_tiles(canvas, tissue, grid, self.picture_path(listed.slide_id), title=title)
        sizes = [path.stat().st_size, picture.stat().st_size]
        problem = {"picture_problem": problems[0]} if problems else {}
        return {**self.facts(tissue, grid), "coordinates": path.name, "bytes": sizes, **problem}


def has_sizes(paths: Sequence[Path], sizes: Any) -> bool:
    """Whether all files are there, of these sizes."""
    try:
        return [path.stat().st_size for path in paths] == sizes
    except OSError:
        return False
