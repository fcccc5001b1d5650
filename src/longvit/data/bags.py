"""Feature bags: the tiles of a slide as vectors, read from the files that the field's extractors write.

    bag = read_bag("features_uni/a.h5")      # TRIDENT's layout or CLAM's (.h5, .pt), see `bag_layouts`
    bag.features, bag.coords, bag.attributes

A bag that cannot be used is refused in one line: missing, damaged, in use, empty, not finite, values that lie in other
files, features and coordinates of different number, slides of one patient of different width. `.pt` files are opened as
tensors only: no pickled code runs.

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

from longvit.data.bag_layouts import H5_FILES, PT_FILES, tile_level0_px
from longvit.data.identity import canonical, folded
from longvit.data.slide_files import slide_stem
from longvit.errors import InputError
from longvit.files import file_stem, require_regular_file
from longvit.h5_file import find_dataset, names_in, one_line, open_h5, read_attributes, read_numbers

_SUFFIXES = (".h5", ".pt")  # the first has coordinates, so it goes first
_LFS_HEAD = b"version https://git-lfs"
_MOST_PX = 2**31 - 1
_LENGTHS = ("um", "µm", "μm", "mm")


@dataclass(frozen=True)
class FeatureBag:
    """The tiles of one slide."""

    path: Path
    features: NDArray[np.float32] = field(repr=False)
    """(N, D), finite, N ≥ 1."""
    coords: NDArray[np.int64] | None = field(default=None, repr=False)
    """(N, 2) level-0 px; None where the file has none (CLAM's .pt)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Those of `features` and of `coords`, together; texts, numbers and arrays."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tile_level0_px(self) -> float | None:
        """Side of a tile in level-0 px, where the attributes say it."""
        return tile_level0_px(self.attributes)


@dataclass(frozen=True)
class PatientBag:
    """The tiles of all slides of a patient, one slide after the other."""

    features: NDArray[np.float32] = field(repr=False)
    """(N, D)."""
    coords: NDArray[np.int64] | None = field(repr=False)
    """(N, 2), each in level-0 px of its own slide; None where one slide has none."""
    slide_numbers: NDArray[np.int64] = field(repr=False)
    """(N,): which of `slides` a tile lies on. Tiles of different slides are no neighbours, whatever their coords."""
    slides: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class BagFiles:
    """Where the bags of a list of slides lie."""

    paths: Mapping[str, Path]
    """slide_id -> file."""
    missing: tuple[str, ...]
    """Slides without one."""
    near: Mapping[str, str] = field(default_factory=dict)
    """Of these, slide_id -> the name of a file that differs from it in spelling only."""


def read_bag(path: str | Path) -> FeatureBag:
    """Reads a bag that TRIDENT, CLAM, or anyone in their layouts wrote; features become float32, coords int64.

    Raises `InputError` in one line for whatever cannot be used, an empty bag included.

    >>> import longvit
    >>> bag = longvit.read_bag("features/s00.h5")
    >>> bag.features.shape, bag.coords.shape
    ((8, 6), (8, 2))
    """
    path = Path(path)
    _check_there(path)
    try:
        bag = _read_pt(path) if path.suffix.lower() == ".pt" else _read_h5(path)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into this machine's memory ({one_line(error)})") from error
    except Exception as error:  # whatever else breaks between opening and the checked array
        raise InputError(f"{path}: damaged ({one_line(error)}); extract this slide again") from error
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
    """One bag of all slides of a patient, in their order. `InputError` where the slides' features differ in width."""
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
    """The files of these slides (ids with or without a slide's extension) in a folder of TRIDENT's or CLAM's layout.

    `folder`: the one with the `.h5` files, CLAM's above `h5_files` and `pt_files` (an .h5 goes before a .pt, since it
    has coordinates), or one from which a single `features_*` folder is reached. Raises `InputError` where there is no
    such folder, or more than one.
    """
    folder = _bag_folder(Path(folder))
    by_stem: dict[str, Path] = {}
    for suffix, place in ((".h5", folder), (".h5", folder / H5_FILES), (".pt", folder), (".pt", folder / PT_FILES)):
        for path in sorted(place.glob(f"[!.]*{suffix}")):
            by_stem.setdefault(canonical(slide_stem(path.name[: -len(suffix)])), path)
    stem_of = {slide_id: canonical(slide_stem(file_stem(slide_stem(slide_id)))) for slide_id in slide_ids}
    found = {slide_id: by_stem[stem] for slide_id, stem in stem_of.items() if stem in by_stem}
    missing = tuple(slide_id for slide_id in stem_of if slide_id not in found)
    by_form = {folded(stem): path.name for stem, path in by_stem.items()} if missing else {}
    near = {slide_id: by_form[form] for slide_id in missing if (form := folded(stem_of[slide_id])) in by_form}
    return BagFiles(found, missing, near)


def _bag_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of features")
    if _has_bags(folder):
        return folder
    inside = [path for pattern in ("features_*", "*/features_*") for path in sorted(folder.glob(pattern))]
    inside = [path for path in inside if path.is_dir() and _has_bags(path)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(str(path.relative_to(folder)) for path in inside)
        raise InputError(f"{folder}: {len(inside)} folders of features in it ({names}); name one")
    raise InputError(f"{folder}: no features in it (looked for .h5 and .pt, in {H5_FILES}, {PT_FILES} and features_*)")


def _has_bags(folder: Path) -> bool:
    places = (folder, folder / H5_FILES, folder / PT_FILES)
    return any(next(place.glob(f"[!.]*{suffix}"), None) for place in places for suffix in _SUFFIXES)


def _read_h5(path: Path) -> FeatureBag:
    with open_h5(path, "extract this slide again") as file:
        found = [(name, find_dataset(file, name, path)) for name in ("features", "feats", "coords")]
        data = {name: of for name, of in found if of is not None}
        of_features = data.get("features", data.get("feats"))  # STAMP calls them feats
        if of_features is None:
            there = names_in(file)
            raise InputError(f"{path}: no dataset 'features' (it has {there}); is this a file of tile features?")
        attributes = read_attributes(of_features, path)
        features = _checked_features(path, _of_one_slide(read_numbers(of_features, path)))
        coords = None
        if "coords" in data:
            attributes |= read_attributes(data["coords"], path)
            unit = attributes.get("unit", file.attrs.get("unit", "px"))
            if str(unit) in _LENGTHS:  # STAMP: they are no pixels of any level
                return FeatureBag(path, features, None, MappingProxyType(attributes))
            coords = _checked_coords(path, _of_one_slide(read_numbers(data["coords"], path)), len(features))
        return FeatureBag(path, features, coords, MappingProxyType(attributes))


def _read_pt(path: Path) -> FeatureBag:
    """The bare tensor, in its own dtype, or float32 where NumPy has none for it."""
    import torch

    from longvit.torch_file import load_tensors, refuse_hollow, require_plain

    refuse_hollow(path)
    try:
        content = load_tensors(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive fails in many ways; pickled code in one
        raise InputError(
            f"{path}: not a tensor file, or damaged ({one_line(error)[:120]}); only plain tensors are opened"
        ) from error
    if not isinstance(content, torch.Tensor):
        keys = one_line(", ".join(str(key)[:40] for key in list(content)[:9])) if isinstance(content, dict) else ""
        what = f"a dict of {keys}"[:80] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: holds {what}, not a tensor of features")
    require_plain(content, "the tensor", path)
    content = content.detach().resolve_conj().resolve_neg()
    content = content.float() if content.dtype == torch.bfloat16 else content
    return FeatureBag(path, _checked_features(path, _of_one_slide(content.numpy())))


def _check_there(path: Path) -> None:
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
    with np.errstate(over="ignore"):  # an infinity is refused by name
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
    outside = ((coords < 0) | (coords > _MOST_PX)).any(1)
    if outside.any():
        tile = int(outside.argmax())
        x, y = (f"{value:.6g}" if coords.dtype.kind == "f" else str(value) for value in coords[tile].tolist())
        raise InputError(f"{path}: tile {tile:,} lies at ({x}, {y}), which is no pixel of a slide; extract it again")
    return np.ascontiguousarray(coords, np.int64)


def _widths_differ(one: Path, width: int, other: Path, other_width: int) -> InputError:
    return InputError(
        f"{other}: features of width {other_width}, while {one} has {width}; were both made by the same encoder?"
    )
