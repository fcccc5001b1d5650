"""Plan of a fetch, before it starts: slides, size, licences, ids without a slide, time, and disk at most."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.files import file_stem
from longvit.public.fetch_job import FetchSettings
from longvit.public.selection import Selection
from longvit.public.series_match import Unresolved
from longvit.slide_jobs import canvas as canvas_job
from longvit.slide_jobs.features import feature_folder
from longvit.slide_jobs.fetch import FOLDER, SLIDES, FetchJob
from longvit.slide_jobs.job import read_record
from longvit.slide_jobs.status import status

MB_PER_S = 50.0
"""Rate that a plan assumes before anything was measured, in 10^6 bytes per second for all workers together: 400 Mbit/s
of network, with readers that keep up."""
_SHOWN_IDS = 5
_CHANNELS = 3


@dataclass(frozen=True)
class FetchPlan:
    """Plan of a fetch."""

    selection: Selection
    n_finished: int
    """Slides of which an earlier run in the same folder has made what this one is to make."""
    n_bytes_left: int
    """Bytes to download."""
    rate_mb_s: float
    """10^6 bytes per second, for all workers together."""
    is_measured: bool
    """The rate is that of the last run in the same folder."""
    downloads_bytes: int
    """Bytes of slides on the disk at a time, at most."""
    kept_bytes: int
    """Bytes of the slides that are still to be kept."""
    canvas_bytes: int
    """Bytes of the canvases that are still to be made, at most: they are compressed without loss, to about a half."""
    has_features: bool
    """Features are made too; their size depends on the tissue."""
    free_bytes: int
    """Free bytes where the results go."""
    above_bound: tuple[str, ...]
    """Slides that alone are above the disk bound; they will fail."""

    @property
    def seconds(self) -> float:
        """Time of the downloads and of what is made of the slides meanwhile."""
        return self.n_bytes_left / (self.rate_mb_s * 1e6)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the run needs at most, without features. What earlier runs wrote is no longer free."""
        return self.downloads_bytes + self.kept_bytes + self.canvas_bytes


def plan_fetch(
    selection: Selection, out_dir: Path, settings: FetchSettings, *, mb_per_s: float | None = None
) -> FetchPlan:
    """Plan of the fetch of a selection into a folder.

    `mb_per_s`: rate of all workers together; None: that of the last run in the folder, or else `MB_PER_S`. Raises
    `InputError` for a rate that is not positive.
    """
    if mb_per_s is not None and not mb_per_s > 0:
        raise InputError(f"--mb-per-s {mb_per_s:g}: more than 0")
    left = [slide for slide in selection.slides if not _is_finished(slide.slide_id, out_dir, settings)]
    to_download = [slide for slide in left if not (out_dir / SLIDES / file_stem(slide.slide_id)).exists()]
    rate, is_measured = mb_per_s or MB_PER_S, False
    if mb_per_s is None and (measured := _measured_rate(out_dir, selection)) is not None:
        rate, is_measured = measured, True
    most_bytes = int(settings.disk_gb * 2**30)
    total = sum(slide.n_bytes for slide in to_download)
    return FetchPlan(
        selection=selection,
        n_finished=len(selection.slides) - len(left),
        n_bytes_left=total,
        rate_mb_s=rate,
        is_measured=is_measured,
        downloads_bytes=min(most_bytes, total),
        kept_bytes=total if settings.keep_slides else 0,
        canvas_bytes=_CHANNELS * settings.side_px**2 * len(left) if settings.canvas else 0,
        has_features=settings.encoder is not None,
        free_bytes=shutil.disk_usage(_existing(out_dir)).free,
        above_bound=tuple(slide.slide_id for slide in to_download if slide.n_bytes > most_bytes),
    )


def _is_finished(slide_id: str, out_dir: Path, settings: FetchSettings) -> bool:
    """True where records of an earlier run say that everything was made which these settings ask for."""
    stem = file_stem(slide_id)
    if not (out_dir / FOLDER / f"{stem}.json").is_file():
        return False
    if settings.keep_slides and not (out_dir / SLIDES / stem).exists():
        return False
    if settings.canvas:
        made = read_record(out_dir / canvas_job.FOLDER / f"{stem}.json").get("canvas")
        if not isinstance(made, dict) or (made.get("side_px"), made.get("fit")) != (settings.side_px, settings.fit):
            return False
    if settings.encoder is None:
        return True
    return (feature_folder(out_dir, settings.tiles, settings.encoder) / f"{stem}.json").is_file()


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _measured_rate(out_dir: Path, selection: Selection) -> float | None:
    """Rate of the last run in a folder in 10^6 bytes per second: its slides per hour, times the mean size."""
    try:
        runs = [run for run in status(out_dir) if run.verb == FetchJob.verb]
    except InputError:
        return None
    if not runs or not runs[0].per_hour or not selection.slides:
        return None
    return runs[0].per_hour / 3600 * selection.n_bytes / len(selection.slides) / 1e6


def plan_json(plan: FetchPlan) -> dict[str, Any]:
    """The plan as JSON values: bytes, seconds, 10^6 bytes per second."""
    selection = plan.selection
    return {
        "archive": selection.archive,
        "slides": len(selection.slides),
        "patients": len({slide.case_id for slide in selection.slides}),
        "bytes": selection.n_bytes,
        "collections": _collections(selection),
        "licences": sorted({slide.licence for slide in selection.slides}),
        "citations": list(selection.citations),
        "notes": list(selection.notes),
        "missing": [asdict(one) for one in selection.missing],
        "ambiguous": [asdict(one) for one in selection.ambiguous],
        "finished": plan.n_finished,
        "bytes_left": plan.n_bytes_left,
        "mb_per_s": plan.rate_mb_s,
        "rate_is_measured": plan.is_measured,
        "seconds": plan.seconds,
        "disk_at_most": {
            "bytes": plan.disk_bytes,
            "downloads_bytes": plan.downloads_bytes,
            "kept_slides_bytes": plan.kept_bytes,
            "canvases_bytes": plan.canvas_bytes,
            "free_bytes": plan.free_bytes,
        },
        "above_disk_bound": list(plan.above_bound),
    }


def plan_lines(plan: FetchPlan) -> list[str]:
    """The plan as text."""
    selection = plan.selection
    n_patients = len({slide.case_id for slide in selection.slides})
    counts = ", ".join(f"{name.replace('_', '-') or '(no name)'} {n:,}" for name, n in _collections(selection).items())
    lines = [
        f"archive     {selection.archive}",
        f"slides      {len(selection.slides):,} of {n_patients:,} patients, {_gib(selection.n_bytes)} ({counts})",
        *(f"            {note}" for note in selection.notes),
        f"licence     {', '.join(sorted({slide.licence for slide in selection.slides}))}",
        *(f"cite        {citation}" for citation in selection.citations),
        *_unresolved_lines("missing", selection.missing),
        *_unresolved_lines("ambiguous", selection.ambiguous),
    ]
    if plan.n_finished:
        lines.append(f"finished    {plan.n_finished:,} before; {_gib(plan.n_bytes_left)} to download")
    source = "measured by the last run here" if plan.is_measured else "assumed; --mb-per-s states yours"
    lines.append(f"time        {_duration(plan.seconds)} at {plan.rate_mb_s:.3g} MB/s ({source})")
    parts = [f"{_gib(plan.downloads_bytes)} of slides at a time"]
    if plan.kept_bytes:
        parts.append(f"{_gib(plan.kept_bytes)} of kept slides")
    if plan.canvas_bytes:
        parts.append(f"{_gib(plan.canvas_bytes)} of canvases")
    features = ", and features, whose size is not known before" if plan.has_features else ""
    lines.append(
        f"disk        at most {_gib(plan.disk_bytes)}{features}: {' + '.join(parts)}; {_gib(plan.free_bytes)} are free"
    )
    if plan.disk_bytes > plan.free_bytes:
        lines.append("            more than is free: lower --disk-gb or --side-px, or choose another --out")
    if plan.above_bound:
        n, first = len(plan.above_bound), plan.above_bound[0]
        lines.append(f"            above --disk-gb alone: {n} slides, which will fail: {first}{' …' if n > 1 else ''}")
    return lines


def unresolved_rows(selection: Selection) -> list[tuple[str, str, str]]:
    """Listed ids without a slide: id, `missing` or `ambiguous`, reason."""
    named = (("missing", selection.missing), ("ambiguous", selection.ambiguous))
    return [(one.listed_id, kind, one.reason) for kind, ones in named for one in ones]


def _unresolved_lines(kind: str, unresolved: Sequence[Unresolved]) -> list[str]:
    if not unresolved:
        return []
    lines = [f"{kind:<12}{len(unresolved):,} ids"]
    lines += [f"            {one.listed_id}: {one.reason}" for one in unresolved[:_SHOWN_IDS]]
    if len(unresolved) > _SHOWN_IDS:
        lines.append(f"            … and {len(unresolved) - _SHOWN_IDS:,} more (--json has all)")
    return lines


def _collections(selection: Selection) -> dict[str, int]:
    return dict(sorted(Counter(slide.collection for slide in selection.slides).items()))


def _gib(n_bytes: int) -> str:
    gib = n_bytes / 2**30
    return f"{gib:,.0f} GiB" if gib >= 100 else f"{gib:,.1f} GiB" if gib >= 1 else f"{n_bytes / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
