"""Features of the tiles of many slides: a bag per slide, in TRIDENT's layout or in CLAM's.

    OUT/20x_256px_0px_overlap/features_<encoder>/<slide_id>.h5       features float32 (N, D), coords int64 (N, 2)
    OUT/20x_256px_0px_overlap/features_<encoder>/h5_files, pt_files  the same as CLAM has it (layout "clam")
    OUT/20x_256px_0px_overlap/features_<encoder>/<slide_id>.json     where they came from: slide, mpp and its source, …
    OUT/20x_256px_0px_overlap/features_<encoder>/features.csv        slide_id, path, features, tiles, dim, …

Tiles are those of `longvit tiles` with the same settings. Their pixels are decoded in threads while the encoder works,
and never held but for a few blocks: the memory of a slide is that of its features. A slide without tissue has a bag of
no tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.bag_layouts import Layout, write_bag
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.progress import Progress
from longvit.slide_jobs.job import read_record, write_table
from longvit.slide_jobs.reading import ReadSettings, SlideFailedError
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run
from longvit.slide_jobs.tile_encoders import TileEncoder, absolute, encoder_name, open_encoder
from longvit.slide_jobs.tile_process import SILENCE_S, ThreadTiles, TileProcess, TileReader, TilesRequest
from longvit.slide_jobs.tiles import TiledJob, has_sizes, tile_folder

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from longvit.slides.canvas import Canvas
    from longvit.slides.tile_reading import TilePixels
    from longvit.slides.tiles import TileSettings
    from longvit.slides.tissue import TissueSettings

TABLE = "features.csv"
COLUMNS = ("slide_id", "path", "features", "tiles", "dim", "tissue_mm2", "n_bad_tiles", "mpp", "mpp_source")
BATCH = 64


def feature_slides(
    encoder: str,
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    tiles: TileSettings | None = None,
    tissue: TissueSettings | None = None,
    settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
    *,
    layout: Layout = "trident",
    batch: int = BATCH,
) -> SlideJobsResult:
    """Writes a bag of tile features per slide, and `features.csv` for all.

    `encoder`: see `tile_encoders`. `batch`: tiles that the encoder gets at once.

    Raises `InputError` for an encoder that cannot be used, and where the folder cannot be written to; a slide that
    fails becomes a row of `problems.csv`.
    """
    from longvit.slides.tiles import TileSettings
    from longvit.slides.tissue import TissueSettings

    if batch < 1:
        raise InputError(f"--batch {batch}: at least 1")
    tiles, tissue, settings = tiles or TileSettings(), tissue or TissueSettings(), settings or ReadSettings()
    run_settings = run_settings or RunSettings()
    folder = feature_folder(out_dir, tiles, encoder)
    given = {
        "encoder": absolute(encoder),
        "layout": layout,
        "batch": batch,
        "tiles": asdict(tiles),
        "tissue": asdict(tissue),
    }

    def bags_of(record: Mapping[str, Any]) -> list[Path]:
        return [folder / name for name in record["features"]["files"]]

    reader: TileReader = ThreadTiles(run_settings.threads)
    if run_settings.is_here and run_settings.reads_apart:
        reader = TileProcess(silence_timeout(run_settings.timeout_s), run_settings.threads)

    def build() -> FeaturesJob:
        device = None
        if encoder_needs_torch(encoder):
            from longvit.device import pick_device, set_threads

            set_threads(run_settings.threads)
            device = pick_device(run_settings.device).device
        return FeaturesJob.of(folder, given, settings, device, reader, show_progress=True)

    try:
        job = JobSpec(FeaturesJob.verb, folder, given, bags_of)
        result = run(build, job, slides, out_dir, settings, run_settings)
    finally:
        reader.stop()
    rows = []
    for record in result.records:
        source = {"mpp": record["mpp"]["x"], "mpp_source": record["mpp"]["source"]}
        facts = {"features": record["features"]["files"][0], "dim": record["features"]["dim"]}
        rows.append({**{name: record.get(name) for name in COLUMNS}, **facts, **source})
    write_table(folder / TABLE, COLUMNS, rows)
    return result


def feature_folder(out_dir: str | Path, tiles: TileSettings, encoder: str) -> Path:
    """Where the bags of an encoder go."""
    return tile_folder(out_dir, tiles) / f"features_{encoder_name(encoder)}"


def silence_timeout(timeout_s: float | None) -> float | None:
    """How long the process that reads tiles may say nothing; None: for ever."""
    return None if timeout_s is None else min(timeout_s, SILENCE_S)


def encoder_needs_torch(encoder: str) -> bool:
    """Whether an encoder runs on a device of torch's."""
    return encoder_name(encoder) != "stain-texture"


class FeaturesJob(TiledJob):
    """Slide -> tiles -> encoder -> bag."""

    verb = "features"

    def __init__(
        self,
        folder: str | Path,
        encoder: TileEncoder,
        tiles: TileSettings,
        tissue: TissueSettings,
        settings: ReadSettings | None = None,
        *,
        layout: Layout = "trident",
        batch: int = BATCH,
        reader: TileReader | None = None,
        show_progress: bool = False,
    ) -> None:
        super().__init__(folder, tiles, tissue, settings)
        self.encoder, self.layout, self.batch = encoder, layout, batch
        self.reader, self._show_progress = reader or ThreadTiles(), show_progress
        self.rests_on |= {"encoder": encoder.digest, "layout": layout}

    @classmethod
    def of(
        cls,
        folder: Path,
        given: Mapping[str, Any],
        settings: ReadSettings,
        device: torch.device | None = None,
        reader: TileReader | None = None,
        *,
        show_progress: bool = False,
    ) -> FeaturesJob:
        """As run.json describes it. Raises `InputError` for an encoder that cannot be used."""
        from longvit.slides.tiles import TileSettings
        from longvit.slides.tissue import TissueSettings

        tiles, tissue = TileSettings(**given["tiles"]), TissueSettings(**given["tissue"])
        encoder = open_encoder(given["encoder"], tiles.tile_px, device)
        more = {"layout": given["layout"], "batch": given["batch"], "reader": reader}
        return cls(folder, encoder, tiles, tissue, settings, **more, show_progress=show_progress)

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """The record is of this digest, and its files have the sizes that it says."""
        record = read_record(self.record_path(slide_id))
        facts = record.get("features", {})
        paths = [self.folder / name for name in facts.get("files", ())]
        return record.get("digest") == digest and bool(paths) and has_sizes(paths, facts.get("bytes"))

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        tissue, grid = self.tissue_and_grid(listed, canvas)
        settings = self.request(listed).settings
        features = self.features_of(TilesRequest(listed.path, grid, settings), listed.slide_id)
        bad, of, most = self.reader.bad_tiles, self.reader.file_tiles, settings.max_bad_tiles
        if most is not None and bad > most:
            text = f"{listed.path}: {bad} of {of} tiles cannot be read, more than --max-bad-tiles {most}"
            raise SlideFailedError("read", text)
        finite = np.isfinite(features).all(1)
        if not finite.all():
            x, y = grid.coords[finite.argmin()]
            raise ValueError(f"the features of {(~finite).sum()} tiles are not finite, the first at level-0 ({x}, {y})")
        paths = write_bag(
            self.folder,
            listed.slide_id,
            features,
            grid.coords,
            layout=self.layout,
            encoder=self.encoder.name,
            coords_attributes=self.attributes(canvas),
        )
        files = [str(path.relative_to(self.folder)) for path in paths]
        return {
            **self.facts(tissue, grid),
            "encoder": {"name": self.encoder.name, "digest": self.encoder.digest},
            "features": {
                "files": files,
                "bytes": [path.stat().st_size for path in paths],
                "dim": self.encoder.dim,
                "layout": self.layout,
            },
            "n_bad_tiles": len(canvas.bad_tiles) + bad,
            "n_file_tiles": canvas.tiles + of,
        }

    def features_of(self, request: TilesRequest, name: str = "") -> NDArray[np.float32]:
        """float32 (N, D), in the order of the grid. Raises `SlideFailedError`."""
        n = len(request.grid)
        features = np.empty((n, self.encoder.dim), np.float32)
        bar = Progress(f"tiles of {name}", n, unit="tiles", brief=True) if self._show_progress else nullcontext()
        with closing(self.reader.tiles(request)) as blocks, bar as progress:
            for numbers, pixels in batches(blocks, self.batch):
                features[numbers] = self.encoder.encode(pixels)
                if progress is not None:
                    progress.advance(len(numbers))
        return features


def batches(blocks: Iterator[TilePixels], size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Numbers (B,) and pixels (B, P, P, 3) of `size` tiles at a time, whatever comes in; the last may be fewer."""
    numbers: list[NDArray[np.int64]] = []
    pixels: list[NDArray[np.uint8]] = []
    waiting = 0
    for block in blocks:
        numbers.append(block.numbers)
        pixels.append(block.pixels)
        waiting += len(block.numbers)
        if waiting < size:
            continue
        all_numbers, all_pixels = np.concatenate(numbers), np.concatenate(pixels)
        while len(all_numbers) >= size:
            yield all_numbers[:size], all_pixels[:size]
            all_numbers, all_pixels = all_numbers[size:], all_pixels[size:]
        numbers, pixels, waiting = [all_numbers], [all_pixels], len(all_numbers)
    if waiting:
        yield np.concatenate(numbers), np.concatenate(pixels)
