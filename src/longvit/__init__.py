"""longvit: one model that reads a whole slide. `import longvit` is light; torch loads on first use of a name below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "InputError": "longvit.errors",
    "open_slide": "longvit.slides.reader",
    "create_model": "longvit.model.longvit",
    "load_model": "longvit.model.pretrained",
    "segment_schedule": "longvit.model.longvit",
    "dilated_attention": "longvit.attention",
}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from longvit.attention import dilated_attention as dilated_attention
    from longvit.errors import InputError as InputError
    from longvit.model.longvit import create_model as create_model
    from longvit.model.longvit import segment_schedule as segment_schedule
    from longvit.model.pretrained import load_model as load_model
    from longvit.slides.reader import open_slide as open_slide


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'longvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
