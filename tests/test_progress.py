"""Progress that can be read in a log: when a line comes, and what it says."""

from __future__ import annotations

import io

import pytest

from longvit.progress import Progress, clock_text


def lines_of(total: int, seconds_each: float, *, done: int = 0, stop_at: int | None = None) -> list[str]:
    """What a job of `total` things writes to a log, by a clock of its own."""
    stream, now = io.StringIO(), [0.0]
    progress = Progress("canvases", total, unit="slides", done=done, stream=stream, clock=lambda: now[0])
    try:
        with progress:
            for i in range(done, total):
                now[0] += seconds_each
                progress.advance(note=f"s{i}")
                if i + 1 == stop_at:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return stream.getvalue().splitlines()


def test_a_long_job_says_where_it_is_every_ten_seconds() -> None:
    lines = lines_of(10, 6.0)
    assert lines[0] == "canvases: 1/10 slides (10 %), 6 s each, 0:54 left, s0"
    assert lines[1] == "canvases: 3/10 slides (30 %), 6 s each, 0:42 left, s2"
    assert lines[-1] == "canvases: 10/10 slides (100 %), 6 s each, done after 1:00, s9"
    assert len(lines) == 6


def test_a_job_of_many_quick_things_does_not_fill_the_log() -> None:
    assert len(lines_of(10_000, 0.001)) == 2


def test_time_left_does_not_count_what_an_earlier_run_did() -> None:
    assert lines_of(100, 20.0, done=98)[0] == "canvases: 99/100 slides (99 %), 20 s each, 0:20 left, s98"


def test_an_interrupted_job_says_how_far_it_came() -> None:
    assert lines_of(10, 1.0, stop_at=4)[-1] == "canvases: 4/10 slides (40 %), 1 s each, stopped after 0:04, s3"


def test_a_job_with_nothing_to_do_is_silent() -> None:
    assert lines_of(3, 1.0, done=3) == []


def test_a_brief_one_speaks_only_if_it_takes_long() -> None:
    for seconds_each, lines in ((0.1, 0), (4.0, 2)):
        stream, now = io.StringIO(), [0.0]
        with Progress("evaluating", 5, brief=True, stream=stream, clock=lambda now=now: now[0]) as progress:
            for _ in range(5):
                now[0] += seconds_each
                progress.advance()
        assert len(stream.getvalue().splitlines()) == lines


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_inside_a_bar_does_not_stop_the_job() -> None:
    """rich refuses a second live display; reading a slide shows progress inside making all canvases."""
    terminal = _Terminal()
    with Progress("training", 2, unit="steps", stream=terminal) as outer:
        for _ in range(2):
            with Progress("evaluating", 3, unit="slides", stream=terminal) as inner:
                inner.advance(3)
            outer.advance(note="loss 0.5")
        outer.log("a line of its own")
    text = terminal.getvalue()
    assert "training" in text
    assert "2/2" in text
    assert "a line of its own" in text
    with Progress("another", 1, stream=terminal) as again:
        again.advance()


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (3700, "1:01:40")])
def test_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
