"""The folder in which a page runs: a user's slides and tables, and what earlier work has left (`<!-- needs: … -->`)."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

import numpy as np
import tifffile
from tests.docs.blocks import ROOT

SLIDES = 24
SIDE = 900
EXAMPLE = "CMU-1-Small-Region.svs"


def write_inputs(folder: Path) -> None:
    """The user's files: 24 slides cut from the example, of two classes and 22 patients, and their tables."""
    folder.mkdir(parents=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("slide.svs", "s.svs"):
        (folder / name).symlink_to(ROOT / "examples" / EXAMPLE)
    write_slides(folder / "slides")
    rows = [row(i) for i in range(SLIDES)]
    write_csv(folder / "cohort.csv", rows)
    write_csv(folder / "cohortA.csv", rows[:12])
    write_csv(folder / "cohortB.csv", rows[12:])
    patients = [int(str(row["case_id"])[1:]) for row in rows]
    times = [{"survival_months": 3 + 2 * patient, "event": int(patient % 4 != 3)} for patient in patients]
    write_csv(folder / "outcomes.csv", [{**row, **time} for row, time in zip(rows, times, strict=True)])
    write_csv(
        folder / "labelled.csv",
        [{"path": f"slides/s{i:02d}.tif", "label": row(i)["label"], "case_id": row(i)["case_id"]} for i in range(12)],
    )
    write_annotations(folder / "annotations")
    write_other_tables(folder, rows)


def write_slides(folder: Path) -> None:
    """Squares of the example slide; those of the second class are stained more strongly."""
    import longvit

    folder.mkdir()
    with longvit.open_slide(ROOT / "examples" / EXAMPLE) as slide:
        for i in range(SLIDES):
            x, y = 500 + (i * 331) % 800, (i * 457) % (slide.size_px[1] - SIDE)  # where tissue is
            pixels = slide.read_region(x, y, 0, SIDE, SIDE).astype(np.float32)
            pixels = 255 - (255 - pixels) * (0.7 + 0.3 * (i % 2))
            tifffile.imwrite(
                folder / f"s{i:02d}.tif",
                pixels.clip(0, 255).astype(np.uint8),
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                metadata=None,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
            )


def row(i: int) -> dict[str, object]:
    """Slide i in the cohort table; two patients have two slides."""
    return {
        "case_id": f"P{i if i > 3 else i % 2:02d}",
        "slide_id": f"s{i:02d}",
        "label": ("luad", "lusc")[i % 2],
        "path": f"slides/s{i:02d}.tif",
        "site": ("H1", "H2", "H3")[i // 2 % 3],
        "scanner": ("A", "B")[i // 2 % 2],
        "sex": ("f", "m")[i // 4 % 2],
        "age": 40 + (i * 7) % 40,
        "isup": 1 + i // 2 % 3,
        "MSI": ("MSI-H", "MSS", "")[i // 2 % 3],
        "BRAF": i // 2 % 2,
        "KRAS": (0, 1, "")[i // 3 % 3],
    }


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def write_annotations(folder: Path) -> None:
    """A GeoJSON per slide as QuPath writes it: Tumor, Stroma, and a little Artefact and Pen."""
    boxes = {"Tumor": (50, 50, 800, 500), "Stroma": (50, 500, 800, 850), "Artefact": (100, 100, 160, 160)}
    boxes["Pen"] = (200, 100, 240, 140)
    folder.mkdir()
    for i in range(SLIDES):
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[a, b], [c, b], [c, d], [a, d], [a, b]]]},
                "properties": {"objectType": "annotation", "classification": {"name": name}},
            }
            for name, (a, b, c, d) in boxes.items()
        ]
        collection = {"type": "FeatureCollection", "features": features}
        (folder / f"s{i:02d}.geojson").write_text(json.dumps(collection))


def write_other_tables(folder: Path, rows: list[dict[str, object]]) -> None:
    """A task of Patho-Bench, and the slide and patient tables of STAMP."""
    import pandas as pd

    task = folder / "pathobench" / "bcnb" / "her2"
    task.mkdir(parents=True)
    lines = ["case_id\tslide_id\tHER2\tfold_0\tfold_1"]
    for i, r in enumerate(rows):
        fold = int(str(r["case_id"])[1:]) % 4 // 2
        parts = ["test" if fold == j else "train" for j in range(2)]
        lines.append("\t".join([str(r["case_id"]), str(r["slide_id"]), str(i % 2), *parts]))
    (task / "k=all.tsv").write_text("\n".join(lines) + "\n")
    (task / "config.yaml").write_text(
        "task_type: binary classification\nsample_col: slide_id\ntask_col: HER2\nextra_cols: []\n"
        "label_dict: {0: negative, 1: positive}\nmetrics: [macro-ovr-auc]\n"
    )
    write_csv(folder / "slides.csv", [{"PATIENT": r["case_id"], "FILENAME": f"{r['slide_id']}.tif"} for r in rows])
    patients = {r["case_id"]: {"PATIENT": r["case_id"], "MSI": ("MSI-H", "MSS")[i % 2]} for i, r in enumerate(rows)}
    pd.DataFrame(list(patients.values())).to_excel(folder / "clini.xlsx", index=False)


NEEDS: dict[str, str] = {
    "runs/first": "longvit train cohort.csv --out runs/first",
    "runs/cv": "longvit train cohort.csv --folds 2 --out runs/cv",
    "job": "longvit features slides/ --out job",
    "jobA": "longvit features slides/ --out jobA",
    "jobB": "longvit features slides/ --out jobB",
    "embeddings": "longvit embed runs/first/model slides/ --out embeddings",
    "folds": "longvit cohort split cohort.csv --k 2 --out folds",
    "demo": "mkdir demo && cp -r slides demo/regions && cp -r runs/first demo/run && "
    "sed s:slides/:regions/: cohort.csv > demo/cohort.csv",
}
"""Folder → the command that makes it. Those before it in the list may be used."""
USES = {"embeddings": ["runs/first"], "demo": ["runs/first"]}


def make_bin(folder: Path, longvit: str = f"{ROOT}/tests/docs/small.py") -> Path:
    """Folder for PATH with `longvit` and `python`, as a user's environment has them.

    `longvit` are the arguments of Python for it: by default the command with small settings.
    """
    folder.mkdir()
    for name, target in {"longvit": longvit, "python": ""}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {target} "$@"\n')
        script.chmod(0o755)
    return folder


def shell(code: str, folder: Path, bin_dir: Path, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    """Runs a shell block in the folder: standard output and error together, as a terminal shows them."""
    environment = {
        **os.environ,
        "PATH": f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def python(code: str, folder: Path, bin_dir: Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python block in a process of its own: it must import what it uses."""
    script = folder / ".block.py"
    script.write_text(code, encoding="utf-8")
    return shell("python .block.py", folder, bin_dir)


def add_need(name: str, folder: Path, store: Path, bin_dir: Path) -> None:
    """Copies the folder `name` from the store; the first page that needs it makes it there."""
    with locked(store.with_name("store.lock")):
        for first in [*USES.get(name, []), name]:
            if not (store / first).exists():
                done = shell(NEEDS[first], store, bin_dir)
                assert done.returncode == 0, f"{NEEDS[first]}\n{done.stdout}"
    shutil.copytree(store / name, folder / name, dirs_exist_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock between the workers of pytest, which share the store."""
    with path.open("w") as file:
        flock(file, LOCK_EX)
        yield


RUN: dict[str, Callable[[str, Path, Path], subprocess.CompletedProcess[str]]] = {"bash": shell, "python": python}
