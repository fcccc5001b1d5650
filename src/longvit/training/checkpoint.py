"""Checkpoints that survive being killed at any instant: `step-00000120.safetensors` + `step-00000120.json`.

The tensors are written first, then the JSON with the length and SHA-256 of the tensor file and a checksum of
itself. Each is written to a temporary name, synced and renamed. A valid JSON file therefore proves both. A truncated,
bit-flipped or half-written file is ignored with its reason; the newest valid checkpoint is read. No pickle.

A step that is saved twice (before and after its evaluation) takes `step-00000120-again.safetensors` the second time,
so that the first save stays whole until the second one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longvit.errors import InputError
from longvit.files import atomic_path, make_folder, write_text
from longvit.json_file import read_json_object

FORMAT = 1
_MAX_JSON_BYTES = 2**27  # the losses of a long run
_TENSOR_FILE = re.compile(r"step-\d{8,}(-again)?\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint of one step."""

    step: int
    tensors: dict[str, torch.Tensor]
    """Tensors on the CPU, in the dtype in which they were saved."""
    state: dict[str, Any]
    """Everything but tensors: settings, epochs."""
    path: Path
    """Path of the JSON file."""
    skipped: tuple[str, ...] = ()
    """Newer checkpoints that are damaged, each with its reason."""


def write_checkpoint(
    folder: str | Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Writes a checkpoint of `step`, then removes all but the newest `keep`; returns the path of the JSON file.

    Checkpoints of later steps are removed too: a run resumes from the newest valid one, so those are damaged.

    `state` must be JSON; floats keep every bit. Raises `InputError` where the disk is full or not writable; older
    checkpoints stay.
    """
    folder = make_folder(folder)
    json_path = folder / f"step-{step:08d}.json"
    tensor_path = _free_tensor_path(json_path)
    with atomic_path(tensor_path) as temporary:
        _save(_own_memory(tensors), temporary)
        size, digest = temporary.stat().st_size, _sha256(temporary)
    content = {
        "format": FORMAT,
        "step": step,
        "tensor_file": {"name": tensor_path.name, "bytes": size, "sha256": digest},
        "state": dict(state),
    }
    write_text(json_path, json.dumps({"sha256": _content_hash(content), **content}, indent=1) + "\n")
    checkpoints = sorted(folder.glob("step-*.json"))
    kept = [path for path in checkpoints if path.name <= json_path.name][-keep:]
    for old in checkpoints:
        if old not in kept:
            with contextlib.suppress(OSError):  # a folder of that name
                old.unlink()
    in_use = {_tensor_name(path) for path in kept}
    for tensor_file in folder.glob("step-*.safetensors"):
        if tensor_file.name not in in_use:
            with contextlib.suppress(OSError):
                tensor_file.unlink()
    for half in folder.glob(".step-*.part.*"):  # of a process that was killed while it wrote; a run has one process
        half.unlink(missing_ok=True)
    return json_path


def read_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Newest valid checkpoint of a folder; None without checkpoints or without the folder."""
    skipped: list[str] = []
    for path in sorted(Path(folder).glob("step-*.json"), reverse=True):
        try:
            return _read(path, tuple(skipped))
        except (_Damaged, OSError) as error:
            skipped.append(f"{path}: {error}")
    if skipped:
        raise InputError(f"{skipped[0]}; no older checkpoint is valid: remove the folder to start again")
    return None


def settings_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between two settings, such as `lr 5e-05 -> 0.0001`; tuples equal lists, as in JSON."""
    saved, now = json.loads(json.dumps(dict(saved))), json.loads(json.dumps(dict(now)))
    keys = [*now, *(key for key in saved if key not in now)]
    gone = "(absent)"
    return [
        f"{key} {saved.get(key, gone)} -> {now.get(key, gone)}"
        for key in keys
        if saved.get(key, gone) != now.get(key, gone)
    ]


_ADDED_SETTINGS = {
    "decode": "exact",
    "label_columns": ["label"],
    "aggregate": "mean",
    "match_on": None,
    "keep_head": False,
    "bags": None,
    "objective": "dino",
    "recolour": 0.2,
}
"""Settings that a stored run may lack, with the value that it had."""


def refuse_other_settings(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises `InputError` with the difference where a run was started with other settings."""
    added = {name: value for name, value in _ADDED_SETTINGS.items() if name in now}
    if difference := settings_difference({**added, **saved}, now):
        raise InputError(
            f"{folder}: started with other settings ({', '.join(difference)}); "
            f"give the same settings to resume, or another folder to start a new run"
        )


def _free_tensor_path(json_path: Path) -> Path:
    """The tensor file name of a step that no valid JSON file uses."""
    first = json_path.with_suffix(".safetensors")
    return first.with_name(f"{first.stem}-again.safetensors") if _tensor_name(json_path) == first.name else first


def _tensor_name(json_path: Path) -> str | None:
    """Name of the tensor file in a JSON file; None where the JSON file is absent or damaged."""
    try:
        return str(_json_of(json_path)["tensor_file"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json_of(path: Path) -> dict[str, Any]:
    return read_json_object(path, most_bytes=_MAX_JSON_BYTES)


class _Damaged(Exception):
    pass


def _read(path: Path, skipped: tuple[str, ...]) -> Checkpoint:
    try:
        content = _json_of(path)
        checksum = content.pop("sha256")
        is_whole = checksum == _content_hash(content)
        version, step, state, entry = content["format"], content["step"], content["state"], content["tensor_file"]
        name, size, digest = entry["name"], entry["bytes"], entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"damaged ({type(error).__name__})") from error
    if not is_whole:
        raise _Damaged("damaged (its checksum does not match)")
    if version != FORMAT:
        raise InputError(f"{path}: written by another version (format {version}, this one reads {FORMAT})")
    # A checksum excludes damage by chance, not by intent: the content may still be of any form.
    if not (isinstance(name, str) and _TENSOR_FILE.fullmatch(name)):
        raise _Damaged(f"damaged (a tensor file called {str(name)[:80]!r})")
    if type(step) is not int or step < 0 or not isinstance(state, dict):
        raise _Damaged("damaged (its step or its state is of another type)")
    tensor_path = path.with_name(name)
    if not tensor_path.is_file():
        raise _Damaged(f"its {tensor_path.name} is missing")
    if tensor_path.stat().st_size != size:
        raise _Damaged(f"its {tensor_path.name} has {tensor_path.stat().st_size} of {str(size)[:40]} bytes")
    if _sha256(tensor_path) != digest:
        raise _Damaged(f"its {tensor_path.name} is damaged (checksum)")
    try:
        with safe_open(tensor_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _Damaged(f"its {tensor_path.name} is no safetensors file ({type(error).__name__}: {error})") from error
    return Checkpoint(step, tensors, state, path, skipped)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode  # safetensors writes a file that only its owner may read
    try:
        save_file(tensors, path)
        path.chmod(mode)
    except SafetensorError as error:
        # safetensors hides a full disk in its own error; the number in its text restores the OSError.
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(match.group(1)), os.strerror(int(match.group(1)))) from error
        raise


def _own_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, detached tensors with separate storages: safetensors refuses tensors that share memory."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        shares = storage.nbytes() != tensor.numel() * tensor.element_size() or storage.data_ptr() in seen
        plain[name] = tensor.clone() if shares else tensor
        seen.add(storage.data_ptr())
    return plain


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
