"""Images of the pages, each with the commands that make it; as a script it makes them again.

    python -m tests.docs.images                      all that can be made here, in some minutes
    python -m tests.docs.images docs/viewer/*.jpg    these

A screenshot stores the words of its page as the comment of the file. A test makes all again and compares words and
pixels. So a page that has changed since its image is found.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import PngImagePlugin
from tests.docs.blocks import ROOT
from tests.docs.folders import make_bin, shell, write_inputs
from tests.viewer.browser import CHROMIUM, SETTLED, Browser

SMALL = "--recipe tiny --epochs 4 --bootstrap 50 --deletion-slides 0 --num-workers 0 --device cpu --threads 1"
ON_CPU = "--device cpu --threads 1"
COMMANDS = {
    "runs/first": f"longvit train cohort.csv --out runs/first {SMALL}",
    "runs/cv": f"longvit train cohort.csv --folds 3 --out runs/cv {SMALL}",
    "runs/survival": f"longvit train outcomes.csv --task survival --out runs/survival {SMALL}",
    "runs/texture": "longvit pretrain slides/ --recipe texture-tiny --out runs/texture --per-slide 2 --epochs 1 "
    f"--batch-size 16 --forward-batch 16 --warmup-epochs 0 --probe-regions 16 --num-workers 0 {ON_CPU}",
    "embeddings": f"longvit embed longvit-tiny-stem slides/ --out embeddings {ON_CPU}",
    "job": "longvit features slides/ --out job --tile-px 128 --threads 1",
    "comparison": "longvit benchmark cohort.csv --features job --systems clam_sb attention_mil mean_pooling --folds 2 "
    f"--slides-dir slides/ --out comparison --epochs 4 --bootstrap 50 {ON_CPU}",
}
"""Folder → the command that makes it from the inputs of the pages (`folders.write_inputs`)."""
USES = {"comparison": ["job"]}


@dataclass(frozen=True)
class Image:
    """An image of a page."""

    name: str
    """File below the root of the repository."""
    made_by: str
    """Commands, as a reader would give them."""
    make: Callable[[Path, Image, Path], None] | None = None
    """Writes the image to a path, given the folder of the inputs."""
    not_made: str = ""
    """`REASON: why`, with the reasons of `blocks.REASONS`."""
    folder: str = ""
    """Folder of `COMMANDS` that it shows."""
    keys: str = ""
    """Keys pressed before the screenshot."""
    size: tuple[int, int] = (1280, 800)


THUMBNAILS = (
    "[...document.images].filter(image => image.offsetParent && image.getBoundingClientRect().top < innerHeight)"
    ".every(image => image.complete && image.naturalWidth)"
)
"""True when every small image in sight is there."""


def of_viewer(inputs: Path, image: Image, path: Path) -> None:
    """Screenshot of `longvit view`, as the command of the page opens it."""
    command = [*image.made_by.split("; ")[-1].split()[1:], "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "longvit", *command], cwd=inputs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    browser = Browser(*image.size, touch=image.size[0] < 600)
    try:
        assert process.stdout is not None
        browser.open(re.search(rb"http://\S+", process.stdout.readline())[0].decode())  # type: ignore[index]
        browser.wait(SETTLED, 300)
        for key in image.keys:
            browser.key(key)
            browser.wait("new Promise(done => setTimeout(() => done(true), 500))")
            browser.wait(SETTLED, 300)
        browser.wait(THUMBNAILS, 300)
        save(browser, path)
    finally:
        browser.close()
        process.terminate()
        process.wait(60)


def of_report(inputs: Path, image: Image, path: Path) -> None:
    """Screenshot of the first part of a report."""
    browser = Browser(*image.size)
    try:
        browser.open((inputs / image.folder / "index.html").as_uri())
        browser.wait("document.readyState === 'complete' && [...document.images].every(image => image.complete)")
        save(browser, path)
    finally:
        browser.close()


def save(browser: Browser, path: Path) -> None:
    """Writes the page as it is shown, with its words and the width of its font."""
    note = " ".join([f"font={font_width(browser)}", *sorted(words(browser.evaluate("document.body.innerText")))])
    image = PILImage.fromarray(browser.image())
    if path.suffix == ".png":
        comment = PngImagePlugin.PngInfo()
        comment.add_text("comment", note)
        image.convert("P", palette=PILImage.Palette.ADAPTIVE, colors=128).save(path, pnginfo=comment, optimize=True)
    else:
        image.save(path, quality=82, comment=note.encode())


def font_width(browser: Browser) -> int:
    """Width of a line in the page's font, px: differs where the machine has other fonts."""
    script = "(() => { const c = document.createElement('canvas').getContext('2d');"
    script += "c.font = '100px ' + getComputedStyle(document.body).fontFamily;"
    return int(browser.evaluate(script + "return Math.round(c.measureText('Heat map of 24 slides').width); })()"))


def words(text: str) -> set[str]:
    """Words of a page, without numbers and names of slides and patients."""
    return {word for word in re.findall(r"[^\W\d_][\w-]*", text) if not re.search(r"\d", word)}


def plot(inputs: Path, image: Image, path: Path) -> None:
    """The plot that a script of docs/_scripts draws."""
    from tests.docs.test_site import load

    load(ROOT / image.made_by.split()[1]).draw(path)


VIEW_FIRST = f"{COMMANDS['runs/first']}; longvit view runs/first --slides-dir slides/ --cohort cohort.csv"
IMAGES = (
    Image("docs/dilated-attention.png", "python docs/_scripts/dilated_attention.py", plot),
    Image("docs/demo.png", "longvit demo --out demo", not_made="elsewhere: tests/test_demo.py compares it"),
    Image("docs/report.png", COMMANDS["runs/cv"], of_report, folder="runs/cv", size=(1180, 1890)),
    Image("docs/viewer/finetuning.jpg", VIEW_FIRST, of_viewer, folder="runs/first", keys="d"),
    Image("docs/viewer/phone.jpg", VIEW_FIRST, of_viewer, folder="runs/first", size=(390, 844)),
    Image(
        "docs/viewer/crossval.jpg",
        f"{COMMANDS['runs/cv']}; longvit view runs/cv --slides-dir slides/ --cohort cohort.csv",
        of_viewer,
        folder="runs/cv",
        keys="t",
    ),
    Image(
        "docs/viewer/survival.jpg",
        f"{COMMANDS['runs/survival']}; longvit view runs/survival --slides-dir slides/",
        of_viewer,
        folder="runs/survival",
    ),
    Image(
        "docs/viewer/comparison.jpg",
        f"{COMMANDS['job']}; {COMMANDS['comparison']}; "
        "longvit view comparison --slides-dir slides/ --cohort cohort.csv",
        of_viewer,
        folder="comparison",
        keys="2",
    ),
    Image(
        "docs/viewer/embeddings.jpg",
        f"{COMMANDS['embeddings']}; longvit view embeddings --cohort cohort.csv",
        of_viewer,
        folder="embeddings",
    ),
    Image(
        "docs/viewer/pretraining.jpg",
        f"{COMMANDS['runs/texture']}; longvit view runs/texture slides/",
        of_viewer,
        folder="runs/texture",
    ),
    Image("docs/viewer/slides.jpg", "longvit view examples/CMU-1-Small-Region.svs", of_viewer),
    Image(
        "docs/external-validation.jpg",
        "python benchmarks/external.py",
        not_made="file: fields of colon, which are not part of the repository; python benchmarks/external.py",
    ),
    Image(
        "benchmarks/results/trainability.png",
        "python benchmarks/trainability.py --save",
        not_made="hours: 67 trainings; python benchmarks/trainability.py --save",
    ),
    Image(
        "benchmarks/results/evidence.png",
        "python benchmarks/evidence.py --save --fields osteosarcoma --axes slides epochs",
        not_made="hours: 156 trainings; python benchmarks/evidence.py --save --fields osteosarcoma",
    ),
)


def make(image: Image, inputs: Path, path: Path) -> None:
    """Runs the commands whose folders are not there yet, and writes the image to `path`."""
    assert image.make is not None
    bin_dir = inputs.parent / "bin"
    if not bin_dir.exists():
        make_bin(bin_dir, "-m longvit")
    for folder in [*USES.get(image.folder, []), *([image.folder] if image.folder else [])]:
        if not (inputs / folder).exists():
            done = shell(COMMANDS[folder], inputs, bin_dir, seconds=1800)
            assert done.returncode == 0, f"{COMMANDS[folder]}\n{done.stdout}"
    image.make(inputs, image, path)


def differences(stored: Path, new: Path) -> list[str]:
    """Differences of an image from a new one: size, words, and pixels where the fonts are the same."""
    with PILImage.open(stored) as a, PILImage.open(new) as b:
        if a.size != b.size:
            return [f"{a.size} px, new {b.size} px"]
        notes = [note_of(image) for image in (a, b)]
        pixels = [np.asarray(image.convert("RGB").reduce(8), np.float32) for image in (a, b)]
    (font, before), (new_font, after) = notes
    found = [f"words gone: {sorted(before - after)}"] if before - after else []
    found += [f"new words: {sorted(after - before)}"] if after - before else []
    if font == new_font and (share := far(*pixels)) > FAR_SHARE:
        found.append(f"{share:.1%} of the image differ")
    return found


FAR, FAR_SHARE = 40.0, 0.05
"""A place differs by more than `FAR` grey levels (mean of 8 × 8 px); at most this share of places may."""


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Share of places that differ by more than `FAR`."""
    return float((abs(a - b).max(2) > FAR).mean())


def note_of(image: PILImage.Image) -> tuple[str, set[str]]:
    """Font width and words that `save` has stored."""
    comment = image.info.get("comment", "")
    font, *rest = (comment.decode() if isinstance(comment, bytes) else str(comment)).split() or [""]
    return font, set(rest)


@cache
def named() -> dict[str, Image]:
    return {image.name: image for image in IMAGES}


def main(names: Sequence[str]) -> None:
    assert CHROMIUM is not None, "screenshots need chromium"
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs)
        for name in names or named():
            image = named()[name]
            if image.make is None:
                print(f"{name}: not made here ({image.not_made})")
                continue
            new = Path(folder) / Path(name).name
            make(image, inputs, new)
            (ROOT / name).write_bytes(new.read_bytes())
            print(f"{name}: {len(new.read_bytes()):,} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
