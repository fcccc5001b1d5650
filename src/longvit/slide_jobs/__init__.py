"""Many slides: a vector each (`embed_slides`), predictions (`predict_slides`), canvases (`canvas_slides`), where their
tiles lie (`tile_slides`), features of the tiles (`feature_slides`); resumable, by one process or by many on one or
several machines. Light: a reading process loads nothing of the model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "SlideJobsResult": "longvit.slide_jobs.run",
    "ReadSettings": "longvit.slide_jobs.reading",
    "RunSettings": "longvit.slide_jobs.run",
    "canvas_slides": "longvit.slide_jobs.canvas",
    "embed_slides": "longvit.slide_jobs.embed",
    "feature_slides": "longvit.slide_jobs.features",
    "predict_slides": "longvit.slide_jobs.predict",
    "tile_slides": "longvit.slide_jobs.tiles",
}
__all__ = [
    "ReadSettings",
    "RunSettings",
    "SlideJobsResult",
    "canvas_slides",
    "embed_slides",
    "feature_slides",
    "predict_slides",
    "tile_slides",
]

if TYPE_CHECKING:
    from longvit.slide_jobs.canvas import canvas_slides as canvas_slides
    from longvit.slide_jobs.embed import embed_slides as embed_slides
    from longvit.slide_jobs.features import feature_slides as feature_slides
    from longvit.slide_jobs.predict import predict_slides as predict_slides
    from longvit.slide_jobs.reading import ReadSettings as ReadSettings
    from longvit.slide_jobs.run import RunSettings as RunSettings
    from longvit.slide_jobs.run import SlideJobsResult as SlideJobsResult
    from longvit.slide_jobs.tiles import tile_slides as tile_slides


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'longvit.slide_jobs' has no attribute {name!r}")
