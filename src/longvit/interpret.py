"""Patch contributions: the exact decomposition of a prediction over patches, and its plot.

LongViT's logit is a linear function of a LayerNorm of the mean token, so it is an exact sum over patches. Notation:
tokens x_i (i = 1 … N), m = mean_i x_i, σ = the LayerNorm's standard deviation of m, γ and β its weight and bias. With w
and b the head's row of the class:

    logit = Σ_i c_i + constant,   c_i = w · (γ ∘ (x_i − mean_d x_i)) / (σ N),   constant = w · β + b

There is no approximation and no gradient. Tokens have attended to other patches, so c_i is the term of the patch
*position* in the sum, not the change of the logit if the patch were removed.

Survival: the score is the risk R (tasks/survival.py). With Cox's loss R is the one logit, and the sum is exact. With
time bins R is a curved function of the bins' logits z_k, and its contributions are of first order at the slide:

    c_i = Σ_k ∂R/∂z_k c_ik,   ∂R/∂z_k = h_k (S_k + … + S_{K - 1}),   constant = R − Σ_i c_i

N patches, D width, K classes or time bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.errors import InputError
from longvit.figure import new_figure, plot, short_name, write_figure

if TYPE_CHECKING:
    from torch import Tensor

    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas

PERCENTILE = 99.0
_PANEL_PX = 1600  # longest side of a panel: enough for a screen and a page


@dataclass(frozen=True)
class Contributions:
    """Score of a class, or of an output of another task, as a sum over patches."""

    per_patch: np.ndarray
    """float32 (rows, columns): c_i at the position of each patch on the canvas."""
    constant: float
    """Part that does not depend on the patches: w · β + b."""
    score: float
    """per_patch.sum() + constant: logit of the class minus the mean of the others, the output itself, or the risk."""
    probability: float | None
    """Softmax probability of the class; None where the output is not one of classes."""
    class_name: str
    """The class, or `risk`."""
    others: str
    """Name of the other class, or a description of the others; "" where the output is not one of classes."""
    unit: str = "log-odds"
    """Unit of the score: log-odds with two classes, else score; risk; of another task the meaning of the output."""
    class_index: int | None = None
    """Number of the class; None where the output is not one of classes."""


def patch_contributions(
    model: LongViT, canvas_pixels: Any, class_index: int, *, tokens_1ND: Tensor | None = None
) -> np.ndarray:
    """Contributions c_i of all patches to the logit of `class_index`, float32 (rows, columns).

    `canvas_pixels`: uint8 (height, width, 3), or a canvas. `tokens_1ND`: its tokens, if already computed. Raises
    `InputError` for a model without that class.
    """
    if tokens_1ND is None:
        tokens_1ND, rows = tokens_of(model, canvas_pixels)
    else:
        rows = np.shape(canvas_pixels)[0] // model.config.patch_px
    return _contributions(model, tokens_1ND, rows, class_index, against_others=False).per_patch


def class_contributions(
    model: LongViT, canvas_pixels: Any, class_index: int, *, tokens_1ND: Tensor | None = None
) -> Contributions:
    """Contributions for and against a class: its logit minus the mean logit of the others, as a sum over patches.

    A softmax is invariant under a shift of all logits, so only differences matter. With two classes the score is the
    log-odds: probability = 1 / (1 + exp(-score)). `tokens_1ND`: tokens of the canvas, if already computed.
    """
    if tokens_1ND is None:
        tokens_1ND, rows = tokens_of(model, canvas_pixels)
    else:
        rows = np.shape(canvas_pixels)[0] // model.config.patch_px
    return _contributions(model, tokens_1ND, rows, class_index, against_others=True)


def risk_contributions(model: LongViT, canvas_pixels: Any, *, tokens_1ND: Tensor | None = None) -> Contributions:
    """Contributions of all patches to the risk of a survival model; positive ones raise the risk.

    Exact with Cox's loss. Of first order with time bins (see the top of this file). `tokens_1ND`: tokens of the canvas,
    if already computed. Raises `InputError` for a model of another task.

    >>> import longvit, numpy as np
    >>> from longvit.interpret import risk_contributions
    >>> config = longvit.LongViTConfig(embed_dim=32, depth=1, num_heads=4, ffn_dim=48, num_classes=4, task="survival")
    >>> risk_contributions(longvit.LongViT(config), np.zeros((64, 64, 3), np.uint8)).per_patch.shape
    (2, 2)
    """
    from longvit.tasks.survival import Survival, risk_of, risk_slopes

    if model.config.task != Survival.name:
        raise InputError(f"a model of the task {model.config.task} predicts no risk")
    if tokens_1ND is None:
        tokens_1ND, rows = tokens_of(model, canvas_pixels)
    else:
        rows = np.shape(canvas_pixels)[0] // model.config.patch_px
    outputs = [
        _contributions(model, tokens_1ND, rows, k, against_others=False) for k in range(model.config.num_classes)
    ]
    logits = np.array([[output.score for output in outputs]])
    slopes, risk = risk_slopes(logits)[0], float(risk_of(logits)[0])
    per_patch = sum(slope * output.per_patch.astype(np.float64) for slope, output in zip(slopes, outputs, strict=True))
    return Contributions(
        per_patch=np.asarray(per_patch, np.float32),
        constant=risk - float(np.sum(per_patch)),
        score=risk,
        probability=None,
        class_name="risk",
        others="",
        unit="risk",
    )


def output_contributions(
    model: LongViT, canvas_pixels: Any, index: int, *, tokens_1ND: Tensor | None = None
) -> Contributions:
    """Contributions to output `index` of a model of any task: of a class against the others, else to the output itself.

    `tokens_1ND`: tokens of the canvas, if already computed. Raises `InputError` for a model without that output.
    """
    from longvit.tasks.task import task_class

    task = task_class(model.config.task)
    if task.outputs_are_classes:
        return class_contributions(model, canvas_pixels, index, tokens_1ND=tokens_1ND)
    meaning = task.meanings(model.config.class_names)[index]
    if tokens_1ND is None:
        tokens_1ND, rows = tokens_of(model, canvas_pixels)
    else:
        rows = np.shape(canvas_pixels)[0] // model.config.patch_px
    alone = _contributions(model, tokens_1ND, rows, index, against_others=False)
    return replace(alone, class_name=meaning.title, others="", unit=meaning.unit, probability=None, class_index=None)


def predicted_contributions(
    model: LongViT, canvas_pixels: Any, index: int | None = None, *, tokens_1ND: Tensor | None = None
) -> Contributions:
    """Contributions to the prediction of a model: to the risk of survival, else to the output that the task shows.

    With classes that output is the highest. `index`: number of another output. `tokens_1ND`: tokens of the canvas, if
    already computed.
    """
    import torch

    from longvit.tasks.survival import Survival
    from longvit.tasks.task import task_class

    if index is None and model.config.task == Survival.name:
        return risk_contributions(model, canvas_pixels, tokens_1ND=tokens_1ND)
    if tokens_1ND is None:
        tokens_1ND, _ = tokens_of(model, canvas_pixels)
    if index is None:
        with torch.inference_mode():
            logits = model.forward_head(tokens_1ND)[0].float().cpu().double().numpy()
        index = task_class(model.config.task).shown_output(logits)
    return output_contributions(model, canvas_pixels, index, tokens_1ND=tokens_1ND)


def tokens_of(model: LongViT, canvas_pixels: Any) -> tuple[Tensor, int]:
    """Tokens (1, N, D) of uint8 pixels (height, width, 3) or of a canvas, and the number of rows of patches."""
    import torch

    pixels = np.asarray(canvas_pixels)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model.tokens_of(pixels), pixels.shape[0] // model.config.patch_px
    finally:
        model.train(was_training)


def contributions_of_tokens(
    tokens_ND: Tensor, gamma_D: Tensor, beta_D: Tensor, eps: float, weight_D: Tensor, *, norm_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Contributions c_N and the constant w · β, in the dtype of the tokens.

    `norm_first`: each token is normalised before the mean (DINO's head), so that σ is σ_i.
    """
    centred_ND = tokens_ND - tokens_ND.mean(1, keepdim=True)
    normalised = tokens_ND if norm_first else tokens_ND.mean(0, keepdim=True)
    sigma = (normalised.var(1, correction=0, keepdim=True) + eps).sqrt()
    c_N = (centred_ND / sigma) @ (gamma_D * weight_D) / tokens_ND.shape[0]
    return c_N, weight_D @ beta_D


def _contributions(
    model: LongViT, tokens_1ND: Tensor, rows: int, class_index: int, *, against_others: bool
) -> Contributions:
    import torch

    classes = model.config.num_classes
    if not 0 <= class_index < classes:
        raise InputError(f"class {class_index}: the model has {classes} classes, numbered from 0")
    names = model.config.class_names or tuple(f"class {k}" for k in range(classes))
    others = [k for k in range(classes) if k != class_index]

    def exact(tensor: Any) -> Tensor:
        """Converts to float64, for a sum exact to many digits; on the CPU, since MPS has no float64."""
        return tensor.detach().cpu().double()

    with torch.inference_mode():
        probability = model.forward_head(tokens_1ND)[0].float().softmax(0)[class_index]
        head: Any = model.head
        weight_KD, bias_K = exact(head.weight), exact(head.bias)
        weight_D, bias = weight_KD[class_index], bias_K[class_index]
        if against_others and others:
            weight_D, bias = weight_D - weight_KD[others].mean(0), bias - bias_K[others].mean()
        norm = model.fc_norm
        c_N, shift = contributions_of_tokens(
            exact(tokens_1ND[0]),
            exact(norm.weight),
            exact(norm.bias),
            norm.eps,
            weight_D,
            norm_first=model.config.pool_norm == "token_norm",
        )
    return Contributions(
        per_patch=c_N.reshape(rows, -1).float().numpy(),
        constant=float(shift + bias),
        score=float(c_N.sum() + shift + bias),
        probability=float(probability),
        class_name=names[class_index],
        others=names[others[0]] if len(others) == 1 else "the mean of the other classes",
        unit="log-odds" if len(others) == 1 else "score",
        class_index=class_index,
    )


@plot()
def draw(
    canvas: Canvas,
    contributions: Contributions,
    path: str | Path,
    *,
    title: str = "",
    outlines: Sequence[tuple[float, float, float, float]] = (),
) -> None:
    """Writes a plot of the contributions as PNG: the slide, and beside it the slide in grey with the contributions.

    A slide at least 1.5 times as wide as high has the two below each other. `outlines`: rectangles to draw in both (x,
    y, width, height in level-0 px).

    Red is for the class (survival: raises the risk), blue against it; the colour scale ends at the 99th percentile of
    |contribution|. Both panels have the proportions of the slide, whatever the fit of the canvas, and a scale bar in
    µm. Where the resolution of the slide is unknown, the title states so.
    """
    from matplotlib.patches import Rectangle

    mpp = canvas.source.mpp
    scale = (mpp.x, mpp.y) if mpp else (1.0, 1.0)
    left, top = canvas.placement.to_level0(0, 0)
    right, bottom = canvas.placement.to_level0(canvas.placement.side_px, canvas.placement.side_px)
    extent = (left * scale[0], right * scale[0], bottom * scale[1], top * scale[1])
    bounds = canvas.placement.bounds
    width, height = bounds.width * scale[0], bounds.height * scale[1]

    pixels = _at_most(np.asarray(canvas), _PANEL_PX)
    grey = 0.25 + 0.75 * (pixels @ np.array([0.299, 0.587, 0.114], np.float32)) / 255  # light, for readable colours
    values = contributions.per_patch
    limit = float(np.percentile(np.abs(values), PERCENTILE)) or 1e-12

    is_wide = width >= 1.5 * height
    panel_width_in = 8.0 if is_wide else 5.2
    panel_height_in = min(max(panel_width_in * height / width, 2.0), 11.0)
    if is_wide:
        figure = new_figure(panel_width_in + 1.5, 2 * panel_height_in + 1.75)
    else:
        figure = new_figure(2 * panel_width_in + 1.5, panel_height_in + 1.25)
    name, others = short_name(contributions.class_name), short_name(contributions.others, 32)
    slide_axes, map_axes = figure.subplots(*((2, 1) if is_wide else (1, 2)))
    slide_axes.imshow(pixels, extent=extent)
    map_axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    shown = map_axes.imshow(
        values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6, extent=extent, interpolation="nearest"
    )
    for axes in (slide_axes, map_axes):
        axes.set_xlim(bounds.x * scale[0], bounds.right * scale[0])
        axes.set_ylim(bounds.bottom * scale[1], bounds.y * scale[1])
        axes.set_xticks([])
        axes.set_yticks([])
        for x, y, across, down in outlines:
            place, size = (x * scale[0], y * scale[1]), (across * scale[0], down * scale[1])
            axes.add_patch(Rectangle(place, *size, fill=False, edgecolor="black", linewidth=1.2))
        if mpp:
            _scale_bar(axes, width)
    slide_axes.set_title("The slide" if mpp else "The slide (µm per pixel not known)", fontsize=11)
    is_risk = contributions.unit == "risk"
    for_against = "Raises the risk (red) or lowers it (blue)" if is_risk else f"For “{name}” (red) or against it (blue)"
    map_axes.set_title(for_against, fontsize=11)
    bar = figure.colorbar(shown, ax=map_axes, extend="both", fraction=0.05, pad=0.03)
    against = f" of “{name}” against “{others}”" if others else ""
    bar.set_label(
        f"contribution of a patch to the {short_name(contributions.unit, 60)}{against}\n"
        f"(colour scale ends at the {PERCENTILE:g}th percentile of the absolute value)",
        fontsize=8.5,
    )
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(short_name(title, 100) or "Patch contributions", fontsize=13)
    score = f"{'risk' if is_risk else 'output'} {contributions.score:+.2f}"
    if contributions.probability is not None:
        score = f"{contributions.unit} {contributions.score:+.2f}, probability of “{name}” "
        score += f"{contributions.probability:.3f}"
    figure.supxlabel(
        f"Sum over {values.size:,} patches {values.sum():+.2f}, constant {contributions.constant:+.2f}: {score}",
        fontsize=9.5,
    )
    write_figure(figure, path, dpi=130)


def _at_most(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """Image reduced to at most `side_px` per side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.BOX)
    return np.asarray(image)


def _scale_bar(axes: Any, width_um: float) -> None:
    """Draws a scale bar at the lower left: black on white, of a round length, about a fifth of the width."""
    length_um = round_length(width_um / 5)
    from matplotlib.offsetbox import AnchoredOffsetbox, AuxTransformBox, TextArea, VPacker
    from matplotlib.patches import Rectangle

    bar = AuxTransformBox(axes.transData)
    bar.add_artist(Rectangle((0, 0), length_um, width_um / 150, fc="black", ec="none"))
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    box = VPacker(children=[bar, TextArea(text, textprops={"fontsize": 9})], align="center", pad=2, sep=3)
    anchored = AnchoredOffsetbox(loc="lower left", child=box, pad=0.25, borderpad=0.6, frameon=True)
    anchored.patch.set(alpha=0.85, ec="none")
    axes.add_artist(anchored)


def round_length(length: float) -> float:
    """Round length: the largest of 1, 2, 5 × a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)) * power)
