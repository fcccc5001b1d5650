"""longvit: one model for a whole slide. `import longvit` is light; torch loads on first use of a name that needs it.

Slides and cohorts: `open_slide`, `find_slides`, `read_cohort`, `read_bag`.
Models: `create_model`, `load_model`, `LongViT`, `dilated_attention`, `segment_schedule`.
Many slides: `embed_slides`, `predict_slides`, `canvas_slides`, `tile_slides`, `feature_slides`.
Training: `finetune`, `cross_validate`, `pretrain`, `compare`. In the browser or a notebook: `view`.

>>> import longvit
>>> slide = longvit.open_slide("examples/CMU-1-Small-Region.svs")
>>> model = longvit.load_model("longvit-tiny-stem")
>>> model.embed(slide).shape
(192,)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

_MODULES = {
    "InputError": "longvit.errors",
    "open_slide": "longvit.slides.reader",
    "find_slides": "longvit.data.slide_list",
    "read_cohort": "longvit.data.cohort_table",
    "read_bag": "longvit.data.bags",
    "LongViT": "longvit.model.longvit",
    "LongViTConfig": "longvit.model.longvit",
    "create_model": "longvit.model.longvit",
    "load_model": "longvit.model.pretrained",
    "segment_schedule": "longvit.model.longvit",
    "dilated_attention": "longvit.attention",
    "embed_slides": "longvit.slide_jobs.embed",
    "predict_slides": "longvit.slide_jobs.predict",
    "canvas_slides": "longvit.slide_jobs.canvas",
    "tile_slides": "longvit.slide_jobs.tiles",
    "feature_slides": "longvit.slide_jobs.features",
    "ReadSettings": "longvit.slide_jobs.reading",
    "RunSettings": "longvit.slide_jobs.run",
    "TileSettings": "longvit.slides.tiles",
    "TissueSettings": "longvit.slides.tissue",
    "finetune": "longvit.finetuning.run",
    "FinetuneSettings": "longvit.finetuning.settings",
    "cross_validate": "longvit.finetuning.crossval",
    "make_folds": "longvit.data.new_folds",
    "pretrain": "longvit.pretraining.run",
    "PretrainSettings": "longvit.pretraining.settings",
    "compare": "longvit.comparison.compare",
    "view": "longvit.viewer.notebook",
    "ComparisonSettings": "longvit.comparison.settings",
}
"""Module of each public name, imported on first use."""
__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:
    from longvit.attention import dilated_attention as dilated_attention
    from longvit.comparison.compare import compare as compare
    from longvit.comparison.settings import ComparisonSettings as ComparisonSettings
    from longvit.data.bags import read_bag as read_bag
    from longvit.data.cohort_table import read_cohort as read_cohort
    from longvit.data.new_folds import make_folds as make_folds
    from longvit.data.slide_list import find_slides as find_slides
    from longvit.errors import InputError as InputError
    from longvit.finetuning.crossval import cross_validate as cross_validate
    from longvit.finetuning.run import finetune as finetune
    from longvit.finetuning.settings import FinetuneSettings as FinetuneSettings
    from longvit.model.longvit import LongViT as LongViT
    from longvit.model.longvit import LongViTConfig as LongViTConfig
    from longvit.model.longvit import create_model as create_model
    from longvit.model.longvit import segment_schedule as segment_schedule
    from longvit.model.pretrained import load_model as load_model
    from longvit.pretraining.run import pretrain as pretrain
    from longvit.pretraining.settings import PretrainSettings as PretrainSettings
    from longvit.slide_jobs.canvas import canvas_slides as canvas_slides
    from longvit.slide_jobs.embed import embed_slides as embed_slides
    from longvit.slide_jobs.features import feature_slides as feature_slides
    from longvit.slide_jobs.predict import predict_slides as predict_slides
    from longvit.slide_jobs.reading import ReadSettings as ReadSettings
    from longvit.slide_jobs.run import RunSettings as RunSettings
    from longvit.slide_jobs.tiles import tile_slides as tile_slides
    from longvit.slides.reader import open_slide as open_slide
    from longvit.slides.tiles import TileSettings as TileSettings
    from longvit.slides.tissue import TissueSettings as TissueSettings
    from longvit.viewer.notebook import view as view


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'longvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
