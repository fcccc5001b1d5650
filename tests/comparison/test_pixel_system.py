"""A system on pixels beside systems on features: the right tiles, one table, resume to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.comparison.made import QUICK

import longvit
from longvit.baselines.patch_sampling import PatchSampling
from longvit.comparison.compare import Comparison, compare
from longvit.comparison.system_spec import all_system_specs
from longvit.data.bag_layouts import tile_attributes, write_bag
from longvit.data.folds import folds_of_column
from longvit.data.tile_pixels import SlideTiles, TilePixelSource
from longvit.errors import InputError
from longvit.synthetic import Field, SyntheticSettings, make_slides

TILE_PX = 32
SYSTEM = "patch_sampling"
SETTINGS = replace(
    QUICK,
    systems=("mean_pooling", SYSTEM),
    set=tuple(f"{SYSTEM}.{setting}" for setting in ("tiles=8", "tile_px=16", "chunk=16", "width=8", "gate=4")),
    epochs=2,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides with dark tumour and light tissue, and bags whose features are noise."""
    folder = tmp_path_factory.mktemp("study")
    fields = [
        Field(f"f{i}{kind}", f"P{i}", "S", None, kind, np.full((TILE_PX, TILE_PX, 3), 60 if kind else 200, np.uint8))
        for i in range(2)
        for kind in (False, True)
    ]
    settings = SyntheticSettings(
        task="share", side_px=128, square_px=TILE_PX, block_px=TILE_PX, pairs=4, patients=1, folds=2
    )
    make_slides(fields, folder, settings)
    for row in longvit.read_cohort(folder / "cohort.csv").rows:
        write_features(folder / "features", row.slide_id)
    return folder


def write_features(folder: Path, slide_id: str) -> None:
    place = np.arange(16)
    features = np.random.default_rng(len(slide_id)).normal(size=(16, 4)).astype(np.float32)
    attributes = tile_attributes(tile_px=TILE_PX, tile_mpp=1.0, overlap_px=0, mpp=(1.0, 1.0), size_px=(128, 128))
    coords = np.stack([place % 4, place // 4], 1) * TILE_PX
    write_bag(folder, slide_id, features, coords, encoder="noise", coords_attributes=attributes)


def run(study: Path, out: Path, **changes: object) -> Comparison:
    cohort = longvit.read_cohort(study / "cohort.csv")
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return compare(cohort, out, folds_of_column(cohort), settings, features=study / "features")


def outputs(folder: Path) -> list[str]:
    return [(folder / SYSTEM / f"fold_{fold}" / "outputs.csv").read_text() for fold in "01"]


def test_pixels_of_the_tiles_are_those_of_the_slide_at_any_size(study: Path) -> None:
    row = longvit.read_cohort(study / "cohort.csv").rows[0]
    coords = np.array([[0, 0], [96, 64], [32, 96]])
    source = TilePixelSource((SlideTiles(row.path, coords[:1], 32.0), SlideTiles(row.path, coords[1:], 32.0)))
    with longvit.open_slide(row.path) as slide:
        expected = [slide.read_region(x, y, 0, 32, 32) for x, y in coords.tolist()]
    assert np.array_equal(source([2, 0, 1], 32), np.stack([expected[2], expected[0], expected[1]]))
    small = source([1], 16)[0].astype(float)
    assert np.abs(small - expected[1].reshape(16, 2, 16, 2, 3).mean((1, 3))).mean() < 3


def test_the_system_on_pixels_learns_what_features_do_not_hold(study: Path, tmp_path: Path) -> None:
    result = run(study, tmp_path / "out", epochs=8)
    assert not result.failed
    noise, pixels = result.summary["systems"]
    assert (pixels["system"], pixels["inputs"]) == (SYSTEM, "image")
    assert pixels["mean"] > 0.9 > noise["mean"]


def test_a_stopped_trial_resumes_to_the_same_bits(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(study, tmp_path / "whole", systems=(SYSTEM,), checkpoint_minutes=0)
    encode, calls = PatchSampling._sampled, list[int]()

    def dies(self: PatchSampling, bag: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("killed")
        return encode(self, bag)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PatchSampling, "_sampled", dies)
        stopped = run(study, tmp_path / "stopped", systems=(SYSTEM,), checkpoint_minutes=0)
    assert ["killed" in problem.error for problem in stopped.failed] == [True]
    assert not run(study, tmp_path / "stopped", systems=(SYSTEM,), checkpoint_minutes=0).failed
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")


def test_a_slide_without_file_is_named_and_the_other_systems_run(study: Path, tmp_path: Path) -> None:
    cohort = longvit.read_cohort(study / "cohort.csv")
    rows = tuple(replace(row, path=None) for row in cohort.rows)
    result = compare(
        replace(cohort, rows=rows), tmp_path, folds_of_column(cohort), SETTINGS, features=study / "features"
    )
    assert {problem.slide for problem in result.failed} == {f"{SYSTEM}, fold 0", f"{SYSTEM}, fold 1"}
    assert all("no file of it, which patch_sampling reads; give --slides-dir" in p.error for p in result.failed)


def test_a_damaged_slide_is_named(study: Path, tmp_path: Path) -> None:
    path = longvit.read_cohort(study / "cohort.csv").rows[0].path
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start : start + 40] = bytes(40)
    (tmp_path / "damaged.tif").write_bytes(content)
    coords = np.stack([np.arange(16) % 4, np.arange(16) // 4], 1) * TILE_PX
    with pytest.raises(InputError, match=r"damaged.tif"):
        TilePixelSource((SlideTiles(tmp_path / "damaged.tif", coords, 32.0),))(np.arange(16), 32)


def test_the_system_runs_only_where_it_is_named() -> None:
    assert SYSTEM not in [spec.system for spec in all_system_specs(tiles=True, omics=False, signatures=False)]
