"""Trial: one system, trained and evaluated on one fold.

OUT/<system>/fold_<name>/
    checkpoints/       during the trial; removed at its end
    outputs.csv        logits of val and test, as a fine-tuning writes them (finetuning/results.py)
    attention.h5       tile scores of the evaluated bags, where the system has some (tile_scores.py)
    model.safetensors  weights after the last epoch, with what was fitted on the training fold
    history.csv        a row per epoch
    metrics.json       metrics, seconds, memory; written last, so it marks a finished trial
"""

from __future__ import annotations

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
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.folds import Fold, assign
from longvit.errors import InputError, one_line
from longvit.files import write_bytes
from longvit.finetuning.crossval import replace_splits
from longvit.finetuning.prepare_cohort import EVALUATED, labels_digest
from longvit.finetuning.results import best_val, leaks, write_history, write_logits
from longvit.tasks.task import Predictions, Task, task_class
from longvit.training.checkpoint import refuse_other_settings
from longvit.training.loop import train
from longvit.training.resource_usage import Costs
from longvit.training.run_folder import RunFolder, damaged_metrics, read_metrics
from longvit.training.settings import TrainSettings

if TYPE_CHECKING:
    from longvit.device import Device


@dataclass(frozen=True)
class FoldSplit:
    """Fold of a comparison: a row per bag with its split, and the task of these rows."""

    fold: Fold
    cohort: Cohort
    task: Task

    @property
    def evaluated(self) -> str:
        """Evaluated split: test, or val where the fold has no test."""
        return "test" if self.cohort.split("test") else "val"


def bags_of_fold(bag_cohort: BagCohort, fold: Fold, settings: ComparisonSettings) -> FoldSplit:
    """Bags of a fold, with their task.

    `InputError`: a patient on two sides (unless allowed), no bags to train on or to evaluate, a class that no training
    bag has.
    """
    cohort = assign(replace_splits(bag_cohort.cohort), fold, allow_leak=settings.allow_leak)
    if bag_cohort.per_patient:
        refuse_several_labels(task_class(settings.task)(cohort, settings), cohort)
    cohort = replace(cohort, rows=bag_cohort.unit_rows(cohort.rows))
    if not any(cohort.split(split) for split in EVALUATED):
        raise InputError(f"{fold.where()}: no bag of val or test; nothing could be evaluated")
    task = task_class(settings.task)(cohort, settings)
    task.check_training(cohort.split("train"), f" of {fold.where()}")
    return FoldSplit(fold, cohort, task)


def refuse_several_labels(task: Task, cohort: Cohort) -> None:
    """Raises `InputError` for a patient whose slides have different labels: its bag would have no label."""
    first: dict[str, SlideRow] = {}
    for row in cohort.rows:
        other = first.setdefault(row.case_id, row)
        if task.label_cells(other) != task.label_cells(row):
            raise InputError(
                f"{cohort.source}: slides {other.slide_id} and {row.slide_id} of patient {row.case_id} have different "
                f"labels; a bag of a patient has one: give --bags slide"
            )


def published_training(spec: SystemSpec, settings: ComparisonSettings) -> PublishedTraining:
    """Published training of the system for the task, with the changes of `settings`."""
    if not task_class(settings.task).per_patient:
        published = SUBTYPING_CLAM if spec.system == "clam_sb" else SUBTYPING
    else:
        published = SURVIVAL
    bags = settings.bags_per_step or published.steps.bags
    divisor = published.steps.divisor if settings.bags_per_step is None else float(bags)
    return replace(
        published,
        steps=Steps(bags, divisor, settings.rest or published.steps.rest),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        seed=settings.seed,
        balanced=settings.balanced,
    )


def system_settings(spec: SystemSpec, bag_cohort: BagCohort, settings: ComparisonSettings) -> dict[str, Any]:
    """Settings of the system in `settings.set`; LongNet's positions also get the tile size of the cohort."""
    given = dict(settings.system_settings.get(spec.system, {}))
    names = {field.name for field in fields(system_class(spec.system).Settings)}
    if spec.system == "longnet" and bag_cohort.tile_level0_px is not None and "tile_px" in names:
        given.setdefault("tile_px", max(1, round(bag_cohort.tile_level0_px)))
    return given


def make_system(spec: SystemSpec, bag_cohort: BagCohort, task: Task, settings: ComparisonSettings) -> System:
    """System with random weights of the seed, not fitted."""
    torch.manual_seed(settings.seed)
    return create_system(
        spec.system,
        in_dim=bag_cohort.width,
        outputs=len(task.output_names),
        task="subtyping" if task.outputs_are_classes else "survival" if task.name == "survival" else "other",
        omics=bag_cohort.omic_shape(spec),
        fusion=spec.fusion,  # type: ignore[arg-type]
        **system_settings(spec, bag_cohort, settings),
    )


def resume_key(
    bag_cohort: BagCohort, fold_split: FoldSplit, spec: SystemSpec, settings: ComparisonSettings
) -> dict[str, Any]:
    """Everything that decides a trial, as JSON: a trial resumes, or counts as finished, only with the same."""
    return {
        **settings.result_settings(),
        "training": asdict(published_training(spec, settings)),
        "system": spec.name,
        "settings of the system": system_settings(spec, bag_cohort, settings),
        "cohort": fold_split.cohort.fingerprint(),
        "answers": labels_digest(fold_split.cohort, fold_split.task),
        "features": bag_cohort.digest(),
        **({"slides": bag_cohort.slides_digest()} if spec.reads_pixels else {}),
    }


_KINDS = {
    **dict.fromkeys(("system", "evaluated", "figure"), str),
    **dict.fromkeys(("splits", "training", "decided_by"), dict),
    **{f"training.{name}": float | int | None for name in ("seconds", "cpu_seconds", "peak_memory_mib")},
    "training.parameters": int,
    "best_val": dict | None,
}


def read_trial(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Metrics of a finished trial, None of another; `InputError` where it was started with another `resume_key`."""
    if (metrics := read_metrics(folder, _KINDS)) is None:
        return None
    split = metrics["splits"].get(metrics["evaluated"])
    if not isinstance(split, dict) or not isinstance(split.get(metrics["figure"]), int | float | None):
        raise damaged_metrics(folder, "the metrics of the evaluated split")
    refuse_other_settings(metrics["decided_by"], key, folder)
    return metrics


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
    """Fits, trains and evaluates a trial, or resumes it from its last checkpoint; returns the content of metrics.json.

    Raises any error of a system, a bag or the loop.
    """
    run_folder = RunFolder(folder)
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
    for split_bags in bags.values():
        split_bags.prepare(model)
    prepared_s = costs.seconds

    def step(model: torch.nn.Module, batch: BagBatch) -> dict[str, torch.Tensor]:
        label = batch.targets["label"][0] if task.outputs_are_classes else None
        prediction = model(batch.bag, label)
        loss = prediction.total(task.losses(prediction.logits[None], batch.targets)[0])
        return {"loss": loss, "losses": loss[None]}

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for split in EVALUATED:
            if split in bags:
                p, _ = predict(model, bags[split], task)
                metrics |= {f"{split}_loss": p.loss, f"{split}_{task.metric}": task.main_metric(p)}
        return metrics

    key = resume_key(bag_cohort, fold_split, spec, settings)
    trained = train(
        model,
        TrainingBags.for_task(bags["train"], task, balanced=training.balanced, seed=training.seed),
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
        resume_key=key,
        progress=False,
        method=ReferenceMethod(training, len(bags["train"])),
        epoch_done=lambda _: epoch_done(),
    )
    predicted = {split: predict(model, bags[split], task) for split in EVALUATED if split in bags}
    cost = costs.cost(whole=trained.resumed_at is None)
    predictions = {split: p for split, (p, _) in predicted.items()}
    write_logits(folder / "outputs.csv", {"model": predictions})
    evaluated, scores = predicted[fold_split.evaluated]
    if scores is not None:
        write_attention(folder / "attention.h5", bag_cohort, evaluated.rows, scores)
    write_history(folder / "history.csv", trained.epochs)
    _write_weights(model, folder / "model.safetensors")
    metrics = run_folder.publish(
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
            "best_val": best_val(trained.epochs, list(predictions), task.metric),
            "leaks": leaks(cohort.rows),
            "has_attention": scores is not None,
            "training": {
                "bags": len(bags["train"]),
                "tiles": bag_cohort.tile_count(bags["train"].rows) if spec.reads_tiles else 0,
                "epochs": training.epochs,
                "steps": trained.steps,
                "train_loss": trained.epochs[-1]["train_loss"],
                "skipped_steps": list(trained.skipped_steps),
                "parameters": sum(p.numel() for p in model.parameters()),
                **cost,
                "fit_and_prepare_seconds": round(prepared_s, 3),
                "device": device.name,
            },
            "notes": list(cohort.notes),
            "decided_by": key,
        }
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return metrics


def predict(model: torch.nn.Module, bags: Bags, task: Task) -> tuple[Predictions, list[np.ndarray] | None]:
    """Logits of all bags, and the scores (N,) of each bag's tiles where the system has some; in eval mode."""
    logits, scores = [], []
    with torch.no_grad():
        for bag in bags:
            prediction = model(bag)
            if not bool(torch.isfinite(prediction.logits).all()):
                raise InputError(f"{bag.name}: the system's output is not finite")
            logits.append(prediction.logits.double().cpu())
            if prediction.attention is not None and bag.features.ndim == 2:
                scores.append(prediction.attention.float().cpu().numpy())
    z = torch.stack(logits)
    targets = {name: torch.from_numpy(value) for name, value in task.targets(bags.rows).items()}
    loss = task.losses(z, targets).mean().item()
    return Predictions(bags.rows, z.numpy(), loss), scores if len(scores) == len(bags) else None


def load_what_all_need(device: torch.device) -> None:
    """Loads the libraries that load at their first use, so that they do not count as time of the first trial."""
    import scipy.special  # noqa: F401
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401

    layer = torch.nn.Linear(2, 2, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, device=device)).sum().backward()
    optimizer.step()


def load_trial(
    bag_cohort: BagCohort, fold_split: FoldSplit, spec: SystemSpec, settings: ComparisonSettings, folder: Path
) -> System:
    """System of a finished trial, on the CPU in eval mode; `InputError` where its weights are absent or damaged."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    model = make_system(spec, bag_cohort, fold_split.task, settings)
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # a removed or damaged file, or weights of other settings
        raise InputError(f"{path}: {one_line(error, 200)}") from error
    return model.eval()


def _write_weights(model: System, path: Path) -> None:
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}))
