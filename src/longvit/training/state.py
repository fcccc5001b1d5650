"""Everything that moves during a run, as tensors + JSON: parameters, average, optimiser, history, random states."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from longvit.errors import InputError
from longvit.training.average import ParameterAverage
from longvit.training.checkpoint import Checkpoint
from longvit.training.optim import named_parameters

# Fields of `RunState` that are plain numbers.
_PLAIN = ("bad_in_a_row", "loss_scale", "steps_since_scale")


@dataclass
class RunState:
    """What moves, but for the model, the optimiser and the random states."""

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

    def record(self, figures: Mapping[str, float]) -> None:
        """One more step is done."""
        self.columns = self.columns or tuple(figures)
        self.rows.append([figures[name] for name in self.columns])
        self.step += 1

    def history(self) -> dict[str, np.ndarray]:
        """Name -> float64 (steps,)."""
        table = np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.columns))
        return {name: table[:, i].copy() for i, name in enumerate(self.columns)}


def seed_everything(seed: int) -> None:
    """The global random states of torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the state that third-party code may use)
    random.seed(seed)


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
    tensors["random.torch"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    state = {
        "columns": list(run.columns),
        "epochs": list(run.epochs),
        **{name: getattr(run, name) for name in _PLAIN},
        "skipped": list(run.skipped),
        "random_numpy": [kind, cast(np.ndarray, keys).tolist(), *rest],
        "random_python": [version, list(internal), gauss_next],
    }
    return tensors, state


def unpack(
    saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: ParameterAverage | None = None
) -> RunState:
    """Puts a checkpoint into the model, the optimiser, the average and the random states.

    `InputError`: it is another model's.
    """
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
    for name, parameter in named_parameters(optimizer):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimizer.{key}.{name}")) is not None:
                optimizer.state[parameter][key] = value.to(parameter.device)
    for name, tensor in average.tensors.items() if average is not None else ():
        tensor.copy_(tensors[f"ema.{name}"])
    torch.set_rng_state(tensors["random.torch"])
    device = next(model.parameters()).device
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    kind, keys, *rest = state["random_numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss_next = state["random_python"]
    random.setstate((version, tuple(internal), gauss_next))
    rows = tensors["history"].tolist()
    return RunState(
        saved.step,
        tuple(state["columns"]),
        rows,
        epochs=list(state["epochs"]),
        skipped=list(state["skipped"]),
        **{name: state[name] for name in _PLAIN},
    )
