"""A run as one HTML file that stands alone: figures, tables, pictures inside, readable on a phone, opens offline.

`Report` says what stands in it, `write_report` lays it out.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvit import __version__
from longvit.files import write_text

TEMPLATES = Path(__file__).parents[1] / "templates"
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class MetricCard:
    """One number that a reader looks for first."""

    name: str
    value: str
    more: str = ""
    """What it means or how sure it is, in a few words."""
    spread: str = ""
    """± what."""


@dataclass(frozen=True)
class ReportImage:
    """An image to be laid inside the file."""

    title: str
    data: bytes
    """PNG, JPEG or SVG."""
    caption: str = ""
    max_px: int = 0
    """Not wider than this on the page; 0: as wide as its place."""

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        kind = "png" if self.data[:4] == b"\x89PNG" else "jpeg" if self.data[:2] == b"\xff\xd8" else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Row:
    """A line of a table; `kind` is "strong", "wrong", "other" (not ours) or nothing."""

    cells: Sequence[str | ReportImage]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column names; those of `number_columns` (by index) stand flush right."""

    columns: Sequence[str]
    rows: Sequence[Row]
    number_columns: frozenset[int] = frozenset()
    caption: str = ""
    first_stays: bool = False
    """The first column stays in sight where the table is wider than the screen."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order: text, points, gallery, tables, pictures."""

    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[ReportImage] = ()
    gallery: Sequence[ReportImage] = ()
    """Small pictures in rows, each with its caption below."""
    side_by_side: bool = False
    """Pictures in two columns where the screen is wide enough."""
    folded: str = ""
    """Where given, the section is folded behind this line."""


@dataclass(frozen=True)
class Report:
    """What stands in the file."""

    title: str
    lead: Sequence[str]
    notes: Sequence[str]
    """What a reader must know before believing a number."""
    cards: Sequence[MetricCard]
    sections: Sequence[Section]


def write_report(report: Report, path: str | Path) -> Path:
    """Writes the HTML file, atomically; everything that came from a user is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(report=report, version=__version__)
    write_text(path, html)
    return Path(path)


def thumbnail_of(pixels: np.ndarray, title: str, caption: str = "", side_px: int = THUMBNAIL_PX) -> ReportImage:
    """uint8 (height, width, 3) as a small JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.BOX)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return ReportImage(title, data.getvalue(), caption)


def number(value: float | None, decimals: int = 2) -> str:
    """So many decimals, or a dash where the figure is not defined."""
    return "–" if value is None else f"{value:.{decimals}f}"
