"""Stages of a reproduction: starting weights, slides to canvases or features, folds. Each resumes by itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.comparison.settings import ComparisonSettings
from longvit.errors import InputError
from longvit.files import make_folder
from longvit.finetuning.settings import FinetuneSettings
from longvit.reproduce.prepare import Reproduction
from longvit.reproduce.protocol import CellProtocol

if TYPE_CHECKING:
    from longvit.finetuning.crossval import CrossValidation

WEIGHTS, RUN, COMPARISON, CHECKPOINT_HASH = "weights", "run", "comparison", "checkpoint.sha256"


def starting_weights(reproduction: Reproduction, out: Path) -> Path | None:
    """Model to start from: a checkpoint is converted into OUT/weights, once. None: random weights.

    Raises `InputError` for a checkpoint that cannot be converted, and for another one than that of this folder. Weights
    that this cell cannot start from raise it too, before the first download.
    """
    settings = reproduction.settings
    if not isinstance(settings, FinetuneSettings):
        return None
    from longvit.finetuning.starting_model import starting_model

    weights = reproduction.options.weights
    if weights is not None and weights.is_file():
        weights = _converted(weights, out / WEIGHTS)
    starting_model(replace(settings, weights=weights, keep_head=False), ())
    return weights


def _converted(checkpoint: Path, folder: Path) -> Path:
    """Folder with the model of a checkpoint."""
    from longvit.files import write_text
    from longvit.model.longvit import LongViT
    from longvit.model.pretrained import convert, save_pretrained

    digest = sha256_of(checkpoint)
    mark = folder / CHECKPOINT_HASH
    if mark.is_file():
        if mark.read_text(encoding="utf-8").strip() != digest:
            raise InputError(f"{folder}: converted from another checkpoint than {checkpoint}; choose another --out")
        return folder
    model = convert(checkpoint)
    if not isinstance(model, LongViT):
        raise InputError(f"{checkpoint}: a model of tile features; LongViT is needed")
    save_pretrained(model, make_folder(folder))
    write_text(mark, digest + "\n")
    return folder


def sha256_of(checkpoint: Path) -> str:
    """SHA-256 of a file."""
    with checkpoint.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_slides(reproduction: Reproduction, fetched: Path) -> dict[str, str]:
    """Downloads the slides and makes their canvases or features; returns the slides without one, and why.

    Raises `InputError` for slides that the archive lacks or that fail, unless they may be missing.
    """
    if not reproduction.cell.reads_slides:
        return {}
    from longvit.public.fetch_job import FetchSettings, fetch

    options, settings = reproduction.options, reproduction.settings
    selection, n = reproduction.selection, len(reproduction.protocol.slides)
    absent = [*selection.missing, *selection.ambiguous]
    if absent and not options.allow_missing:
        raise InputError(
            f"{len(absent)} of {n} slides are not in {selection.archive} or not certain; the first: "
            f"{absent[0].listed_id}: {absent[0].reason}; leave them out with --allow-missing"
        )
    made: dict[str, Any] = {"canvas": False, "encoder": options.encoder}
    if isinstance(settings, FinetuneSettings):
        made = {"side_px": settings.side_px, "fit": settings.fit}
    result = fetch(
        selection.slides,
        fetched,
        FetchSettings(
            **made,
            keep_slides=options.keep_slides,
            disk_gb=options.disk_gb,
            jobs=options.jobs,
            device=options.device,
            endpoint=options.endpoint,
        ),
    )
    if result.left_out and not options.allow_missing:
        first = result.left_out[0]
        raise InputError(
            f"{len(result.left_out)} of {n} slides failed, see {fetched / 'problems.csv'}; the first: {first.slide}: "
            f"{first.error}; give the same command again, or leave them out with --allow-missing"
        )
    return {one.listed_id: one.reason for one in absent} | {one.slide: one.error for one in result.left_out}


def train_longvit(
    protocol: CellProtocol, settings: FinetuneSettings, weights: Path | None, out: Path
) -> CrossValidation:
    """Fine-tunes on every fold, in OUT/run, with its report."""
    from longvit.finetuning.crossval import cross_validate
    from longvit.report import crossval_report

    if weights is not None:
        settings = replace(settings, weights=weights)
    result = cross_validate(protocol.cohort, out / RUN, protocol.folds, settings)
    assert result is not None
    images = {row.slide_id: row.path for row in protocol.cohort.rows}
    crossval_report(result.summary, out / RUN, images=images)
    return result


def train_baseline(
    protocol: CellProtocol, settings: ComparisonSettings, encoder: str | None, fetched: Path, out: Path
) -> dict[str, Any]:
    """Trains a baseline on every fold, in OUT/comparison, with its report; returns the content of benchmark.json.

    Raises `InputError` where a fold failed.
    """
    from longvit.comparison.compare import compare
    from longvit.comparison.omics import read_omics
    from longvit.report.comparison import comparison_report
    from longvit.slide_jobs.encoder_names import located
    from longvit.slide_jobs.features import feature_folder
    from longvit.slides.tiles import TileSettings

    features = None if encoder is None else feature_folder(fetched, TileSettings(), located(encoder))
    omics = read_omics(protocol.table, protocol.signatures) if protocol.cell.reads_omics else None
    result = compare(protocol.cohort, out / COMPARISON, protocol.folds, settings, features=features, omics=omics)
    comparison_report(result.summary, out / COMPARISON)
    if result.failed:
        first = result.failed[0]
        raise InputError(f"{len(result.failed)} folds failed; the first: {first.slide}: {first.error}")
    return result.summary
