"""Heat maps against a definition that goes pixel by pixel: four placements, three zooms, patches and tiles."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvit.slides.placement import Box, Placement
from longvit.viewer.heat_map import (
    COLOURS,
    HeatMap,
    Layer,
    PatchColours,
    PatchHeat,
    TileHeat,
    palette,
)
from longvit.viewer.pyramid import Pyramid

SIDE_PX, PATCHES = 256, 8
PLACEMENTS = {
    "stretch": Placement(Box(0, 0, 4000, 4000), SIDE_PX, "stretch"),
    "non-square": Placement(Box(0, 0, 5000, 1700), SIDE_PX, "stretch"),
    "pad": Placement(Box(0, 0, 1900, 4700), SIDE_PX, "pad"),
    "offset": Placement(Box(1111, 777, 3000, 2001), SIDE_PX, "stretch"),
}
SIGNED = Layer("tumour", "contribution", True, 1.0)


def definition(placement: Placement, x0: float, y0: float) -> tuple[int, int] | None:
    """Patch at a level-0 position: straight from the fit's definition, without `Placement`'s functions."""
    b = placement.bounds
    if not (b.x <= x0 < b.x + b.width and b.y <= y0 < b.y + b.height):
        return None
    if placement.fit == "stretch":
        x, y = (x0 - b.x) * SIDE_PX / b.width, (y0 - b.y) * SIDE_PX / b.height
    else:
        scale = SIDE_PX / max(b.width, b.height)
        wide, high = max(1, round(b.width * scale)), max(1, round(b.height * scale))
        x = (SIDE_PX - wide) // 2 + (x0 - b.x) * wide / b.width
        y = (SIDE_PX - high) // 2 + (y0 - b.y) * high / b.height
    patch = SIDE_PX / PATCHES
    return int(y // patch), int(x // patch)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def zooms(pyramid: Pyramid) -> list[tuple[int, int, int]]:
    """The coarsest tile, one in the middle, and the last one of the finest level."""
    middle, last = pyramid.max_level // 2, pyramid.max_level
    columns, rows = pyramid.tiles(last)
    return [(0, 0, 0), (middle, pyramid.tiles(middle)[0] - 1, 0), (last, columns - 1, rows - 1)]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_pixel_of_a_heat_tile_has_the_colour_of_its_patch(name: str) -> None:
    placement = PLACEMENTS[name]
    values = np.random.default_rng(0).uniform(-1.2, 1.2, (1, PATCHES, PATCHES)).astype(np.float32)
    heat, pyramid = PatchHeat(placement, values, (SIGNED,)), Pyramid(placement.bounds)
    colours = np.frombuffer(palette("red-blue"), np.uint8).reshape(256, 3)
    for level, x, y in zooms(pyramid):
        box, (width, height) = pyramid.box(level, x, y), pyramid.size(level, x, y)
        shown = decoded(heat.png(0, box, width, height, "red-blue", 0.2))
        assert shown.shape == (height, width, 4)
        step = 2 ** (pyramid.max_level - level)
        wrong = 0
        for i, j in np.random.default_rng(1).integers(0, (height, width), (4000, 2)):
            x0 = placement.bounds.x + (x * 512 + j + 0.5) * step
            y0 = placement.bounds.y + (y * 512 + i + 0.5) * step
            patch = definition(placement, x0, y0)
            value = None if patch is None else float(values[0, patch[0], patch[1]])
            if value is None or abs(value) < 0.2:
                wrong += shown[i, j, 3] != 0
                continue
            index = 1 + round((min(max(value, -1), 1) + 1) * 127)
            wrong += shown[i, j, 3] != 255 or abs(shown[i, j, :3].astype(int) - colours[index]).max() > 6
        assert wrong == 0, f"{wrong} of 4,000 pixels at level {level}"


@pytest.mark.parametrize("name", PLACEMENTS)
def test_colours_of_patches_are_at_their_places(name: str) -> None:
    placement = PLACEMENTS[name]
    colours = np.random.default_rng(0).integers(0, 256, (PATCHES, PATCHES, 3)).astype(np.uint8)
    heat, pyramid = PatchColours(placement, colours, SIGNED), Pyramid(placement.bounds)
    level, x, y = zooms(pyramid)[1]
    box, (width, height) = pyramid.box(level, x, y), pyramid.size(level, x, y)
    shown = decoded(heat.png(0, box, width, height, "viridis", 0.9))
    for i, j in np.random.default_rng(1).integers(0, (height, width), (1000, 2)):
        patch = definition(placement, box.x + (j + 0.5) * box.width / width, box.y + (i + 0.5) * box.height / height)
        expected = (0, 0, 0, 0) if patch is None else (*colours[patch], 255)
        assert tuple(shown[i, j][3:]) == expected[3:]
        assert patch is None or tuple(shown[i, j]) == expected


def test_every_pixel_has_the_score_of_the_tile_at_its_centre_and_overlaps_show_the_highest() -> None:
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 900, (40, 2))
    scores = rng.uniform(0, 1, 40).astype(np.float32)
    heat = TileHeat(corners, 133.0, scores, Layer("clam", "attention", False, 1.0))
    for box, size in (
        (Box(0, 0, 1100, 1100), (100, 100)),
        (Box(250, 130, 300, 200), (150, 100)),
        (Box(0, 0, 9, 9), (9, 9)),
    ):
        values = heat.values(0, box, *size)
        for i, j in rng.integers(0, size[::-1], (500, 2)):
            x0 = box.x + (j + 0.5) * box.width / size[0]
            y0 = box.y + (i + 0.5) * box.height / size[1]
            inside = (corners <= [x0, y0]).all(1) & (corners + 133 > [x0, y0]).all(1)
            expected = scores[inside].max() if inside.any() else np.nan
            np.testing.assert_equal(values[i, j], np.float32(expected))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_patches_of_the_strip_are_where_their_values_are(name: str) -> None:
    placement = PLACEMENTS[name]
    values = np.random.default_rng(0).normal(size=(1, PATCHES, PATCHES)).astype(np.float32)
    heat = PatchHeat(placement, values, (SIGNED,))
    top, bottom = heat.extremes(0, 12)
    assert [patch.value for patch in top] == sorted((patch.value for patch in top), reverse=True)
    centres = (np.arange(PATCHES) + 0.5) * SIDE_PX / PATCHES
    image = placement.image_box
    inside = ((centres >= image.y) & (centres < image.bottom))[:, None] & (centres >= image.x) & (centres < image.right)
    assert bottom[0].value == values[0][inside].min()
    assert top[0].value == values[0][inside].max()
    bounds = placement.bounds
    for patch in [*top, *bottom]:
        x, y = patch.box.x + patch.box.width / 2, patch.box.y + patch.box.height / 2
        assert bounds.x <= x <= bounds.right
        assert bounds.y <= y <= bounds.bottom
        row, column = definition(placement, x, y) or (-1, -1)
        assert values[0, row, column] == np.float32(patch.value)


def test_one_patch_is_at_the_top_only_and_few_patches_are_not_at_both_ends() -> None:
    for n in (1, 2, 3):
        heat = PatchHeat(PLACEMENTS["stretch"], np.arange(n * n, dtype=np.float32).reshape(1, n, n), (SIGNED,))
        top, bottom = heat.extremes(0, 12)
        assert n == 1 or not {p.value for p in top} & {p.value for p in bottom}


@pytest.mark.parametrize("colours", COLOURS)
def test_signed_maps_differ_at_both_ends_for_the_colour_blind(colours: str) -> None:
    """The ends differ in blue against yellow-red, which the common kinds of colour blindness see, or in lightness."""
    table = np.frombuffer(palette(colours), np.uint8).reshape(256, 3).astype(float)
    low, high = table[1], table[255]
    blueness = (low[2] - low[0]) - (high[2] - high[0])
    lightness = abs(low @ [0.3, 0.6, 0.1] - high @ [0.3, 0.6, 0.1])
    assert blueness > 60 or lightness > 100


def test_a_stored_heat_map_is_read_back_to_the_bit_and_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    from longvit.viewer.heat_store import _read, _write

    path = tmp_path / "view" / "a.safetensors"
    values = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    layers = (SIGNED, Layer("benign", "contribution", True, 2.0))
    heats: list[HeatMap] = [
        PatchHeat(PLACEMENTS["offset"], values, layers),
        PatchColours(PLACEMENTS["pad"], np.full((4, 4, 3), 7, np.uint8), SIGNED),
    ]
    for heat in heats:
        _write(path, heat)
        again = _read(path)
        assert type(again) is type(heat)
        assert again.layers == heat.layers
        assert again.placement == heat.placement  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.colours, heats[1].colours)  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-20])
    assert _read(path) is None
    assert _read(tmp_path / "none") is None
