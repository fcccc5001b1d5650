"""What layers keep for backward, on the host in between: copied out behind the forward, fetched back ahead of backward.

A layer of 1 M tokens keeps 2.5 GB (its input in float32, its attention's output in bfloat16, the log-sum-exp), twelve
layers 30 GB; with this the card holds those of two layers at a time. The copies run on a stream of their own:

    forward    layer i: put(i) starts its copy and waits (on the card, not here) for that of layer i − 1, whose memory
               is then free for layer i's own work
    backward   layer i: prefetch(i − 1) starts the way back, take(i) waits for what the layer above has started

Values are copied, never rounded: gradients are those without it, to the last bit. Only the order is decided here
(`HostStore`); `CudaCopies` does the copying, and a plain copy stands in for it where the order is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor


class Copies(Protocol):
    """Copies between a device and the host that run beside the device's own work. An event: until a copy is done."""

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Starts after all work queued so far. The caller holds `tensors` until it has called `wait(event)`."""

    def to_device(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Starts after all work queued so far. The results may be read after `wait(event)`."""

    def wait(self, event: Any) -> None:
        """Work queued from now on runs after `event`; this call itself does not block."""

    def finish(self, event: Any) -> None:
        """Blocks until `event`."""


class CudaCopies:
    """Through pinned memory, on a side stream. Pinned buffers are cached by PyTorch from one step to the next."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.side = device, torch.cuda.Stream(device)

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            hosts = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, t in zip(hosts, tensors, strict=True):
                host.copy_(t, non_blocking=True)
            return hosts, self.side.record_event()

    def to_device(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        # allocated for the computing stream, which also frees it: so no record_stream, whose memory comes back late.
        # That stream's work so far may still use the memory that the allocator hands out: hence the side stream waits.
        found = [torch.empty(t.shape, dtype=t.dtype, device=self.device) for t in tensors]
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            for t, host in zip(found, tensors, strict=True):
                t.copy_(host, non_blocking=True)
            return found, self.side.record_event()

    def wait(self, event: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self, event: Any) -> None:
        event.synchronize()


@lru_cache
def cuda_copies(device: torch.device) -> CudaCopies:
    """One side stream per card."""
    return CudaCopies(device)


class HostStore:
    """The tensors of the layers of one forward pass, from their forward to their backward (any number of times)."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._host: dict[int, list[Tensor]] = {}
        self._leaving: list[tuple[Any, list[Tensor]]] = []  # copies under way, with what they read
        self._fetched: dict[int, tuple[list[Tensor], Any]] = {}

    def put(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Takes over what `layer` keeps; the caller drops its own references."""
        self._settle()
        tensors = [t.detach() for t in tensors]  # else they hold their graph, and the graph holds this
        self._host[layer], event = self._copies.to_host(tensors)
        self._leaving.append((event, tensors))

    def prefetch(self, layer: int) -> None:
        """Starts the way back of what `layer` keeps, where there is something and it is not under way already."""
        if layer in self._host and layer not in self._fetched:
            self._settle()
            self._fetched[layer] = self._copies.to_device(self._host[layer])

    def take(self, layer: int) -> list[Tensor]:
        """What was `put`, on the device again; it stays there until `drop`."""
        self.prefetch(layer)
        tensors, event = self._fetched[layer]
        self._copies.wait(event)
        return tensors

    def drop(self, layer: int) -> None:
        """Frees the device's copy. The host's goes with the graph."""
        del self._fetched[layer]

    def __del__(self) -> None:
        # fetched for a layer whose backward never came (it failed, or gradients of upper layers alone were wanted): the
        # memory must not be given away while the copy still writes to it
        for _, event in self._fetched.values():
            self._copies.finish(event)

    def _settle(self) -> None:
        """Lets go of what was copied out: work from now on, which may be given its memory, runs after those copies."""
        for event, _ in self._leaving:
            self._copies.wait(event)
        self._leaving.clear()


def host_store(device: torch.device) -> HostStore | None:
    """A store for a forward pass on a CUDA device; None elsewhere: on a CPU the host is where tensors are."""
    return HostStore(cuda_copies(device)) if device.type == "cuda" else None
