"""The public slide of `longvit demo --public`: one small section of a tumour, pinned by the UID of its series."""

from __future__ import annotations

from pathlib import Path

from longvit.errors import InputError
from longvit.files import file_stem
from longvit.public.fetch_job import FetchSettings, fetch
from longvit.public.idc_index import IdcIndex
from longvit.public.selection import select
from longvit.slide_jobs.fetch import SLIDES

COLLECTION = "cptac_ccrcc"
SERIES_UID = "1.3.6.1.4.1.5962.99.1.157837103.1072204621.1640835376943.2.0"
"""Clear cell renal cell carcinoma, patient C3N-02005 of CPTAC: 36 MB, JPEG, CC BY 4.0."""
MOST_BYTES = 60 * 10**6
_LICENCES = ("CC BY", "CC0")


def fetch_demo_slide(out_dir: str | Path, *, index: IdcIndex | None = None, endpoint: str = "") -> tuple[Path, str]:
    """Downloads the slide into `out_dir`; returns its folder of DICOM files and the citation of its data set.

    A slide that is there already is not downloaded again. `index`, `endpoint`: a mirror of the archive.

    Raises `InputError`: without the extra `public`, an index that has no such slide or another one, and a download
    that fails.
    """
    selection = select([COLLECTION], ids=[SERIES_UID], index=index)
    (slide,) = selection.slides
    if slide.n_bytes > MOST_BYTES or not slide.licence.startswith(_LICENCES):
        raise InputError(
            f"{selection.archive}: the slide of the demo has {slide.n_bytes / 1e6:.0f} MB under {slide.licence!r}, not "
            f"at most {MOST_BYTES / 1e6:.0f} MB under {' or '.join(_LICENCES)}; give a slide of yours with --slide"
        )
    result = fetch(
        [slide], out_dir, FetchSettings(side_px=1024, keep_slides=True, disk_gb=1.0, jobs=1, endpoint=endpoint)
    )
    if result.left_out:
        raise InputError(f"{slide.location}: {result.left_out[0].error}; `longvit demo` needs no network")
    return Path(out_dir) / SLIDES / file_stem(slide.slide_id), "; ".join(selection.citations)
