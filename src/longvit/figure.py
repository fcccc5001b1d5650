"""matplotlib figures of the package: independent of pyplot, with the user's texts printed literally.

Class names, slide ids and folds come from a user's table. No text is typeset (`$x$` stays `$x$`). Characters that
cannot be drawn become �. A long name loses its middle. A plot that fails is replaced by its error, which is also
logged; nothing else is affected.
"""

from __future__ import annotations

import functools
import inspect
import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from longvit.errors import InputError
from longvit.files import atomic_path, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EMPTY_FILES = {
    ".svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
    ".png": bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
        "0000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
    ),
}
Drawing = ParamSpec("Drawing")
LONGEST_NAME, LONGEST_LINE, _MAX_LINES = 28, 160, 8
_FAILED_PLOTS: ContextVar[list[str] | None] = ContextVar("plots that failed", default=None)
_LOG = logging.getLogger("longvit.figure")
_UNDRAWABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line separators
_DIRECTION_MARKS = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c"}
_LITERAL_TEXT: Any = {"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "longvit"}


def new_figure(width_in: float, height_in: float, *, dpi: float | None = None) -> Figure:
    """An empty matplotlib figure, independent of any display and of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: str | Path, *, dpi: float | None = None) -> None:
    """Writes a matplotlib figure to `path` (.png or .svg), atomically; equal input gives equal bytes."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with _literal_text(), atomic_path(path) as temporary:
        for text in figure.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_text(drawable(text.get_text()))
        for axis in figure.findobj(Axis):  # recomputes its tick labels at every draw
            assert isinstance(axis, Axis)
            if isinstance(formatter := axis.get_major_formatter(), FuncFormatter):
                axis.set_major_formatter(partial(_drawable_tick, formatter))
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi or "figure", metadata=metadata)


def plot(*suffixes: str) -> Callable[[Callable[Drawing, object]], Callable[Drawing, Path]]:
    """Decorator for a function that draws into its argument `path`, and into the same name with each of `suffixes`.

    The decorated function returns `path`. Where drawing fails, an image of the error is written at each path. The error
    is logged and added to `not_drawn`. An `InputError` (a full disk) is raised.
    """

    def decorator(draw: Callable[Drawing, object]) -> Callable[Drawing, Path]:
        signature = inspect.signature(draw)

        @functools.wraps(draw)
        def drawn(*args: Drawing.args, **kwargs: Drawing.kwargs) -> Path:
            path = Path(signature.bind(*args, **kwargs).arguments["path"])
            try:
                with _literal_text():
                    draw(*args, **kwargs)
            except InputError:
                raise
            except Exception as error:  # matplotlib has no base class of its errors
                reason = _error_text(error)
            else:
                return path
            _report_failure(path, reason)
            for place in {path, *(path.with_suffix(suffix) for suffix in suffixes)}:
                _write_reason(place, reason)
            return path

        return drawn

    return decorator


@contextmanager
def only_plots(path: str | Path) -> Iterator[None]:
    """Limits a failure inside to the plots at `path`, and logs it. An `InputError` is raised."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        _report_failure(Path(path), _error_text(error))


def _report_failure(path: Path, reason: str) -> None:
    line = f"{drawable(str(path))}: not drawn: {reason}"
    _LOG.warning("%s", line)
    if (failures := _FAILED_PLOTS.get()) is not None:
        failures.append(line)


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {drawable(' '.join(str(error).split()))}"


@contextmanager
def not_drawn() -> Iterator[list[str]]:
    """Collects a line for each plot that fails inside the context."""
    failures: list[str] = []
    token = _FAILED_PLOTS.set(failures)
    try:
        yield failures
    finally:
        _FAILED_PLOTS.reset(token)


def _drawable_tick(label: Callable[[float, int | None], str], value: float, position: int | None = None) -> str:
    return drawable(label(value, position))


def drawable(text: str) -> str:
    """The text in at most `_MAX_LINES` lines of `LONGEST_LINE` characters, without undrawable characters."""
    lines = text.split("\n")
    shown = [short_name(line, LONGEST_LINE) for line in lines[:_MAX_LINES]]
    return "\n".join([*shown, "…"] if len(lines) > _MAX_LINES else shown)


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, at most `longest` characters, with … in place of the middle. Control characters, direction
    marks and broken characters become �."""
    if len(name) > longest:
        tail = longest // 3
        name = f"{name[: longest - tail - 1]}…{name[len(name) - tail :]}"
    return "".join("�" if c in _DIRECTION_MARKS or unicodedata.category(c) in _UNDRAWABLE else c for c in name)


@contextmanager
def _literal_text() -> Iterator[None]:
    """Overrides the typesetting settings of a user's matplotlibrc and silences the warning per missing letter."""
    from matplotlib import rc_context

    with rc_context(_LITERAL_TEXT), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _write_reason(path: Path, reason: str) -> None:
    """Writes an image of the error in place of a plot; it also replaces an older plot."""
    figure = new_figure(5.2, 2.0, dpi=100)
    style: Any = {"ha": "center", "va": "center", "wrap": True, "fontsize": 8, "color": "#777777"}
    figure.text(0.5, 0.5, f"This plot could not be drawn.\n{short_name(reason, 100)}", **style)
    try:
        write_figure(figure, path)
    except InputError:
        raise
    except Exception:  # nothing can be drawn at all: an empty image takes its place
        write_bytes(path, _EMPTY_FILES.get(path.suffix, b""))
