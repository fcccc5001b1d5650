"""Slide tiles: tile coordinates in TRIDENT's layout, and an overview image of each slide with its tiles.

    OUT/20x_256px_0px_overlap/patches/<slide_id>_patches.h5   coords int64 (N, 2), with TRIDENT's attributes
    OUT/20x_256px_0px_overlap/patches/<slide_id>.json         provenance: slide, mpp and its source, settings
    OUT/20x_256px_0px_overlap/visualization/<slide_id>.jpg    the slide with outlined tissue and tiles
    OUT/20x_256px_0px_overlap/tissue/<slide_id>.geojson       the tissue's outline, to be edited in QuPath
    OUT/20x_256px_0px_overlap/tiles.csv                       slide_id, path, coordinates, tiles, tissue_mm2, …

A slide is read once, as a thumbnail. A slide without tissue gets a file with no tiles; this is no problem. The rules
for annotations are in `longvit.annotations.slide_area`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.bag_layouts import tile_attributes, write_coordinates
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.figure import not_drawn
from longvit.files import file_stem, printable
from longvit.slide_jobs.job import SlideJob, read_record, write_table
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas
    from longvit.slides.tiles import TileGrid, TileSettings
    from longvit.slides.tissue import Tissue, TissueSettings

PATCHES, OVERVIEWS, TISSUE = "patches", "visualization", "tissue"
TABLE = "tiles.csv"
COLUMNS = ("slide_id", "path", "coordinates", "tiles", "tissue_mm2", "ink_mm2", "n_bad_tiles", "mpp", "mpp_source")
_THUMBNAIL_PX = 1024


def tile_slides(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    tiles: TileSettings | None = None,
    tissue: TissueSettings | None = None,
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Tiles slides: writes tile coordinates and an overview image per slide, and `tiles.csv` with all slides.

    A slide that fails (no resolution, smaller than a tile, unreadable) becomes a row of `problems.csv`. Raises
    `InputError` if `out_dir` cannot be written to.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> result = longvit.tile_slides(slides, "tiles", longvit.TileSettings(tile_px=256, mpp=0.5))
    >>> result.records[0]["coordinates"], result.records[0]["tiles"]
    ('CMU-1-Small-Region_patches.h5', 44)
    """
    from longvit.slides.tiles import TileSettings
    from longvit.slides.tissue import TissueSettings

    tiles, tissue = tiles or TileSettings(), tissue or TissueSettings()
    read_settings, run_settings = read_settings or ReadSettings(), run_settings or RunSettings()
    folder = tile_folder(out_dir, tiles)
    parameters = {"tiles": asdict(tiles), "tissue": asdict(tissue)}

    def files(record: Mapping[str, Any]) -> list[Path]:
        outline = record.get("tissue_outline")  # runs of before have none
        return [folder / PATCHES / record["coordinates"], *([folder / TISSUE / outline] if outline else [])]

    def build() -> TilesJob:
        return TilesJob(folder / PATCHES, tiles, tissue, read_settings)

    job = JobSpec(TilesJob.verb, folder / PATCHES, parameters, files)
    result = run(build, job, slides, out_dir, read_settings, run_settings)
    rows = [{name: _column_value(record, name) for name in COLUMNS} for record in result.records]
    write_table(folder / TABLE, COLUMNS, rows)
    return result


def tile_folder(out_dir: str | Path, tiles: TileSettings) -> Path:
    """Folder of a tiling, e.g. OUT/20x_256px_0px_overlap, as TRIDENT names it: 20× means 0.5 µm/px."""
    return Path(out_dir) / f"{10 / tiles.mpp:.4g}x_{tiles.tile_px}px_{tiles.overlap_px}px_overlap"


def _column_value(record: Mapping[str, Any], name: str) -> Any:
    if name in ("mpp", "mpp_source"):
        return record["mpp"]["x" if name == "mpp" else "source"]
    return record[name]


@dataclass(frozen=True)
class SlideTiles:
    """Tissue and tiles of one slide."""

    tissue: Tissue
    grid: TileGrid
    annotations: Mapping[str, Any] | None
    """Provenance of the annotations that limited them."""


class TiledJob(SlideJob):
    """Slide job on tiles: thumbnail -> tissue -> grid."""

    def __init__(
        self, folder: str | Path, tiles: TileSettings, tissue: TissueSettings, settings: ReadSettings | None = None
    ) -> None:
        super().__init__(folder, _THUMBNAIL_PX, "pad", settings)
        self.tiles, self.tissue = tiles, tissue
        self.digest_inputs = {"tiles": asdict(tiles), "tissue": asdict(tissue)}

    def request(self, listed: ListedSlide) -> ReadRequest:
        """Read request for a thumbnail of the whole slide, at least as fine as the tissue mask."""
        return replace(super().request(listed), is_blanked=False, coarsest_mpp=self.tissue.mpp)

    def slide_tiles(self, listed: ListedSlide, canvas: Canvas) -> SlideTiles:
        """Tissue and tiles of a slide. Raises `SlideFailedError` for a slide smaller than a tile and for damaged
        annotations."""
        from longvit.slides.tiles import tile_grid
        from longvit.slides.tissue import tissue_of_canvas

        assert canvas.source.mpp is not None  # the read request requires it
        file = self.area_file(listed)
        try:
            area = None if file is None else file.read(canvas.placement.bounds)
        except InputError as error:
            raise SlideFailedError.from_error("read", error) from error
        tissue = tissue_of_canvas(canvas, self.tissue)
        if area is not None and area.tissue is not None:
            tissue = replace(tissue, mask=area.tissue.inside(*tissue.centres()), ink_mm2=0.0)
        try:
            grid = tile_grid(tissue, canvas.source.mpp, self.tiles, None if area is None else area.for_tiles)
        except InputError as error:
            raise SlideFailedError("read", f"{listed.path}: {error}") from error
        return SlideTiles(tissue, grid, None if area is None else area.record)

    def tiling_record(self, tiles: SlideTiles) -> dict[str, Any]:
        """Entries of a record on tissue and tiles."""
        tissue, grid = tiles.tissue, tiles.grid
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
            **({} if tiles.annotations is None else {"regions": dict(tiles.annotations)}),
        }

    def attributes(self, canvas: Canvas) -> dict[str, Any]:
        """HDF5 attributes of `coords`, as TRIDENT writes them."""
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
    """Tiling job: slide -> tile coordinates and an overview image."""

    verb = "tiles"

    @classmethod
    def from_parameters(cls, folder: Path, given: Mapping[str, Any], settings: ReadSettings) -> TilesJob:
        """Job with the parameters stored in run.json."""
        from longvit.slides.tiles import TileSettings
        from longvit.slides.tissue import TissueSettings

        return cls(folder, TileSettings(**given["tiles"]), TissueSettings(**given["tissue"]), settings)

    def coordinates_path(self, slide_id: str) -> Path:
        """Path of the slide's tile coordinates."""
        return self.folder / f"{file_stem(slide_id)}_patches.h5"

    def overview_path(self, slide_id: str) -> Path:
        """Path of the slide's overview image."""
        return self.folder.parent / OVERVIEWS / f"{file_stem(slide_id)}.jpg"

    def outline_path(self, slide_id: str) -> Path:
        """Path of the outline of the slide's tissue."""
        return self.folder.parent / TISSUE / f"{file_stem(slide_id)}.geojson"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if the record has this digest and its files have the recorded sizes."""
        record = read_record(self.record_path(slide_id))
        paths = [self.coordinates_path(slide_id), self.overview_path(slide_id)]
        if "tissue_outline" in record:
            paths.append(self.outline_path(slide_id))
        return record.get("digest") == digest and has_sizes(paths, record.get("bytes"))

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        from longvit.annotations.tissue_outline import write_tissue_outline
        from longvit.slides.tile_overview import draw_tiles

        tiles = self.slide_tiles(listed, canvas)
        tissue, grid = tiles.tissue, tiles.grid
        attributes = self.attributes(canvas)
        path = write_coordinates(self.coordinates_path(listed.slide_id), listed.slide_id, grid.coords, attributes)
        title = printable(listed.slide_id)
        with not_drawn() as plot_problems:
            overview = draw_tiles(canvas, tissue, grid, self.overview_path(listed.slide_id), title=title)
        outline = write_tissue_outline(self.outline_path(listed.slide_id), tissue, listed.slide_id)
        sizes = [file.stat().st_size for file in (path, overview, outline)]
        files = {"coordinates": path.name, "tissue_outline": outline.name, "bytes": sizes}
        problem = {"picture_problem": plot_problems[0]} if plot_problems else {}
        return {**self.tiling_record(tiles), **files, **problem}


def has_sizes(paths: Sequence[Path], sizes: Any) -> bool:
    """True if all files exist and have these sizes."""
    try:
        return [path.stat().st_size for path in paths] == sizes
    except OSError:
        return False
