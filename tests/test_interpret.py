"""What each patch contributes: an exact sum, and a picture that says what it shows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longvit.errors import InputError
from longvit.interpret import (
    Contributions,
    class_contributions,
    contributions_of_tokens,
    draw,
    patch_contributions,
    predicted_contributions,
    risk_contributions,
    round_length,
)
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.pretrained import load_model
from longvit.slides.reader import open_slide
from tests.small_slides import write_model, write_slide


def strange_model(classes: int, pool_norm: str, **more: Any) -> LongViT:
    """Float64, every weight far from its initial value."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 48, **more}
    config = LongViTConfig(**sizes, num_classes=classes, pool_norm=pool_norm)  # type: ignore[arg-type]
    model = LongViT(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("pool_norm", "more"),
    [("fc_norm", {}), ("token_norm", {}), ("token_norm", {"stem": "conv", "sub_norm": False})],
    ids=["fc_norm", "token_norm", "stem"],
)
@pytest.mark.parametrize("classes", [2, 5])
def test_contributions_and_constant_are_the_logit(classes: int, pool_norm: str, more: dict[str, Any]) -> None:
    model = strange_model(classes, pool_norm, **more)
    image = torch.randint(0, 256, (1, 3, 96, 160), dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.forward_features(image)
        logits = model.forward_head(tokens)[0]
        for k in range(classes):
            c_N, shift = contributions_of_tokens(
                tokens[0],
                model.fc_norm.weight,
                model.fc_norm.bias,
                model.fc_norm.eps,
                model.head.weight[k],
                norm_first=pool_norm == "token_norm",
            )
            assert abs(c_N.sum() + shift + model.head.bias[k] - logits[k]) < 1e-10


@pytest.mark.parametrize("classes", [2, 3])
def test_the_score_is_the_class_against_the_mean_of_the_others(classes: int) -> None:
    model = strange_model(classes, "fc_norm").float()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].double()
    for k in range(classes):
        got = class_contributions(model, pixels, k)
        others = logits[[j for j in range(classes) if j != k]].mean()
        assert got.score == pytest.approx(float(logits[k] - others), abs=1e-4)
        assert got.per_patch.sum() + got.constant == pytest.approx(got.score, abs=1e-4)
        assert got.probability == pytest.approx(float(logits.softmax(0)[k]), abs=1e-5)
        assert got.unit == ("log-odds" if classes == 2 else "score")
        if classes == 2:
            assert got.probability == pytest.approx(1 / (1 + np.exp(-got.score)), abs=1e-5)


@pytest.mark.parametrize("bins", [1, 4])
def test_the_contributions_to_a_risk_are_its_derivative_along_the_tokens(bins: int) -> None:
    """Independent of the closed form: autograd from -Σ S_k, with the hazards' products written out."""
    model = strange_model(bins, "token_norm", task="survival")
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.forward_features(image)
    part_NK = model.fc_norm(tokens[0]) @ model.head.weight.detach().T / tokens.shape[1]
    part_NK = (part_NK - model.fc_norm.bias.detach() @ model.head.weight.detach().T / tokens.shape[1]).detach()
    scale_N = torch.ones(len(part_NK), dtype=torch.float64, requires_grad=True)
    constant_K = (model.head.weight @ model.fc_norm.bias + model.head.bias).detach()
    hazard_K = torch.sigmoid((scale_N[:, None] * part_NK).sum(0) + constant_K)
    logit = (scale_N[:, None] * part_NK).sum(0)[0] + constant_K[0]
    risk = logit if bins == 1 else -sum((1 - hazard_K[: k + 1]).prod() for k in range(bins))
    (slopes_N,) = torch.autograd.grad(risk, scale_N)
    got = risk_contributions(model, np.zeros((64, 96, 3), np.uint8), tokens_1ND=tokens)
    assert got.per_patch.ravel() == pytest.approx(slopes_N.numpy(), rel=1e-4, abs=1e-6)
    assert got.score == pytest.approx(float(risk.detach()))
    assert got.per_patch.sum() + got.constant == pytest.approx(got.score, abs=1e-5)
    assert (got.class_name, got.unit, got.probability) == ("risk", "risk", None)
    if bins == 1:
        assert got.constant == pytest.approx(float(constant_K[0]), abs=1e-5)


def test_only_a_survival_model_has_a_risk_and_only_a_class_a_probability() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    model = strange_model(3, "fc_norm").float()
    with pytest.raises(InputError, match="task subtyping predicts no risk"):
        risk_contributions(model, pixels)
    with torch.no_grad():
        highest = int(model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].argmax())
    assert predicted_contributions(model, pixels).class_index == highest
    survival = strange_model(4, "fc_norm", task="survival").float()
    assert predicted_contributions(survival, pixels).unit == "risk"


def test_the_plot_of_a_risk_names_no_class_and_no_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = " ".join(texts_of(tmp_path / "a.png", monkeypatch, task="survival"))
    assert "Raises the risk (red) or lowers it (blue)" in texts
    assert "risk " in texts
    for words in ("probability", "against", "log-odds", "“"):
        assert words not in texts


def test_contributions_stand_where_their_patches_are() -> None:
    """A model without attention between patches: only the changed patch's share changes, but for σ."""
    model = strange_model(2, "token_norm")
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    model = model.float()
    pixels = np.full((96, 128, 3), 200, np.uint8)
    changed = pixels.copy()
    changed[32:64, 96:128] = 30  # row 1, column 3
    before, after = patch_contributions(model, pixels, 1), patch_contributions(model, changed, 1)
    assert before.shape == (3, 4)
    assert before.dtype == np.float32
    difference = np.abs(after - before)
    assert np.unravel_index(difference.argmax(), difference.shape) == (1, 3)


def test_a_class_that_the_model_has_not_is_named() -> None:
    model = strange_model(2, "fc_norm").float()
    pixels = np.zeros((32, 32, 3), np.uint8)
    for wrong in (2, -1):
        with pytest.raises(InputError, match=rf"class {wrong}: the model has 2 classes"):
            patch_contributions(model, pixels, wrong)


def test_the_models_mode_is_left_as_it_was() -> None:
    model = strange_model(2, "fc_norm").float().train()
    patch_contributions(model, np.zeros((32, 32, 3), np.uint8), 0)
    assert model.training


def texts_of(path: Path, monkeypatch: pytest.MonkeyPatch, task: str = "subtyping", **kind: object) -> list[str]:
    """Draws a slide and returns every text on the picture."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts: list[str] = []
    savefig = Figure.savefig

    def listening(self: Figure, *arguments: object, **keywords: object) -> None:
        savefig(self, *arguments, **keywords)
        texts.extend(t.get_text() for t in self.findobj(Text) if t.get_text())

    monkeypatch.setattr(Figure, "savefig", listening)
    model = load_model(write_model(path.parent / "model"))
    model.config = replace(model.config, task=task)
    slide = open_slide(write_slide(path.parent / "slide.tif", **kind))  # type: ignore[arg-type]
    canvas = slide.canvas(64)
    found = class_contributions(model, canvas, 1) if task == "subtyping" else predicted_contributions(model, canvas)
    draw(canvas, found, path, title="slide 1")
    return texts


def test_the_picture_names_class_scale_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = " ".join(texts_of(tmp_path / "a.png", monkeypatch))
    for words in ("slide 1", "“tumour”", "“benign”", "99th percentile", "10 µm", "log-odds", "probability"):
        assert words in texts
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_the_picture_of_a_slide_without_resolution_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = " ".join(texts_of(tmp_path / "a.png", monkeypatch, mpp=None))
    assert "µm per pixel not known" in texts
    assert "10 µm" not in texts


def test_a_stretched_canvas_is_shown_in_the_slides_own_proportions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    panels = []
    savefig = Figure.savefig

    def listening(self: Figure, *arguments: object, **keywords: object) -> None:
        savefig(self, *arguments, **keywords)
        panels.extend(axes.get_window_extent() for axes in self.axes[:2])

    monkeypatch.setattr(Figure, "savefig", listening)
    model = load_model(write_model(tmp_path / "model"))
    slide = open_slide(write_slide(tmp_path / "slide.tif", size_px=(480, 160)))
    for fit in ("stretch", "pad"):
        canvas = slide.canvas(64, fit)  # type: ignore[arg-type]
        draw(canvas, class_contributions(model, canvas, 1), tmp_path / "a.png")
    assert [panel.width / panel.height for panel in panels] == pytest.approx([3] * 4, rel=0.01)


def test_equal_contributions_and_one_patch_can_be_drawn(tmp_path: Path) -> None:
    canvas = open_slide(write_slide(tmp_path / "slide.tif")).canvas(32, "pad")
    nothing = Contributions(np.zeros((1, 1), np.float32), 0.0, 0.0, 0.5, "a", "b")
    assert draw(canvas, nothing, tmp_path / "a.png").stat().st_size > 1000


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    """pyplot keeps every figure for ever and looks for a display."""
    if "matplotlib.pyplot" in sys.modules:
        pytest.skip("another test has loaded pyplot")
    canvas = open_slide(write_slide(tmp_path / "slide.tif")).canvas(64)
    draw(canvas, Contributions(np.ones((2, 2), np.float32), 0.0, 4.0, 0.98, "a", "b"), tmp_path / "a.png")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (73, 50), (0.3, 0.2)])
def test_scale_bars_have_round_lengths(length: float, expected: float) -> None:
    assert round_length(length) == pytest.approx(expected)
