"""A small archive with slides of real names: those of a cell's folds, so that every fold can train and be measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.public.archive import BUCKET, write_series
from tests.public.small_index import row, write_index
from tests.slides.slide_files import tissue, write_svs

from longvit.data.cohort import SlideRow
from longvit.data.folds import match
from longvit.reproduce.protocol import CellProtocol

SIZE_PX = 1100  # four tiles of 256 px at 0.5 µm/px
_MPP = 0.25


def chosen_rows(protocol: CellProtocol, n: int) -> list[SlideRow]:
    """n slides of a cell. Each evaluated split of each fold has every class, or two patients with an event."""
    read = {one.slide_id for one in protocol.slides}
    rows = [one for one in protocol.cohort.rows if one.slide_id in read]
    groups: dict[str, set[tuple[str, str, str]]] = {one.slide_id: set() for one in rows}
    for fold in protocol.folds:
        for split, places in match(protocol.cohort, fold).rows.items():
            for place in places:
                one = protocol.cohort.rows[place]
                if one.slide_id in groups:
                    kind = one.label or one.extra_columns["censorship"]
                    groups[one.slide_id].add((fold.name, split, kind))
    wanted: dict[tuple[str, str, str], int] = {}
    for found in groups.values():
        wanted |= dict.fromkeys(found, 2)
    chosen: list[SlideRow] = []
    while len(chosen) < n:
        left = [one for one in rows if one not in chosen]
        best = max(left, key=lambda one: sum(wanted[group] > 0 for group in groups[one.slide_id]))
        chosen.append(best)
        for group in groups[best.slide_id]:
            wanted[group] -= 1
    assert all(count < 2 for count in wanted.values()), "more slides are needed: a split lacks a class"
    return chosen


def write_archive(folder: Path, rows: Sequence[SlideRow], collection: str) -> Path:
    """Writes the slides as DICOM series below FOLDER/served, and FOLDER/index.parquet with their addresses."""
    listed = []
    (folder / "source").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, one in enumerate(rows):
        x_px, y_px = int(rng.integers(2220 - SIZE_PX)), int(rng.integers(2967 - SIZE_PX))
        pixels = tissue(SIZE_PX, SIZE_PX, x_px, y_px)
        uid = f"1.2.{number + 1}"
        source = write_svs(folder / "source" / f"{number}.tif", [pixels], _MPP, photometric="ycbcr", tile_px=256)
        n_bytes = write_series(source, folder / "served" / BUCKET / uid)
        section = one.slide_id.split(".")[0].split("-")[-1]
        listed.append(row(collection, one.case_id, f"FFPE HE TP {section}", uid, series_size_MB=n_bytes / 1e6))
    write_index(folder / "index.parquet", listed)
    return folder
