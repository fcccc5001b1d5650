"""Canvases of many slides, as files: OUT/<slide_id>.tif (an ordinary tiled TIFF) with `.tif.json` beside it.

OUT/records/<slide_id>.json says that a canvas is done, and OUT/canvases.csv lists them: slide_id, path, canvas, level,
n_bad_tiles, mpp (of the canvas) and where the slide's came from.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Writes a canvas of side_px × side_px per slide, and `canvases.csv` for all of them.

    Raises `InputError` for a side or fit that there is not, and where the folder cannot be written to; a slide that
    fails becomes a row of `problems.csv`.
    """
    from longvit.slides.placement import check_side_and_fit

    check_side_and_fit(side_px, fit)
    out_dir, settings = Path(out_dir), settings or ReadSettings()
    facts = {"side_px": side_px, "fit": fit}
    job = JobSpec(CanvasJob.verb, out_dir / FOLDER, facts, lambda record: [out_dir / record["file"]])
    result = run(
        lambda: CanvasJob(out_dir / FOLDER, side_px, fit, settings), job, slides, out_dir, settings, run_settings
    )
    rows = []
    for record in result.records:
        source, mpp = record["mpp"], record["canvas"]["canvas_mpp"]
        cells = {name: record[name] for name in ("slide_id", "path", "n_bad_tiles")}
        more = {"canvas": record["file"], "level": record["canvas"]["level"]}
        rows.append({**cells, **more, "mpp": mpp[0] if mpp else "", "mpp_source": source["source"] if source else ""})
    write_table(out_dir / TABLE, COLUMNS, rows)
    return result


class CanvasJob(SlideJob):
    """Slide -> canvas -> TIFF."""

    verb = "canvas"

    def canvas_path(self, slide_id: str) -> Path:
        """The slide's canvas."""
        return self.folder.parent / f"{file_stem(slide_id)}.tif"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """The record is of this digest, and the file has the size that it says."""
        path = self.canvas_path(slide_id)
        record = read_record(self.record_path(slide_id))
        return record.get("digest") == digest and path.exists() and path.stat().st_size == record.get("bytes")

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        from longvit.slides.canvas import write_canvas

        path = write_canvas(canvas, self.canvas_path(listed.slide_id))
        return {"file": path.name, "bytes": path.stat().st_size}
