"""Cohorts and embeddings with and without a planted site shortcut."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LABELS, SITES = ("benign", "tumour"), ("A", "B", "C")


@dataclass(frozen=True)
class Made:
    """A made cohort of one slide per patient, and two slides for every fifth."""

    labels: list[str]
    sites: list[str]
    patients: list[str]
    vectors: np.ndarray


def made(
    seed: int,
    *,
    linked: bool,
    stained: bool,
    n: int = 150,
    width: int = 48,
    sites: tuple[str, ...] = SITES,
    share: float = 0.85,
    signal: float = 1.0,
) -> Made:
    """A made cohort. `linked`: labels depend on sites; `stained`: vectors of a site are shifted, as by its stain."""
    rng = np.random.default_rng(seed)
    site = rng.integers(len(sites), size=n)
    of_site = np.where(site % 2 == 1, share, 1 - share) if linked else np.full(n, 0.5)
    label = (rng.random(n) < of_site).astype(int)
    patients = [f"P{i}" for i in range(n)]
    twice = np.arange(0, n, 5)  # a second slide of the same patient: much like the first
    chosen = np.concatenate([np.arange(n), twice])
    person = rng.normal(size=(n, width))
    tumour, stain = rng.normal(size=width) * signal, rng.normal(size=(len(sites), width))
    vectors = person + label[:, None] * tumour + (stain[site] if stained else 0)
    vectors = vectors[chosen] + 0.1 * rng.normal(size=(len(chosen), width))
    return Made(
        [LABELS[label[i]] for i in chosen], [sites[site[i]] for i in chosen], [patients[i] for i in chosen], vectors
    )


def write(folder: Path, data: Made, *, probabilities: bool = False) -> tuple[Path, Path]:
    """Writes cohort.csv, and embeddings.csv or (from the first two columns) predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    cohort, table = folder / "cohort.csv", folder / ("predictions.csv" if probabilities else "embeddings.csv")
    slides = [f"s{i}" for i in range(len(data.labels))]
    with cohort.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "label", "site"])
        writer.writerows(zip(data.patients, slides, data.labels, data.sites, strict=True))
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        if probabilities:
            tumour = 1 / (1 + np.exp(-data.vectors[:, 0]))
            writer.writerow(["slide_id", "prob_benign", "prob_tumour"])
            writer.writerows((s, f"{1 - p:.9g}", f"{p:.9g}") for s, p in zip(slides, tumour, strict=True))
        else:
            writer.writerow(["slide_id", "path", *(f"f{j}" for j in range(data.vectors.shape[1]))])
            writer.writerows([s, "", *map(repr, map(float, v))] for s, v in zip(slides, data.vectors, strict=True))
    return cohort, table
