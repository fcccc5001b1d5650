"""Files that mean harm, or were damaged: each is read, or refused in one line, and never runs code, reads other files,
hangs or takes a gigabyte.

    python tests/faults/hostile_files.py --all             every case, each in a process of its own; a table by class
    python tests/faults/hostile_files.py --class recipe    one class
    python tests/faults/hostile_files.py --seed 7          other flipped bytes
    python tests/faults/hostile_files.py --all --commands  also some of each class through the command line

Small files, made anew here. Tests try the named ones in their own process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

SECRET = 42.5
"""Stands in files that no case may read."""
CANARY = "code-was-run"
"""A file that code makes, where some is run."""
MOST_MB, MOST_S = 1000, 30
N, D = 20, 8


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    make: Callable[[Path], Path]
    """Writes the file (and what belongs to it) into an empty folder; → what is to be read."""
    good: bool = False
    """Strange, and to be read."""


CASES: list[Case] = []


def case(kind: str, name: str, *, good: bool = False) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(Case(kind, name, make, good))
        return make

    return add


_LARGE = ("GB in", "100 MB", "million", "100,000 names", "a prime of slides")
"""Their files alone take seconds to make."""


def small_cases(kind: str) -> list[Any]:
    """The cases of the classes that begin so, as parameters of a test; without those that take seconds."""
    import pytest

    chosen = [c for c in CASES if c.kind.startswith(kind) and not any(words in c.name for words in _LARGE)]
    return [pytest.param(c, id=f"{c.kind}: {c.name}".encode("ascii", "replace").decode()) for c in chosen]


def check(one: Case, folder: Path) -> None:
    """Fails where the file is neither read nor refused in one line; with a limit on the memory, as a machine has one."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    here = Path.cwd()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_kb("VmSize") * 1024 + 2 * 2**30, limits[1]))
        found = outcome(one, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(here)
    assert found.is_right, f"{found.words}: {found.text}"


# --- feature bags, HDF5 ---------------------------------------------------------------------------------------------


def _features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


def _coords() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 256


def _h5(name: str, write: Callable[[h5py.File], object], *, good: bool = False, **open_as: Any) -> None:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.h5", "w", **open_as) as file:
            write(file)
        return folder / "a.h5"

    CASES.append(Case("bag .h5", name, make, good))


def _with(features: Any = None, coords: Any = None, **more: Any) -> Callable[[h5py.File], None]:
    def write(file: h5py.File) -> None:
        for key, value in {"features": features, "coords": coords, **more}.items():
            if value is not None:
                file[key] = value

    return write


def _edited(name: str, edit: Callable[[h5py.File], object], *, good: bool = False, **open_as: Any) -> None:
    """A good bag, then a change."""

    def write(file: h5py.File) -> None:
        _with(_features(), _coords())(file)
        edit(file)

    _h5(name, write, good=good, **open_as)


def _replace(name: str, **created: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **created)

    return edit


def _link(name: str, link: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return edit


def _kept(file: h5py.File, link: Callable[[h5py.File], None]) -> None:
    file["mine"] = file["features"]
    link(file)


def _external(dtype: str, rows: int) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        secret = Path(file.filename).with_name("secret.bin")
        secret.write_bytes(np.full(N * D, SECRET, np.float32).tobytes())
        del file["features"]
        file.create_dataset("features", (rows, D), dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    return edit


def _secret_h5(file: h5py.File) -> str:
    path = Path(file.filename).with_name("secret.h5")
    with h5py.File(path, "w") as other:
        other["features"] = np.full((N, D), SECRET, np.float32)
        other.create_group("group")["features"] = np.full((N, D), SECRET, np.float32)
    return str(path)


def _virtual(name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((N, D), np.float32)
        layout[:] = h5py.VirtualSource(_secret_h5(file), "features", shape=(N, D))
        del file[name]
        file.create_virtual_dataset(name, layout)

    return edit


def _to_other(target: str) -> Callable[[h5py.File], None]:
    return lambda file: _link("features", h5py.ExternalLink(_secret_h5(file), target))(file)


def _over_a_group(file: h5py.File) -> None:
    file["away"] = h5py.ExternalLink(_secret_h5(file), "/group")
    _link("features", h5py.SoftLink("/away/features"))(file)


def _chained_links(file: h5py.File) -> None:
    for i in range(60):
        file[f"l{i}"] = h5py.SoftLink(f"/l{i + 1}")
    _link("features", h5py.SoftLink("/l0"))(file)


def _many_paths(file: h5py.File) -> None:
    group = file.create_group("g")
    group["g"] = group
    for i in range(12):
        group[f"l{i + 1}"] = h5py.SoftLink(f"/g/l{i}/g/l{i}/g/l{i}")
    group["l0"] = h5py.SoftLink("/g/g/g")
    _link("features", h5py.SoftLink("/g/l12"))(file)


def _huge_attribute(file: h5py.File) -> None:
    file["features"].attrs.create("note", np.zeros(3_000_000, np.uint8))


def _many_attributes(file: h5py.File) -> None:
    for i in range(3000):
        file["features"].attrs[f"a{i}"] = i


_h5("nothing in it", lambda file: None)
_h5("other names", _with(None, None, x=_features()))
_h5("coordinates alone", _with(None, _coords()))
_h5("a null dataspace", _with(h5py.Empty("f4"), _coords()))
_h5("null coordinates", _with(_features(), h5py.Empty("i8")))
_h5("a scalar", _with(np.float32(3), None))
_h5("one dimension", _with(_features()[0], None))
_h5("three dimensions", _with(np.zeros((2, 3, 4), np.float32), None))
_h5("no tiles", _with(np.zeros((0, 8), np.float32), np.zeros((0, 2), int)))
_h5("no width", _with(np.zeros((20, 0), np.float32), None))
_h5("whole numbers", _with(_features().astype(int), None))
_h5("complex numbers", _with(_features().astype(np.complex64), None))
_h5("truth values", _with(_features() > 0, None))
_h5("texts", _with(np.array([[b"a", b"b"]] * 3), None))
_h5("records", _with(np.zeros(3, [("a", "f4"), ("b", "i4")]), None))
_h5("arrays of arrays", lambda file: file.create_dataset("features", (3,), np.dtype(("f4", (4,)))))
_h5("a group for features", lambda file: file.create_group("features").create_group("x"))
_h5("a group for coords", lambda file: (_with(_features())(file), file.create_group("coords")))
_h5("a datatype for features", _with(np.dtype("f8"), None))
_h5("a datatype for coords", _with(_features(), np.dtype("i8")))
_h5("a batch of one", _with(_features()[None], _coords()), good=True)
_h5("a batch of one, with coords", _with(_features()[None], _coords()[None]), good=True)
_h5("STAMP's names", _with(None, _coords() * 0.5, feats=_features()), good=True)
_h5("big-endian", _with(_features().astype(">f4"), _coords().astype(">i4")), good=True)
_h5("half precision", _with(_features().astype(np.float16), None), good=True)
_h5(
    "a soft link within",
    lambda f: (_with(None, _coords(), a=_features())(f), f.__setitem__("features", h5py.SoftLink("/a"))),
    good=True,
)
for _words, _value in {"1e300": 1e300, "NaN": np.nan, "an infinity": np.inf, "−1": -1.0, "2^40": 2.0**40}.items():
    _h5(f"coordinates of {_words}", _with(_features(), np.where(np.arange(N)[:, None] == 7, _value, _coords())))
_h5("coordinates of 2^64 − 1", _with(_features(), np.full((N, 2), 2**64 - 1, np.uint64)))
_h5("coordinates of −2^63", _with(_features(), np.full((N, 2), -(2**63))))
_h5("coordinates of texts", _with(_features(), np.array([[b"1", b"2"]] * N)))
_h5("coordinates that are complex", _with(_features(), _coords().astype(complex)))
_h5("fewer coordinates", _with(_features(), _coords()[:-1]))
_h5("three coordinates", _with(_features(), np.zeros((N, 3), int)))
_h5("features with a NaN", _with(np.where(_features() > 2, np.nan, _features()).astype(np.float32) + np.nan, None))
_h5("features of 1e300", _with(np.full((3, 4), 1e300), None))
_edited("a soft link to itself", _link("features", h5py.SoftLink("/features")))
_edited(
    "two links in a circle",
    lambda f: (_link("features", h5py.SoftLink("/b"))(f), f.__setitem__("b", h5py.SoftLink("/features"))),
)
_edited("a link to nothing", _link("features", h5py.SoftLink("/gone")))
_edited("coords that link to nothing", _link("coords", h5py.SoftLink("/gone")))
_edited("coords that link to themselves", _link("coords", h5py.SoftLink("coords")))
_edited("sixty links in a row", _chained_links)
_edited("links that branch", _many_paths)
_edited("an external link", _to_other("/features"))
_edited("an external link to nothing", _link("features", h5py.ExternalLink("gone.h5", "/features")))
_edited("an external link to a device", _link("features", h5py.ExternalLink("/dev/zero", "/features")))
_edited("external coordinates", _link("coords", h5py.ExternalLink("/etc/passwd", "/coords")))
_edited("a soft link over an external one", _over_a_group)
_edited("values in another file", _external("f4", N))
_edited("values in another file, as bytes of half a number", _external("f2", N))
_edited(
    "values in a file that is gone",
    _replace("features", shape=(N, D), dtype="f4", external=[("gone.bin", 0, N * D * 4)]),
)
_edited(
    "values of the password file", _replace("features", shape=(2, 4), dtype="f4", external=[("/etc/passwd", 0, 32)])
)
_edited("virtual features", _virtual("features"))
_edited("virtual coordinates", _virtual("coords"))
for _words, _shape in {"8 GB": (2**28, D), "4 PB": (2**50 // D, D), "8 EB": (2**58, D)}.items():
    _edited(f"{_words} that were never written", _replace("features", shape=_shape, dtype="f4"))
    _edited(f"{_words} of one chunk each", _replace("features", shape=_shape, dtype="f4", chunks=(256, D)))
_edited("4 GB of a fill value", _replace("features", shape=(2**27, D), dtype="f4", chunks=(2**16, D), fillvalue=1.5))
_edited("4 GB of coordinates", _replace("coords", shape=(2**28, 2), dtype="i8", chunks=(2**12, 2), fillvalue=1))
_edited("a chunk of 3 GB", _replace("features", shape=(1, D), maxshape=(None, D), dtype="f4", chunks=(10**8, D)))
_edited("a large attribute", _huge_attribute, libver="latest")
_edited("3,000 attributes", _many_attributes)
_edited(
    "attributes of references",
    lambda f: f["features"].attrs.create("r", f["coords"].ref, dtype=h5py.ref_dtype),
    good=True,
)
_edited("an empty attribute", lambda f: f["features"].attrs.create("e", h5py.Empty("f4")), good=True)


def _bomb(file: h5py.File) -> None:
    data = file.create_dataset("features", (2**28, 1), "f4", chunks=(2**24, 1), compression="gzip", compression_opts=9)
    packed = io.BytesIO()
    import zlib

    packed.write(zlib.compress(bytes(2**26), 9))
    for i in range(16):
        data.id.write_direct_chunk((i * 2**24, 0), packed.getvalue())


_h5("1 GB of zeros in 1 MB of gzip", _bomb)


def _filtered(number: int) -> Callable[[h5py.File], None]:
    def write(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((N, D))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((N, D))
        made = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plist)
        made.write_direct_chunk((0, 0), _features().tobytes())

    return write


_h5("a filter that is not installed", _filtered(32015))
_h5("a filter of no name", _filtered(999))


def _changed(name: str, change: Callable[[bytearray], object], *, good: bool = False, **created: Any) -> None:
    """The bytes of a whole bag, changed."""

    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("features", data=np.tile(_features(), (50, 1)), **created)
            file["coords"] = np.tile(_coords(), (50, 1))
        data = bytearray((folder / "a.h5").read_bytes())
        change(data)
        (folder / "a.h5").write_bytes(data)
        return folder / "a.h5"

    CASES.append(Case("bag .h5", name, make, good))


def _spoil(data: bytearray) -> None:
    """In the middle, which is a chunk."""
    for i in range(len(data) // 2 - 3000, len(data) // 2 + 3000):
        data[i] ^= 0x5A


_changed("a spoilt chunk of gzip", _spoil, chunks=(1000, D), compression="gzip")
_changed("a spoilt chunk of lzf", _spoil, chunks=(1000, D), compression="lzf")
_changed("a wrong checksum", _spoil, chunks=(1000, D), fletcher32=True)
_changed("half of the file", lambda data: data.__delitem__(slice(len(data) // 2, None)))
_changed("a tenth of the file", lambda data: data.__delitem__(slice(len(data) // 10, None)))
_changed(
    "its end is zeros",
    lambda data: data.__setitem__(slice(len(data) // 2, None), bytes(len(data) - len(data) // 2)),
    good=True,
)
_changed("its head is zeros", lambda data: data.__setitem__(slice(0, 512), bytes(512)))
_changed("nothing but the signature", lambda data: data.__delitem__(slice(8, None)))


def _flips(count: int, seed: int) -> Iterator[Case]:
    for i in range(count):

        def make(folder: Path, i: int = i) -> Path:
            rng = np.random.default_rng([seed, i])
            with h5py.File(folder / "a.h5", "w", libver="latest" if i % 2 else "earliest") as file:
                file.create_dataset("features", data=_features(), chunks=(5, D) if i % 3 else None)
                file.create_dataset("coords", data=_coords())
                file["features"].attrs["encoder"] = "uni"
            data = bytearray((folder / "a.h5").read_bytes())
            for at in rng.integers(0, min(len(data), 4096), 1 + i % 4):
                data[at] ^= 1 << int(rng.integers(8))
            (folder / "a.h5").write_bytes(data)
            return folder / "a.h5"

        yield Case("bag .h5, flipped bits", f"{i}", make, good=True)  # most fall on values, which have no checksum


def _special(kind: str, suffix: str) -> None:
    @case(kind, "a FIFO")
    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / f"a{suffix}")
        return folder / f"a{suffix}"

    @case(kind, "a folder")
    def of_folder(folder: Path) -> Path:
        (folder / f"a{suffix}").mkdir()
        return folder / f"a{suffix}"

    @case(kind, "a device")
    def device(folder: Path) -> Path:
        (folder / f"a{suffix}").symlink_to("/dev/zero")
        return folder / f"a{suffix}"

    @case(kind, "a link to itself")
    def loop(folder: Path) -> Path:
        (folder / f"a{suffix}").symlink_to(folder / f"a{suffix}")
        return folder / f"a{suffix}"

    @case(kind, "nothing")
    def gone(folder: Path) -> Path:
        return folder / f"a{suffix}"

    for name, data in {"empty": b"", "a word": b"x", "zeros": bytes(5000), "a page": b"<html>not found</html>"}.items():
        CASES.append(Case(kind, name, lambda folder, data=data: _written(folder / f"a{suffix}", data)))
    CASES.append(
        Case(
            kind,
            "a Git-LFS pointer",
            lambda f: _written(f / f"a{suffix}", b"version https://git-lfs.github.com/spec/v1\n"),
        )
    )


def _written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


for _kind, _suffix in (
    ("bag .h5", ".h5"),
    ("bag .pt", ".pt"),
    ("checkpoint .pth", ".pth"),
    ("weights .safetensors", ".safetensors"),
):
    _special(_kind, _suffix)


# --- tensors: bags .pt, checkpoints .pth ----------------------------------------------------------------------------


class _Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


def _command(folder: Path) -> str:
    return f"touch {folder / CANARY}"


def _tensors(folder: Path) -> dict[str, Any]:
    """Tensors that are no plain numbers, by name."""
    x = torch.from_numpy(_features())
    return {
        "sparse": x.to_sparse(),
        "sparse of 2^40 rows": torch.sparse_coo_tensor([[0], [0]], [1.0], (2**40, 8)),
        "sparse rows": x.to_sparse_csr(),
        "float8": x.to(torch.float8_e4m3fn),
        "float8 of the other kind": x.to(torch.float8_e5m2),
        "quantised": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "quantised by channel": torch.quantize_per_channel(x, torch.ones(N), torch.zeros(N), 0, torch.qint8),
        "on no device": torch.empty(N, D, device="meta"),
        "on no device, of 2^40 rows": torch.empty(2**40, D, device="meta"),
        "nested": torch.nested.nested_tensor([x[:3], x[:5]]),
        "of stride 0, 64 GB": torch.ones(1).expand(2**31, D),
        "of stride 0, 2^50 bytes": torch.ones(1).expand(2**45, D),
        "overlapping": torch.ones(10_000).as_strided((8000, 2000), (1, 1)),
        "complex": x.to(torch.complex64),
        "whole numbers": x.long(),
        "bits": x > 0,
        "a scalar": torch.tensor(3.0),
        "empty": torch.empty(0, D),
        "with a NaN": torch.where(x > 1, torch.nan, x),
        "of three dimensions": torch.ones(2, 3, 4),
    }


def _strange_tensors(folder: Path) -> dict[str, Any]:
    """Those that are fine."""
    x = torch.from_numpy(_features())
    return {
        "transposed": torch.from_numpy(_features()).T.contiguous().T,
        "every second row": torch.cat([x, x])[::2],
        "a batch of one": x[None],
        "a parameter": torch.nn.Parameter(x),
        "double precision": x.double(),
        "bfloat16": x.bfloat16(),
        "negated by a bit": torch.complex(x, x).conj().imag,
    }


def _pickles(folder: Path) -> dict[str, Any]:
    return {
        "os.system": _Runs(os.system, _command(folder)),
        "eval": _Runs(eval, f"__import__('os').system({_command(folder)!r})"),
        "exec": _Runs(exec, f"open({str(folder / CANARY)!r}, 'w')"),
        "open": _Runs(open, str(folder / CANARY), "w"),
        "subprocess": _Runs(subprocess.call, ["touch", str(folder / CANARY)]),
        "torch.load": _Runs(torch.load, str(folder / "other.pt")),
        "getattr": _Runs(getattr, "text", "upper"),
        "inside a dict": {"features": _Runs(os.system, _command(folder))},
        "a module": torch.nn.Linear(2, 2),
        "a numpy array": _features(),
        "a text": "x" * 1000,
        "a dict of tensors": {"features": torch.ones(3, 4), "coords": torch.ones(3, 2)},
        "a dict of 5,000 keys": {f"key {i}\n": i for i in range(5000)},
        "a list": [torch.ones(2, 2)],
        "None": None,
        "a number": 3,
    }


warnings.simplefilter("ignore", UserWarning)  # each strange kind of tensor is called new, or old
TENSORS = tuple(_tensors(Path()))
PICKLES = tuple(_pickles(Path()))


def _rezipped(path: Path, edit: Callable[[str, bytes], bytes], packed: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in entries:
            archive.writestr(name, edit(name, data))
    return path


def _of_pickle(pickled: Callable[[bytes], bytes], packed: int = zipfile.ZIP_STORED) -> Callable[[Path, Any], Path]:
    def make(path: Path, content: Any) -> Path:
        torch.save(content, path)
        return _rezipped(path, lambda name, data: pickled(data) if name.endswith(".pkl") else data, packed)

    return make


def _zip_bomb(path: Path, content: Any, entry: str = "data.pkl") -> Path:
    """1.5 GB of zeros in 7 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("archive/data.pkl", "archive/version", "archive/data/0"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(b"\x80\x02" if name.endswith("pkl") else b"3\n")
                for _ in range(1500 if name.endswith(entry) else 0):
                    file.write(bytes(2**20))
    return path


def _overlapping(path: Path, content: Any) -> Path:
    """Many names for the same bytes."""
    torch.save(content, path)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.infolist()[0]
        for i in range(100_000):
            copy = zipfile.ZipInfo(f"archive/data/{i + 10}")
            copy.header_offset, copy.file_size, copy.compress_size, copy.CRC = first.header_offset, 2**20, 2**20, 0
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


_GLOBAL_BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\xc0\x00\x85R."
_DAMAGES: dict[str, Callable[[Path, Any], Path]] = {
    "a pickle of 1.5 GB in 7 MB": _zip_bomb,
    "a storage of 1.5 GB in 7 MB": lambda path, content: _zip_bomb(path, content, "data/0"),
    "100,000 names for the same bytes": _overlapping,
    "packed": _of_pickle(lambda data: data, zipfile.ZIP_DEFLATED),
    "a bytearray of 3 GB": _of_pickle(lambda data: _GLOBAL_BYTEARRAY),
    "a pickle of 7 million lists": _of_pickle(lambda data: b"\x80\x02" + b"]" * 7_000_000 + b"."),
    "a pickle nested 100,000 deep": _of_pickle(lambda data: b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
    "a number of 2 GB": _of_pickle(lambda data: b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "a text of 4 GB": _of_pickle(lambda data: b"\x80\x02X\xff\xff\xff\xff."),
    "no pickle": _of_pickle(lambda data: b""),
    "half a pickle": _of_pickle(lambda data: data[: len(data) // 2]),
    "the older layout": lambda path, content: _old(path, content),
    "a bytearray in the older layout": lambda path, content: _written(path, _GLOBAL_BYTEARRAY * 3),
    "9 million lists in the older layout": lambda path, content: _written(path, b"\x80\x02" + b"]" * 9_000_000 + b"."),
    "the first half": lambda path, content: _cut(path, content, 2),
    "all but the last bytes": lambda path, content: _cut(path, content, 1),
    "4,000 flipped bits": lambda path, content: _flipped(path, content, 4000),
}


def _old(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def _cut(path: Path, content: Any, part: int) -> Path:
    torch.save(content, path)
    data = path.read_bytes()
    return _written(path, data[: len(data) // part - 30])


def _flipped(path: Path, content: Any, count: int) -> Path:
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), count):
        data[at] ^= 4
    return _written(path, bytes(data))


def _saved(kind: str, suffix: str, name: str, content: Callable[[Path], Any], *, good: bool = False) -> None:
    def make(folder: Path) -> Path:
        torch.save(content(folder), folder / f"a{suffix}")
        return folder / f"a{suffix}"

    CASES.append(Case(kind, name, make, good))


for _name in TENSORS:
    _saved("bag .pt", ".pt", f"a tensor {_name}", lambda folder, name=_name: _tensors(folder)[name])
for _name in _strange_tensors(Path()):
    _saved("bag .pt", ".pt", f"a tensor {_name}", lambda folder, name=_name: _strange_tensors(folder)[name], good=True)
for _name in PICKLES:
    _saved("bag .pt", ".pt", f"pickled: {_name}", lambda folder, name=_name: _pickles(folder)[name])
for _name, _make in _DAMAGES.items():
    CASES.append(
        Case(
            "bag .pt",
            _name,
            lambda folder, make=_make: make(folder / "a.pt", torch.from_numpy(_features())),
            good=_name in ("the older layout", "packed"),
        )
    )


def published_checkpoint(**changes: Any) -> dict[str, Any]:
    """A small LongViT under the authors' names."""
    from longvit.model.checkpoints import LONGVIT_NAMES, published
    from longvit.model.longvit import LongViT, LongViTConfig

    torch.manual_seed(0)
    config = LongViTConfig(embed_dim=32, depth=2, num_heads=16, ffn_dim=64, grid_patches=2)
    return {**published(LongViT(config).state_dict(), LONGVIT_NAMES), **changes}


_EMBED, _FFN = "patch_embed.proj.weight", "encoder.layers.0.ffn.fc1.weight"


def _checkpoint(name: str, content: Callable[[Path], Any], *, good: bool = False) -> None:
    _saved("checkpoint .pth", ".pth", name, content, good=good)


_checkpoint("whole", lambda folder: {"teacher": published_checkpoint()}, good=True)
for _name in TENSORS:
    _checkpoint(f"an embedding {_name}", lambda folder, n=_name: published_checkpoint(**{_EMBED: _tensors(folder)[n]}))
    _checkpoint(f"a layer {_name}", lambda folder, n=_name: published_checkpoint(**{_FFN: _tensors(folder)[n]}))
for _name in PICKLES:
    _checkpoint(
        f"pickled: {_name}", lambda folder, n=_name: {**published_checkpoint(), "more": _pickles(folder)[n]}, good=True
    )
    _checkpoint(f"nothing but {_name}", lambda folder, n=_name: _pickles(folder)[n])
for _name, _make in _DAMAGES.items():
    CASES.append(
        Case(
            "checkpoint .pth",
            _name,
            lambda folder, make=_make: make(folder / "a.pth", published_checkpoint()),
            good=_name in ("the older layout", "packed"),
        )
    )
for _name, _changes in {
    "layer 999,999,999": {"encoder.layers.999999999.ffn.fc1.weight": torch.ones(1)},
    "layer 10^30": {f"encoder.layers.{10**30}.ffn.fc1.weight": torch.ones(1)},
    "a layer of no number": {"encoder.layers.x.ffn.fc1.weight": torch.ones(1)},
    "a width of ten million": {_FFN: torch.ones(1, 10_000_000)},
    "an FFN of ten million": {_FFN: torch.ones(10_000_000, 1)},
    "an embedding of a scalar": {_EMBED: torch.tensor(1.0)},
    "positions of a scalar": {"pos_embed": torch.tensor(1.0)},
    "no square of positions": {"pos_embed": torch.zeros(1, 5, 32)},
    "a million positions": {"pos_embed": torch.zeros(1, 1_000_000, 1)},
    "a head of a scalar": {"head.weight": torch.tensor(1.0)},
    "a head of five million classes": {"head.weight": torch.zeros(5_000_000, 1)},
    "q of another shape": {"encoder.layers.0.self_attn.q_proj.weight": torch.ones(3)},
    "q of a scalar": {"encoder.layers.0.self_attn.q_proj.weight": torch.tensor(3.0)},
    "a NaN": {"encoder.layers.0.self_attn.out_proj.bias": torch.full((32,), torch.nan)},
}.items():
    _checkpoint(_name, lambda folder, c=_changes: published_checkpoint(**c))
for _name, _args in {
    "settings of another type": {"num_heads": "many"},
    "no heads": {"num_heads": 0},
    "a billion heads": {"num_heads": 10**9},
    "segments that are texts": {"segment_lengths": ["a"]},
    "segments of 0": {"segment_lengths": [0] * 5},
    "an image of 2^40 px": {"image_px": 2**40},
    "a fit that there is not": {"fit": ["x"]},
}.items():
    _checkpoint(
        _name, lambda folder, a=_args: {"teacher": published_checkpoint(), "args": {"longvit_version": "1", **a}}
    )


def _in_a_circle(folder: Path) -> Any:
    circle: dict[str, Any] = {}
    circle["model"] = circle
    return circle


_checkpoint("wrappers in a circle", _in_a_circle)
_checkpoint("wrappers 50 deep", lambda folder: _deep(50, published_checkpoint()), good=True)
_checkpoint("a teacher that is a number", lambda folder: {"teacher": 3})
_checkpoint("a teacher without a network", lambda folder: {"teacher": {}})


def _deep(times: int, content: Any) -> Any:
    for _ in range(times):
        content = {"model": content}
    return content


# --- model folders --------------------------------------------------------------------------------------------------


def _model(folder: Path) -> Path:
    from longvit.model.longvit import LongViT, LongViTConfig

    torch.manual_seed(0)
    config = LongViTConfig(
        embed_dim=32, depth=2, num_heads=4, ffn_dim=64, image_px=64, num_classes=2, class_names=("a", "b")
    )
    LongViT(config).save_pretrained(folder / "model")
    return folder / "model"


def _config(name: str, edit: Callable[[dict[str, Any]], Any], *, good: bool = False) -> None:
    """`edit`: → what takes the config's place: an object, or the text itself."""

    def make(folder: Path) -> Path:
        model = _model(folder)
        path = model / "config.json"
        new = edit(json.loads(path.read_text()))
        path.unlink()
        _written(path, new if isinstance(new, str | bytes) else json.dumps(new))
        return model

    CASES.append(Case("config.json", name, make, good))


_config("whole", lambda c: c, good=True)
_config("with whole numbers for fractions", lambda c: c | {"drop_path": 0}, good=True)
for _name, _new in {
    "a list": [], "null": None, "a number": 3, "a text": '"text"', "empty": "", "a word": "x", "half": '{"model": "lon',
    "two objects": "{}{}", "no object": "{}", "100,000 lists": "[" * 100_000, "100,000 objects": '{"a":' * 100_000,
    "digits": '{"model": ' + "9" * 10_000 + "}", "not UTF-8": b'{"model": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "zeros": bytes(100), "100 MB": b" " * (100 * 2**20), "100 MB of numbers": b"[" + b"1," * (50 * 2**20),
}.items():  # fmt: skip
    _config(_name, lambda c, new=_new: new)
for _name, _edit in {
    "model a list": {"model": ["longvit"]}, "model null": {"model": None}, "model an object": {"model": {}},
    "format null": {"format": None}, "format a text": {"format": "1"}, "format −1e9": {"format": 1e9}, "format 99": {"format": 99},
    "a width of 10^9": {"embed_dim": 10**9}, "a width of 0": {"embed_dim": 0}, "a width of −32": {"embed_dim": -32},
    "a width of 65,536": {"embed_dim": 65_536}, "a width that is a text": {"embed_dim": "32"}, "a width that is true": {"embed_dim": True},
    "a width of 32.0": {"embed_dim": 32.0}, "a width that is null": {"embed_dim": None}, "a width that is a list": {"embed_dim": [32]},
    "10^9 layers": {"depth": 10**9}, "1,000 layers": {"depth": 1000}, "−1 layers": {"depth": -1}, "1e400 layers": {"depth": float("inf")},
    "no heads": {"num_heads": 0}, "−4 heads": {"num_heads": -4}, "5 heads": {"num_heads": 5}, "heads of a NaN": {"num_heads": float("nan")},
    "an FFN of 10^12": {"ffn_dim": 10**12}, "an FFN of 0": {"ffn_dim": 0},
    "a patch of 0": {"patch_px": 0}, "a patch of 10^6": {"patch_px": 10**6}, "a patch of −32": {"patch_px": -32},
    "a grid of 10^6": {"grid_patches": 10**6}, "a grid of 4,096": {"grid_patches": 4096}, "a grid of 0": {"grid_patches": 0},
    "an image of 0": {"image_px": 0}, "an image of −64": {"image_px": -64}, "an image of 33": {"image_px": 33},
    "an image of 2^40": {"image_px": 2**40}, "positions of every patch": {"positions": "per_patch", "image_px": 2**20},
    "10^9 classes": {"num_classes": 10**9}, "−1 classes": {"num_classes": -1}, "classes that are a text": {"num_classes": "2"},
    "names that are objects": {"class_names": [{"a": 1}, {"b": 2}]}, "names that are numbers": {"class_names": [1, 2]},
    "names that are a text": {"class_names": "ab"}, "one name": {"class_names": ["a"]}, "names that are lists": {"class_names": [["a"], ["b"]]},
    "a fit that there is not": {"fit": "crop"}, "a fit that is a list": {"fit": ["pad"]}, "a fit that is a number": {"fit": 3},
    "a pool that there is not": {"pool_norm": "x"}, "a gradient that there is not": {"gradient": "none"},
    "ragged that there is not": {"ragged": 0}, "positions that there are not": {"positions": "x"},
    "a ratio of 0": {"dilated_ratios": [0, 1, 2, 4, 8]}, "a ratio of 10^9": {"dilated_ratios": [1, 2, 4, 8, 10**9]},
    "ratios that are texts": {"dilated_ratios": ["1"] * 5}, "ratios that are a number": {"dilated_ratios": 3},
    "segments of 0": {"segment_lengths": [0] * 5}, "segments of −1": {"segment_lengths": [-1] * 5},
    "three segments": {"segment_lengths": [1, 2, 3]}, "segments that are a text": {"segment_lengths": "all"},
    "drop path 1": {"drop_path": 1.0}, "drop path NaN": {"drop_path": float("nan")}, "drop path a text": {"drop_path": "0"},
    "a task that is a list": {"task": ["subtyping"]}, "a setting that there is not": {"colour": "red"},
    "a setting with a line break": {"a\nb\x1b[31m": 1}, "5,000 settings": {f"k{i}": i for i in range(5000)},
    "prov-gigapath": {"model": "gigapath"},
}.items():  # fmt: skip
    _config(_name, lambda c, edit=_edit: c | edit)
_config("a key twice", lambda c: json.dumps(c)[:-1] + ', "depth": 1}')
for _name in ("embed_dim", "depth", "model", "format"):
    _config(f"without {_name}", lambda c, name=_name: {k: v for k, v in c.items() if k != name})


@case("config.json", "a FIFO")
def _fifo_config(folder: Path) -> Path:
    model = _model(folder)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    return model


def _weights(name: str, make: Callable[[dict[str, torch.Tensor], Path], Any], *, good: bool = False) -> None:
    """`make`: → the tensors in place of the model's, or the bytes of the file."""

    def made(folder: Path) -> Path:
        from safetensors.torch import load_file, save_file

        model = _model(folder)
        path = model / "model.safetensors"
        new = make(load_file(path), path)
        path.unlink()
        if isinstance(new, bytes):
            path.write_bytes(new)
        elif new is not None:
            save_file(new, path)
        return model

    CASES.append(Case("weights .safetensors", name, made, good))


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


_HEAD = "head.weight"
_weights("whole", lambda t, path: t, good=True)
_weights("half precision", lambda t, path: {k: v.half() for k, v in t.items()}, good=True)
for _name, _dtype in {
    "float8": torch.float8_e4m3fn, "float8 of the other kind": torch.float8_e5m2, "whole numbers": torch.int64,
    "bytes": torch.uint8, "bits": torch.bool, "complex": torch.complex64,
}.items():  # fmt: skip
    _weights(_name, lambda t, path, dtype=_dtype: t | {_HEAD: t[_HEAD].to(dtype)})
_weights("a NaN", lambda t, path: t | {_HEAD: t[_HEAD] * torch.nan})
_weights("an infinity", lambda t, path: t | {_HEAD: t[_HEAD] / 0})
_weights("1e300", lambda t, path: t | {_HEAD: t[_HEAD].double() + 1e300})
_weights("another shape", lambda t, path: t | {_HEAD: t[_HEAD].T.contiguous()})
_weights("one more", lambda t, path: t | {"more\n": torch.ones(1)})
_weights("one less", lambda t, path: {k: v for k, v in t.items() if k != _HEAD})
_weights("nothing", lambda t, path: None)
_weights("a header of 2^60 bytes", lambda t, path: _header(b"{}", 2**60))
_weights("a header that is no JSON", lambda t, path: _header(b"{" * 1000))
_weights("a header of 100,000 lists", lambda t, path: _header(b"[" * 100_000))
_weights(
    "a tensor of 2^60 numbers",
    lambda t, path: _header(b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}'),
)
_weights(
    "a tensor behind the end",
    lambda t, path: _header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[999999,1000015]}}'),
)
_weights(
    "a tensor of an unknown type",
    lambda t, path: _header(b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}') + b"1",
)
_weights("half", lambda t, path: path.read_bytes()[: path.stat().st_size // 2])
_weights("a pickle", lambda t, path: pickle.dumps(_Runs(os.system, f"touch {path.parent.parent / CANARY}")))


@case("weights .safetensors", "a FIFO in a model folder")
def _fifo_weights(folder: Path) -> Path:
    model = _model(folder)
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    return model


@case("weights .safetensors", "2 GB that were never written")
def _hollow(folder: Path) -> Path:
    model = _model(folder)
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(2 * 2**30)
    return model


# --- recipes --------------------------------------------------------------------------------------------------------


def _recipe(name: str, text: str | bytes, *, good: bool = False) -> None:
    CASES.append(Case("recipe", name, lambda folder: _written(folder / "r.yaml", text), good))


_recipe("whole", "epochs: 3\nlr: 1.0e-4\nsplit: [0.5, 0.2, 0.3]\nbalanced: true\n", good=True)
_recipe("empty", "", good=True)
_recipe("null", "epochs: null\n", good=True)
_recipe("the largest seed", f"seed: {2**63 - 1}\n", good=True)
_recipe("a prime of slides", "batch_size: 2147483647\n", good=True)
for _name, _text in {
    "a list for a key": "? [a, b]\n: 1\n", "a map for a key": "? {a: 1}\n: 1\n", "a number for a key": "3: 4\n", "null for a key": "~: 4\n",
    "5,000 brackets": "epochs: " + "[" * 5000, "3,000 braces": "{" * 3000, "closed brackets": "epochs: " + "[" * 3000 + "]" * 3000,
    "5,000 dashes": "- " * 5000, "5,000 keys deep": "".join(" " * i + "a:\n" for i in range(3000)),
    "a list in itself": "epochs: &a [*a]\n", "a map in itself": "&a a: *a\n",
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "an alias": "epochs: &a 3\nlr: *a\n", "a merge": "x: &x {epochs: 3}\n<<: *x\n", "a merge of a number": "<<: 3\n",
    "bytes": "epochs: !!binary aGVsbG8=\n", "bytes for a fraction": "lr: !!binary aGVsbG8=\n", "a set": "epochs: !!set {a, b}\n",
    "pairs": "epochs: !!pairs [a: 1, a: 2]\n", "an ordered map": "epochs: !!omap [a: 1]\n",
    "python/object/apply": f"epochs: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "python/object/new": f"epochs: !!python/object/new:os.system ['touch {CANARY}']\n",
    "python/name": "epochs: !!python/name:os.system\n", "python/module": "epochs: !!python/module:os\n",
    "python/tuple": "epochs: !!python/tuple [1, 2]\n", "an unknown tag": "epochs: !foo 3\n", "a whole number of nothing": "epochs: !!int ''\n",
    "a fraction of a word": "lr: !!float x\n", "a seed of 2^70": f"seed: {2**70}\n", "a seed of −1": "seed: -1\n",
    "10^30 slides": "batch_size: 1" + "0" * 30 + "\n", "10^10 slides": "batch_size: 9999999967\n", "6,000 digits": "epochs: " + "9" * 6000 + "\n",
    "base 60": "epochs: " + "1:" * 60 + "1\n", "no batch": "batch_size: 0\n", "a fraction of epochs": "epochs: 3.5\n",
    "not UTF-8": b"epochs: 3 # \xff\n", "UTF-16": "epochs: 3\n".encode("utf-16"), "a NUL": "device: 'a\0b'\n", "an escaped NUL": 'device: "a\\0b"\n',
    "zeros": bytes(1000), "100 MB": b"# " + b"x" * (100 * 2**20), "100 MB of keys": b"a: 1\n" * (20 * 2**20),
    "NaN": "lr: .nan\n", "an infinity": "lr: .inf\n", "1e400": "lr: 1.0e+400\n", "a split of NaN": "split: [.nan, .nan, .nan]\n",
    "a list for a number": "epochs: [1, 2]\n", "a map for a number": "epochs: {a: 1}\n", "a date": "epochs: 2020-01-01\n", "no date": "epochs: 2020-13-45\n",
    "a word for a number": "epochs: many\n", "true for a number": "epochs: true\n", "two shares": "split: [0.5, 0.5]\n", "shares of words": "split: [a, b, c]\n",
    "one share": "split: 3\n", "a list for a text": "time_column: [a]\n", "a list for a path": "weights: [a]\n", "a map for a path": "weights: {a: b}\n",
    "a word for true": "balanced: maybe\n", "a choice that there is not": "fit: crop\n", "a task that there is not": "task: x\n",
    "a key that there is not": "epoch: 3\n", "a key twice": "epochs: 3\nepochs: 4\n", "a key twice within": "epochs: {b: 1, b: 2}\n",
    "a long key": "? " + "x" * 5000 + "\n: 1\n", "a key of an option": "--epochs: 3\n", "the recipe itself": "recipe: r.yaml\n",
    "a text": "hello\n", "a list": "- a\n- b\n", "two documents": "epochs: 3\n---\nepochs: 4\n", "a tab": "\tepochs: 3\n", "no end": "epochs: [3\n", "a quote": "epochs: '3\n",
    "10^7 threads": "threads: 10000000\n", "no threads": "threads: 0\n", "10^9 bins": "n_bins: 1000000000\n", "a side of 3 · 10^9": "side_px: 3200000000\n",
    "a side of 0": "side_px: 0\n", "a side of −32": "side_px: -32\n", "a long text": "device: " + "x" * 100_000 + "\n", "momentum NaN": "ema: .nan\n",
}.items():  # fmt: skip
    _recipe(_name, _text)


# --- what runs write ------------------------------------------------------------------------------------------------


def _left_by_a_run(name: str, good: dict[str, Any], read: str) -> None:
    """A file of JSON that a run wrote: damaged in every way."""
    whole = json.dumps(good)
    texts: dict[str, str | bytes] = {
        "half": whole[: len(whole) // 2], "empty": "", "a list": "[]", "null": "null", "a number": "3", "nested": "[" * 100_000,
        "objects": '{"a":' * 100_000, "digits": '{"a": ' + "9" * 9999 + "}", "not UTF-8": b'{"\xff": 1}', "zeros": bytes(3000), "no keys": "{}",
        "nulls": json.dumps(dict.fromkeys(good)), "lists": json.dumps(dict.fromkeys(good, [[]])), "texts": json.dumps(dict.fromkeys(good, "x")),
        "a key twice": whole[:-1] + f', "{next(iter(good))}": 1}}',
    }  # fmt: skip
    for words, text in texts.items():
        CASES.append(
            Case(f"left by a run: {read}", f"{name}, {words}", lambda folder, t=text: _written(folder / name, t), True)
        )


_FOLD_METRICS = {
    "task": "subtyping", "figure": "auc", "classes": ["a", "b"], "splits": {"test": {"auc": 0.5, "slides": 3}}, "controls": {},
    "training": {"device": "cpu"}, "leaks": {}, "left_out": [], "notes": [], "best_val": None,
}  # fmt: skip
_CELL = {
    "system": "x", "evaluated": "test", "figure": "auc", "splits": {"test": {"auc": 0.5}}, "decided_by": {}, "best_val": None,
    "training": {"seconds": 1, "cpu_seconds": 1, "peak_memory_mib": 1, "parameters": 3},
}  # fmt: skip
_LOOKS = {"epochs": 1, "steps": 1, "regions": 1, "slides": 1, "figures": {}, "alarms": [], "finished": True}
_RUN = {"run": "r", "begun": 1.0, "retries": 2, "slides": [["a", "a.tif", None]]}
_left_by_a_run("metrics.json", _FOLD_METRICS, "a training")
_left_by_a_run("metrics.json", _CELL, "a cell")
_left_by_a_run("metrics.json", _LOOKS, "a pretraining")
_left_by_a_run("costs.json", {"seconds": 1, "cpu_seconds": 1, "peak_memory_mib": 1}, "costs")
_left_by_a_run("run.json", {"epochs": 1, "slides_per_forward": 1}, "a run folder")
_left_by_a_run(
    "step-00000001.json", {"sha256": "x", "format": 1, "step": 1, "tensor_file": {}, "state": {}}, "a checkpoint"
)
_left_by_a_run(
    "crossval.json",
    {"cell": "table1/brca/1024", "figure": "auc", "mean": 1, "sd": 0, "folds": [], "ddof": 1},
    "a cross-validation",
)
_left_by_a_run("run.json", _RUN, "a work list")
_left_by_a_run("a.json", {"digest": "x", "slide_id": "a"}, "a record")


# --- tables ---------------------------------------------------------------------------------------------------------


_COHORT = "slide_id,case_id,label\n" + "".join(f"s{i},p{i},{'ab'[i % 2]}\n" for i in range(12))


def _table(name: str, text: str | bytes, *, good: bool = False, suffix: str = ".csv") -> None:
    CASES.append(Case("table", name, lambda folder: _written(folder / f"c{suffix}", text), good))


for _name, _text in {
    "empty": "", "a header alone": "slide_id,label\n", "no header": "a,b\nc,d\n", "zeros": bytes(2000), "not UTF-8": b"slide_id,label\n\xff\xfe,a\n",
    "half a quote": 'slide_id,label\n"a,b\n', "a cell of 200 kB": "slide_id,label\n" + "x" * 200_000 + ",a\n", "a NUL": "slide_id,label\na\0b,a\n",
    "a cell too many": "slide_id,label\na,b,c\n", "a cell too few": "slide_id,label\na\n", "a name twice": "slide_id,slide_id,label\na,b,c\n",
    "a slide twice": "slide_id,label\na,x\na,y\n", "an empty id": "slide_id,label\n,x\n", "one class": "slide_id,label\na,x\nb,x\n",
    "an id of a path": "slide_id,label\n../../etc/passwd,x\nb,y\n", "UTF-16": _COHORT.encode("utf-16"), "JSON": "{}", "a page": "<html></html>",
    "10,000 columns": ",".join(f"c{i}" for i in range(10_000)) + "\n", "an mpp of a word": "slide_id,label,mpp\na,x,y\nb,y,1\n",
    "an mpp of 0": "slide_id,label,mpp\na,x,0\nb,y,1\n", "an mpp of 1e400": "slide_id,label,mpp\na,x,1e400\nb,y,1\n",
}.items():  # fmt: skip
    _table(_name, _text, good=True)
for _seed in range(30):

    def _mutated(folder: Path, seed: int = _seed) -> Path:
        rng = np.random.default_rng(seed)
        data = bytearray(_COHORT.encode())
        for at in rng.integers(0, len(data), 1 + seed % 6):
            data[at] = int(rng.integers(256))
        return _written(folder / "c.csv", bytes(data))

    CASES.append(Case("table", f"changed bytes {_seed}", _mutated, good=True))


# --- what is done with them -----------------------------------------------------------------------------------------


def read(one: Case, path: Path) -> str:
    """Reads the file as the package does; → what it found, in words. Raises what the package raises."""
    from longvit.errors import InputError

    kind = one.kind
    if kind.startswith("bag"):
        from longvit.data.bags import read_bag

        bag = read_bag(path)
        values = np.concatenate([bag.features.ravel(), [] if bag.coords is None else bag.coords.ravel()])
        return "foreign" if (values == SECRET).any() else f"{bag.features.shape}"
    if kind == "checkpoint .pth":
        from longvit.model.pretrained import convert

        return type(convert(path)).__name__
    if kind in ("config.json", "weights .safetensors"):
        from longvit.model.checkpoints import read_tensors
        from longvit.model.pretrained import load_model

        return type(load_model(path) if path.name == "model" else read_tensors(path)).__name__
    if kind == "recipe":
        from longvit.comparison.settings import ComparisonSettings
        from longvit.config import load_settings
        from longvit.pretraining.settings import PretrainSettings
        from longvit.tasks.settings import FinetuneSettings

        wrong = []
        for of in (ComparisonSettings, PretrainSettings):
            try:
                load_settings(of, path)
            except InputError as error:
                wrong.append(error)
        return repr(load_settings(FinetuneSettings, path).epochs)
    if kind == "table":
        from longvit.data.cohort import read_cohort

        return f"{len(read_cohort(path, need_files=False).rows)} rows"
    return str(_READERS[kind.removeprefix("left by a run: ")](path))


def _worklist(path: Path) -> Any:
    from longvit.batch.status import status

    folder = path.parent / "work" / "embed"
    for part in ("slides", "workers"):
        (folder / "r" / part).mkdir(parents=True)
    (folder / "run.json").write_bytes(path.read_bytes())
    (folder / "r" / "slides" / "a.json").write_bytes(path.read_bytes())
    (folder / "r" / "workers" / "w.jsonl").write_bytes(path.read_bytes().replace(b"\n", b" ") + b"\n")
    return status(path.parent)


def _lazily(module: str, name: str, of_folder: bool, *more: Any) -> Callable[[Path], Any]:
    def call(path: Path) -> Any:
        import importlib

        return getattr(importlib.import_module(f"longvit.{module}"), name)(path.parent if of_folder else path, *more)

    return call


def _fold_result(path: Path) -> Any:
    from longvit.tasks.finetune_result import finished

    result = finished(path.parent)
    return result and result.summary()


def _cross_validation(path: Path) -> Any:
    from longvit.tasks.published import measured_cells

    return measured_cells([path])


_READERS: dict[str, Callable[[Path], Any]] = {
    "a training": _fold_result,
    "a cell": _lazily("comparison.cell", "finished", True, {}),
    "a pretraining": _lazily("pretraining.pretrain_result", "finished", True),
    "costs": _lazily("training.costs", "read_cost", True),
    "a run folder": _lazily("tasks.run_folder", "claim", True, {"epochs": 1}, 1),
    "a checkpoint": _lazily("training.checkpoint", "read_checkpoint", True),
    "a cross-validation": _cross_validation,
    "a work list": _worklist,
    "a record": _lazily("batch.job", "read_record", False),
}


@dataclass(frozen=True)
class Outcome:
    words: str
    """refused, read; what must not be: error, many lines, foreign, code, died, hang, memory, accepted."""
    text: str = ""
    mb: float = 0.0
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return self.words in ("refused", "read")


def outcome(one: Case, folder: Path) -> Outcome:
    """Makes the file in an empty folder and reads it, in this process."""
    from longvit.errors import InputError

    path = one.make(folder)
    os.chdir(folder)
    try:
        found = read(one, path)
    except InputError as error:
        text = str(error)
        words = (
            "refused"
            if "\n" not in text and len(text) < 2000 and (path.name in text or folder.name in text)
            else "many lines"
        )
        if one.kind == "recipe" and words == "many lines" and "\n" not in text and len(text) < 2000:
            words = "refused"  # the settings' own checks know no file
    except Exception as error:
        words, text = "error", f"{type(error).__name__}: {error}"
    else:
        words, text = ("foreign" if found == "foreign" else "read" if one.good else "accepted"), found
    if list(folder.rglob(CANARY)):
        words = "code"
    return Outcome(words, text)


def in_a_process(one: Case) -> Outcome:
    """The same in a process of its own, with its time and its memory above what there was before."""
    with tempfile.TemporaryDirectory() as name:
        receive, send = os.pipe()
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                os.close(receive)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                before = _kb("VmRSS")
                resource.setrlimit(resource.RLIMIT_AS, (_kb("VmSize") * 1024 + 6 * 2**30,) * 2)
                Path("/proc/self/clear_refs").write_text("5")
                made = outcome(one, Path(name))
                line = json.dumps([made.words, made.text[:300], (_kb("VmHWM") - before) / 1024])
                os.write(send, line.encode(errors="replace"))
            finally:
                os._exit(0)
        os.close(send)
        is_there = select.select([receive], [], [], MOST_S)[0]
        data = os.read(receive, 65536) if is_there else b""
        os.close(receive)
        if not is_there:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        seconds = time.monotonic() - begun
    if not is_there:
        return Outcome("hang", "", 0.0, seconds)
    if not data:
        return Outcome("died", f"signal {status & 127}", 0.0, seconds)
    words, text, mb = json.loads(data)
    return Outcome("memory" if mb > MOST_MB and words in ("refused", "read") else words, text, mb, seconds)


def _kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def through_the_command(one: Case) -> Outcome | None:
    """`longvit convert`, `embed`, `train`, `cohort check` on the file; None for what no command takes by itself."""
    commands = {
        "checkpoint .pth": ["convert", "FILE", "--out", "out"], "config.json": ["embed", "FILE", "x.png", "--out", "out"],
        "weights .safetensors": ["embed", "FILE", "x.png", "--out", "out"], "recipe": ["train", "c.csv", "--recipe", "FILE", "--out", "out"],
        "table": ["cohort", "check", "FILE"],
    }  # fmt: skip
    if one.kind not in commands or (one.kind == "weights .safetensors" and "FIFO" in one.name):
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = one.make(folder)
        (folder / "c.csv").write_text(_COHORT) if one.kind == "recipe" else None
        from PIL import Image

        Image.new("RGB", (64, 64)).save(folder / "x.png")
        words = [str(path) if word == "FILE" else word for word in commands[one.kind]]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "longvit.cli", *words], cwd=folder, capture_output=True, timeout=60, text=True
            )
        except subprocess.TimeoutExpired:
            return Outcome("hang", " ".join(words))
        seconds = time.monotonic() - begun
        text = (done.stderr.strip().splitlines() or [""])[-1]
        if "Traceback" in done.stderr or done.returncode < 0:
            return Outcome("error", text, 0.0, seconds)
        if list(folder.rglob(CANARY)):
            return Outcome("code", text, 0.0, seconds)
        if done.returncode == 0 and not one.good:
            return Outcome("accepted", text, 0.0, seconds)
        return Outcome("read" if done.returncode == 0 else "refused", text, 0.0, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case; else every seventh")
    parser.add_argument("--class", dest="kind", default="", help="cases of the classes that begin so")
    parser.add_argument("--seed", type=int, default=3, help="of the flipped bits")
    parser.add_argument("--flips", type=int, default=120, help="how many bags with flipped bits")
    parser.add_argument("--commands", action="store_true", help="also every fifth case through the command line")
    parser.add_argument("--verbose", action="store_true", help="a line per case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import longvit.batch.status
    import longvit.comparison.settings
    import longvit.data.bags
    import longvit.data.cohort
    import longvit.model.pretrained
    import longvit.pretraining.settings
    import longvit.tasks.settings  # noqa: F401

    cases = [c for c in (*CASES, *_flips(args.flips, args.seed)) if c.kind.startswith(args.kind)]
    cases = cases if args.all or args.kind else cases[::7]
    table: dict[str, Counter[str]] = {}
    worst: dict[str, list[float]] = {}
    wrong = []
    for i, one in enumerate(cases):
        tries = [("", in_a_process(one))]
        if args.commands and i % 5 == 0 and (of := through_the_command(one)) is not None:
            tries.append((" (command)", of))
        for how, found in tries:
            kind = one.kind.split(":")[0] + how
            table.setdefault(kind, Counter())[found.words] += 1
            peak, slowest = worst.setdefault(kind, [0.0, 0.0])
            worst[kind] = [max(peak, found.mb), max(slowest, found.seconds)]
            if not found.is_right:
                wrong.append(f"{one.kind}{how}: {one.name}: {found.words}: {found.text}")
            if args.verbose:
                print(
                    f"{kind:30} {one.name[:44]:45} {found.words:9} {found.mb:6.0f} MB {found.seconds:5.1f} s  {found.text[:150]}"
                )
    print(f"{'class':36}{'tried':>7}{'refused':>9}{'read':>6}{'wrong':>7}{'peak MB':>9}{'slowest s':>11}")
    for kind, found_of in table.items():
        tried, right = sum(found_of.values()), found_of["refused"] + found_of["read"]
        numbers = f"{tried:7}{found_of['refused']:9}{found_of['read']:6}{tried - right:7}"
        print(f"{kind:36}{numbers}{worst[kind][0]:9.0f}{worst[kind][1]:11.1f}")
    total = Counter[str]()
    for found_of in table.values():
        total.update(found_of)
    bad = {
        name: total[name] for name in ("error", "many lines", "foreign", "code", "died", "hang", "memory", "accepted")
    }
    print(f"{sum(total.values())} tries: " + ", ".join(f"{n} {name}" for name, n in bad.items()))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
