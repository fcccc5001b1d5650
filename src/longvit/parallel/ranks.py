"""The processes of one run: who this one is among them, and what they say to each other.

    torchrun --nproc-per-node 8 -m longvit train cohort.csv --sequence-ranks 4

makes 8 ranks, a mesh of 2 × 4: on the axis "data" each takes its share of the slides, on the axis "sequence" its
strip of every one of them. `ALONE` is the process without others, for which nothing here costs anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from longvit.errors import InputError
from longvit.parallel.shard import average_gradients
from longvit.parallel.watchdog import START_UP_S, RankLostError, Watchdog, use_watchdog, waiting
from longvit.progress import Progress

# The watch ends a run whose ranks wait in vain; the process groups' own time-out knows neither who nor why.
_FOR_EVER = timedelta(days=7)
_START_UP = timedelta(seconds=START_UP_S)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. All of them make the calls below, in the same order."""

    rank: int = 0
    world: int = 1
    data_rank: int = 0
    data_ranks: int = 1
    sequence_rank: int = 0
    sequence_ranks: int = 1
    mesh: DeviceMesh | None = None
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """The one that writes files and speaks to the user."""
        return self.rank == 0

    def busy(self, with_what: str) -> AbstractContextManager[None]:
        """Around what may take long on this rank alone; the others are patient while its process lives."""
        return nullcontext() if self.watchdog is None else self.watchdog.busy(with_what)

    def move(self) -> None:
        """Tells the others, now and then in a long computation, that it goes on."""
        if self.watchdog is not None:
            self.watchdog.move()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See `parallel.average_gradients`."""
        if self.world > 1:
            with waiting():
                average_gradients(parameters)

    def sum_over_data(self, values: Tensor) -> Tensor:
        """The sum over the shares of the slides, in place, the same bits on every rank."""
        return self._sum(values, "data", self.data_ranks)

    def sum_over_sequence(self, values: Tensor) -> Tensor:
        """The sum over the strips of a slide, in place, the same bits on every rank of it."""
        return self._sum(values, "sequence", self.sequence_ranks)

    def _sum(self, values: Tensor, axis: str, ranks: int) -> Tensor:
        if ranks > 1:
            assert self.mesh is not None
            with waiting():
                dist.all_reduce(values, group=self.mesh.get_group(axis))
        return values

    def highest(self, values: Sequence[int], device: torch.device) -> list[int]:
        """The highest of all ranks, for each of the values."""
        if self.world == 1:
            return list(values)
        of_all = torch.tensor(values, device=device)
        with waiting():
            dist.all_reduce(of_all, dist.ReduceOp.MAX)
            return [int(value) for value in of_all.tolist()]

    def from_first(self, value: Any) -> Any:
        """The first rank's JSON value, on every rank."""
        if self.world == 1:
            return value
        text = json.dumps(value).encode() if self.is_first else b""
        with waiting():
            size = torch.tensor([len(text)])
            dist.broadcast(size, 0)
            data = torch.empty(int(size.item()), dtype=torch.uint8)
            if self.is_first:
                data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            dist.broadcast(data, 0)
        return json.loads(bytes(data.numpy()))

    def tensors_from_first(self, tensors: Iterable[Tensor]) -> None:
        """The first rank's numbers in every rank's tensors, which have the same shapes."""
        for tensor in tensors if self.world > 1 else ():
            with waiting():
                dist.broadcast(tensor, 0)

    def from_all(self, value: Any, axis: Literal["data", "sequence"] | None = None) -> list[Any]:
        """Every rank's JSON value, in the order of the ranks; of an axis: of those beside this one on it."""
        count = {None: self.world, "data": self.data_ranks, "sequence": self.sequence_ranks}[axis]
        if count == 1:
            return [value]
        group = None if axis is None or self.mesh is None else self.mesh.get_group(axis)
        text = json.dumps(value).encode()
        sizes = [torch.empty(1, dtype=torch.int64) for _ in range(count)]
        with waiting():
            dist.all_gather(sizes, torch.tensor([len(text)]), group=group)
            longest = max(int(size.item()) for size in sizes)
            mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
            texts = [torch.empty_like(mine) for _ in range(count)]
            dist.all_gather(texts, mine, group=group)
        return [json.loads(bytes(t.numpy())) for t in texts]

    def wait_for_all(self) -> None:
        """Goes on when every rank has come here."""
        self.highest([0], torch.device("cpu"))


ALONE = Ranks()


@contextmanager
def all_ranks(sequence_ranks: int = 1, *, device: str = "auto", timeout_s: float = 40.0) -> Iterator[Ranks]:
    """The ranks that torchrun has started, until the end of the block; `ALONE` where it has started none.

    `sequence_ranks`: how many of them share a slide; the others take different slides. A rank that dies or hangs ends
    the others within about `timeout_s` + 10 s, with a line that names it: `RankLostError` where the main thread can
    raise it. An error of one rank ends the others too.

    Raises `InputError`: `sequence_ranks` above 1 without torchrun, or a number that does not divide the ranks.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        if sequence_ranks > 1:
            raise InputError(
                f"--sequence-ranks {sequence_ranks}: one process only; start it with torchrun --nproc-per-node "
                f"{sequence_ranks} -m longvit …"
            )
        yield ALONE
        return
    rank = int(os.environ["RANK"])
    if sequence_ranks < 1 or world % sequence_ranks:
        raise InputError(f"--sequence-ranks {sequence_ranks}: it must divide the number of ranks, {world}")
    uses_cuda = device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
    if uses_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, watchdog = _meeting_point(rank, world, timeout_s)
    Progress.is_silent = rank > 0
    try:
        watchdog.start()
        with watchdog.waiting():
            backends = "cpu:gloo,cuda:nccl" if uses_cuda else "gloo"
            dist.init_process_group(backends, store=store, rank=rank, world_size=world, timeout=_FOR_EVER)
            dist.barrier()
        # One backend for both kinds of device: figures and texts travel on the CPU also where the model is on a GPU.
        mesh = init_device_mesh(
            "cuda" if uses_cuda else "cpu",
            (world // sequence_ranks, sequence_ranks),
            mesh_dim_names=("data", "sequence"),
        )
        ranks = Ranks(
            rank,
            world,
            mesh.get_local_rank("data"),
            world // sequence_ranks,
            mesh.get_local_rank("sequence"),
            sequence_ranks,
            mesh,
            watchdog,
        )
        with use_watchdog(watchdog):
            yield ranks
            ranks.wait_for_all()  # a rank that leaves early would look dead to those who still compute
    except BaseException as error:
        raise _told(error, watchdog) from error
    watchdog.close()
    dist.destroy_process_group()


def _meeting_point(rank: int, world: int, timeout_s: float) -> tuple[dist.Store, Watchdog]:
    """The store of the process groups, and a watch with a connection of its own: its thread must not wait behind a
    collective's set-up. The launcher serves them; where it does not (mpirun), the first rank."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    name = f"longvit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    groups = dist.TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=_START_UP)
    own = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    watchdog = Watchdog(dist.PrefixStore(f"{name}/watch", own), rank, world, timeout_s=timeout_s)
    return dist.PrefixStore(f"{name}/groups", groups), watchdog


def _told(error: BaseException, watchdog: Watchdog) -> BaseException:
    """The error as this rank shall raise it, and the others told of it."""
    is_broken_collective = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "onnection" in str(error))
    )
    if is_broken_collective and (lost := watchdog.lost()):
        watchdog.fail(lost)
        return RankLostError(lost)
    text = " ".join(str(error).split()) or type(error).__name__
    watchdog.fail(text if isinstance(error, InputError) else f"{type(error).__name__}: {text}")
    if watchdog.rank > 0 and isinstance(error, InputError) and watchdog.said_by(0) == text:
        return SystemExit(2)  # the first rank has said it to the user
    return error
