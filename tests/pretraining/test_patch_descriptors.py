"""Patch descriptors: a paler stain, a turned crop or another batch changes nothing; parts agree with oracles."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from longvit.pretraining.patch_descriptors import NUMBERS, _blurred, _patterns, describe, optical_density


def tissue(n: int = 3, side_px: int = 64) -> Tensor:
    """Optical densities (n, 3, S, S) between 0.2 and 1.6, smooth with grain."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3, side_px, side_px))
    x = gaussian_filter(x, (0, 0, 2, 2)) * 4 + 0.3 * x
    low, high = x.min(), x.max()
    return torch.from_numpy(0.2 + 1.4 * (x - low) / (high - low)).float()


def pixels(density: Tensor) -> Tensor:
    """Pixels whose `optical_density` is the given one."""
    return (torch.exp(-density) - 1 / 255) * 255 / 254


def test_a_paler_stain_changes_no_descriptor() -> None:
    density = tissue()
    expected = describe(pixels(density), 32)
    assert expected.shape == (3, 4, NUMBERS)
    torch.testing.assert_close(optical_density(pixels(density)), density)
    changed = describe(pixels(1.3 * density + 0.2), 32)
    assert ((changed - expected).abs() < 1e-3).float().mean() > 0.99  # a pixel at a threshold may change its class
    assert (describe(pixels(density.flip(0)), 32) - expected).abs().mean() > 0.02  # other tissue has others


def test_a_turned_crop_has_the_same_descriptors_at_the_turned_places() -> None:
    crop = pixels(tissue(1))
    expected = describe(crop, 32).view(2, 2, NUMBERS)
    turned = describe(crop.rot90(1, (2, 3)), 32).view(2, 2, NUMBERS)
    torch.testing.assert_close(turned, expected.rot90(1, (0, 1)), atol=1e-4, rtol=1e-4)
    mirrored = describe(crop.flip(3), 32).view(2, 2, NUMBERS)
    torch.testing.assert_close(mirrored, expected.flip(1), atol=1e-4, rtol=1e-4)


def test_a_crop_is_described_alone_as_in_a_batch() -> None:
    crops = pixels(tissue())
    torch.testing.assert_close(describe(crops[1:2], 16), describe(crops, 16)[1:2], atol=1e-5, rtol=1e-5)


def test_an_empty_crop_has_finite_descriptors() -> None:
    assert describe(torch.ones(1, 3, 32, 32), 8).isfinite().all()


def test_patterns_are_those_of_the_definition() -> None:
    x = tissue(1)[:, :1]
    image = np.pad(x[0, 0].numpy(), 1, mode="reflect")
    ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    counts = np.zeros((2, 2, 10))
    for i in range(64):
        for j in range(64):
            centre = image[i + 1, j + 1] + np.float32(0.02)
            bits = [int(image[i + 1 + dy, j + 1 + dx] > centre) for dy, dx in ring]
            changes = sum(a != b for a, b in zip(bits, [*bits[1:], bits[0]], strict=True))
            counts[i // 32, j // 32, sum(bits) if changes <= 2 else 9] += 1
    np.testing.assert_allclose(_patterns(x, 1, 32)[0].permute(1, 2, 0).numpy(), counts / 1024, atol=1e-6)


def test_the_blur_is_gaussian() -> None:
    x = tissue(1)[:, :1]
    expected = gaussian_filter(x[0, 0].double().numpy(), 2.0, mode="mirror", radius=5)
    np.testing.assert_allclose(_blurred(x, 2.0)[0, 0].numpy(), expected, atol=1e-5)
