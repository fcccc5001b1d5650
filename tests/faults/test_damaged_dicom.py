"""A hundred damaged DICOM slides of every layout: no dead process, no hang, no wrong pixel without a word.

OpenSlide follows a damaged table of frames beyond the end of the file, and the process dies. The whole campaign over
all formats is `make fuzz`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.faults.damaged_slides import FAILURES, Try, campaign
from tests.faults.damages import applies, damages
from tests.faults.made_slides import kinds, layout

KINDS = [kind for kind in kinds().values() if kind.container == "dicom"]
STRUCTURE = [
    (kind.name, damage.name)
    for kind in KINDS
    for damage in damages().values()
    if applies(damage, kind) and damage.group in ("header", "table")
]
BYTES = [
    (kind.name, damage.name) for kind in KINDS for damage in damages().values() if damage.group in ("data", "file")
]


def none_is_wrong(tries: list[Try]) -> None:
    if wrong := [str(one) for one in tries if one.outcome in FAILURES]:
        pytest.fail("\n".join([f"{len(wrong)} of {len(tries)}:", *wrong]), pytrace=False)


@pytest.mark.slow
def test_a_hundred_slides_with_damaged_headers_and_tables_are_refused_or_reported() -> None:
    found = campaign(100, seed=4, only=STRUCTURE)
    none_is_wrong(found)
    # A larger size of a sparse slide is the only field that nothing else states.
    unseen = [one for one in found if one.outcome == "unseen" and "larger size" not in one.message]
    assert not [str(one) for one in unseen if one.touched != ("data",)]
    assert sum(one.outcome in ("refused", "reported") for one in found) > 80


@pytest.mark.slow
def test_a_hundred_slides_with_damaged_bytes_are_refused_reported_or_under_no_checksum() -> None:
    found = campaign(100, seed=5, only=BYTES)
    none_is_wrong(found)
    assert all("no checksum" in one.message for one in found if one.outcome == "unseen")


def test_offsets_that_end_openslide_never_end_a_process() -> None:
    only = [(kind.name, name) for kind in KINDS for name in ("offset of a frame", "length of a frame")]
    found = campaign(24, seed=6, only=only)
    none_is_wrong(found)
    assert {one.outcome for one in found} <= {"refused", "reported", "same"}


@pytest.mark.slow
def test_the_command_ends_with_a_row_per_damaged_slide_and_never_with_a_signal(tmp_path: Path) -> None:
    """Twelve slides damaged in their tables and one that is whole, through the command."""
    rng, n = np.random.default_rng(7), 0
    for kind in KINDS:
        whole = tmp_path / "whole.dcm"
        kind.write(whole)
        content = whole.read_bytes()
        for name in ("offset of a frame", "length of a frame"):
            after = damages()[name].make(content, layout(kind, content), rng)
            if after is not None:
                folder = tmp_path / "slides" / f"s{n}"  # the files of a folder with one series are one slide
                folder.mkdir(parents=True)
                (folder / f"s{n}.dcm").write_bytes(after)
                n += 1
    (tmp_path / "slides" / "good").mkdir()
    kind.write(tmp_path / "slides" / "good" / "good.dcm")
    out = tmp_path / "out"
    options = ["--side-px", "64", "--out", str(out)]
    command = [sys.executable, "-m", "longvit", "canvas", str(tmp_path / "slides"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    with (out / "problems.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    canvases = {path.stem for path in out.rglob("*.tif")}
    assert "good" in canvases
    assert len({row["slide"] for row in rows} | canvases) == n + 1
