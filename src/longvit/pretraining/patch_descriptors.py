"""Patch descriptors: 40 numbers of the texture of each patch of a crop, the targets of the objective `texture`.

They describe structure, not stain. Each is computed on optical density OD = -log I, averaged over the colours and
standardised by mean and spread of the crop. So a change of all densities by a factor or a summand changes nothing.

    patterns   histograms of uniform rotation-invariant local binary patterns (Ojala et al. 2002: "riu2"), two radii
    bands      size and sign of differences of Gaussians at four scales: nuclei are dark spots of one scale
    edges      size of the gradient, and the coherence of the structure tensor, at two scales
    nuclei     number of dark spots, share of dark and of bright pixels
    moments    mean and spread of density and of hue (red minus blue density), and their covariance

All are invariant to quarter turns and mirroring of the patch, except at borders of the crop, where the blur reflects.

n crops, S side in px, P side of a patch, N patches of a crop, K numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 40
"""K."""
MIN_CROP_PX = 32
_PATTERNS = 10
_RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
_NOISE = 0.02  # a neighbour counts as darker from this much of the crop's spread on
_EPS = 0.02
_LEAST_SPREAD = 0.05  # of a crop's density: the noise of an empty crop is not enlarged
_SPOT_PX, _SPOT_HEIGHT = 7, 0.4


def optical_density(crops: Tensor) -> Tensor:
    """Optical density of pixels in 0 … 1, about 0 on glass."""
    return -torch.log(crops * (254 / 255) + 1 / 255)


def describe(crops: Tensor, patch_px: int) -> Tensor:
    """Descriptors (n, N, 40), row-major, of crops float32 (n, 3, S, S) with pixels in 0 … 1.

    S is a multiple of P and of 4, at least 32.

    >>> import torch
    >>> from longvit.pretraining.patch_descriptors import describe
    >>> describe(torch.rand(2, 3, 64, 64), 32).shape
    torch.Size([2, 4, 40])
    """
    od = optical_density(crops)
    density = _standardised(od.mean(1, keepdim=True))
    hue = _standardised(od[:, :1] - od[:, 2:])
    once, twice = _blurred(density, 1.0), _blurred(density, 2.0)
    coarse = F.avg_pool2d(twice, 4)
    scales = [once, twice, *(_enlarged(_blurred(coarse, sigma)) for sigma in (0.9, 1.9))]

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, patch_px)

    rows = [_patterns(density, 1, patch_px), _patterns(once, 3, patch_px)]
    for finer, coarser in zip([density, *scales], scales, strict=False):
        band = finer - coarser
        rows += [torch.log(mean(band.abs()) + _EPS), mean(band * band.abs()) / (mean(band * band) + _EPS)]
    for x in (once, twice):
        down, right = _gradient(x)
        yy, xx, xy = mean(down * down), mean(right * right), mean(down * right)
        coherence = ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy + _EPS / 2)
        rows += [torch.log((xx + yy).sqrt() + _EPS), coherence]
    is_top = F.max_pool2d(twice, _SPOT_PX, 1, _SPOT_PX // 2) == twice
    spots = (is_top & (twice > _SPOT_HEIGHT)).float()
    rows += [100 * mean(spots), mean((density > 1).float()), mean((density < -1).float())]
    for x in (density, hue):
        rows += [mean(x), torch.log((mean(x * x) - mean(x) ** 2).clamp(min=0) + _EPS)]
    rows.append(mean(density * hue) - mean(density) * mean(hue))
    return torch.cat(rows, 1).flatten(2).transpose(1, 2)


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 over each crop, and spread 1 unless the crop is nearly empty."""
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True).clamp(min=_LEAST_SPREAD)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 1, h, w), reflected at the border; sums of shifted images, faster than a convolution."""
    radius = min(math.ceil(2.5 * sigma), min(x.shape[2:]) - 1)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for dim in (2, 3):
        border = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded, size = F.pad(x, border, mode="reflect"), x.shape[dim]
        x = padded.narrow(dim, radius, size) * (weights[0] / total)
        for i in range(1, radius + 1):
            pair = padded.narrow(dim, radius - i, size) + padded.narrow(dim, radius + i, size)
            x = x.add(pair, alpha=weights[i] / total)
    return x


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=4, mode="bilinear")


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of the neighbours of each pixel, down and to the right; 0 at the border of the crop."""
    down = F.pad(x[:, :, 2:] - x[:, :, :-2], (0, 0, 1, 1))
    right = F.pad(x[:, :, :, 2:] - x[:, :, :, :-2], (1, 1))
    return down, right


def _riu2(code: int) -> int:
    """Class of a pattern of 8 bits: the number of set bits if they are adjacent on the ring, else 9."""
    bits = [code >> i & 1 for i in range(8)]
    return sum(bits) if sum(bits[i] != bits[i - 1] for i in range(8)) <= 2 else 9


_CLASSES = torch.tensor([_riu2(code) for code in range(256)])


def _patterns(x: Tensor, radius: int, patch_px: int) -> Tensor:
    """Share of each class of pattern in each patch, (n, 10, rows, columns)."""
    n, _, height, width = x.shape
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    threshold = x + _NOISE
    code = torch.zeros(x.shape, dtype=torch.int32, device=x.device)
    for bit, (dy, dx) in enumerate(_RING):
        y, left = radius * (1 + dy), radius * (1 + dx)
        code += (padded[:, :, y : y + height, left : left + width] > threshold).int() << bit
    classes = _CLASSES.to(x.device)[code.long()].view(n, height // patch_px, patch_px, width // patch_px, patch_px)
    shape = n, height // patch_px, width // patch_px
    patch = torch.arange(math.prod(shape), device=x.device).view(n, shape[1], 1, shape[2], 1)
    counts = torch.bincount((_PATTERNS * patch + classes).flatten(), minlength=_PATTERNS * math.prod(shape))
    return counts.view(*shape, _PATTERNS).permute(0, 3, 1, 2).float() / patch_px**2
