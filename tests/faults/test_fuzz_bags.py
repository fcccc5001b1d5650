"""Bags of any content: finite features and whole coordinates, or a refusal in one line; nothing is read elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.fuzz import nasty_text, result_or_input_error

from longvit.data.bags import FeatureBag, read_bag

DTYPES = ("f4", "f8", "f2", "i8", "u1", "u8", "c8", "S8", "bool", "vlen", "compound", "enum", "reference")
SHAPES: tuple[Any, ...] = ((6, 4), (6, 2), (1, 4), (0, 4), (6, 0), (6,), (), None, (2, 3, 4), (5, 2), (2**20, 2**20))
VALUES = (0.0, 1.0, -1.5, 255.9999, 1e300, -1e300, 2.0**63, float("nan"), float("inf"))
STORAGE = ("plain", "plain", "plain", "gzip", "chunked", "external", "virtual", "huge", "fletcher")
ENTRIES = (
    "dataset",
    "dataset",
    "dataset",
    "dataset",
    "absent",
    "group",
    "dangling",
    "loop",
    "external link",
    "datatype",
)


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """What stands under `features` or `coords`."""
    return {
        "what": draw(st.sampled_from(ENTRIES)),
        "dtype": draw(st.one_of(st.just("f4"), st.sampled_from(DTYPES))),
        "shape": draw(st.one_of(st.just((6, 4)), st.just((6, 2)), st.sampled_from(SHAPES))),
        "value": draw(st.sampled_from(VALUES)),
        "storage": draw(st.sampled_from(STORAGE)),
        "attributes": draw(
            st.dictionaries(
                st.sampled_from(
                    ["patch_size", "patch_size_level0", "patch_level", "level0_magnification", "name", "ä"]
                ),
                st.one_of(
                    st.sampled_from([0, -1, 2**40, 1e300, float("nan"), True, b"\xff\xfe"]),
                    nasty_text(2).filter(lambda text: "\0" not in text),
                    st.lists(st.integers(-5, 5), max_size=3),
                    st.just(h5py.Empty("f4")),
                ),
                max_size=3,
            )
        ),
    }


@given(
    features=entries(),
    coords=entries(),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3),
)
def test_any_h5_bag_is_finite_or_refused_in_one_line(tmp_path: Path, features, coords, flips) -> None:
    path = tmp_path / "bag.h5"
    path.unlink(missing_ok=True)
    _write_secret(tmp_path)
    try:
        with h5py.File(path, "w") as file:
            _put(file, "features", features)
            _put(file, "coords", coords)
    except (TypeError, ValueError, OSError, OverflowError, RuntimeError):
        return  # h5py does not write this one
    content = bytearray(path.read_bytes())
    for at, mask in flips:
        content[at % min(len(content), 4096)] ^= mask
    path.write_bytes(bytes(content))
    bag = result_or_input_error(lambda: read_bag(path), path)
    if bag is not None:
        _check(bag)
        if not flips:
            if bag.coords is not None and coords["what"] == "dataset" and coords["storage"] == "plain":
                assert np.abs(bag.coords.astype(float) - coords["value"]).max() <= 1, "coordinates of another number"
            assert not np.isin(bag.features, SECRET).any(), "another file's bytes in the features"


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """What a .pt file may hold."""
    made = [
        lambda: torch.ones(6, 4),
        lambda: torch.ones(6, 4, dtype=torch.bfloat16),
        lambda: torch.ones(6, 4, dtype=torch.float64).T,
        lambda: torch.full((6, 4), float("nan")),
        lambda: torch.ones(0, 4),
        lambda: torch.ones(6),
        lambda: torch.tensor(1.0),
        lambda: torch.ones(6, 4, dtype=torch.int64),
        lambda: torch.ones(6, 4, dtype=torch.complex64),
        lambda: torch.ones(6, 4).to(torch.float8_e4m3fn),
        lambda: torch.ones(6, 4).to_sparse(),
        lambda: torch.ones(6, 4).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(6, 4), 0.1, 0, torch.qint8),
        lambda: torch.empty(6, 4, device="meta"),
        lambda: torch.ones(1).expand(2**34, 4),
        lambda: torch.ones(6, 4, requires_grad=True),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nn.Parameter(torch.ones(6, 4)),
    ]
    tensor = draw(st.sampled_from(made))
    wrap = draw(st.sampled_from(["plain", "plain", "plain", "dict", "list", "tuple", "text"]))
    return {
        "plain": tensor, "dict": lambda: {"features": tensor(), 3: 4}, "list": lambda: [tensor()],
        "tuple": lambda: (tensor(), None), "text": lambda: "features",
    }[wrap]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(make=tensors(), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=2))
def test_any_pt_bag_is_finite_or_refused_in_one_line(tmp_path: Path, make, flips) -> None:
    path = tmp_path / "bag.pt"
    torch.save(make(), path)
    content = bytearray(path.read_bytes())
    for at, mask in flips:
        content[at % len(content)] ^= mask
    path.write_bytes(bytes(content))
    bag = result_or_input_error(lambda: read_bag(path), path)
    if bag is not None:
        _check(bag)


def test_an_ordinary_bag_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = np.ones((6, 4), "f4"), np.ones((6, 2), "i8")
    bag = result_or_input_error(lambda: read_bag(tmp_path / "a.h5"))
    assert bag is not None
    _check(bag)


SECRET = np.float32(12_345.5)


def _write_secret(folder: Path) -> None:
    np.full(64, SECRET, "<f4").tofile(folder / "secret.raw")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["features"] = np.full((6, 4), SECRET, "f4")


def _check(bag: FeatureBag) -> None:
    assert bag.features.dtype == np.float32
    assert bag.features.ndim == 2
    assert len(bag) >= 1
    assert np.isfinite(bag.features).all()
    if bag.coords is not None:
        assert bag.coords.shape == (len(bag), 2)
        assert bag.coords.dtype == np.int64


def _put(file: h5py.File, name: str, entry: dict[str, Any]) -> None:
    what = entry["what"]
    if what == "absent":
        return
    if what == "group":
        file.create_group(name)
    elif what == "dangling":
        file[name] = h5py.SoftLink("/nothing")
    elif what == "loop":
        file[name] = h5py.SoftLink(f"/{name}")
    elif what == "external link":
        file[name] = h5py.ExternalLink("secret.h5", "features")
        return
    elif what == "datatype":
        file[name] = np.dtype("f8")
    else:
        _put_dataset(file, name, entry)
    if what in ("dataset", "group"):
        for key, value in entry["attributes"].items():
            file[name].attrs[key] = value


def _put_dataset(file: h5py.File, name: str, entry: dict[str, Any]) -> None:
    shape, storage = entry["shape"], entry["storage"]
    dtype: Any = {
        "vlen": h5py.string_dtype(), "compound": np.dtype([("x", "f4"), ("y", "f4")]),
        "enum": h5py.enum_dtype({"a": 0, "b": 1}), "reference": h5py.ref_dtype,
    }.get(entry["dtype"], entry["dtype"])  # fmt: skip
    if shape is None:
        file.create_dataset(name, data=h5py.Empty("f4"))
        return
    settings: dict[str, Any] = {}
    if storage == "external":
        file.create_dataset(name, shape, dtype, external=[("secret.raw", 0, h5py.h5f.UNLIMITED)])
        return
    if storage == "virtual":
        source = h5py.VirtualSource("secret.h5", "features", shape=(6, 4))
        layout = h5py.VirtualLayout((6, 4), "f4")
        layout[:] = source
        file.create_virtual_dataset(name, layout)
        return
    if storage in ("gzip", "chunked", "fletcher"):
        settings["chunks"] = True
        settings |= {"gzip": {"compression": "gzip"}, "fletcher": {"fletcher32": True}}.get(storage, {})
    if storage == "huge" or (isinstance(shape, tuple) and len(shape) == 2 and shape[0] > 1000):
        # Nothing is written: what is declared is read as the fill value.
        file.create_dataset(name, (2**20, 2**10) if storage == "huge" else shape, dtype, chunks=True, fillvalue=None)
        return
    plain = entry["dtype"] in ("f4", "f8", "f2", "c8", "i8", "u1", "u8", "bool")
    with np.errstate(all="ignore"):
        value = np.full(shape, entry["value"], "f8") if entry["dtype"] == "c8" else np.full(shape, entry["value"])
        file.create_dataset(name, data=value.astype(dtype) if plain else None, shape=shape, dtype=dtype, **settings)
