"""Deletion test of patch contributions: how far a prediction's score falls when patches are replaced by background.

Patches are replaced in three orders: the highest contributions first, the lowest first, and random orders. A faithful
map makes the score fall early in the first order and late in the second. The test is that of Samek et al. 2017
("Evaluating the visualization of what a deep neural network has learned"), with whole patches.

Blank patches (glass) stay as they are in every order, since replacing them changes nothing: the random orders would
fall more slowly for that reason alone. The score is that of `interpret.predicted_contributions`: the logit of the class
minus the mean logit of the others, or the risk of survival.

An image with patches replaced is one that the model was not trained on. The test therefore judges the map and the
model's answer to holes together.

F fractions, R random orders, P patches that are not blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError

if TYPE_CHECKING:
    from longvit.interpret import Contributions
    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
BLANK_GREY_LEVELS = 10.0
"""Mean distance from the background colour below which a patch is blank."""
_PATCHES_PER_CALL = 4096
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeletionCurves:
    """Scores of one slide after replacing a fraction of its patches, in each order."""

    fractions: Floats
    """(F,), from 0 to 1: fraction of the patches that are replaced."""
    most: Floats = field(repr=False)
    """(F,): score with the highest contributions replaced first."""
    least: Floats = field(repr=False)
    """(F,): with the lowest contributions replaced first."""
    random: Floats = field(repr=False)
    """(R, F): in random orders."""
    patches: int
    """P."""

    @property
    def most_fall(self) -> float:
        """Area by which the score falls further than in random order when the highest go first: > 0 is faithful."""
        return float(np.trapezoid(self.random.mean(0) - self.most, self.fractions))

    @property
    def least_fall(self) -> float:
        """Area by which the score falls less than in random order when the lowest go first: > 0 is faithful."""
        return float(np.trapezoid(self.least - self.random.mean(0), self.fractions))


@dataclass(frozen=True)
class DeletionSummary:
    """Mean over slides of an area between curves, with a 95 % bootstrap interval."""

    mean: float
    low: float | None
    """None with fewer than two patients (or slides)."""
    high: float | None
    slides: int


def deletion(
    model: LongViT,
    canvas: Canvas,
    class_index: int | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 2,
    seed: int = 0,
) -> DeletionCurves:
    """Deletion test of the contributions to a class on one canvas; by default to the class with the highest output.

    A survival model without `class_index` is tested on its risk.
    Takes 2 + (F − 2)(2 + R) forward passes. Patches become the background of the canvas. `orders`: R. Raises
    `InputError` for a canvas without tissue, a class that the model has not, and fractions that do not ascend from 0 to
    1.

    >>> import longvit
    >>> from longvit.heatmaps.deletion import deletion
    >>> model = longvit.create_model("longvit_tiny_patch32", num_classes=2)
    >>> canvas = longvit.open_slide("examples/CMU-1-Small-Region.svs").canvas(128)
    >>> deletion(model, canvas, 1, fractions=(0, 0.5, 1), orders=1).most.shape
    (3,)
    """
    score_of, contributions, per_call = scorer(model, canvas, class_index)
    return deletion_of(
        score_of,
        np.asarray(canvas),
        contributions.per_patch,
        canvas.source.background,
        fractions=fractions,
        orders=orders,
        seed=seed,
        per_call=per_call,
    )


def scorer(
    model: LongViT, canvas: Canvas, class_index: int | None = None
) -> tuple[Callable[[NDArray[np.uint8]], Floats], Contributions, int]:
    """Function that scores images for `deletion_of`, the contributions to that score, and its images per call."""
    from longvit.interpret import class_contributions, predicted_contributions

    if class_index is None:
        contributions = predicted_contributions(model, canvas)
    else:
        contributions = class_contributions(model, canvas, class_index)
    tested = contributions.class_index

    def score_of(images: NDArray[np.uint8]) -> Floats:
        return scores_of_logits(_logits(model, images), tested)

    return score_of, contributions, max(1, _PATCHES_PER_CALL // contributions.per_patch.size)


def scores_of_logits(logits: Floats, class_index: int | None) -> Floats:
    """Scores (B,) of logits (B, K): of a class the logit minus the mean of the others; of None the risk."""
    from longvit.tasks.survival import risk_of

    if class_index is None:
        return risk_of(logits)
    others = np.delete(logits, class_index, axis=1)
    scores: Floats = logits[:, class_index] - (others.mean(1) if others.shape[1] else 0.0)
    return scores


def deletion_of(
    score_of: Callable[[NDArray[np.uint8]], Floats],
    pixels: NDArray[np.uint8],
    per_patch: NDArray[Any],
    background: Sequence[int],
    *,
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 2,
    seed: int = 0,
    per_call: int = 8,
) -> DeletionCurves:
    """Deletion test of any map of scores (rows, columns) of an image, uint8 (height, width, 3).

    `score_of`: images (B, height, width, 3) -> scores (B,), for at most `per_call` images. A patch is the rectangle of
    one score. Raises `InputError` as `deletion` does.
    """
    at = _checked(fractions, orders)
    if at[-1] != 1:
        raise InputError(f"fractions {tuple(fractions)}: they must ascend from 0 to 1")
    rows, columns = per_patch.shape
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    filled = np.asarray(background, np.uint8)
    grid = pixels.reshape(rows, height, columns, width, 3)
    distance = np.stack([np.abs(row.astype(np.float32) - filled).mean((0, 2, 3)) for row in grid])
    tissue = np.flatnonzero(distance.ravel() >= BLANK_GREY_LEVELS)
    if not len(tissue):
        raise InputError("no patch differs from the background: there is nothing to replace")

    def replaced(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The image with these patches filled."""
        image = grid.copy()
        image[indices // columns, :, indices % columns] = filled
        return image.reshape(pixels.shape)

    def scores_without(chosen: Sequence[NDArray[np.int64]]) -> Floats:
        parts = [chosen[i : i + per_call] for i in range(0, len(chosen), per_call)]
        return np.concatenate([score_of(np.stack([replaced(tissue[part]) for part in some])) for some in parts])

    return curves_without(scores_without, per_patch.ravel()[tissue], fractions=fractions, orders=orders, seed=seed)


def curves_without(
    scores_without: Callable[[Sequence[NDArray[np.int64]]], Floats],
    values: NDArray[Any],
    *,
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 2,
    seed: int = 0,
) -> DeletionCurves:
    """Curves of a deletion test over P parts with these values (P,), whatever a part is.

    `scores_without`: sets of parts (their numbers) -> the score (one a set) where the parts of a set are absent. The
    last fraction may be below 1 for a score that needs some part.
    """
    at = _checked(fractions, orders)
    ascending = np.argsort(values, kind="stable")
    rng = np.random.default_rng(seed)
    sequences = [ascending[::-1], ascending, *(rng.permutation(len(values)) for _ in range(orders))]
    counts = np.rint(at * len(values)).astype(np.int64)
    # Nothing and everything are the same in every order.
    same = [ascending[:0], ascending] if at[-1] == 1 else [ascending[:0]]
    inner = counts[1:-1] if at[-1] == 1 else counts[1:]
    scores = scores_without([*same, *(sequence[:n] for sequence in sequences for n in inner)])
    curves = np.empty((len(sequences), len(at)))
    curves[:, 0], curves[:, -1] = scores[0], scores[len(same) - 1]
    curves[:, 1 : 1 + len(inner)] = scores[len(same) :].reshape(len(sequences), len(inner))
    return DeletionCurves(at, curves[0], curves[1], curves[2:], len(values))


def _checked(fractions: Sequence[float], orders: int) -> Floats:
    at = np.asarray(fractions, np.float64)
    if len(at) < 2 or at[0] != 0 or at[-1] > 1 or (np.diff(at) <= 0).any():
        raise InputError(f"fractions {tuple(fractions)}: they must ascend from 0 to 1")
    if orders < 1:
        raise InputError(f"orders {orders}: at least 1")
    return at


def summarise(
    areas: Sequence[float], patients: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
) -> DeletionSummary:
    """Mean of the slides' areas with its percentile interval.

    Patients are resampled, each with all its slides; without `patients`, slides are.
    """
    values = np.asarray(areas, np.float64)
    names = [str(i) for i in range(len(values))] if patients is None else list(patients)
    _, patient_of = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    sums, counts = np.bincount(patient_of, values), np.bincount(patient_of)
    if len(sums) < 2:
        return DeletionSummary(float(values.mean()), None, None, len(values))
    chosen = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    low, high = np.quantile(sums[chosen].sum(1) / counts[chosen].sum(1), [0.025, 0.975])
    return DeletionSummary(float(values.mean()), float(low), float(high), len(values))


def forward_passes(fractions: int = len(FRACTIONS), orders: int = 2) -> int:
    """Forward passes of a test on one canvas, with those of the contributions."""
    return 4 + (fractions - 2) * (2 + orders)


def _logits(model: LongViT, images: NDArray[np.uint8]) -> Floats:
    """The head's outputs, float64 (B, K), of uint8 images (B, height, width, 3)."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            device = next(model.parameters()).device
            logits: Floats = model(tensor.to(device)).float().cpu().double().numpy()
    finally:
        model.train(was_training)
    return logits
