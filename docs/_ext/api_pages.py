"""Reference of the Python API: pages by topic, from the docstrings of `longvit.__all__` and of the classes it returns.

A public name without a topic, or a topic with a name that does not exist, is an error of the build.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from generated import write_pages

import longvit

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "api"
PAGE = "python"
TOPICS = {
    "slides": (
        "Slides and canvases",
        ["longvit.open_slide", "longvit.find_slides", "longvit.canvas_slides", "longvit.ReadSettings"],
        [
            *("longvit.slides.reader.Slide", "longvit.slides.canvas.Canvas", "longvit.slides.mpp.Mpp"),
            *("longvit.slides.placement.Placement", "longvit.slides.placement.Box"),
            *("longvit.slides.pixel_reader.Level", "longvit.slides.pixel_reader.BadTile"),
            "longvit.data.slide_list.ListedSlide",
        ],
    ),
    "models": (
        "Models and attention",
        [
            *("longvit.create_model", "longvit.load_model", "longvit.LongViT", "longvit.LongViTConfig"),
            *("longvit.dilated_attention", "longvit.segment_schedule"),
        ],
        [],
    ),
    "jobs": (
        "Many slides",
        [
            *("longvit.embed_slides", "longvit.predict_slides", "longvit.tile_slides", "longvit.feature_slides"),
            *("longvit.RunSettings", "longvit.TileSettings", "longvit.TissueSettings"),
        ],
        ["longvit.slide_jobs.run.SlideJobsResult", "longvit.data.problems.Problem"],
    ),
    "training": (
        "Cohorts and training",
        [
            *("longvit.read_cohort", "longvit.make_folds", "longvit.finetune", "longvit.FinetuneSettings"),
            *("longvit.cross_validate", "longvit.pretrain", "longvit.PretrainSettings"),
        ],
        [
            *("longvit.finetuning.results.FinetuneResult", "longvit.finetuning.crossval.CrossValidation"),
            "longvit.pretraining.pretrain_result.PretrainResult",
            *("longvit.data.cohort.Cohort", "longvit.data.cohort.SlideRow", "longvit.data.folds.Fold"),
        ],
    ),
    "comparison": (
        "Comparison of systems",
        ["longvit.compare", "longvit.ComparisonSettings", "longvit.read_bag"],
        ["longvit.comparison.compare.Comparison", "longvit.data.bags.FeatureBag"],
    ),
    "viewer": ("Viewer and errors", ["longvit.view", "longvit.InputError"], ["longvit.viewer.notebook.View"]),
}
"""File → (title, public names, classes that they return)."""


def directive(path: str) -> str:
    """The autodoc directive of a name; a settings class has its inherited fields, with their descriptions."""
    module, _, name = path.rpartition(".")
    value = getattr(import_module(module), name)
    if not isinstance(value, type):
        return f".. autofunction:: {path}\n"
    settings = name.endswith(("Settings", "Config"))
    return f".. autoclass:: {path}\n   :members:\n" + ("   :inherited-members:\n" if settings else "")


def markdown(title: str, paths: list[str]) -> str:
    blocks = "\n".join(directive(path) for path in paths)
    return f"# {title}\n\n```{{eval-rst}}\n{blocks}```\n"


def write(app: Sphinx) -> None:
    listed = {path for _, names, _ in TOPICS.values() for path in names}
    public = {f"longvit.{name}" for name in longvit.__all__ if name != "__version__"}
    if listed != public:
        raise ValueError(f"docs/_ext/api_pages.py: topics and longvit.__all__ differ: {sorted(listed ^ public)}")
    write_pages(
        Path(app.srcdir) / FOLDER,
        {name: markdown(title, [*names, *results]) for name, (title, names, results) in TOPICS.items()},
    )


def add_menu(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == PAGE:
        lines = "\n".join(f"{FOLDER}/{name}" for name in TOPICS)
        source[0] += f"\n## Every public name\n\n```{{toctree}}\n:maxdepth: 1\n\n{lines}\n```\n"


_FIELDS: dict[str, list[str]] = {}


def keep_field(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keeps the docstring of a field before napoleon, which takes the words before its first colon for a type."""
    if what in ("attribute", "data", "property"):
        _FIELDS[name] = list(lines)


def restore_field(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    if name in _FIELDS:
        lines[:] = _FIELDS.pop(name)


def short_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """A settings class without its 50 fields, which follow one by one with their descriptions."""
    return ("(**fields)", "") if what == "class" and name.endswith("Settings") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", add_menu)
    app.connect("autodoc-process-docstring", keep_field, priority=100)
    app.connect("autodoc-process-docstring", restore_field, priority=900)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True}
