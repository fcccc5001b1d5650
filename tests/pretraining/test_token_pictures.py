"""Principal components against a definition and their sign; neighbours against a loop; what is drawn where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from longvit.model.longvit import LongViT, LongViTConfig
from longvit.pretraining.probes import Probe
from longvit.pretraining.token_images import (
    Neighbours,
    evenly_spaced,
    nearest_neighbours,
    neighbours_sheet,
    principal_components,
    token_pca_images,
    write_plots,
)

TINY = LongViTConfig(embed_dim=16, depth=1, num_heads=2, ffn_dim=32, pool_norm="token_norm")


def test_components_are_those_of_scikit_learn_up_to_the_sign_which_is_ours() -> None:
    x = np.random.default_rng(0).normal(size=(200, 9)) @ np.diag([5, 4, 3, 2, 1, 1, 1, 1, 0.1]) + 7
    found = principal_components(x)
    expected = PCA(3, svd_solver="full").fit(x)
    np.testing.assert_allclose(np.abs(found.directions @ expected.components_.T), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(found.shares, expected.explained_variance_ratio_, atol=1e-12)
    largest = np.abs(found.directions).argmax(1)
    assert (found.directions[np.arange(3), largest] > 0).all()
    mirrored = principal_components(2 * x.mean(0) - x)  # the same variances: the same components
    np.testing.assert_allclose(mirrored.directions, found.directions, atol=1e-10)


def test_equal_tokens_are_no_division_by_zero() -> None:
    found = principal_components(np.ones((6, 4)))
    assert np.isfinite(found.directions).all()
    np.testing.assert_array_equal(found.shares, 0)


def model() -> LongViT:
    torch.manual_seed(0)
    return LongViT(TINY)


def noise(n: int, side_px: int = 96) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def test_a_picture_shows_the_region_and_a_square_per_patch() -> None:
    pixels = noise(3)
    pixels[1] = pixels[0]
    pictures = token_pca_images(model(), pixels, batch_size=2)
    assert len(pictures) == 3
    first = pictures[0]
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first[:, :96], pixels[0])
    colours = first[:, -96:].reshape(3, 32, 3, 32, 3)
    assert (colours == colours[:, :1, :, :1]).all()
    assert len(np.unique(colours[:, 0, :, 0].reshape(-1, 3), axis=0)) > 3
    np.testing.assert_array_equal(pictures[1], first)  # the same region, the same colours
    assert not np.array_equal(pictures[2][:, -96:], first[:, -96:])


def test_the_colours_are_the_components_of_all_regions_together() -> None:
    pixels = noise(2)
    network = model().eval()
    tokens = network.fc_norm(network.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()))
    x = tokens.detach().double().numpy().reshape(-1, 16)
    found = principal_components(x)
    values = (x - x.mean(0)) @ found.directions.T
    low, high = np.percentile(values, [1, 99], axis=0)
    expected = (255 * ((values - low) / (high - low)).clip(0, 1)).reshape(2, 3, 3, 3)
    shown = np.stack([picture[16::32, -96::32][:, :3] for picture in token_pca_images(network, pixels)])
    np.testing.assert_allclose(shown, expected, atol=1)


def test_neighbours_are_those_of_a_loop_and_never_of_the_own_slide() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 5))
    x[1] = x[0]  # its twin on the same slide
    slides = [str(i // 2) for i in range(20)]
    for found in nearest_neighbours(x, slides, queries=20, k=4):
        q = found.query
        of = {j: x[q] @ x[j] / np.linalg.norm(x[q]) / np.linalg.norm(x[j]) for j in range(20) if slides[j] != slides[q]}
        best = sorted(of, key=lambda j: -of[j])[:4]
        assert list(found.nearest) == best
        np.testing.assert_allclose(found.cosines, [of[j] for j in best], atol=1e-12)
    assert nearest_neighbours(x, queries=1)[0].nearest[0] == 1  # without slides the twin is found


def test_queries_are_evenly_spaced() -> None:
    assert evenly_spaced(11, 3) == [0, 5, 10]
    assert evenly_spaced(2, 6) == [0, 1]
    assert [found.query for found in nearest_neighbours(np.eye(11), queries=3)] == [0, 5, 10]


def test_a_sheet_has_the_query_large_and_the_nearest_at_the_top_right() -> None:
    pixels = [np.full((50, 50, 3), 40 * i, np.uint8) for i in range(6)]
    sheet = neighbours_sheet(Neighbours(5, (3, 1), (0.9, 0.8)), pixels, [f"slide#{i}" for i in range(6)])
    height, width, _ = sheet.shape
    assert tuple(sheet[100, 100]) == (200, 200, 200)
    assert tuple(sheet[80, width - 80]) == (120, 120, 120)
    assert tuple(sheet[80 + height // 3, width - 80]) == (40, 40, 40)
    assert tuple(sheet[height - 60, 60]) == (255, 255, 255)
    assert (sheet[160:184, width - 160 :] < 128).any()  # the cosine and the name


def test_labels_are_frames() -> None:
    pixels = [np.zeros((50, 50, 3), np.uint8)] * 3
    sheet = neighbours_sheet(Neighbours(0, (1, 2), (0.9, 0.8)), pixels, ["a", "b", "c"], ["x", "x", "y"])
    height, width, _ = sheet.shape
    assert tuple(sheet[2, width - 80]) == (0, 158, 115)
    assert tuple(sheet[2 + height // 3, width - 80]) == (213, 94, 0)


@pytest.mark.parametrize("slides", [1, 4])
def test_pictures_of_a_run_carry_their_titles(tmp_path: Path, slides: int) -> None:
    pixels = list(noise(8, 64))
    names, groups = [f"schnitt_ä#{i}" for i in range(8)], [f"s{i % slides}" for i in range(8)]
    probe = Probe(noise(8, 64), np.arange(8) % 2, tuple("aabbccdd"), ("x", "y"))
    written = write_plots(tmp_path, model(), pixels, names, probe, groups=groups)
    assert {path.stem.split("_")[0] for path in written} == {"tokens", "neighbours", "labelled"}
    assert sorted(tmp_path.iterdir()) == sorted(written)
    with Image.open(tmp_path / "neighbours_01.png") as image:
        assert image.info["Title"] == "schnitt_ä#0"
    with Image.open(tmp_path / "tokens_06.png") as image:
        assert image.info["Title"] == "schnitt_ä#7"
        assert image.size == (136, 64)
    alone = write_plots(tmp_path / "alone", model(), pixels, names)
    assert {path.stem.split("_")[0] for path in alone} == {"tokens", "neighbours"}
