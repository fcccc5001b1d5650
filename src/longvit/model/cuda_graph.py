"""CUDA graphs of an encoder's forward pass: at small images a card waits for launches, and a graph is one launch.

    tokens = cuda_graph.encode(model, model.patch_embed(images))       # model.encode(…), to the last bit

`model.embed` and `longvit predict` use it. The first call of a shape runs twice and records; later ones replay. The
patch embedding stays outside: it copies constants and pixels from the host, which cannot be recorded. Pooling and head,
a handful of launches, stay outside too.

`against` decides, in one place, by the environment variable LONGVIT_GRAPHS: 1, 0 or auto. `auto` records on one NVIDIA
card, up to `MOST_PATCHES`; where a recording fails, the model runs without a graph. 1 records at any size or raises.

B images, N patches, D width.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from longvit.attention.backends import matmul_precision

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT

VARIABLE = "LONGVIT_GRAPHS"
MOST_PATCHES = 65_536
"""Largest batch for `auto`, in patches: above it launches cost nothing, and memory does."""
GRAPHS = 4
"""Number of graphs that a model keeps; each holds the memory of its forward pass."""
_CHOICES = ("LONGVIT_ATTENTION", "LONGVIT_FUSED")  # kernels are chosen while a graph is recorded
_LOG = logging.getLogger(__name__)


def against(device: torch.device, patches: int = 1, model: LongViT | None = None) -> str:
    """Reason against a graph for a forward pass of so many patches; empty: none.

    `model`: its encoder and the mode of the call are checked too.

    Raises:
        ValueError: LONGVIT_GRAPHS is not 0, 1 or auto; or it is 1 and there can be no graph.
    """
    setting = os.environ.get(VARIABLE, "auto")
    if setting not in ("0", "1", "auto"):
        raise ValueError(f"{VARIABLE} must be 0, 1 or auto, got {setting!r}")
    if setting == "0":
        return f"{VARIABLE}=0"
    reason = _against_device(device) or ("" if model is None else _against_call(model))
    if reason and setting == "1":
        raise ValueError(f"{VARIABLE}=1, but {reason}")
    if not reason and setting == "auto" and patches > MOST_PATCHES:
        return f"{patches:,} patches: above {MOST_PATCHES:,} launches cost nothing"
    return reason


def _against_device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the model is on {device.type}, graphs are for cuda"
    if torch.version.hip is not None:
        return "graphs are only known to work on NVIDIA cards"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "several ranks share the work"
    return ""


def _against_call(model: LongViT) -> str:
    if torch.is_grad_enabled():
        return "gradients are on"
    if model.training:
        return "the model is in training mode"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "modules have hooks"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.blocks.modules()):
        return "modules of the encoder have hooks"
    return ""


def encode(model: LongViT, x: Tensor) -> Tensor:
    """Embedded patches (B, N, D) → tokens (B, N, D), a new tensor: `model.encode(x)`, replayed where possible.

    Weights may change in place; where they move in memory, the graph is recorded again. Raises ValueError as `against`.
    """
    patches = x.shape[0] * x.shape[1]
    if against(x.device, patches, model):
        if patches > MOST_PATCHES and model in _GRAPHS:
            _GRAPHS[model].clear()  # a large image may need their memory
        return model.encode(x)
    with _LOCK:  # a graph has one input, whichever thread calls
        tokens = _GRAPHS.setdefault(model, Graphs()).replayed(model, x)
    return model.encode(x) if tokens is None else tokens


def recorded(model: LongViT) -> int:
    """Number of graphs that the model has now."""
    return len(_GRAPHS[model]) if model in _GRAPHS else 0


class Recorded:
    """A function of one CUDA tensor as a graph; a call with another tensor of that shape returns a new result."""

    def __init__(self, step: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.cuda.device(x.device):
            self._x = x.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # compiles kernels, lets libraries take their workspaces
                for _ in range(2):
                    step(self._x)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # a stream of this card (the default is one of the first card that recorded); other threads keep running
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self._result = step(self._x)

    def __call__(self, x: Tensor) -> Tensor:
        self._x.copy_(x)
        self._graph.replay()
        return self._result.clone()


class Graphs:
    """The graphs of one model, most recently used last; it holds no reference to the model, and is freed with it."""

    def __init__(self) -> None:
        self._recorded: OrderedDict[Any, Recorded] = OrderedDict()
        self.failure = ""
        """Reason of a failed recording; from then on the model runs without graphs."""

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        self._recorded.clear()

    def replayed(self, model: LongViT, x: Tensor) -> Tensor | None:
        """`model.encode(x)` from a graph, recorded at the first call; None: recording failed, now or earlier."""
        key = _key(model, x)
        if key not in self._recorded:
            if self.failure:
                return None
            while len(self._recorded) >= GRAPHS:
                self._recorded.popitem(last=False)
            try:
                self._recorded[key] = Recorded(model.encode, x)
            except RuntimeError as error:  # an operation that cannot be recorded, or no memory for it
                self.failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self.clear()
                if os.environ.get(VARIABLE) == "1":
                    raise ValueError(f"{VARIABLE}=1, but it cannot be recorded: {self.failure}") from error
                _LOG.warning("no CUDA graph (%s=0 turns them off), the model runs without: %s", VARIABLE, self.failure)
                return None
        self._recorded.move_to_end(key)
        return self._recorded[key](x)


_GRAPHS: WeakKeyDictionary[LongViT, Graphs] = WeakKeyDictionary()
_LOCK = RLock()


def _key(model: LongViT, x: Tensor) -> Any:
    """Everything that a recording depends on, except the values in x and in the weights."""
    kind = x.device.type
    return (
        (tuple(x.shape), x.dtype, x.device, model.pattern(x.shape[1])),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        (torch.is_inference_mode_enabled(), matmul_precision()),
        torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0,  # replays are ordered on one stream only
        tuple((p.data_ptr(), p.dtype) for p in model.blocks.parameters()),
        tuple(os.environ.get(name) for name in _CHOICES),
    )
