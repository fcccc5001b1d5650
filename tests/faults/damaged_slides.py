"""Damaged slides: every kind of file, every kind of damage, each opened and read in a process of its own making.

    python tests/faults/damaged_slides.py      # 1,000 tries: a table; exit 1 where one of them is wrong
    python tests/faults/damaged_slides.py --shares 20 --save benchmarks/results/faults.json \\
        --before benchmarks/results/faults_before.json --page docs/checked.md      # the tables of docs/checked.md

A try writes a damaged copy, reads its canvas of 256 px and all its levels, and compares them with those of the whole
file. What may come of it:

refused     one line of `InputError` that names the file
reported    bad tiles that cover every pixel that differs
same        the pixels of the whole file (to 2 grey levels: another reader may round otherwise)
unseen      other pixels without a word, where nothing in the file tells: no checksum, a field that nothing else states
wrong       other pixels without a word, though the file contradicts itself or its checksum
unclear     a refusal of several lines, or without the file's name
traceback, signal, hang (30 s of a processor, or 3 minutes), memory (more than 1 GB)

Everything but the first four is a failure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tests.faults.damages import Damage, applies, damages, is_of_codec, touched, why_unseen
from tests.faults.made_slides import Kind, Layout, kinds, layout
from tests.faults.memory import begin_peak, status_bytes

OUTCOMES = ("refused", "reported", "same", "unseen", "wrong", "unclear", "traceback", "signal", "hang", "memory")
FAILURES = OUTCOMES[4:]
SIDE_PX = 256
LIMIT_S = 30
LIMIT_BYTES = 10**9
_ADDRESS_SPACE = 8 * 2**30  # so that a try that would fill the machine ends in a MemoryError
_GREY_LEVELS = 2
DATA_DAMAGES = ("one byte", "8 to 64 bytes", "512 zeros", "4096 zeros", "512 random bytes")
PLACES = ("coded pixels", "tables of the codec", "bytes moved", "other fields")
PAGE_START, PAGE_END = "<!-- tables: from here written by tests/faults/damaged_slides.py -->", "<!-- to here -->"


@dataclass(frozen=True)
class Try:
    """One damaged file and what came of it."""

    kind: str
    codec: str
    reader: str
    """What reads the whole file: "tiff" (the fast path), "openslide" or "image"."""
    damage: str
    group: str
    number: int
    outcome: str
    message: str
    touched: tuple[str, ...]
    """What of the file the damage hit, see `Layout.names`."""
    peak_mb: int

    def __str__(self) -> str:
        where = ", ".join(self.touched[:4])
        return f"{self.outcome}: {self.kind}, {self.damage} ({where}), try {self.number}: {self.message[:300]}"


def campaign(
    tries: int, seed: int = 0, *, jobs: int = 2, only: Sequence[tuple[str, str]] = (), folder: Path | None = None
) -> list[Try]:
    """`tries` damaged files: all pairs of a kind and a damage in a random order, again and again with other numbers.

    `only`: these pairs instead of all. The same arguments make the same files.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        whole = _Whole(Path(work))
        pairs = list(only) or [
            (kind.name, damage.name)
            for kind in whole.kinds.values()
            for damage in damages().values()
            if applies(damage, kind)
        ]
        rng = np.random.default_rng(seed)
        rounds = range(2 + tries // len(pairs))
        order = iter([pairs[int(i)] for _ in rounds for i in rng.permutation(len(pairs))])
        done: list[Try] = []
        with _Readers(jobs, whole) as readers:
            numbers = itertools.count()
            while len(done) < tries and (part := list(itertools.islice(order, tries - len(done)))):
                done += readers.map([(next(numbers), pair) for pair in part], seed)
        return done


@dataclass(frozen=True)
class _WholeFile:
    """An undamaged file: the content and layout of what is damaged, and what is read of it."""

    content: bytes
    layout: Layout
    pixels: Path
    size_px: tuple[int, int]
    reader: str


class _Whole:
    """The undamaged files, each made and read when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.kinds = kinds()
        self._made: dict[str, _WholeFile] = {}
        self._lock = threading.Lock()

    def of(self, kind: Kind, reader: ReadingProcess) -> _WholeFile:
        with self._lock:
            if kind.name not in self._made:
                place = self.work / "whole" / kind.name
                place.mkdir(parents=True)
                path = place / f"whole{kind.suffix}"
                kind.write(path)
                content = _damaged_file(kind, path).read_bytes()
                stored = place / "pixels.npz"
                found = reader.ask({"path": str(path), "store": str(stored)})
                if found["outcome"] != "same":
                    raise SystemExit(f"the whole {kind.name} is not read: {found}")
                self._made[kind.name] = _WholeFile(
                    content, layout(kind, content), stored, tuple(found["size_px"]), found["reader"]
                )
            return self._made[kind.name]


def _damaged_file(kind: Kind, path: Path) -> Path:
    return path.parent / kind.damaged.format(stem=path.name.removesuffix(kind.suffix)) if kind.damaged else path


class _Readers:
    """Worker processes, one per thread; one that dies or hangs is replaced."""

    def __init__(self, jobs: int, whole: _Whole) -> None:
        self._jobs, self._whole = jobs, whole
        self._local = threading.local()
        self._all: list[ReadingProcess] = []

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *error: Any) -> None:
        for reader in self._all:
            reader.end()

    def map(self, pairs: Sequence[tuple[int, tuple[str, str]]], seed: int) -> list[Try]:
        """The tries in their order, without those whose damage changes nothing or does not apply to the kind."""
        with ThreadPoolExecutor(self._jobs) as pool:
            return [one for one in pool.map(lambda pair: self._one(*pair, seed), pairs) if one is not None]

    def _one(self, number: int, names: tuple[str, str], seed: int) -> Try | None:
        if not hasattr(self._local, "reader"):
            self._local.reader = ReadingProcess()
            self._all.append(self._local.reader)
        reader: ReadingProcess = self._local.reader
        kind, damage = self._whole.kinds[names[0]], damages()[names[1]]
        whole = self._whole.of(kind, reader)
        after = damage.make(whole.content, whole.layout, np.random.default_rng([seed, number]))
        if after is None or after == whole.content:
            return None
        with tempfile.TemporaryDirectory(dir=self._whole.work) as folder:
            path = Path(folder) / f"a{kind.suffix}"
            if kind.damaged:
                kind.write(path)
            _damaged_file(kind, path).write_bytes(after)
            found = reader.ask({"path": str(path), "whole": str(whole.pixels)})
        return _judged(kind, damage, number, found, touched(whole.content, after, whole.layout), whole)


def _judged(kind: Kind, damage: Damage, number: int, found: dict[str, Any], names: set[str], whole: _WholeFile) -> Try:
    outcome, message = found["outcome"], found["message"]
    if outcome == "other":
        reason = why_unseen(kind, damage, names, tuple(found["size_px"]), whole.size_px, found["bad_tiles"])
        outcome, message = ("unseen", reason) if reason else ("wrong", message)
    return Try(
        kind=kind.name,
        codec=kind.codec,
        reader=whole.reader,
        damage=damage.name,
        group=damage.group,
        number=number,
        outcome=outcome,
        message=message,
        touched=tuple(sorted(names)),
        peak_mb=found["peak_mb"],
    )


class ReadingProcess:
    """A worker process that reads one file after another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, str]) -> dict[str, Any]:
        """What came of reading a file; the end of the process and its hanging are outcomes too."""
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        if not _answers(process.pid, stdout):
            self.end()
            return {"outcome": "hang", "message": f"no answer in {LIMIT_S} s", "peak_mb": 0}
        if line := stdout.readline():
            found: dict[str, Any] = json.loads(line)
            if found["restart"]:
                self.end()
            return found
        code = process.wait()
        self.end()
        return {"outcome": "signal", "message": f"the reading process ended with {code}", "peak_mb": 0}

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _answers(pid: int, stdout: IO[str]) -> bool:
    """Waits for a line: as long as a processor gives the process `LIMIT_S` seconds, and six times that in all."""
    began, start_s = time.monotonic(), _processor_s(pid)
    while not select.select([stdout], [], [], 1)[0]:
        if _processor_s(pid) - start_s > LIMIT_S or time.monotonic() - began > 6 * LIMIT_S:
            return False
    return True


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The worker process


def _worker(requests: Iterable[str], answers: IO[str]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    import logging

    import longvit.slides.canvas
    import longvit.slides.dicom_reader
    import longvit.slides.image_file
    import longvit.slides.openslide_reader
    import longvit.slides.tiled_tiff  # noqa: F401

    logging.disable()
    for line in requests:
        request = json.loads(line)
        if "test" in request:  # the campaign's own tests
            exec(request["test"])
        begin_peak()
        found = _read(Path(request["path"]), request)
        peak = status_bytes("VmHWM")
        if peak > LIMIT_BYTES:
            found |= {"outcome": "memory", "message": f"{peak / 1e9:.1f} GB; {found['outcome']}: {found['message']}"}
        found |= {"peak_mb": round(peak / 1e6), "restart": status_bytes("VmRSS") > 300e6}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _read(path: Path, request: dict[str, str]) -> dict[str, Any]:
    from longvit.errors import InputError
    from longvit.slides.reader import open_slide

    try:
        with open_slide(path) as slide:
            pixels = {"canvas": slide.canvas(SIDE_PX).pixels}
            sizes = [level.size_px for level in slide.levels]
            if request.get("store") == "":  # only looked at
                return {"outcome": "same", "message": ""}
            if "store" in request:
                for index, size in enumerate(sizes):
                    pixels[f"level{index}"] = slide.read_region(0, 0, index, *size)
                np.savez(request["store"], **pixels)
                return {"outcome": "same", "message": "", "size_px": sizes[0], "reader": slide.reader}
            with np.load(request["whole"]) as whole:
                return _compared(slide, sizes, pixels["canvas"], whole)
    except InputError as error:
        text = str(error)
        clear = len(text.splitlines()) == 1 and path.name in text and len(text) < 700
        return {"outcome": "refused" if clear else "unclear", "message": text}
    except BaseException as error:
        return {"outcome": "traceback", "message": f"{type(error).__name__}: {error}"}


def _compared(slide: Any, sizes: list[tuple[int, int]], canvas: Any, whole: Any) -> dict[str, Any]:
    height, width = whole["level0"].shape[:2]
    if sizes[0] != (width, height):
        return {
            "outcome": "other",
            "size_px": sizes[0],
            "bad_tiles": 0,
            "message": f"a slide of {sizes[0]} px instead of {(width, height)}",
        }
    names = [name for name in whole.files if name.startswith("level")]
    shapes = {whole[name].shape[1::-1]: whole[name] for name in names}
    changed = []
    for index, size in enumerate(sizes):
        if size in shapes:
            got = slide.read_region(0, 0, index, *size)
            differs = (np.abs(got.astype(int) - shapes[size]) > _GREY_LEVELS).any(2)
            for tile in slide.bad_tiles:
                if tile.level == index:
                    x = round(tile.x_level0_px / slide.levels[index].downsample)
                    y = round(tile.y_level0_px / slide.levels[index].downsample)
                    differs[y : y + tile.height_px, x : x + tile.width_px] = False
            if differs.any():
                changed.append(f"{differs.mean():.2%} of level {index}")
    if not slide.bad_tiles and (np.abs(canvas.astype(int) - whole["canvas"]) > _GREY_LEVELS).any():
        changed.append("the canvas")
    if changed:
        also = f"; {len(slide.bad_tiles)} bad tiles elsewhere" if slide.bad_tiles else ""
        return {
            "outcome": "other",
            "size_px": sizes[0],
            "bad_tiles": len(slide.bad_tiles),
            "message": f"other pixels: {', '.join(changed)} ({slide.reader}{also})",
        }
    if slide.bad_tiles:
        return {"outcome": "reported", "message": str(slide.bad_tiles[0])}
    return {"outcome": "same", "message": ""}


# What is said


def summary(tries: Sequence[Try]) -> dict[str, dict[str, int]]:
    """How often each outcome was, by codec."""
    table: dict[str, Counter[str]] = {}
    for one in tries:
        table.setdefault(one.codec, Counter())[one.outcome] += 1
    return {codec: {name: counts[name] for name in OUTCOMES} for codec, counts in sorted(table.items())}


def shares(tries: Sequence[Try]) -> dict[str, dict[str, tuple[int, int]]]:
    """By codec and reader, for DICOM by layout: tries of each damage to the pixels that gave other pixels, and all."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for one in tries:
        through = one.reader == "openslide" and "palette" not in one.kind
        name = one.kind if one.kind.startswith("DICOM") else one.codec
        row = table.setdefault(f"{one.kind}, through OpenSlide" if through else name, {})
        silent, n = row.get(one.damage, (0, 0))
        row[one.damage] = (silent + (one.outcome in ("unseen", "wrong")), n + 1)
    return dict(sorted(table.items()))


def places_of_unseen(tries: Sequence[Try]) -> dict[str, Counter[str]]:
    """By codec: what the damage hit that gave other pixels without a word."""
    table: dict[str, Counter[str]] = {}
    for one in tries:
        if one.outcome == "unseen":
            table.setdefault(one.codec, Counter())[_place(one.touched)] += 1
    return dict(sorted(table.items()))


def _place(touched: Sequence[str]) -> str:
    if touched == ("data",):
        return PLACES[0]
    if all(map(is_of_codec, touched)):
        return PLACES[1]
    return PLACES[2] if touched == ("moved",) else PLACES[3]


def share_tries(each: int, seed: int, jobs: int, names: Sequence[str]) -> list[Try]:
    """`each` tries of every damage to the pixels, for every kind of file in `names`."""
    pairs = [(kind, damage) for kind in names for damage in DATA_DAMAGES]
    return campaign(each * len(pairs), seed, jobs=jobs, only=pairs)


def metrics(tries: Sequence[Try], of_shares: Sequence[Try], seed: int) -> dict[str, Any]:
    """The campaign as it is kept in a file."""
    from importlib.metadata import version

    libraries = ("openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "pillow")
    failures = Counter((one.outcome, one.kind, one.damage) for one in tries if one.outcome in FAILURES)
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "seed": seed,
        "tries": len(tries),
        "kinds": len({one.kind for one in tries}),
        "damages": len({one.damage for one in tries}),
        "largest_peak_mb": max(one.peak_mb for one in tries),
        "outcomes": summary(tries),
        "failures": [f"{n} × {outcome}: {kind}, {damage}" for (outcome, kind, damage), n in sorted(failures.items())],
        "unseen": places_of_unseen(tries),
        "shares": shares(of_shares),
    }


def markdown(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The tables; figures of `before` stand in brackets."""
    shown = ("refused", "reported", "same", "unseen", *FAILURES)
    lines = [
        f"{now['tries']} damaged files of {now['kinds']} kinds, {now['damages']} kinds of damage, seed {now['seed']}, "
        f"{now['date']}; {', '.join(f'{name} {version}' for name, version in now['versions'].items())}; "
        f"at most {now['largest_peak_mb']} MB.",
        "",
        f"| codec | tries | {' | '.join(shown)} |",
        f"|---|{'---:|' * (len(shown) + 1)}",
    ]
    old = (before or {}).get("outcomes", {})
    total = {"all": {name: sum(row[name] for row in now["outcomes"].values()) for name in OUTCOMES}}
    old_total = {"all": {name: sum(row[name] for row in old.values()) for name in OUTCOMES}} if old else {}
    for codec, row in (now["outcomes"] | total).items():
        was = (old | old_total).get(codec)
        cells = [f"{row[name]}" + (f" ({was[name]})" if was and was[name] != row[name] else "") for name in shown]
        lines.append(f"| {codec} | {sum(row.values())} | {' | '.join(cells)} |")
    lines += ["", f"| unseen | {' | '.join(PLACES)} |", f"|---|{'---:|' * len(PLACES)}"]
    for codec, places in now["unseen"].items():
        lines.append(f"| {codec} | {' | '.join(str(places.get(place, 0)) for place in PLACES)} |")
    if now["shares"]:
        lines += ["", f"| pixels of | {' | '.join(DATA_DAMAGES)} |", f"|---|{'---:|' * len(DATA_DAMAGES)}"]
        for name, shares_of in now["shares"].items():
            was = (before or {}).get("shares", {}).get(name, {})
            cells = []
            for damage in DATA_DAMAGES:
                silent, n = shares_of.get(damage, (0, 0))
                text = f"{silent} of {n}" if n else ""
                cells.append(text + (f" ({was[damage][0]})" if damage in was and was[damage][0] != silent else ""))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    """Puts the tables between the two marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(PAGE_START)
    _, mark, after = rest.partition(PAGE_END)
    if not mark:
        raise SystemExit(f"{page}: no lines {PAGE_START} and {PAGE_END}")
    page.write_text(f"{before}{PAGE_START}\n{text}\n{PAGE_END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--container", help="only slides of this kind: tiff, dicom, png, jpeg, mrxs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shares", type=int, default=0, help="tries of each damage to the pixels of each kind of file")
    parser.add_argument("--all", action="store_true", help="what `make fuzz` asks of every campaign: the 1,000 tries")
    parser.add_argument("--verbose", action="store_true", help="name the unseen as well")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--before", type=Path, help="figures to stand beside these (a file of --save)")
    parser.add_argument("--save", type=Path, help="write the figures as JSON")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    options = parser.parse_args()
    chosen = [kind for kind in kinds().values() if options.container in (None, kind.container)]
    pairs = [(kind.name, damage.name) for kind in chosen for damage in damages().values() if applies(damage, kind)]
    if not pairs:
        parser.error(f"no slide of the kind {options.container}")
    tries = campaign(options.tries, options.seed, jobs=options.jobs, only=pairs)
    names = [kind.name for kind in chosen]
    of_shares = share_tries(options.shares, options.seed, options.jobs, names) if options.shares else []
    now = json.loads(json.dumps(metrics(tries, of_shares, options.seed)))
    before = json.loads(options.before.read_text()) if options.before else None
    for one in tries:
        if one.outcome in FAILURES or (options.verbose and one.outcome == "unseen"):
            print(one, file=sys.stderr)
    if options.save:
        options.save.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = markdown(now, before)
    if options.page:
        write_page(options.page, text)
    if options.markdown:
        print(text)
    else:
        for codec, counts in now["outcomes"].items():
            print(f"{codec}: {', '.join(f'{n} {name}' for name, n in counts.items() if n)}")
        for codec, places in places_of_unseen(tries).items():
            print(f"unseen, {codec}: {', '.join(f'{n} in {place}' for place, n in places.most_common())}")
    wrong = sum(one.outcome in FAILURES for one in tries)
    print(f"{len(tries)} damaged slides, {wrong} wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        _worker(sys.stdin, sys.stdout)
    else:
        sys.exit(main())
