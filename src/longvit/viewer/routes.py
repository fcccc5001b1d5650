"""Routes of the viewer: every form of path that has an answer, matched whole; numbers, digests and names only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from longvit.json_file import without_nan
from longvit.viewer.content import NotFoundError, Reply, ViewContent
from longvit.viewer.heat_map import COLOURS

_STATIC = {
    "viewer.js": "text/javascript; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
}
NUMBER = "(0|[1-9][0-9]{0,6})"
_TILE = rf"{NUMBER}/{NUMBER}_{NUMBER}"
_KEY = "([0-9a-f]{32})"
_COLOURS = f"({'|'.join(COLOURS)})"


@dataclass(frozen=True)
class Route:
    """Form of a path, and the answer from the parts in its brackets."""

    pattern: re.Pattern[str]
    answer: Callable[..., Reply]


def routes(content: ViewContent) -> tuple[Route, ...]:
    """All routes to the content of a viewer."""

    def as_json(value: Any) -> Reply:
        return Reply(json.dumps(without_nan(value), ensure_ascii=False).encode(errors="replace"), "application/json")

    def tile(number: str, digest: str, level: str, x: str, y: str) -> Reply:
        return content.tile(int(number), digest, int(level), int(x), int(y))

    def heat_tile(*parts: str) -> Reply:
        number, prediction, key, layer, colours, threshold, level, x, y = parts
        if int(threshold) > 100:
            raise NotFoundError
        places = int(level), int(x), int(y)
        return content.heat_tile(int(number), int(prediction), key, int(layer), colours, int(threshold), *places)

    def patch(number: str, prediction: str, key: str, layer: str, end: str, rank: str) -> Reply:
        return content.patch(int(number), int(prediction), key, int(layer), end, int(rank))

    def heat(number: str, prediction: str, verb: str) -> Reply:
        return as_json(content.heat(int(number), int(prediction), start=verb == "start"))

    table: dict[str, Callable[..., Reply]] = {
        "": lambda: Reply(static_file("page.html"), "text/html; charset=utf-8"),
        f"static/({'|'.join(map(re.escape, _STATIC))})": lambda name: Reply(static_file(name), _STATIC[name]),
        "list": lambda: as_json(content.overview()),
        f"slide/{NUMBER}": lambda number: as_json(content.slide(int(number))),
        f"heat/{NUMBER}/{NUMBER}/(state|start)": heat,
        rf"thumbnail/{NUMBER}\.jpg": lambda number: content.thumbnail(int(number)),
        rf"preview/{NUMBER}/{_KEY}\.jpg": lambda number, digest: content.preview(int(number), digest),
        rf"tile/{NUMBER}/{_KEY}/{_TILE}\.jpg": tile,
        rf"heat/{NUMBER}/{NUMBER}/{_KEY}/{NUMBER}/{_COLOURS}/{NUMBER}/{_TILE}\.png": heat_tile,
        rf"patch/{NUMBER}/{NUMBER}/{_KEY}/{NUMBER}/(top|bottom)/{NUMBER}\.jpg": patch,
    }
    return tuple(Route(re.compile(pattern), answer) for pattern, answer in table.items())


def static_file(name: str) -> bytes:
    """A file of the package's folder `viewer/static`."""
    return (resources.files("longvit.viewer") / "static" / name).read_bytes()
