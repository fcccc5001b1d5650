"""Top and bottom patches over all slides of a run, ranked by score within each predicted class.

    OUT/top/<class>/01_<slide_id>.jpg …    the patches with the highest contributions to the class
    OUT/top/<class>.jpg                    contact sheet: the same patches with slide and score
    OUT/bottom/…                           those with the lowest
    OUT/patches.csv                        class,kind,rank,slide_id,score,x_level0_px,…,file

Contributions can be ranked over slides because all canvases of a model have the same number of patches. A slide counts
for the class whose contributions its map shows: its highest output, or `risk` with a survival model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.files import file_stem, make_folder, write_bytes, write_csv
from longvit.heatmaps.patches import contact_sheet, remove_others

TABLE = "patches.csv"
_COLUMNS = (
    "class",
    "kind",
    "rank",
    "slide_id",
    "score",
    "x_level0_px",
    "y_level0_px",
    "width_level0_px",
    "height_level0_px",
    "file",
)


def write_cohort_patches(
    records: Sequence[Mapping[str, Any]], heat_map_folder: str | Path, out_dir: str | Path, k: int
) -> Path:
    """Writes the k highest and lowest patches of each class, their contact sheets and the table; returns its path.

    `records`: records of slides with `heatmaps.patches`, whose images are in `heat_map_folder`. Slides without patches
    are left out.
    """
    out_dir, rows = Path(out_dir), []
    by_class: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        entry = record.get("heatmaps") or {}
        for patch in entry.get("patches", ()):
            name = str(entry["meaning"]["class"])
            folder = Path(heat_map_folder) / f"{file_stem(str(record['slide_id']))}.patches"
            source = {"slide_id": record["slide_id"], "class": name, "source": folder / patch["file"]}
            by_class.setdefault(name, []).append({**patch, **source})
    for name, patches in sorted(by_class.items()):
        for kind, sign in (("top", -1), ("bottom", 1)):
            ranked = sorted((patch for patch in patches if patch["kind"] == kind), key=lambda p: sign * p["score"])[:k]
            rows += _write_kind(ranked, out_dir / kind, name)
    write_csv(out_dir / TABLE, _COLUMNS, ([row[column] for column in _COLUMNS] for row in rows))
    return out_dir / TABLE


def _write_kind(ranked: Sequence[dict[str, Any]], folder: Path, name: str) -> list[dict[str, Any]]:
    """Copies the images of one class and kind and writes their contact sheet; returns their rows of the table."""
    from PIL import Image

    place, rows, images, captions = make_folder(folder / file_stem(name)), [], [], []
    for rank, patch in enumerate(ranked, 1):
        file = f"{rank:02d}_{file_stem(str(patch['slide_id']))}.jpg"
        write_bytes(place / file, patch["source"].read_bytes())
        with Image.open(patch["source"]) as image:
            images.append(np.asarray(image.convert("RGB")))
        captions.append(f"{rank}: {patch['slide_id']}\n{patch['score']:+#.3g}")
        rows.append({**patch, "rank": rank, "file": (place / file).relative_to(folder.parent).as_posix()})
    write_bytes(folder / f"{file_stem(name)}.jpg", contact_sheet(images, captions))
    remove_others(place, {Path(row["file"]).name for row in rows})
    return rows
