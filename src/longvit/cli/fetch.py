"""`longvit fetch COLLECTION`"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from longvit.cli.options import AsJson, Out, Reading, Tiling, TilingSettings, TissueMask, echo, print_outcome
from longvit.public.fetch_job import FetchSettings
from longvit.slide_jobs.reading import ReadSettings
from longvit.slides.tissue import TissueSettings

if TYPE_CHECKING:
    from longvit.public.idc_index import IdcIndex
    from longvit.public.selection import Selection

UNRESOLVED = "unresolved.csv"
_SELECTION = Group("Which slides", sort_key=1)
_FETCHING = Group("Fetch", sort_key=2)
_File = Annotated[Path | None, Parameter(group=_SELECTION, show_default=False)]


def fetch(
    collection: Annotated[
        tuple[str, ...],
        Parameter(
            group=_SELECTION,
            negative="",
            show_default=False,
            help="Collections of the Imaging Data Commons, such as tcga-brca, cptac-luad, gtex, nlst.",
        ),
    ] = (),
    *,
    slides: Annotated[
        _File,
        Parameter(help="Cohort table (slide_id; TCGA barcodes), or a table of patients (case_id): all their slides."),
    ] = None,
    folds: Annotated[
        _File, Parameter(help="Folder of folds (splits_0.csv, …): all slides or patients in them.")
    ] = None,
    manifest: Annotated[
        _File, Parameter(help="GDC manifest, as its portal exports it, in place of the API; implies --source gdc.")
    ] = None,
    source: Annotated[
        Literal["idc", "gdc"],
        Parameter(group=_SELECTION, help="idc: DICOM series of the Imaging Data Commons; gdc: SVS files of the GDC."),
    ] = "idc",
    frozen: Annotated[bool, Parameter(group=_SELECTION, negative="", help="Frozen sections too.")] = False,
    index: Annotated[
        _File, Parameter(help="Another idc_index.parquet than that of the package idc-index-data.")
    ] = None,
    list_collections: Annotated[
        bool,
        Parameter(name="--list", group=_SELECTION, negative="", help="Print the collections with slides, and stop."),
    ] = False,
    dry_run: Annotated[
        bool, Parameter(group=_SELECTION, negative="", help="Print what would be done, and stop.")
    ] = False,
    out: Out = Path("public"),
    settings: Annotated[
        FetchSettings, Parameter(name="*", group=_FETCHING, parse="^(?!(read|tiles|tissue)$)")
    ] = FetchSettings(),
    mb_per_s: Annotated[
        float | None,
        Parameter(
            group=_FETCHING,
            show_default=False,
            help="Expected 10⁶ bytes per second, for the time in the plan. Default: that of the last run into OUT, or "
            "50.",
        ),
    ] = None,
    tiling: Tiling = TilingSettings(),
    tissue: TissueMask = TissueSettings(),
    reading: Reading = ReadSettings(),
    as_json: AsJson = False,
) -> int:
    """Fetch public slides by name, make canvases or features of them, and drop them: little disk for any archive.

    The packaged index of the archive says which slides there are, without a connection. The plan names slides, size,
    licence, citation, ids without a slide, time and disk. Then each slide is downloaded, checked, made into a canvas
    and dropped; at most `--disk-gb` of slides are on the disk. The same command resumes after any interruption. Run
    `longvit status OUT` in another terminal to see progress.

    Writes `OUT/<slide_id>.tif`, `OUT/canvases.csv` and `OUT/fetched.csv`. Listed ids without a slide are rows of
    `OUT/unresolved.csv`, slides that fail are rows of `OUT/problems.csv`; either gives exit code 1. Train on the
    canvases with `longvit train cohort.csv --slides-dir OUT`.

    **Examples**

    ```
    longvit fetch tcga-brca --dry-run
    longvit fetch --folds HIPT/2-Weakly-Supervised-Subtyping/splits/10foldcv_subtype/tcga_brca --out brca
    longvit fetch --slides cohort.csv --side-px 8192 --disk-gb 20 --jobs 8
    longvit fetch cptac-luad --no-canvas --encoder uni2-h --out cptac
    longvit fetch tcga-kirc --source gdc --keep-slides
    longvit fetch --list
    ```
    """
    from longvit.public.fetch_plan import plan_fetch, plan_json, plan_lines

    if list_collections:
        return _print_collections(_open_index(index), as_json=as_json)
    settings = replace(settings, tiles=tiling, tissue=tissue, read=reading)
    selection = _select(collection, slides, folds, manifest, source, index, settings, frozen=frozen)
    plan = plan_fetch(selection, out, settings, mb_per_s=mb_per_s)
    text = json.dumps(plan_json(plan), indent=1, ensure_ascii=False) if as_json else "\n".join(plan_lines(plan))
    print(text, flush=True)
    is_incomplete = bool(selection.missing or selection.ambiguous)
    if dry_run:
        return int(is_incomplete)
    return max(_run(selection, out, settings), int(is_incomplete))


def _select(
    collections: tuple[str, ...],
    slides: Path | None,
    folds: Path | None,
    manifest: Path | None,
    source: str,
    index: Path | None,
    settings: FetchSettings,
    *,
    frozen: bool,
) -> Selection:
    """Slides of either archive."""
    from longvit.errors import InputError

    if source == "idc" and manifest is None:
        from longvit.public.selection import select

        return select(collections, slides=slides, folds=folds, frozen=frozen, index=_open_index(index))
    from longvit.public.gdc_files import GdcApi
    from longvit.public.gdc_selection import select_from_gdc
    from longvit.transfer.client import Patience

    if index is not None:
        raise InputError(f"--index {index}: an index of IDC; leave it out for the GDC")
    patience = Patience(settings.network_retries, settings.network_timeout_s)
    api = None if manifest is not None else GdcApi(settings.endpoint, patience)
    return select_from_gdc(collections, slides=slides, folds=folds, frozen=frozen, manifest=manifest, api=api)


def _open_index(path: Path | None) -> IdcIndex:
    from longvit.public.idc_index import IdcIndex

    return IdcIndex(path)


def _print_collections(index: IdcIndex, *, as_json: bool) -> int:
    names = {name.replace("_", "-"): size for name, size in index.collections.items()}
    if as_json:
        rows = [{"collection": name, "slides": n, "bytes": n_bytes} for name, (n, n_bytes) in names.items()]
        print(json.dumps({"archive": index.version, "collections": rows}, indent=1))
        return 0
    width = max(map(len, names), default=0)
    print(f"{index.version}: {len(names)} collections with slides")
    for name, (n, n_bytes) in names.items():
        print(f"{name:<{width}}  {n:>6,} slides  {n_bytes / 2**30:>8,.1f} GiB")
    return 0


def _run(selection: Selection, out: Path, settings: FetchSettings) -> int:
    """Fetches the slides, and writes the table of ids without one."""
    from longvit.files import make_folder, write_csv
    from longvit.public.fetch_job import fetch as fetch_slides
    from longvit.public.fetch_plan import unresolved_rows

    make_folder(out)
    if rows := unresolved_rows(selection):
        write_csv(out / UNRESOLVED, ["id", "kind", "reason"], rows)
        echo(f"{len(rows)} ids without a slide: {out / UNRESOLVED}")
    else:
        (out / UNRESOLVED).unlink(missing_ok=True)
    result = fetch_slides(selection.slides, out, settings)
    return print_outcome(result, out, f"Slides: {out / 'fetched.csv'}")
