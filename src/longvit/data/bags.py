"""Feature bags: the tiles of a slide as vectors, read from the files of the field's extractors.

    bag = read_bag("features_uni/a.h5")      # TRIDENT's layout or CLAM's (.h5, .pt), see `bag_layouts`
    bag.features, bag.coords, bag.attributes

An unusable bag is refused in one line: missing, damaged, in use, empty, not finite, or with values in other files. So
are features and coordinates of different number, and slides of one patient of different width. `.pt` files are loaded
as tensors only: no pickled code runs.

N tiles, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit.data.bag_layouts import H5_FILES, PT_FILES, number_of, tile_level0_px
from longvit.data.identity import canonical
from longvit.errors import InputError, one_line
from longvit.files import file_stem, require_regular_file
from longvit.h5_file import find_dataset, names_in, open_h5, read_attributes, read_numbers
from longvit.slides.file_kind import slide_stem
from longvit.slides.spelling import folded

_SUFFIXES = (".h5", ".pt")  # .h5 first, since it has coordinates
_LFS_HEAD = b"version https://git-lfs"
_MAX_PX = 2**31 - 1
_LENGTH_UNITS = {"um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1000.0}
"""Unit of coordinates -> its length in µm."""


@dataclass(frozen=True)
class FeatureBag:
    """The tiles of one slide as features.

    >>> import longvit
    >>> bag = longvit.read_bag("features/s00.h5")
    >>> len(bag), bag.features.dtype.name
    (8, 'float32')
    """

    path: Path
    """File of the bag."""
    features: NDArray[np.float32] = field(repr=False)
    """(N, D), finite, N ≥ 1."""
    coords: NDArray[np.int64] | None = field(default=None, repr=False)
    """(N, 2) level-0 px; None where the file has none (CLAM's .pt)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of `features` and of `coords`, merged; texts, numbers and arrays."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tile_level0_px(self) -> float | None:
        """Side of a tile in level-0 px, if the attributes state it."""
        return tile_level0_px(self.attributes)


@dataclass(frozen=True)
class PatientBag:
    """The tiles of all slides of a patient, concatenated slide by slide."""

    features: NDArray[np.float32] = field(repr=False)
    """(N, D)."""
    coords: NDArray[np.int64] | None = field(repr=False)
    """(N, 2), each in level-0 px of the tile's slide; None if any slide has none."""
    slide_numbers: NDArray[np.int64] = field(repr=False)
    """(N,): index into `slides` for each tile. Tiles of different slides are not neighbours, whatever their coords."""
    slides: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class BagFiles:
    """Files of the bags of a list of slides."""

    paths: Mapping[str, Path]
    """slide_id -> file."""
    missing: tuple[str, ...]
    """Slides without a file."""
    near: Mapping[str, str] = field(default_factory=dict)
    """slide_id of a missing slide -> name of a file that differs in spelling only."""


def read_bag(path: str | Path, *, mpp: float | None = None) -> FeatureBag:
    """Reads a bag in the layout of TRIDENT, CLAM or STAMP; features become float32, coords int64.

    STAMP's coords are in µm: they become level-0 px with `mpp`, the µm per level-0 px of the slide, and are left out
    where it is not given.

    Raises `InputError` in one line for an unusable bag, including an empty one.

    >>> import longvit
    >>> bag = longvit.read_bag("features/s00.h5")
    >>> bag.features.shape, bag.coords.shape
    ((8, 6), (8, 2))
    """
    path = Path(path)
    _check_exists(path)
    try:
        bag = _read_pt(path) if path.suffix.lower() == ".pt" else _read_h5(path, mpp)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into this machine's memory ({one_line(error, 300)})") from error
    except Exception as error:  # whatever else breaks between opening and the checked array
        raise InputError(f"{path}: damaged ({one_line(error, 300)}); extract this slide again") from error
    if not len(bag):
        raise InputError(f"{path}: an empty bag: features of shape {bag.features.shape}; leave this slide out")
    bad = ~np.isfinite(bag.features).all(1)
    if bad.any():
        raise InputError(
            f"{path}: {bad.sum():,} of {len(bag):,} tiles have features that are not finite (the first is tile "
            f"{bad.argmax():,}); extract this slide again"
        )
    return bag


def join_bags(bags: Sequence[FeatureBag]) -> PatientBag:
    """One bag of all slides of a patient, in order. Raises `InputError` where their features differ in width."""
    if not bags:
        raise InputError("a patient without slides has no bag")
    width = bags[0].features.shape[1]
    for bag in bags:
        if bag.features.shape[1] != width:
            raise _widths_differ(bags[0].path, width, bag.path, bag.features.shape[1])
    coords = [bag.coords for bag in bags if bag.coords is not None]
    return PatientBag(
        np.concatenate([bag.features for bag in bags]),
        np.concatenate(coords) if len(coords) == len(bags) else None,
        np.repeat(np.arange(len(bags)), [len(bag) for bag in bags]),
        tuple(bag.path for bag in bags),
    )


def find_bags(folder: str | Path, slide_ids: Iterable[str]) -> BagFiles:
    """Files of these slides (ids with or without a slide's extension) in a folder of TRIDENT's or CLAM's layout.

    `folder`: the folder of the `.h5` files, CLAM's parent of `h5_files` and `pt_files`, or a parent of a single
    `features_*` folder. An .h5 is preferred to a .pt, since it has coordinates. Raises `InputError` where there is no
    such folder, or more than one.
    """
    folder = _bag_folder(Path(folder))
    by_stem: dict[str, Path] = {}
    for suffix, subfolder in ((".h5", folder), (".h5", folder / H5_FILES), (".pt", folder), (".pt", folder / PT_FILES)):
        for path in sorted(subfolder.glob(f"[!.]*{suffix}")):
            by_stem.setdefault(canonical(slide_stem(path.name[: -len(suffix)])), path)
    stem_of = {slide_id: canonical(slide_stem(file_stem(slide_stem(slide_id)))) for slide_id in slide_ids}
    paths = {slide_id: by_stem[stem] for slide_id, stem in stem_of.items() if stem in by_stem}
    missing = tuple(slide_id for slide_id in stem_of if slide_id not in paths)
    by_form = {folded(stem): path.name for stem, path in by_stem.items()} if missing else {}
    near = {slide_id: by_form[form] for slide_id in missing if (form := folded(stem_of[slide_id])) in by_form}
    return BagFiles(paths, missing, near)


def folder_of_encoder(folder: str | Path, encoder: str) -> Path:
    """Folder `features_<encoder>` with bags in a job's folder, to one level below.

    Raises `InputError` where there is none, or one for each of several kinds of tiles.
    """
    folder = Path(folder)
    places = [path for pattern in ("", "*/") for path in sorted(folder.glob(f"{pattern}features_{encoder}"))]
    places = [path for path in places if path.is_dir() and _has_bags(path)]
    if len(places) == 1:
        return places[0]
    found = f"{len(places)} folders" if places else "no folder"
    names = (
        f" ({', '.join(str(path.relative_to(folder)) for path in places)}); give one as --features" if places else ""
    )
    raise InputError(f"{folder}: {found} features_{encoder} with features in it{names}")


def _bag_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of features")
    if _has_bags(folder):
        return folder
    candidates = [path for pattern in ("features_*", "*/features_*") for path in sorted(folder.glob(pattern))]
    candidates = [path for path in candidates if path.is_dir() and _has_bags(path)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(str(path.relative_to(folder)) for path in candidates)
        raise InputError(f"{folder}: {len(candidates)} folders of features in it ({names}); name one")
    raise InputError(f"{folder}: no features in it (searched for .h5 and .pt in {H5_FILES}, {PT_FILES} and features_*)")


def _has_bags(folder: Path) -> bool:
    folders = (folder, folder / H5_FILES, folder / PT_FILES)
    return any(next(subfolder.glob(f"[!.]*{suffix}"), None) for subfolder in folders for suffix in _SUFFIXES)


def _read_h5(path: Path, mpp: float | None) -> FeatureBag:
    with open_h5(path, "extract this slide again") as file:
        named_datasets = [(name, find_dataset(file, name, path)) for name in ("features", "feats", "coords")]
        data = {name: dataset for name, dataset in named_datasets if dataset is not None}
        features_data = data.get("features", data.get("feats"))  # STAMP calls them feats
        if features_data is None:
            names = names_in(file)
            raise InputError(f"{path}: no dataset 'features' (it has {names}); is this a file of tile features?")
        attributes = read_attributes(features_data, path)
        features = _checked_features(path, _of_one_slide(read_numbers(features_data, path)))
        coords = None
        if "coords" in data:
            attributes |= read_attributes(data["coords"], path)
            unit = attributes.get("unit", file.attrs.get("unit", "px"))
            values = _of_one_slide(read_numbers(data["coords"], path))
            if str(unit) in _LENGTH_UNITS:  # STAMP: coordinates in µm, not in pixels of a level
                if mpp is None:
                    return FeatureBag(path, features, None, MappingProxyType(attributes))
                per_px = mpp / _LENGTH_UNITS[str(unit)]
                side = number_of(attributes.get("tile_size_um", file.attrs.get("tile_size_um")))
                attributes |= {} if side is None else {"patch_size_level0": side / mpp}
                values = values / per_px if values.dtype.kind in "iuf" else values
            coords = _checked_coords(path, values, len(features))
        return FeatureBag(path, features, coords, MappingProxyType(attributes))


def _read_pt(path: Path) -> FeatureBag:
    """The bare tensor, in its own dtype, or float32 where NumPy has no such dtype."""
    import torch

    from longvit.torch_file import load_tensors, refuse_hollow, require_plain

    refuse_hollow(path)
    try:
        content = load_tensors(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(
            f"{path}: not a tensor file, or damaged ({one_line(error, 120)}); only plain tensors are opened"
        ) from error
    if not isinstance(content, torch.Tensor):
        keys = one_line(", ".join(str(key)[:40] for key in list(content)[:9]), 300) if isinstance(content, dict) else ""
        what = f"a dict of {keys}"[:80] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: holds {what}, not a tensor of features")
    require_plain(content, "the tensor", path)
    content = content.detach().resolve_conj().resolve_neg()
    content = content.float() if content.dtype == torch.bfloat16 else content
    return FeatureBag(path, _checked_features(path, _of_one_slide(content.numpy())))


def _check_exists(path: Path) -> None:
    require_regular_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_HEAD))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if head == _LFS_HEAD:
        raise InputError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")


def _of_one_slide(values: Any) -> Any:
    """(1, N, D) -> (N, D): a batch of one slide."""
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def _checked_features(path: Path, features: Any) -> NDArray[np.float32]:
    if features.ndim != 2 or features.dtype.kind != "f" or (len(features) and not features.shape[1]):
        raise InputError(f"{path}: features of shape {features.shape} and type {features.dtype}, not (tiles, width)")
    with np.errstate(over="ignore"):  # an infinity is refused later, with its tile
        return np.ascontiguousarray(features, np.float32)


def _checked_coords(path: Path, coords: Any, n: int) -> NDArray[np.int64]:
    """Whole level-0 pixels; floats are rounded."""
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise InputError(f"{path}: coords of shape {coords.shape} and type {coords.dtype}, not (tiles, 2)")
    if len(coords) != n:
        raise InputError(f"{path}: {n:,} features and {len(coords):,} coords do not match; extract this slide again")
    if coords.dtype.kind == "f":
        if not np.isfinite(coords).all():
            raise InputError(f"{path}: coords that are not finite; extract this slide again")
        coords = np.rint(coords)
    outside = ((coords < 0) | (coords > _MAX_PX)).any(1)
    if outside.any():
        tile = int(outside.argmax())
        x, y = (f"{value:.6g}" if coords.dtype.kind == "f" else str(value) for value in coords[tile].tolist())
        raise InputError(f"{path}: tile {tile:,} is at ({x}, {y}), outside any slide; extract it again")
    return np.ascontiguousarray(coords, np.int64)


def _widths_differ(path: Path, width: int, other_path: Path, other_width: int) -> InputError:
    return InputError(
        f"{other_path}: features of width {other_width}, while {path} has {width}; were both made by the same encoder?"
    )
