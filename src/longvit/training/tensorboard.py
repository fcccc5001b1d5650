"""The figures of a run as TensorBoard event files (`tensorboard --logdir OUT`), through the small `tensorboardX`.

A run that goes on writes a further file whose first event tells TensorBoard to forget every step after the
checkpoint, so no step is shown twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvit.errors import InputError


class EventFiles:
    """Writes scalars; `first_step` is the first step (1 …) that this process writes.

    Raises `InputError` where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard: needs tensorboardX; pip install 'longvit[tensorboard]'") from error
        purge = {"purge_step": first_step} if first_step > 1 else {}
        # The name holds the second it was made in: two processes of one second must not write one file.
        self._writer: Any = SummaryWriter(str(folder), filename_suffix=f".{first_step:08d}.{os.getpid()}", **purge)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """The figures of a step or an epoch as `kind/name` at `step`."""
        for name, value in metrics.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Onto the disk: called before a checkpoint, which vouches for the steps up to it."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
