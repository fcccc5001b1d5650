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
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script

from tests.faults import hostile_models  # noqa: F401 (its cases)
from tests.faults.hostile_bags import flips
from tests.faults.hostile_cases import CANARY, CASES, SECRET, Case
from tests.faults.hostile_texts import COHORT

MOST_MB, MOST_S = 1000, 20
_LARGE = ("GB in", "100 MB", "million", "100,000 names", "a prime of slides")
"""Their files alone take seconds to make."""


def small_cases(kind: str) -> list[Any]:
    """The cases of the classes that begin so, as parameters of a test; without those that take seconds."""
    import pytest

    chosen = [c for c in CASES if c.kind.startswith(kind) and not any(words in c.name for words in _LARGE)]
    return [pytest.param(c, id=f"{c.kind}: {c.name}".encode("ascii", "replace").decode()) for c in chosen]


def check(one: Case, folder: Path) -> None:
    """Fails where the file is neither read nor refused in one line; with a limit on the memory."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    here = Path.cwd()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_kb("VmSize") * 1024 + 2 * 2**30, limits[1]))
        found = outcome(one, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(here)
    assert found.is_right, f"{found.words}: {found.text}"


def read(one: Case, path: Path) -> str:
    """Reads the file as the package does; → what it found, in words. Raises what the package raises."""
    from longvit.errors import InputError

    kind = one.kind
    if kind.startswith("bag"):
        from longvit.data.bags import read_bag

        bag = read_bag(path)
        assert bag.tile_level0_px is None or 0 < bag.tile_level0_px < 2**31
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
        from longvit.finetuning.settings import FinetuneSettings
        from longvit.pretraining.settings import PretrainSettings

        wrong = []
        for of in (ComparisonSettings, PretrainSettings):
            try:
                load_settings(of, path)
            except InputError as error:
                wrong.append(error)
        return repr(load_settings(FinetuneSettings, path).epochs)
    if kind == "table":
        from longvit.data.cohort_table import read_cohort

        return f"{len(read_cohort(path, need_files=False).rows)} rows"
    return str(_READERS[kind.removeprefix("left by a run: ")](path))


def _worklist(path: Path) -> Any:
    from longvit.slide_jobs.status import status

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
    from longvit.finetuning.results import read_result

    result = read_result(path.parent)
    return result and result.summary()


def _run_folder(path: Path) -> Any:
    from longvit.training.run_folder import RunFolder

    return RunFolder(path.parent).open({"epochs": 1}, 1)


def _cross_validation(path: Path) -> Any:
    from longvit.finetuning.paper_tables import measured_cells

    return measured_cells([path])


_READERS: dict[str, Callable[[Path], Any]] = {
    "a training": _fold_result,
    "a cell": _lazily("comparison.trial", "read_trial", True, {}),
    "a pretraining": _lazily("pretraining.pretrain_result", "read_result", True),
    "costs": _lazily("training.resource_usage", "read_cost", True),
    "a run folder": _run_folder,
    "a checkpoint": _lazily("training.checkpoint", "read_checkpoint", True),
    "a cross-validation": _cross_validation,
    "a work list": _worklist,
    "a record": _lazily("slide_jobs.job", "read_record", False),
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
        "checkpoint .pth": ["convert", "FILE", "out"],
        "config.json": ["embed", "FILE", "x.png", "--out", "out"],
        "weights .safetensors": ["embed", "FILE", "x.png", "--out", "out"],
        "recipe": ["train", "c.csv", "--recipe", "FILE", "--out", "out"],
        "table": ["cohort", "check", "FILE"],
    }
    if one.kind not in commands or (one.kind == "weights .safetensors" and "FIFO" in one.name):
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = one.make(folder)
        (folder / "c.csv").write_text(COHORT) if one.kind == "recipe" else None
        from PIL import Image

        Image.new("RGB", (64, 64)).save(folder / "x.png")
        words = [str(path) if word == "FILE" else word for word in commands[one.kind]]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "longvit", *words], cwd=folder, capture_output=True, timeout=60, text=True
            )
        except subprocess.TimeoutExpired:
            return Outcome("hang", " ".join(words))
        seconds = time.monotonic() - begun
        text = (done.stderr.strip().splitlines() or [""])[-1]
        if "Traceback" in done.stderr or done.returncode < 0:
            return Outcome("error", text, 0.0, seconds)
        if list(folder.rglob(CANARY)):
            return Outcome("code", text, 0.0, seconds)
        if done.returncode == 0:
            return Outcome("read" if one.good else "accepted", text, 0.0, seconds)
        is_one_line = done.returncode in (1, 2) and text.startswith("longvit: ")
        return Outcome("refused" if is_one_line else "many lines", text, 0.0, seconds)


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
    import longvit.comparison.settings
    import longvit.data.bags
    import longvit.data.cohort_table
    import longvit.finetuning.settings
    import longvit.model.pretrained
    import longvit.pretraining.settings
    import longvit.slide_jobs.status  # noqa: F401

    cases = [c for c in (*CASES, *flips(args.flips, args.seed)) if c.kind.startswith(args.kind)]
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
                numbers = f"{found.words:9} {found.mb:6.0f} MB {found.seconds:5.1f} s"
                print(f"{kind:30} {one.name[:44]:45} {numbers}  {found.text[:150]}")
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
