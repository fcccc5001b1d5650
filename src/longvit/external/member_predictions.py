"""Predictions of every model of a run, and of its controls, for the slides of cohort B.

Canvases are made once, with the settings of the run, and read for each model as in the evaluation of a fine-tuning.
The ensemble of folds is the mean of the members' probabilities (survival: of their risks and survival curves), the
rule of deep ensembles (Lakshminarayanan et al. 2017): logits of two models have no common scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.annotations.settings import AnnotationSettings
from longvit.data.cohort import SlideRow
from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.external.source_run import Member, SourceRun
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatches
    from longvit.device import Device

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class ExternalLogits:
    """Logits of all members on the readable slides of cohort B. N slides, W outputs."""

    rows: tuple[SlideRow, ...]
    members: Mapping[str, np.ndarray]
    """Member -> float64 (N, W)."""
    controls: Mapping[str, Mapping[str, np.ndarray]]
    """Control -> member -> float64 (N, W); empty where the run does not store what they need."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


def predict_external(
    run: SourceRun,
    rows: Sequence[SlideRow],
    cache_dir: Path,
    device: Device,
    annotations: AnnotationSettings,
) -> ExternalLogits:
    """Makes the canvases of the rows, then predicts them with each model. A slide that fails becomes a problem.

    `annotations`: of cohort B. `InputError`: no slide can be read; annotations in the run but not here.
    """
    from longvit.data.canvas_cache import cache_canvases

    settings = run.first.finetune_settings
    if (settings.regions is None) != (annotations.regions is None):
        has, lacks = ("the run", "here") if annotations.regions is None else ("here", "the run")
        raise InputError(f"{run.folder}: annotations (--regions) limit the slides {has}, but not {lacks}; give both")
    canvas_settings = replace(settings.canvas(), annotations=annotations)
    cached = cache_canvases(rows, canvas_settings, cache_dir, workers=settings.num_workers)
    read = tuple(row for row in rows if row.slide_id in cached.paths)
    if not read:
        raise InputError(f"no slide can be read; the first: {cached.problems[0].error}")
    members: dict[str, np.ndarray] = {}
    controls: dict[str, dict[str, np.ndarray]] = {}
    notes: list[str] = []
    features: dict[str, dict[str, np.ndarray]] = {}
    with Progress("predicting", len(read) * len(run.members), unit="slides") as progress:
        for member in run.members:
            batches = _batches(member, read, cached.paths)
            members[member.name] = _logits(member, batches, read, device, progress)
            for name, z in _controls(member, batches, device, features, notes).items():
                controls.setdefault(name, {})[member.name] = z
    whole = {name: logits for name, logits in controls.items() if len(logits) == len(run.members)}
    return ExternalLogits(read, members, whole, cached.problems, tuple(dict.fromkeys(notes)))


def _batches(member: Member, rows: Sequence[SlideRow], paths: dict[str, Path]) -> CanvasBatches:
    from longvit.data.datasets import CanvasBatches, CanvasDataset

    s = member.finetune_settings
    dataset = CanvasDataset(rows, {}, paths, memory_mb=s.memory_mb)
    return CanvasBatches(dataset, batch_size=s.slides_per_forward(), shuffle=False, workers=s.num_workers)


def _logits(
    member: Member, batches: CanvasBatches, rows: Sequence[SlideRow], device: Device, progress: Progress
) -> np.ndarray:
    """Logits float64 (N, W) of a member; `InputError` names a slide whose output is not finite."""
    import torch

    from longvit.data.datasets import CanvasBatch
    from longvit.finetuning.predict import predict_all
    from longvit.model.pretrained import load_model
    from longvit.training.loop import autocast

    model = load_model(member.folder / "model").to(device.device)

    def compute(batch: CanvasBatch) -> torch.Tensor:
        out: torch.Tensor = model(batch.images.to(device.device, non_blocking=True))
        return out

    with autocast(device.device, member.finetune_settings.dtype):
        z = predict_all(batches, compute, progress=progress).numpy()
    if z.shape[1] != len(member.classes):
        raise InputError(f"{member.folder / 'model'}: {z.shape[1]} outputs, but the run has {len(member.classes)}")
    if (bad := np.flatnonzero(~np.isfinite(z).all(1))).size:
        raise InputError(f"slide {rows[bad[0]].slide_id}: the output of {member.name} is not finite")
    return z


def _controls(
    member: Member,
    batches: CanvasBatches,
    device: Device,
    computed: dict[str, dict[str, np.ndarray]],
    notes: list[str],
) -> dict[str, np.ndarray]:
    """Control -> logits (N, W); none where the run lacks the features of its training slides, which a note says.

    `computed`: features of the slides by the settings of the frozen encoders, which the folds share.
    """
    from longvit.finetuning.controls import control_features, frozen_encoders, read_training_features
    from longvit.training.loop import autocast

    settings = member.finetune_settings
    if not settings.controls:
        return {}
    trained = read_training_features(member.folder)
    if trained is None or member.slides is None:
        notes.append("the controls are not computed: the run is of an older version, without what they need")
        return {}
    if settings.weights is not None and not Path(settings.weights).exists() and "frozen_weights" in trained:
        from longvit.model.pretrained import shipped_names

        if str(settings.weights) not in shipped_names():
            notes.append(f"the controls are not computed: the starting weights {settings.weights} are missing")
            return {}
    key = f"{settings.model} {settings.weights} {settings.seed} {len(member.classes)}"
    if key not in computed:
        encoders = {name: e.to(device.device) for name, e in frozen_encoders(settings, member.classes).items()}
        with autocast(device.device, settings.dtype):
            computed[key] = control_features(batches, encoders)
    features = computed[key]
    train = member.slides.cohort(()).split("train")
    result = {}
    for name, of_b in features.items():
        x = trained.get(name)
        if x is not None and x.shape == (len(train), of_b.shape[1]):
            result[name] = member.task.control(x, train, {"test": of_b})["test"]
    return result
