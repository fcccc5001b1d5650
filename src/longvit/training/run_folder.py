"""The folder of a run: begun with these settings, and one process at work in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.files import write_text
from longvit.json_file import read_json_object


def claim(folder: Path, result_settings: Mapping[str, Any], slides_per_forward: int) -> int:
    """Writes run.json, or refuses a folder that was started with other settings or another cohort; → slides that share
    a forward pass, as the run began."""
    from longvit.training.checkpoint import refuse_other_settings

    path = folder / "run.json"
    if path.exists():
        try:
            saved = read_json_object(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); remove the folder to start anew") from error
        slides_per_forward = saved.pop("slides_per_forward", slides_per_forward)
        if not isinstance(slides_per_forward, int) or slides_per_forward < 1:
            raise InputError(f"{path}: damaged (slides_per_forward); remove the folder to start anew")
        refuse_other_settings(saved, result_settings, folder)
    else:
        content = {**result_settings, "slides_per_forward": slides_per_forward}
        write_text(path, json.dumps(content, indent=1) + "\n")
    return slides_per_forward


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Two processes in one run folder would trip over each other's files; the lock goes with its process."""
    import fcntl

    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is at work in it; wait for it, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
