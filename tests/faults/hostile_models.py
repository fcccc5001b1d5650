"""Checkpoints, model folders and weights that mean harm or are damaged."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.faults.hostile_bags import DAMAGES, PICKLES, TENSORS, Runs, pickles_of, saved, special, tensors_of
from tests.faults.hostile_cases import CANARY, CASES, Case, case, written

special("checkpoint .pth", ".pth")
special("weights .safetensors", ".safetensors")


def published_checkpoint(**changes: Any) -> dict[str, Any]:
    """A small LongViT under the authors' names."""
    from longvit.model.checkpoints import LONGVIT_NAMES, published
    from longvit.model.longvit import LongViT, LongViTConfig

    torch.manual_seed(0)
    config = LongViTConfig(embed_dim=32, depth=2, num_heads=16, ffn_dim=64, grid_patches=2)
    return {**published(LongViT(config).state_dict(), LONGVIT_NAMES), **changes}


_EMBED, _FFN = "patch_embed.proj.weight", "encoder.layers.0.ffn.fc1.weight"


def _checkpoint(name: str, content: Callable[[Path], Any], *, good: bool = False) -> None:
    saved("checkpoint .pth", ".pth", name, content, good=good)


_checkpoint("whole", lambda folder: {"teacher": published_checkpoint()}, good=True)
for _name in TENSORS:
    _checkpoint(
        f"an embedding {_name}", lambda folder, n=_name: published_checkpoint(**{_EMBED: tensors_of(folder)[n]})
    )
    _checkpoint(f"a layer {_name}", lambda folder, n=_name: published_checkpoint(**{_FFN: tensors_of(folder)[n]}))
for _name in PICKLES:
    _checkpoint(
        f"pickled: {_name}",
        lambda folder, n=_name: {**published_checkpoint(), "more": pickles_of(folder)[n]},
        good=True,
    )
    _checkpoint(f"nothing but {_name}", lambda folder, n=_name: pickles_of(folder)[n])
for _name, _make in DAMAGES.items():
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
        written(path, new if isinstance(new, str | bytes) else json.dumps(new))
        return model

    CASES.append(Case("config.json", name, make, good))


_config("whole", lambda c: c, good=True)
_config("with whole numbers for fractions", lambda c: c | {"drop_path": 0}, good=True)
for _name, _new in {
    "a list": [],
    "null": None,
    "a number": 3,
    "a text": '"text"',
    "empty": "",
    "a word": "x",
    "half": '{"model": "lon',
    "two objects": "{}{}",
    "no object": "{}",
    "100,000 lists": "[" * 100_000,
    "100,000 objects": '{"a":' * 100_000,
    "digits": '{"model": ' + "9" * 10_000 + "}",
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "zeros": bytes(100),
    "100 MB": b" " * (100 * 2**20),
    "100 MB of numbers": b"[" + b"1," * (50 * 2**20),
}.items():
    _config(_name, lambda c, new=_new: new)
for _name, _edit in {
    "model a list": {"model": ["longvit"]},
    "model null": {"model": None},
    "model an object": {"model": {}},
    "format null": {"format": None},
    "format a text": {"format": "1"},
    "format −1e9": {"format": 1e9},
    "format 99": {"format": 99},
    "a width of 10^9": {"embed_dim": 10**9},
    "a width of 0": {"embed_dim": 0},
    "a width of −32": {"embed_dim": -32},
    "a width of 65,536": {"embed_dim": 65_536},
    "a width that is a text": {"embed_dim": "32"},
    "a width that is true": {"embed_dim": True},
    "a width of 32.0": {"embed_dim": 32.0},
    "a width that is null": {"embed_dim": None},
    "a width that is a list": {"embed_dim": [32]},
    "10^9 layers": {"depth": 10**9},
    "1,000 layers": {"depth": 1000},
    "−1 layers": {"depth": -1},
    "1e400 layers": {"depth": float("inf")},
    "no heads": {"num_heads": 0},
    "−4 heads": {"num_heads": -4},
    "5 heads": {"num_heads": 5},
    "heads of a NaN": {"num_heads": float("nan")},
    "an FFN of 10^12": {"ffn_dim": 10**12},
    "an FFN of 0": {"ffn_dim": 0},
    "a patch of 0": {"patch_px": 0},
    "a patch of 10^6": {"patch_px": 10**6},
    "a patch of −32": {"patch_px": -32},
    "a grid of 10^6": {"grid_patches": 10**6},
    "a grid of 4,096": {"grid_patches": 4096},
    "a grid of 0": {"grid_patches": 0},
    "an image of 0": {"image_px": 0},
    "an image of −64": {"image_px": -64},
    "an image of 33": {"image_px": 33},
    "an image of 2^40": {"image_px": 2**40},
    "positions of every patch": {"positions": "per_patch", "image_px": 2**20},
    "10^9 classes": {"num_classes": 10**9},
    "−1 classes": {"num_classes": -1},
    "classes that are a text": {"num_classes": "2"},
    "names that are objects": {"class_names": [{"a": 1}, {"b": 2}]},
    "names that are numbers": {"class_names": [1, 2]},
    "names that are a text": {"class_names": "ab"},
    "one name": {"class_names": ["a"]},
    "names that are lists": {"class_names": [["a"], ["b"]]},
    "a fit that there is not": {"fit": "crop"},
    "a fit that is a list": {"fit": ["pad"]},
    "a fit that is a number": {"fit": 3},
    "a pool that there is not": {"pool_norm": "x"},
    "a stem that there is not": {"stem": "x"},
    "a stem whose weights there are not": {"stem": "conv"},
    "no norms in the blocks, and weights of norms": {"sub_norm": False},
    "norms in the blocks by a number": {"sub_norm": 1},
    "a gradient that there is not": {"gradient": "none"},
    "ragged that there is not": {"ragged": 0},
    "positions that there are not": {"positions": "x"},
    "a ratio of 0": {"dilated_ratios": [0, 1, 2, 4, 8]},
    "a ratio of 10^9": {"dilated_ratios": [1, 2, 4, 8, 10**9]},
    "ratios that are texts": {"dilated_ratios": ["1"] * 5},
    "ratios that are a number": {"dilated_ratios": 3},
    "segments of 0": {"segment_lengths": [0] * 5},
    "segments of −1": {"segment_lengths": [-1] * 5},
    "three segments": {"segment_lengths": [1, 2, 3]},
    "segments that are a text": {"segment_lengths": "all"},
    "drop path 1": {"drop_path": 1.0},
    "drop path NaN": {"drop_path": float("nan")},
    "drop path a text": {"drop_path": "0"},
    "a task that is a list": {"task": ["subtyping"]},
    "a setting that there is not": {"colour": "red"},
    "a setting with a line break": {"a\nb\x1b[31m": 1},
    "5,000 settings": {f"k{i}": i for i in range(5000)},
    "prov-gigapath": {"model": "gigapath"},
}.items():
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
    "float8": torch.float8_e4m3fn,
    "float8 of the other kind": torch.float8_e5m2,
    "whole numbers": torch.int64,
    "bytes": torch.uint8,
    "bits": torch.bool,
    "complex": torch.complex64,
}.items():
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
_weights("a pickle", lambda t, path: pickle.dumps(Runs(os.system, f"touch {path.parent.parent / CANARY}")))


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
