"""Bags that mean harm, are damaged or in use: each is read, or refused in one line that says what to do."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tests.faults import hostile_bags, hostile_files

from longvit.comparison.compare import compare
from longvit.comparison.settings import ComparisonSettings
from longvit.data.bags import read_bag
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import fold_of_splits
from longvit.errors import InputError

N, D = 20, 8


@pytest.mark.parametrize("case", hostile_files.small_cases("bag"))
def test_a_hostile_bag_is_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


@pytest.mark.parametrize("case", list(hostile_bags.flips(24, 5)), ids=lambda case: case.name)
def test_flipped_bits_are_one_line(case: hostile_files.Case, tmp_path: Path) -> None:
    hostile_files.check(case, tmp_path)


def bag(path: Path, features: np.ndarray | None = None, coords: np.ndarray | None = None, **attributes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((N, D), np.float32) if features is None else features
        file["coords"] = np.zeros((N, 2), np.int64) if coords is None else coords
        file["coords"].attrs.update(attributes)
    return path


def test_coordinates_that_are_fractions_are_rounded(tmp_path: Path) -> None:
    coords = np.array([[255.9999, 256.0001], [0.4, 511.5]] * 10)
    found = read_bag(bag(tmp_path / "a.h5", coords=coords)).coords
    assert found is not None
    assert found[:2].tolist() == [[256, 256], [0, 512]]


def test_a_coordinate_that_no_slide_has_is_named_with_its_tile(tmp_path: Path) -> None:
    coords = np.zeros((N, 2))
    coords[7] = 1e300, 5
    with pytest.raises(InputError, match=r"a\.h5: tile 7 is at \(1e\+300, 5\), outside any slide"):
        read_bag(bag(tmp_path / "a.h5", coords=coords))


def test_coordinates_in_micrometres_are_no_pixels(tmp_path: Path) -> None:
    """STAMP's: without the slide they cannot be placed."""
    found = read_bag(bag(tmp_path / "a.h5", coords=np.full((N, 2), 100.5), unit="um"))
    assert found.coords is None
    assert len(found) == N


def test_a_batch_of_one_slide_is_the_slide(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    np.testing.assert_array_equal(read_bag(bag(tmp_path / "a.h5", x[None])).features, x)
    torch.save(torch.from_numpy(x)[None], tmp_path / "a.pt")
    np.testing.assert_array_equal(read_bag(tmp_path / "a.pt").features, x)


def test_a_strided_tensor_is_read_in_its_own_order(tmp_path: Path) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    torch.save(x.T, tmp_path / "a.pt")
    assert read_bag(tmp_path / "a.pt").features.tolist() == x.T.tolist()


def test_an_older_value_that_was_never_written_is_no_feature(tmp_path: Path) -> None:
    """An extraction that stopped left the rest of a dataset at its fill value."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("features", (100, D), "f4", chunks=(10, D), compression="gzip")
        data[:50] = 1
    with pytest.raises(InputError, match="was not written completely"):
        read_bag(tmp_path / "a.h5")


HOLD = (
    "import h5py, sys; files = [h5py.File(p, 'a') for p in sys.argv[1:]]; print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve slides, half of each class, with a bag each."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        x = rng.normal(size=(N, D)).astype(np.float32)
        x[:, 0] += 2 * (i % 2)
        bag(tmp_path / "features" / f"s{i}.h5", x)
        rows.append((f"s{i}", f"p{i}", ("normal", "tumour")[i % 2], ("train", "train", "test")[i // 4]))
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "case_id", "label", "split"), *rows])
    return tmp_path / "cohort.csv"


def compared(cohort: Path) -> list[dict[str, str]]:
    """The rows of problems.csv of a comparison, that may have failed."""
    folder = cohort.parent
    manifest = read_cohort(cohort, label_column="label", need_files=False)
    settings = ComparisonSettings(systems=("mean_pooling",), epochs=1, device="cpu", threads=1, bootstrap=0)
    try:
        compare(manifest, folder / "out", [fold_of_splits(manifest)], settings, features=folder / "features")
    finally:
        path = folder / "out" / "problems.csv"
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return rows


@pytest.mark.parametrize("held", [["s1"], ["s1", "s3", "s5", "s7"]])
def test_a_bag_that_is_being_written_says_so(cohort: Path, held: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one bag, and of all training slides of a class: there another error would hide the reason."""
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    paths = [str(cohort.parent / "features" / f"{name}.h5") for name in held]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, *paths], **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == b"held\n"
        try:
            if len(held) == 1:
                rows = compared(cohort)
            else:
                with pytest.raises(InputError, match="in use by another process") as caught:
                    compared(cohort)
                assert "no slide of class 'tumour' in train" in str(caught.value)
                rows = list(csv.DictReader((cohort.parent / "out" / "problems.csv").open(newline="")))
        finally:
            holder.stdin.close()
    assert [row["slide"] for row in rows] == held
    for row in rows:
        assert "in use by another process" in row["error"]
        assert "HDF5_USE_FILE_LOCKING=FALSE" in row["error"]
        assert "damaged" not in row["error"]


def test_bad_bags_of_every_kind_are_rows_and_the_comparison_goes_on(cohort: Path, tmp_path: Path) -> None:
    features = cohort.parent / "features"
    (features / "s0.h5").write_bytes((features / "s0.h5").read_bytes()[:700])
    with h5py.File(features / "s1.h5", "a") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink("s2.h5", "/features")
    bag(features / "s2.h5", coords=np.full((N, 2), -1))
    rows = compared(cohort)
    assert [row["slide"] for row in rows] == ["s0", "s1", "s2"]
    assert (cohort.parent / "out" / "benchmark.csv").exists()
