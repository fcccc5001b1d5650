"""Folder of a run: its settings, checked on resume; an exclusive lock; its metrics, written last.

run.json       settings that decide the result, and `slides_per_forward`; a run resumes only with the same
run.lock       held by the process that works in the folder
settings.yaml  all settings, as `--recipe` reads them
metrics.json   metrics; they mark a finished run
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longvit.data.problems import Problem, problem_rows, problems_of_rows
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.json_file import read_json_object, read_made, without_nan
from longvit.locks import acquire

if TYPE_CHECKING:
    from longvit.parallel.ranks import Ranks

METRICS_JSON = "metrics.json"


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run, read from its folder or returned by the run."""

    folder: Path
    """Folder with every file of the run."""
    metrics: dict[str, Any]
    """Content of metrics.json; a metric that is not defined is None."""
    problems: tuple[Problem, ...] = ()
    """Content of problems.csv."""
    was_finished: bool = False
    """True where the folder held a finished run with the same settings: nothing was computed."""


Result = TypeVar("Result", bound=RunResult)


class RunFolder:
    """Folder of a run. Every rank calls the same methods; the first rank alone reads and writes files."""

    def __init__(self, path: str | Path, ranks: Ranks | None = None) -> None:
        self.path, self.ranks = Path(path), ranks
        if self.is_first:
            make_folder(self.path)

    @property
    def is_first(self) -> bool:
        """True on the first rank."""
        return self.ranks is None or self.ranks.is_first

    def open(self, result_settings: Mapping[str, Any], per_forward: int) -> int:
        """Stores the settings that decide the result, or refuses the folder of another run.

        Returns the samples per forward pass with which the run began: they stay on resume, whatever the mesh.
        `InputError`: other settings (the difference named), or a damaged run.json.
        """
        if self.is_first:
            per_forward = _stored(self.path, result_settings, per_forward)
        return per_forward if self.ranks is None else int(self.ranks.from_first(per_forward))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the exclusive lock of the folder."""
        with exclusive_lock(self.path) if self.is_first else nullcontext():
            yield

    def write_settings(self, settings: Any) -> None:
        """Writes settings.yaml."""
        from longvit.config import settings_yaml

        if self.is_first:
            write_text(self.path / "settings.yaml", settings_yaml(settings))

    def publish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Writes metrics.json, with null for NaN; returns its content. Call it last: it marks a finished run."""
        text = json.dumps(without_nan(metrics), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(self.path / METRICS_JSON, text + "\n")
        return dict(json.loads(text))

    def from_first(self, result: Result | None, kind: type[Result]) -> Result | None:
        """The first rank's result, on every rank."""
        if self.ranks is None or self.ranks.world == 1:
            return result
        content = None
        if result is not None:
            content = [result.metrics, problem_rows(result.problems), result.was_finished]
        if (content := self.ranks.from_first(content)) is None:
            return None
        metrics, rows, was_finished = content
        return kind(self.path, metrics, problems_of_rows(rows), was_finished)


def read_metrics(folder: Path, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
    """Content of metrics.json, with values of these kinds (`json_file.read_made`); None where there is no such file.

    `InputError`: the file is damaged.
    """
    path = folder / METRICS_JSON
    try:
        return read_made(path, kinds)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged_metrics(folder, error) from error


def damaged_metrics(folder: Path, reason: object) -> InputError:
    """The error for a damaged metrics.json."""
    return InputError(f"{folder / METRICS_JSON}: damaged ({reason}); remove it and give the same command again")


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock that one process holds on a run folder; it ends with its process. `InputError`: another process has it."""
    with (folder / "run.lock").open("w") as lock:
        try:
            acquire(lock.fileno(), wait=False)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is using it; wait until it ends, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


def _stored(folder: Path, result_settings: Mapping[str, Any], per_forward: int) -> int:
    """Samples per forward pass of run.json, which is written here where the run begins."""
    from longvit.training.checkpoint import refuse_other_settings

    path = folder / "run.json"
    if not path.exists():
        content = {**result_settings, "slides_per_forward": per_forward}
        write_text(path, json.dumps(content, indent=1) + "\n")
        return per_forward
    try:
        saved = read_json_object(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); remove the folder to start again") from error
    per_forward = saved.pop("slides_per_forward", per_forward)
    if not isinstance(per_forward, int) or per_forward < 1:
        raise InputError(f"{path}: damaged (slides_per_forward); remove the folder to start again")
    refuse_other_settings(saved, result_settings, folder)
    return per_forward
