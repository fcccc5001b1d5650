"""`benchmarks/gpu.py` without a card: an error in the script must not cost time on a rented card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.mark.slow
def test_every_part_runs_at_tiny_size_and_its_rows_are_on_the_disk(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--cpu-smoke", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert {r["part"] for r in rows} == {
        "device",
        "check",
        "forward",
        "training",
        "attention",
        "check_model",
        "published",
        "graphs",
    }
    assert not [r for r in rows if "error" in json.dumps(r).replace("largest_error", "")]
    assert all(r["agrees"] for r in rows if r["part"] == "check")
    assert all(r["cosine_of_gradient"] > 0.99 for r in rows if r["part"] == "check_model")
    for row in rows:
        for result in row.get("results", {}).values():
            assert result["seconds"] > 0


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("print('{\"a\": 1}', flush=True); print('noise'); raise SystemExit('cards on fire')", "cards on fire"),
        ("print('{\"a\": 1}', flush=True); import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("print('{\"a\": 1}', flush=True); import time; time.sleep(60)", "stopped after 3 s"),
    ],
)
def test_a_part_that_dies_or_hangs_keeps_its_rows_and_reports_it(gpu, code: str, last: str) -> None:
    rows = list(gpu.rows_of([sys.executable, "-c", code], 3))
    assert rows == [{"a": 1}, {"error": last}]


def test_a_back_end_with_wrong_numbers_is_not_timed_and_goals_are_of_the_best(gpu, tmp_path: Path) -> None:
    results = gpu.Results(tmp_path / "new" / "gpu.json")
    for backend, agrees in (("cuda_flash", True), ("triton", False)):
        results.add("check", {"backend": backend, "dtype": "bfloat16", "agrees": agrees})
    results.add("check", {"error": "stopped after 60 s"})
    results.add("tune", {"kernel": "forward", "tile": [64, 64, 4, 2], "results": {}})
    runs = {"a": {"seconds": 5.0, "peak_gib": 30.0}, "b": {"seconds": 6.5, "peak_gib": 20.0}, "c": {"error": "x"}}
    results.add("training", {"image_px": 32768, "results": runs})
    results.add("training", {"image_px": 4096, "results": {"a": {"seconds": 0.1, "peak_gib": 1.0}}})
    assert results.agreeing() == ["cuda_flash"]
    assert results.tiles() == {"forward": [64, 64, 4, 2]}
    written = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert written["reached"] == {"training_s": 5.0, "training_peak_gb": 21.47}
    assert len(written["rows"]) == 6
