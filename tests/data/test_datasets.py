"""Canvases made once, batches whose order is a function of (seed, epoch, index), one bad slide that costs one row."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE

from longvit.data.augmentation import augment, recolour, restain
from longvit.data.canvas_cache import CanvasSettings, cache_canvases, canvas_name, read_pixels
from longvit.data.cohort import SlideRow
from longvit.data.datasets import CanvasBatches, CanvasDataset, RowRange
from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems, write_problems
from longvit.errors import InputError
from longvit.slides.reader import open_slide

SETTINGS = CanvasSettings(64)


def slides(folder: Path, n: int = 5) -> list[SlideRow]:
    """n images of 80 × 64 px, each with its own noise."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(n):
        path = folder / f"s{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(path)
        rows.append(SlideRow(f"p{i}", f"s{i}", "xy"[i % 2], path))
    return rows


def dataset(tmp_path: Path, n: int = 5, **settings: int) -> CanvasDataset:
    rows = slides(tmp_path / "slides", n)
    cached = cache_canvases(rows, SETTINGS, tmp_path / "cache")
    targets = {"label": np.array(["xy".index(row.label) for row in rows])}
    return CanvasDataset(rows, targets, cached.paths, **settings)


def test_a_canvas_is_made_once_and_is_that_of_the_slide(tmp_path: Path) -> None:
    rows = slides(tmp_path / "slides")
    first = cache_canvases(rows, SETTINGS, tmp_path / "cache")
    second = cache_canvases(rows, SETTINGS, tmp_path / "cache", workers=0)
    assert (first.made, second.made) == (5, 0)
    assert first.paths == second.paths
    assert first.identities == second.identities
    for row in rows:
        expected = open_slide(row.path).canvas(64).pixels
        assert np.array_equal(read_pixels(first.paths[row.slide_id]), expected)
        assert np.array_equal(tifffile.imread(first.paths[row.slide_id]), expected)  # an ordinary TIFF


def test_a_changed_slide_another_side_and_another_fit_are_made_anew(tmp_path: Path) -> None:
    rows = slides(tmp_path / "slides")
    first = cache_canvases(rows, SETTINGS, tmp_path / "cache")
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(rows[0].path)
    second = cache_canvases(rows, SETTINGS, tmp_path / "cache")
    assert second.made == 1
    assert second.paths["s0"] != first.paths["s0"]
    assert not read_pixels(second.paths["s0"]).any()
    assert cache_canvases(rows, CanvasSettings(32), tmp_path / "cache").made == 5
    assert cache_canvases(rows, CanvasSettings(64, "pad"), tmp_path / "cache").made == 5


def test_reduced_canvases_are_never_mixed_with_exact_ones_in_a_folder(tmp_path: Path) -> None:
    row, folder = SlideRow("p", "s", "x", EXAMPLE_SLIDE), tmp_path / "cache"
    reduced = CanvasSettings(256, decode="reduced")
    found = {
        decode: read_pixels(cache_canvases([row], settings, folder).paths["s"])
        for decode, settings in (("exact", CanvasSettings(256)), ("reduced", reduced))
    }
    assert len(list(folder.glob("*.tif"))) == 2
    assert not np.array_equal(found["exact"], found["reduced"])
    with open_slide(EXAMPLE_SLIDE) as slide:
        for decode, pixels in found.items():
            assert np.array_equal(pixels, slide.canvas(256, decode=decode).pixels)  # type: ignore[arg-type]
    assert cache_canvases([row], reduced, folder).made == cache_canvases([row], CanvasSettings(256), folder).made == 0


def test_a_cache_from_before_reduced_decoding_is_still_used() -> None:
    name = canvas_name("s", "0" * 32, CanvasSettings(1024, decode="exact"))
    assert name == "s_1024px_stretch_6d833afa1ce405e5.tif"


def test_a_slide_with_an_awkward_name_has_a_file_of_its_own() -> None:
    names = {canvas_name(name, "0" * 32, SETTINGS) for name in ("a/b", "a b", "ä" * 300)}
    assert all("/" not in name and len(name.encode()) < 255 for name in names)
    assert canvas_name("a/b", "0" * 32, SETTINGS) != canvas_name("a/b", "1" * 32, SETTINGS)


def test_a_bad_slide_costs_a_row_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = slides(tmp_path / "slides")
    rows[1].path.write_text("no slide")
    rows[3].path.write_bytes(rows[3].path.read_bytes()[:3000])
    cached = cache_canvases(rows, SETTINGS, tmp_path / "cache")
    assert set(cached.paths) == {"s0", "s2", "s4"}
    assert [(p.slide, p.stage, p.is_left_out) for p in cached.problems] == [("s1", "open", True), ("s3", "read", True)]
    assert str(rows[1].path) in cached.problems[0].error
    assert "problem: s1: open" in capsys.readouterr().err
    write_problems(tmp_path / PROBLEMS_CSV, cached.problems)
    assert (tmp_path / PROBLEMS_CSV).read_text().startswith("slide,stage,error\ns1,open,")
    assert read_problems(tmp_path / PROBLEMS_CSV) == cached.problems
    write_problems(tmp_path / PROBLEMS_CSV, [])
    assert not (tmp_path / PROBLEMS_CSV).exists()


def tiled_slide_with_a_hole(path: Path) -> SlideRow:
    """A tiled JPEG TIFF of 512 × 512 px, one of whose 4 tiles is overwritten with zeros."""
    pixels = np.random.default_rng(0).integers(100, 200, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages.first.dataoffsets[1], tiff.pages.first.databytecounts[1]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    return SlideRow("p", "holed", "x", path)


def test_unreadable_tiles_are_reported_also_from_the_cache_and_limited(tmp_path: Path) -> None:
    row = tiled_slide_with_a_hole(tmp_path / "holed.tif")
    for made in (1, 0):
        cached = cache_canvases([row], SETTINGS, tmp_path / "cache")
        assert cached.made == made
        assert [(p.stage, p.is_left_out) for p in cached.problems] == [("tiles", False)]
        assert "1 of 4 tiles cannot be read; filled with background" in cached.problems[0].error
        assert set(cached.paths) == {"holed"}
    cached = cache_canvases([row], CanvasSettings(64, max_bad_tiles=0), tmp_path / "cache")
    assert cached.made == 0
    assert not cached.paths
    assert "more than the 0 allowed" in cached.problems[0].error


def test_a_half_written_canvas_is_made_anew_and_a_damaged_one_says_how(tmp_path: Path) -> None:
    rows = slides(tmp_path / "slides", 1)
    path = cache_canvases(rows, SETTINGS, tmp_path / "cache").paths["s0"]
    path.with_name(f"{path.name}.json").unlink()  # a kill between the two files
    assert cache_canvases(rows, SETTINGS, tmp_path / "cache").made == 1
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="this cached canvas is damaged; remove it"):
        read_pixels(path)


def test_a_cache_that_cannot_be_written_to_is_an_error_not_338_problems(tmp_path: Path) -> None:
    rows = slides(tmp_path / "slides")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache: not written"):
        cache_canvases(rows, SETTINGS, tmp_path / "cache")


def test_an_interrupt_stops_the_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = slides(tmp_path / "slides", 12)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("longvit.data.canvas_cache.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache_canvases(rows, SETTINGS, tmp_path / "cache", workers=2)
    assert not any(thread.name.startswith("canvas") for thread in threading.enumerate())
    monkeypatch.undo()
    assert cache_canvases(rows, SETTINGS, tmp_path / "cache").made < 12


def test_items_are_uint8_channels_first_with_label_and_name(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    image, answers, name = data[3]
    assert (image.dtype, tuple(image.shape), answers, name) == (torch.uint8, (3, 64, 64), {"label": 1}, "s3")
    assert np.array_equal(image.numpy().transpose(1, 2, 0), data.pixels(3))


def batches_of(batches: CanvasBatches, epoch: int, start: int = 0) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    return [(batch.names, batch.images) for batch in batches.epoch(epoch, range(start, len(batches)))]


@pytest.mark.parametrize("augmentation", ["none", "flips", "flips+stain"])
def test_a_strip_is_the_rows_of_the_whole_whatever_its_flips_and_turns(tmp_path: Path, augmentation: Any) -> None:
    """A rank of a sequence reads its part of the file alone, and must see what one process would see there."""
    data = dataset(tmp_path, 6, memory_mb=0)
    for epoch in range(4):  # 24 canvases: all 8 orientations
        whole = batches_of(CanvasBatches(data, 2, augmentation=augmentation, workers=0), epoch)
        for rows in ((0, 20), (20, 36), (36, 64)):
            batches = CanvasBatches(data, 2, augmentation=augmentation, workers=0, row_range=RowRange(*rows, 64))
            for (names, images), (_, strips) in zip(whole, batches_of(batches, epoch), strict=True):
                assert torch.equal(strips, images[:, :, slice(*rows)]), (names, rows)


@pytest.mark.parametrize("memory_mb", [0, 512])
def test_order_and_pixels_depend_on_seed_epoch_index_alone(tmp_path: Path, memory_mb: int) -> None:
    """Neither on the number of threads, nor on where an epoch is started, nor on the batch size."""
    data = dataset(tmp_path, 11, memory_mb=memory_mb)
    reference = batches_of(CanvasBatches(data, 2, augmentation="flips+stain", seed=3, workers=0), 4)
    assert [len(names) for names, _ in reference] == [2, 2, 2, 2, 2, 1]
    assert len(CanvasBatches(data, 2)) == 6
    for workers in (1, 3):
        batches = CanvasBatches(data, 2, augmentation="flips+stain", seed=3, workers=workers)
        for start in (0, 4):
            again = batches_of(batches, 4, start)
            assert [names for names, _ in again] == [names for names, _ in reference[start:]]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again, reference[start:], strict=True))
    single = batches_of(CanvasBatches(data, 1, augmentation="flips+stain", seed=3), 4)
    assert torch.equal(torch.cat([x for _, x in single]), torch.cat([x for _, x in reference]))


def test_epochs_and_seeds_differ_and_every_slide_comes_once(tmp_path: Path) -> None:
    data = dataset(tmp_path, 8)
    orders = {
        (seed, epoch): tuple(n for names, _ in batches_of(CanvasBatches(data, 3, seed=seed), epoch) for n in names)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == sorted(f"s{i}" for i in range(8)) for order in orders.values())
    plain = CanvasBatches(data, 3, shuffle=False)
    assert [name for batch in plain for name in batch.names] == [f"s{i}" for i in range(8)]
    assert torch.equal(torch.cat([batch.targets["label"] for batch in plain]), torch.tensor([0, 1] * 4))


def test_balanced_drawing_gives_a_rare_class_its_share_and_is_a_function_of_the_epoch() -> None:
    rows = [SlideRow(f"p{i}", f"s{i}", "x" if i < 10 else "y", Path("none")) for i in range(100)]
    data = CanvasDataset(rows, {}, {row.slide_id: row.path for row in rows}, [row.label for row in rows])
    batches = CanvasBatches(data, 4, balanced=True, seed=1)
    orders = [batches.order(epoch) for epoch in range(40)]
    assert all(len(order) == 100 for order in orders)
    assert 0.47 < np.mean(np.concatenate(orders) < 10) < 0.53
    assert np.array_equal(orders[7], batches.order(7))
    assert not np.array_equal(orders[7], orders[8])


def test_matched_slides_follow_each_other_in_an_order_that_still_changes_with_the_epoch() -> None:
    rows = [SlideRow(f"p{i}", f"s{i}", "xy"[i % 2], Path("none")) for i in range(20)]
    matches = [f"pair{i // 2}" if i < 12 else "" for i in range(20)]
    data = CanvasDataset(rows, {}, {row.slide_id: row.path for row in rows}, matches=matches)
    batches = CanvasBatches(data, 4, seed=1)
    orders = [batches.order(epoch).tolist() for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(20))
        assert all(abs(order.index(i) - order.index(i + 1)) == 1 for i in range(0, 12, 2))
    assert len({tuple(order) for order in orders}) == 4
    assert len({order.index(0) < order.index(1) for order in orders}) == 2
    assert any(abs(order.index(i) - order.index(i + 1)) > 1 for order in orders for i in range(12, 20, 2))
    assert CanvasBatches(data, 4, shuffle=False).order(3).tolist() == list(range(20))


@pytest.mark.parametrize(("ahead_bytes", "held"), [(10**9, 4), (3 * 64 * 64 * 2, 2), (1, 1)])
def test_large_batches_are_not_hoarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_bytes: int, held: int
) -> None:
    """A canvas of 32,768² has 3 GB: the number of batches made before they are asked for is bounded by their size."""
    monkeypatch.setattr("longvit.data.datasets._AHEAD_BYTES", ahead_bytes)
    made = []
    batch = CanvasBatches.batch
    monkeypatch.setattr(CanvasBatches, "batch", lambda *args: made.append(1) or batch(*args))
    stream = CanvasBatches(dataset(tmp_path, 9), 1, workers=2).epoch(0)
    for taken in range(1, 5):
        next(stream)
        end = time.monotonic() + 10
        while len(made) < taken + held and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(made) == taken + held
    assert len(list(stream)) == 5


def test_closing_an_epoch_early_ends_its_threads(tmp_path: Path) -> None:
    stream = CanvasBatches(dataset(tmp_path), 1, workers=2).epoch(0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("canvases") for thread in threading.enumerate())


def test_an_error_in_a_loader_thread_reaches_the_caller(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    data.paths["s2"].write_bytes(b"")
    with pytest.raises(InputError, match="s2_64px_stretch_"):
        list(CanvasBatches(data, 1, workers=2))


def test_flips_give_the_eight_symmetries() -> None:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    seen = {augment(pixels, "flips", np.random.default_rng(i)).tobytes() for i in range(200)}
    turned = [np.rot90(flipped, k) for flipped in (pixels, pixels[:, ::-1]) for k in range(4)]
    assert seen == {image.tobytes() for image in turned}
    assert augment(pixels, "none", np.random.default_rng(0)) is pixels
    with pytest.raises(InputError, match="choose none, flips, flips"):
        augment(pixels, "mirror", np.random.default_rng(0))  # type: ignore[arg-type]


def test_restaining_by_nothing_changes_nothing_and_more_haematoxylin_is_bluer() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 64, 3), dtype=np.uint8)
    same = restain(pixels, np.ones(3), np.zeros(3))
    assert np.abs(same.astype(int) - pixels).max() <= 1
    purple = np.full((4, 4, 3), (130, 90, 160), np.uint8)
    more = restain(purple, np.array([1.3, 1, 1]), np.zeros(3))
    assert (more[..., 0] < purple[..., 0] - 10).all()
    assert (purple[..., 2].astype(int) - more[..., 2] < purple[..., 0].astype(int) - more[..., 0]).all()


def test_recolouring_turns_hue_and_leaves_white_and_structure() -> None:
    pixels = np.random.default_rng(0).integers(60, 256, (64, 64, 3), dtype=np.uint8)
    assert np.abs(recolour(pixels, 0, 1, 1).astype(int) - pixels).max() <= 1
    third = recolour(pixels, 2 * np.pi / 3, 1, 1)  # a third of a turn moves every channel on by one
    assert np.abs(third.astype(int) - np.roll(pixels, -1, axis=2)).max() <= 1
    grey = recolour(pixels, 1.0, 0, 1)
    assert np.ptp(grey.astype(int), axis=2).max() == 0
    assert (recolour(np.full((2, 2, 3), 255, np.uint8), 2.0, 1.5, 1.5) == 255).all()
    assert recolour(pixels, 0, 1, 1.5).mean() < pixels.mean() - 10


def test_a_problem_with_commas_and_quotes_survives(tmp_path: Path) -> None:
    problems = (Problem('a,"b"', "read", "x.svs: 3 tiles, of 4"),)
    write_problems(tmp_path / "p.csv", problems)
    assert read_problems(tmp_path / "p.csv") == problems
