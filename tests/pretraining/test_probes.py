"""Figures of frozen features against naive loops, and that no region is judged by one of its own group."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longvit.errors import InputError
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.parallel import shard
from longvit.pretraining import probes
from longvit.pretraining.feature_metrics import feature_std, knn_probe, linear_probe, rankme
from longvit.pretraining.probes import (
    Probe,
    colour_features,
    control_metrics,
    embed_regions,
    metrics,
    probe_metrics,
    read_probe,
)

TINY = LongViTConfig(embed_dim=16, depth=1, num_heads=2, ffn_dim=32, pool_norm="token_norm")


def features_of(n: int = 61, d: int = 7, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    x = rng.normal(size=(n, d)) + 1.2 * np.eye(classes, d)[labels]
    return x, labels, [f"slide {i}" for i in rng.integers(9, size=n)]


def naive_knn(x: np.ndarray, y: np.ndarray, groups: list[str], k: int, temperature: float) -> list[list[float]]:
    """From the words of the docstring: one region at a time, one pair at a time."""
    votes = []
    for i in range(len(x)):
        near = []
        for j in range(len(x)):
            if groups[j] != groups[i]:
                dot = sum(a * b for a, b in zip(x[i], x[j], strict=True))
                near.append((dot / math.sqrt(sum(a * a for a in x[i])) / math.sqrt(sum(b * b for b in x[j])), y[j]))
        near = sorted(near, reverse=True)[:k]
        of = [0.0] * (max(y) + 1)
        for cosine, label in near:
            of[label] += math.exp(cosine / temperature)
        votes.append([v / sum(of) for v in of])
    return votes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.07), (500, 0.07)])
def test_knn_votes_are_those_of_a_naive_loop(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longvit.pretraining.feature_metrics._ROWS_AT_ONCE", 16)
    x, y, groups = features_of()
    found = knn_probe(x, y, groups, k=k, temperature=temperature)
    expected = np.array(naive_knn(x, y, groups, k, temperature))
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-12)
    right = expected.argmax(1) == y
    assert found.accuracy == pytest.approx(right.mean(), abs=1e-12)
    assert found.balanced == pytest.approx(np.mean([right[y == c].mean() for c in range(3)]), abs=1e-12)


def twins(n: int = 120, d: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Noise, but every region has a twin of the same label in its group: who looks at twins is always right."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(n // 2, d)), 2, 0)
    return x, np.repeat(np.arange(n // 2) % 2, 2), [str(i // 2) for i in range(n)]


def test_knn_never_looks_at_a_twin_of_the_same_group() -> None:
    x, y, groups = twins()
    assert knn_probe(x, y, [str(i) for i in range(len(y))], k=1).accuracy == 1.0  # each a group of its own: the twin
    assert knn_probe(x, y, groups, k=1).accuracy < 0.7


def test_the_linear_probe_never_trains_on_a_twin_of_the_same_group() -> None:
    x, y, groups = twins()
    leaking = linear_probe(x, y, [str(i) for i in range(len(y))])
    assert leaking.accuracy > 0.8
    assert linear_probe(x, y, groups).accuracy < 0.7


def test_the_linear_probe_finds_what_is_linear_whatever_the_scale_of_a_feature() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(3, size=150)
    x = rng.normal(size=(150, 20))
    x[:, :3] += 6 * np.eye(3)[labels]
    groups = [str(i % 15) for i in range(150)]
    found = linear_probe(x * np.logspace(-4, 4, 20), labels, groups)
    assert found.accuracy > 0.97
    assert found.auc > 0.99
    np.testing.assert_array_equal(found.predictions, found.probabilities.argmax(1))
    again = linear_probe(x * np.logspace(-4, 4, 20), labels, groups)
    np.testing.assert_array_equal(found.probabilities, again.probabilities)


def test_a_class_of_two_cases_does_not_stop_the_linear_probe() -> None:
    x, _, _ = features_of(n=30)
    labels = np.array([0] * 26 + [1] * 4)
    groups = [str(i // 2) for i in range(30)]
    assert 0 <= linear_probe(x, labels, groups).balanced <= 1


def test_rankme_is_its_definition() -> None:
    x = np.random.default_rng(3).normal(size=(30, 8)) @ np.diag(np.logspace(0, -3, 8))
    sigma = np.sqrt(np.linalg.eigvalsh(x.T @ x).clip(0))  # another way to the singular values
    p = [s / sum(sigma) + 1e-7 for s in sigma]
    assert rankme(x) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), abs=1e-6)


def test_rankme_at_its_ends() -> None:
    assert rankme(np.eye(12)) == pytest.approx(12, abs=1e-4)
    assert rankme(np.outer(np.arange(1, 9), [1, 2, 3])) == pytest.approx(1, abs=1e-4)
    assert math.isnan(rankme(np.zeros((4, 3))))


def test_the_spread_is_none_for_equal_features_and_one_for_a_sphere() -> None:
    assert feature_std(np.ones((5, 4))) == pytest.approx(0, abs=1e-12)
    assert feature_std(np.random.default_rng(4).normal(size=(4000, 32))) == pytest.approx(1, abs=0.01)


def regions(n: int, side_px: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def probe_of(n: int = 24) -> Probe:
    """Dark and bright regions; the label is the brightness, but not by much."""
    labels = np.arange(n) % 2
    pixels = (regions(n) // 2 + 60 * labels[:, None, None, None]).astype(np.uint8)
    return Probe(pixels, labels, tuple(str(i // 4) for i in range(n)), ("dark", "bright"))


def test_embeddings_are_those_of_the_model_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = LongViT(TINY).train()
    pixels = regions(5)
    found = embed_regions(model, pixels, batch_size=2)
    assert model.training
    assert found.dtype == np.float32
    model.eval()
    expected = [model(torch.from_numpy(p).permute(2, 0, 1)[None]).detach().numpy()[0] for p in pixels]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found, embed_regions(model, list(pixels), batch_size=2))
    np.testing.assert_allclose(embed_regions(shard(model), pixels), expected, rtol=0, atol=1e-6)


def test_the_figures_of_an_epoch_are_numbers_for_the_history() -> None:
    torch.manual_seed(0)
    model = LongViT(TINY)
    found = metrics(model, probe_of(), regions(8, seed=1))
    names = ["rankme", "feature_std", "knn", "knn_balanced", "linear", "linear_balanced", "linear_auc"]
    assert list(found) == names
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert list(metrics(model, None, regions(8, seed=1))) == names[:2]
    controls = control_metrics(model, probe_of(), regions(8, seed=1))
    assert controls["random_start"] == found
    assert controls["mean_colour"]["linear_balanced"] == 1.0  # brightness alone is the label
    assert controls["mean_colour"]["knn_balanced"] == 1.0


def test_mean_colour_is_six_numbers_of_the_same_weight() -> None:
    pixels = regions(6)
    pixels[3:] //= 3
    x = colour_features(pixels)
    assert x.shape == (6, 6)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-12)
    flat = colour_features(np.full((3, 4, 4, 3), 7, np.uint8))
    assert np.isfinite(flat).all()


def write_table(folder: Path, extra: str = "") -> Path:
    for i in range(6):
        Image.fromarray(regions(1, 40 + i, seed=i)[0]).save(folder / f"{i}.png")
    lines = [f"{i}.png,{'tumour' if i % 2 else 'stroma'},case {i // 2}" for i in range(6)]
    (folder / "probe.csv").write_text("path,label,case_id\n" + "\n".join(lines) + "\n" + extra)
    return folder / "probe.csv"


def test_a_table_of_labelled_images_is_a_probe(tmp_path: Path) -> None:
    probe = read_probe(write_table(tmp_path), 32)
    assert probe.pixels.shape == (6, 32, 32, 3)
    assert probe.class_names == ("stroma", "tumour")
    assert probe.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert probe.groups == ("case 0", "case 0", "case 1", "case 1", "case 2", "case 2")
    assert probe.names[0] == "0.png"
    assert probe.problems == ()
    assert probe_metrics(probe.pixels.reshape(6, -1), probe)["knn"] >= 0


def test_an_oblong_image_gives_the_square_in_its_middle(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    Image.fromarray(pixels).save(tmp_path / "0.png")
    assert (read_probe(table, 20).pixels[0] == 200).all()


def test_a_bad_row_of_the_probe_is_a_problem_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.fromarray(regions(1, 64)[0]).save(tmp_path / "large.png")
    monkeypatch.setattr(probes, "MAX_PROBE_PX", 50)
    table = write_table(tmp_path, "absent.png,tumour,a\nbroken.png,tumour,b\nlarge.png,stroma,c\n5.png,,d\n")
    probe = read_probe(table, 32)
    assert len(probe) == 6
    found = {problem.slide: problem.error for problem in probe.problems}
    assert list(found) == ["absent.png", "broken.png", "large.png", "5.png"]
    assert "64 × 64 px" in found["large.png"]
    assert "line 11: no label" in found["5.png"]
    assert all("\n" not in error for error in found.values())


def test_a_probe_that_cannot_judge_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'tumour' has 2 regions of 1 case"):
        Probe(regions(5), np.array([0, 0, 1, 1, 0]), ("a", "b", "c", "c", "c"), ("stroma", "tumour"))
    with pytest.raises(InputError, match="two classes"):
        Probe(regions(2), np.array([0, 0]), ("a", "b"), ("stroma",))
    (tmp_path / "p.csv").write_text("path,tissue\na.png,tumour\n")
    with pytest.raises(InputError, match="no column 'label'; it has path, tissue"):
        read_probe(tmp_path / "p.csv", 32)
    (tmp_path / "p.csv").write_text("path,label\na.png,tumour\n")
    with pytest.raises(InputError, match=r"none of its 1 regions can be used; the first: .*a\.png"):
        read_probe(tmp_path / "p.csv", 32)


def test_without_cases_every_region_is_one(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    table.write_text(table.read_text().replace("case_id", "whatever"))
    assert len(set(read_probe(table, 32).groups)) == 6
