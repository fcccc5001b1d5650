"""Layouts of tile feature files of TRIDENT and CLAM, to the name, dtype and attribute; and their writers.

    TRIDENT  FOLDER/<slide_id>.h5            features (N, D), coords int64 (N, 2), attributes on both
             FOLDER/<slide_id>_patches.h5    coords alone
    CLAM     FOLDER/h5_files/<slide_id>.h5   features float32 (N, D), coords int32 (N, 2), no attributes
             FOLDER/pt_files/<slide_id>.pt   the bare float32 tensor (N, D)

`coords` are top-left corners (x, y) in level-0 pixels in both. One difference from the files of those tools: chunks are
(256, D), not (1, D) as in TRIDENT, so that reading a bag is not one call per tile. N may be 0.

N tiles, D width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longvit.files import file_stem, printable, write_bytes

Layout = Literal["trident", "clam"]
H5_FILES, PT_FILES = "h5_files", "pt_files"
_ROWS_AT_ONCE = 256


def write_bag(
    folder: str | Path,
    slide_id: str,
    features: NDArray[Any],
    coords: NDArray[Any],
    *,
    layout: Layout = "trident",
    encoder: str = "",
    coords_attributes: Mapping[str, Any] | None = None,
) -> tuple[Path, ...]:
    """Writes features (N, D) and coords (N, 2) in the layout of TRIDENT or CLAM; returns the files. Each is atomic.

    `coords_attributes`: attributes of `coords` that TRIDENT's readers need, see `tile_attributes`. CLAM's layout has no
    place for them, nor for the encoder's name. N may be 0.
    """
    folder, stem = Path(folder), file_stem(slide_id)
    assert features.ndim == 2, features.shape
    assert coords.shape == (len(features), 2), (features.shape, coords.shape)
    if layout == "clam":
        features = np.ascontiguousarray(features, np.float32)
        return (
            _write_h5(folder / H5_FILES / f"{stem}.h5", features, coords.astype(np.int32), {}, {}),
            _write_tensor(folder / PT_FILES / f"{stem}.pt", features),
        )
    common = {"name": printable(slide_id), "savetodir": printable(str(folder))}
    all_coords_attributes = {**(coords_attributes or {}), **common}
    path = folder / f"{stem}.h5"
    return (_write_h5(path, features, coords.astype(np.int64), {**common, "encoder": encoder}, all_coords_attributes),)


def write_coordinates(path: str | Path, slide_id: str, coords: NDArray[Any], attributes: Mapping[str, Any]) -> Path:
    """Writes TRIDENT's `<name>_patches.h5`: `coords` int64 (N, 2) with its attributes. Atomic."""
    path = Path(path)
    all_attributes = {**attributes, "name": printable(slide_id), "savetodir": printable(str(path.parent))}
    return _write_h5(path, None, coords.astype(np.int64), {}, all_attributes)


def tile_attributes(
    *, tile_px: int, tile_mpp: float, overlap_px: int, mpp: tuple[float, float], size_px: tuple[int, int]
) -> dict[str, Any]:
    """TRIDENT's attributes of `coords`, for tiles of tile_px at tile_mpp µm/px on a slide of `mpp` (x, y) and `size_px`
    at level 0.

    Magnifications are written for its reader; a tile's true side is `patch_size_level0`. Where pixels are not square
    that is its width, and `patch_height_level0` (our own attribute) its height.
    """
    width, height = round(tile_px * tile_mpp / mpp[0]), round(tile_px * tile_mpp / mpp[1])
    target = 10 / tile_mpp
    return {
        "patch_size": tile_px,
        "patch_size_level0": width,
        **({"patch_height_level0": height} if height != width else {}),
        "level0_magnification": magnification(math.sqrt(mpp[0] * mpp[1])),
        "target_magnification": int(target) if target.is_integer() else target,
        "overlap": overlap_px,
        "level0_width": size_px[0],
        "level0_height": size_px[1],
    }


def tile_level0_px(attributes: Mapping[str, Any]) -> float | None:
    """Side of a tile in level-0 px from the attributes of `coords` in TRIDENT's or CLAM's form; None where absent or
    invalid."""
    side = _stated_side(attributes)
    return side if side is not None and 0 < side < 2**31 else None


def _stated_side(attributes: Mapping[str, Any]) -> float | None:
    if (side := number_of(attributes.get("patch_size_level0"))) is not None:
        return side
    patch = number_of(attributes.get("patch_size"))
    if patch is None:
        return None
    source, target = (number_of(attributes.get(f"{name}_magnification")) for name in ("level0", "target"))
    if source is not None and target:
        return patch * source // target
    if "patch_level" not in attributes:
        return None
    downsample = 1.0 if number_of(attributes["patch_level"]) == 0 else number_of(attributes.get("downsample"))
    return None if downsample is None else patch * downsample * (number_of(attributes.get("custom_downsample")) or 1)


def magnification(mpp: float) -> int:
    """TRIDENT's magnification bin; for its reader only, since a magnification is not a resolution."""
    bins = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
    return next((magnification for limit, magnification in bins if mpp < limit), 2)


def number_of(value: Any) -> float | None:
    """A number, the first of several, or None. TRIDENT writes 'None' for unknown values."""
    try:
        number = float(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _write_h5(
    path: Path,
    features: NDArray[Any] | None,
    coords: NDArray[Any],
    features_attributes: Mapping[str, Any],
    coords_attributes: Mapping[str, Any],
) -> Path:
    import h5py

    # In memory first: on a full disk HDF5 keeps the file open and crashes at exit (h5py 3.16, 2026-11).
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, values, attributes in (
            ("features", features, features_attributes),
            ("coords", coords, coords_attributes),
        ):
            if values is None:
                continue
            chunks = (min(_ROWS_AT_ONCE, len(values)), values.shape[1]) if len(values) else None
            file.create_dataset(name, data=values, chunks=chunks).attrs.update(attributes)
    write_bytes(path, content.getbuffer())  # no copy: a bag may have a gigabyte
    return path


def _write_tensor(path: Path, features: NDArray[np.float32]) -> Path:
    import torch

    content = io.BytesIO()
    torch.save(torch.from_numpy(features), content)
    write_bytes(path, content.getbuffer())
    return path
