"""What the fuzz tests share: budgets, and the property that whatever is read gives a result or one line of InputError.

The budget of an ordinary test run is fixed and always draws the same; `make fuzz` (HYPOTHESIS_PROFILE=long) draws anew.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tests.faults.memory import begin_peak, status_bytes

from longvit.errors import InputError

Result = TypeVar("Result")
LIMIT_BYTES = 10**9
LIMIT_S = 30

settings.register_profile(
    "ci", derandomize=True, max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

NASTY = (
    "", " ", "a", "P01", "p01", "1", "1.0", "01", "-1", "0", "0.5", "1e400", "1e-320", "nan", "inf", "None", "none",
    "TRUE", "False",
    "train", "val", "test", "luad", "lusc", ",", ";", "\t", '"', '""', "'", "\r", "\n", "\r\n", "\0", "\ufeff",
    "\x1b[31m",
    "=1+1", "../..", "/etc/hostname", "a/b", "a\\b", "C:\\a", "$\\frac{$", "{{ 1 }}", "{% x", "<b>", "&lt;", "%s",
    "%", "~", "*", "[",
    "ä", "a\u0308", "🙂", "\u202e", "\u2028", "٣", "²", "x" * 300,
)  # fmt: skip


def nasty_text(max_pieces: int = 3) -> st.SearchStrategy[str]:
    """A short text of pieces that broke something somewhere."""
    return st.lists(st.sampled_from(NASTY), min_size=0, max_size=max_pieces).map("".join)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, of the sizes and types that a field does not expect."""
    numbers = st.sampled_from(
        [0, 1, -1, 2, 7, 33, 10**6, 10**9, 2**31, 2**40, 2**63, 10**30, -(2**40), 0.5, -0.5, 1e300]
    )
    odd = st.sampled_from([float("nan"), float("inf"), True, False, None, [], {}, [[]], [0], [None]])
    leaf = st.one_of(numbers, odd, nasty_text(2))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(nasty_text(1), inner, max_size=3)),
        max_leaves=5,
    )


def result_or_input_error(read: Callable[[], Result], path: Path | None = None) -> Result | None:
    """The result of a call; None where it refused its input in one line (that names `path`).

    Fails for any other error, for a peak of more than 1 GB over what the process had, and for more than 30 seconds.
    """
    before = status_bytes("VmRSS")
    begin_peak()
    try:
        with _limits():
            return read()
    except InputError as error:
        text = str(error)
        assert text, "a refusal without a word"
        assert len(text.splitlines()) == 1, f"a refusal of several lines: {text!r}"
        assert path is None or path.name in text, f"a refusal that does not name the file: {text!r}"
        return None
    finally:
        peak = status_bytes("VmHWM") - before
        assert peak < LIMIT_BYTES, f"{peak / 1e9:.1f} GB"


@contextmanager
def _limits() -> Iterator[None]:
    """A call that would fill the machine ends in a MemoryError, one that hangs in a TimeoutError."""

    def ends(*_: Any) -> None:
        raise TimeoutError(f"no answer in {LIMIT_S} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + 4 * LIMIT_BYTES, hard))
    # Seconds of a processor, since others may use the machine; and six times that in all, for a call that waits.
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT_S), signal.SIGALRM: (signal.ITIMER_REAL, 6 * LIMIT_S)}
    handlers = {number: signal.signal(number, ends) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
