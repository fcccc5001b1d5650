"""Weights of a published encoder: a local file, the hub's cache, or (only where it is asked for) a download.

A file is opened without running code from it, and every tensor must have its place in the network.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from longvit.encoders.networks import PublishedEncoder
from longvit.encoders.parameter_names import translated
from longvit.encoders.presets import Preset
from longvit.errors import InputError, one_line
from longvit.model.checkpoints import filled, read_tensors


def load_encoder(preset: Preset, path: str | Path) -> PublishedEncoder:
    """The network of a preset with the weights of a file, in eval mode on the CPU.

    Raises `InputError` in one line: timm is absent, the file cannot be read, its tensors do not fit the network.

    >>> from longvit.encoders.presets import preset
    >>> from longvit.encoders.weights import load_encoder
    >>> encoder = load_encoder(preset("uni"), "uni.bin")  # normalised images (B, 3, 224, 224) -> (B, 1024)
    """
    tensors = translated(read_tensors(path), preset.names)
    key = "trunk.pos_embed"
    if preset.names == "transformers" and key in tensors and tensors[key].ndim == 3:
        tensors[key] = resized_positions(tensors[key], preset.tokens - preset.prefix_tokens)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    return filled(lambda: _without_counters(PublishedEncoder(preset)), tensors, path).eval()


def resized_positions(positions: Tensor, patches: int) -> Tensor:
    """Positions (1, 1 + M, C) of a square grid for another number of patches, as transformers does it.

    Bicubic without antialiasing; the class token's position stays. Positions of the right number stay as they are, and
    those of no square grid, which then do not fit.
    """
    old, new = round((positions.shape[1] - 1) ** 0.5), round(patches**0.5)
    if old == new or old**2 != positions.shape[1] - 1 or new**2 != patches:
        return positions
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def weights_file(preset: Preset, *, download: bool = False) -> Path:
    """The preset's file of weights in the hub's cache; with `download` fetched into it.

    Raises `InputError` in one line with the page to visit: not in the cache, a licence that was not accepted, no
    network, huggingface-hub is absent.
    """
    way_out = f"download {preset.files[0]} from {preset.page} and give --encoder {preset.name}=FILE"
    gate = f" (gated: accept its licence, {preset.licence}, there first)" if preset.gated else ""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
    except ImportError as error:
        raise InputError(
            f"--encoder {preset.name}: the package huggingface-hub is not installed; pip install 'longvit[encoders]', "
            f"or {way_out}{gate}"
        ) from error
    for name in preset.files:
        cached = try_to_load_from_cache(preset.hub, name)
        if isinstance(cached, str):
            return Path(cached)
    if not download:
        raise InputError(
            f"--encoder {preset.name}: its weights are not on this machine; {way_out}{gate}, or add --download"
        )
    reason = "no file of weights there"
    for name in preset.files:
        try:
            return Path(hf_hub_download(preset.hub, name))
        except GatedRepoError as error:
            raise InputError(
                f"--encoder {preset.name}: gated; accept its licence ({preset.licence}) on {preset.page}, then "
                "`hf auth login`"
            ) from error
        except LocalEntryNotFoundError:  # it is an EntryNotFoundError, too
            reason = "no connection to the hub"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # no network: errors of many types
            reason = one_line(error, 120)
            break
    raise InputError(f"--encoder {preset.name}: not downloaded ({reason}); {way_out}{gate}")


def _without_counters(model: PublishedEncoder) -> PublishedEncoder:
    """The model whose batch norms count no batches: the counters are integers, and unused in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked, module.track_running_stats = None, False
    return model
