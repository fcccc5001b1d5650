"""Slide embeddings computed by several ranks: each reads and embeds its strip (`longvit embed` under torchrun).

Writes the same files as `embed`, without workers. All ranks of a sequence work on one slide; the data axis divides the
slides. A slide that one rank cannot read is left out by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.annotations.area_file import check_annotations
from longvit.data.problems import PROBLEMS_CSV, Problem, problem_rows, problems_of_rows, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import make_folder
from longvit.progress import Progress
from longvit.slide_jobs.embed import FOLDER, EmbedJob, write_embeddings
from longvit.slide_jobs.job import read_record
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError
from longvit.slide_jobs.run import SlideJobsResult
from longvit.slides.pixel_reader import BadTile

if TYPE_CHECKING:
    from longvit.annotations.slide_area import SlideArea
    from longvit.model.longvit import LongViT
    from longvit.parallel import Ranks, ShardedLongViT
    from longvit.slides.canvas import Canvas
    from longvit.slides.reader import Slide
    from longvit.slides.strips import Strip


def embed_over_ranks(
    model: LongViT, slides: Sequence[ListedSlide], out_dir: Path, ranks: Ranks, settings: ReadSettings | None = None
) -> SlideJobsResult:
    """As `embed_slides`, called by every rank with the same list; all get the same result and see `out_dir`.

    Raises `InputError` where a slide has fewer rows of patches than ranks, or where nothing can be written.
    """
    from longvit.parallel import shard

    rows = model.config.image_px // model.config.patch_px
    if rows < ranks.sequence_ranks:
        raise InputError(f"--sequence-ranks {ranks.sequence_ranks}: a canvas has only {rows} rows of patches to share")
    check_annotations(settings or ReadSettings(), [slide.slide_id for slide in slides])
    if ranks.is_first:
        make_folder(out_dir / FOLDER)
        write_problems(out_dir / PROBLEMS_CSV, ())
    strips = shard(model, ranks.mesh).eval()
    job = EmbedJob(model, out_dir / FOLDER, settings)
    ends: dict[str, tuple[str, str]] = {}
    with Progress("embed", len(slides), unit="slides") as progress:
        for listed in slides[ranks.data_rank :: ranks.data_ranks]:
            try:
                ends[listed.slide_id] = (_embed(job, strips, listed, ranks), "")
            except SlideFailedError as error:
                ends[listed.slide_id] = (error.stage, str(error))
                progress.log(f"problem: {listed.slide_id}: {error.stage}: {error}")
            progress.advance(min(ranks.data_ranks, len(slides) - progress.done), note=listed.slide_id)
    for rank_ends in ranks.from_all(ends, "data"):
        ends |= {slide_id: tuple(end) for slide_id, end in rank_ends.items()}

    names = [slide.slide_id for slide in slides]
    removed = "its result was removed during the run; rerun the command"
    problems = []
    records = []
    if ranks.is_first:  # all ranks have written by now
        for slide in slides:
            stage, reason = ends.get(slide.slide_id, ("end", f"{slide.path}: no rank reported its end"))
            record = read_record(job.record_path(slide.slide_id)) | {"path": str(slide.path)}
            if stage in ("done", "skipped") and not ("digest" in record and job.features_path(slide.slide_id).exists()):
                stage, reason = "end", f"{slide.path}: {removed}"
            if stage not in ("done", "skipped"):
                problems.append(Problem(slide.slide_id, stage, reason))
                continue
            records.append(record)
            if bad := record["n_bad_tiles"]:
                text = f"{bad} of {record['canvas']['tiles']} tiles cannot be read; filled with background"
                problems.append(Problem(slide.slide_id, "tiles", f"{slide.path}: {text}"))
        write_embeddings(out_dir, records, model.config.embed_dim)
        write_problems(out_dir / PROBLEMS_CSV, problems)
    records, rows = ranks.from_first([records, problem_rows(problems)])
    all_problems = problems_of_rows(rows)
    left_out = {problem.slide for problem in all_problems if problem.is_left_out}
    ended = {name: ends[name][0] for name in names if name not in left_out}
    done, skipped = (tuple(name for name, end in ended.items() if end == kind) for kind in ("done", "skipped"))
    return SlideJobsResult(done, skipped, all_problems, tuple(records))


def _embed(job: EmbedJob, model: ShardedLongViT, listed: ListedSlide, ranks: Ranks) -> str:
    """Embeds one slide with all ranks of its sequence: `done` or `skipped`, or `SlideFailedError` on all of them."""
    import torch

    from longvit.model.longvit import image_of

    if listed.fault is not None:
        raise SlideFailedError("open", listed.fault)
    reader = _StripReader(job, listed, model.rows_px(job.side_px))
    try:
        identities = _on_all(ranks, reader.identity)
        request = reader.request
        digest = job.digest(identities[0], request)
        if ranks.from_all(job.is_finished(listed.slide_id, digest), "sequence")[0]:
            return "skipped"
        bad_tiles = {tuple(tile.items()): tile for tiles in _on_all(ranks, reader.read) for tile in tiles}
        canvas = replace(reader.canvas(), bad_tiles=tuple(BadTile(**tile) for tile in bad_tiles.values()))
        limit = request.settings.max_bad_tiles
        if limit is not None and len(bad_tiles) > limit:
            text = f"{listed.path}: {len(bad_tiles)} unreadable tiles, more than the {limit} of --max-bad-tiles"
            raise SlideFailedError("read", text)
    finally:
        reader.close()
    with torch.inference_mode():
        tokens = model.forward_features(image_of(canvas.pixels))
        features = model.forward_head(tokens, pre_logits=True)[0].float().cpu().numpy()
    if not np.isfinite(features).all():
        raise SlideFailedError("model", "the embedding is not finite")
    if ranks.sequence_rank == 0:
        job.record(listed, digest, canvas, job.written(listed, digest, canvas, features))
    return "done"


def _on_all(ranks: Ranks, step: Callable[[], Any]) -> list[Any]:
    """Values of a step from every rank of the sequence; an error of one rank is raised on all of them."""
    failure, value = None, None
    try:
        value = step()
    except SlideFailedError as error:
        failure = [error.stage, str(error)]
    outcomes = ranks.from_all([failure, value], "sequence")
    for rank_failure, _ in outcomes:
        if rank_failure is not None:
            raise SlideFailedError(*rank_failure)
    return [value for _, value in outcomes]


class _StripReader:
    """A slide and the rows of its canvas that this rank reads."""

    request: ReadRequest

    def __init__(self, job: EmbedJob, listed: ListedSlide, rows: tuple[int, int]) -> None:
        self._job, self._listed, self.rows = job, listed, rows
        self._slide: Slide | None = None
        self._strip: Strip | None = None
        self._area: SlideArea | None = None

    def identity(self) -> str:
        """Opens the slide; returns its content hash."""
        from longvit.slides.reader import open_slide

        self.request = self._job.request(self._listed)
        try:
            settings = self.request.settings
            self._slide = open_slide(self.request.path, mpp=settings.mpp, reader=settings.reader)
            return self._slide.identity()
        except Exception as error:
            raise SlideFailedError.from_error("open", error) from error

    def read(self) -> list[dict[str, Any]]:
        """Reads the strip; returns its unreadable tiles."""
        assert self._slide is not None
        request = self.request
        try:
            if request.area is not None:
                self._area = request.area.read(self._slide.bounds)
            (self._strip,) = self._slide.strips(
                request.side_px, request.fit, decode=request.settings.decode, rows=self.rows, area=self._area
            )
        except Exception as error:
            raise SlideFailedError.from_error("read", error) from error
        return [asdict(tile) for tile in self._strip.bad_tiles]

    def canvas(self) -> Canvas:
        """Canvas with the pixels of the strip alone."""
        from longvit.slides.canvas import Canvas, source_of, tiles_of
        from longvit.slides.strips import plan_canvas

        assert self._slide is not None
        assert self._strip is not None
        plan = plan_canvas(self._slide, self.request.side_px, self.request.fit)
        source, record = source_of(self._slide), None if self._area is None else self._area.record
        return Canvas(self._strip.pixels, plan.placement, plan.level.index, tiles_of(plan), (), source, record)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
