"""`longvit embed --anndata`: scverse reads the vectors with the columns of the cohort."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.small_slides import write_model, write_slide

from longvit.cli import main
from longvit.slide_jobs.anndata_file import cohort_columns

Captured = pytest.CaptureFixture[str]


def embed(folder: Path, *more: str) -> int:
    words = [str(folder / "model"), str(folder / "cohort.csv"), "--out", str(folder / "out")]
    return main(["embed", *words, "--device", "cpu", "--threads", "1", *more])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    for name in "abc":
        write_slide(tmp_path / f"{name}.tif", seed=ord(name))
    (tmp_path / "c.tif").write_text("no slide\n")
    (tmp_path / "cohort.csv").write_text(
        "slide_id,case_id,label,age,stage/x,mpp\nb,002,tumour,61,II,0.25\nc,003,benign,5,I,\na,001,benign,,III,\n"
    )
    return tmp_path


def test_observations_are_the_slides_with_the_columns_of_the_cohort(made: Path) -> None:
    anndata = pytest.importorskip("anndata")
    assert embed(made, "--anndata") == 1  # c is no slide
    data = anndata.read_h5ad(made / "out" / "embeddings.h5ad")
    assert data.obs_names.tolist() == ["b", "a"]
    assert data.X.dtype == np.float32
    assert data.var_names.tolist() == [f"f{i}" for i in range(32)]
    assert data.obs["case_id"].tolist() == ["002", "001"]
    assert data.obs["label"].tolist() == ["tumour", "benign"]
    assert data.obs["age"].tolist()[0] == 61.0
    assert np.isnan(data.obs["age"].tolist()[1])
    assert data.obs["stage_x"].tolist() == ["II", "III"]
    assert data.obs["mpp"].tolist() == [0.25, 0.5]
    assert data.obs["mpp_source"].tolist()[0] == "explicit"
    assert data.uns["longvit"]["side_px"] == 64
    lines = (made / "out" / "embeddings.csv").read_text().splitlines()
    from_csv = [np.array(line.split(",")[2:], np.float32) for line in lines[1:]]
    assert (np.stack(from_csv) == data.X).all()


def test_without_a_readable_slide_the_file_is_empty_and_valid(made: Path) -> None:
    anndata = pytest.importorskip("anndata")
    for name in "ab":
        (made / f"{name}.tif").write_text("no slide\n")
    assert embed(made, "--anndata") == 1
    assert anndata.read_h5ad(made / "out" / "embeddings.h5ad").shape == (0, 32)


def test_without_anndata_one_line_names_the_extra_before_any_slide(
    made: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    assert embed(made, "--anndata") == 2
    assert "pip install 'longvit[anndata]'" in capsys.readouterr().err
    assert not (made / "out").exists()


def test_columns_are_found_by_path_too_and_only_in_csv_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\nx/one.svs,tumour\n")
    assert cohort_columns([tmp_path / "a.csv", tmp_path / "one.svs", tmp_path]) == {"label": {"one": "tumour"}}
