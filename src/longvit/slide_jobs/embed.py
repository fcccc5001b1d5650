"""One vector per slide: HDF5 in TRIDENT's slide-feature layout, and one table for all.

    OUT/slide_features_longvit/<slide_id>.h5     features float32 (D,), coords int64 (N, 2)
    OUT/slide_features_longvit/<slide_id>.json   where it came from: slide, mpp and its source, canvas, weights
    OUT/embeddings.csv                           slide_id, path, f0 … f<D-1>

The table is CSV: it opens in R, pandas and a spreadsheet without another package, and nine significant digits
bring every float32 back to the last bit. `coords` are the top-left corners of the model's patches in level-0 pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data import bag_layouts
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, printable, write_bytes
from longvit.h5_file import find_dataset, open_h5, read_numbers
from longvit.slide_jobs.job import ModelJob, config_of, write_table
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, model_folder, model_for, run

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas
    from longvit.slides.placement import Placement

ENCODER = "longvit"
FOLDER = f"slide_features_{ENCODER}"
TABLE = "embeddings.csv"


def embed_slides(
    model: LongViT | str | Path,
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Writes a vector of `embed_dim` float32 per slide, and `embeddings.csv` for all of them.

    `model`: a LongViT, or its folder. Raises `InputError` where the folder cannot be written to; a slide that fails
    becomes a row of `problems.csv`.
    """
    out_dir, settings, run_settings = Path(out_dir), settings or ReadSettings(), run_settings or RunSettings()
    dim = config_of(model).embed_dim
    facts = {"model": model_folder(model, out_dir, run_settings)}
    job = JobSpec(EmbedJob.verb, out_dir / FOLDER, facts, lambda record: [vector_path(out_dir, record)])

    def build() -> EmbedJob:
        return EmbedJob(model_for(model, run_settings), out_dir / FOLDER, settings)

    result = run(build, job, slides, out_dir, settings, run_settings)
    write_embeddings(out_dir, result.records, dim)
    return result


def write_embeddings(out_dir: Path, records: Sequence[Mapping[str, Any]], dim: int) -> None:
    """embeddings.csv: a row per record, from the vectors that lie beside them."""
    rows = []
    for record in records:
        features = read_features(vector_path(out_dir, record))
        cells = {f"f{i}": f"{value:.9g}" for i, value in enumerate(features)}
        rows.append({"slide_id": record["slide_id"], "path": record["path"], **cells})
    write_table(out_dir / TABLE, ["slide_id", "path", *(f"f{i}" for i in range(dim))], rows)


def vector_path(out_dir: Path, record: Mapping[str, Any]) -> Path:
    """The vector that a record names."""
    return out_dir / FOLDER / str(record["features"]["file"])


def read_features(path: str | Path) -> np.ndarray:
    """The vector of a slide, float32 (D,). `InputError` where the file does not hold one."""
    path = Path(path)
    with open_h5(path, "remove it, and embed the slide again") as file:
        if (data := find_dataset(file, "features", path)) is None or data.ndim != 1:
            raise InputError(f"{path}: no vector of features in it; remove it, and embed the slide again")
        features: np.ndarray = read_numbers(data, path)
    return features


class EmbedJob(ModelJob):
    """Slide -> canvas -> mean token -> HDF5."""

    verb = "embed"

    def features_path(self, slide_id: str) -> Path:
        """The slide's HDF5 file."""
        return self.folder / f"{file_stem(slide_id)}.h5"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """The record and the vector are both of this digest (a kill between the two leaves them different)."""
        if not super().is_finished(slide_id, digest):
            return False
        path = self.features_path(slide_id)
        try:
            with open_h5(path, "") as file:
                data = find_dataset(file, "features", path)
                return (
                    data is not None
                    and data.shape == (self.model.config.embed_dim,)
                    and (bool(data.attrs.get("digest") == digest))
                )
        except InputError:
            return False

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        return self.written(listed, digest, canvas, self.model.embed(canvas))

    def written(self, listed: ListedSlide, digest: str, canvas: Canvas, features: np.ndarray) -> dict[str, Any]:
        """Writes a slide's vector (D,), returns what its record says of it; the canvas need not have all its pixels."""
        if not np.isfinite(features).all():
            raise ValueError("the embedding is not finite")
        patches = self._write(listed, digest, features, canvas)
        return {
            "features": {"file": self.features_path(listed.slide_id).name, "dim": len(features), "patches": patches}
        }

    def _write(self, listed: ListedSlide, digest: str, features: np.ndarray, canvas: Canvas) -> int:
        """The HDF5 file; returns the number of patches."""
        import h5py

        patch_px = self.model.config.patch_px
        coords = patch_corners(canvas.placement, patch_px)
        attributes = {"name": printable(listed.slide_id), "savetodir": printable(str(self.folder))}
        # In memory first: on a full disk HDF5 keeps the file open and crashes at exit (h5py 3.16, 2026-11).
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            data = file.create_dataset("features", data=features)
            data.attrs.update(attributes | {"encoder": ENCODER, "digest": digest})
            # A grid of corners shrinks about 100-fold.
            grid = file.create_dataset("coords", data=coords, compression="gzip", shuffle=True)
            grid.attrs.update(attributes | coords_attributes(canvas, patch_px))
        write_bytes(self.features_path(listed.slide_id), content.getvalue())
        return len(coords)


def patch_corners(placement: Placement, patch_px: int) -> np.ndarray:
    """Top-left corners (x, y) of the canvas's patches in level-0 pixels, row-major, int64 (N, 2).

    On a padded canvas the patches of the margin lie outside the slide: their corners may be negative.
    """
    corner_px = np.arange(0, placement.side_px, patch_px)
    x, y = placement.to_level0(corner_px, corner_px)
    x_grid, y_grid = np.meshgrid(np.rint(x).astype(np.int64), np.rint(y).astype(np.int64))
    return np.stack([x_grid.ravel(), y_grid.ravel()], axis=1)


def coords_attributes(canvas: Canvas, patch_px: int) -> dict[str, Any]:
    """What TRIDENT's reader asks of `coords`. A stretched canvas has patches that are not square on the slide:
    `patch_size_level0` is their width there and `patch_height_level0` (ours) their height."""
    x_scale, y_scale = canvas.placement.downsample
    mpp, (width_px, height_px) = canvas.source.mpp, canvas.source.size_px
    magnification = bag_layouts.magnification(mpp.mean) if mpp else None
    return {
        "patch_size": patch_px,
        "patch_size_level0": round(patch_px * x_scale),
        "patch_height_level0": round(patch_px * y_scale),
        "level0_magnification": "None" if magnification is None else magnification,
        "target_magnification": "None" if magnification is None else magnification / x_scale,
        "overlap": 0,
        "level0_width": width_px,
        "level0_height": height_px,
    }
