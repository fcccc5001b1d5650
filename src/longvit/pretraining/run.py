"""Pretraining without labels: slides -> regions -> a pretrained LongViT and its metrics (DINO: the paper, table 5).

OUT/settings.yaml     all settings; `longvit pretrain --recipe OUT/settings.yaml` reads them
OUT/run.json          settings that decide the result; the same command resumes, others are refused with the difference
OUT/problems.csv      slide, stage, error: slides and rows of the probe that were left out; absent if there are none
OUT/checkpoints/      checkpoints from which an interrupted run resumes: student, teacher, centre, moments
OUT/controls.json     metrics of the network before its first step, and of mean colour
OUT/steps.csv         a row per optimiser step: step, epoch, loss, lr, weight_decay, teacher_entropy, …, grad_norm
OUT/history.csv       a row per epoch: epoch, step, train_loss, rankme, feature_std, knn, linear, …
OUT/pictures/         plots: principal components of the patches, nearest neighbours
OUT/teacher/          config.json, model.safetensors: `longvit train --weights OUT/teacher` starts from it
OUT/metrics.json      see `PretrainResult`; `finished` is true at the end

The files from steps.csv on are also written during the run, at most every `report_minutes`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.figure import only_plots
from longvit.files import write_text
from longvit.finetuning.results import write_history
from longvit.json_file import without_nan
from longvit.pretraining.monitor_regions import MonitorRegions, read_monitor_regions
from longvit.pretraining.pretrain_result import METRIC_KINDS, PretrainResult, read_result
from longvit.pretraining.settings import PretrainSettings
from longvit.pretraining.starting_networks import backbone_config
from longvit.training.run_folder import RunFolder, read_metrics

if TYPE_CHECKING:
    from longvit.model.longvit import LongViTConfig
    from longvit.parallel.ranks import Ranks
    from longvit.pretraining.probes import Probe
    from longvit.pretraining.regions.regions import Regions
    from longvit.training.loop import TrainResult

__all__ = ["PretrainResult", "PretrainSettings", "pretrain"]


def pretrain(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    settings: PretrainSettings,
    *,
    probe: str | Path | None = None,
    ranks: Ranks | None = None,
    show: Callable[[Path], object] | None = None,
) -> PretrainResult:
    """Trains on random regions of the slides.

    With the same slides and settings an interrupted run resumes to the same bits, and a finished run returns at once.

    - `probe`: a CSV of labelled regions (path, label, case_id), evaluated every `probe_every` epochs, never trained on
    - `ranks`: the processes of the run; each calls with the same arguments, the first one writes
    - `show`: called with the folder when its files were written, during the run and at the end (the report)

    Raises `InputError` in one line: settings other than those of the folder, no usable slide, a device or weights that
    do not exist, a NaN. A slide that cannot be used is listed in problems.csv.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> settings = longvit.PretrainSettings(
    ...     model="longvit_tiny_patch32", global_px=64, local_px=32, per_slide=4, epochs=1, batch_size=4, lr_batch=4,
    ...     warmup_epochs=0, prototypes=32, probe_regions=8, num_workers=0, device="cpu",
    ... )
    >>> result = longvit.pretrain(slides, "runs/dino", settings)
    >>> longvit.load_model("runs/dino/teacher").config.image_px
    64
    """
    from longvit.parallel.ranks import ALONE
    from longvit.pretraining.probes import read_probe
    from longvit.pretraining.regions.regions import find_regions

    ranks = ranks or ALONE
    config = backbone_config(settings)
    folder = RunFolder(out_dir, ranks)
    with ranks.busy("inspects the slides"):
        regions = find_regions(slides, settings, settings.seed, annotations=settings, progress=ranks.is_first)
    labelled = None if probe is None else read_probe(probe, settings.global_px)
    per_forward = folder.open(
        {**settings.result_settings(), "regions": regions.fingerprint},
        settings.regions_per_forward(config.patch_px, ranks.data_ranks),
    )
    former = None
    if ranks.is_first and (former := read_result(folder.path)) is None:
        problems = (*regions.problems, *(labelled.problems if labelled is not None else ()))
        write_problems(folder.path / PROBLEMS_CSV, problems)
    if (former := folder.from_first(former, PretrainResult)) is not None:
        return former
    with folder.locked():
        folder.write_settings(settings)
        return _Pretraining(regions, labelled, config, settings, folder, per_forward, ranks, show).run()


class _Pretraining:
    """State of one pretraining, from regions to files."""

    def __init__(
        self,
        regions: Regions,
        probe: Probe | None,
        config: LongViTConfig,
        settings: PretrainSettings,
        folder: RunFolder,
        per_forward: int,
        ranks: Ranks,
        show: Callable[[Path], object] | None,
    ) -> None:
        import torch

        from longvit.device import pick_device, set_threads
        from longvit.dino.schedules import Schedules
        from longvit.pretraining.objectives import make_objective
        from longvit.pretraining.regions.region_batches import RegionBatches
        from longvit.training.batches import steps_per_epoch

        set_threads(settings.threads)
        self.regions, self.probe, self.settings = regions, probe, settings
        self.run_folder, self.folder = folder, folder.path
        self.ranks, self.show = ranks, show
        self.device = pick_device(settings.device)
        self.batches = RegionBatches(
            regions, settings, per_forward, settings.seed, settings.num_workers, settings.cache_dir
        )
        self.training = settings.training(per_forward)
        self.steps_per_epoch = steps_per_epoch(self.batches, self.training)
        schedules = Schedules(settings, self.steps_per_epoch, settings.batch_size)
        torch.manual_seed(settings.seed)
        self.objective = make_objective(config, settings, schedules)
        self.objective.model.to(self.device.device)
        self.objective.trained.set_recompute(settings.recompute)
        self.monitored = MonitorRegions((), (), ())
        self.written_at_s = -math.inf
        self.started_at_s = time.monotonic()
        self.seconds_before = 0.0

    def run(self) -> PretrainResult:
        """Trains, evaluates and writes the results."""
        from longvit.training.loop import train
        from longvit.training.out_of_memory import out_of_memory_advice

        self.seconds_before = float((read_metrics(self.folder, METRIC_KINDS) or {}).get("seconds", 0.0))
        self.shard()
        with self.ranks.busy("reads the monitored regions"):
            self.monitored = read_monitor_regions(self.regions, self.settings.probe_regions, self.settings.global_px)
        self.objective.prepare(self.monitored.pixels)
        self.controls()
        n = self.batches.batch_size
        with out_of_memory_advice(self.device.name, f"the crops of {n} regions", n, smaller="smaller crops"):
            trained = train(
                self.objective.model,
                self.batches,
                self.objective.method.step,
                self.training,
                folder=self.folder / "checkpoints",
                evaluate=self.evaluate,
                resume_key={"regions": self.regions.fingerprint},
                ranks=self.ranks,
                method=self.objective.method,
                epoch_done=self.epoch_done,
            )
        result = None
        with self.ranks.busy("writes the results"):
            if self.ranks.is_first:
                metrics = self.write(trained)
                result = PretrainResult(self.folder, metrics, read_problems(self.folder / PROBLEMS_CSV))
        result = self.run_folder.from_first(result, PretrainResult)
        assert result is not None
        return result

    def shard(self) -> None:
        """Shards both backbones over the ranks of a sequence: each computes its strip of every crop."""
        from longvit.parallel.shard import shard
        from longvit.pretraining.dino_method import SelfDistillation

        model, n = self.objective.model, self.ranks.sequence_ranks
        if n == 1 or not isinstance(model, SelfDistillation):
            return
        rows = min(self.settings.global_px, self.settings.local_px) // self.objective.trained.config.patch_px
        if rows < n:
            raise InputError(f"--sequence-ranks {n}: the smallest crops have only {rows} rows of patches to share")
        for network in (model.networks.student, model.networks.teacher):
            network.backbone = shard(network.backbone, self.ranks.mesh)

    def controls(self) -> None:
        """Writes controls.json: metrics of the untrained network and of mean colour, before the first step."""
        from longvit.pretraining.probes import control_metrics
        from longvit.training.loop import autocast

        path = self.folder / "controls.json"
        if self.ranks.from_first(path.exists()):
            return
        with autocast(self.device.device, self.settings.dtype):
            controls = control_metrics(self.objective.evaluated, self.probe, self.monitored.pixels)
        if self.ranks.is_first:
            write_text(path, json.dumps(without_nan(controls), indent=1) + "\n")

    def evaluate(self, model: Any, epoch: int) -> dict[str, float]:
        """Evaluation hook of the loop: metrics of the teacher's embeddings."""
        from longvit.pretraining.probes import metrics

        if (epoch + 1) % self.settings.probe_every and epoch + 1 < self.settings.epochs:
            return {}
        values = metrics(self.objective.evaluated, self.probe, self.monitored.pixels)
        return dict(self.ranks.from_first(values))

    def problems(self) -> tuple[Problem, ...]:
        """Problems of the run: slides and rows of the probe that are not used, and regions that were replaced."""
        probe_problems = () if self.probe is None else self.probe.problems
        return (*self.regions.problems, *probe_problems, *self.batches.problems.values())

    def epoch_done(self, trained: TrainResult) -> None:
        """Epoch hook of the loop: writes the files of the run where they are due; `run` writes those of the end."""
        is_due = time.monotonic() - self.written_at_s >= 60 * self.settings.report_minutes
        if is_due and len(trained.epochs) < self.settings.epochs:
            self.write(trained)

    def metrics(self, trained: TrainResult) -> dict[str, Any]:
        """Content of metrics.json."""
        from longvit.pretraining.collapse import alarms

        evaluated = [row for row in trained.epochs if "rankme" in row]
        return {
            "finished": len(trained.epochs) == self.settings.epochs,
            "figures": dict(evaluated[-1]) if evaluated else {},
            "epochs": len(trained.epochs),
            "steps": trained.steps,
            "regions": self.regions.samples,
            "slides": len(self.regions.sources),
            "resolution": self.settings.region_mpp,
            "parameters": sum(p.numel() for p in self.objective.evaluated.parameters()),
            "device": self.device.name if self.ranks.world == 1 else f"{self.ranks.world} × {self.device.name}",
            "starts_from": "random weights" if self.settings.weights is None else str(self.settings.weights),
            "seconds": round(self.seconds_before + time.monotonic() - self.started_at_s, 1),
            "skipped_steps": list(trained.skipped_steps),
            "alarms": [
                f"{alarm.name}. {alarm.seen} What to do: {alarm.advice}"
                for alarm in alarms(trained.history, trained.epochs, self.settings)
            ],
            "left_out": [p.slide for p in self.regions.problems],
            "notes": list(self.regions.notes),
            "probe": None
            if self.probe is None
            else {
                "source": self.probe.source,
                "regions": len(self.probe),
                "cases": len(set(self.probe.groups)),
                "classes": list(self.probe.class_names),
            },
        }

    def write(self, trained: TrainResult) -> dict[str, Any]:
        """Writes all files of the run but its checkpoints, metrics.json last, then the caller's report.

        Returns the content of metrics.json.
        """
        from longvit.pretraining.token_images import write_plots

        folder, per_epoch = self.folder, self.steps_per_epoch
        metrics = self.metrics(trained)
        steps = [
            {"step": i + 1, "epoch": i // per_epoch + 1, **{name: v[i] for name, v in trained.history.items()}}
            for i in range(trained.steps)
        ]
        write_history(folder / "steps.csv", steps)
        write_history(folder / "history.csv", trained.epochs)
        monitored, plots, network = self.monitored, folder / "pictures", self.objective.evaluated
        with only_plots(plots):
            write_plots(plots, network, monitored.pixels, monitored.names, self.probe, groups=monitored.slides)
        write_problems(folder / PROBLEMS_CSV, self.problems())
        network.save_pretrained(folder / "teacher")
        published = self.run_folder.publish(metrics)
        if self.show is not None:
            self.show(folder)
        self.written_at_s = time.monotonic()
        return published
