"""Damaged checkpoints, by chance and with intent: one clear line, or the older one; never a traceback, no code run.

    python tests/faults/damaged_checkpoints.py --all      260 of them
    python tests/faults/damaged_checkpoints.py pickle     those of a kind

Damage by chance must lead to the bits of the run that nobody disturbed, from the older checkpoint. What somebody has
signed anew with a right checksum may lead to a refusal or to a run, but to nothing else.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

from tests.training import small_run  # noqa: E402

from longvit.errors import InputError  # noqa: E402
from longvit.training.checkpoint import _content_hash, _sha256  # noqa: E402

TRIES = 10
_STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 3.5, 10**30, 1e308, "x", "", "\0", "../../../etc/passwd", "/dev/zero"),
    *([], {}, [[]], [None], {"a": None}, ["x"], [1, 2], {"settings": []}),
)

Damage = Callable[[random.Random, Path, Path], None]
"""Told the JSON and the tensor file of the newest checkpoint."""


class _Planted:
    """A pickle that leaves a file behind where it is executed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


# --- by chance ------------------------------------------------------------------------------------------------------


def _flip(rng: random.Random, path: Path, n: int) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(n):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _zeros_at_the_end(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    first = rng.randrange(len(data) - 1)
    data[first:] = bytes(len(data) - first)
    path.write_bytes(data)


def _grown(rng: random.Random, path: Path) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 99)))


def _other_file(path: Path, kind: int) -> None:
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.touch()
    elif kind == 4:
        path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


# --- with intent: checksums are right -------------------------------------------------------------------------------


def _signed(path: Path, content: dict[str, Any]) -> None:
    content = {key: value for key, value in content.items() if key != "sha256"}
    path.write_text(json.dumps({"sha256": _content_hash(content), **content}))


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _another_value(rng: random.Random, path: Path, _: Path) -> None:
    content = _content(path)
    place: Any = content
    while True:
        key = rng.choice(sorted(place))
        if isinstance(place[key], dict) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        place[key] = copy.deepcopy(rng.choice(_STRANGE))
        break
    _signed(path, content)


def _without_a_key(rng: random.Random, path: Path, _: Path) -> None:
    content = _content(path)
    place = rng.choice([content, content["state"], content["tensor_file"]])
    del place[rng.choice(sorted(place))]
    _signed(path, content)


def _another_state(rng: random.Random, path: Path, _: Path) -> None:
    content = _content(path)
    content["state"][rng.choice(sorted(content["state"]))] = copy.deepcopy(rng.choice(_STRANGE))
    _signed(path, content)


def _deep(rng: random.Random, path: Path, _: Path) -> None:
    depth = rng.choice([500, 5_000, 200_000])
    text = path.read_text()
    path.write_text(text.replace('"state"', f'"state": {"[" * depth}{"]" * depth}, "was"', 1))


def _whole_deep(rng: random.Random, path: Path, _: Path) -> None:
    depth = rng.choice([500, 5_000, 200_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    path.write_text(opening * depth + "1" + closing * depth)


def _vouched(path: Path, tensors: Path) -> None:
    content = _content(path)
    content["tensor_file"] |= {"bytes": tensors.stat().st_size, "sha256": _sha256(tensors)}
    _signed(path, content)


def _pickle(rng: random.Random, path: Path, tensors: Path) -> None:
    planted = _Planted(str(path.parent / "executed"))
    if rng.random() < 0.5:
        tensors.write_bytes(pickle.dumps(planted, protocol=rng.randrange(6)))
    else:
        torch.save({"model": planted}, tensors)
    _vouched(path, tensors)


def _header(rng: random.Random, path: Path, tensors: Path) -> None:
    data = tensors.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kind = rng.randrange(5)
    name = rng.choice([key for key in header if key != "__metadata__"])
    if kind == 0:
        tensors.write_bytes(rng.choice([2**63, 2**40, 2**64 - 1, 0, size + 1]).to_bytes(8, "little") + data[8:])
    else:
        if kind == 1:
            header[name]["shape"] = [2**40, 2**20]
        elif kind == 2:
            header[name]["data_offsets"] = [0, 2**50]
        elif kind == 3:
            header[name]["dtype"] = rng.choice(["F8_E8M0", "X", "BOOL", "I64", None])
        else:
            header[name] = rng.choice(_STRANGE)
        text = json.dumps(header).encode()
        tensors.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    _vouched(path, tensors)


def _other_tensors(rng: random.Random, path: Path, tensors: Path) -> None:
    held = load_file(tensors)
    name = rng.choice(sorted(held))
    kind = rng.randrange(6)
    if kind == 0:
        del held[name]
    elif kind == 1:
        held[name] = held[name].flatten()[:1].clone() if held[name].ndim else torch.zeros(3, 3)
    elif kind == 2:
        held[name] = held[name].to(rng.choice([torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]))
    elif kind == 3:
        held[rng.choice(["model.x", "optimizer.x", "optimizer", "optimizer.exp_avg.nope", "y"])] = torch.zeros(2)
    elif kind == 4:
        held["history"] = torch.zeros(rng.choice([(0,), (2,), (3, 1), (1, 2, 3)]))
    else:
        held = {}
    save_file(held, tensors)
    _vouched(path, tensors)


CHANCE: dict[str, Damage] = {
    "one-bit-json": lambda rng, path, _: _flip(rng, path, 1),
    "one-bit-tensors": lambda rng, _, tensors: _flip(rng, tensors, 1),
    "many-bits-json": lambda rng, path, _: _flip(rng, path, rng.randrange(8, 65)),
    "many-bits-tensors": lambda rng, _, tensors: _flip(rng, tensors, rng.randrange(8, 65)),
    "cut-json": lambda rng, path, _: _cut(rng, path),
    "cut-tensors": lambda rng, _, tensors: _cut(rng, tensors),
    "zeros-json": lambda rng, path, _: _zeros_at_the_end(rng, path),
    "zeros-tensors": lambda rng, _, tensors: _zeros_at_the_end(rng, tensors),
    "grown-json": lambda rng, path, _: _grown(rng, path),
    "grown-tensors": lambda rng, _, tensors: _grown(rng, tensors),
    "other-json": lambda rng, path, _: _other_file(path, rng.randrange(6)),
    "other-tensors": lambda rng, _, tensors: _other_file(tensors, rng.randrange(6)),
    "sparse-json": lambda rng, path, _: _sparse(path),
    "sparse-tensors": lambda rng, _, tensors: _sparse(tensors),
    "random-json": lambda rng, path, _: path.write_bytes(rng.randbytes(rng.randrange(5000))) and None,
    "random-tensors": lambda rng, _, tensors: tensors.write_bytes(rng.randbytes(rng.randrange(5000))) and None,
    "deep-json": _whole_deep,
    "deep-state": _deep,
}
INTENT: dict[str, Damage] = {
    "another-value": _another_value,
    "another-state": _another_state,
    "without-a-key": _without_a_key,
    "pickle": _pickle,
    "header": _header,
    "header-again": _header,
    "tensors": _other_tensors,
    "tensors-again": _other_tensors,
}
KINDS = {**CHANCE, **INTENT}
CASES = tuple((kind, number) for number in range(TRIES) for kind in KINDS)


class _Stop(Exception):
    pass


class Checkpoints:
    """A run that was ended in its second epoch, and the parameters of the run that nobody ended."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        self.whole = small_run.run(folder / "whole")[0].state_dict()
        calls, step = 0, small_run.step

        def stopping(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 9:
                raise _Stop
            return step(*arguments)

        small_run.step = stopping
        try:
            small_run.run(folder / "stopped")
        except _Stop:
            pass
        finally:
            small_run.step = step

    def wrong_with(self, kind: str, number: int) -> str:
        """What is wrong with how a run goes on from the damaged checkpoint, "" where nothing is."""
        folder = self.folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "stopped", folder)
        older, newest = sorted(folder.glob("step-*.json"))
        rng = random.Random(f"{kind} {number}")
        KINDS[kind](rng, newest, folder / _content(self.folder / "stopped" / newest.name)["tensor_file"]["name"])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, result = small_run.run(folder)
        except InputError as error:
            said = str(error)
            if "\n" in said or len(said) > 2000 or str(folder) not in said:
                return f"its line: {said[:300]!r}"
            is_in_the_way = "not written: Is a directory" in said
            return f"refused: {said}" if kind in CHANCE and not is_in_the_way else ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if (folder / "executed").exists():
            return "its code was run"
        if kind in CHANCE:
            if result.resumed_at != int(older.stem.rpartition("-")[2]) and kind != "deep-state":
                return f"went on after step {result.resumed_at}"
            if any(not torch.equal(tensor, self.whole[name]) for name, tensor in model.state_dict().items()):
                return "other bits"
        return ""


def main(words: list[str]) -> int:
    """Runs the cases of the kinds named."""
    if not words:
        print(__doc__)
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.RLIM_INFINITY))
    wanted = [case for case in CASES if words == ["--all"] or case[0] in words]
    right = 0
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = Checkpoints(Path(temporary))
        for kind, number in wanted:
            wrong = checkpoints.wrong_with(kind, number)
            right += not wrong
            if wrong:
                print(f"{kind} {number}: {wrong}", flush=True)
    print(f"{right} of {len(wanted)} damaged checkpoints: right")
    return int(right < len(wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
