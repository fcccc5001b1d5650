"""Heat maps that a model computes: contributions of patches to a class or a time bin, and patch tokens as colours."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.canvas_cache import CanvasSettings
from longvit.errors import InputError
from longvit.files import file_stem
from longvit.slide_jobs.job import config_of, digest_of
from longvit.slides.canvas import Canvas, read_canvas
from longvit.viewer.heat_map import HeatMap, Layer, PatchColours, PatchHeat, colour_limit
from longvit.viewer.items import HeatRequest

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.viewer.open_slides import OpenedSlide

_AUTOMATIC_SIDE_PX = 4096
"""Largest canvas whose heat map is made without a request: one forward pass of seconds, on a CPU too."""
_COLOUR_SIDE_PX = 2048
_MOST_LAYERS = 16
_MOST_MODELS = 2


class Models:
    """Models by folder, loaded on first use; the last two stay loaded."""

    def __init__(self, device: str = "auto") -> None:
        self._device = device
        self._models: OrderedDict[Path, LongViT] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, folder: Path) -> LongViT:
        """The model of a folder on its device. Raises `InputError` for anything else."""
        from longvit.device import pick_device
        from longvit.slide_jobs.job import load_longvit

        with self._lock:
            if folder not in self._models:
                self._models[folder] = load_longvit(folder).to(pick_device(self._device).device).eval()
                while len(self._models) > _MOST_MODELS:
                    self._models.popitem(last=False)
            self._models.move_to_end(folder)
            return self._models[folder]


def contributions_request(models: Models, folder: Path, canvas: Path | None = None) -> HeatRequest | None:
    """Heat map of the contributions to every output of the model in `folder`; None where the model is absent.

    `canvas`: canvas of the slide that the run made, used where it is that of the open slide.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        return None
    config = config_of(folder)
    if config.num_classes < 1:
        return None

    def make(opened: OpenedSlide) -> HeatMap:
        model = models.get(folder)
        slide_canvas = canvas_of(opened, model.config.image_px, model.config.fit, canvas)
        return contributions_heat(model, slide_canvas)

    key = digest_of(heat="contributions", model=_weights_key(folder), layers=_MOST_LAYERS)
    return HeatRequest(key, make, is_long=config.image_px > _AUTOMATIC_SIDE_PX)


def contributions_heat(model: LongViT, canvas: Canvas) -> PatchHeat:
    """Contributions of the patches to each output: of a class against the others, or to the hazard of a time bin."""
    from longvit.interpret import class_contributions, patch_contributions, tokens_of
    from longvit.tasks.task import task_class

    config = model.config
    tokens_1ND, _ = tokens_of(model, canvas)
    names = config.class_names or tuple(f"class {k}" for k in range(config.num_classes))
    meanings = task_class(config.task).meanings(names)
    maps, layers = [], []
    for k in range(min(config.num_classes, _MOST_LAYERS)):
        if task_class(config.task).outputs_are_classes:
            contributions = class_contributions(model, canvas, k, tokens_1ND=tokens_1ND)
            values = contributions.per_patch
            title = names[k]
            meaning = f"contribution to the {contributions.unit} of {title} against {contributions.others}"
        else:
            values = patch_contributions(model, canvas, k, tokens_1ND=tokens_1ND)
            title, meaning = meanings[k].title, f"contribution to the {meanings[k].unit}"
        maps.append(values)
        layers.append(Layer(title, meaning, True, colour_limit(values)))
    return PatchHeat(canvas.placement, np.stack(maps), tuple(layers))


def colours_request(models: Models, folder: Path) -> HeatRequest:
    """Patch tokens of a backbone as colours, on a canvas of the slide of at most 2,048 px."""

    def make(opened: OpenedSlide) -> HeatMap:
        model = models.get(folder)
        patch = model.config.patch_px
        longest = max(opened.pyramid.bounds.width, opened.pyramid.bounds.height)
        side = max(2, min(_COLOUR_SIDE_PX, int(longest)) // patch) * patch
        return token_colours(model, opened.slide.canvas(side, "pad", decode="reduced"))

    return HeatRequest(digest_of(heat="colours", model=_weights_key(folder), side=_COLOUR_SIDE_PX), make)


def token_colours(model: LongViT, canvas: Canvas) -> PatchColours:
    """First three principal components of the slide's patch tokens as red, green and blue."""
    from longvit.interpret import tokens_of
    from longvit.pretraining.token_images import principal_components

    tokens_1ND, rows = tokens_of(model, canvas)
    if model.config.pool_norm == "token_norm":
        import torch

        with torch.inference_mode():
            tokens_1ND = model.fc_norm(tokens_1ND)
    tokens = tokens_1ND[0].float().cpu().numpy()
    pca = principal_components(tokens)
    values = (tokens - pca.mean) @ pca.directions.T
    low, high = np.percentile(values, [1, 99], axis=0)
    values = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    colours = np.round(255 * values).astype(np.uint8).reshape(rows, -1, 3)
    shares = ", ".join(f"{share:.0%}" for share in pca.shares)
    meaning = f"first three principal components of this slide's patch tokens ({shares} of the variance)"
    return PatchColours(canvas.placement, colours, Layer("patch tokens", meaning, False, 1.0))


def canvas_of(opened: OpenedSlide, side_px: int, fit: Any, stored: Path | None) -> Canvas:
    """Canvas of the open slide: the stored one where it is of the same content, side and fit, else a new one."""
    if stored is not None:
        try:
            canvas = read_canvas(stored)
            is_same = canvas.source.identity == opened.digest and canvas.side_px == side_px
            if is_same and canvas.placement.fit == fit:
                return canvas
        except InputError:  # removed or damaged since
            pass
    return opened.slide.canvas(side_px, fit)


def stored_canvas(folder: Path, slide_id: str, settings: CanvasSettings) -> Path | None:
    """Canvas file of a slide in a run's folder of canvases, by its name; None where there is none."""
    start = f"{file_stem(slide_id)}_{settings.side_px}px_{settings.fit}_"
    return _canvas_files(folder).get(start)


@cache
def _canvas_files(folder: Path) -> dict[str, Path]:
    """Start of the name, up to the hash -> file, for all canvases of a folder."""
    return {f"{path.stem.rpartition('_')[0]}_": path for path in sorted(folder.glob("*px_*.tif"))}


def _weights_key(folder: Path) -> list[Any]:
    """Text that changes with the weights: their size and time of change, and the configuration."""
    status = (folder / "model.safetensors").stat()
    return [status.st_size, status.st_mtime_ns, (folder / "config.json").read_text(encoding="utf-8")]
