"""Plot of docs/dilated-attention.md: which token attends to which, as `longvit.dilated_attention` computes it.

python docs/_scripts/dilated_attention.py: writes docs/dilated-attention.png. The PNG holds a hash of what it shows, and
a test compares it with what the package computes now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from longvit import dilated_attention, segment_schedule
from longvit.figure import new_figure, write_figure

PLOT = Path(__file__).resolve().parents[1] / "dilated-attention.png"
TOKENS, HEADS = 64, 4
SEGMENTS, RATIOS = (16, 32, 64), (1, 2, 4)
RATIOS_OF_PAPER = (1, 2, 4, 8, 16)
LENGTHS = tuple(2**i for i in range(10, 21))


def weights(segments: Sequence[int], ratios: Sequence[int]) -> NDArray[np.float32]:
    """(heads, queries, keys) attention weights of equal scores: queries and keys are 0, values are unit vectors."""
    zeros = torch.zeros(1, TOKENS, HEADS, TOKENS)
    values = torch.eye(TOKENS)[None, :, None].expand(1, TOKENS, HEADS, TOKENS)
    out = dilated_attention(zeros, zeros, values, segment_lengths=segments, dilated_ratios=ratios)
    return out[0].transpose(0, 1).numpy()


def pairs(n_tokens: int) -> int:
    """Pairs of query and key of one head, in the paper's schedule."""
    branches = zip(segment_schedule(n_tokens), RATIOS_OF_PAPER, strict=True)
    return sum(n_tokens // w * (w // r) ** 2 for w, r in branches)


def panels() -> list[tuple[str, NDArray[np.float32]]]:
    """Title and matrix of each panel: 1 where any of the heads has a weight, by branch and then together."""
    found = [
        (
            f"segments of {w}, 1 of {r} tokens\none head" if r > 1 else f"segments of {w}\none head",
            weights((w,), (r,))[0],
        )
        for w, r in zip(SEGMENTS, RATIOS, strict=True)
    ]
    every = weights(SEGMENTS, RATIOS)
    return [*found, ("the three together\none head", every[0]), ("the three together\nall four heads", every.max(0))]


def content() -> str:
    """Hash of everything that the plot shows."""
    digest = hashlib.sha256()
    for title, matrix in panels():
        digest.update(title.encode() + np.packbits(matrix > 0).tobytes())
    digest.update(repr([pairs(n) for n in LENGTHS]).encode())
    return digest.hexdigest()


def draw(path: Path) -> None:
    figure = new_figure(11, 6.2, dpi=110)
    axes = figure.subplot_mosaic([["0", "1", "2"], ["3", "4", "cost"]])
    for i, (title, matrix) in enumerate(panels()):
        axes[str(i)].imshow(matrix > 0, cmap="Blues", vmin=0, vmax=1.25, interpolation="nearest")
        axes[str(i)].set_title(title, fontsize=9)
        axes[str(i)].set_xlabel("key", fontsize=8)
        axes[str(i)].set_ylabel("query", fontsize=8)
        axes[str(i)].tick_params(labelsize=7)
    cost = axes["cost"]
    cost.loglog(LENGTHS, [n * n for n in LENGTHS], label="every token with every token")
    cost.loglog(LENGTHS, [pairs(n) for n in LENGTHS], label="the paper's five branches")
    cost.set_xticks([2**10, 2**14, 2**17, 2**20], ["1,024", "16,384", "131,072", "1,048,576"])
    cost.set_yticks([1e6, 1e8, 1e10, 1e12], ["a million", "100 million", "10 billion", "a trillion"])
    cost.minorticks_off()
    cost.set_xlabel("patches", fontsize=8)
    cost.set_title("pairs of query and key, one head", fontsize=9)
    cost.tick_params(labelsize=7)
    cost.legend(fontsize=8)
    write_figure(figure, path)
    image = Image.open(path)
    image.load()
    note = PngImagePlugin.PngInfo()
    note.add_text("content", content())
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, pnginfo=note, optimize=True)


if __name__ == "__main__":
    draw(PLOT)
