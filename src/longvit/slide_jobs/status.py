"""Status of a run over many slides, read from the files of its work list alone, on any machine."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longvit.errors import InputError
from longvit.processes.leases import EXPIRES_AFTER_S, Leases, folder_time, read_lease
from longvit.slide_jobs.work_list import RUN_JSON, WorkList
from longvit.slide_jobs.worker_log import ENDS, LogTail

_RATE_OVER_S = 600.0


@dataclass(frozen=True)
class Running:
    """A slide that a worker has taken."""

    slide: str
    stage: Literal["read", "model"]
    host: str
    process: int
    since_s: float
    """Seconds since the worker took it."""
    beat_s: float
    """Seconds since the worker's last heartbeat: it sends one every 5 s; after 60 s other workers take the slide."""


@dataclass(frozen=True)
class Failed:
    """A slide without a result."""

    slide: str
    stage: str
    error: str


@dataclass(frozen=True)
class RunStatus:
    """Status of one run; its counts add up to `total`."""

    verb: str
    """embed, predict, canvas, tiles, features or fetch."""
    state: Literal["running", "finished", "stopped"]
    """stopped: some slides have not ended, and the process that started the run is gone."""
    total: int
    done: int
    skipped: int
    """Finished by an earlier run."""
    failed: tuple[Failed, ...]
    running: tuple[Running, ...]
    waiting: int
    tried_again: int
    """Retries so far."""
    workers_lost: int
    per_hour: float | None
    """Slides done per hour, over the last ten minutes of work; None before the first one."""
    left_s: float | None
    """Estimated seconds to the end at that rate."""


def status(out_dir: str | Path) -> tuple[RunStatus, ...]:
    """Status of the runs of an output folder, one per verb. Raises `InputError` where there is none."""
    work = Path(out_dir) / "work"
    folders = sorted(path.parent for path in work.glob(f"*/{RUN_JSON}"))
    if not folders:
        raise InputError(
            f"{out_dir}: no run in it; name the folder that was --out of a command over many slides or of a training"
        )
    return tuple(_status(WorkList.read(folder)) for folder in folders)


def _status(work_list: WorkList) -> RunStatus:
    begun = work_list.settings["begun"]
    ends: dict[str, str] = {}
    failed: dict[str, Failed] = {}
    in_model: set[str] = set()
    done_at: list[float] = []
    retries = lost = 0
    first = last = None
    for _, line in LogTail(work_list.folder).new_lines():
        event, slide = line["event"], line.get("slide", "")
        last = line["t"] if last is None else max(last, line["t"])
        if event == "model":
            in_model.add(slide)
            first = line["t"] if first is None else min(first, line["t"])
        elif event in ENDS and slide not in ends:
            ends[slide] = event
            if event == "done":
                done_at.append(line["t"])
            elif event == "failed":
                failed[slide] = Failed(slide, str(line.get("stage", "?")), str(line.get("error", "?")))
        elif event == "again":
            retries += 1
            in_model.discard(slide)
        elif event == "died":
            lost += 1
    running = []
    now = _now(work_list.folder)
    for slide in sorted(work_list.present() - ends.keys()):
        path = work_list.slide_file(slide)
        content = read_lease(path)
        if content.get("settled"):
            ends[slide] = str(content.get("end", "failed"))
            if ends[slide] == "failed":
                failed[slide] = Failed(slide, str(content.get("stage", "?")), str(content.get("error", "?")))
            continue
        with contextlib.suppress(OSError):
            heartbeat = path.stat().st_mtime
            running.append(
                Running(
                    slide=slide,
                    stage="model" if slide in in_model else "read",
                    host=str(content.get("host", "?")).split(" ")[0],
                    process=_process_number(content.get("process")),
                    since_s=_seconds_since(content.get("since")),
                    beat_s=max(0.0, now - heartbeat),
                )
            )
    count = {end: sum(e == end for e in ends.values()) for end in ENDS}
    total = len(work_list.slides)
    lease_path = work_list.folder.parents[1] / f"{work_list.verb}.claim"
    is_alive = lease_path.exists() and not _is_expired(lease_path)
    state: Literal["running", "finished", "stopped"] = "finished"
    if len(ends) < total:
        state = "running" if is_alive else "stopped"
    until = time.time() if state == "running" else (last or begun)
    per_hour = _rate(done_at, first or begun, until)
    left = total - len(ends)
    return RunStatus(
        verb=work_list.verb,
        state=state,
        total=total,
        done=count["done"],
        skipped=count["skipped"],
        failed=tuple(failed[slide] for slide in sorted(failed)),
        running=tuple(running),
        waiting=total - len(ends) - len(running),
        tried_again=retries,
        workers_lost=lost,
        per_hour=per_hour,
        left_s=left / per_hour * 3600 if per_hour and state == "running" else None,
    )


def _process_number(process: object) -> int:
    return process if isinstance(process, int) else 0


def _rate(done_at: list[float], first: float, until: float) -> float | None:
    """Slides done per hour over the last `_RATE_OVER_S` seconds of work."""
    start = max(first, until - _RATE_OVER_S)
    recent = sum(t >= start for t in done_at)
    return 3600 * recent / max(1e-3, until - start) if recent else None


def _is_expired(lease_path: Path) -> bool:
    """True where the last heartbeat is a minute old by the folder's clock, or the process of this host is gone."""
    with contextlib.suppress(OSError):
        return Leases().is_expired(lease_path) or _now(lease_path.parent) - lease_path.stat().st_mtime > EXPIRES_AFTER_S
    return True


def _now(folder: Path) -> float:
    """Time by the folder's clock; by this machine's where the folder cannot be written to."""
    try:
        return folder_time(folder)
    except OSError:
        return time.time()


def _seconds_since(iso: object) -> float:
    from datetime import datetime

    try:
        return max(0.0, time.time() - datetime.fromisoformat(str(iso)).timestamp())
    except ValueError:
        return 0.0
