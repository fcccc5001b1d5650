"""HTML page of a report: one self-contained file with metrics, tables and images, readable on a phone and offline.

`Report` holds the content, `write_report` renders it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvit import __version__
from longvit.files import write_text

TEMPLATES = Path(__file__).parents[1] / "templates"
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class MetricCard:
    """Headline number of a report."""

    name: str
    value: str
    more: str = ""
    """Short note: meaning, interval or comparison."""
    spread: str = ""
    """Standard deviation, printed after ±."""


@dataclass(frozen=True)
class ReportImage:
    """Image that is embedded in the file."""

    title: str
    data: bytes
    """PNG, JPEG or SVG."""
    caption: str = ""
    max_px: int = 0
    """Maximum width on the page; 0: the full width."""

    @property
    def uri(self) -> str:
        """Data URI of the image."""
        kind = "png" if self.data[:4] == b"\x89PNG" else "jpeg" if self.data[:2] == b"\xff\xd8" else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Row:
    """Row of a table; `kind` is "strong", "wrong", "other" (a published row or a baseline) or empty."""

    cells: Sequence[str | ReportImage]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Table of a report; the columns of `number_columns` (by index) are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Row]
    number_columns: frozenset[int] = frozenset()
    caption: str = ""
    first_stays: bool = False
    """The first column stays visible when the table is wider than the screen."""


@dataclass(frozen=True)
class Section:
    """Section of a report: a heading, then text, points, gallery, tables and plots in this order."""

    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[ReportImage] = ()
    gallery: Sequence[ReportImage] = ()
    """Small images in rows, each with its caption below."""
    side_by_side: bool = False
    """Plots in two columns where the screen is wide enough."""
    folded: str = ""
    """Label of the fold that hides the section; empty: not hidden."""


@dataclass(frozen=True)
class Report:
    """Content of a report."""

    title: str
    lead: Sequence[str]
    notes: Sequence[str]
    """Caveats, shown before the metrics."""
    cards: Sequence[MetricCard]
    sections: Sequence[Section]


def write_report(report: Report, path: str | Path, more: Sequence[Section] = ()) -> Path:
    """Writes the HTML file atomically, with `more` sections at its end; all text from a user is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(report=report, more=more, version=__version__)
    write_text(path, html)
    return Path(path)


def thumbnail_of(pixels: np.ndarray, title: str, caption: str = "", side_px: int = THUMBNAIL_PX) -> ReportImage:
    """Thumbnail of uint8 pixels (height, width, 3), as JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.BOX)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return ReportImage(title, data.getvalue(), caption)


def number(value: float | None, decimals: int = 2) -> str:
    """Number with so many decimals, or a dash where it is not defined."""
    return "–" if value is None else f"{value:.{decimals}f}"


def settings_table(settings: Mapping[str, Any], caption: str = "") -> Table:
    """Table of settings, a row each; values other than text are printed as JSON."""
    rows = [
        Row([name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)])
        for name, value in settings.items()
    ]
    return Table(("setting", "value"), rows, caption=caption)
