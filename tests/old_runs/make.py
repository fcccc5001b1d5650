"""Stored runs of an older version: made by the code of a checkout, packed for tests/test_old_runs.py.

python tests/old_runs/make.py CHECKOUT: rewrites tests/old_runs/*.tar.xz. The stored ones are of commit 449ad7b.

    inputs.tar.xz    slides/*.tif, cohort.csv, list.csv, features/*.h5, model/
    <example>.tar.xz  whole/: results of the uninterrupted command; stopped/: the folder of the interrupted one

Every example is a command of `EXAMPLES`, run in a folder that holds the inputs, with relative paths. The interrupted
command gets its signal when a certain file is renamed into place, so that it stops at the same step each time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STORE = Path(__file__).parent
SLIDES, SIDE_PX, TILE_PX = 16, 96, 40
TEXT_FILES = ("*.json", "*.csv", "*.yaml", "*.jsonl")


@dataclass(frozen=True)
class Example:
    """A command that is run twice: once to its end, once until a file is renamed into place."""

    command: tuple[str, ...]
    out: str
    """Folder of the results."""
    stop_at: str
    """Pattern of the path (fnmatch, the whole path) at whose `count`-th rename the signal is sent."""
    count: int = 1
    signal: signal.Signals = signal.SIGTERM
    whole: tuple[str, ...] = TEXT_FILES
    """Files that are stored of the uninterrupted run."""
    not_stored: tuple[str, ...] = ()
    """Files that are not stored of the interrupted run."""


HOST, FOLDER = "another-host 01234567 pid:[1]", "/old/runs"
"""Machine and folder of the commands in the stored files, which name no real ones."""
NEVER = "never"
CPU = ("--device", "cpu", "--threads", "1")
TRAIN = (
    *("train", "cohort.csv", "--slides-dir", "slides", "--weights", "model", "--side-px", "64", "--epochs", "3"),
    *("--batch-size", "4", "--forward-batch", "2", "--lr", "0.01", "--ema", "0.9", "--bootstrap", "20"),
    *("--num-workers", "0", "--checkpoint-minutes", "0", *CPU),
)
TILES = ("--tile-px", "32", "--min-tissue", "0")
EXAMPLES = {
    "finetune": Example(
        (*TRAIN, "--out", "finetune"),
        "finetune",
        "*/checkpoints/step-00000002*.json",
        not_stored=("step-00000001*",),
    ),
    "finished": Example(
        (*TRAIN, "--task", "survival", "--n-bins", "2", "--out", "finished"),
        "finished",
        NEVER,
        whole=(*TEXT_FILES, "model.safetensors", "loss.png"),
    ),
    "crossval": Example(
        (*TRAIN, "--folds", "column", "--cell", "table1/brca/1024", "--out", "crossval"),
        "crossval",
        "*/fold_1/checkpoints/step-00000002*.json",
        not_stored=("step-00000001*", "fold_0/checkpoints/*", "*.png", "*.svg", "canvases/*"),
    ),
    "pretrain": Example(
        (
            *("pretrain", "slides", "--out", "pretrain", "--weights", "model", "--epochs", "2", "--warmup-epochs", "1"),
            *("--region-mpp", "0.5", "--region-px", "64", "64", "--per-slide", "1", "--no-tissue"),
            *("--global-px", "32", "--local-px", "16", "--local-crops", "2", "--prototypes", "16"),
            *("--head-hidden", "8", "--head-bottleneck", "4", "--batch-size", "4", "--probe-regions", "8"),
            *("--num-workers", "0", "--checkpoint-minutes", "0", *CPU),
        ),
        "pretrain",
        "*/checkpoints/step-00000002*.json",
        whole=(*TEXT_FILES, "model.safetensors"),
        not_stored=("step-00000002*",),
    ),
    "benchmark": Example(
        (
            *("benchmark", "cohort.csv", "--features", "features", "--folds", "column", "--out", "benchmark"),
            *("--systems", "mean_pooling", "attention_mil", "--set", "attention_mil.hidden=8"),
            *("attention_mil.gate=4", "attention_mil.rho=8", "--epochs", "3", "--lr", "0.01", "--bootstrap", "20"),
            *("--cell", "table1/brca", *CPU),
        ),
        "benchmark",
        "*/attention_mil/fold_0/checkpoints/step-*.json",
        count=3,
        signal=signal.SIGKILL,
        whole=(*TEXT_FILES, "attention.h5", "model.safetensors"),
    ),
    "embed": Example(
        ("embed", "model", "list.csv", "--out", "embed", *CPU),
        "embed",
        "*/slide_features_longvit/s02.json",
        signal=signal.SIGKILL,
    ),
    "predict": Example(
        ("predict", "model", "list.csv", "--out", "predict", *CPU),
        "predict",
        "*/predict/*/s02.json",
        signal=signal.SIGKILL,
    ),
    "canvas": Example(
        ("canvas", "list.csv", "--side-px", "64", "--out", "canvas"),
        "canvas",
        "*/canvas/s02*.json",
        signal=signal.SIGKILL,
    ),
    "features": Example(
        ("features", "list.csv", "--out", "features_run", *TILES, *CPU),
        "features_run",
        "*/features_*/s02.json",
        signal=signal.SIGKILL,
    ),
    "tiles": Example(
        ("tiles", "list.csv", "--out", "tiles", *TILES),
        "tiles",
        "*/patches/s01*.json",
        signal=signal.SIGKILL,
        not_stored=("s01.jpg",),
    ),
}

_RUN = """
import fnmatch, os, sys
pattern, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def stop(event, arguments):
    global count
    if event == "os.rename" and fnmatch.fnmatch(os.fsdecode(os.path.abspath(arguments[1])), pattern):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), number)
sys.addaudithook(stop)
from longvit.cli import main
sys.exit(main(sys.argv[4:]))
"""
_MODEL = """
import torch, longvit
torch.manual_seed(0)
model = longvit.create_model(
    "longvit_tiny_patch32", num_classes=2, class_names=("benign", "tumour"), embed_dim=8, depth=2, num_heads=2,
    ffn_dim=16, patch_px=8, grid_patches=8, image_px=64,
)
torch.nn.init.normal_(model.head.weight, std=0.5)
model.save_pretrained("model")
"""


def write_inputs() -> None:
    """Slides of coloured blocks, darker with the class; their cohort, a list of four of them, and bags of features."""
    import h5py
    import tifffile

    for folder in ("slides", "features"):
        Path(folder).mkdir()
    lines = ["case_id,slide_id,label,split,fold,survival_months,event"]
    for i in range(SLIDES):
        rng, is_tumour, name = np.random.default_rng(i), i % 2, f"s{i:02d}"
        blocks = rng.normal(200 - 60 * is_tumour, 30, (SIDE_PX // 8, SIDE_PX // 8, 3)).clip(0, 255).astype(np.uint8)
        pixels = blocks.repeat(8, 0).repeat(8, 1)
        options = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}  # 0.5 µm per pixel
        tifffile.imwrite(f"slides/{name}.tif", pixels, photometric="rgb", tile=(32, 32), metadata=None, **options)
        split = ("train", "train", "val", "test")[i // 2 % 4]
        months, event = 40 - 20 * is_tumour + rng.uniform(0, 10), int(i % 5 != 3)
        label = "tumour" if is_tumour else "benign"
        lines.append(f"P{i:02d},{name},{label},{split},{i // 2 % 2},{months:.2f},{event}")
        features = rng.normal(size=(6, 5)).astype(np.float32)
        features[::3, 0] += 4 * is_tumour
        with h5py.File(f"features/{name}.h5", "w") as file:
            file["features"] = features
            file["coords"] = np.stack([np.arange(6) % 3, np.arange(6) // 3], 1) * 32
            file["coords"].attrs["patch_size_level0"] = TILE_PX
    Path("cohort.csv").write_text("\n".join(lines) + "\n")
    Path("list.csv").write_text("slide_id,path\n" + "".join(f"s{i:02d},slides/s{i:02d}.tif\n" for i in range(4)))


def pack(name: str, folder: Path, paths: Iterable[Path]) -> None:
    """An archive whose bytes depend on the files' names, contents and times alone."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(STORE / f"{name}.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(set(paths)):
            archive.add(path, path.relative_to(folder), recursive=False, filter=plain)


def make(name: str, example: Example, environment: dict[str, str]) -> None:
    """Runs an example twice in the present folder and stores it."""
    folder = Path.cwd()
    codes = {"whole": 0}
    if example.stop_at != NEVER:
        codes["stopped"] = 143 if example.signal == signal.SIGTERM else -example.signal
    for kind, code in codes.items():
        pattern = NEVER if kind == "whole" else example.stop_at
        arguments = [pattern, str(example.count), str(int(example.signal)), *example.command]
        done = subprocess.run([sys.executable, "-c", _RUN, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode != code:
            raise SystemExit(f"{name}, {kind}: exit code {done.returncode}, expected {code}\n{done.stderr}")
        Path(kind).mkdir()
        shutil.move(example.out, f"{kind}/{example.out}")
    whole, stopped = folder / "whole", folder / "stopped"
    paths = {path for pattern in example.whole for path in whole.rglob(pattern) if "checkpoints" not in path.parts}
    paths |= set(stopped.rglob("*"))
    paths -= {path for pattern in example.not_stored for path in stopped.rglob(pattern)}
    for path in paths:
        if path.suffix in (".json", ".jsonl", ".claim"):
            hide_machine(path, folder)
    pack(name, folder, paths)
    for path in (whole, stopped):
        shutil.rmtree(path, ignore_errors=True)


def hide_machine(path: Path, folder: Path) -> None:
    """Replaces this machine's name and the temporary folder in a JSON file."""
    text = path.read_text()
    plain = re.sub(r'"host": "[^"]*"', f'"host": "{HOST}"', text).replace(str(folder), FOLDER)
    if plain != text:
        path.write_text(plain)


def main(checkout: Path, names: Iterable[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_inputs()
        subprocess.run([sys.executable, "-c", _MODEL], env=environment, check=True)
        pack("inputs", Path.cwd(), Path.cwd().rglob("*"))
        for name in names or EXAMPLES:
            make(name, EXAMPLES[name], environment)
            print(f"{name}: {(STORE / f'{name}.tar.xz').stat().st_size / 1024:.0f} kB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
