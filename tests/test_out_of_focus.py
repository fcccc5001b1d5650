"""Out-of-focus squares: only the square changes, colour stays, and the mosaic knows where they are."""

from __future__ import annotations

import numpy as np

from longvit.out_of_focus import Square, draw_square, make_mosaic, out_of_focus


def textured(seed: int, side_px: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def test_only_the_square_is_blurred_and_its_mean_colour_stays() -> None:
    pixels, square = textured(0), Square(8, 24, 32)
    result = out_of_focus(pixels, square, mpp=0.5)
    inside = np.zeros((64, 64), bool)
    inside[24:56, 8:40] = True
    np.testing.assert_array_equal(result[~inside], pixels[~inside])
    assert result[inside].std() < 0.4 * pixels[inside].std()
    np.testing.assert_allclose(result[inside].mean(0), pixels[inside].mean(0), atol=4)


def test_a_square_is_not_put_on_glass_where_there_is_tissue() -> None:
    pixels = np.full((64, 64, 3), 240, np.uint8)
    pixels[:, 32:] = textured(1)[:, 32:]
    squares = [draw_square(np.random.default_rng(seed), pixels) for seed in range(20)]
    assert all(0 <= s.x_px <= 32 and 0 <= s.y_px <= 32 and s.side_px == 32 for s in squares)
    assert np.mean([s.x_px for s in squares]) > 22


def test_the_truth_of_a_mosaic_is_where_its_pixels_changed() -> None:
    regions = [textured(seed) for seed in range(7)]
    mosaic = make_mosaic(regions, columns=3, mpp=0.5)
    assert mosaic.pixels.shape == (192, 192, 3)
    assert len(mosaic.squares) == 4
    y, x = np.indices((192, 192)).astype(float)
    inside, blurred = mosaic.truth_at(x, y)
    assert inside.sum() == 7 * 64 * 64
    assert (mosaic.pixels[~inside] == 255).all()
    sharp = np.full_like(mosaic.pixels, 255)
    for number, region in enumerate(regions):
        row, column = divmod(number, 3)
        sharp[64 * row : 64 * row + 64, 64 * column : 64 * column + 64] = region
    changed = (sharp != mosaic.pixels).any(2)
    assert not changed[~blurred].any()
    assert changed[blurred].mean() > 0.95
    outside, _ = mosaic.truth_at(np.array([-1.0, 500.0]), np.array([5.0, 5.0]))
    assert not outside.any()
