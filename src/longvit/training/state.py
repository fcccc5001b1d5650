"""Everything that moves during a run, as tensors + JSON: parameters, average, optimiser, history."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longvit.errors import InputError
from longvit.parallel.ranks import Ranks
from longvit.training.checkpoint import Checkpoint, read_checkpoint
from longvit.training.ema import ParameterAverage
from longvit.training.optim import named_parameters

# Fields of `RunState` that are plain numbers.
_PLAIN = ("bad_in_a_row", "loss_scale", "steps_since_scale")


@dataclass
class RunState:
    """What moves, but for the model and the optimiser."""

    step: int = 0
    """Optimiser steps done."""
    columns: tuple[str, ...] = ()
    """Names of the figures of a step."""
    rows: list[list[float]] = field(default_factory=list)
    """The figures of every step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """The figures of every epoch that was evaluated."""
    skipped: list[str] = field(default_factory=list)
    """Every step with a non-finite loss or gradient, and its culprit."""
    bad_in_a_row: int = 0
    """How many of the last steps were such."""
    loss_scale: float = 1.0
    """What the loss is multiplied by; 1 unless float16."""
    steps_since_scale: int = 0
    """Steps since it changed."""

    def record(self, metrics: Mapping[str, float]) -> None:
        """One more step is done."""
        self.columns = self.columns or tuple(metrics)
        self.rows.append([metrics[name] for name in self.columns])
        self.step += 1

    def history(self) -> dict[str, np.ndarray]:
        """Name -> float64 (steps,)."""
        table = np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.columns))
        return {name: table[:, i].copy() for i, name in enumerate(self.columns)}


def seed_forward(seed: int, epoch: int, number: int) -> None:
    """The global random states of torch (all devices), NumPy and Python before the forward pass of a batch: drop path
    is then the same on all ranks of a sequence, on every mesh, and in a run that was interrupted."""
    low, high = np.random.SeedSequence([seed, epoch, number]).generate_state(2)
    # What torch.manual_seed does, but for devices that nothing runs on: it formats the whole stack for them, 0.6 ms.
    seed = int(high) << 32 | int(low)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(low)  # noqa: NPY002 (the state that third-party code may use)
    random.seed(int(low))


def checkpoint_of_first(folder: Path, ranks: Ranks) -> Checkpoint | None:
    """The newest valid checkpoint that the first rank finds in its folder, on every rank."""
    saved = read_checkpoint(folder) if ranks.is_first else None
    if ranks.world == 1:
        return saved
    head = None
    if saved is not None:
        kinds = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in saved.tensors.items()}
        head = [saved.step, saved.state, str(saved.path), saved.skipped, kinds]
    head = ranks.from_first(head)
    if head is None:
        return None
    step, state, path, skipped, kinds = head
    if saved is None:
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in kinds.items()}
        saved = Checkpoint(step, tensors, state, Path(path), tuple(skipped))
    ranks.tensors_from_first(saved.tensors[name] for name in kinds)
    return saved


def pack(
    model: nn.Module, optimizer: torch.optim.Optimizer, run: RunState, average: ParameterAverage | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, JSON) of the whole run. The tensors of the model and the optimiser are theirs, not copies."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    if average is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in average.tensors.items()}
    tensors["history"] = torch.tensor(run.rows, dtype=torch.float64)
    state = {
        "columns": list(run.columns),
        "epochs": list(run.epochs),
        **{name: getattr(run, name) for name in _PLAIN},
        "skipped": list(run.skipped),
    }
    return tensors, state


def unpack(
    saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: ParameterAverage | None = None
) -> RunState:
    """Puts a checkpoint into the model, the optimiser and the average.

    `InputError`: it is another model's, or what it holds is not what a run writes.
    """
    try:
        return _unpacked(saved, model, optimizer, average)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _not_of_a_run(saved, f"{type(error).__name__}: {error}") from error


def settings_of(saved: Checkpoint) -> Mapping[str, Any]:
    """The settings that a run was begun with. `InputError` where there are none."""
    settings = saved.state.get("settings")
    if not isinstance(settings, Mapping):
        raise _not_of_a_run(saved, "no settings in it")
    return settings


def _not_of_a_run(saved: Checkpoint, why: str) -> InputError:
    text = " ".join(why.split())[:200]
    return InputError(f"{saved.path}: not the checkpoint of a run ({text}); remove the folder to start anew")


def _unpacked(
    saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: ParameterAverage | None
) -> RunState:
    tensors, state = saved.tensors, saved.state
    own = model.state_dict()
    theirs = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    for name in sorted(own.keys() | theirs.keys()):
        shapes = [tuple(d[name].shape) if name in d else "absent" for d in (theirs, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{saved.path}: {name} is {shapes[0]} there and {shapes[1]} in this model; it is another model's"
            )
    model.load_state_dict(theirs)
    parameters = dict(named_parameters(optimizer))
    for full_name, value in tensors.items():
        if full_name.startswith("optimizer."):
            _, key, name = full_name.split(".", 2)
            parameter = parameters[name]
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{full_name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            optimizer.state[parameter][key] = value.to(parameter.device)
    if len({frozenset(kept) for kept in optimizer.state.values()}) > 1:  # Adam's step, mean and mean square, or nothing
        raise KeyError("an optimiser's value is missing")
    for name, tensor in average.tensors.items() if average is not None else ():
        tensor.copy_(tensors[f"ema.{name}"])
    rows, columns = tensors["history"].tolist(), tuple(state["columns"])
    if len(rows) != saved.step or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"figures of {len(rows)} steps, not of {saved.step}")
    epochs, skipped = list(state["epochs"]), list(state["skipped"])
    if not all(isinstance(epoch, dict) for epoch in epochs) or len(epochs) > saved.step:
        raise ValueError("its epochs are none")
    if not all(isinstance(text, str) for text in (*skipped, *columns)):
        raise TypeError("its steps are not named")
    plain = {name: state[name] for name in _PLAIN}
    if any(type(value) not in (int, float) for value in plain.values()):
        raise TypeError(f"{', '.join(_PLAIN)}: not all are numbers")
    return RunState(saved.step, columns, rows, epochs=epochs, skipped=skipped, **plain)
