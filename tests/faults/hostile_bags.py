"""Feature bags that mean harm or are damaged: HDF5, and files of torch.save."""

from __future__ import annotations

import io
import os
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tests.faults.hostile_cases import CANARY, CASES, SECRET, Case, D, N, case, written


def features(seed: int = 0) -> np.ndarray:
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
        _with(features(), _coords())(file)
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
_h5("other names", _with(None, None, x=features()))
_h5("coordinates alone", _with(None, _coords()))
_h5("a null dataspace", _with(h5py.Empty("f4"), _coords()))
_h5("null coordinates", _with(features(), h5py.Empty("i8")))
_h5("a scalar", _with(np.float32(3), None))
_h5("one dimension", _with(features()[0], None))
_h5("three dimensions", _with(np.zeros((2, 3, 4), np.float32), None))
_h5("no tiles", _with(np.zeros((0, 8), np.float32), np.zeros((0, 2), int)))
_h5("no width", _with(np.zeros((20, 0), np.float32), None))
_h5("whole numbers", _with(features().astype(int), None))
_h5("complex numbers", _with(features().astype(np.complex64), None))
_h5("truth values", _with(features() > 0, None))
_h5("texts", _with(np.array([[b"a", b"b"]] * 3), None))
_h5("records", _with(np.zeros(3, [("a", "f4"), ("b", "i4")]), None))
_h5("arrays of arrays", lambda file: file.create_dataset("features", (3,), np.dtype(("f4", (4,)))))
_h5("a group for features", lambda file: file.create_group("features").create_group("x"))
_h5("a group for coords", lambda file: (_with(features())(file), file.create_group("coords")))
_h5("a datatype for features", _with(np.dtype("f8"), None))
_h5("a datatype for coords", _with(features(), np.dtype("i8")))
_h5("a batch of one", _with(features()[None], _coords()), good=True)
_h5("a batch of one, with coords", _with(features()[None], _coords()[None]), good=True)
_h5("STAMP's names", _with(None, _coords() * 0.5, feats=features()), good=True)
_h5("big-endian", _with(features().astype(">f4"), _coords().astype(">i4")), good=True)
_h5("half precision", _with(features().astype(np.float16), None), good=True)
_h5(
    "a soft link within",
    lambda f: (_with(None, _coords(), a=features())(f), f.__setitem__("features", h5py.SoftLink("/a"))),
    good=True,
)
for _words, _value in {"1e300": 1e300, "NaN": np.nan, "an infinity": np.inf, "−1": -1.0, "2^40": 2.0**40}.items():
    _h5(f"coordinates of {_words}", _with(features(), np.where(np.arange(N)[:, None] == 7, _value, _coords())))
_h5("coordinates of 2^64 − 1", _with(features(), np.full((N, 2), 2**64 - 1, np.uint64)))
_h5("coordinates of −2^63", _with(features(), np.full((N, 2), -(2**63))))
_h5("coordinates of texts", _with(features(), np.array([[b"1", b"2"]] * N)))
_h5("coordinates that are complex", _with(features(), _coords().astype(complex)))
_h5("fewer coordinates", _with(features(), _coords()[:-1]))
_h5("three coordinates", _with(features(), np.zeros((N, 3), int)))
_h5("features with a NaN", _with(np.where(features() > 2, np.nan, features()).astype(np.float32) + np.nan, None))
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
_edited(
    "attributes of other kinds",
    lambda f: f["features"].attrs.update(
        {"patch_level": np.array([0, 1]), "patch_size": [256, 256], "downsample": b"x", "level0_magnification": 1e300}
    ),
    good=True,
)
_edited("a tile of no side", lambda f: f["coords"].attrs.update({"patch_size_level0": -1e300}), good=True)
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
        made.write_direct_chunk((0, 0), features().tobytes())

    return write


_h5("a filter that is not installed", _filtered(32015))
_h5("a filter of no name", _filtered(999))


def _changed(name: str, change: Callable[[bytearray], object], *, good: bool = False, **created: Any) -> None:
    """The bytes of a whole bag, changed."""

    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("features", data=np.tile(features(), (50, 1)), **created)
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


def flips(count: int, seed: int) -> Iterator[Case]:
    for i in range(count):

        def make(folder: Path, i: int = i) -> Path:
            rng = np.random.default_rng([seed, i])
            with h5py.File(folder / "a.h5", "w", libver="latest" if i % 2 else "earliest") as file:
                file.create_dataset("features", data=features(), chunks=(5, D) if i % 3 else None)
                file.create_dataset("coords", data=_coords())
                file["features"].attrs["encoder"] = "uni"
            data = bytearray((folder / "a.h5").read_bytes())
            for at in rng.integers(0, min(len(data), 4096), 1 + i % 4):
                data[at] ^= 1 << int(rng.integers(8))
            (folder / "a.h5").write_bytes(data)
            return folder / "a.h5"

        yield Case("bag .h5, flipped bits", f"{i}", make, good=True)  # most fall on values, which have no checksum


def special(kind: str, suffix: str) -> None:
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
        CASES.append(Case(kind, name, lambda folder, data=data: written(folder / f"a{suffix}", data)))
    CASES.append(
        Case(
            kind,
            "a Git-LFS pointer",
            lambda f: written(f / f"a{suffix}", b"version https://git-lfs.github.com/spec/v1\n"),
        )
    )


special("bag .h5", ".h5")
special("bag .pt", ".pt")


# --- files of torch.save


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


def _command(folder: Path) -> str:
    return f"touch {folder / CANARY}"


def tensors_of(folder: Path) -> dict[str, Any]:
    """Tensors that are no plain numbers, by name."""
    x = torch.from_numpy(features())
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
    x = torch.from_numpy(features())
    return {
        "transposed": torch.from_numpy(features()).T.contiguous().T,
        "every second row": torch.cat([x, x])[::2],
        "a batch of one": x[None],
        "a parameter": torch.nn.Parameter(x),
        "double precision": x.double(),
        "bfloat16": x.bfloat16(),
        "negated by a bit": torch.complex(x, x).conj().imag,
    }


def pickles_of(folder: Path) -> dict[str, Any]:
    return {
        "os.system": Runs(os.system, _command(folder)),
        "eval": Runs(eval, f"__import__('os').system({_command(folder)!r})"),
        "exec": Runs(exec, f"open({str(folder / CANARY)!r}, 'w')"),
        "open": Runs(open, str(folder / CANARY), "w"),
        "subprocess": Runs(subprocess.call, ["touch", str(folder / CANARY)]),
        "torch.load": Runs(torch.load, str(folder / "other.pt")),
        "getattr": Runs(getattr, "text", "upper"),
        "inside a dict": {"features": Runs(os.system, _command(folder))},
        "a module": torch.nn.Linear(2, 2),
        "a numpy array": features(),
        "a text": "x" * 1000,
        "a dict of tensors": {"features": torch.ones(3, 4), "coords": torch.ones(3, 2)},
        "a dict of 5,000 keys": {f"key {i}\n": i for i in range(5000)},
        "a list": [torch.ones(2, 2)],
        "None": None,
        "a number": 3,
    }


warnings.simplefilter("ignore", UserWarning)  # each strange kind of tensor is called new, or old
TENSORS = tuple(tensors_of(Path()))
PICKLES = tuple(pickles_of(Path()))


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
DAMAGES: dict[str, Callable[[Path, Any], Path]] = {
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
    "a bytearray in the older layout": lambda path, content: written(path, _GLOBAL_BYTEARRAY * 3),
    "9 million lists in the older layout": lambda path, content: written(path, b"\x80\x02" + b"]" * 9_000_000 + b"."),
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
    return written(path, data[: len(data) // part - 30])


def _flipped(path: Path, content: Any, count: int) -> Path:
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), count):
        data[at] ^= 4
    return written(path, bytes(data))


def saved(kind: str, suffix: str, name: str, content: Callable[[Path], Any], *, good: bool = False) -> None:
    def make(folder: Path) -> Path:
        torch.save(content(folder), folder / f"a{suffix}")
        return folder / f"a{suffix}"

    CASES.append(Case(kind, name, make, good))


for _name in TENSORS:
    saved("bag .pt", ".pt", f"a tensor {_name}", lambda folder, name=_name: tensors_of(folder)[name])
for _name in _strange_tensors(Path()):
    saved("bag .pt", ".pt", f"a tensor {_name}", lambda folder, name=_name: _strange_tensors(folder)[name], good=True)
for _name in PICKLES:
    saved("bag .pt", ".pt", f"pickled: {_name}", lambda folder, name=_name: pickles_of(folder)[name])
for _name, _make in DAMAGES.items():
    CASES.append(
        Case(
            "bag .pt",
            _name,
            lambda folder, make=_make: make(folder / "a.pt", torch.from_numpy(features())),
            good=_name in ("the older layout", "packed"),
        )
    )
