"""Tile encoders by name: `open_encoder("stain-texture")`, `"timm:resnet50.a1_in1k"`, `"longvit:run/model"` …

    stain-texture       colour and texture statistics (`stain_texture`): no weights, runs anywhere
    timm:NAME           a model of the timm package, if installed; timm finds or downloads its weights
    hipt:FILE           HIPT's ViT-256 (Chen et al. 2022), from its published state dict
    longvit:FOLDER      a LongViT on tiles: the mean token after its norm; also the name of a shipped model or a hub id
                        (`model.pretrained.load_model`), e.g. `longvit:longvit-tiny-stem`
    torchscript:FILE    a module saved by torch.jit.save
    export:FILE         a program saved by torch.export.save with a batch of any size, on the CPU
    NAME, NAME=FILE     a published encoder of the table `encoders.presets`, e.g. `uni2-h=pytorch_model.bin`; without a
                        file its weights are taken from the hub's cache

An encoder maps uint8 RGB tiles to float32 vectors and normalises its input itself (files: with ImageNet's mean and SD,
with which almost all are trained). A file of the last two kinds *is* a program that is executed: open only files that
you trust. TorchScript's loader runs no pickled Python. That of torch.export would for some files, which are refused.

A new kind is a function `(source, side of a tile in px, device) -> TileEncoder`, its line in `KINDS`, and its form in
`encoder_names`.

B tiles of a batch, P side of a tile in px, D width.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.processes.cpu_count import cpu_count
from longvit.slide_jobs.encoder_names import encoder_name, split, split_preset
from longvit.torch_file import refuse_bomb

if TYPE_CHECKING:
    import torch
    from torch import nn

    from longvit.encoders.presets import Preset

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# Refused in a file of torch.export: objects that only pickle restores, compiled libraries.
_PICKLED = re.compile(r"(custom_obj_|opaque_obj_|\.so$|\.pyd$|\.dll$)")


class TileEncoder(ABC):
    """Encoder of tiles: images to vectors."""

    name: str
    """Name of the encoder and of the folder of its features."""
    digest: str
    """Hash of weights and settings, which determine its vectors."""
    dim: int
    """Width of a vector."""

    @abstractmethod
    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encodes RGB tiles uint8 (B, P, P, 3) as float32 (B, D)."""


def open_encoder(spec: str, tile_px: int, device: torch.device | None = None) -> TileEncoder:
    """Opens an encoder by its name, for tiles of this side, on a device (None: CPU).

    Raises `InputError` in one line for an unknown kind, a missing file or package, weights or tiles that do not fit.
    """
    if (named := split_preset(spec)) is not None:
        return _published(*named, tile_px, device)
    kind, source = split(spec)
    return KINDS[kind](source, tile_px, device)


class StainTexture(TileEncoder):
    """Colour and texture statistics (`stain_texture.describe_tile`), on all CPUs."""

    name = "stain-texture"

    def __init__(self, tile_px: int, threads: int | None = None) -> None:
        from longvit.slide_jobs.stain_texture import MIN_TILE_PX, NAMES, describe_tile

        if tile_px < MIN_TILE_PX:
            raise InputError(f"--tile-px {tile_px}: stain-texture needs tiles of at least {MIN_TILE_PX} px")
        self.dim, self._describe = len(NAMES), describe_tile
        self.digest = hashlib.sha256(f"{self.name} 1 {' '.join(NAMES)}".encode()).hexdigest()[:32]
        self._pool = ThreadPoolExecutor(threads or cpu_count(), thread_name_prefix="stain-texture")

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = list(self._pool.map(self._describe, tiles))
        return np.stack(rows) if rows else np.empty((0, self.dim), np.float32)


class TorchEncoder(TileEncoder):
    """Encoder by a torch module: normalised images (B, 3, P, P) to vectors (B, D)."""

    def __init__(
        self,
        name: str,
        module: Callable[[torch.Tensor], torch.Tensor],
        digest: str,
        tile_px: int,
        device: torch.device | None = None,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        input_px: int | None = None,
        resizing: Literal["bicubic", "bilinear", "crop"] = "bicubic",
    ) -> None:
        """Finds the width with two blank tiles. `input_px`: side to which tiles are resized (antialiased), or cropped
        around the centre where they are larger; None: they stay as they are."""
        import torch

        self.name, self.digest, self._module = name, digest, module
        self._device, self._input_px, self._resizing = device or torch.device("cpu"), input_px, resizing
        self._mean, self._std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (mean, std))
        blank = np.full((2, tile_px, tile_px, 3), 255, np.uint8)
        try:
            vectors = self._forward(blank)
        except Exception as error:
            text = one_line(error, 200)
            raise InputError(f"{name}: does not accept two tiles of {tile_px} × {tile_px} px: {text}") from error
        shape = tuple(getattr(vectors, "shape", ()))
        if len(shape) != 2 or shape[0] != 2:
            raise InputError(f"{name}: gives {shape or type(vectors).__name__} for two tiles, not (2, width)")
        self.dim = int(shape[1])

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._forward(tiles).float().cpu().numpy(), np.float32)

    def _forward(self, tiles: NDArray[np.uint8]) -> Any:
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2).float() / 255
            if self._input_px and images.shape[-1] != self._input_px:
                images = _fitted(images, self._input_px, self._resizing)
            return self._module((images - self._mean) / self._std)


def _fitted(images: torch.Tensor, side_px: int, resizing: str) -> torch.Tensor:
    """Images (B, 3, P, P) of another side, resized or cropped."""
    import torch

    margin = images.shape[-1] - side_px
    if resizing == "crop" and margin > 0:
        first = margin // 2
        return images[..., first : first + side_px, first : first + side_px]
    mode = "bicubic" if resizing == "crop" else resizing
    return torch.nn.functional.interpolate(images, (side_px, side_px), mode=mode, antialias=True).clamp_(0, 1)


def _published(preset: Preset, file: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    from longvit.encoders.weights import load_encoder, weights_file

    module = load_encoder(preset, file or weights_file(preset))
    mean, std = preset.normalisation
    return _of_module(
        preset.name, module, tile_px, device, mean=mean, std=std, input_px=preset.input_px, resizing=preset.resizing
    )


def _stain_texture(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    return StainTexture(tile_px)


def _timm(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    if find_spec("timm") is None:
        raise InputError(f"--encoder timm:{source}: the package timm is not installed; pip install timm")
    import timm

    try:
        module = timm.create_model(source, pretrained=True, num_classes=0)
    except Exception as error:  # an unknown name, no network, a gated model: timm raises errors of many types
        raise InputError(f"--encoder timm:{source}: {one_line(error, 200)}") from error
    config = timm.data.resolve_model_data_config(module)
    return _of_module(
        encoder_name(f"timm:{source}"), module, tile_px, device,
        mean=tuple(config["mean"]), std=tuple(config["std"]), input_px=int(config["input_size"][-1]),
    )  # fmt: skip


def _hipt(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    from longvit.baselines.hipt_vits import load_vit256

    module = load_vit256(_existing_file(source))
    # Its authors normalise with one half, and its positions are those of 256 px (16 × 16 patches).
    return _of_module(encoder_name(f"hipt:{source}"), module, tile_px, device, mean=HALF, std=HALF, input_px=256)


def _longvit(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    from longvit.slide_jobs.job import load_longvit, model_digest

    model = load_longvit(source)
    patch_px = model.config.patch_px
    if tile_px % patch_px:
        raise InputError(f"--tile-px {tile_px}: not a multiple of the {patch_px} px of a patch of {source}")
    digest = model_digest(model)
    model = model.eval().to(device) if device is not None else model.eval()

    def mean_token(images: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(images), pre_logits=True)

    return TorchEncoder(encoder_name(f"longvit:{source}"), mean_token, digest, tile_px, device)


def _torchscript(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    import torch

    path = _existing_file(source)
    try:
        refuse_bomb(path)
        module = torch.jit.load(str(path), map_location=device or "cpu").eval()
    except InputError:
        raise
    except Exception as error:  # errors of any type: the file cannot be read
        text = one_line(error, 120)
        raise InputError(f"{path}: not a file of torch.jit.save, or damaged ({text})") from error
    return TorchEncoder(encoder_name(f"torchscript:{source}"), module, _file_digest(path), tile_px, device)


def _export(source: str, tile_px: int, device: torch.device | None) -> TileEncoder:
    import torch
    from torch.export.passes import move_to_device_pass

    path = _existing_file(source)
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if _PICKLED.search(name)]
        if pickled:
            raise InputError(
                f"{path}: holds {pickled[0]}, which only running code from the file would restore; not opened"
            )
        refuse_bomb(path)
        with _no_pickled_code():
            program = torch.export.load(path)
            program = move_to_device_pass(program, device) if device is not None else program
            module = program.module()
    except InputError:
        raise
    except Exception as error:  # errors of any type: the file cannot be read
        text = one_line(error, 120)
        raise InputError(f"{path}: not a file of torch.export.save, or damaged ({text})") from error
    return TorchEncoder(encoder_name(f"export:{source}"), module, _file_digest(path), tile_px, device)


KINDS: Mapping[str, Callable[[str, int, Any], TileEncoder]] = {
    "stain-texture": _stain_texture,
    "timm": _timm,
    "hipt": _hipt,
    "longvit": _longvit,
    "torchscript": _torchscript,
    "export": _export,
}


def _of_module(
    name: str, module: nn.Module, tile_px: int, device: torch.device | None, **normalisation: Any
) -> TorchEncoder:
    from longvit.slide_jobs.job import weights_digest

    digest = weights_digest(module, f"{name} {sorted(normalisation.items())}")
    module = module.eval().to(device) if device is not None else module.eval()
    return TorchEncoder(name, module, digest, tile_px, device, **normalisation)


def _existing_file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()[:32]


@contextmanager
def _no_pickled_code() -> Iterator[None]:
    """Context in which torch.load opens tensors only, although torch.export's reader requests more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
