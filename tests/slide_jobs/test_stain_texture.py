"""The encoder without weights, against loops in float64 written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.slides.slide_files import tissue

from longvit.slide_jobs.stain_texture import NAMES, describe_tile

SIDE = 40


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    return tissue(SIDE, SIDE)


@pytest.fixture(scope="module")
def numbers(tile: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, describe_tile(tile).tolist(), strict=True))


@pytest.fixture(scope="module")
def stains(tile: np.ndarray) -> dict[str, np.ndarray]:
    """Each pixel's density solved for the stains' unit vectors; and the mean density."""
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    vectors = np.array([v / math.sqrt(sum(v * v)) for v in vectors])
    amounts = np.empty((SIDE, SIDE, 4))
    for y in range(SIDE):
        for x in range(SIDE):
            od = np.array([-math.log10((int(c) + 1) / 256) for c in tile[y, x]])
            amounts[y, x, :3] = np.linalg.solve(vectors.T, od)
            amounts[y, x, 3] = od.mean()
    return {name: amounts[..., i] for i, name in enumerate(("haematoxylin", "eosin", "dab", "density"))}


def halved(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return np.array([[x[2 * j : 2 * j + 2, 2 * i : 2 * i + 2].mean() for i in range(width)] for j in range(height)])


def scales(x: np.ndarray) -> dict[int, np.ndarray]:
    return {1: x, 2: halved(x), 4: halved(halved(x)), 8: halved(halved(halved(x)))}


def test_there_are_137_numbers_each_with_a_name_of_its_own(numbers: dict[str, float]) -> None:
    assert len(NAMES) == len(set(NAMES)) == 137
    assert all(math.isfinite(value) and abs(value) < 10 for value in numbers.values())


def test_densities_are_those_of_the_stains(numbers: dict[str, float], stains: dict[str, np.ndarray]) -> None:
    for name in ("haematoxylin", "eosin", "dab"):
        x = stains[name]
        mean, sd = x.mean(), x.std()
        z = (x - mean) / sd
        wanted = {
            "mean": mean,
            "sd": sd,
            "skewness": math.asinh((z**3).mean()),
            "kurtosis": math.asinh((z**4).mean() - 3),
            "q5": np.quantile(halved(x), 0.05),
            "q50": np.quantile(halved(x), 0.5),
            "q95": np.quantile(halved(x), 0.95),
        }
        for what, value in wanted.items():
            assert numbers[f"{name}_{what}"] == pytest.approx(value, abs=2e-4), what
    for one, other in (("haematoxylin", "eosin"), ("haematoxylin", "dab"), ("eosin", "dab")):
        wanted_r = np.corrcoef(stains[one].ravel(), stains[other].ravel())[0, 1]
        assert numbers[f"correlation_{one}_{other}"] == pytest.approx(wanted_r, abs=1e-4)


def test_colours_are_those_of_the_pixels(numbers: dict[str, float], tile: np.ndarray) -> None:
    flat = tile.reshape(-1, 3).astype(float)
    for i, colour in enumerate(("red", "green", "blue")):
        assert numbers[f"{colour}_mean"] == pytest.approx(flat[:, i].mean() / 255, abs=1e-6)
        assert numbers[f"{colour}_sd"] == pytest.approx(flat[:, i].std() / 255, abs=1e-6)
    assert numbers["chroma_mean"] == pytest.approx((flat.max(1) - flat.min(1)).mean() / 255, abs=1e-6)
    assert numbers["glass"] == pytest.approx((flat.min(1) > 220).mean(), abs=1e-6)


def test_patterns_are_counted_as_ojala_defines_them(numbers: dict[str, float], stains: dict[str, np.ndarray]) -> None:
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for texture in ("haematoxylin", "density"):
        for scale, x in scales(stains[texture]).items():
            if scale == 8:
                continue
            counts = np.zeros(10)
            for j in range(1, x.shape[0] - 1):
                for i in range(1, x.shape[1] - 1):
                    # Ties within rounding are ties.
                    bits = [int(x[j + dy, i + dx] >= x[j, i] - 1e-9) for dy, dx in around]
                    jumps = sum(abs(bits[k] - bits[k - 1]) for k in range(8))
                    counts[sum(bits) if jumps <= 2 else 9] += 1
            shares = counts / counts.sum()
            for k in range(10):
                got = numbers[f"{texture}_x{scale}_lbp{k}"] ** 2
                # float32 may decide a near tie the other way
                assert got == pytest.approx(shares[k], abs=0.01), (texture, scale, k)


def test_edges_and_grain_are_those_of_their_definitions(
    numbers: dict[str, float], stains: dict[str, np.ndarray]
) -> None:
    for texture in ("haematoxylin", "density"):
        levels = scales(stains[texture])
        for scale in (1, 2, 4):
            x, smaller = levels[scale], levels[2 * scale]
            height, width = x.shape
            size, xx, yy, xy = [], 0.0, 0.0, 0.0
            for j in range(1, height - 1):
                for i in range(1, width - 1):
                    gx, gy = (x[j, i + 1] - x[j, i - 1]) / 2, (x[j + 1, i] - x[j - 1, i]) / 2
                    size.append(math.hypot(gx, gy))
                    xx, yy, xy = xx + gx * gx, yy + gy * gy, xy + gx * gy
            rough = [
                (x[j, i] - smaller[j // 2, i // 2]) ** 2 for j in range(height // 2 * 2) for i in range(width // 2 * 2)
            ]
            wanted = {
                "gradient_mean": np.mean(size),
                "gradient_sd": np.std(size),
                "gradient_q95": np.quantile(size, 0.95),
                "coherence": math.hypot(xx - yy, 2 * xy) / (xx + yy),
                "roughness": math.sqrt(np.mean(rough)),
            }
            for what, value in wanted.items():
                assert numbers[f"{texture}_x{scale}_{what}"] == pytest.approx(value, abs=1e-4), (texture, scale, what)
        x = levels[2] - levels[2].mean()
        for lag in (1, 2, 4, 8):
            value = ((x[:, lag:] * x[:, :-lag]).mean() + (x[lag:] * x[:-lag]).mean()) / 2 / (x * x).mean()
            assert numbers[f"{texture}_autocorrelation_{2 * lag}px"] == pytest.approx(value, abs=1e-4)


def test_turning_and_mirroring_change_nothing(tile: np.ndarray) -> None:
    before = describe_tile(tile)
    for turned in (np.rot90(tile), np.rot90(tile, 2), tile[::-1], tile.transpose(1, 0, 2)):
        np.testing.assert_allclose(describe_tile(np.ascontiguousarray(turned)), before, atol=2e-5)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_tile_of_one_colour_is_finite(value: int) -> None:
    numbers = dict(zip(NAMES, describe_tile(np.full((32, 48, 3), value, np.uint8)).tolist(), strict=True))
    assert all(math.isfinite(number) and abs(number) < 10 for number in numbers.values())
    assert numbers["density_x1_lbp8"] == 1  # a neighbour that is equal counts as not darker
    assert numbers["haematoxylin_x2_gradient_mean"] == 0


def test_texture_is_told_from_its_shuffled_pixels(tile: np.ndarray) -> None:
    shuffled = np.random.default_rng(0).permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    one, other = (dict(zip(NAMES, describe_tile(t).tolist(), strict=True)) for t in (tile, shuffled))
    assert one["red_mean"] == other["red_mean"]
    assert one["density_autocorrelation_2px"] > other["density_autocorrelation_2px"] + 0.3
