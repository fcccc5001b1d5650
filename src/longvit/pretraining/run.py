"""Slides -> regions -> a pretrained LongViT, with what shows that it learns (DINO; Caron et al. 2021; seed, table 5).

OUT/settings.yaml     all settings; `longvit pretrain --recipe OUT/settings.yaml` reads them back
OUT/run.json          what decides the result; the same command goes on, another is refused with the difference
OUT/problems.csv      slide, stage, error: slides and rows of the probe that were left out; absent if there are none
OUT/checkpoints/      where an interrupted run goes on: student, teacher, centre, moments
OUT/controls.json     the figures of the network before its first step, and of mean colour
OUT/steps.csv         a row per optimiser step: step, epoch, loss, lr, weight_decay, teacher_entropy, …, grad_norm
OUT/history.csv       a row per epoch: epoch, step, train_loss, rankme, feature_std, knn, linear, …
OUT/pictures/         principal components of the patches, nearest neighbours
OUT/teacher/          config.json, model.safetensors: what `longvit train --weights OUT/teacher` starts from
OUT/metrics.json      see `PretrainResult.metrics`; written anew after every epoch, `finished` at the end

steps.csv, history.csv, pictures, teacher and metrics.json are written anew now and then while the run goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.figure import only_plots
from longvit.files import make_folder, write_text
from longvit.finetuning.results import without_nan, write_history
from longvit.pretraining.monitor_regions import MonitorRegions, read_monitor_regions
from longvit.pretraining.pretrain_result import PretrainResult, finished, read_metrics
from longvit.pretraining.settings import PretrainSettings
from longvit.pretraining.starting_networks import backbone_config, start_from
from longvit.training.run_folder import claim, exclusive_lock

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
    """Trains on random regions of the slides. Started again with the same slides and settings it goes on where it was,
    to the same bits; a finished run returns at once.

    `probe`: a CSV of labelled regions (path, label, case_id) that are looked at after every `probe_every` epochs and
    never trained on. `ranks`: the processes that share the work; each calls with the same arguments, the first one
    writes. `show`: called with the folder when its files were written anew, while the run goes on and at the end (the
    report).

    Raises `InputError` in one line: other settings than the folder was started with, no slide that can be used, a
    device or weights that are not there, a NaN. A slide that cannot be used stands in problems.csv.

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
    from longvit.config import settings_yaml
    from longvit.parallel.ranks import ALONE
    from longvit.pretraining.probes import read_probe
    from longvit.pretraining.regions.regions import find_regions

    ranks, folder = ranks or ALONE, Path(out_dir)
    config = backbone_config(settings)
    if ranks.is_first:
        make_folder(folder)
    with ranks.busy("looks at the slides"):
        regions = find_regions(slides, settings, settings.seed, progress=ranks.is_first)
    labelled = None if probe is None else read_probe(probe, settings.global_px)
    facts = {"regions": regions.fingerprint}
    per_forward = 0
    former = None
    if ranks.is_first:
        per_forward = claim(
            folder,
            {**settings.result_settings(), **facts},
            settings.regions_per_forward(config.patch_px, ranks.data_ranks),
        )
        former = finished(folder)
        problems = (*regions.problems, *(labelled.problems if labelled is not None else ()))
        if former is None:
            write_problems(folder / PROBLEMS_CSV, problems)
    per_forward = ranks.from_first(per_forward)
    if (metrics := ranks.from_first(None if former is None else former.metrics)) is not None:
        return former or PretrainResult(folder, metrics, was_finished=True)
    with exclusive_lock(folder) if ranks.is_first else nullcontext():
        if ranks.is_first:
            write_text(folder / "settings.yaml", settings_yaml(settings))
        return _Pretraining(regions, labelled, config, settings, folder, per_forward, ranks, show).run()


class _Pretraining:
    """One run, from regions to files."""

    def __init__(
        self,
        regions: Regions,
        probe: Probe | None,
        config: LongViTConfig,
        settings: PretrainSettings,
        folder: Path,
        per_forward: int,
        ranks: Ranks,
        show: Callable[[Path], object] | None,
    ) -> None:
        import torch

        from longvit.device import pick_device, set_threads
        from longvit.dino.schedules import Schedules
        from longvit.pretraining.dino_method import DinoMethod, SelfDistillation
        from longvit.pretraining.regions.region_batches import RegionBatches
        from longvit.training.batches import steps_per_epoch

        set_threads(settings.threads)
        self.regions, self.probe, self.settings, self.folder = regions, probe, settings, folder
        self.ranks, self.show = ranks, show
        self.device = pick_device(settings.device)
        self.batches = RegionBatches(
            regions, settings, per_forward, settings.seed, settings.num_workers, settings.cache_dir
        )
        self.training = settings.training(per_forward)
        schedules = Schedules(settings, steps_per_epoch(self.batches, self.training), settings.batch_size)
        torch.manual_seed(settings.seed)
        model = SelfDistillation(config, settings)
        if settings.weights is not None:
            start_from(model, settings.weights)
        self.model = model.to(self.device.device)
        networks = self.model.networks
        self.student, self.teacher = networks.student.backbone, networks.teacher.backbone
        self.student.set_recompute(settings.recompute)
        self.method = DinoMethod(self.model, schedules, packed=settings.packed)
        self.monitored = MonitorRegions((), (), ())
        self.written_at_s = -math.inf
        self.started_at_s = time.monotonic()
        self.seconds_before = 0.0

    def run(self) -> PretrainResult:
        import torch

        from longvit.training.loop import train

        self.seconds_before = float(read_metrics(self.folder).get("seconds", 0.0))
        self.shard()
        with self.ranks.busy("reads the regions that are looked at"):
            self.monitored = read_monitor_regions(self.regions, self.settings.probe_regions, self.settings.global_px)
        self.controls()
        try:
            outcome = train(
                self.model,
                self.batches,
                self.method.step,
                self.training,
                folder=self.folder / "checkpoints",
                evaluate=self.evaluate,
                facts={"regions": self.regions.fingerprint},
                ranks=self.ranks,
                method=self.method,
                epoch_done=self.epoch_done,
            )
        except torch.OutOfMemoryError as error:
            n = self.batches.batch_size
            first = f"--forward-batch {max(1, n // 2)}" if n > 1 else "smaller crops"
            raise InputError(
                f"{self.device.name}: out of memory with the crops of {n} regions in a forward pass; try {first}, "
                "--recompute or --dtype bfloat16, each in a new folder"
            ) from error
        metrics = self.metrics(outcome)
        with self.ranks.busy("writes the results"):
            if self.ranks.is_first:
                self.write(outcome, metrics)
        return PretrainResult(self.folder, self.ranks.from_first(metrics), read_problems(self.folder / PROBLEMS_CSV))

    def shard(self) -> None:
        """Both backbones on this rank's strip of every crop, where a sequence has several ranks."""
        from longvit.parallel.shard import shard

        if (n := self.ranks.sequence_ranks) == 1:
            return
        rows = min(self.settings.global_px, self.settings.local_px) // self.student.config.patch_px
        if rows < n:
            raise InputError(f"--sequence-ranks {n}: the smallest crops have only {rows} rows of patches to share")
        for network in (self.model.networks.student, self.model.networks.teacher):
            network.backbone = shard(network.backbone, self.ranks.mesh)

    def controls(self) -> None:
        """controls.json: what the untrained network and mean colour reach, before the first step."""
        from longvit.pretraining.probes import control_metrics
        from longvit.training.loop import autocast

        path = self.folder / "controls.json"
        if self.ranks.from_first(path.exists()):
            return
        with autocast(self.device.device, self.settings.dtype):
            found = control_metrics(self.model.networks.teacher.backbone, self.probe, self.monitored.pixels)
        if self.ranks.is_first:
            write_text(path, json.dumps(without_nan(found), indent=1) + "\n")

    def evaluate(self, model: Any, epoch: int) -> dict[str, float]:
        """The loop's hook: what the teacher tells apart by now."""
        from longvit.pretraining.probes import metrics

        if (epoch + 1) % self.settings.probe_every and epoch + 1 < self.settings.epochs:
            return {}
        found = metrics(self.model.networks.teacher.backbone, self.probe, self.monitored.pixels)
        return dict(self.ranks.from_first(found))

    def problems(self) -> tuple[Problem, ...]:
        """Slides and rows of the probe that are not used, and regions that were replaced."""
        of_probe = () if self.probe is None else self.probe.problems
        return (*self.regions.problems, *of_probe, *self.batches.problems.values())

    def epoch_done(self, outcome: TrainResult) -> None:
        """Writes what there is so far, unless that was done a moment ago; the last epoch is `run`'s."""
        is_due = time.monotonic() - self.written_at_s >= 60 * self.settings.report_minutes
        if is_due and len(outcome.epochs) < self.settings.epochs:
            self.write(outcome, self.metrics(outcome))

    def metrics(self, outcome: TrainResult) -> dict[str, Any]:
        """What metrics.json holds."""
        from longvit.pretraining.collapse import alarms

        looked = [row for row in outcome.epochs if "rankme" in row]
        return without_nan(
            {
                "finished": len(outcome.epochs) == self.settings.epochs,
                "figures": dict(looked[-1]) if looked else {},
                "epochs": len(outcome.epochs),
                "steps": outcome.steps,
                "regions": self.regions.samples,
                "slides": len(self.regions.sources),
                "resolution": self.settings.region_mpp,
                "parameters": sum(p.numel() for p in self.teacher.parameters()),
                "device": self.device.name if self.ranks.world == 1 else f"{self.ranks.world} × {self.device.name}",
                "starts_from": "random weights" if self.settings.weights is None else str(self.settings.weights),
                "seconds": round(self.seconds_before + time.monotonic() - self.started_at_s, 1),
                "skipped_steps": list(outcome.skipped_steps),
                "alarms": [
                    f"{alarm.name}. {alarm.seen} What to do: {alarm.advice}"
                    for alarm in alarms(outcome.history, outcome.epochs, self.settings)
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
        )

    def write(self, outcome: TrainResult, metrics: dict[str, Any]) -> None:
        """All files of the run but its checkpoints, then the caller's report; metrics.json marks the end, so it goes
        last of the files."""
        from longvit.pretraining.token_images import write_plots

        folder, per_epoch = self.folder, self.method.schedules.steps_per_epoch
        steps = [
            {"step": i + 1, "epoch": i // per_epoch + 1, **{name: of[i] for name, of in outcome.history.items()}}
            for i in range(outcome.steps)
        ]
        write_history(folder / "steps.csv", steps)
        write_history(folder / "history.csv", outcome.epochs)
        looked = self.monitored
        pictures = folder / "pictures"
        with only_plots(pictures):
            write_plots(pictures, self.teacher, looked.pixels, looked.names, self.probe, groups=looked.slides)
        write_problems(folder / PROBLEMS_CSV, self.problems())
        self.teacher.save_pretrained(folder / "teacher")
        write_text(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if self.show is not None:
            self.show(folder)
        self.written_at_s = time.monotonic()
