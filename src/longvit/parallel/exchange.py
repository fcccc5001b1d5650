"""Every rank gives every other rank some numbers: one collective, started early and waited for late.

An all-to-all rather than a gather in a group per segment: what a rank needs of several segments comes in one message
per peer, ranks that share no segment exchange nothing, and no process groups have to be made for each segment. The
bytes on the wire are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvit.parallel.watchdog import waiting


@dataclass
class Wire:
    """What this rank has sent to and received from other ranks so far, in bytes, and in how many exchanges."""

    sent: int = 0
    received: int = 0
    exchanges: int = 0


class Exchange:
    """An all-to-all on its way: `outgoing[p]` are the tensors for rank p, `incoming[p]` how many numbers p sends."""

    def __init__(
        self,
        outgoing: Sequence[Sequence[Tensor]],
        incoming: Sequence[int],
        like: Tensor,
        group: dist.ProcessGroup | None,
        wire: Wire | None = None,
    ) -> None:
        sizes = [sum(t.numel() for t in tensors) for tensors in outgoing]
        self._sent = like.new_empty(sum(sizes))  # kept until the work is done
        at = 0
        for t in (t for tensors in outgoing for t in tensors):
            self._sent[at : at + t.numel()].view(t.shape).copy_(t)
            at += t.numel()
        self._sizes = list(incoming)
        self._received = like.new_empty(sum(incoming))
        self._work: Any = dist.all_to_all_single(
            self._received, self._sent, self._sizes, sizes, group=group, async_op=True
        )
        if wire is not None:
            wire.sent += self._sent.numel() * self._sent.element_size()
            wire.received += self._received.numel() * self._received.element_size()
            wire.exchanges += 1

    def wait(self) -> list[Tensor]:
        """What each rank sent, one flat tensor per rank."""
        with waiting():
            self._work.wait()
        return list(torch.split(self._received, self._sizes))
