"""Fetch of archive slides: each is downloaded, made into a canvas or features or both, and dropped, with little disk.

    OUT/<slide_id>.tif, OUT/canvases.csv                 canvases, as `longvit canvas` writes them
    OUT/20x_256px_0px_overlap/features_<encoder>/…       features, as `longvit features` writes them
    OUT/fetched.csv                                      slide_id, case_id, collection, source, location, licence, …
    OUT/slides/<slide_id>/                               the slides, with `keep_slides`
    OUT/fetched/<slide_id>.json                          record of a slide: address, hashes of its files, results

`longvit train --slides-dir OUT` opens the canvases as slides, and `longvit benchmark --features` the features. The run
is that of every command over many slides (`slide_jobs.run`): work list, leases, `longvit status`, a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem
from longvit.public.archive_slide import ArchiveSlide
from longvit.slide_jobs import canvas as canvas_job
from longvit.slide_jobs import features as features_job
from longvit.slide_jobs.fetch import FOLDER, SLIDES, ArchivedFiles, FetchJob
from longvit.slide_jobs.job import read_record, write_table
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run
from longvit.slides.slide_name import fault_of_name
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings
from longvit.transfer.client import Patience, require_requests

TABLE = "fetched.csv"
COLUMNS = ("slide_id", "case_id", "collection", "source", "location", "series_uid", "licence", "n_bytes")


@dataclass(frozen=True)
class FetchSettings:
    """Settings of a fetch: what is made of each slide, disk, workers, patience with the network.

    >>> from longvit.public.fetch_job import FetchSettings
    >>> FetchSettings(side_px=1024, jobs=2).disk_gb
    50.0
    """

    side_px: int = 4096
    """Side of the canvas."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` fills the square, as in the paper; `pad` keeps the slide's proportions."""
    canvas: bool = True
    """Make a canvas of each slide."""
    encoder: str | None = None
    """Make the features of each slide's tiles by this encoder (see `tile_encoders`); None: no features."""
    tiles: TileSettings = field(default_factory=TileSettings)
    """Tiles of the features."""
    tissue: TissueSettings = field(default_factory=TissueSettings)
    """Tissue mask of the tiles."""
    keep_slides: bool = False
    """Keep the slides, in OUT/slides."""
    disk_gb: float = 50.0
    """GiB that the downloads of all workers take at most at a time. Canvases, features and kept slides come on top."""
    jobs: int = 4
    """Worker processes (with `cluster`: on each node), each of which downloads two slides ahead of its reader."""
    device: str = "auto"
    """Device of the encoder: auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads of each worker. Default: one per core, divided by the workers."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers fetch the slides."""
    endpoint: str = ""
    """Address of a mirror of the archive, e.g. http://localhost:9000; "": Amazon's or the GDC's."""
    network_retries: int = 5
    """Retries in a row of a download that makes no progress."""
    network_timeout_s: float = 60.0
    """Seconds without a byte after which a connection is given up."""
    retries: int = 2
    """Further attempts at a slide after a failure that may be temporary."""
    timeout_s: float | None = 1800.0
    """Seconds after which a slide that is being read is given up; 0: never."""
    read: ReadSettings = field(default_factory=ReadSettings)
    """Settings of reading the slides."""

    def __post_init__(self) -> None:
        if not (self.canvas or self.encoder):
            raise InputError("nothing to make of the slides: a canvas, features (--encoder), or both")
        if not self.disk_gb > 0:
            raise InputError(f"--disk-gb {self.disk_gb:g}: more than 0")
        if self.network_retries < 0:
            raise InputError(f"--network-retries {self.network_retries}: at least 0")
        if not self.network_timeout_s > 0:
            raise InputError(f"--network-timeout-s {self.network_timeout_s:g}: more than 0")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise InputError(f"--endpoint {self.endpoint}: an address that begins with http:// or https://")
        self.run_settings()

    def run_settings(self) -> RunSettings:
        """Settings of the run over the slides."""
        return RunSettings(
            workers=self.jobs,
            cluster=self.cluster,
            retries=self.retries,
            timeout_s=self.timeout_s,
            reads_apart=True,
            device=self.device,
            threads=self.threads,
        )


def fetch(
    slides: Sequence[ArchiveSlide], out_dir: str | Path, settings: FetchSettings | None = None
) -> SlideJobsResult:
    """Downloads slides, makes canvases or features of them, and drops them; writes a table of each kind of result.

    Downloads stay within `disk_gb`. A slide that fails becomes a row of `problems.csv`. The same call resumes after an
    interruption: finished slides are not downloaded again, and the others from where they broke off. Raises
    `InputError` for settings that cannot be, without the extra `public`, and where `out_dir` cannot be written to.
    """
    from longvit.slides.placement import check_side_and_fit

    settings = settings or FetchSettings()
    require_requests()
    check_side_and_fit(settings.side_px, settings.fit)
    out_dir = Path(out_dir)
    listed = _listed(slides, out_dir)
    run_settings = settings.run_settings()
    parameters = _parameters(slides, out_dir, settings)
    made: list[FetchJob] = []

    def build() -> FetchJob:
        device = None
        if settings.encoder and features_job.encoder_needs_torch(settings.encoder):
            from longvit.device import pick_device, set_threads

            set_threads(settings.threads)
            device = pick_device(settings.device).device
        folder, timeout_s, threads = out_dir / FOLDER, run_settings.timeout_s, run_settings.threads
        job = FetchJob.from_parameters(folder, parameters, settings.read, device, timeout_s=timeout_s, threads=threads)
        made.append(job)
        return job

    def files(record: Mapping[str, Any]) -> list[Path]:
        return _result_files(out_dir, parameters, record["slide_id"])

    try:
        job = JobSpec(FetchJob.verb, out_dir / FOLDER, parameters, files)
        result = run(build, job, listed, out_dir, settings.read, run_settings)
    finally:
        for one in made:
            one.close()
    _write_tables(slides, out_dir, parameters, result)
    return result


def _listed(slides: Sequence[ArchiveSlide], out_dir: Path) -> list[ListedSlide]:
    """Slides for the work list, each with its place among kept slides. Raises `InputError` for an id of two slides."""
    places: dict[str, str] = {}
    listed = []
    for slide in slides:
        if places.setdefault(slide.slide_id, slide.location) != slide.location:
            raise InputError(f"{slide.slide_id}: two slides of this id ({places[slide.slide_id]} and {slide.location})")
        path = out_dir / SLIDES / file_stem(slide.slide_id)
        listed.append(ListedSlide(slide.slide_id, path, fault=fault_of_name(slide.slide_id, str(path))))
    return list({one.slide_id: one for one in listed}.values())


def _parameters(slides: Sequence[ArchiveSlide], out_dir: Path, settings: FetchSettings) -> dict[str, Any]:
    """Arguments of the job, as run.json holds them."""
    from longvit.slide_jobs.encoder_names import absolute, check_tiles, located

    features: dict[str, Any] | None = None
    if settings.encoder:
        check_tiles(settings.encoder, settings.tiles.tile_px, settings.tiles.mpp)
        encoder = absolute(located(settings.encoder))
        features = {
            "folder": str(features_job.feature_folder(out_dir, settings.tiles, encoder).absolute()),
            "encoder": encoder,
            "layout": "trident",
            "batch": features_job.BATCH,
            "tiles": asdict(settings.tiles),
            "tissue": asdict(settings.tissue),
        }
    archived = {one.slide_id: ArchivedFiles(one.source, one.location, one.n_bytes, one.md5) for one in slides}
    return {
        "archived": {slide_id: list(asdict(one).values()) for slide_id, one in archived.items()},
        "canvas": {"side_px": settings.side_px, "fit": settings.fit} if settings.canvas else None,
        "features": features,
        "keep_slides": settings.keep_slides,
        "most_bytes": int(settings.disk_gb * 2**30),
        "patience": asdict(Patience(settings.network_retries, settings.network_timeout_s)),
        "endpoint": settings.endpoint,
    }


def _part_records(out_dir: Path, parameters: Mapping[str, Any], slide_id: str) -> dict[str, dict[str, Any]]:
    """Records of what was made of a slide: `canvas`, `features`."""
    folders = {}
    if parameters["canvas"] is not None:
        folders["canvas"] = out_dir / canvas_job.FOLDER
    if parameters["features"] is not None:
        folders["features"] = Path(parameters["features"]["folder"])
    return {kind: read_record(folder / f"{file_stem(slide_id)}.json") for kind, folder in folders.items()}


def _result_files(out_dir: Path, parameters: Mapping[str, Any], slide_id: str) -> list[Path]:
    files = []
    for kind, record in _part_records(out_dir, parameters, slide_id).items():
        if kind == "canvas":
            files.append(out_dir / record.get("file", f"{file_stem(slide_id)}.tif"))
        else:
            bag = Path(parameters["features"]["folder"])
            files += [bag / name for name in record.get("features", {}).get("files", [f"{file_stem(slide_id)}.h5"])]
    return files


def _write_tables(
    slides: Sequence[ArchiveSlide], out_dir: Path, parameters: Mapping[str, Any], result: SlideJobsResult
) -> None:
    """Writes the tables of all slides with a result; the path of a slide that was dropped is its address."""
    by_id = {slide.slide_id: slide for slide in slides}
    rows: dict[str, list[dict[str, Any]]] = {"canvas": [], "features": []}
    fetched = []
    for record in result.records:
        slide = by_id[record["slide_id"]]
        fetched.append({name: getattr(slide, name) for name in COLUMNS})
        path = record["path"] if Path(record["path"]).exists() else slide.location
        for kind, part in _part_records(out_dir, parameters, slide.slide_id).items():
            row = canvas_job.table_row(part) if kind == "canvas" else features_job.table_row(part)
            rows[kind].append(row | {"path": path})
    write_table(out_dir / TABLE, COLUMNS, fetched)
    if parameters["canvas"] is not None:
        write_table(out_dir / canvas_job.TABLE, canvas_job.COLUMNS, rows["canvas"])
    if parameters["features"] is not None:
        folder = Path(parameters["features"]["folder"])
        write_table(folder / features_job.TABLE, features_job.COLUMNS, rows["features"])
