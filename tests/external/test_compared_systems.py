"""External validation of a comparison: every system on the feature bags of cohort B."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from tests.comparison.made import WIDTH, write_features, write_study
from tests.external.cohorts import longvit

TRAIN = (
    *("--folds", "column", "--systems", "mean_pooling", "attention_mil", "--epochs", "2", "--lr", "0.01"),
    *("--set", "attention_mil.hidden=8", "attention_mil.gate=4", "--device", "cpu", "--threads", "1"),
    *("--bootstrap", "10"),
)
PREDICT = ("--device", "cpu", "--threads", "1", "--bootstrap", "10")


def write_b(folder: Path, n: int = 14) -> Path:
    """Cohort b: other patients, other tiles."""
    lines = ["case_id,slide_id,label"]
    for i in range(n):
        rng = np.random.default_rng([7, i])
        features = rng.normal(size=(10, WIDTH))
        features[::4, 0] += 2 * (i % 2)
        write_features(folder / "features", f"b{i:02d}", features)
        lines.append(f"Q{i // 2},b{i:02d},{('benign', 'tumour')[i % 2]}")
    path = folder / "b.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_every_system_of_a_comparison_is_validated_on_the_bags_of_b(tmp_path: Path) -> None:
    a = write_study(tmp_path / "a", 16)
    (tmp_path / "b").mkdir()
    b, features = write_b(tmp_path / "b"), tmp_path / "b" / "features"
    runs, out = tmp_path / "runs", tmp_path / "out"
    assert longvit("benchmark", a, "--features", a.parent / "features", "--out", runs, *TRAIN)[0] == 0
    code, text, error = longvit("predict", runs, b, "--features", features, "--out", out, *PREDICT)
    assert code == 0, error
    assert text.count("change from A") == 2  # each patient of b has slides of both classes: no metric per patient
    metrics = json.loads((out / "external" / "metrics.json").read_text())
    assert list(metrics) == ["mean_pooling", "attention_mil"]
    for name, content in metrics.items():
        rows = pd.read_csv(out / name / "external" / "predictions.csv")
        for system, part in rows.groupby("system"):
            auc = roc_auc_score(part["label"] == "tumour", part["prob_tumour"])
            found = content["levels"]["slides"]["systems"][system]["auc"]["value"]
            assert found == pytest.approx(auc, abs=1e-12)
        folds = [rows[rows["system"] == f"fold {k}"]["prob_tumour"].to_numpy() for k in (0, 1)]
        whole = rows[rows["system"] == "ensemble"]["prob_tumour"]
        np.testing.assert_allclose(whole, np.mean(folds, axis=0), rtol=0, atol=1e-15)
        trials = [json.loads((runs / name / f"fold_{k}" / "metrics.json").read_text()) for k in (0, 1)]
        stored = np.mean([trial["splits"]["test"]["auc"] for trial in trials])
        assert content["levels"]["slides"]["drop"]["metrics"]["auc"]["a"] == pytest.approx(stored, abs=1e-12)
    assert "attention_mil" in (out / "external" / "index.html").read_text()
    shutil.copy(a.parent / "features" / _bag(a.parent / "features", "s03"), features / _bag(features, "b04"))
    code, _, error = longvit("predict", runs, b, "--features", features, "--out", out, *PREDICT)
    assert code == 2
    assert "1 file (b04 = s03)" in error
    code, _, error = longvit("predict", runs, b, "--out", out, *PREDICT)
    assert code == 2
    assert "give --features" in error


def _bag(folder: Path, slide_id: str) -> Path:
    """Path of a bag below a folder."""
    (path,) = folder.rglob(f"{slide_id}.h5")
    return path.relative_to(folder)
