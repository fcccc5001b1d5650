"""Fine-tuning: slides with labels -> a model, its predictions, metrics and plots.

OUT/settings.yaml     all settings; `longvit train --recipe OUT/settings.yaml` reads them
OUT/run.json          settings that decide the result; the same command resumes, others are refused with the difference
OUT/canvases/         the slides as canvases (TIFF), unless --cache-dir names another folder
OUT/problems.csv      slide, stage, error: slides that were left out or have holes; absent if there are none
OUT/outputs.csv       system, split, slide_id, output_0 …: the logits behind predictions.csv
OUT/controls.csv      the same for the controls; control_features.safetensors has their features of the training slides
OUT/slides.csv        case_id, slide_id, split, site, label, mpp, path and content hash of every slide that was used
OUT/checkpoints/      checkpoints from which an interrupted run resumes
OUT/predictions.csv   val and test, last epoch: case_id, slide_id, split, then the label and the prediction, in the
                      columns of the task (docs/tasks.md)
OUT/patients.csv      the same per patient, with the number of its slides
OUT/MODEL_CARD.md     what the model is, its data, metrics, limits and provenance
OUT/costs.json        seconds, cpu_seconds (both null where the run was interrupted) and peak_memory_mib of the training
                      and its evaluations, in the first process
OUT/metrics.json      see `FinetuneResult`; written last, so it marks a finished run
OUT/history.csv       a row per epoch: epoch, step, train_loss, val_loss, val_auc, …, test_auc, …
OUT/loss.png          and the task's plots: roc.png, kaplan_meier_<split>.png, confusion_<split>.png, scatter.png
OUT/model/            config.json, model.safetensors: `longvit.load_model(OUT/model)`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.annotations.area_file import annotations_fingerprint, check_annotations
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.problems import PROBLEMS_CSV, problem_rows, problems_of_rows, write_problems
from longvit.errors import InputError
from longvit.finetuning.prepare_cohort import EVALUATED, labels_digest, prepare_cohort
from longvit.finetuning.results import FinetuneResult, read_result
from longvit.finetuning.run_slides import SLIDES_CSV, write_run_slides
from longvit.finetuning.settings import FinetuneSettings
from longvit.finetuning.starting_model import starting_model
from longvit.progress import Progress
from longvit.tasks.task import Task
from longvit.training.run_folder import RunFolder

if TYPE_CHECKING:
    from longvit.data.canvas_cache import CachedCanvases
    from longvit.data.datasets import CanvasBatches, CanvasDataset, RowRange
    from longvit.model.longvit import LongViT
    from longvit.parallel.ranks import Ranks
    from longvit.tasks.task import Predictions

__all__ = ["FinetuneResult", "FinetuneSettings", "finetune"]


def finetune(
    cohort: Cohort, out_dir: str | Path, settings: FinetuneSettings, *, ranks: Ranks | None = None
) -> FinetuneResult:
    """Trains on the rows of split `train` and evaluates on `val` and `test` after every epoch.

    A cohort without splits is split by patient first (`settings.split`, `settings.seed`). With the same cohort and
    settings an interrupted run resumes to the same bits, and a finished run returns its result at once.

    `ranks`: the processes of the run (`longvit.parallel.all_ranks`). Each calls with the same arguments and gets the
    same result; the first one writes. The mesh may differ on resume. The result is that of one process up to the order
    of sums.

    Raises `InputError` in one line: settings other than those of the folder (the difference named); a cohort without
    training or evaluation rows; a training split that lacks a class; a slide in two splits under two names; a device or
    weights that do not exist; a NaN (slide or layer named); a folder that cannot be written or that another process
    uses. A slide that cannot be read is left out and listed in problems.csv.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=64, epochs=1, device="cpu")
    >>> result = longvit.finetune(cohort, "runs/first", settings)
    >>> result.model_dir.as_posix(), 0 <= result.metrics["splits"]["test"]["auc"] <= 1
    ('runs/first/model', True)
    """
    from longvit.parallel.ranks import ALONE

    ranks = ranks or ALONE
    cohort, task = prepare_cohort(cohort, settings)
    check_annotations(settings, [row.slide_id for row in cohort.rows])
    provenance = {
        "cohort": cohort.fingerprint(),
        "answers": labels_digest(cohort, task),
        "classes": list(task.output_names),
        **annotations_fingerprint(settings, [row.slide_id for row in cohort.rows]),
    }
    folder = RunFolder(out_dir, ranks)
    per_forward = folder.open(
        {**settings.result_settings(), **provenance}, settings.slides_per_forward(ranks.data_ranks)
    )
    former = folder.from_first(read_result(folder.path) if ranks.is_first else None, FinetuneResult)
    if former is not None:
        return former
    with folder.locked():
        folder.write_settings(settings)
        return _Finetuning(cohort, task, settings, folder, per_forward, ranks).run()


class _Finetuning:
    """State of one fine-tuning, from slides to files."""

    def __init__(
        self,
        cohort: Cohort,
        task: Task,
        settings: FinetuneSettings,
        folder: RunFolder,
        slides_per_forward: int,
        ranks: Ranks,
    ) -> None:
        from longvit.device import pick_device, set_threads

        set_threads(settings.threads)
        self.cohort, self.task, self.settings = cohort, task, settings
        self.run_folder, self.folder = folder, folder.path
        self.slides_per_forward, self.ranks = slides_per_forward, ranks
        self.row_range: RowRange | None = None
        self.device = pick_device(settings.device)
        self.datasets: dict[str, CanvasDataset] = {}
        self.last: dict[str, Predictions] = {}

    def run(self) -> FinetuneResult:
        """Trains, evaluates and writes the results."""
        from longvit.finetuning.predict import training_step
        from longvit.finetuning.results import write_results
        from longvit.training.loop import autocast, train
        from longvit.training.out_of_memory import out_of_memory_advice
        from longvit.training.resource_usage import Costs, write_cost

        settings, ranks, n = self.settings, self.ranks, self.slides_per_forward
        # Weights first: a wrong folder is reported before canvases are made.
        model = starting_model(settings, self.task.output_names).to(self.device.device)
        on_strips = self.sharded(model)
        canvases = self.read_slides()
        controls = self.controls() if settings.controls else {}
        costs = Costs(self.device.device)
        with out_of_memory_advice(
            self.device.name,
            f"{n} slides of {settings.side_px} px",
            n,
            smaller="a smaller --side-px",
            recompute="--recompute (then --offload)",
            otherwise=", or torchrun and more --sequence-ranks",
        ):
            trained = train(
                on_strips,
                self.batches("train", training=True),
                training_step(self.task, offload=settings.offload),
                settings.training(n),
                folder=self.folder / "checkpoints",
                evaluate=self.evaluate,
                resume_key={"slides_per_forward": n, "content of the slides": _content_digest(canvases)},
                ranks=ranks,
            )
        if not self.last:  # resumed after the last epoch: only the files are missing
            with autocast(self.device.device, settings.dtype):
                self.evaluate(on_strips, settings.epochs - 1)
        cost = costs.cost(whole=trained.resumed_at is None)
        result = None
        with ranks.busy("writes the results"):
            if ranks.is_first:
                write_cost(self.folder, cost)
                used = [row for dataset in self.datasets.values() for row in dataset.rows]
                write_run_slides(self.folder / SLIDES_CSV, self.task, used, canvases.identities)
                metrics = write_results(
                    self.run_folder,
                    self.cohort,
                    self.task,
                    settings,
                    model=model,
                    trained=trained,
                    predictions=self.last,
                    controls=controls,
                    rows=used,
                    left_out=[problem.slide for problem in canvases.problems if problem.is_left_out],
                    device=self.device.name if ranks.world == 1 else f"{ranks.world} × {self.device.name}",
                )
                result = FinetuneResult(self.folder, metrics, canvases.problems)
        result = self.run_folder.from_first(result, FinetuneResult)
        assert result is not None
        return result

    def sharded(self, model: LongViT) -> LongViT:
        """The model on this rank's strip of every canvas; the model itself where a slide has one rank."""
        from longvit.data.datasets import RowRange
        from longvit.parallel.shard import shard

        if self.ranks.sequence_ranks == 1:
            return model
        side_px = self.settings.side_px
        if side_px // model.config.patch_px < self.ranks.sequence_ranks:
            raise InputError(
                f"--sequence-ranks {self.ranks.sequence_ranks}: a canvas of {side_px} px has only "
                f"{side_px // model.config.patch_px} rows of patches to share"
            )
        on_strips = shard(model, self.ranks.mesh)
        self.row_range = RowRange(*on_strips.rows_px(side_px), side_px)
        return on_strips

    def read_slides(self) -> CachedCanvases:
        """Makes the canvases, and one dataset of them per split."""
        from longvit.data.canvas_cache import cache_canvases
        from longvit.data.datasets import CanvasDataset

        s = self.settings
        matches = self.matches()
        rows = [row for row in self.cohort.rows if row.split is not None]
        with self.ranks.busy("makes canvases"):  # leases divide them among the ranks
            canvases = cache_canvases(
                rows,
                s.canvas(),
                s.cache_dir or self.folder / "canvases",
                workers=s.num_workers,
            )
        canvases = self.from_first(canvases)
        if self.ranks.is_first:
            write_problems(self.folder / PROBLEMS_CSV, canvases.problems)
        read = [row for row in rows if row.slide_id in canvases.paths]
        self.check_read(read, canvases)
        names = [row.slide_id for row in self.cohort.rows]
        stratum_of = dict(zip(names, self.task.strata(self.cohort, s), strict=True))
        for split in ("train", *EVALUATED):
            if split_rows := [row for row in read if row.split == split]:
                self.datasets[split] = CanvasDataset(
                    split_rows,
                    self.task.targets(split_rows),
                    canvases.paths,
                    [stratum_of[row.slide_id] for row in split_rows],
                    [matches[row.slide_id] for row in split_rows] if matches else (),
                    memory_mb=s.memory_mb * len(split_rows) // len(read),
                )
        return canvases

    def matches(self) -> dict[str, str]:
        """slide_id -> value of the column `match_on`; empty where slides are not matched."""
        if (column := self.settings.match_on) is None:
            return {}
        for row in self.cohort.rows:
            if column not in row.extra_columns:
                raise InputError(
                    f"{self.cohort.source}: no column {column} for match_on; it has {', '.join(row.extra_columns)}"
                )
        return {row.slide_id: row.extra_columns[column] for row in self.cohort.rows}

    def from_first(self, canvases: CachedCanvases) -> CachedCanvases:
        """The first rank's canvases, on every rank: all train on the slides that the first rank can read."""
        if self.ranks.world == 1:
            return canvases
        paths = {name: str(path) for name, path in canvases.paths.items()}
        content = [paths, dict(canvases.identities), problem_rows(canvases.problems)]
        paths, identities, rows = self.ranks.from_first(content)
        return replace(
            canvases,
            paths={name: Path(path) for name, path in paths.items()},
            identities=identities,
            problems=problems_of_rows(rows),
        )

    def check_read(self, read: Sequence[SlideRow], canvases: CachedCanvases) -> None:
        """Raises `InputError` where the slides that can be read do not suffice to train and evaluate."""
        source = self.cohort.source
        lost = [problem for problem in canvases.problems if problem.is_left_out]
        after = f"; {len(lost)} slides cannot be read, the first: {lost[0].error}" if lost else ""
        if not (train := [row for row in read if row.split == "train"]):
            raise InputError(f"{source}: no slide of split train{after}")
        self.task.check_training(train, after)
        if not any(row.split in EVALUATED for row in read):
            raise InputError(f"{source}: no slide of split val or test{after}")
        first: dict[str, SlideRow] = {}
        for row in read:
            same = first.setdefault(canvases.identities[row.slide_id], row)
            if same.split != row.split and not self.settings.allow_leak:
                raise InputError(
                    f"{source}: slides {same.slide_id} ({same.split}) and {row.slide_id} ({row.split}) are the same "
                    f"file; keep one"
                )

    def batches(self, split: str, *, training: bool = False) -> CanvasBatches:
        """Batches of a split: shuffled and augmented for training, else in order."""
        from longvit.data.datasets import CanvasBatches

        s = self.settings
        return CanvasBatches(
            self.datasets[split],
            batch_size=self.slides_per_forward,
            shuffle=training,
            balanced=training and s.balanced,
            augmentation=s.augmentation if training else "none",
            seed=s.seed,
            workers=s.num_workers,
            row_range=self.row_range,
        )

    def evaluated(self) -> dict[str, CanvasBatches]:
        """Batches of the splits that are evaluated."""
        return {split: self.batches(split) for split in EVALUATED if split in self.datasets}

    def evaluate(self, model: Any, epoch: int) -> dict[str, float]:
        """Evaluation hook of the loop: metrics of val and test; keeps the predictions of the last epoch."""
        from longvit.finetuning.predict import predict

        metrics: dict[str, float] = {}
        for split, batches in self.evaluated().items():
            with Progress(f"evaluating on {split}", batches.samples, unit="slides", brief=True) as progress:
                p = predict(
                    self.task,
                    model,
                    batches,
                    batches.dataset.rows,
                    offload=self.settings.offload,
                    progress=progress,
                    ranks=self.ranks,
                )
            split_metrics = {"loss": p.loss, **self.task.metrics(p)}
            metrics |= {f"{split}_{name}": value for name, value in split_metrics.items()}
            self.last[split] = p
        return metrics

    def controls(self) -> dict[str, dict[str, Predictions]]:
        """Predictions of the controls; computed once and kept in controls.csv for a run that resumes."""
        from longvit.finetuning.controls import frozen_encoders, run_controls, write_training_features
        from longvit.finetuning.results import read_logits, write_logits
        from longvit.training.loop import autocast

        path = self.folder / "controls.csv"
        if self.ranks.from_first(path.exists()):
            return read_logits(path, self.cohort) if self.ranks.is_first else {}
        device = self.device.device
        encoders = frozen_encoders(self.settings, self.task.output_names)
        encoders = {name: self.sharded(encoder.to(device)) for name, encoder in encoders.items()}
        slides = sum(len(dataset) for dataset in self.datasets.values())
        with (
            autocast(device, self.settings.dtype),
            Progress("controls", slides, unit="slides", brief=True) as progress,
        ):
            results, features = run_controls(
                self.task, self.batches("train"), self.evaluated(), encoders, progress=progress, ranks=self.ranks
            )
        if self.ranks.is_first:
            write_training_features(self.folder, features)
            write_logits(path, results)
        return results


def _content_digest(canvases: CachedCanvases) -> str:
    """Hash of the slides' content hashes: a run resumes only with the same slides."""
    return hashlib.sha256(json.dumps(sorted(canvases.identities.items())).encode()).hexdigest()[:16]
