"""A forward pass as a CUDA graph: at small images a card waits for launches, and a graph is one launch.

    forward = GraphedForward(model.eval())
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        logits = forward(images)

The patch embedding runs as it always does (it copies constants and pixels from the host, which cannot be recorded);
the graph is everything behind it. The first call of a shape runs twice and records; later ones replay. Where that
cannot be done the model runs as it always does, and one line of the log says why.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longvit.model.longvit import LongViT

_LOG = logging.getLogger(__name__)
_CHOICES = ("LONGVIT_ATTENTION", "LONGVIT_FUSED")  # kernels are chosen while a graph is recorded


class Recorded:
    """A function of one CUDA tensor as a graph: called with another of the same shape, it returns a new result."""

    def __init__(self, step: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._x = x.clone()
        with torch.cuda.device(x.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # compiles kernels, lets libraries take their workspaces
                for _ in range(2):
                    step(self._x)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = step(self._x)

    def __call__(self, x: Tensor) -> Tensor:
        self._x.copy_(x)
        self._graph.replay()
        return self._result.clone()


class GraphedForward:
    """`model(images)`, or its embedding with `pre_logits`, without gradients; a graph per shape, dtype and autocast.

    Args:
        model: in evaluation mode. Its weights may change in place; where they move, graphs are recorded anew.
        pre_logits: → the embedding (B, D) instead of logits (B, K).
        graphs: how many are kept; each holds the memory of its forward pass.
        most_patches: a batch with more patches runs without a graph: there launches cost nothing, memory does.
    """

    def __init__(
        self, model: LongViT, *, pre_logits: bool = False, graphs: int = 4, most_patches: int = 65_536
    ) -> None:
        self.model, self.pre_logits = model, pre_logits
        self.graphs, self.most_patches = graphs, most_patches
        self._recorded: OrderedDict[Any, Recorded | None] = OrderedDict()  # None: it failed
        self._has_said = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, K) or (B, D), a new tensor every time."""
        x = self.model.patch_embed(images)
        if (reason := self._cannot(x)) is not None:
            self._say(reason)
            return self._behind_embedding(x)
        key = self._key(x)
        if key not in self._recorded:
            self._recorded[key] = self._record(x)
            while len(self._recorded) > self.graphs:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        return self._behind_embedding(x) if recorded is None else recorded(x)

    def _behind_embedding(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.encode(x), pre_logits=self.pre_logits)

    def _cannot(self, x: Tensor) -> str | None:
        """Why this call is not for a graph; "" where that is as it should be."""
        if x.device.type != "cuda":
            return f"the model is on {x.device.type}"
        if torch.is_grad_enabled() or self.model.training:
            return "gradients are on or the model is in training mode"
        return "" if x.shape[0] * x.shape[1] > self.most_patches else None

    def _key(self, x: Tensor) -> Any:
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        weights = tuple(p.data_ptr() for p in self.model.parameters())
        choices = tuple(os.environ.get(name) for name in _CHOICES)
        return tuple(x.shape), x.dtype, x.device, autocast, torch.is_inference_mode_enabled(), weights, choices

    def _record(self, x: Tensor) -> Recorded | None:
        try:
            return Recorded(self._behind_embedding, x)
        except RuntimeError as error:  # an operation that cannot be recorded, or no memory for a second forward pass
            self._say(str(error).strip().splitlines()[0])
            return None

    def _say(self, reason: str) -> None:
        if reason and not self._has_said:
            _LOG.warning("no CUDA graph, the forward pass runs as it is: %s", reason)
            self._has_said = True
