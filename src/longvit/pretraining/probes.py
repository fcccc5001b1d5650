"""Probes of a pretraining run: metrics of the embeddings of labelled regions.

After each epoch the teacher's backbone embeds the labelled regions and the monitor regions. The loop records `metrics`.
`control_metrics` gives the baselines: the same metrics of mean colour and of the untrained network. Stain and scanner
alone often predict a label well.

n regions, S side in px, D width. Regions are uint8 (n, S, S, 3), as one array or a sequence.
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
"""Maximum side of an image of a probe, which is read whole."""


@dataclass(frozen=True)
class Probe:
    """Labelled regions that pretraining should not contain. Raises `InputError` where they are too few to evaluate.

    Regions of one slide or patient share a group and never classify each other.
    """

    pixels: NDArray[np.uint8]
    """(n, S, S, 3)."""
    labels: NDArray[np.int64]
    """(n,), index into `class_names`."""
    groups: tuple[str, ...]
    class_names: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Name of each region; default: its number."""
    problems: tuple[Problem, ...] = ()
    """Rows of the table that could not be used."""
    source: str = "the probe"
    """Source of the regions, for messages."""

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
            groups = {group for group, label in zip(self.groups, self.labels, strict=True) if label == c}
            if len(groups) < 2:
                count = int((self.labels == c).sum())
                raise InputError(
                    f"{self.source}: class {name!r} has {count} regions of {len(groups)} case; regions of one case do "
                    "not classify each other, so a class needs two cases at least: add cases or remove the class"
                )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def chance(self) -> float:
        """Balanced accuracy of random guessing."""
        return 1 / len(self.class_names)


def read_probe(csv: str | Path, side_px: int) -> Probe:
    """Reads labelled regions from a CSV with columns path, label and case_id.

    case_id is needed where several regions are of one patient or slide. Without it every region is a separate case,
    and metrics are too high where that is not so. A path (relative to the CSV, or absolute) is an image or a slide of
    at most 4,096 px per side. Its central square is resized to `side_px`; its resolution is ignored. A row that cannot
    be used is one of `Probe.problems`. `InputError`: no such table or columns, no usable row, or too few (see
    `Probe`), patients or classes that differ in spelling only.
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
    """Reads the region of a row, uint8 (S, S, 3)."""
    from PIL import Image

    from longvit.slides.reader import open_slide

    if not row.get("path"):
        raise InputError(f"{csv}, line {line}: no path")
    path = Path(row["path"]) if Path(row["path"]).is_absolute() else csv.parent / row["path"]
    with open_slide(path) as slide:
        width, height = slide.size_px
        if max(width, height) > MAX_PROBE_PX:
            raise InputError(
                f"{path}: {width} × {height} px; a labelled region may have {MAX_PROBE_PX} px per side: crop the "
                "labelled part"
            )
        short = min(width, height)
        pixels = slide.read_region((width - short) // 2, (height - short) // 2, 0, short, short)
        if slide.bad_tiles:
            raise InputError(f"{path}: {len(slide.bad_tiles)} tiles cannot be read")
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC))


def embed_regions(backbone: LongViT, pixels: Regions, batch_size: int = 16) -> NDArray[np.float32]:
    """Embeddings of regions uint8 (n, S, S, 3): the model's pooled tokens, float32 (n, D), not normalised.

    The model runs in eval mode without gradients, under the caller's autocast, and keeps its own mode. A model sharded
    over ranks takes its strip of each region, and all its ranks must call.
    """
    import torch

    from longvit.parallel.shard import ShardedLongViT

    side_px = len(pixels[0])
    first, end = backbone.rows_px(side_px) if isinstance(backbone, ShardedLongViT) else (0, side_px)
    was_training = backbone.training
    backbone.eval()
    batches = []
    try:
        with torch.no_grad():
            for start in range(0, len(pixels), batch_size):
                images = np.stack(list(pixels[start : start + batch_size]))[:, first:end]
                tokens = backbone.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
                batches.append(backbone.forward_head(tokens, pre_logits=True).float().cpu().numpy())
    finally:
        backbone.train(was_training)
    return np.concatenate(batches)


def colour_features(pixels: Regions) -> NDArray[np.float64]:
    """Mean and standard deviation of red, green, blue of each region, (n, 6).

    Each column is standardised over the regions, since the k-NN compares directions."""
    rows = []
    for region in pixels:
        x = np.asarray(region).reshape(-1, 3)
        rows.append(np.concatenate([x.mean(0), x.std(0)]))
    x = np.stack(rows)
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)


def probe_metrics(features: NDArray[np.floating], probe: Probe) -> dict[str, float]:
    """Metrics of the probe's features (n, D): `knn`, `knn_balanced`, `linear`, `linear_balanced`, `linear_auc`."""
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
    """Metrics of the training loop: `rankme` and `feature_std` of `monitored`, and `probe_metrics` of a probe.

    `monitored`: uint8 (n, S, S, 3), the same ones at every call, two at least; RankMe is at most n.
    """
    features = embed_regions(backbone, monitored, batch_size)
    values = {"rankme": rankme(features), "feature_std": feature_std(features)}
    if probe is not None:
        values |= probe_metrics(embed_regions(backbone, probe.pixels, batch_size), probe)
    return values


def control_metrics(
    untrained: LongViT,
    probe: Probe | None,
    monitored: Regions,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Metrics of the controls: `random_start` (the untrained network) and `mean_colour` (of the probe)."""
    controls = {"random_start": metrics(untrained, probe, monitored, batch_size)}
    if probe is not None:
        controls["mean_colour"] = probe_metrics(colour_features(probe.pixels), probe)
    return controls
