"""Many slides: a vector each (`embed_slides`), predictions (`predict_slides`) or canvases (`canvas_slides`), resumable,
by one process or by many on one or several machines. Light: a reading process loads nothing of the model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "BatchResult": "longvit.batch.run",
    "ReadSettings": "longvit.batch.reading",
    "RunSettings": "longvit.batch.run",
    "canvas_slides": "longvit.batch.canvas",
    "embed_slides": "longvit.batch.embed",
    "predict_slides": "longvit.batch.predict",
}
__all__ = ["BatchResult", "ReadSettings", "RunSettings", "canvas_slides", "embed_slides", "predict_slides"]

if TYPE_CHECKING:
    from longvit.batch.canvas import canvas_slides as canvas_slides
    from longvit.batch.embed import embed_slides as embed_slides
    from longvit.batch.predict import predict_slides as predict_slides
    from longvit.batch.reading import ReadSettings as ReadSettings
    from longvit.batch.run import BatchResult as BatchResult
    from longvit.batch.run import RunSettings as RunSettings


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'longvit.batch' has no attribute {name!r}")
