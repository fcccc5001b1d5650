"""Slide embeddings: one vector per slide as HDF5 in TRIDENT's slide-feature layout, and one table of all vectors.

    OUT/slide_features_longvit/<slide_id>.h5     features float32 (D,), coords int64 (N, 2)
    OUT/slide_features_longvit/<slide_id>.json   provenance: slide, mpp and its source, canvas, weights
    OUT/embeddings.csv                           slide_id, path, f0 … f<D-1>

The table is CSV, which R, pandas and spreadsheets open without another package. Its nine significant digits restore
every float32 bit for bit. `coords` are the top-left corners of the model's patches in level-0 pixels.
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
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    model: LongViT | str | Path,
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Embeds slides: writes a float32 vector of `embed_dim` per slide, and `embeddings.csv` with all vectors.

    `model` is a LongViT or its folder. A slide that fails becomes a row of `problems.csv`. Raises `InputError` if
    `out_dir` cannot be written to.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> result = longvit.embed_slides(slides, "embeddings", "longvit-tiny-stem")
    >>> result.done
    ('CMU-1-Small-Region',)
    """
    out_dir = Path(out_dir)
    read_settings, run_settings = read_settings or ReadSettings(), run_settings or RunSettings()
    dim = config_of(model).embed_dim
    parameters = {"model": model_folder(model, out_dir, run_settings)}
    job = JobSpec(EmbedJob.verb, out_dir / FOLDER, parameters, lambda record: [vector_path(out_dir, record)])

    def build() -> EmbedJob:
        return EmbedJob(model_for(model, run_settings), out_dir / FOLDER, read_settings)

    result = run(build, job, slides, out_dir, read_settings, run_settings)
    write_embeddings(out_dir, result.records, dim)
    return result


def write_embeddings(out_dir: Path, records: Sequence[Mapping[str, Any]], dim: int) -> None:
    """Writes embeddings.csv: one row per record, with the vector that the record names."""
    rows = []
    for record in records:
        features = read_features(vector_path(out_dir, record))
        values = {f"f{i}": f"{value:.9g}" for i, value in enumerate(features)}
        rows.append({"slide_id": record["slide_id"], "path": record["path"], **values})
    write_table(out_dir / TABLE, ["slide_id", "path", *(f"f{i}" for i in range(dim))], rows)


def vector_path(out_dir: Path, record: Mapping[str, Any]) -> Path:
    """Path of the HDF5 file that a record names."""
    return out_dir / FOLDER / str(record["features"]["file"])


def read_features(path: str | Path) -> np.ndarray:
    """Reads a slide's vector, float32 (D,). Raises `InputError` if the file holds none."""
    path = Path(path)
    with open_h5(path, "remove it and embed the slide again") as file:
        if (data := find_dataset(file, "features", path)) is None or data.ndim != 1:
            raise InputError(f"{path}: no feature vector in it; remove it and embed the slide again")
        features: np.ndarray = read_numbers(data, path)
    return features


class EmbedJob(ModelJob):
    """Embedding job: slide -> canvas -> mean token -> HDF5."""

    verb = "embed"

    def features_path(self, slide_id: str) -> Path:
        """Path of the slide's HDF5 file."""
        return self.folder / f"{file_stem(slide_id)}.h5"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if record and vector both have this digest (a kill between the two writes leaves them different)."""
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
        """Writes a slide's vector (D,) and returns its entry in the record; the canvas may lack pixels."""
        if not np.isfinite(features).all():
            raise ValueError("the embedding is not finite")
        patches = self._write(listed, digest, features, canvas)
        return {
            "features": {"file": self.features_path(listed.slide_id).name, "dim": len(features), "patches": patches}
        }

    def _write(self, listed: ListedSlide, digest: str, features: np.ndarray, canvas: Canvas) -> int:
        """Writes the HDF5 file and returns the number of patches."""
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

    On a padded canvas the patches of the margin are outside the slide, so their corners may be negative.
    """
    corner_px = np.arange(0, placement.side_px, patch_px)
    x, y = placement.to_level0(corner_px, corner_px)
    x_grid, y_grid = np.meshgrid(np.rint(x).astype(np.int64), np.rint(y).astype(np.int64))
    return np.stack([x_grid.ravel(), y_grid.ravel()], axis=1)


def coords_attributes(canvas: Canvas, patch_px: int) -> dict[str, Any]:
    """HDF5 attributes of `coords` that TRIDENT's reader needs.

    Patches of a stretched canvas are not square on the slide: `patch_size_level0` is their width at level 0, and
    `patch_height_level0` (an addition of longvit) their height.
    """
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
