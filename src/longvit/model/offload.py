"""Offload of kept tensors to host memory: copied out after a layer's forward, prefetched before its backward.

A layer of 1 M tokens keeps 2.5 GB (its input in float32, its attention's output in bfloat16, the log-sum-exp), twelve
layers 30 GB. With offload the card holds those of two layers at a time. The copies run on a side stream:

    forward    layer i: put(i) starts its copy and waits (on the card, not here) for that of layer i − 1, whose memory
               is then free for layer i's own work
    backward   layer i: prefetch(i − 1) starts the copy back, take(i) waits for the copy that the layer above started

Values are copied, never rounded: gradients are those without offload, to the last bit. `HostStore` decides the order
only; `CudaCopies` copies. Tests of the order replace it by a plain copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor


class Copies(Protocol):
    """Asynchronous copies between a device and the host. An event marks the end of a copy."""

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Starts after all work queued so far. The caller holds `tensors` until it has called `wait(event)`."""

    def to_device(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Starts after all work queued so far. The results may be read after `wait(event)`."""

    def wait(self, event: Any) -> None:
        """Work queued from now on runs after `event`; this call itself does not block."""

    def finish(self, event: Any) -> None:
        """Blocks until `event`."""


class CudaCopies:
    """Copies through pinned memory on a side stream. PyTorch caches pinned buffers from one step to the next."""

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
        # allocated for the computing stream, which also frees it: so no record_stream, which frees memory late.
        # That stream's work so far may still use the memory that the allocator hands out: hence the side stream waits.
        copies = [torch.empty(t.shape, dtype=t.dtype, device=self.device) for t in tensors]
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            for t, host in zip(copies, tensors, strict=True):
                t.copy_(host, non_blocking=True)
            return copies, self.side.record_event()

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
        self._leaving: list[tuple[Any, list[Tensor]]] = []  # running copies, with their sources
        self._fetched: dict[int, tuple[list[Tensor], Any]] = {}

    def put(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Takes over the kept tensors of `layer`; the caller drops its own references."""
        self._settle()
        tensors = [t.detach() for t in tensors]  # else they hold their graph, and the graph holds this store
        self._host[layer], event = self._copies.to_host(tensors)
        self._leaving.append((event, tensors))

    def prefetch(self, layer: int) -> None:
        """Starts the copy back of the tensors of `layer`, where there are any and no copy runs yet."""
        if layer in self._host and layer not in self._fetched:
            self._settle()
            self._fetched[layer] = self._copies.to_device(self._host[layer])

    def take(self, layer: int) -> list[Tensor]:
        """The tensors of `layer`, back on the device; they stay there until `drop`."""
        self.prefetch(layer)
        tensors, event = self._fetched[layer]
        self._copies.wait(event)
        return tensors

    def drop(self, layer: int) -> None:
        """Frees the device's copy. The host's is freed with the graph."""
        del self._fetched[layer]

    def __del__(self) -> None:
        # fetched for a layer without a backward (it failed, or gradients of upper layers alone were wanted): the memory
        # must not be reused while the copy still writes to it
        for _, event in self._fetched.values():
            self._copies.finish(event)

    def _settle(self) -> None:
        """Drops the sources of the copies out: later work, which may reuse their memory, runs after those copies."""
        for event, _ in self._leaving:
            self._copies.wait(event)
        self._leaving.clear()


def host_store(device: torch.device) -> HostStore | None:
    """A store for a forward pass on a CUDA device; None elsewhere: on a CPU tensors are in host memory anyway."""
    return HostStore(cuda_copies(device)) if device.type == "cuda" else None
