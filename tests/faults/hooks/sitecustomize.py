"""Python imports this at its start where this folder is on its path: faults in processes that a test does not start.

LONGVIT_FAULT="KIND FILE": what happens where that file is opened as a slide (`ends_of_runs`).
LONGVIT_FAULT_NOTES: a folder; a fault that passes leaves a note there and does not come again.
LONGVIT_FAULT_REMOVES: the folder that the fault `removed` takes away.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULES = ("longvit.slides.reader", "longvit.slide_jobs.work_list")


def happens(kind: str) -> None:
    """One fault."""
    if kind == "crash":
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "hang":
        import time

        time.sleep(600)
    elif kind in ("passing", "lasting"):
        if kind == "passing":
            try:
                Path(os.environ["LONGVIT_FAULT_NOTES"], "came").touch(exist_ok=False)
            except FileExistsError:
                return
        raise OSError(5, os.strerror(5))
    elif kind == "memory":
        raise MemoryError("no memory")
    elif kind == "removed":
        import shutil

        shutil.rmtree(os.environ["LONGVIT_FAULT_REMOVES"], ignore_errors=True)


def _change(module: ModuleType) -> None:
    if module.__name__ == "longvit.slide_jobs.work_list":
        module.RETRY_AFTER_S = 0.05  # type: ignore[attr-defined]
        return
    kind, file = os.environ["LONGVIT_FAULT"].split(" ", 1)
    open_slide: Callable[..., Any] = module.open_slide

    def faulty(path: Any, **settings: Any) -> Any:
        if Path(path).name == file:
            happens(kind)
        return open_slide(path, **settings)

    module.open_slide = faulty  # type: ignore[attr-defined]


class _Changing(importlib.abc.MetaPathFinder):
    """Finds a module as others do, and changes it once it is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in _MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def changed(module: ModuleType) -> None:
                execute(module)
                _change(module)

            spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


if "LONGVIT_FAULT" in os.environ:
    sys.meta_path.insert(0, _Changing())
