"""The small run as a process that can be stopped at any instant; forked from a server that has torch loaded."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimiser of a process loads it, which takes longer than the run
from tests.training.small_run import SETTINGS, run

from longvit.training.loop import Interrupted

RESUMED = replace(SETTINGS, epochs=4, ema=0.9)  # a checkpoint after every step


def whole_run(folder: Path, die_at: int | None = None) -> None:
    """The run to its end. `die_at`: SIGKILL instead of the n-th file operation (sync, rename, removal)."""
    torch.set_num_threads(1)
    count = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    os.fsync = counted(os.fsync)
    try:
        run(folder, seconds=0.005, settings=RESUMED)
    except Interrupted as error:
        sys.exit(error.exit_code)
    folder.with_suffix(".operations").write_text(str(count[0]))
