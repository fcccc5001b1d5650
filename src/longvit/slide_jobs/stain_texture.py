"""What a tile looks like in 137 numbers: stain, colour and texture. No weights, no download, the same on every machine.

    density    the moments and quantiles of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001): the optical density
               OD = -log10((I + 1) / 256) of a pixel is a sum of the three stains' vectors, and solved for their amounts
    colour     mean and spread of red, green, blue and chroma; the share of glass; correlations of the stains
    patterns   histograms of uniform rotation-invariant local binary patterns (Ojala et al. 2002: "riu2", 8 neighbours)
    edges      size of the gradient, and how far all gradients of a tile point one way (the coherence of its structure
               tensor)
    grain      roughness between a scale and the next, and autocorrelation

Texture is described at three scales (the tile, halved, halved again), on haematoxylin and on the mean density. All
numbers are invariant to quarter turns and mirroring, and of the order of 1.

What differs from the papers: neighbours are those of the 3 × 3 square at each scale instead of a circle (nothing is
interpolated), histograms are square roots (so that the distance of two is Hellinger's), skewness and kurtosis are
arsinh, since theirs have no bound.

h, w size of a tile in px.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_TILE_PX = 32
_SCALES = (1, 2, 4)
_LAGS = (1, 2, 4, 8)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_GLASS = 220
_EPS = 1e-6

_OD = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).astype(np.float32)
# The neighbours of a pixel, around it.
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _riu2(code: int) -> int:
    """The class of a pattern of 8 bits: how many are set where they lie together on the ring, else 9."""
    bits = [code >> i & 1 for i in range(8)]
    changes = sum(bits[i] != bits[i - 1] for i in range(8))
    return sum(bits) if changes <= 2 else 9


_RIU2 = np.array([_riu2(code) for code in range(256)], np.uint8)
_STAIN_NAMES, _TEXTURES = ("haematoxylin", "eosin", "dab"), ("haematoxylin", "density")
NAMES: tuple[str, ...] = (
    *(f"{stain}_{what}" for stain in _STAIN_NAMES for what in ("mean", "sd", "skewness", "kurtosis")),
    *(f"{stain}_q{100 * q:.0f}" for stain in _STAIN_NAMES for q in _QUANTILES),
    *(f"{colour}_{what}" for what in ("mean", "sd") for colour in ("red", "green", "blue", "chroma")),
    "glass",
    *(f"correlation_{pair}" for pair in ("haematoxylin_eosin", "haematoxylin_dab", "eosin_dab")),
    *(
        f"{texture}_x{scale}_{what}"
        for texture in _TEXTURES
        for scale in _SCALES
        for what in (
            *(f"lbp{i}" for i in range(10)),
            "gradient_mean",
            "gradient_sd",
            "gradient_q95",
            "coherence",
            "roughness",
        )
    ),
    *(f"{texture}_autocorrelation_{2 * lag}px" for texture in _TEXTURES for lag in _LAGS),
)
"""What each number is."""


def describe_tile(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of one RGB tile, uint8 (h, w, 3), 32 px a side or more -> float32 (137,), in the order of `NAMES`."""
    assert tile.dtype == np.uint8, tile.dtype
    assert min(tile.shape[:2]) >= MIN_TILE_PX, tile.shape
    od = _OD[tile]
    # Written out rather than as a matrix product: the same bits on every machine.
    red, green, blue = (np.ascontiguousarray(od[..., i]) for i in range(3))
    stains = [red * _UNMIX[0, i] + green * _UNMIX[1, i] + blue * _UNMIX[2, i] for i in range(3)]
    textures = [stains[0], (red + green + blue) / 3]
    numbers: list[float] = []
    for stain in stains:
        numbers += _moments(stain)
    for stain in stains:
        numbers += np.quantile(_halved(stain), _QUANTILES).tolist()
    numbers += _colour(tile)
    numbers += [_correlation(stains[i], stains[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for texture in textures:
        for _ in _SCALES:
            smaller = _halved(texture)
            numbers += [*_patterns(texture), *_edges(texture), _roughness(texture, smaller)]
            texture = smaller
    for texture in textures:
        numbers += _autocorrelation(_halved(texture))
    return np.array(numbers, np.float32)


def _moments(x: NDArray[np.float32]) -> list[float]:
    mean = float(x.mean(dtype=np.float64))
    centred = x - np.float32(mean)
    square = centred * centred
    variance = float(square.mean(dtype=np.float64))
    third = float((square * centred).mean(dtype=np.float64))
    fourth = float((square * square).mean(dtype=np.float64))
    if variance < _EPS:  # a tile of one colour has no shape
        return [mean, variance**0.5, 0.0, 0.0]
    shape = np.arcsinh([third / variance**1.5, fourth / variance**2 - 3])
    return [mean, variance**0.5, float(shape[0]), float(shape[1])]


def _colour(tile: NDArray[np.uint8]) -> list[float]:
    red, green, blue = (np.ascontiguousarray(tile[..., i]) for i in range(3))
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    planes = [red, green, blue, high - low]
    means = [float(plane.mean(dtype=np.float64)) / 255 for plane in planes]
    spreads = [float(plane.std(dtype=np.float64)) / 255 for plane in planes]
    return [*means, *spreads, float((low > _GLASS).mean())]


def _correlation(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    x, y = x - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    norm = float((x * x).mean() * (y * y).mean()) ** 0.5
    return float((x * y).mean()) / norm if norm > _EPS else 0.0


def _patterns(x: NDArray[np.float32]) -> list[float]:
    """Square roots of the shares of the ten classes."""
    height, width = x.shape
    centre = x[1:-1, 1:-1]
    code = np.zeros(centre.shape, np.uint8)
    for bit, (dy, dx) in enumerate(_RING):
        neighbour = x[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
        code |= (neighbour >= centre).view(np.uint8) << np.uint8(bit)
    counts = np.bincount(_RIU2[code].ravel(), minlength=10)
    return np.sqrt(counts / code.size).tolist()


def _edges(x: NDArray[np.float32]) -> list[float]:
    along_x = (x[1:-1, 2:] - x[1:-1, :-2]) / 2
    along_y = (x[2:, 1:-1] - x[:-2, 1:-1]) / 2
    xx, yy, xy = (
        float((a * b).mean(dtype=np.float64)) for a, b in ((along_x, along_x), (along_y, along_y), (along_x, along_y))
    )
    size = np.sqrt(along_x * along_x + along_y * along_y)
    coherence = ((xx - yy) ** 2 + 4 * xy * xy) ** 0.5 / (xx + yy) if xx + yy > _EPS else 0.0
    return [
        float(size.mean(dtype=np.float64)),
        float(size.std(dtype=np.float64)),
        float(np.quantile(size, 0.95)),
        coherence,
    ]


def _roughness(x: NDArray[np.float32], smaller: NDArray[np.float32]) -> float:
    """The spread of pixels about the mean of their 2 × 2."""
    height, width = smaller.shape
    pairs = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    difference = pairs - smaller[:, None, :, None]
    return float((difference * difference).mean(dtype=np.float64)) ** 0.5


def _autocorrelation(x: NDArray[np.float32]) -> list[float]:
    """Along x and y, averaged, for each lag."""
    centred = x - x.mean(dtype=np.float64).astype(np.float32)
    variance = float((centred * centred).mean(dtype=np.float64))
    if variance < _EPS:
        return [0.0] * len(_LAGS)
    products = [(centred[:, lag:] * centred[:, :-lag], centred[lag:] * centred[:-lag]) for lag in _LAGS]
    return [float(h.mean(dtype=np.float64) + v.mean(dtype=np.float64)) / 2 / variance for h, v in products]


def _halved(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2 × 2 pixels; an odd last row or column is left out."""
    height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    x = x[:height, :width]
    sums = x[::2, ::2] + x[1::2, ::2] + (x[::2, 1::2] + x[1::2, 1::2])
    return np.asarray(sums / 4, np.float32)
