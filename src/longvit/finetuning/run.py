"""Slides with labels -> a fine-tuned model, its predictions, its figures, two pictures.

OUT/settings.yaml     all settings; `longvit train --recipe OUT/settings.yaml` reads them back
OUT/run.json          what decides the result; the same command goes on, another is refused with the difference
OUT/canvases/         the slides as canvases (TIFF), unless --cache-dir says otherwise
OUT/problems.csv      slide, stage, error: slides that were left out or have holes; absent if there are none
OUT/outputs.csv       system, split, slide_id, output_0 …: the logits behind predictions.csv, controls.csv those of the
                      controls (see outputs.py)
OUT/checkpoints/      where an interrupted run goes on
OUT/predictions.csv   val and test, last epoch: case_id, slide_id, split, then label, prob_<class> …, prediction, or
                      survival_months, event, risk, survival_<end of bin>_months …
OUT/costs.json        seconds, cpu_seconds (both null where the run was interrupted) and peak_memory_mib of the training
                      and its evaluations, in the first process
OUT/metrics.json      see `FinetuneResult.metrics`; written last, so it marks a finished run
OUT/history.csv       a row per epoch: epoch, step, train_loss, val_loss, val_auc, …, test_auc, …
OUT/loss.png          and the task's curves: roc.png
OUT/model/            config.json, model.safetensors: `longvit.load_model(OUT/model)`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.finetuning.finetune_result import FinetuneResult, finished, result_of_first
from longvit.finetuning.prepare_cohort import EVALUATED, labels_digest, prepare_cohort
from longvit.finetuning.starting_model import starting_model
from longvit.progress import Progress
from longvit.tasks.settings import FinetuneSettings
from longvit.tasks.task import Task
from longvit.training.run_folder import claim, exclusive_lock

if TYPE_CHECKING:
    from longvit.data.canvas_cache import CachedCanvases
    from longvit.data.datasets import CanvasBatches, CanvasDataset
    from longvit.model.longvit import LongViT
    from longvit.parallel.ranks import Ranks
    from longvit.tasks.task import Predictions

__all__ = ["FinetuneResult", "FinetuneSettings", "finetune"]


def finetune(
    cohort: Cohort, out_dir: str | Path, settings: FinetuneSettings, *, ranks: Ranks | None = None
) -> FinetuneResult:
    """Trains on the rows of split `train` and evaluates on `val` and `test` after every epoch.

    A cohort without splits is split by patient first (`settings.split`, `settings.seed`). Started again with the
    same cohort and settings it goes on where it was, to the same bits; a finished run returns its result at once.

    `ranks`: the processes that share the work (`longvit.parallel.all_ranks`); each calls with the same arguments and
    gets the same result, the first one writes. The number of ranks and their mesh may differ when a run goes on; the
    result is that of one process up to the order of sums.

    Raises `InputError` in one line: other settings than the folder was started with (shown), a cohort without
    training or without evaluation rows, a training split that lacks a class, a slide in two splits under two names, a
    device or weights that are not there, a NaN (slide or layer named), a folder that cannot be written to or in which
    another process is at work. A slide that cannot be read is left out and stands in problems.csv.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=64, epochs=1, device="cpu")
    >>> result = longvit.finetune(cohort, "runs/first", settings)
    >>> result.model_dir.as_posix(), 0 <= result.metrics["splits"]["test"]["auc"] <= 1
    ('runs/first/model', True)
    """
    from longvit.config import settings_yaml
    from longvit.parallel.ranks import ALONE

    ranks, folder = ranks or ALONE, Path(out_dir)
    cohort, task = prepare_cohort(cohort, settings)
    facts = {"cohort": cohort.fingerprint(), "answers": labels_digest(cohort, task), "classes": list(task.output_names)}
    former, slides_per_forward = None, 0
    if ranks.is_first:
        make_folder(folder)
        # Which slides share a forward pass is settled when a run begins, for whatever mesh it goes on on.
        slides_per_forward = claim(
            folder, {**settings.result_settings(), **facts}, settings.slides_per_forward(ranks.data_ranks)
        )
        former = finished(folder)
    if (result := result_of_first(former, folder, ranks)) is not None:
        return result
    slides_per_forward = ranks.from_first(slides_per_forward)
    with exclusive_lock(folder) if ranks.is_first else nullcontext():
        if ranks.is_first:
            write_text(folder / "settings.yaml", settings_yaml(settings))
        return _Finetuning(cohort, task, settings, folder, slides_per_forward, ranks).run()


class _Finetuning:
    """One run, from slides to files."""

    def __init__(
        self,
        cohort: Cohort,
        task: Task,
        settings: FinetuneSettings,
        folder: Path,
        slides_per_forward: int,
        ranks: Ranks,
    ) -> None:
        from longvit.device import pick_device, set_threads

        set_threads(settings.threads)
        self.cohort, self.task, self.settings, self.folder = cohort, task, settings, folder
        self.slides_per_forward, self.ranks = slides_per_forward, ranks
        self.strip_px: tuple[int, int, int] | None = None
        self.device = pick_device(settings.device)
        self.datasets: dict[str, CanvasDataset] = {}
        self.last: dict[str, Predictions] = {}

    def run(self) -> FinetuneResult:
        import torch

        from longvit.finetuning.results import write_results
        from longvit.training.loop import autocast, train
        from longvit.training.resource_usage import Costs, write_cost

        settings, ranks = self.settings, self.ranks
        # Weights first: a wrong folder should not be found out after an hour of making canvases.
        model = starting_model(settings, self.task.output_names).to(self.device.device)
        on_strips = self.sharded(model)
        canvases = self.read_slides()
        controls = self.controls() if settings.controls else {}
        costs = Costs(self.device.device)
        try:
            outcome = train(
                on_strips,
                self.batches("train", training=True),
                self.task.step,
                settings.training(self.slides_per_forward),
                folder=self.folder / "checkpoints",
                evaluate=self.evaluate,
                facts={
                    "slides_per_forward": self.slides_per_forward,
                    "content of the slides": _content(canvases),
                },
                ranks=ranks,
            )
        except torch.OutOfMemoryError as error:
            n = self.slides_per_forward
            first = f"--forward-batch {max(1, n // 2)}" if n > 1 else "a smaller --side-px"
            raise InputError(
                f"{self.device.name}: out of memory with {n} slides of {settings.side_px} px in a forward pass; "
                f"try {first}, --recompute (then --offload) or --dtype bfloat16, each in a new folder, or torchrun and "
                f"more --sequence-ranks"
            ) from error
        if not self.last:  # the run goes on behind its last epoch: only the files are missing
            with autocast(self.device.device, settings.dtype):
                self.evaluate(on_strips, settings.epochs - 1)
        cost = costs.cost(whole=outcome.resumed_at is None)
        result = None
        with ranks.busy("writes the results"):
            if ranks.is_first:
                write_cost(self.folder, cost)
                metrics = write_results(
                    self.folder,
                    self.cohort,
                    self.task,
                    settings,
                    model=model,
                    outcome=outcome,
                    predictions=self.last,
                    controls=controls,
                    train_rows=self.datasets["train"].rows,
                    left_out=[problem.slide for problem in canvases.problems if problem.is_left_out],
                    device=self.device.name if ranks.world == 1 else f"{ranks.world} × {self.device.name}",
                )
                result = FinetuneResult(self.folder, metrics, canvases.problems)
        result = result_of_first(result, self.folder, ranks)
        assert result is not None
        return result

    def sharded(self, model: LongViT) -> LongViT:
        """The model on this rank's strip of every canvas; the model itself where a slide has one rank."""
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
        self.strip_px = (*on_strips.rows_px(side_px), side_px)
        return on_strips

    def read_slides(self) -> CachedCanvases:
        """Makes the canvases, and of them one dataset per split."""
        from longvit.data.canvas_cache import CanvasSettings, cache_canvases
        from longvit.data.datasets import CanvasDataset

        s = self.settings
        rows = [row for row in self.cohort.rows if row.split is not None]
        with self.ranks.busy("makes canvases"):  # the ranks share them out by claims
            canvases = cache_canvases(
                rows,
                CanvasSettings(s.side_px, s.fit, s.reader, s.max_bad_tiles),
                s.cache_dir or self.folder / "canvases",
                workers=s.num_workers,
            )
        canvases = self.as_first_sees(canvases)
        if self.ranks.is_first:
            write_problems(self.folder / PROBLEMS_CSV, canvases.problems)
        read = [row for row in rows if row.slide_id in canvases.paths]
        self.check_read(read, canvases)
        names = [row.slide_id for row in self.cohort.rows]
        stratum_of = dict(zip(names, self.task.strata(self.cohort, s), strict=True))
        for split in ("train", *EVALUATED):
            if of_split := [row for row in read if row.split == split]:
                self.datasets[split] = CanvasDataset(
                    of_split,
                    self.task.targets(of_split),
                    canvases.paths,
                    [stratum_of[row.slide_id] for row in of_split],
                    memory_mb=s.memory_mb * len(of_split) // len(read),
                )
        return canvases

    def as_first_sees(self, canvases: CachedCanvases) -> CachedCanvases:
        """All ranks train on the same slides, also where one of them could not read what the others could."""
        if self.ranks.world == 1:
            return canvases
        problems = [[p.slide, p.stage, p.error] for p in canvases.problems]
        paths = {name: str(path) for name, path in canvases.paths.items()}
        paths, identities, problems = self.ranks.from_first([paths, dict(canvases.identities), problems])
        return replace(
            canvases,
            paths={name: Path(path) for name, path in paths.items()},
            identities=identities,
            problems=tuple(Problem(*problem) for problem in problems),
        )

    def check_read(self, read: Sequence[SlideRow], canvases: CachedCanvases) -> None:
        """What is left after the slides that cannot be read must still be a study."""
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
        """The slides of a split: shuffled and augmented for training, else as they are."""
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
            strip_px=self.strip_px,
        )

    def evaluated(self) -> dict[str, CanvasBatches]:
        """The splits that are evaluated."""
        return {split: self.batches(split) for split in EVALUATED if split in self.datasets}

    def evaluate(self, model: Any, epoch: int) -> dict[str, float]:
        """The loop's hook: figures of val and test; keeps the predictions of the last epoch."""
        metrics: dict[str, float] = {}
        for split, batches in self.evaluated().items():
            with Progress(f"evaluating on {split}", batches.samples, unit="slides", brief=True) as progress:
                p = self.task.predict(model, batches, batches.dataset.rows, progress=progress, ranks=self.ranks)
            of_split = {"loss": p.loss, **self.task.metrics(p)}
            metrics |= {f"{split}_{name}": value for name, value in of_split.items()}
            self.last[split] = p
        return metrics

    def controls(self) -> dict[str, dict[str, Predictions]]:
        """Computed once; controls.csv keeps them for a run that goes on."""
        from longvit.finetuning.outputs import read_logits, write_logits
        from longvit.tasks.controls import run_controls
        from longvit.training.loop import autocast

        path = self.folder / "controls.csv"
        if self.ranks.from_first(path.exists()):
            return read_logits(path, self.cohort) if self.ranks.is_first else {}
        device = self.device.device
        encoders = {"random_encoder": starting_model(self.settings, self.task.output_names, random=True)}
        if self.settings.weights is not None:
            encoders["frozen_weights"] = starting_model(self.settings, self.task.output_names)
        encoders = {name: self.sharded(encoder.to(device)) for name, encoder in encoders.items()}
        slides = sum(len(dataset) for dataset in self.datasets.values())
        with (
            autocast(device, self.settings.dtype),
            Progress("controls", slides, unit="slides", brief=True) as progress,
        ):
            results = run_controls(
                self.task, self.batches("train"), self.evaluated(), encoders, progress=progress, ranks=self.ranks
            )
        if self.ranks.is_first:
            write_logits(path, results)
        return results


def _content(canvases: CachedCanvases) -> str:
    """A hash of the slides' contents: a slide that changed, or is missing now, makes another run."""
    return hashlib.sha256(json.dumps(sorted(canvases.identities.items())).encode()).hexdigest()[:16]
