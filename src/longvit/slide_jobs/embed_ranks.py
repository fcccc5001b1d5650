"""Vectors of slides that several ranks share: each reads and embeds its strip (`longvit embed` by torchrun).

The same files as `embed`, without workers: a slide is the work of all ranks of a sequence, slides are dealt out over
the data axis. A slide that one rank cannot read is left out by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
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
    from longvit.model.longvit import LongViT
    from longvit.parallel import Ranks, ShardedLongViT
    from longvit.slides.canvas import Canvas
    from longvit.slides.reader import Slide
    from longvit.slides.strips import Strip


def embed_over_ranks(
    model: LongViT, slides: Sequence[ListedSlide], out_dir: Path, ranks: Ranks, settings: ReadSettings | None = None
) -> SlideJobsResult:
    """See `embed_slides`; every rank calls it, with the same list, and gets the same result; all see `out_dir`.

    Raises `InputError` where a slide has fewer rows of patches than ranks, or where nothing can be written.
    """
    from longvit.parallel import shard

    rows = model.config.image_px // model.config.patch_px
    if rows < ranks.sequence_ranks:
        raise InputError(f"--sequence-ranks {ranks.sequence_ranks}: a canvas has only {rows} rows of patches to share")
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
    for of_rank in ranks.from_all(ends, "data"):
        ends |= {slide_id: tuple(end) for slide_id, end in of_rank.items()}

    names = [slide.slide_id for slide in slides]
    gone = "its result was removed while the run was at work; give the same command again"
    problems = []
    records = []
    if ranks.is_first:  # all have written by now
        for slide in slides:
            stage, why = ends.get(slide.slide_id, ("end", f"{slide.path}: no rank said how it ended"))
            record = read_record(job.record_path(slide.slide_id)) | {"path": str(slide.path)}
            if stage in ("done", "skipped") and not ("digest" in record and job.features_path(slide.slide_id).exists()):
                stage, why = "end", f"{slide.path}: {gone}"
            if stage not in ("done", "skipped"):
                problems.append(Problem(slide.slide_id, stage, why))
                continue
            records.append(record)
            if bad := record["n_bad_tiles"]:
                text = f"{bad} of {record['canvas']['tiles']} tiles cannot be read; filled with background"
                problems.append(Problem(slide.slide_id, "tiles", f"{slide.path}: {text}"))
        write_embeddings(out_dir, records, model.config.embed_dim)
        write_problems(out_dir / PROBLEMS_CSV, problems)
    records, rows = ranks.from_first([records, [[p.slide, p.stage, p.error] for p in problems]])
    all_problems = tuple(Problem(*row) for row in rows)
    left_out = {problem.slide for problem in all_problems if problem.is_left_out}
    ended = {name: ends[name][0] for name in names if name not in left_out}
    done, skipped = (tuple(name for name, end in ended.items() if end == kind) for kind in ("done", "skipped"))
    return SlideJobsResult(done, skipped, all_problems, tuple(records))


def _embed(job: EmbedJob, model: ShardedLongViT, listed: ListedSlide, ranks: Ranks) -> str:
    """One slide, by all ranks of its sequence: `done` or `skipped`. `SlideFailedError` on all of them together."""
    import torch

    from longvit.model.longvit import image_of

    if listed.fault is not None:
        raise SlideFailedError("open", listed.fault)
    request = job.request(listed)
    reading = _Reading(request, model.rows_px(request.side_px))
    try:
        identities = _of_all(ranks, reading.identity)
        digest = job.digest(identities[0], request)
        if ranks.from_all(job.is_finished(listed.slide_id, digest), "sequence")[0]:
            return "skipped"
        bad_tiles = {tuple(tile.items()): tile for tiles in _of_all(ranks, reading.read) for tile in tiles}
        canvas = replace(reading.canvas(), bad_tiles=tuple(BadTile(**tile) for tile in bad_tiles.values()))
        most = request.settings.max_bad_tiles
        if most is not None and len(bad_tiles) > most:
            text = f"{listed.path}: {len(bad_tiles)} unreadable tiles, more than the {most} of --max-bad-tiles"
            raise SlideFailedError("read", text)
    finally:
        reading.close()
    with torch.inference_mode():
        tokens = model.forward_features(image_of(canvas.pixels))
        features = model.forward_head(tokens, pre_logits=True)[0].float().cpu().numpy()
    if not np.isfinite(features).all():
        raise SlideFailedError("model", "the embedding is not finite")
    if ranks.sequence_rank == 0:
        job.record(listed, digest, canvas, job.written(listed, digest, canvas, features))
    return "done"


def _of_all(ranks: Ranks, step: Callable[[], Any]) -> list[Any]:
    """What a step gives on each rank of the sequence; where it fails on one of them, that error on all."""
    failed, value = None, None
    try:
        value = step()
    except SlideFailedError as error:
        failed = [error.stage, str(error)]
    of_all = ranks.from_all([failed, value], "sequence")
    for said, _ in of_all:
        if said is not None:
            raise SlideFailedError(*said)
    return [value for _, value in of_all]


class _Reading:
    """A slide of which this rank reads the rows of its strip."""

    def __init__(self, request: ReadRequest, rows: tuple[int, int]) -> None:
        self.request, self.rows = request, rows
        self._slide: Slide | None = None
        self._strip: Strip | None = None

    def identity(self) -> str:
        """Opens the slide."""
        from longvit.slides.reader import open_slide

        try:
            settings = self.request.settings
            self._slide = open_slide(self.request.path, mpp=settings.mpp, reader=settings.reader)
            return self._slide.identity()
        except Exception as error:
            raise SlideFailedError.of("open", error) from error

    def read(self) -> list[dict[str, Any]]:
        """Reads the strip; what could not be read of it."""
        assert self._slide is not None
        r = self.request
        try:
            (self._strip,) = self._slide.strips(r.side_px, r.fit, rows=self.rows)
        except Exception as error:
            raise SlideFailedError.of("read", error) from error
        return [asdict(tile) for tile in self._strip.bad_tiles]

    def canvas(self) -> Canvas:
        """The canvas with the pixels of the strip alone."""
        from longvit.slides.canvas import Canvas, source_of, tiles_of
        from longvit.slides.strips import plan_canvas

        assert self._slide is not None
        assert self._strip is not None
        plan = plan_canvas(self._slide, self.request.side_px, self.request.fit)
        source = source_of(self._slide)
        return Canvas(self._strip.pixels, plan.placement, plan.level.index, tiles_of(plan), (), source)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
