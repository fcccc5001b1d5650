"""Exchange of tensors between all ranks: one all-to-all, started early and waited for late.

With an all-to-all, a rank receives the tensors of several segments in one message per peer. Ranks that share no segment
exchange nothing. A gather per segment would send the same bytes, but need a process group for each segment.
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
    """Traffic of this rank so far: bytes sent to and received from other ranks, and number of exchanges."""

    sent: int = 0
    received: int = 0
    exchanges: int = 0


class Exchange:
    """A running all-to-all: `outgoing[p]` are the tensors for rank p, `incoming[p]` the number of elements from p."""

    def __init__(
        self,
        outgoing: Sequence[Sequence[Tensor]],
        incoming: Sequence[int],
        like: Tensor,
        group: dist.ProcessGroup | None,
        wire: Wire | None = None,
    ) -> None:
        sizes = [sum(t.numel() for t in tensors) for tensors in outgoing]
        self._sent = like.new_empty(sum(sizes))  # kept until the exchange is done
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
        """The received tensors, one flat tensor per rank."""
        with waiting():
            self._work.wait()
        return list(torch.split(self._received, self._sizes))
