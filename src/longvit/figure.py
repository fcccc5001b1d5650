"""Every matplotlib figure of the package: apart from pyplot, with the user's words as they are.

Class names, slide ids and folds come from a user's table. So no text is typeset (`$x$` stays `$x$`), what cannot be
drawn as a letter becomes �, and a long name loses its middle. A plot that fails says so in its place and in the log,
and costs nothing else.
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

_EMPTY = {
    ".svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
    ".png": bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
        "0000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
    ),
}
Drawing = ParamSpec("Drawing")
LONGEST_NAME, LONGEST_LINE, _MOST_LINES = 28, 160, 8
_HEARD: ContextVar[list[str] | None] = ContextVar("plots that failed", default=None)
_LOG = logging.getLogger("longvit.figure")
_UNDRAWABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of a surrogate pair, separators of lines
_MARKS_OF_DIRECTION = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c"}
_AS_IT_IS: Any = {"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "longvit"}


def new_figure(width_in: float, height_in: float, *, dpi: float | None = None) -> Figure:
    """An empty figure that no display and no pyplot knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: str | Path, *, dpi: float | None = None) -> None:
    """Writes `path` (.png or .svg), atomically; the same figure gives the same bytes."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with _as_it_is(), atomic_path(path) as temporary:
        for text in figure.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_text(drawable(text.get_text()))
        for axis in figure.findobj(Axis):  # sets the words of its ticks anew whenever it is drawn
            assert isinstance(axis, Axis)
            if isinstance(words := axis.get_major_formatter(), FuncFormatter):
                axis.set_major_formatter(partial(_drawable_tick, words))
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi or "figure", metadata=metadata)


def plot(*suffixes: str) -> Callable[[Callable[Drawing, object]], Callable[Drawing, Path]]:
    """For a function that draws into its argument `path`, and into the same name with each of `suffixes`.

    The decorated function returns `path`. Where the drawing fails, a sheet that says why stands at each place, and the
    log (and `not_drawn`) has a line. An `InputError` (a full disk) comes through.
    """

    def decorator(draw: Callable[Drawing, object]) -> Callable[Drawing, Path]:
        signature = inspect.signature(draw)

        @functools.wraps(draw)
        def drawn(*args: Drawing.args, **kwargs: Drawing.kwargs) -> Path:
            path = Path(signature.bind(*args, **kwargs).arguments["path"])
            try:
                with _as_it_is():
                    draw(*args, **kwargs)
            except InputError:
                raise
            except Exception as error:  # matplotlib has no kind of its own
                reason = _words_of(error)
            else:
                return path
            _tell(path, reason)
            for place in {path, *(path.with_suffix(suffix) for suffix in suffixes)}:
                _write_reason(place, reason)
            return path

        return drawn

    return decorator


@contextmanager
def only_plots(path: str | Path) -> Iterator[None]:
    """What fails within costs the pictures at `path` alone; the log has a line. An `InputError` comes through."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        _tell(Path(path), _words_of(error))


def _tell(path: Path, reason: str) -> None:
    line = f"{drawable(str(path))}: not drawn: {reason}"
    _LOG.warning("%s", line)
    if (heard := _HEARD.get()) is not None:
        heard.append(line)


def _words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {drawable(' '.join(str(error).split()))}"


@contextmanager
def not_drawn() -> Iterator[list[str]]:
    """A line for each plot that fails within."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def _drawable_tick(words: Callable[[float, int | None], str], value: float, place: int | None = None) -> str:
    return drawable(words(value, place))


def drawable(text: str) -> str:
    """The text in lines of at most `LONGEST_LINE` characters, each one with a picture of its own or a space."""
    lines = text.split("\n")
    shown = [short_name(line, LONGEST_LINE) for line in lines[:_MOST_LINES]]
    return "\n".join([*shown, "…"] if len(lines) > _MOST_LINES else shown)


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line: control characters, marks of direction and broken characters are �; one of more than
    `longest` characters has … for its middle."""
    if len(name) > longest:
        tail = longest // 3
        name = f"{name[: longest - tail - 1]}…{name[len(name) - tail :]}"
    return "".join("�" if c in _MARKS_OF_DIRECTION or unicodedata.category(c) in _UNDRAWABLE else c for c in name)


@contextmanager
def _as_it_is() -> Iterator[None]:
    """Whatever a user's matplotlibrc says of typesetting; a missing letter is a box without a warning for each."""
    from matplotlib import rc_context

    with rc_context(_AS_IT_IS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _write_reason(path: Path, reason: str) -> None:
    """In place of a plot; of an older one too, which would pass for it."""
    figure = new_figure(5.2, 2.0, dpi=100)
    words: Any = {"ha": "center", "va": "center", "wrap": True, "fontsize": 8, "color": "#777777"}
    figure.text(0.5, 0.5, f"This plot could not be drawn.\n{short_name(reason, 100)}", **words)
    try:
        write_figure(figure, path)
    except InputError:
        raise
    except Exception:  # then nothing can be drawn at all; whoever shows the plot finds an empty one
        write_bytes(path, _EMPTY.get(path.suffix, b""))
