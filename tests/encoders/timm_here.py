"""timm for the tests of published encoders: they skip, with the reason, where it is not installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from longvit.encoders.presets import Preset, preset

_LIBRARIES: list[torch.library.Library] = []
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 28, "patch_size": 14}


def require_timm() -> None:
    """Imports timm, or skips the test.

    A torchvision of another build lacks its compiled operators and fails on import. timm needs none of them, so the
    two that torchvision mentions are declared without a body.
    """
    if getattr(sys.modules.get("timm"), "__spec__", ...) is None:
        pytest.skip("another test has put a stand-in for timm in this process")
    if find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install 'longvit[encoders]'")
    try:
        import timm
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            pytest.skip(f"timm cannot be imported: {error}")
        _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _LIBRARIES[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm  # noqa: F401


def small(name: str) -> Preset:
    """A preset with a network of two narrow layers and four patches, to be filled with random weights."""
    row = preset(name)
    depth = {key: value for key, value in SMALL.items() if key not in ("depth", "num_heads") or row.tokens}
    prefix = row.prefix_tokens
    dim = {"cls": 32, "cls+mean": 64}.get(row.pooling, row.dim)
    return replace(row, arguments={**row.arguments, **depth}, dim=dim, tokens=4 + prefix, input_px=28, tile_px=(28,))
