"""Commands that a signal ends at a random instant, and that are given again: the same bits, and nothing half left.

    python tests/faults/signals.py --all           180 signals: 6 commands × 3 signals × 10 instants; some two hours
    python tests/faults/signals.py --all 60        so many of them, spread over commands and signals
    python tests/faults/signals.py embed SIGKILL   those with these words in their name

A command is first given twice without a signal: the files that have the same bytes both times are those that have to
have them after a signal too. Commands are forked from this process, which has torch loaded: signals fall into their
work, not into an import.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

COMMANDS = ("train", "pretrain", "benchmark", "embed", "features", "canvas")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
INSTANTS = 10
_FIRST_S = 0.05
_SECONDS = re.compile(rb'\d+ (seconds|minutes)|"seconds": [\d.]+')
"""Duration of a run, in its report and in its metrics: never the same bits, except by chance."""
_FORK = multiprocessing.get_context("fork")
_STOPPED = {
    signal.SIGTERM: (0, 143, -signal.SIGTERM),
    signal.SIGINT: (0, 130, -signal.SIGINT),
    signal.SIGKILL: (0, -signal.SIGKILL),
}


@dataclass(frozen=True)
class Case:
    """One signal."""

    command: str
    number: signal.Signals
    instant: int

    def __str__(self) -> str:
        return f"{self.command} {self.number.name} {self.instant}"


CASES = tuple(Case(c, n, i) for i in range(INSTANTS) for n in SIGNALS for c in COMMANDS)


@dataclass
class Commands:
    """The commands on their inputs in a folder, and what they leave when nobody ends them."""

    folder: Path
    hit: int = 0
    """Signals that came before the command's end."""
    _wholes: dict[str, tuple[float, dict[str, str], set[str]]] = field(default_factory=dict)

    def words(self, command: str) -> list[str]:
        """A command whose inputs are made when it is asked for first."""
        here = self.folder / command
        if not here.exists():
            here.mkdir()
            _MAKE[command](here)
        words = [command, *_WORDS[command](here), "--out", str(here / "out")]
        return [*words, *(["--device", "cpu"] if command not in ("canvas", "features") else []), "--threads", "1"]

    def whole(self, command: str) -> tuple[float, dict[str, str], set[str]]:
        """Seconds of an undisturbed run; digests of the files that are the same each time; the names of all files."""
        if command not in self._wholes:
            out, runs, seconds = self.folder / command / "out", [], 0.0
            for _ in range(2):
                words = self.words(command)
                shutil.rmtree(out, ignore_errors=True)
                begun = time.monotonic()
                code, said = _Process(words, self.folder / "said").ended(600)
                assert code == 0, said
                seconds = time.monotonic() - begun
                runs.append(_digests(out))
            same = {name: digest for name, digest in runs[0].items() if runs[1].get(name) == digest}
            assert same, f"{command}: no file is the same twice"
            self._wholes[command] = seconds, same, set(runs[0]) & set(runs[1])
        return self._wholes[command]

    def wrong_with(self, case: Case, rng: random.Random) -> str:
        """Gives a command, ends it, gives it again; what is wrong then, "" where nothing is."""
        seconds, same, names = self.whole(case.command)
        out, words = self.folder / case.command / "out", self.words(case.command)
        shutil.rmtree(out, ignore_errors=True)
        process = _Process(words, self.folder / "said")
        instant = rng.uniform(_FIRST_S, max(_FIRST_S, seconds))
        time.sleep(instant)
        process.send(case.number)
        code, said = process.ended(300)
        at = f"after {instant:.2f} s of {seconds:.2f}"
        self.hit += code != 0
        if code not in _STOPPED[case.number]:
            return f"{at}: exit code {code}: {said[-500:]}"
        if "Traceback" in said:
            return f"{at}: a traceback: {said[-1500:]}"
        code, said = _Process(words, self.folder / "said").ended(600)
        if code != 0 or "Traceback" in said:
            return f"{at}: given again: exit code {code}: {said[-1500:]}"
        found = _digests(out)
        if other := sorted(name for name, digest in same.items() if found.get(name) != digest):
            return f"{at}: other bits in {', '.join(other[:5])}"
        if gone := names - found.keys():
            return f"{at}: missing: {', '.join(sorted(gone)[:5])}"
        half = [path for pattern in (".*", "*.claim") for path in out.rglob(pattern) if path.name != ".claims.lock"]
        return f"{at}: left behind: {', '.join(str(path) for path in half[:5])}" if half else ""


class _Process:
    """A command in a process of its own; what it says goes to a file."""

    def __init__(self, words: Sequence[str], said: Path) -> None:
        self._said = said
        said.unlink(missing_ok=True)
        self._process = _FORK.Process(target=_work, args=(words, said))
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)  # not reaped yet: the number is still its own

    def ended(self, seconds: float) -> tuple[int | None, str]:
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        return code, self._said.read_text(errors="replace") if self._said.exists() else ""


def _work(words: Sequence[str], said: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    from longvit.cli import main as command

    code = command(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def load() -> None:
    """What all commands need, before any of them is forked."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    import torch._dynamo  # the first optimiser of a process loads it, which takes longer than a run

    import longvit.cli.commands
    import longvit.comparison.compare
    import longvit.finetuning.run
    import longvit.pretraining.run
    import longvit.report  # noqa: F401

    torch.set_num_threads(1)


def _digests(out: Path) -> dict[str, str]:
    """Of the results: not of what a run works in. A step that is saved twice alternates between two names there, so
    which of them is the last one depends on where the run was ended."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(_SECONDS.sub(b"", path.read_bytes())).hexdigest()
        for name, path in files.items()
        if not name.startswith(("work/", "checkpoints/", ".")) and "/." not in name
    }


def _make_slides(folder: Path, n: int = 5) -> None:
    from tests.small_slides import write_slide

    for i in range(n):
        write_slide(folder / "slides" / f"s{i}.tif", seed=i, size_px=(640, 512))


def _make_model_and_slides(folder: Path) -> None:
    from tests.small_slides import write_model

    write_model(folder / "model")
    _make_slides(folder, 12)


def _make_bag_cohort(folder: Path) -> None:
    from tests.finetuning.study import write_study

    write_study(folder / "study")


def _make_bags(folder: Path) -> None:
    from tests.comparison.made import write_study

    write_study(folder / "study")


def _make_pretraining(folder: Path) -> None:
    from tests.pretraining.interrupted_run import write_inputs

    write_inputs(folder)


def _pretrain_words(folder: Path) -> list[str]:
    words = [str(folder / "slides"), "--weights", str(folder / "weights"), "--region-px", "40", "60", "--ignore-mpp"]
    given = {
        "per-slide": 8,
        "global-px": 32,
        "local-px": 16,
        "local-crops": 3,
        "epochs": 2,
        "warmup-epochs": 1,
        "batch-size": 4,
        "forward-batch": 2,
        "lr": 0.01,
        "lr-batch": 4,
        "prototypes": 24,
        "head-hidden": 16,
        "head-bottleneck": 8,
        "probe-regions": 8,
        "num-workers": 0,
        "checkpoint-minutes": 0,
    }
    return [*words, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


_MAKE: dict[str, Callable[[Path], None]] = {
    "train": _make_bag_cohort,
    "pretrain": _make_pretraining,
    "benchmark": _make_bags,
    "embed": _make_model_and_slides,
    "features": _make_slides,
    "canvas": _make_slides,
}
_WORDS: dict[str, Callable[[Path], list[str]]] = {
    "train": lambda at: [
        *(str(at / "study" / "cohort.csv"), "--model", "longvit_tiny_patch32", "--side-px", "64", "--epochs", "2"),
        *("--batch-size", "4", "--forward-batch", "2", "--bootstrap", "20", "--num-workers", "0"),
        *("--checkpoint-minutes", "0"),
    ],
    "pretrain": _pretrain_words,
    "benchmark": lambda at: [
        *(str(at / "study" / "cohort.csv"), "--features", str(at / "study" / "features"), "--folds", "column"),
        *("--systems", "mean_pooling", "mil", "--set", "mil.hidden=8", "--epochs", "3", "--bootstrap", "20"),
    ],
    "embed": lambda at: [str(at / "model"), str(at / "slides")],
    "features": lambda at: [str(at / "slides"), "--tile-px", "64", "--min-piece-um2", "100"],
    "canvas": lambda at: [str(at / "slides"), "--side-px", "512"],
}


def main(words: list[str]) -> int:
    """Runs the cases whose names hold all words."""
    if not words:
        print(__doc__)
        return 2
    if words[0] == "--all":
        wanted = list(CASES)[: int(words[1]) if words[1:] else None]
    else:
        wanted = [case for case in CASES if set(words) <= set(str(case).split())]
    load()
    rng, right = random.Random(0), 0
    with tempfile.TemporaryDirectory() as temporary:
        commands = Commands(Path(temporary))
        for case in wanted:
            wrong = commands.wrong_with(case, rng)
            right += not wrong
            print(f"{case}: {wrong or 'right'}", flush=True)
    print(f"{right} of {len(wanted)} ended by a signal ({commands.hit} before their own end) and given again: right")
    return int(right < len(wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
