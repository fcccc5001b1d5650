"""Colours that tell nothing: all fields get one distribution of colours; a control checks the finished slides.

A field's colours are changed so that their distribution in RGB is that of all fields together. The marginals along
random axes are matched in turn (Pitié, Kokaram and Dahyot 2005, "N-dimensional probability density function
transfer"). What remains is the arrangement of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.progress import Progress
from longvit.synthetic.fields import Field

_SAMPLE = 4096  # pixels of a field that define its quantiles, and its part of the reference
_QUANTILES = np.linspace(0, 1, 129)
_ROUNDS = 8
_PASSES = 2  # the second corrects what the lattice of the first has smoothed
_LATTICE = 25  # points of the lookup table along each colour
_CONTROL_SIDE_PX = 1024


def match_colours(fields: Sequence[Field], *, seed: int = 0) -> tuple[Field, ...]:
    """The same fields, all with one distribution of colours: that of all of them, both tissues weighted equally.

    >>> from longvit.synthetic import drawn_fields, match_colours
    >>> fields = match_colours(drawn_fields(patients=2, fields=1, side_px=64))
    >>> means = [field.pixels.mean() for field in fields]
    >>> bool(max(means) - min(means) < 2)
    True
    """
    rng = np.random.default_rng(seed)
    tissues = [[_sample(field.pixels, rng) for field in fields if field.is_tumour == kind] for kind in (False, True)]
    if not all(tissues):
        raise InputError("the fields are all of one tissue; both are needed")
    size = _SAMPLE * 4
    reference = np.concatenate([rng.choice(np.concatenate(tissue), size) for tissue in tissues])
    axes = [np.eye(3), *(np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(_ROUNDS - 1)), np.eye(3)]
    targets = [np.quantile(reference @ axis, _QUANTILES, axis=0) for axis in axes]
    matched = []
    with Progress("colours", len(fields), unit="fields", brief=True) as progress:
        for field in fields:
            matched.append(replace(field, pixels=_matched(field.pixels, axes, targets, reference.mean(0), rng)))
            progress.advance()
    return tuple(matched)


def _sample(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float64]:
    """`_SAMPLE` pixels (with replacement), without ties."""
    flat = pixels.reshape(-1, 3)
    return flat[rng.integers(len(flat), size=_SAMPLE)] + rng.uniform(-0.5, 0.5, (_SAMPLE, 3))


def _matched(
    pixels: NDArray[np.uint8],
    axes: Sequence[NDArray[np.float64]],
    targets: Sequence[NDArray[np.float64]],
    mean: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """The field with matched colours: through lookup tables that follow a sample of its pixels, then a shift."""
    from PIL import Image, ImageFilter

    levels = np.linspace(0, 255, _LATTICE)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")  # red changes fastest, as Pillow wants it
    lattice = np.stack([red.ravel(), green.ravel(), blue.ravel()], 1)
    for _ in range(_PASSES):
        sample, table = _sample(pixels, rng), lattice
        for axis, target in zip(axes, targets, strict=True):
            own = np.quantile(sample @ axis, _QUANTILES, axis=0)
            sample, table = (_mapped(x @ axis, own, target) @ axis.T for x in (sample, table))
        lookup = ImageFilter.Color3DLUT(_LATTICE, (table / 255).ravel().tolist())
        pixels = np.asarray(Image.fromarray(pixels).filter(lookup))
    shifted = pixels + (mean - pixels.mean((0, 1), dtype=np.float64)) + rng.uniform(-0.5, 0.5, pixels.shape)
    return np.clip(np.rint(shifted), 0, 255).astype(np.uint8)


def _mapped(
    projected: NDArray[np.float64], own: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Columns mapped from their own quantiles to those of the target."""
    return np.stack([np.interp(projected[:, i], own[:, i], target[:, i]) for i in range(3)], 1)


@dataclass(frozen=True)
class ColourControl:
    """AUC of one control over the folds, with its 95 % interval (cases resampled)."""

    auc: float
    low: float
    high: float


def colour_controls(cohort_csv: str | Path) -> dict[str, ColourControl]:
    """AUC of logistic regressions on mean colour and on a colour histogram (8 × 8 × 8 cells of RGB) of the slides.

    Each fold of the cohort is tested once, after a fit on the others. Slides in which colour tells nothing give
    intervals around 0.5. Raises `InputError` for a cohort without folds.
    """
    from longvit.data.cohort_table import read_cohort
    from longvit.finetuning.controls import colour_histogram
    from longvit.metrics.classification import auc, bootstrap_auc
    from longvit.slides.canvas import canvas
    from longvit.slides.reader import open_slide
    from longvit.tasks.subtyping import logistic_probabilities

    cohort = read_cohort(cohort_csv)
    folds = [row.fold for row in cohort.rows]
    if None in folds or len(set(folds)) < 2:
        raise InputError(f"{cohort.source}: no column fold with at least two folds")
    labels = np.array([cohort.class_index(row) for row in cohort.rows])
    features: dict[str, list[NDArray[np.float64]]] = {"mean_colour": [], "colour_histogram": []}
    for row in cohort.rows:
        with open_slide(row.path) as slide:
            pixels = np.asarray(canvas(slide, min(_CONTROL_SIDE_PX, max(slide.size_px))))
        features["mean_colour"].append(pixels.mean((0, 1)))
        features["colour_histogram"].append(colour_histogram(pixels))
    controls = {}
    for name, rows in features.items():
        x, p = np.stack(rows), np.zeros((len(labels), len(cohort.classes)))
        for fold in sorted(set(folds), key=str):
            test = np.array([other == fold for other in folds])
            p[test] = logistic_probabilities(x[~test], labels[~test], {"test": x[test]}, len(cohort.classes))["test"]
        interval = bootstrap_auc(labels, p, [row.case_id for row in cohort.rows])
        controls[name] = ColourControl(auc(labels, p), interval.low, interval.high)
    return controls
