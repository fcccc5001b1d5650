"""Slide canvases as files: OUT/<slide_id>.tif (an ordinary tiled TIFF), with its provenance in `.tif.json`.

OUT/records/<slide_id>.json is the record of a finished canvas. OUT/canvases.csv lists all canvases: slide_id, path,
canvas, level, n_bad_tiles, mpp (of the canvas), mpp_source (of the slide).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longvit.data.slide_list import ListedSlide
from longvit.files import file_stem
from longvit.slide_jobs.job import SlideJob, read_record, write_table
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas

FOLDER = "records"
TABLE = "canvases.csv"
COLUMNS = ("slide_id", "path", "canvas", "level", "n_bad_tiles", "mpp", "mpp_source")


def canvas_slides(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    side_px: int,
    fit: Literal["stretch", "pad"] = "stretch",
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Writes a canvas of side_px × side_px per slide, and `canvases.csv` with all of them.

    A slide that fails becomes a row of `problems.csv`. Raises `InputError` for an invalid side or fit, or if `out_dir`
    cannot be written to.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> result = longvit.canvas_slides(slides, "canvases", side_px=256, fit="pad")
    >>> result.records[0]["file"]
    'CMU-1-Small-Region.tif'
    """
    from longvit.slides.placement import check_side_and_fit

    check_side_and_fit(side_px, fit)
    out_dir = Path(out_dir)
    read_settings, run_settings = read_settings or ReadSettings(), run_settings or RunSettings()
    parameters = {"side_px": side_px, "fit": fit}
    job = JobSpec(CanvasJob.verb, out_dir / FOLDER, parameters, lambda record: [out_dir / record["file"]])

    def build() -> CanvasJob:
        return CanvasJob(out_dir / FOLDER, side_px, fit, read_settings)

    result = run(build, job, slides, out_dir, read_settings, run_settings)
    write_table(out_dir / TABLE, COLUMNS, [table_row(record) for record in result.records])
    return result


def table_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Row of canvases.csv from a slide's record."""
    slide_mpp, canvas_mpp = record["mpp"], record["canvas"]["canvas_mpp"]
    return {
        "slide_id": record["slide_id"],
        "path": record["path"],
        "canvas": record["file"],
        "level": record["canvas"]["level"],
        "n_bad_tiles": record["n_bad_tiles"],
        "mpp": canvas_mpp[0] if canvas_mpp else "",
        "mpp_source": slide_mpp["source"] if slide_mpp else "",
    }


class CanvasJob(SlideJob):
    """Canvas job: slide -> canvas -> TIFF."""

    verb = "canvas"

    def canvas_path(self, slide_id: str) -> Path:
        """Path of the slide's canvas."""
        return self.folder.parent / f"{file_stem(slide_id)}.tif"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if the record has this digest and the file has the recorded size."""
        path = self.canvas_path(slide_id)
        record = read_record(self.record_path(slide_id))
        return record.get("digest") == digest and path.exists() and path.stat().st_size == record.get("bytes")

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        from longvit.slides.canvas import write_canvas

        path = write_canvas(canvas, self.canvas_path(listed.slide_id))
        return {"file": path.name, "bytes": path.stat().st_size}
