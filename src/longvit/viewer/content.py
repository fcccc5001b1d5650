"""Content that the viewer serves: the list, a slide's properties, tiles, heat tiles, patches, thumbnails and notes.

Slides are named by their number in the list, never by a path. Every URL of pixels holds the digest of the slide or of
the heat map, so a browser may keep what it got.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longvit.errors import InputError, describe_error
from longvit.viewer.byte_cache import ByteCache
from longvit.viewer.heat_map import HeatMap, Patch, PatchColours
from longvit.viewer.heat_store import HeatState, HeatStore
from longvit.viewer.item_json import brief, patch_json, prediction_json, without_folder
from longvit.viewer.items import ViewItem, ViewItems
from longvit.viewer.open_slides import OpenSlides
from longvit.viewer.pyramid import TILE_PX
from longvit.viewer.review import Note, Review
from longvit.viewer.tile_images import jpeg, reason_image

CACHE_BYTES = 64 * 2**20
_THUMBNAIL_PX = 160
_PATCH_PX = 144
_EXTREMES = 12


class NotFoundError(Exception):
    """A slide, tile, layer or heat map that does not exist."""


@dataclass(frozen=True)
class Reply:
    """Body of an answer; `is_lasting`: its URL names this content and no other."""

    body: bytes
    type: str
    is_lasting: bool = False


class ViewContent:
    """Answers for one `ViewItems`. Threads may share it."""

    def __init__(self, items: ViewItems) -> None:
        self.items = items
        self.slides = OpenSlides(self._path_of)
        self.heats = HeatStore(self.slides, list(items.items), items.folder)
        self.review = None if items.folder is None else Review(items.folder)
        self.cache = ByteCache(CACHE_BYTES)
        self._thumbnail_lock = threading.Lock()  # thumbnails of a list wait for each other, not tiles for them

    def close(self) -> None:
        """Closes all slides and ends the thread of the heat maps."""
        self.heats.close()
        self.slides.close()

    def overview(self) -> dict[str, Any]:
        """All slides in brief, with their notes."""
        notes: dict[str, Note] = {}
        problem = ""
        if self.review is not None:
            try:
                notes = self.review.notes()
            except InputError as error:
                problem = str(error)
        return {
            "kind": self.items.kind,
            "title": self.items.title,
            "notes": [*self.items.notes, *([problem] if problem else [])],
            "has_review": self.review is not None,
            "items": [brief(item, notes.get(item.slide_id, Note())) for item in self.items.items],
        }

    def slide(self, number: int) -> dict[str, Any]:
        """Properties of a slide; with `problem` in place of its size where it cannot be opened."""
        item = self._item(number)
        properties: dict[str, Any] = {
            "number": number,
            "id": item.slide_id,
            "is_canvas": item.is_canvas,
            "recorded_bad_tiles": item.bad_tiles,
            "predictions": [prediction_json(prediction) for prediction in item.predictions],
            "neighbours": [[n, round(similarity, 4)] for n, similarity in item.neighbours],
        }
        try:
            with self.slides.use(number) as opened:
                slide, bounds, mpp = opened.slide, opened.pyramid.bounds, opened.slide.mpp
                properties |= {
                    "digest": opened.digest,
                    "width": int(bounds.width),
                    "height": int(bounds.height),
                    "max_level": opened.pyramid.max_level,
                    "tile_px": TILE_PX,
                    "overview_level": opened.overview_level,
                    "has_preview": opened.sample_grid is not None,
                    "file": slide.path.name,
                    "size_px": list(slide.size_px),
                    "corner": [int(bounds.x), int(bounds.y)],
                    "mpp": None if mpp is None else [mpp.x, mpp.y],
                    "mpp_source": "" if mpp is None else mpp.source,
                    "vendor": slide.vendor,
                    "reader": f"{slide.reader} ({slide.reader_version})",
                    "levels": [list(level.size_px) for level in slide.levels],
                    "notes": list(slide.notes),
                    "bad_tiles": [str(tile) for tile in slide.bad_tiles[:20]],
                    "bad_tile_count": len(slide.bad_tiles),
                }
        except InputError as error:
            properties["problem"] = without_folder(str(error), item.path)
        return properties

    def heat(self, number: int, prediction: int, *, start: bool) -> dict[str, Any]:
        """State of a heat map: none, on_request, waiting, failed, or ready with its layers and extreme patches."""
        item = self._item(number)
        if not 0 <= prediction < len(item.predictions):
            raise NotFoundError
        request = item.predictions[prediction].heat
        if request is None:
            return {"state": "none"}
        if request.is_long and not start:
            return {"state": "on_request"}
        state = self.heats.request(number, prediction)
        assert state is not None
        if state.state != "ready" or state.heat is None:
            return {"state": state.state, "reason": without_folder(state.reason, item.path)}
        return {"state": "ready", "key": state.key, "layers": self._layers(state)}

    def _layers(self, state: HeatState) -> list[dict[str, Any]]:
        assert state.heat is not None
        layers = []
        for i, layer in enumerate(state.heat.layers):
            top, bottom = state.heat.extremes(i, _EXTREMES)
            layers.append(
                {
                    "name": layer.name,
                    "meaning": layer.meaning,
                    "is_signed": layer.is_signed,
                    "is_colours": isinstance(state.heat, PatchColours),
                    "limit": layer.limit,
                    "top": [patch_json(patch) for patch in top],
                    "bottom": [patch_json(patch) for patch in bottom],
                }
            )
        return layers

    def tile(self, number: int, digest: str, level: int, x: int, y: int) -> Reply:
        """JPEG tile of a slide; of a slide that cannot be opened, its reason."""
        item = self._item(number)
        try:
            with self.slides.use(number) as opened:
                if opened.digest != digest or not opened.pyramid.has(level, x, y):
                    raise NotFoundError
                body = self.cache.get(("tile", digest, level, x, y), lambda: opened.tile(level, x, y))
                return Reply(body, "image/jpeg", is_lasting=True)
        except InputError as error:
            return Reply(reason_image(without_folder(str(error), item.path)), "image/jpeg")

    def preview(self, number: int, digest: str) -> Reply:
        """JPEG of the whole slide, blurred, to be shown until the overview is read."""
        self._item(number)
        with self.slides.use(number) as opened:
            if opened.digest != digest or opened.sample_grid is None:
                raise NotFoundError
            body = self.cache.get(("preview", digest), lambda: jpeg(opened.preview()))
            return Reply(body, "image/jpeg", is_lasting=True)

    def heat_tile(
        self,
        number: int,
        prediction: int,
        key: str,
        layer: int,
        colours: str,
        threshold: int,
        level: int,
        x: int,
        y: int,
    ) -> Reply:
        """PNG tile of a heat map in the slide's own pyramid; `threshold` in percent of the limit."""
        heat = self._ready(number, prediction, key, layer)
        with self.slides.use(number) as opened:
            if not opened.pyramid.has(level, x, y):
                raise NotFoundError
            box, size = opened.pyramid.box(level, x, y), opened.pyramid.size(level, x, y)
        name = ("heat", key, layer, colours, threshold, level, x, y)
        body = self.cache.get(name, lambda: heat.png(layer, box, *size, colours, threshold / 100))
        return Reply(body, "image/png", is_lasting=True)

    def patch(self, number: int, prediction: int, key: str, layer: int, end: str, rank: int) -> Reply:
        """JPEG of a patch at one end (`top`, `bottom`) of the values."""
        top, bottom = self._ready(number, prediction, key, layer).extremes(layer, _EXTREMES)
        patches: list[Patch] = top if end == "top" else bottom
        if rank >= len(patches):
            raise NotFoundError
        box = patches[rank].box
        scale = _PATCH_PX / max(box.width, box.height)
        size = max(1, round(box.width * scale)), max(1, round(box.height * scale))
        with self.slides.use(number) as opened:
            name = ("patch", key, layer, end, rank)
            body = self.cache.get(name, lambda: jpeg(opened.pixels.area(box, *size)))
        return Reply(body, "image/jpeg", is_lasting=True)

    def thumbnail(self, number: int) -> Reply:
        """JPEG of the whole slide, from the run's canvas where there is one; of a bad slide, its reason."""
        item = self._item(number)
        try:
            return Reply(self.cache.get(("thumbnail", number), lambda: self._thumbnail(number, item)), "image/jpeg")
        except Exception as error:  # a damaged file fails in many ways
            reason = without_folder(describe_error(error, 200), item.path)
            return Reply(reason_image(reason, _THUMBNAIL_PX, _THUMBNAIL_PX * 3 // 4), "image/jpeg")

    def set_note(self, number: int, verdict: str, comment: str) -> dict[str, Any]:
        """Writes a note; the answer is the note. Raises `InputError` where that fails."""
        item = self._item(number)
        if self.review is None:
            raise InputError("notes are kept in the folder of a run; these slides belong to none")
        note = Note(verdict, " ".join(comment.split()))
        self.review.set(item.slide_id, note)
        return {"verdict": note.verdict, "comment": note.comment}

    def _thumbnail(self, number: int, item: ViewItem) -> bytes:
        with self._thumbnail_lock:
            return self._made_thumbnail(number, item)

    def _made_thumbnail(self, number: int, item: ViewItem) -> bytes:
        if item.canvas is not None and not item.is_canvas:
            from longvit.slides.canvas import read_canvas

            canvas = read_canvas(item.canvas)
            bounds, image = canvas.placement.bounds, canvas.placement.image_box
            scale = _THUMBNAIL_PX / max(bounds.width, bounds.height)
            size = max(1, round(bounds.width * scale)), max(1, round(bounds.height * scale))
            box = (image.x, image.y, image.right, image.bottom)
            small = Image.fromarray(canvas.pixels).resize(size, Image.Resampling.BOX, box=box)
            return jpeg(np.asarray(small.convert("RGBX")))
        with self.slides.use(number) as opened:
            return jpeg(opened.thumbnail(_THUMBNAIL_PX))

    def _item(self, number: int) -> ViewItem:
        if not 0 <= number < len(self.items.items):
            raise NotFoundError
        return self.items.items[number]

    def _ready(self, number: int, prediction: int, key: str, layer: int) -> HeatMap:
        self._item(number)
        heat = self.heats.ready(number, prediction, key)
        if heat is None or not 0 <= layer < len(heat.layers):
            raise NotFoundError
        return heat

    def _path_of(self, number: int) -> tuple[Path, float | None]:
        item = self.items.items[number]
        if item.path is None:
            raise InputError(item.problem or f"{item.slide_id}: no file of this slide; give --slides-dir or --cohort")
        return item.path, item.mpp
