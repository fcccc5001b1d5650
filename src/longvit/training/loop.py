"""The training loop: accumulation, clipping, schedule, average, checkpoints; it knows neither slides nor tasks.

A run is a function of its settings, its batches and the seed. The batches of an epoch, and what is random in the
forward pass of each (drop path), are functions of (seed, epoch, number), the learning rate one of the step, and a
checkpoint holds the rest (parameters, optimiser, history), taken between two optimiser steps. So a run that was killed
at any instant and started again ends with the same bits as one that was not.

In a run of several ranks (`longvit.parallel`) the batches of an optimiser step are dealt out over the data axis of the
mesh, and the model computes one strip of each image. The gradient is that of one process whatever the mesh, so a
checkpoint goes on on another one. Steps are skipped, and signals obeyed, by all ranks or by none; the first one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
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
"""step(model, batch) -> {"loss": mean over the batch's samples, further scalars for the history}; it may add
"losses", one per sample, by which a sample with a NaN is named, and "statistics", a tensor of means over the batch's
samples, of which the rule gets the mean over all samples of the optimiser step."""
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""evaluate(model, epoch) -> figures for the history, after every epoch; the model is in eval mode, no gradients."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run; the model that was given holds its parameters."""

    steps: int
    """Optimiser steps in all."""
    history: dict[str, np.ndarray]
    """Per optimiser step: `loss`, `lr`, `grad_norm` (before clipping) and what `step` returned, float64 (steps,).
    A skipped step has its NaN or infinity there."""
    epochs: tuple[dict[str, float], ...]
    """Per epoch what `evaluate` returned, with `epoch` (1 …), `step` and `train_loss` (mean over its finite
    steps)."""
    resumed_at: int | None = None
    """The step whose checkpoint this process began at; None where it began at the start."""
    skipped: tuple[str, ...] = ()
    """Damaged checkpoints that were passed over."""
    skipped_steps: tuple[str, ...] = ()
    """Steps that were skipped for a non-finite loss or gradient: `epoch 1, step 3: the loss is nan on slide_13`."""


def train(
    model: nn.Module,
    batches: Batches,
    step: Step,
    settings: TrainSettings,
    *,
    folder: str | Path,
    evaluate: Evaluate | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
    ranks: Ranks = ALONE,
    method: TrainingMethod | None = None,
    epoch_done: Callable[[TrainResult], None] | None = None,
) -> TrainResult:
    """Trains `model` in place, on the device where it is, and returns the history.

    `folder` takes the checkpoints; where it holds some, the run goes on from the newest valid one (a finished run
    returns at once). `facts`: JSON values beside `settings` that must be the same for a run to go on (which
    data, which model), checked like them. Seeds the global random states of torch, NumPy and Python before every
    forward pass.

    `ranks`: every rank calls with the same arguments, and `model` on its strip of the image (`longvit.parallel.shard`)
    where a sequence has several; `step` and `evaluate` return the same on all ranks of a sequence, `evaluate` on all.
    What is returned is the same on every rank. Only the first one's `folder` is read and written.

    `rule`: how the parameters move; the paper's fine-tuning by `settings` where left out. `epoch_done`: called by the
    first rank after an epoch and its checkpoint with what there is so far, to show it while the run goes on.

    With `settings.ema` it is the averaged parameters that `evaluate` sees and that `model` holds at the end; the
    checkpoints keep both kinds. With `settings.tensorboard` event files lie in `folder`/tensorboard.

    A step with a NaN or an infinity in its loss or gradients changes neither parameters nor moments nor average; it
    is named (samples, layer) and counted as a step. Raises `NonFiniteError` after `settings.max_bad_steps` of them in a
    row, and at once where a parameter is not finite; `InputError` at a resume with other settings (the difference
    named), or float16 on a device without it.

    SIGTERM, SIGINT and SIGUSR1 end the run after the step that they fall in and a checkpoint: `Interrupted`, a
    KeyboardInterrupt with `exit_code`. A second SIGINT ends it at once. Handlers are as before afterwards.
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
    result_settings = {**settings.result_settings(), **(facts or {})}
    saved = checkpoint_of_first(folder, ranks)
    if saved is None:
        state = RunState(loss_scale=FIRST_SCALE if settings.dtype == "float16" else 1.0)
    else:
        refuse_other_settings(settings_of(saved), result_settings, folder)
        state = unpack(saved, model, optimizer, average)
    if name := first_non_finite(model.named_parameters()):
        raise NonFiniteError(f"parameter {name} holds a NaN or an infinity before step {state.step + 1}")

    run = _Run(
        model, method, optimizer, average, batches, step, evaluate, settings, folder, result_settings, state, ranks
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
                run.log(f"passed over: {reason}")
            run.log(f"going on after step {saved.step} of {run.steps}")
        if settings.tensorboard and ranks.is_first and len(state.epochs) < settings.epochs:
            run.events = stack.enter_context(run.event_files())
        run.signals = stack.enter_context(StopSignals(log=progress and ranks.is_first))
        while len(state.epochs) < settings.epochs:
            run.epoch()
            if epoch_done is not None and ranks.is_first:
                with ranks.busy("shows what there is so far"):
                    epoch_done(result())
    if average is not None:
        average.exchange()
    model.eval()
    return result()


def autocast(device: torch.device, dtype: str) -> Any:
    """The context in which `step` and `evaluate` run: bfloat16 or float16 where asked for; float32 needs nothing."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))


def _has_float16(device: torch.device) -> bool:
    """Processors compute in it too, but many times slower than in float32."""
    return device.type in ("cuda", "mps")


class _Run:
    """The parts of a run that go on, and what is done with them: an epoch, a step, an evaluation, a save."""

    def __init__(
        self,
        model: nn.Module,
        method: TrainingMethod,
        optimizer: torch.optim.Optimizer,
        average: ParameterAverage | None,
        batches: Batches,
        step: Step,
        evaluate: Evaluate | None,
        settings: TrainSettings,
        folder: Path,
        result_settings: Mapping[str, Any],
        state: RunState,
        ranks: Ranks,
    ) -> None:
        self.model, self.method, self.optimizer, self.average = model, method, optimizer, average
        self.batches, self.step = batches, step
        self.evaluate, self.settings, self.folder, self.result_settings = evaluate, settings, folder, result_settings
        self.state, self.ranks = state, ranks
        self.steps_per_epoch = steps_per_epoch(batches, settings)
        self.steps = self.steps_per_epoch * settings.epochs
        self.device = next(model.parameters()).device
        self.saved_at_s = time.monotonic()
        self.signals = StopSignals()
        self.bar: Progress | None = None
        self.events: EventFiles | None = None

    def log(self, text: str) -> None:
        """A line above the bar, where there is one."""
        if self.bar is not None:
            self.bar.log(text)

    def epoch(self) -> None:
        """From where the run stands to the end of that epoch: steps, evaluation, checkpoint."""
        state, settings = self.state, self.settings
        epoch = len(state.epochs)
        first = state.step - epoch * self.steps_per_epoch  # all of them where only the evaluation is missing
        self.model.train()
        windows = range(first, self.steps_per_epoch)
        stream = iter(self.batches.epoch(epoch, [number for w in windows for number, _ in self.share(w)]))
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
                close()  # a generator's threads end here, also after an error
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
        """The signal that has come to any of the ranks; 0: none."""
        return self.ranks.highest([self.signals.received or 0], torch.device("cpu"))[0]

    def share(self, window: int) -> list[tuple[int, bool]]:
        """The numbers of the batches that this rank computes of an optimiser step, and whether they count: a rank
        that has none computes the first one with weight 0, so that all have the same gradients to average."""
        last = math.ceil(self.batches.samples / self.batches.batch_size)
        first = window * self.settings.accumulation
        of_window = range(first, min(first + self.settings.accumulation, last))
        own = of_window[self.ranks.data_rank :: self.ranks.data_ranks]
        return [(number, True) for number in own] or [(first, False)]

    def evaluation(self, epoch: int) -> Mapping[str, float]:
        """What `evaluate` finds; a signal stops it, and the checkpoint is that of before it began."""
        if self.evaluate is None:
            return {}
        before = self.packed()
        if self.ranks.world > 1:  # a signal that breaks in need not come to all of them at once
            self.save(before)
        self.model.eval()
        averaged = nullcontext() if self.average is None else self.average.in_the_model()
        try:
            # The exchange stands outside: a signal must not find it half done.
            with averaged, self.signals.breaking_in(), torch.no_grad(), autocast(self.device, self.settings.dtype):
                return self.evaluate(self.model, epoch)
        except Interrupted:
            if self.ranks.world == 1:
                self.save(before)
            raise

    def optimiser_step(self, stream: Iterator[Any], epoch: int, window: int) -> dict[str, float]:
        """One window of batches: mean gradient over its samples, finite or skipped, clipped, applied."""
        settings, batches, optimizer, state = self.settings, self.batches, self.optimizer, self.state
        rates = self.method.before_step(optimizer, state.step)
        per_step = settings.accumulation * batches.batch_size
        samples = min(per_step, batches.samples - window * per_step)
        seen: list[Seen] = []
        statistics: torch.Tensor | None = None
        for number, counts in self.share(window):
            batch = next(stream)
            promised = min(batches.batch_size, batches.samples - number * batches.batch_size)
            assert len(batch.names) == promised, "the batches do not hold what batch_size and samples promise"
            seed_forward(settings.seed, epoch, number)
            with autocast(self.device, settings.dtype):
                out = self.step(self.model, batch)
            weight = len(batch.names) / samples if counts else 0.0
            loss = out["loss"].float() if settings.dtype == "float16" else out["loss"]
            # Gradients are averaged over all ranks, those of the data axis are to be added up.
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
            more = self.method.metrics(statistics)
            names += more
            sums = torch.stack([*sums.unbind(), *(value.float() for value in more.values())])
        with waiting():  # the one wait for the device in a step: every figure comes over in one piece
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
        """Notes a skipped step; `NonFiniteError` where it is the last one allowed, with the first of the row."""
        state = self.state
        state.skipped.append(culprit)
        state.bad_in_a_row += 1
        if state.bad_in_a_row >= self.settings.max_bad_steps:
            first, more = state.skipped[-state.bad_in_a_row], state.bad_in_a_row - 1
            raise NonFiniteError(f"{first}; {f'{more} more after it in a row; ' if more else ''}{ADVICE}")
        self.log(f"skipped: {culprit}")

    def packed(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint of now holds."""
        return pack(self.model, self.optimizer, self.state, self.average)

    def save(self, packed: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None) -> None:
        """A checkpoint of now, or of what was `packed` at this step; never one that holds a NaN."""
        if name := first_non_finite(self.model.named_parameters()):
            raise NonFiniteError(f"step {self.state.step}: parameter {name} holds a NaN or an infinity; not saved")
        if self.events is not None:
            self.events.flush()
        if self.ranks.is_first:
            tensors, rest = packed or self.packed()
            content = {"settings": dict(self.result_settings), **rest}
            with self.ranks.busy("writes a checkpoint"):
                write_checkpoint(self.folder, self.state.step, tensors, content, keep=self.settings.keep_checkpoints)
        self.saved_at_s = time.monotonic()

    @contextmanager
    def event_files(self) -> Iterator[EventFiles]:
        """TensorBoard's files from here on; a step whose evaluation is missing is written again with it."""
        state = self.state
        is_pending = state.step > 0 and state.step == (len(state.epochs) + 1) * self.steps_per_epoch
        events = EventFiles(self.folder / "tensorboard", state.step + (not is_pending))
        try:
            if is_pending:
                events.write("train", state.step, dict(zip(state.columns, state.rows[-1], strict=True)))
            yield events
        finally:
            events.close()
