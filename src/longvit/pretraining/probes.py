"""Labelled regions beside a pretraining that sees no labels: does what it learns tell them apart?

After every epoch the teacher's backbone, as it stands, embeds the probe's regions and some others, always the same;
`figures` is what the loop writes down. The same figures of mean colour and of the network before its first step
(`control_figures`) say what there is to beat: stain and scanner alone often carry a label far.

n regions, S side in px, D width. Regions are uint8 (n, S, S, 3), in one array or one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.pretraining.feature_metrics import feature_std, knn_probe, linear_probe, rankme

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT

Regions = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
MAX_PROBE_PX = 4096
"""A probe's image is read whole: not longer than this."""


@dataclass(frozen=True)
class Probe:
    """Labelled regions, of which pretraining should have seen nothing. Raises `InputError` where they cannot judge.

    Regions of one slide or patient share a group: they are never judged by each other.
    """

    pixels: NDArray[np.uint8]
    """(n, S, S, 3)."""
    labels: NDArray[np.int64]
    """(n,), index into `class_names`."""
    groups: tuple[str, ...]
    class_names: tuple[str, ...]
    names: tuple[str, ...] = ()
    """What a reader calls each region; its number where left out."""
    problems: tuple[Problem, ...] = ()
    """Rows of the table that could not be used."""
    source: str = "the probe"
    """Where they come from, for messages."""

    def __post_init__(self) -> None:
        n = len(self.pixels)
        assert self.pixels.ndim == 4 and self.pixels.dtype == np.uint8, (self.pixels.shape, self.pixels.dtype)  # noqa: PT018
        assert n == len(self.labels) == len(self.groups), (n, len(self.labels), len(self.groups))
        if not self.names:
            object.__setattr__(self, "names", tuple(f"region {i + 1}" for i in range(n)))
        if len(self.class_names) < 2:
            raise InputError(
                f"{self.source}: {n} regions of {len(self.class_names)} classes; a probe needs two classes at least"
            )
        for c, name in enumerate(self.class_names):
            of_class = {group for group, label in zip(self.groups, self.labels, strict=True) if label == c}
            if len(of_class) < 2:
                count = int((self.labels == c).sum())
                raise InputError(
                    f"{self.source}: class {name!r} has {count} regions of {len(of_class)} case; a region is never "
                    "judged by another one of its case, so a class needs two cases at least: add some or leave it out"
                )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.class_names)


def read_probe(csv: str | Path, side_px: int) -> Probe:
    """Labelled regions from a CSV with columns path, label and, where several regions are of one patient or slide,
    case_id (left out: every region is a case of its own, and the figures are too good where that is not so).

    A path (relative to the CSV, or absolute) is an image or a slide of at most 4,096 px a side, taken whole: the
    square in its middle, resized to `side_px`; its resolution is not looked at. A row that cannot be used is one of
    `Probe.problems`. `InputError`: no such table or columns, no usable row, or too few (see `Probe`), patients or
    classes that only their spelling tells apart.
    """
    from longvit.data.identity import first_places, read_classes, read_id, refuse_clashes
    from longvit.data.table import read_table

    csv = Path(csv)
    columns, rows = read_table(csv)
    for name in ("path", "label"):
        if name not in columns:
            raise InputError(f"{csv}: no column {name!r}; it has {', '.join(columns)}; a probe needs path and label")
    pixels: list[NDArray[np.uint8]] = []
    kept: list[tuple[dict[str, str], str, str]] = []  # row, label, case
    problems: list[Problem] = []
    labels = read_classes([(row.get("label", ""), f"line {line}") for line, row in rows], "label", str(csv))
    cases = [read_id(row.get("case_id", ""), "case_id", f"{csv}, line {line}") for line, row in rows]
    places = first_places((case, f"line {line}") for case, (line, _) in zip(cases, rows, strict=True) if case)
    refuse_clashes("case_id", places, str(csv))
    for (line, row), label, case in zip(rows, labels.names, cases, strict=True):
        name = row.get("path") or f"line {line}"
        try:
            if label is None:
                raise InputError(f"{csv}, line {line}: no label")
            pixels.append(_region(csv, line, row, side_px))
            kept.append((row, label, case))
        except (InputError, OSError) as error:
            problems.append(Problem(name, "read", " ".join(str(error).split())))
    if not kept:
        raise InputError(f"{csv}: none of its {len(rows)} regions can be used; the first: {problems[0].error}")
    classes = tuple(sorted({label for _, label, _ in kept}))
    return Probe(
        np.stack(pixels),
        np.array([classes.index(label) for _, label, _ in kept], dtype=np.int64),
        tuple(case or row["path"] for row, _, case in kept),
        classes,
        tuple(row["path"] for row, _, _ in kept),
        tuple(problems),
        str(csv),
    )


def _region(csv: Path, line: int, row: dict[str, str], side_px: int) -> NDArray[np.uint8]:
    """uint8 (S, S, 3)."""
    from PIL import Image

    from longvit.slides.reader import open_slide

    if not row.get("path"):
        raise InputError(f"{csv}, line {line}: no path")
    path = Path(row["path"]) if Path(row["path"]).is_absolute() else csv.parent / row["path"]
    with open_slide(path) as slide:
        width, height = slide.size_px
        if max(width, height) > MAX_PROBE_PX:
            raise InputError(
                f"{path}: {width} × {height} px; a labelled region is read whole and may have {MAX_PROBE_PX} px a "
                "side: cut the labelled part out"
            )
        short = min(width, height)
        pixels = slide.read_region((width - short) // 2, (height - short) // 2, 0, short, short)
        if slide.bad_tiles:
            raise InputError(f"{path}: {len(slide.bad_tiles)} tiles cannot be read")
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC))


def embed_regions(backbone: LongViT, pixels: Regions, batch_size: int = 16) -> NDArray[np.float32]:
    """uint8 (n, S, S, 3) → float32 (n, D): the mean of the tokens as the model pools them, of any length.

    In eval mode, without gradients, in the caller's autocast; the model is left in the mode that it was in. A model
    over the ranks of a sequence takes its strip of each region, and all ranks of it call.
    """
    import torch

    from longvit.parallel.shard import ShardedLongViT

    side_px = len(pixels[0])
    first, end = backbone.rows_px(side_px) if isinstance(backbone, ShardedLongViT) else (0, side_px)
    was_training = backbone.training
    backbone.eval()
    found = []
    try:
        with torch.no_grad():
            for start in range(0, len(pixels), batch_size):
                images = np.stack(list(pixels[start : start + batch_size]))[:, first:end]
                tokens = backbone.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
                found.append(backbone.forward_head(tokens, pre_logits=True).float().cpu().numpy())
    finally:
        backbone.train(was_training)
    return np.concatenate(found)


def colour_features(pixels: Regions) -> NDArray[np.float64]:
    """(n, 6): mean and standard deviation of red, green, blue of each region, each column standardised over the
    regions, since the k-NN compares directions."""
    rows = []
    for region in pixels:
        x = np.asarray(region).reshape(-1, 3)
        rows.append(np.concatenate([x.mean(0), x.std(0)]))
    x = np.stack(rows)
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)


def probe_metrics(features: NDArray[np.floating], probe: Probe) -> dict[str, float]:
    """`knn`, `knn_balanced`, `linear`, `linear_balanced`, `linear_auc` of the features (n, D) of the probe."""
    knn = knn_probe(features, probe.labels, probe.groups)
    linear = linear_probe(features, probe.labels, probe.groups)
    return {
        "knn": knn.accuracy,
        "knn_balanced": knn.balanced,
        "linear": linear.accuracy,
        "linear_balanced": linear.balanced,
        "linear_auc": linear.auc,
    }


def metrics(
    backbone: LongViT,
    probe: Probe | None,
    monitored: Regions,
    batch_size: int = 16,
) -> dict[str, float]:
    """For the loop's `evaluate`: `rankme` and `feature_std` of `looked_at`, and `probe_figures` of a probe.

    `looked_at`: uint8 (n, S, S, 3), the same ones at every call, two at least; rank can be seen up to n.
    """
    features = embed_regions(backbone, monitored, batch_size)
    found = {"rankme": rankme(features), "feature_std": feature_std(features)}
    if probe is not None:
        found |= probe_metrics(embed_regions(backbone, probe.pixels, batch_size), probe)
    return found


def control_metrics(
    untrained: LongViT,
    probe: Probe | None,
    monitored: Regions,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """`random_start` (the network before its first step, `figures`) and `mean_colour` (`probe_figures`)."""
    found = {"random_start": metrics(untrained, probe, monitored, batch_size)}
    if probe is not None:
        found["mean_colour"] = probe_metrics(colour_features(probe.pixels), probe)
    return found
