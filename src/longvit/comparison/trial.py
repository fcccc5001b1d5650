"""A cell of the table: one system, trained on one fold and evaluated on it.

OUT/<system>/fold_<name>/
    checkpoints/       while it is in work; goes when the cell is done
    outputs.csv        the logits of val and test, as a fine-tuning writes them (tasks/outputs.py)
    attention.h5       the scores of the evaluated bags' tiles, where the system has some (attention.py)
    model.safetensors  the weights after the last epoch, with what was fitted on the training fold
    history.csv        a row per epoch
    metrics.json       figures, seconds, memory; written last, so it marks a finished cell
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longvit.baselines.reference_training import SUBTYPING, SUBTYPING_CLAM, SURVIVAL, PublishedTraining, Steps
from longvit.baselines.system import System, create_system, system_class
from longvit.comparison.bag_cohort import BagCohort
from longvit.comparison.bags import BagBatch, Bags, TrainingBags
from longvit.comparison.reference_methods import ReferenceMethod
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import SystemSpec
from longvit.comparison.tile_scores import write_attention
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, assign
from longvit.errors import InputError
from longvit.files import make_folder, write_bytes, write_text
from longvit.finetuning.crossval import replace_splits
from longvit.finetuning.outputs import write_logits
from longvit.finetuning.prepare_cohort import EVALUATED, labels_digest
from longvit.finetuning.results import best_val, leaks, without_nan, write_history
from longvit.json_file import read_made
from longvit.tasks.task import Predictions, Task, task_class
from longvit.training.checkpoint import refuse_other_settings
from longvit.training.loop import train
from longvit.training.resource_usage import Costs
from longvit.training.settings import TrainSettings

if TYPE_CHECKING:
    from longvit.device import Device

METRICS = "metrics.json"


@dataclass(frozen=True)
class FoldSplit:
    """A fold of a study: a row per bag, with its split, and the task bound to them."""

    fold: Fold
    cohort: Cohort
    task: Task

    @property
    def evaluated(self) -> str:
        """test, or val where the fold has no test."""
        return "test" if self.cohort.split("test") else "val"


def bags_of_fold(bag_cohort: BagCohort, fold: Fold, settings: ComparisonSettings) -> FoldSplit:
    """`InputError`: a patient on two sides (unless allowed), nobody to train on or to evaluate, a class that no
    training bag has."""
    cohort = assign(replace_splits(bag_cohort.cohort), fold, allow_leak=settings.allow_leak)
    cohort = replace(cohort, rows=bag_cohort.unit_rows(cohort.rows))
    if not any(cohort.split(split) for split in EVALUATED):
        raise InputError(f"{fold.where()}: no bag of val or test; nothing could be evaluated")
    task = task_class(settings.task)(cohort, settings.of_task())
    task.check_training(cohort.split("train"), f" of {fold.where()}")
    return FoldSplit(fold, cohort, task)


def published_training(spec: SystemSpec, settings: ComparisonSettings) -> PublishedTraining:
    """The loop that the system was published with, for the task; with what `settings` say otherwise."""
    if task_class(settings.task).has_classes:
        found = SUBTYPING_CLAM if spec.system == "clam_sb" else SUBTYPING
    else:
        found = SURVIVAL
    bags = settings.bags_per_step or found.steps.bags
    divisor = found.steps.divisor if settings.bags_per_step is None else float(bags)
    return replace(
        found,
        steps=Steps(bags, divisor, settings.rest or found.steps.rest),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        seed=settings.seed,
        balanced=settings.balanced,
    )


def system_settings(spec: SystemSpec, bag_cohort: BagCohort, settings: ComparisonSettings) -> dict[str, Any]:
    """What `settings.set` says of the system; LongNet's positions step by the tiles of this study."""
    given = dict(settings.of_systems.get(spec.system, {}))
    names = {field.name for field in fields(system_class(spec.system).Settings)}
    if spec.system == "longnet" and bag_cohort.tile_level0_px is not None and "tile_px" in names:
        given.setdefault("tile_px", max(1, round(bag_cohort.tile_level0_px)))
    return given


def make_system(spec: SystemSpec, bag_cohort: BagCohort, task: Task, settings: ComparisonSettings) -> System:
    """With random weights from the seed; not fitted."""
    torch.manual_seed(settings.seed)
    return create_system(
        spec.system,
        in_dim=bag_cohort.width,
        outputs=len(task.output_names),
        task="subtyping" if task.has_classes else "survival",
        omics=bag_cohort.omic_shape(spec),
        fusion=spec.fusion,  # type: ignore[arg-type]
        **system_settings(spec, bag_cohort, settings),
    )


def facts_of(
    bag_cohort: BagCohort, fold_split: FoldSplit, spec: SystemSpec, settings: ComparisonSettings
) -> dict[str, Any]:
    """What decides a cell, as JSON: it goes on, or counts as finished, only with the same."""
    return {
        **json.loads(json.dumps(settings.result_settings())),
        "training": asdict(published_training(spec, settings)),
        "system": spec.name,
        "settings of the system": system_settings(spec, bag_cohort, settings),
        "cohort": fold_split.cohort.fingerprint(),
        "answers": labels_digest(fold_split.cohort, fold_split.task),
        "features": bag_cohort.digest(),
    }


_KINDS = {
    **dict.fromkeys(("system", "evaluated", "figure"), str),
    **dict.fromkeys(("splits", "training", "decided_by"), dict),
    **{f"training.{name}": float | int | None for name in ("seconds", "cpu_seconds", "peak_memory_mib")},
    "training.parameters": int,
    "best_val": dict | None,
}


def finished(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished cell; `InputError` where it was started otherwise."""
    try:
        found = read_made(folder / METRICS, _KINDS)
        of = found["splits"].get(found["evaluated"])
        if not isinstance(of, dict) or not isinstance(of.get(found["figure"]), int | float | None):
            raise TypeError("the figures of the evaluated split")
        decided_by = found["decided_by"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / METRICS}: damaged ({error}); remove the folder {folder} to have it made anew"
        ) from error
    refuse_other_settings(decided_by, facts, folder)
    return found


def run_trial(
    bag_cohort: BagCohort,
    fold_split: FoldSplit,
    spec: SystemSpec,
    settings: ComparisonSettings,
    folder: Path,
    device: Device,
    *,
    epoch_done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Fits, trains, evaluates; → what metrics.json holds. A cell that was interrupted goes on behind its last
    checkpoint.

    Raises whatever a system, a bag or the loop raises: the caller makes a row of it.
    """
    make_folder(folder)
    task, cohort = fold_split.task, fold_split.cohort
    training = published_training(spec, settings)
    bags = {
        split: Bags(bag_cohort, cohort.split(split), spec, device.device)
        for split in ("train", *EVALUATED)
        if cohort.split(split)
    }
    costs = Costs(device.device)
    model = make_system(spec, bag_cohort, task, settings).to(device.device)
    model.fit(bags["train"])
    for of_split in bags.values():
        of_split.prepare(model)
    prepared_s = costs.seconds

    def step(model: torch.nn.Module, batch: BagBatch) -> dict[str, torch.Tensor]:
        label = batch.targets["label"][0] if task.has_classes else None
        found = model(batch.bag, label)
        loss = found.total(task.losses(found.logits[None], batch.targets)[0])
        return {"loss": loss, "losses": loss[None]}

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for split in EVALUATED:
            if split in bags:
                p, _ = predict(model, bags[split], task)
                metrics |= {f"{split}_loss": p.loss, f"{split}_{task.metric}": task.main_metric(p)}
        return metrics

    facts = facts_of(bag_cohort, fold_split, spec, settings)
    outcome = train(
        model,
        TrainingBags.of(bags["train"], task, balanced=training.balanced, seed=training.seed),
        step,
        TrainSettings(
            epochs=training.epochs,
            accumulation=training.steps.bags,
            lr=training.lr,
            weight_decay=training.weight_decay,
            seed=training.seed,
            checkpoint_minutes=settings.checkpoint_minutes,
            keep_checkpoints=1,
        ),
        folder=folder / "checkpoints",
        evaluate=evaluate,
        facts=facts,
        progress=False,
        method=ReferenceMethod(training, len(bags["train"])),
        epoch_done=lambda _: epoch_done(),
    )
    found = {split: predict(model, bags[split], task) for split in EVALUATED if split in bags}
    cost = costs.cost(whole=outcome.resumed_at is None)
    predictions = {split: p for split, (p, _) in found.items()}
    write_logits(folder / "outputs.csv", {"model": predictions})
    evaluated, scores = found[fold_split.evaluated]
    if scores is not None:
        write_attention(folder / "attention.h5", bag_cohort, evaluated.rows, scores)
    write_history(folder / "history.csv", outcome.epochs)
    _write_weights(model, folder / "model.safetensors")
    metrics = without_nan(
        {
            "system": spec.name,
            "inputs": spec.inputs,
            "fold": fold_split.fold.name,
            "task": task.name,
            "figure": task.metric,
            "evaluated": fold_split.evaluated,
            "outputs": list(task.output_names),
            "splits": {
                split: {"bags": len(p.rows), **task.metrics(p), "loss": p.loss} for split, p in predictions.items()
            },
            "best_val": best_val(outcome.epochs, list(predictions), task.metric),
            "leaks": leaks(cohort.rows),
            "has_attention": scores is not None,
            "training": {
                "bags": len(bags["train"]),
                "tiles": bag_cohort.tile_count(bags["train"].rows) if spec.reads_tiles else 0,
                "epochs": training.epochs,
                "steps": outcome.steps,
                "train_loss": outcome.epochs[-1]["train_loss"],
                "skipped_steps": list(outcome.skipped_steps),
                "parameters": sum(p.numel() for p in model.parameters()),
                **cost,
                "fit_and_prepare_seconds": round(prepared_s, 3),
                "device": device.name,
            },
            "notes": list(cohort.notes),
            "decided_by": facts,
        }
    )
    write_text(folder / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return json.loads(json.dumps(metrics))


def predict(model: torch.nn.Module, bags: Bags, task: Task) -> tuple[Predictions, list[np.ndarray] | None]:
    """Logits of all bags, and the scores (N,) of each bag's tiles where the system has some; eval mode expected."""
    logits, scores = [], []
    with torch.no_grad():
        for bag in bags:
            found = model(bag)
            if not bool(torch.isfinite(found.logits).all()):
                raise InputError(f"{bag.name}: the system's output is not finite")
            logits.append(found.logits.double().cpu())
            if found.attention is not None and bag.features.ndim == 2:
                scores.append(found.attention.float().cpu().numpy())
    z = torch.stack(logits)
    targets = {name: torch.from_numpy(value) for name, value in task.targets(bags.rows).items()}
    loss = task.losses(z, targets).mean().item()
    return Predictions(bags.rows, z.numpy(), loss), scores if len(scores) == len(bags) else None


def load_what_all_need(device: torch.device) -> None:
    """Libraries that load at their first use; else the first cell would be charged for them."""
    import scipy.special  # noqa: F401
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401

    layer = torch.nn.Linear(2, 2, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, device=device)).sum().backward()
    optimizer.step()


def one_line(error: Exception) -> str:
    """Why a cell failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:300]}"


def _write_weights(model: System, path: Path) -> None:
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}))
