"""The training loop: accumulation, clipping, schedule, checkpoints; it knows tensors, neither slides nor tasks.

A run is a function of its settings, its batches and the seed. The batches of an epoch are a function of
(seed, epoch, index), the learning rate one of the step, and a checkpoint holds the rest (parameters, optimiser,
random states, history), taken between two optimiser steps. So a run that was killed at any instant and
started again ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from longvit.errors import InputError
from longvit.progress import Progress
from longvit.training.checkpoint import read_checkpoint, refuse_other_settings, write_checkpoint
from longvit.training.optim import (
    adamw,
    first_non_finite,
    learning_rate,
    named_parameters,
    set_learning_rate,
)
from longvit.training.settings import TrainSettings
from longvit.training.state import RunState, pack, seed_everything, unpack


class Batch(Protocol):
    """What the loop must know of a batch: the names of its samples, for error messages, and their number."""

    @property
    def names(self) -> Sequence[str]: ...


class Batches(Protocol):
    """Batches whose order is a function of (seed, epoch, index): any epoch can be started anywhere."""

    @property
    def samples(self) -> int:
        """Samples of one epoch."""

    @property
    def batch_size(self) -> int:
        """Samples of every batch but the last of an epoch, which holds the rest."""

    def epoch(self, epoch: int, start: int = 0) -> Iterable[Any]:
        """The batches of an epoch (0 …) from batch `start` on; each has `names`."""


Step = Callable[[nn.Module, Any], Mapping[str, torch.Tensor]]
"""step(model, batch) -> {"loss": mean over the batch's samples, further scalars for the history}; it may add
"losses", one per sample, by which a sample with a NaN is named."""
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""evaluate(model, epoch) -> figures for the history, after every epoch; the model is in eval mode, no gradients."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run; the model that was given holds its parameters."""

    steps: int
    """Optimiser steps in all."""
    history: dict[str, np.ndarray]
    """Per optimiser step: `loss`, `lr`, `grad_norm` (before clipping) and what `step` returned, float64 (steps,)."""
    epochs: tuple[dict[str, float], ...]
    """Per epoch what `evaluate` returned, with `epoch` (1 …), `step` and `train_loss` (mean over its steps)."""
    resumed_at: int | None = None
    """The step whose checkpoint this process began at; None where it began at the start."""
    skipped: tuple[str, ...] = ()
    """Damaged checkpoints that were passed over."""


class NonFiniteError(InputError):
    """A NaN or an infinity, with the samples or the parameter that it comes from."""


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
) -> TrainResult:
    """Trains `model` in place, on the device where it is, and returns the history.

    `folder` takes the checkpoints; where it holds some, the run goes on from the newest valid one (a finished run
    returns at once). `facts`: JSON values beside `settings` that must be the same for a run to go on (which
    data, which model), checked like them. Seeds the global random states of torch, NumPy and Python.

    Raises `NonFiniteError` (sample or parameter named) at a loss, gradient or parameter that is NaN or infinite,
    before the parameters are touched by it; `InputError` at a resume with other settings (the difference named).
    """
    if batches.samples < 1:
        raise InputError("no training samples")
    optimizer = adamw(
        model,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        layer_decay=settings.layer_decay,
    )
    folder = Path(folder)
    decisive = {**settings.decisive(), **(facts or {})}
    saved = read_checkpoint(folder)
    if saved is None:
        seed_everything(settings.seed)
        state = RunState()
    else:
        refuse_other_settings(saved.state["settings"], decisive, folder)
        state = unpack(saved, model, optimizer)
    if name := first_non_finite(model.named_parameters()):
        raise NonFiniteError(f"parameter {name} holds a NaN or an infinity before step {state.step + 1}")

    run = _Run(model, optimizer, batches, step, evaluate, settings, folder, decisive, state)
    with Progress("training", run.steps, unit="steps", done=state.step) if progress else nullcontext() as bar:
        if saved is not None and bar is not None:
            for reason in saved.skipped:
                bar.say(f"passed over: {reason}")
            bar.say(f"going on after step {saved.step} of {run.steps}")
        while state.step < run.steps:
            run.epoch(bar)
    model.eval()
    return TrainResult(
        steps=state.step,
        history=state.history(),
        epochs=tuple(state.epochs),
        resumed_at=None if saved is None else saved.step,
        skipped=() if saved is None else saved.skipped,
    )


def autocast(device: torch.device, dtype: str) -> Any:
    """The context in which `step` and `evaluate` run: bfloat16 where asked for; float32 needs nothing."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))


class _Run:
    """The parts of a run that go on, and the three things done with them: an epoch, a step, a save."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        step: Step,
        evaluate: Evaluate | None,
        settings: TrainSettings,
        folder: Path,
        decisive: Mapping[str, Any],
        state: RunState,
    ) -> None:
        self.model, self.optimizer, self.batches, self.step = model, optimizer, batches, step
        self.evaluate, self.settings, self.folder, self.decisive = evaluate, settings, folder, decisive
        self.state = state
        self.steps_per_epoch = math.ceil(batches.samples / (batches.batch_size * settings.accumulation))
        self.steps = self.steps_per_epoch * settings.epochs
        self.device = next(model.parameters()).device
        self.saved_at_s = time.monotonic()

    def epoch(self, bar: Progress | None) -> None:
        """From where the run stands to the end of that epoch: steps, evaluation, checkpoint."""
        state, settings = self.state, self.settings
        epoch, first = divmod(state.step, self.steps_per_epoch)
        self.model.train()
        stream = iter(self.batches.epoch(epoch, start=first * settings.accumulation))
        try:
            for window in range(first, self.steps_per_epoch):
                if window > first and time.monotonic() - self.saved_at_s >= 60 * settings.checkpoint_minutes:
                    self.save()
                figures = self.optimiser_step(stream, epoch, window)
                if bar is not None:
                    bar.advance(note=f"epoch {epoch + 1}/{settings.epochs}, loss {figures['loss']:.4f}")
        finally:
            if close := getattr(stream, "close", None):
                close()  # a generator's threads end here, also after an error
        loss = state.columns.index("loss")
        figures = {
            "epoch": epoch + 1,
            "step": state.step,
            "train_loss": float(np.mean([row[loss] for row in state.rows[-self.steps_per_epoch :]])),
        }
        if self.evaluate is not None:
            self.model.eval()
            with torch.no_grad(), autocast(self.device, settings.dtype):
                figures |= self.evaluate(self.model, epoch)
        state.epochs.append(figures)
        if bar is not None:
            shown = [f"{name} {value:.4g}" for name, value in figures.items() if name not in ("epoch", "step")]
            bar.say(f"epoch {epoch + 1}/{settings.epochs}: {', '.join(shown)}")
        self.save()

    def optimiser_step(self, stream: Iterator[Any], epoch: int, window: int) -> dict[str, float]:
        """One window of batches: mean gradient over its samples, finite or refused, clipped, applied."""
        settings, batches, optimizer = self.settings, self.batches, self.optimizer
        lr = learning_rate(
            self.state.step,
            lr=settings.lr,
            min_lr=settings.min_lr,
            warmup_steps=round(settings.warmup_epochs * self.steps_per_epoch),
            steps=self.steps,
        )
        set_learning_rate(optimizer, lr)
        per_step = settings.accumulation * batches.batch_size
        samples = min(per_step, batches.samples - window * per_step)
        seen: list[_Seen] = []
        taken = 0
        while taken < samples:
            batch = next(stream)
            with autocast(self.device, settings.dtype):
                out = self.step(self.model, batch)
            weight = len(batch.names) / samples
            (out["loss"] * weight).backward()
            losses = out.get("losses")
            figures = {k: v.detach().float() * weight for k, v in out.items() if k != "losses"}
            seen.append(_Seen(batch.names, figures, None if losses is None else losses.detach()))
            taken += len(batch.names)
        assert taken == samples, "the batches do not hold what batch_size and samples promise"

        gradients = [p.grad for _, p in named_parameters(optimizer) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # The one wait for the device in a step: every figure comes over in one piece.
        flat = torch.stack([*(v for s in seen for v in s.figures.values()), norm.float()]).tolist()
        if not all(map(math.isfinite, flat)):
            self.refuse_non_finite(seen, epoch)
        if settings.clip_norm is not None and flat[-1] > settings.clip_norm:
            torch._foreach_mul_(gradients, settings.clip_norm / (flat[-1] + 1e-6))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        names = list(seen[0].figures)
        figures_of_step: dict[str, float] = {name: sum(flat[i : -1 : len(names)]) for i, name in enumerate(names)}
        figures_of_step |= {"lr": lr, "grad_norm": flat[-1]}
        self.state.record(figures_of_step)
        return figures_of_step

    def refuse_non_finite(self, seen: list[_Seen], epoch: int) -> None:
        """Names the culprit: a parameter before a sample, a sample's loss before a gradient."""
        at = f"epoch {epoch + 1}, step {self.state.step + 1}"
        advice = "look at it, or lower the learning rate"
        if name := first_non_finite(self.model.named_parameters()):
            raise NonFiniteError(f"{at}: parameter {name} holds a NaN or an infinity; {advice}")
        for batch in seen:
            if not math.isfinite(loss := batch.figures["loss"].item()):
                raise NonFiniteError(f"{at}: the loss is {loss} on {', '.join(batch.culprits())}; {advice}")
        if name := first_non_finite((name, p.grad) for name, p in named_parameters(self.optimizer)):
            of = ", ".join(name for batch in seen for name in batch.names)
            raise NonFiniteError(f"{at}: the gradient of {name} is not finite on {of}; {advice}")
        # What is left is a figure beside the loss, or a norm that overflowed: neither poisons the parameters.

    def save(self) -> None:
        """A checkpoint of now; never one that holds a NaN."""
        if name := first_non_finite(self.model.named_parameters()):
            raise NonFiniteError(f"step {self.state.step}: parameter {name} holds a NaN or an infinity; not saved")
        tensors, rest = pack(self.model, self.optimizer, self.state)
        content = {"settings": dict(self.decisive), **rest}
        write_checkpoint(self.folder, self.state.step, tensors, content, keep=self.settings.keep_checkpoints)
        self.saved_at_s = time.monotonic()


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a batch until its step is done: names, and figures weighted by its share of the samples."""

    names: Sequence[str]
    figures: dict[str, torch.Tensor]
    losses: torch.Tensor | None

    def culprits(self) -> Sequence[str]:
        """The samples whose own loss is not finite; all of them where that is not known."""
        if self.losses is None:
            return self.names
        finite = torch.isfinite(self.losses).tolist()
        return [name for name, ok in zip(self.names, finite, strict=True) if not ok] or self.names
