"""Progress of a long job: a bar on a terminal, otherwise a line every few seconds, so that a log file can be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Counts `total` things called `unit`; use it as a context manager and call `advance`.

    On a terminal: a bar with the time left. Elsewhere (a log, a pipe): one line at the start, one every
    `every_s` seconds and one at the end, each with count, share, time per thing and time left; a `brief` one keeps
    silent unless it takes that long. Time left counts only what this process did (`done` things of an earlier run do
    not make it look fast). One may run inside another: its bar stands below while it lasts.
    """

    is_silent = False
    """Whether this process leaves the talking to another one (a rank of a distributed run that is not the first)."""
    _live: Any = None  # rich allows one live display: an inner bar is a line of the outer one's

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "",
        done: int = 0,
        brief: bool = False,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._first, self._note, self._brief, self._has_spoken = done, "", brief, False
        self._stream = sys.stderr if stream is None else stream
        self._every_s, self._clock = every_s, clock
        self._start = self._last_line = clock()
        self._bar: Any = None
        self._task: Any = None
        self._is_outer = False

    def __enter__(self) -> Progress:
        self._start = self._clock()
        self._last_line = self._start if self._brief else self._start - self._every_s
        if self._stream.isatty() and not Progress.is_silent:
            self._is_outer = Progress._live is None
            if self._is_outer:
                Progress._live = self._new_display()
                Progress._live.start()
            self._bar = Progress._live
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, note="", unit=self.unit)
        return self

    def _new_display(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Display

        return Display(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self._stream),
        )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None and self._is_outer:
            self._bar.stop()
            Progress._live = None
        elif self._bar is not None:
            self._bar.remove_task(self._task)
        elif (self.done > self._first or kind is not None) and (self._has_spoken or not self._brief):
            self._line("stopped" if kind is not None else "done")

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more things are done; `note` (the loss, a slide's name) stands behind the count."""
        self.done += n
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif self.done < self.total and self._clock() - self._last_line >= self._every_s:
            self._line()

    def log(self, text: str) -> None:
        """One line of its own, above the bar."""
        if Progress.is_silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def _line(self, end: str = "") -> None:
        self._last_line, self._has_spoken = self._clock(), True
        if Progress.is_silent:
            return
        now = self._last_line
        count = self.done - self._first
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        each = (now - self._start) / count if count else 0.0
        parts = [f"{self.what}: {self.done}/{self.total}{' ' if self.unit else ''}{self.unit}{share}"]
        if count:
            parts.append(f"{each:.3g} s each")
        if end:
            parts.append(f"{end} after {clock_text(now - self._start)}")
        elif count:
            parts.append(f"{clock_text(each * (self.total - self.done))} left")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=self._stream, flush=True)


def clock_text(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
