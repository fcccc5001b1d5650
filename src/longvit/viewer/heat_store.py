"""Heat maps of the viewer: made one after another in a thread when a slide is opened, kept in the run's folder.

RUN/view/<slide>_<key>.safetensors: values or colours of the patches, with their placement. The key covers the slide's
content, the weights and the settings. The files may be removed at any time; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from longvit.errors import InputError, describe_error
from longvit.files import atomic_path, file_stem
from longvit.slides.placement import Box, Placement
from longvit.viewer.heat_map import HeatMap, Layer, PatchColours, PatchHeat
from longvit.viewer.items import HeatRequest, ViewItem
from longvit.viewer.open_slides import OpenSlides

FOLDER = "view"
_MOST_KEPT = 32
_MOST_FILE_BYTES = 2**30


@dataclass
class HeatState:
    """State of a heat map: `waiting`, `ready`, or `failed` with its reason."""

    state: str = "waiting"
    key: str = ""
    heat: HeatMap | None = None
    reason: str = ""
    started: float = field(default_factory=time.monotonic)


class HeatStore:
    """Heat maps by slide and prediction. Threads may share it."""

    def __init__(self, slides: OpenSlides, items: list[ViewItem], folder: Path | None) -> None:
        self._slides, self._items = slides, items
        self._folder = None if folder is None else folder / FOLDER
        self._states: OrderedDict[tuple[int, int], HeatState] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="heat")

    def close(self) -> None:
        """Stops after the heat map in progress."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def request(self, number: int, prediction: int) -> HeatState | None:
        """State of a heat map, which starts if it is new; None where this prediction has none."""
        request = self._items[number].predictions[prediction].heat
        if request is None:
            return None
        with self._lock:
            place = (number, prediction)
            state = self._states.get(place)
            if state is None or (state.state == "failed" and time.monotonic() - state.started > 20):
                self._states[place] = state = HeatState()
                self._pool.submit(self._make, place, request, state)
            self._states.move_to_end(place)
            while len(self._states) > _MOST_KEPT:
                oldest = next(iter(self._states))
                if self._states[oldest].state == "waiting":
                    break
                del self._states[oldest]
            return state

    def ready(self, number: int, prediction: int, key: str) -> HeatMap | None:
        """The heat map of this key, if it is ready; None where it is not, or others took its place in memory."""
        with self._lock:
            state = self._states.get((number, prediction))
        if state is not None and state.state == "ready" and state.key == key:
            return state.heat
        return None

    def _make(self, place: tuple[int, int], request: HeatRequest, state: HeatState) -> None:
        item = self._items[place[0]]
        try:
            with self._slides.use(place[0]) as opened:
                key = hashlib.sha256(f"{opened.digest} {request.key}".encode()).hexdigest()[:32]
                path = None if self._folder is None else self._folder / f"{file_stem(item.slide_id)}_{key}.safetensors"
                heat = None if path is None else _read(path)
                if heat is None:
                    heat = request.make(opened)
                    if path is not None:
                        _write(path, heat)
            state.key, state.heat, state.state = key, heat, "ready"
        except Exception as error:  # the model and the slide fail in many ways; the slide has no heat map then
            state.reason, state.state = describe_error(error, 300), "failed"


def _write(path: Path, heat: HeatMap) -> None:
    """Stores a heat map of patches; tile scores are in the run already. A folder that is read-only stays as it is."""
    from safetensors.numpy import save_file

    if isinstance(heat, PatchHeat):
        tensors = {"values": np.ascontiguousarray(heat.per_patch)}
    elif isinstance(heat, PatchColours):
        tensors = {"colours": np.ascontiguousarray(heat.colours)}
    else:
        return
    placement = heat.placement
    metadata = {
        "bounds": asdict(placement.bounds),
        "side_px": placement.side_px,
        "fit": placement.fit,
        "layers": [asdict(layer) for layer in heat.layers],
    }
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"heat": json.dumps(metadata)})
    except InputError:
        pass


def _read(path: Path) -> HeatMap | None:
    """A stored heat map; None where there is none, or it is damaged."""
    from safetensors import safe_open

    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            return None
        with safe_open(path, "numpy") as file:
            stored = json.loads(file.metadata()["heat"])
            placement = Placement(Box(**stored["bounds"]), stored["side_px"], stored["fit"])
            layers = tuple(Layer(**layer) for layer in stored["layers"])
            if "colours" in file.keys():  # noqa: SIM118 (no mapping)
                colours = file.get_tensor("colours")
                return PatchColours(placement, colours, layers[0]) if colours.dtype == np.uint8 else None
            values = file.get_tensor("values")
            is_whole = values.ndim == 3 and len(values) == len(layers) and bool(np.isfinite(values).all())
            return PatchHeat(placement, values, layers) if is_whole else None
    except Exception:  # a damaged file fails in many ways; it is made again
        return None
