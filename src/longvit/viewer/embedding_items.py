"""Viewer of embeddings: every slide with its nearest neighbours by cosine similarity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.data.problems import PROBLEMS_CSV, read_problems
from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.viewer.items import ViewItem, ViewItems
from longvit.viewer.slide_places import SlidePlaces

NEIGHBOURS = 12


def load_embeddings(folder: Path, places: SlidePlaces) -> ViewItems:
    """Slides of `embeddings.csv`. Raises `InputError` for a table without numbers f0, f1, …"""
    path = folder / "embeddings.csv"
    columns, table = read_table(path)
    names = [name for name in columns if name[:1] == "f" and name[1:].isdecimal()]
    if "slide_id" not in columns or not names:
        raise InputError(f"{path}: embeddings have columns slide_id, path, f0, f1, …")
    try:
        vectors = np.array([[float(cells[name]) for name in names] for _, cells in table])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: a value is missing or not a number ({error})") from error
    if not np.isfinite(vectors).all():
        raise InputError(f"{path}: a value is not finite; embed the slides again")
    nearest = nearest_neighbours(vectors, NEIGHBOURS)
    problem_of = {p.slide: f"{p.stage}: {p.error}" for p in read_problems(folder / PROBLEMS_CSV)}
    items = []
    for (_, cells), neighbours in zip(table, nearest, strict=True):
        slide_id = cells["slide_id"]
        place = places.find(slide_id, cells.get("path", ""))
        items.append(
            ViewItem(
                slide_id,
                path=place.path,
                mpp=place.mpp,
                case_id=place.case_id,
                label=place.label,
                site=place.site,
                problem=problem_of.pop(slide_id, place.problem),
                neighbours=neighbours,
            )
        )
    for slide_id, problem in problem_of.items():
        place = places.find(slide_id)
        items.append(ViewItem(slide_id, path=place.path, mpp=place.mpp, problem=problem))
    return ViewItems("embeddings", folder.resolve().name, items, folder)


def nearest_neighbours(vectors: NDArray[np.float64], count: int) -> list[tuple[tuple[int, float], ...]]:
    """For each row of (N, D) the numbers of the `count` nearest others and their cosine similarity, nearest first."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    found = []
    for i, unit in enumerate(units):
        similarity = units @ unit
        similarity[i] = -np.inf
        order = np.argsort(-similarity, kind="stable")[: min(count, len(units) - 1)]
        found.append(tuple((int(j), float(similarity[j])) for j in order))
    return found
