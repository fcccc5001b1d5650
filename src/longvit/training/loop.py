"""Training loop: accumulation, clipping, schedule, EMA, checkpoints. It does not depend on slides or tasks.

A run is a function of its settings, its batches and the seed. The batches of an epoch, and what is random in the
forward pass of each (drop path), are functions of (seed, epoch, number). The learning rate is a function of the step. A
checkpoint holds everything else (parameters, optimiser, history), taken between two optimiser steps. So a run that was
killed at any instant and resumed ends with the same bits as an uninterrupted one.

In a run of several ranks (`longvit.parallel`) the data axis of the mesh shards the batches of an optimiser step, and
the model computes one strip of each image. The gradient is that of one process on every mesh, so a checkpoint resumes
on another mesh. All ranks together skip a step or obey a signal; the first one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longvit.errors import InputError
from longvit.parallel.ranks import ALONE, Ranks
from longvit.parallel.watchdog import waiting
from longvit.progress import Progress
from longvit.training.batches import Batches, steps_per_epoch
from longvit.training.checkpoint import refuse_other_settings, write_checkpoint
from longvit.training.ema import ParameterAverage
from longvit.training.interruption import Interrupted, StopSignals
from longvit.training.method import FineTuning, TrainingMethod
from longvit.training.non_finite import (
    ADVICE,
    FIRST_SCALE,
    NonFiniteError,
    Seen,
    Verdict,
    agreed,
    judge,
    next_scale,
)
from longvit.training.optim import first_non_finite, named_parameters
from longvit.training.settings import TrainSettings
from longvit.training.state import RunState, checkpoint_of_first, pack, seed_forward, settings_of, unpack
from longvit.training.tensorboard import EventFiles

__all__ = ["Interrupted", "NonFiniteError", "TrainResult", "TrainSettings", "autocast", "train"]


Step = Callable[[nn.Module, Any], Mapping[str, torch.Tensor]]
"""step(model, batch) -> {"loss": mean over the batch's samples, further scalars for the history}.

Optional keys: "losses", one per sample, by which a sample with a NaN is named, and "statistics", a tensor of means over
the batch's samples. The training method gets the mean of "statistics" over all samples of the optimiser step."""
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""evaluate(model, epoch) -> metrics for the history, after every epoch; in eval mode, without gradients."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training; the model passed in holds the parameters."""

    steps: int
    """Number of optimiser steps."""
    history: dict[str, np.ndarray]
    """Per optimiser step: `loss`, `lr`, `grad_norm` (before clipping) and the scalars of `step`, float64 (steps,).
    A skipped step keeps its NaN or infinity."""
    epochs: tuple[dict[str, float], ...]
    """Per epoch: `epoch` (1 …), `step`, `train_loss` (mean over its finite steps) and the metrics of `evaluate`."""
    resumed_at: int | None = None
    """Step of the checkpoint from which this process resumed; None for a new run."""
    skipped: tuple[str, ...] = ()
    """Damaged checkpoints that were ignored."""
    skipped_steps: tuple[str, ...] = ()
    """Steps skipped for a non-finite loss or gradient: `epoch 1, step 3: the loss is nan on slide_13`."""


def train(
    model: nn.Module,
    batches: Batches,
    step: Step,
    settings: TrainSettings,
    *,
    folder: str | Path,
    evaluate: Evaluate | None = None,
    resume_key: Mapping[str, Any] | None = None,
    progress: bool = True,
    ranks: Ranks = ALONE,
    method: TrainingMethod | None = None,
    epoch_done: Callable[[TrainResult], None] | None = None,
) -> TrainResult:
    """Trains `model` in place, on its device, and returns the history.

    `folder` takes the checkpoints. Where it holds some, the run resumes from the newest valid one; a finished run
    returns at once. `resume_key`: JSON values beside `settings` that must be the same on resume (data, model). Seeds
    the global random states of torch, NumPy and Python before every forward pass.

    `ranks`: every rank calls with the same arguments. Where a sequence has several ranks, `model` computes a strip of
    the image (`longvit.parallel.shard`). `step` must return the same on all ranks of a sequence, `evaluate` on all
    ranks. The result is the same on every rank. Only the first rank reads and writes `folder`.

    `method`: the training method; left out, the paper's fine-tuning. `epoch_done`: called by the first rank after each
    epoch and its checkpoint with the result so far.

    With `settings.ema` the EMA is evaluated, and `model` holds it at the end; checkpoints keep both parameters. With
    `settings.tensorboard` event files are written to `folder`/tensorboard.

    A step with a NaN or an infinity in its loss or gradients changes neither parameters nor moments nor EMA. It is
    logged (samples, layer) and counted as a step. Raises `NonFiniteError` after `settings.max_bad_steps` of them in a
    row, and at once where a parameter is not finite. Raises `InputError` at a resume with other settings (the
    difference named), and for float16 on a device without it.

    SIGTERM, SIGINT and SIGUSR1 end the run after the current step and a checkpoint with `Interrupted`, a
    KeyboardInterrupt with `exit_code`. A second SIGINT ends it at once. Former handlers are restored afterwards.
    """
    if batches.samples < 1:
        raise InputError("no training samples")
    ranks.tensors_from_first(model.state_dict().values())
    method = method or FineTuning(settings, steps_per_epoch(batches, settings))
    optimizer = method.optimizer(model)
    folder = Path(folder)
    device = next(model.parameters()).device
    if settings.dtype == "float16" and not _has_float16(device):
        raise InputError(f"dtype float16: not on {device.type}; choose bfloat16 or float32")
    average = None if settings.ema is None else ParameterAverage(model, settings.ema)
    result_settings = {**settings.result_settings(), **(resume_key or {})}
    saved = checkpoint_of_first(folder, ranks)
    if saved is None:
        state = RunState(loss_scale=FIRST_SCALE if settings.dtype == "float16" else 1.0)
    else:
        refuse_other_settings(settings_of(saved), result_settings, folder)
        state = unpack(saved, model, optimizer, average)
    if name := first_non_finite(model.named_parameters()):
        raise NonFiniteError(f"parameter {name} holds a NaN or an infinity before step {state.step + 1}")

    run = _Run(
        model=model,
        method=method,
        optimizer=optimizer,
        average=average,
        batches=batches,
        step=step,
        evaluate=evaluate,
        settings=settings,
        folder=folder,
        result_settings=result_settings,
        state=state,
        ranks=ranks,
    )

    def result() -> TrainResult:
        return TrainResult(
            steps=state.step,
            history=state.history(),
            epochs=tuple(state.epochs),
            resumed_at=None if saved is None else saved.step,
            skipped=() if saved is None else saved.skipped,
            skipped_steps=tuple(state.skipped),
        )

    with ExitStack() as stack:
        if progress:
            run.bar = stack.enter_context(Progress("training", run.steps, unit="steps", done=state.step))
        if saved is not None:
            for reason in saved.skipped:
                run.log(f"damaged checkpoint ignored: {reason}")
            run.log(f"resuming after step {saved.step} of {run.steps}")
        if settings.tensorboard and ranks.is_first and len(state.epochs) < settings.epochs:
            run.events = stack.enter_context(run.event_files())
        run.signals = stack.enter_context(StopSignals(log=progress and ranks.is_first))
        while len(state.epochs) < settings.epochs:
            run.epoch()
            if epoch_done is not None and ranks.is_first:
                with ranks.busy("reports the epoch"):
                    epoch_done(result())
    if average is not None:
        average.exchange()
    model.eval()
    return result()


def autocast(device: torch.device, dtype: str) -> Any:
    """Autocast context of `step` and `evaluate`: bfloat16 or float16; none for float32."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))


def _has_float16(device: torch.device) -> bool:
    """True on devices where float16 is fast; processors are many times slower in it than in float32."""
    return device.type in ("cuda", "mps")


@dataclass(kw_only=True)
class _Run:
    """State of a training, with its parts: an epoch, a step, an evaluation, a save."""

    model: nn.Module
    method: TrainingMethod
    optimizer: torch.optim.Optimizer
    average: ParameterAverage | None
    batches: Batches
    step: Step
    evaluate: Evaluate | None
    settings: TrainSettings
    folder: Path
    result_settings: Mapping[str, Any]
    state: RunState
    ranks: Ranks
    signals: StopSignals = field(default_factory=StopSignals)
    bar: Progress | None = None
    events: EventFiles | None = None

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(self.batches, self.settings)
        self.steps = self.steps_per_epoch * self.settings.epochs
        self.device = next(self.model.parameters()).device
        self.saved_at_s = time.monotonic()

    def log(self, text: str) -> None:
        """Writes a line above the progress bar, where there is one."""
        if self.bar is not None:
            self.bar.log(text)

    def epoch(self) -> None:
        """Runs the current epoch to its end: steps, evaluation, checkpoint."""
        state, settings = self.state, self.settings
        epoch = len(state.epochs)
        first = state.step - epoch * self.steps_per_epoch  # all of them where only the evaluation is missing
        self.model.train()
        windows = range(first, self.steps_per_epoch)
        stream = iter(self.batches.epoch(epoch, [number for w in windows for number, _ in self.shard(w)]))
        try:
            for window in windows:
                if window > first and time.monotonic() - self.saved_at_s >= 60 * settings.checkpoint_minutes:
                    self.save()
                metrics = self.optimiser_step(stream, epoch, window)
                if self.events is not None:
                    self.events.write("train", state.step, metrics)
                if self.bar is not None:
                    self.bar.advance(note=f"epoch {epoch + 1}/{settings.epochs}, loss {metrics['loss']:.4f}")
                if received := self.signal():
                    self.save()
                    raise Interrupted(received)
        finally:
            if close := getattr(stream, "close", None):
                close()  # ends a generator's threads, also after an error
        loss = state.columns.index("loss")
        losses = [row[loss] for row in state.rows[-self.steps_per_epoch :] if math.isfinite(row[loss])]
        metrics = {
            "epoch": epoch + 1,
            "step": state.step,
            "train_loss": float(np.mean(losses)) if losses else math.nan,
            **self.evaluation(epoch),
        }
        state.epochs.append(metrics)
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if name not in ("epoch", "step")]
        self.log(f"epoch {epoch + 1}/{settings.epochs}: {', '.join(shown)}")
        if self.events is not None:
            self.events.write("epoch", state.step, metrics)
        self.save()
        if received := self.signal():
            raise Interrupted(received)

    def signal(self) -> int:
        """Signal that any of the ranks has received; 0: none."""
        return self.ranks.highest([self.signals.received or 0], torch.device("cpu"))[0]

    def shard(self, window: int) -> list[tuple[int, bool]]:
        """This rank's batches of an optimiser step: (number, True where it counts).

        A rank without one computes the first batch with weight 0: all ranks then have the same gradients to average.
        """
        last = math.ceil(self.batches.samples / self.batches.batch_size)
        first = window * self.settings.accumulation
        numbers = range(first, min(first + self.settings.accumulation, last))
        own = numbers[self.ranks.data_rank :: self.ranks.data_ranks]
        return [(number, True) for number in own] or [(first, False)]

    def evaluation(self, epoch: int) -> Mapping[str, float]:
        """Metrics of `evaluate`. A signal stops it; the checkpoint is then that of before it began."""
        if self.evaluate is None:
            return {}
        before = self.packed()
        if self.ranks.world > 1:  # a signal need not reach all of them at once
            self.save(before)
        self.model.eval()
        averaged = nullcontext() if self.average is None else self.average.in_the_model()
        try:
            # The exchange of the EMA is outside: a signal must not interrupt it.
            with averaged, self.signals.raising_at_once(), torch.no_grad(), autocast(self.device, self.settings.dtype):
                return self.evaluate(self.model, epoch)
        except Interrupted:
            if self.ranks.world == 1:
                self.save(before)
            raise

    def optimiser_step(self, stream: Iterator[Any], epoch: int, window: int) -> dict[str, float]:
        """Optimiser step over a window of batches: mean gradient of its samples, skipped where not finite, clipped."""
        settings, batches, optimizer, state = self.settings, self.batches, self.optimizer, self.state
        rates = self.method.before_step(optimizer, state.step)
        per_step = settings.accumulation * batches.batch_size
        samples = min(per_step, batches.samples - window * per_step)
        seen: list[Seen] = []
        statistics: torch.Tensor | None = None
        for number, counts in self.shard(window):
            batch = next(stream)
            promised = min(batches.batch_size, batches.samples - number * batches.batch_size)
            assert len(batch.names) == promised, "the batches do not hold what batch_size and samples promise"
            seed_forward(settings.seed, epoch, number)
            with autocast(self.device, settings.dtype):
                out = self.step(self.model, batch)
            weight = len(batch.names) / samples if counts else 0.0
            loss = out["loss"].float() if settings.dtype == "float16" else out["loss"]
            # Gradients are averaged over all ranks; those of the data axis must be added up.
            (loss * (weight * self.ranks.data_ranks * state.loss_scale)).backward()
            losses = out.get("losses")
            metrics = {k: v.detach().float() * weight for k, v in out.items() if k not in ("losses", "statistics")}
            if (means := out.get("statistics")) is not None:
                weighted = means.detach() * weight
                statistics = weighted if statistics is None else statistics.add_(weighted)
            seen.append(Seen(batch.names, metrics, None if losses is None else losses.detach()))

        self.ranks.average_gradients(p for _, p in named_parameters(optimizer))
        gradients = [p.grad for _, p in named_parameters(optimizer) if p.grad is not None]
        if state.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / state.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        names = list(seen[0].metrics)
        sums = self.ranks.sum_over_data(torch.stack([torch.stack([s.metrics[n] for s in seen]).sum() for n in names]))
        if statistics is not None:
            statistics = self.ranks.sum_over_data(statistics)
            extra = self.method.metrics(statistics)
            names += extra
            sums = torch.stack([*sums.unbind(), *(value.float() for value in extra.values())])
        with waiting():  # the only wait for the device in a step: all metrics in one transfer
            *flat, length = torch.cat([sums, norm.float().view(1)]).tolist()
        verdict, culprit = Verdict.FINE, ""
        if not all(map(math.isfinite, [*flat, length])):  # on all ranks or on none
            at = f"epoch {epoch + 1}, step {state.step + 1}"
            verdict, culprit = agreed(judge(self.model, optimizer, seen, at=at, scale=state.loss_scale), self.ranks)
        if verdict is Verdict.FINE:
            self.method.transform_gradients(gradients, length)
            optimizer.step()
            self.method.after_step(state.step, statistics)
            if self.average is not None:
                self.average.update(state.step + 1)
        optimizer.zero_grad(set_to_none=True)
        step_metrics = dict(zip(names, flat, strict=True)) | dict(rates) | {"grad_norm": length}
        state.record(step_metrics)
        if settings.dtype == "float16":
            state.loss_scale, state.steps_since_scale = next_scale(state.loss_scale, state.steps_since_scale, verdict)
        if verdict is Verdict.BAD:
            self.count_bad(culprit)
        elif verdict is Verdict.FINE:
            state.bad_in_a_row = 0
        return step_metrics

    def count_bad(self, culprit: str) -> None:
        """Records a skipped step. `NonFiniteError` after `max_bad_steps` in a row names the first of them."""
        state = self.state
        state.skipped.append(culprit)
        state.bad_in_a_row += 1
        if state.bad_in_a_row >= self.settings.max_bad_steps:
            first, others = state.skipped[-state.bad_in_a_row], state.bad_in_a_row - 1
            raise NonFiniteError(f"{first}; {f'{others} more after it in a row; ' if others else ''}{ADVICE}")
        self.log(f"skipped: {culprit}")

    def packed(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Content of a checkpoint of the current step."""
        return pack(self.model, self.optimizer, self.state, self.average)

    def save(self, packed: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None) -> None:
        """Writes a checkpoint of the current step, or of the `packed` content; never one that holds a NaN."""
        if name := first_non_finite(self.model.named_parameters()):
            raise NonFiniteError(f"step {self.state.step}: parameter {name} holds a NaN or an infinity; not saved")
        if self.events is not None:
            self.events.flush()
        if self.ranks.is_first:
            tensors, state = packed or self.packed()
            content = {"settings": dict(self.result_settings), **state}
            with self.ranks.busy("writes a checkpoint"):
                write_checkpoint(self.folder, self.state.step, tensors, content, keep=self.settings.keep_checkpoints)
        self.saved_at_s = time.monotonic()

    @contextmanager
    def event_files(self) -> Iterator[EventFiles]:
        """TensorBoard files of the following steps; a step whose evaluation is missing is written again with it."""
        state = self.state
        is_pending = state.step > 0 and state.step == (len(state.epochs) + 1) * self.steps_per_epoch
        events = EventFiles(self.folder / "tensorboard", state.step + (not is_pending))
        try:
            if is_pending:
                events.write("train", state.step, dict(zip(state.columns, state.rows[-1], strict=True)))
            yield events
        finally:
            events.close()
