"""Slide jobs: the canvas that a slide's result is computed from, the computation, and the record of the result.

A slide is done when its record `<slide_id>.json` exists in the output folder (written last, atomically). The record
holds a digest of everything that the result depends on: the slide's content, the weights, the settings. A resumed run
skips the slides whose digest is unchanged. A kill at any moment therefore loses at most the slides in progress.
"""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from longvit import __version__
from longvit.annotations.settings import AnnotationSettings
from longvit.config import typed
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, write_csv, write_text
from longvit.json_file import read_json_object
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError, with_mpp

if TYPE_CHECKING:
    from torch import nn

    from longvit.annotations.area_file import AreaFile
    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas


class SlideJob(ABC):
    """Job on every slide of a list: request a canvas, compute a result, write a record."""

    verb = "work on"
    ahead = 0
    """Slides that `prepare` works on at a time, ahead of the reader; 0: there is nothing to prepare."""

    def __init__(
        self, folder: str | Path, side_px: int, fit: Literal["stretch", "pad"], settings: ReadSettings | None = None
    ) -> None:
        self.folder = Path(folder)
        self.side_px, self.fit = side_px, fit
        self.settings = settings or ReadSettings()
        self.digest_inputs: dict[str, Any] = {}
        """Inputs of the digest besides the slide and its read settings."""
        self.read_s = 0.0
        """Seconds that the canvas of the current slide took to read."""

    @abstractmethod
    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        """Writes the result's files and returns their entries in the record.

        An `InputError` means that nothing can be written, and ends the run. Any other error is a failure of this slide
        alone, at the stage `model` or at the stage of a `SlideFailedError`.
        """

    def record_path(self, slide_id: str) -> Path:
        """Path of the slide's record; the slide is done when it exists."""
        return self.folder / f"{file_stem(slide_id)}.json"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if an earlier run wrote the result with this digest."""
        return read_record(self.record_path(slide_id)).get("digest") == digest

    def prepare(self, listed: ListedSlide, stopping: threading.Event) -> bool:
        """Makes a slide's file ready to be read, in one of `ahead` threads; returns early where `stopping` is set.

        False: an earlier run wrote the result. Raises `SlideFailedError`, or `InputError` where nothing can be written.
        """
        return True

    def release(self, listed: ListedSlide) -> None:  # noqa: B027 - most jobs hold nothing
        """Called when this worker is done with a slide, whatever its end, after `prepare`."""

    def close(self) -> None:  # noqa: B027 - most jobs hold nothing
        """Called when this worker ends: frees what the job holds."""

    def request(self, listed: ListedSlide) -> ReadRequest:
        """Read request for the canvas that the slide's result is computed from."""
        settings = with_mpp(self.settings, listed.mpp)
        return ReadRequest(listed.path, self.side_px, self.fit, settings, self.area_file(listed))

    def area_file(self, listed: ListedSlide) -> AreaFile | None:
        """Annotation file of the slide; None without annotations. Raises `SlideFailedError` where it is missing."""
        from longvit.annotations.area_file import find_area_file

        try:
            return find_area_file(self.settings, listed.slide_id)
        except Exception as error:
            raise SlideFailedError.from_error("open", error) from error

    def digest(self, identity: str, request: ReadRequest) -> str:
        """Hash of everything that the result of a slide with this content hash depends on."""
        read = asdict(request.settings)
        if read["decode"] == "exact":  # digests of runs before this setting stay valid
            del read["decode"]
        for field in fields(AnnotationSettings):  # the content of the annotations decides, not the folder
            del read[field.name]
        area = {} if request.area is None else request.area.key()
        parts = {**read, **area, **self.digest_inputs}
        return digest_of(verb=self.verb, slide=identity, side_px=request.side_px, fit=request.fit, **parts)

    def finish(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        """Computes the result, writes it, and returns its record.

        Raises `SlideFailedError`, or `InputError` where nothing can be written.
        """
        try:
            return self.record(listed, digest, canvas, self.compute(listed, digest, canvas))
        except (InputError, SlideFailedError):
            raise
        except Exception as error:
            raise SlideFailedError.from_error("model", error) from error

    def record(self, listed: ListedSlide, digest: str, canvas: Canvas, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Writes and returns a slide's record, after `compute` has written the result's files."""
        record = self._provenance(listed, digest, canvas) | dict(extra)
        write_text(self.record_path(listed.slide_id), json.dumps(record, indent=1) + "\n")
        return record

    def _provenance(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        mpp = canvas.source.mpp
        return {
            "slide_id": listed.slide_id,
            "path": str(listed.path),
            "mpp": asdict(mpp) if mpp else None,
            "n_bad_tiles": len(canvas.bad_tiles),
            "canvas": canvas.provenance(),
            "longvit": __version__,
            "digest": digest,
        }


class ModelJob(SlideJob):
    """Slide job that runs a LongViT."""

    def __init__(self, model: LongViT, folder: str | Path, settings: ReadSettings | None = None) -> None:
        super().__init__(folder, model.config.image_px, model.config.fit, settings)
        self.model = model.eval()
        self.model_digest = model_digest(model)
        self.digest_inputs = {"model": self.model_digest}

    def _provenance(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        model = {"digest": self.model_digest, **asdict(self.model.config)}
        return super()._provenance(listed, digest, canvas) | {"model": model}


def read_record(path: Path) -> dict[str, Any]:
    """A slide's record; empty if it is missing or unreadable."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def load_longvit(folder: str | Path) -> LongViT:
    """Loads a LongViT from its folder, on the CPU. Raises `InputError` for anything else."""
    from longvit.model.longvit import LongViT

    return LongViT.from_pretrained(folder)


_MOST_CLASSES = 100_000


class _ConfigFields:
    """Fields of a model's config that are needed before the model is built."""

    embed_dim: int
    num_classes: int
    class_names: tuple[str, ...]
    task: str
    image_px: int
    patch_px: int
    fit: str


def config_of(model: LongViT | str | Path) -> Any:
    """The `LongViTConfig` of a model, or of its folder (read without the weights and without torch)."""
    if not isinstance(model, str | Path):
        return model.config
    from types import SimpleNamespace

    path = Path(model) / "config.json"
    try:
        content = read_json_object(path, nan=False)
        known = {name: content[name] for name in get_type_hints(_ConfigFields)}
        config = SimpleNamespace(**typed(_ConfigFields, known, path))
        if not 0 <= config.num_classes <= _MOST_CLASSES:
            raise KeyError("num_classes")
        return config
    except (OSError, ValueError, KeyError):
        return load_longvit(model).config  # a hub id, or the one-line error


def digest_of(**parts: Any) -> str:
    """Hash of named values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


_LATER_SETTINGS = {"stem": "linear", "sub_norm": True, "init": "published"}
"""Settings that older versions lack, with the value that the hash leaves out, so that their results stay valid."""


def model_digest(model: LongViT) -> str:
    """Hash of a model's config and weights, independent of its folder."""
    settings = {
        name: value
        for name, value in asdict(model.config).items()
        if name not in _LATER_SETTINGS or value != _LATER_SETTINGS[name]
    }
    return weights_digest(model, json.dumps(settings, sort_keys=True, default=str))


def weights_digest(module: nn.Module, settings: str) -> str:
    """Hash of a module's weights and of a text that describes its settings."""
    import torch

    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows by column name as a CSV, atomically; a missing column is an empty cell."""
    write_csv(path, columns, ([row.get(column, "") for column in columns] for row in rows))
