"""README, pages, changelog, commands and results agree: options, Python names, files, counts, measured numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.docs.blocks import PAGES, ROOT
from tests.old_runs.make import EXAMPLES
from tests.stability.interface import commands_part
from tests.stability.small_runs import RUNS

FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OTHERS = {
    *("--master-addr", "--master-port", "--max-restarts", "--nproc-per-node", "--pid"),  # torchrun, py-spy
    *("--user", "--nv", "--use-local"),  # docker, apptainer, conda
}
"""Options of other programs that a page names alone."""
SCRIPTS = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob(".ci/*.py"), *ROOT.glob("tests/[fs]*/*.py")]
THEIRS = {option for path in SCRIPTS for option in OPTION.findall(path.read_text(encoding="utf-8"))} | OTHERS
"""Options of the scripts, and of other programs."""
REMOVED: dict[str, str] = {}
"""Options that the changelog names and that are gone, with the version that removed them."""
KEYS = ("longvit.origin_level0_px", "longvit.outside_the_slide", "longvit.rectangles_per_tile")  # of GeoJSON
MOVED = "upgrading.md"  # its first columns have the names of older versions


def spans(page: Path) -> Iterator[str]:
    """The code spans of a page's prose, each on one line."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (" ".join(span.split()) for span in SPAN.findall(text))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def wrong_options(page: Path, options: dict[str, set[str]]) -> Iterator[str]:
    """Commands and options in the prose that do not exist; with a command before it, an option has to be its own."""
    every = set().union(*options.values()) | {"--help", "--version"}
    for span in spans(page):
        words = re.match(r"longvit ([a-z][a-z-]*)(?: ([a-z]+))?", span)
        command = words and (f"{words[1]} {words[2]}" if f"{words[1]} {words[2]}" in options else words[1])
        if command and command not in options and not any(name.startswith(f"{command} ") for name in options):
            yield f"`{span}`: no command {command}"
            continue
        known = options[command] | {"--help"} if command in options else every | (set() if command else THEIRS)
        if re.match(r"[\w./]*(pip|torchrun|pytest|sphinx|git|docker|tensorboard|vips|twine)\b", span):
            continue
        yield from (f"`{span}`: no option {name}" for name in OPTION.findall(span) if name not in {*known, *REMOVED})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_prose_exist(page: Path) -> None:
    wrong = list(wrong_options(page, {name: set(command["options"]) for name, command in commands_part().items()}))
    assert not wrong


def test_an_option_that_is_gone_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`longvit train --gone`, `--gone`, `longvit traim`, `longvit plan --folds`, `longvit train --folds 5`"
    )
    options = {"train": {"--folds"}, "plan": {"--json"}}
    assert [line.rpartition(": ")[2] for line in wrong_options(page, options)] == [
        *("no option --gone", "no option --gone", "no command traim", "no option --folds")
    ]


def resolves(path: str) -> bool:
    """True if a dotted name is a module, or an attribute of one."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(value, name) and name not in getattr(value, "__annotations__", {}):
                return False
            value = getattr(value, name, None)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_names_in_the_prose_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    if page.name == MOVED:
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)
    found = {name for span in SPAN.findall(text) for name in re.findall(r"(?<![\w./-])longvit(?:\.\w+)+", span)}
    named = found - set(KEYS)
    assert not [name for name in sorted(named) if not name.endswith((".py", ".yaml", ".json")) and not resolves(name)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_tests_and_results_in_the_prose_exist(page: Path) -> None:
    pattern = r"(?<![\w/.-])((?:benchmarks|tests|docs|\.ci|src)/[\w./-]*\w)(?![*\w])"
    named = {found for span in spans(page) for found in re.findall(pattern, span)}
    made = ("docs/_build",)
    assert not [name for name in sorted(named) if not (ROOT / name).exists() and not name.startswith(made)]


WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
WORDS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]


def counted() -> dict[str, int]:
    """Counts on the pages → the number in the code."""
    from longvit.baselines.catalogue import SYSTEMS
    from longvit.encoders.presets import PRESETS
    from longvit.tasks.catalogue import TASKS

    return {
        r"published tile encoders": len(PRESETS),
        r"systems of the package": len(SYSTEMS),
        r"kinds of task": len(TASKS),
        r"recorded commands": len(RUNS),
        r"stored runs": len(EXAMPLES),
    }


def test_counts_on_the_pages_are_those_of_the_code() -> None:
    found = {}
    for page in PAGES:
        text = " ".join(page.read_text(encoding="utf-8").split())
        for what, number in counted().items():
            for stated in re.findall(rf"\b(\w+) {what}\b", text):
                value = int(stated) if stated.isdecimal() else WORDS.index(stated) if stated in WORDS else None
                if value is not None:
                    found[what] = True
                    assert value == number, f"{name_of(page)}: {stated} {what}, the code has {number}"
    assert len(found) >= 3


# --- measured numbers of the README ---------------------------------------------------------------------------------


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


def row(name: str, **values: Any) -> dict[str, Any]:
    """The one row of a result file with these values."""
    (found,) = [row for row in results(name)["rows"] if all(row.get(key) == value for key, value in values.items())]
    return dict(found)


def gpu(what: str, way: str) -> dict[str, float]:
    return dict(row("gpu_kernels", part="models", what=what, image_px=32768)["results"][way])


def planned(side_px: int) -> list[float]:
    """`longvit plan` on an H200: GiB of a training step, the same with offload, floor of the training in hours."""
    from longvit.plan import PlanSettings, plan

    cpu = {"device": "cpu", "dtype": "float32"} if side_px == 1024 else {"device": "h200"}
    step = plan(PlanSettings(side_px=side_px, **cpu))
    offloaded = step.offloaded.total / 2**30 if step.offloaded else 0
    return [step.plain.total / 2**30, offloaded, hours(step.training_floor.seconds)]


def hours(seconds: float) -> float:
    """Time of ten epochs of 1,000 slides, a slide a step."""
    return seconds * 10 * 1000 / 3600


def card(fields: str) -> list[float]:
    """Gap, low and high of fine-tuning from the shipped weights, of the model card's table."""
    text = (ROOT / "src/longvit/weights/longvit-tiny-stem/README.md").read_text(encoding="utf-8")
    line = re.search(rf"^\| {fields}.*\| \+([.\d]+) \(\+([.\d]+) … \+([.\d]+)\) \|$", text, re.M)
    assert line is not None
    return [float(value) for value in line.groups()]


NUMBERS: list[tuple[str, Callable[[], list[float]]]] = []
"""Pattern on the README → the values of its groups. A value may differ by half of the last digit that is shown."""


def measured(pattern: str) -> Callable[[Callable[[], list[float]]], Callable[[], list[float]]]:
    def add(values: Callable[[], list[float]]) -> Callable[[], list[float]]:
        NUMBERS.append((pattern, values))
        return values

    return add


@measured(r"forward pass ([\d.]+) s,\s+training step ([\d.]+) s at ([\d.]+) GB")
def kernels() -> list[float]:
    """The default chunks: 131,072 tokens."""
    training = gpu("training", "padded, fused norms, chunks of 131072 offload")
    forward = gpu("forward", "padded, fused norms, chunks of 131072")
    return [forward["seconds"], training["seconds"], training["peak_gib"] * 2**30 / 1e9]


@measured(r"attention ([\d.]+)–([\d.]+) × as fast as the published code,\s+in (\d+)–(\d+) % of its memory")
def attention() -> list[float]:
    rows = results("attention")["rows"]
    speeds, shares = [row["speed"] for row in rows], [100 * row["memory"] for row in rows]
    return [min(speeds), max(speeds), min(shares), max(shares)]


@measured(r"([\d.]+) GiB with recomputation; the published code takes\s+([\d.]+) GiB")
def memory() -> list[float]:
    ours = row("memory", what="peak", who="ours", recompute=True, image_px=4096)
    published = row("memory", what="peak", who="published", recompute=False, image_px=4096)
    return [ours["peak_mib"] / 1024, published["peak_mib"] / 1024]


@measured(r"([\d.]+)–([\d.]+) × as fast as OpenSlide with Pillow; 100,000² px in (\d+) MB")
def canvases() -> list[float]:
    speeds = [row["x_openslide"] for row in results("canvas")["rows"] if "x_openslide" in row]
    return [min(speeds), max(speeds), row("canvas", what="100000² px → 32768², whole", way="ours")["peak_mb"]]


@measured(r"(\d+) s for 20,000² px and (\d+) s for 100,000² px on two cores")
def reading() -> list[float]:
    small = row("canvas", what="20160² px → 4096²", way="ours")
    return [small["seconds"], row("canvas", what="100000² px → 32768², whole", way="ours")["seconds"]]


@measured(r"gains ([.\d]+) of AUC on colon \(([.\d]+) … ([.\d]+)\)")
def colon() -> list[float]:
    return card("colon")


@measured(r"and ([.\d]+) on a proxy of\s+texture \(([.\d]+) … ([.\d]+)\)")
def texture() -> list[float]:
    return card("squares of the example slide")


@measured(r"\| 1,024² px \| 1,024 \| ([\d.]+) GiB \| two CPU cores: ([\d.]+) h at the measured ([\d.]+) s")
def side_1024() -> list[float]:
    seconds = row("memory", what="peak", who="ours", recompute=False, image_px=1024)["seconds"]
    return [planned(1024)[0], hours(seconds), seconds]


@measured(r"\| 16,384 \| ([\d.]+) GiB \| one H200: ([\d.]+) h at the measured ([\d.]+) s")
def side_4096() -> list[float]:
    training = row("gpu_kernels", part="models", what="training", image_px=4096)["results"]
    seconds = training["padded, fused norms, chunks of 131072 offload"]["seconds"]
    return [planned(4096)[0], hours(seconds), seconds]


@measured(r"\| 262,144 \| ([\d.]+) GiB; ([\d.]+) GiB with `--recompute --offload` \| one H200: floor ([\d.]+) h")
def side_16384() -> list[float]:
    return planned(16384)


@measured(
    r"\| 1,048,576 \| ([\d.]+) GiB; ([\d.]+) GiB with `--recompute --offload` \| one H200: floor ([\d.]+) h; "
    r"([\d.]+) h at the measured ([\d.]+) s"
)
def side_32768() -> list[float]:
    seconds = gpu("training", "padded, fused norms, chunks of 131072 offload")["seconds"]
    return [*planned(32768), hours(seconds), seconds]


def agrees(shown: str, value: float) -> bool:
    """True if a number is the value, rounded to the digits that are shown."""
    return abs(float(shown) - value) <= 0.5 * 10 ** -len(shown.partition(".")[2]) * (1 + 1e-6)


@pytest.mark.parametrize(("pattern", "values"), NUMBERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_number_of_the_readme_is_that_of_its_source(pattern: str, values: Callable[[], list[float]]) -> None:
    found = re.search(pattern, (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None, f"README.md has no text as {pattern}"
    assert all(agrees(*pair) for pair in zip(found.groups(), values(), strict=True)), (found[0], values())


def test_no_decimal_number_of_the_readme_is_without_a_source() -> None:
    text = FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    for pattern, _ in NUMBERS:
        text = re.sub(pattern, "", text)
    elsewhere = (
        r"arXiv:[\d.]+|\(https?://[^)]*\)|Python ≥ 3\.\d+|\*\*Status:\*\* [\d.]+|3\.2 M|AUC \.99|colour \.50|AUC \.81"
    )
    text = re.sub(elsewhere, "", SPAN.sub("", text))  # the parameters and the demo have other tests
    assert not re.findall(r"(?<![\d,])\d*\.\d+", text)


def test_numbers_are_compared_at_the_digits_that_are_shown() -> None:
    assert agrees("3.79", 3.787)
    assert agrees("375", 375)
    assert not agrees("3.79", 3.78)
    assert not agrees("1.0", 1.06)


def test_the_parameters_in_the_readme_are_those_of_the_weights() -> None:
    from safetensors import safe_open

    import longvit

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with safe_open(ROOT / "src/longvit/weights/longvit-tiny-stem/model.safetensors", "np") as file:
        tiny = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    small = sum(p.numel() for p in longvit.create_model("longvit_small_patch32", num_classes=0).parameters())
    for pattern, number in (
        (r"`longvit-tiny-stem` \(([\d.]+) M\)", tiny),
        (r"LongViT-S \((\d+) M parameters\)", small),
    ):
        found = re.search(pattern, text)
        assert found is not None
        assert agrees(found[1], number / 1e6), (found[0], number)
