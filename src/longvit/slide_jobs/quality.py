"""Quality of slides: focus, folds, bubbles and pen of each slide, and a verdict.

    OUT/slides/<slide_id>.json   measures and their settings
    OUT/slides/<slide_id>.jpg    thumbnail with what was found
    OUT/qc.csv                   a row per slide; one that cannot be checked has its reason

A slide is read once as a thumbnail of 8 µm/px (at most 1,024 px a side), and at up to 16 places at 0.5 µm/px for the
focus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.qc_table import COLUMNS, QC_CSV
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, write_bytes
from longvit.quality import focus, verdict
from longvit.quality.bubbles import find_bubbles
from longvit.quality.folds import find_folds
from longvit.quality.overview import MPP, overview_of
from longvit.quality.pen import COLOURS, find_pen
from longvit.quality.thumbnail import draw_thumbnail
from longvit.slide_jobs.job import SlideJob, write_table
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, with_mpp
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run
from longvit.slide_jobs.tile_process import SILENCE_S, TileProcess
from longvit.slide_jobs.tile_reader import ThreadTiles, TileReader, TilesRequest
from longvit.slides.tiles import TileSettings, tile_grid

if TYPE_CHECKING:
    from longvit.quality.overview import Overview
    from longvit.slides.canvas import Canvas
    from longvit.slides.mpp import Mpp
    from longvit.slides.tissue import Tissue

SLIDES = "slides"
_LEAST_PX, _MOST_PX = 256, 1024
_MEASURES = 1
"""Version of the measures; a change makes a rerun check all slides again."""


def check_slides(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> tuple[SlideJobsResult, list[dict[str, Any]]]:
    """Checks slides; writes `qc.csv` and returns the result with the rows of that table, in the order of the list.

    A slide that cannot be checked (unreadable, no resolution) is a row that fails. Raises `InputError` if `out_dir`
    cannot be written to.

    >>> import longvit
    >>> from longvit.slide_jobs.quality import check_slides
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> result, rows = check_slides(slides, "qc")
    >>> rows[0]["opens"], rows[0]["mpp"]
    ('yes', 0.499)
    """
    out_dir, read_settings = Path(out_dir), read_settings or ReadSettings()
    run_settings = run_settings or RunSettings()
    folder = out_dir / SLIDES
    reader: TileReader = ThreadTiles(run_settings.threads)
    if run_settings.is_here and run_settings.reads_apart:
        reader = TileProcess(probe_timeout(run_settings.timeout_s), run_settings.threads)

    def build() -> QualityJob:
        return QualityJob(folder, read_settings, reader)

    def files(record: Mapping[str, Any]) -> list[Path]:
        return [folder / record["thumbnail"]]

    try:
        result = run(build, JobSpec(QualityJob.verb, folder, {}, files), slides, out_dir, read_settings, run_settings)
    finally:
        reader.stop()
    rows = _rows(slides, result)
    write_table(out_dir / QC_CSV, COLUMNS, rows)
    return result, rows


def probe_timeout(timeout_s: float | None) -> float | None:
    """Seconds without output after which the process that reads probes is killed; None: never."""
    return None if timeout_s is None else min(timeout_s, SILENCE_S)


class QualityJob(SlideJob):
    """Quality job: slide -> overview and probes -> measures, verdict and thumbnail."""

    verb = "qc"

    def __init__(
        self, folder: str | Path, settings: ReadSettings | None = None, reader: TileReader | None = None
    ) -> None:
        super().__init__(folder, _LEAST_PX, "pad", settings)
        self.reader = reader or ThreadTiles()
        self.digest_inputs = {"measures": _MEASURES}

    def request(self, listed: ListedSlide) -> ReadRequest:
        """Read request for the overview."""
        settings = with_mpp(self.settings, listed.mpp)
        return ReadRequest(listed.path, self.side_px, self.fit, settings, coarsest_mpp=MPP, most_px=_MOST_PX)

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if the record has this digest and the thumbnail exists."""
        return super().is_finished(slide_id, digest) and self.thumbnail_path(slide_id).exists()

    def thumbnail_path(self, slide_id: str) -> Path:
        """Path of the slide's thumbnail."""
        return self.folder / f"{file_stem(slide_id)}.jpg"

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        begun = time.monotonic()
        overview = _overview(canvas)
        tissue = overview.tissue
        bubbles, pen = find_bubbles(overview), find_pen(overview)
        inked = np.logical_or.reduce([mark.mask for mark in pen.values()])
        folds = find_folds(overview, apart=inked | bubbles.mask)
        pen_share = float(inked.sum()) / max(1, int((tissue.mask | inked).sum()))
        sharpness = self._focus(listed, canvas, tissue)
        n_bad = len(canvas.bad_tiles) + self.reader.bad_tiles
        shares = {"folds": folds.share, "bubbles": bubbles.share, "pen": pen_share}
        judged = verdict.verdict_of(tissue.area_mm2, sharpness, shares, n_bad)
        masks = {"folds": folds.mask, "bubbles": bubbles.mask, "pen": inked}
        path = self.thumbnail_path(listed.slide_id)
        write_bytes(path, draw_thumbnail(overview, masks))
        return {
            "verdict": asdict(judged),
            "tissue_mm2": round(tissue.area_mm2, 6),
            "tissue_share": round(float(tissue.mask.mean()), 4),
            "focus": asdict(sharpness),
            "shares": {name: round(share, 4) for name, share in shares.items()},
            "pen_colours": [colour for colour in COLOURS if pen[colour].share > 0],
            "overview_mpp": tissue.px_um[0],
            "n_bad_tiles": n_bad,
            "n_file_tiles": canvas.tiles + self.reader.file_tiles,
            "seconds": round(self.read_s + time.monotonic() - begun, 3),
            "thumbnail": path.name,
        }

    def _focus(self, listed: ListedSlide, canvas: Canvas, tissue: Tissue) -> focus.Focus:
        """Focus at places that are spread evenly over the tissue."""
        self.reader.bad_tiles = self.reader.file_tiles = 0
        mpp = canvas.source.mpp
        assert mpp is not None  # the read request requires it
        try:
            grid = tile_grid(tissue, mpp, _probe_settings(mpp))
        except InputError:  # a slide smaller than a probe
            return focus.focus_of(())
        if not len(grid):
            return focus.focus_of(())
        chosen = np.unique(np.linspace(0, len(grid) - 1, focus.PROBES).round().astype(int))
        grid = replace(grid, coords=grid.coords[chosen], tissue=grid.tissue[chosen])
        values: list[float | None] = []
        with closing(self.reader.tiles(TilesRequest(listed.path, grid, self.request(listed).settings))) as blocks:
            for block in blocks:
                values += [focus.probe_focus(pixels, tissue.glass) for pixels in block.pixels]
        return focus.focus_of(values)


def _probe_settings(mpp: Mpp) -> TileSettings:
    """Probes at the slide's own resolution where that is coarser than the probes'."""
    return TileSettings(tile_px=focus.PROBE_PX, mpp=max(focus.MPP, mpp.mean), min_tissue=0.5)


def _overview(canvas: Canvas) -> Overview:
    box, source = canvas.placement.image_box, canvas.source
    assert source.mpp is not None  # the read request requires it
    rows, columns = slice(int(box.y), int(box.bottom)), slice(int(box.x), int(box.right))
    return overview_of(canvas.pixels[rows, columns], canvas.placement.bounds, source.mpp, source.background)


def _rows(slides: Sequence[ListedSlide], result: SlideJobsResult) -> list[dict[str, Any]]:
    """Rows of qc.csv, in the order of the list."""
    records = {record["slide_id"]: record for record in result.records}
    problems = {problem.slide: problem for problem in result.left_out}
    rows = []
    for listed in slides:
        record = records.get(listed.slide_id)
        row: dict[str, Any] = {"slide_id": listed.slide_id, "path": str(listed.path)}
        if record is not None:
            row |= _measured(record)
        else:
            problem = problems[listed.slide_id]
            row |= {"qc": "fail", "reason": problem.error, "opens": "no" if problem.stage == "open" else ""}
        rows.append(row)
    return rows


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    slide, judged = record["canvas"]["slide"], record["verdict"]
    octaves = record["focus"]["octaves"]
    return {
        "qc": judged["grade"],
        "reason": "; ".join(judged["reasons"]),
        "opens": "yes",
        "reader": slide["reader"],
        "width_px": slide["size_px"][0],
        "height_px": slide["size_px"][1],
        "mpp": record["mpp"]["x"],
        "mpp_source": record["mpp"]["source"],
        "tissue_mm2": record["tissue_mm2"],
        "tissue_share": record["tissue_share"],
        "focus": "" if octaves is None else round(octaves, 3),
        "blurred_share": round(record["focus"]["blurred_share"], 4),
        "fold_share": record["shares"]["folds"],
        "bubble_share": record["shares"]["bubbles"],
        "pen_share": record["shares"]["pen"],
        "pen_colours": " ".join(record["pen_colours"]),
        "n_bad_tiles": record["n_bad_tiles"],
        "seconds": record["seconds"],
        "badness": round(judged["badness"], 4),
    }
