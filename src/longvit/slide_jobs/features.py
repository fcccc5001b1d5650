"""Tile features: one bag per slide, in TRIDENT's or CLAM's layout.

    OUT/20x_256px_0px_overlap/features_<encoder>/<slide_id>.h5       features float32 (N, D), coords int64 (N, 2)
    OUT/20x_256px_0px_overlap/features_<encoder>/h5_files, pt_files  the same in CLAM's layout (layout "clam")
    OUT/20x_256px_0px_overlap/features_<encoder>/<slide_id>.json     provenance: slide, mpp and its source, …
    OUT/20x_256px_0px_overlap/features_<encoder>/features.csv        slide_id, path, features, tiles, dim, …

Tiles are those of `longvit tiles` with the same settings. Threads decode their pixels while the encoder runs. Only a
few blocks of pixels are held at a time, so a slide takes the memory of its features. A slide without tissue has an
empty bag.
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
from longvit.slide_jobs.encoder_names import absolute, check_tiles, encoder_name, located
from longvit.slide_jobs.job import read_record, write_table
from longvit.slide_jobs.reading import ReadSettings, SlideFailedError, with_mpp
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, run
from longvit.slide_jobs.tile_encoders import TileEncoder, open_encoder
from longvit.slide_jobs.tile_process import SILENCE_S, TileProcess
from longvit.slide_jobs.tile_reader import ThreadTiles, TileReader, TilesRequest
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
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    encoder: str = "stain-texture",
    tiles: TileSettings | None = None,
    tissue: TissueSettings | None = None,
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
    *,
    layout: Layout = "trident",
    batch: int = BATCH,
    download: bool = False,
) -> SlideJobsResult:
    """Encodes the tiles of slides: writes a bag of features per slide, and `features.csv` with all slides.

    `encoder`: a name, see `tile_encoders`. `batch`: tiles per forward pass of the encoder. `download`: fetch the
    weights of a published encoder from the hub where they are not on this machine.

    A slide that fails becomes a row of `problems.csv`. Raises `InputError` for an encoder that cannot be used, or if
    `out_dir` cannot be written to.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> result = longvit.feature_slides(slides, "tiles", "stain-texture", longvit.TileSettings(mpp=1.0))
    >>> result.records[0]["features"]["dim"]
    137
    """
    from longvit.slides.tiles import TileSettings
    from longvit.slides.tissue import TissueSettings

    if batch < 1:
        raise InputError(f"--batch {batch}: at least 1")
    tiles, tissue = tiles or TileSettings(), tissue or TissueSettings()
    read_settings, run_settings = read_settings or ReadSettings(), run_settings or RunSettings()
    check_tiles(encoder, tiles.tile_px, tiles.mpp)
    encoder = located(encoder, download=download)
    folder = feature_folder(out_dir, tiles, encoder)
    parameters = {
        "encoder": absolute(encoder),
        "layout": layout,
        "batch": batch,
        "tiles": asdict(tiles),
        "tissue": asdict(tissue),
    }

    def bag_files(record: Mapping[str, Any]) -> list[Path]:
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
        return FeaturesJob.from_parameters(folder, parameters, read_settings, device, reader, show_progress=True)

    try:
        job = JobSpec(FeaturesJob.verb, folder, parameters, bag_files)
        result = run(build, job, slides, out_dir, read_settings, run_settings)
    finally:
        reader.stop()
    write_table(folder / TABLE, COLUMNS, [table_row(record) for record in result.records])
    return result


def table_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Row of features.csv from a slide's record."""
    return {
        **{name: record.get(name) for name in COLUMNS},
        "features": record["features"]["files"][0],
        "dim": record["features"]["dim"],
        "mpp": record["mpp"]["x"],
        "mpp_source": record["mpp"]["source"],
    }


def feature_folder(out_dir: str | Path, tiles: TileSettings, encoder: str) -> Path:
    """Folder of an encoder's bags."""
    return tile_folder(out_dir, tiles) / f"features_{encoder_name(encoder)}"


def silence_timeout(timeout_s: float | None) -> float | None:
    """Seconds without output after which the tile-reading process is killed; None: never."""
    return None if timeout_s is None else min(timeout_s, SILENCE_S)


def encoder_needs_torch(encoder: str) -> bool:
    """True if the encoder runs on a torch device."""
    return encoder_name(encoder) != "stain-texture"


class FeaturesJob(TiledJob):
    """Feature job: slide -> tiles -> encoder -> bag."""

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
        self.digest_inputs |= {"encoder": encoder.digest, "layout": layout}

    @classmethod
    def from_parameters(
        cls,
        folder: Path,
        given: Mapping[str, Any],
        settings: ReadSettings,
        device: torch.device | None = None,
        reader: TileReader | None = None,
        *,
        show_progress: bool = False,
    ) -> FeaturesJob:
        """Job with the parameters stored in run.json. Raises `InputError` for an encoder that cannot be used."""
        from longvit.slides.tiles import TileSettings
        from longvit.slides.tissue import TissueSettings

        tiles, tissue = TileSettings(**given["tiles"]), TissueSettings(**given["tissue"])
        encoder = open_encoder(given["encoder"], tiles.tile_px, device)
        return cls(
            folder,
            encoder,
            tiles,
            tissue,
            settings,
            layout=given["layout"],
            batch=given["batch"],
            reader=reader,
            show_progress=show_progress,
        )

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if the record has this digest and its files have the recorded sizes."""
        record = read_record(self.record_path(slide_id))
        bag = record.get("features", {})
        paths = [self.folder / name for name in bag.get("files", ())]
        return record.get("digest") == digest and bool(paths) and has_sizes(paths, bag.get("bytes"))

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        tiles = self.slide_tiles(listed, canvas)
        grid, settings = tiles.grid, with_mpp(self.settings, listed.mpp)
        features = self.encode_tiles(TilesRequest(listed.path, grid, settings), listed.slide_id)
        n_bad, n_tiles, most = self.reader.bad_tiles, self.reader.file_tiles, settings.max_bad_tiles
        if most is not None and n_bad > most:
            text = f"{listed.path}: {n_bad} of {n_tiles} tiles cannot be read, more than --max-bad-tiles {most}"
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
            **self.tiling_record(tiles),
            "encoder": {"name": self.encoder.name, "digest": self.encoder.digest},
            "features": {
                "files": files,
                "bytes": [path.stat().st_size for path in paths],
                "dim": self.encoder.dim,
                "layout": self.layout,
            },
            "n_bad_tiles": len(canvas.bad_tiles) + n_bad,
            "n_file_tiles": canvas.tiles + n_tiles,
        }

    def encode_tiles(self, request: TilesRequest, name: str = "") -> NDArray[np.float32]:
        """Features float32 (N, D) in the order of the grid. Raises `SlideFailedError`."""
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
    """Regroups blocks into batches of `size` tiles: numbers (B,) and pixels (B, P, P, 3); the last may be smaller."""
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
