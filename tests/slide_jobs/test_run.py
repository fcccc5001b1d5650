"""Many slides: layout of the files, resume, one bad slide costs one row, a kill loses at most the slide in progress."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.small_slides import write_model, write_slide

from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError
from longvit.model.longvit import LongViT
from longvit.model.pretrained import load_model
from longvit.slide_jobs import reading
from longvit.slide_jobs.embed import EmbedJob, embed_slides, read_features
from longvit.slide_jobs.job import model_digest
from longvit.slide_jobs.predict import predict_slides
from longvit.slide_jobs.reading import ReadRequest, ReadSettings
from longvit.slide_jobs.run import JobSpec, SlideJobsResult, run
from longvit.slides.reader import open_slide


@pytest.fixture
def model(tmp_path: Path) -> LongViT:
    return load_model(write_model(tmp_path / "model"))


@pytest.fixture
def slides(tmp_path: Path) -> tuple[ListedSlide, ...]:
    for i in range(3):
        write_slide(tmp_path / "slides" / f"s{i}.tif", seed=i)
    return find_slides([tmp_path / "slides"])


def run_job(job: EmbedJob, slides: Any, out: Path) -> SlideJobsResult:
    return run(lambda: job, JobSpec("embed", job.folder, {}), slides, out)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_that_was_stopped_and_replaced_keeps_the_tables_of_the_newer_one(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped for long has no heartbeat, so that the same command begins a newer run meanwhile."""
    out, newer, finish = tmp_path / "out", list[SlideJobsResult](), EmbedJob.finish

    def replace_run(self: EmbedJob, *arguments: Any) -> dict[str, Any]:
        if not newer:
            monkeypatch.setattr(EmbedJob, "finish", finish)
            (out / "work" / "embed.claim").unlink()  # as if it were expired
            newer.append(embed_slides(slides, out, model))
        return finish(self, *arguments)

    monkeypatch.setattr(EmbedJob, "finish", replace_run)
    with pytest.raises(InputError, match=r"a newer run replaced this one.*its tables are kept"):
        embed_slides(slides, out, model)
    assert not newer[0].problems
    assert [row["slide_id"] for row in rows(out / "embeddings.csv")] == ["s0", "s1", "s2"]
    assert not (out / "problems.csv").exists()


def test_embed_writes_tridents_layout_and_says_where_it_came_from(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    result = embed_slides(slides, tmp_path / "out", model)
    assert result.done == ("s0", "s1", "s2")
    assert not result.problems
    folder = tmp_path / "out" / "slide_features_longvit"
    with h5py.File(folder / "s1.h5") as file:
        features, coords = file["features"], file["coords"]
        assert (features.shape, features.dtype) == ((32,), np.float32)
        assert features.attrs["name"] == "s1"
        assert features.attrs["encoder"] == "longvit"
        assert (coords.shape, coords.dtype) == ((4, 2), np.int64)  # 64 px canvas, patches of 32
        # TRIDENT's reader asks for these three
        assert coords.attrs["patch_size"] == 32
        assert coords.attrs["level0_magnification"] == 20
        assert coords.attrs["target_magnification"] == pytest.approx(20 / (160 / 64))
        # stretched: half of 160 and of 96 level-0 px
        np.testing.assert_array_equal(coords[()], [[0, 0], [80, 0], [0, 48], [80, 48]])
        np.testing.assert_array_equal(features[()], model.embed(open_slide(slides[1].path)))
    record = json.loads((folder / "s1.json").read_text())
    assert record["mpp"] == {"x": 0.5, "y": 0.5, "source": "tiff.XResolution"}
    assert record["canvas"]["slide"]["identity"] == open_slide(slides[1].path).identity()
    assert record["canvas"]["level"] == 0
    assert record["model"]["digest"] == model_digest(model)
    assert record["n_bad_tiles"] == 0
    assert not (tmp_path / "out" / "problems.csv").exists()


def test_the_table_gives_every_float_back_to_the_last_bit(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    embed_slides(slides, tmp_path / "out", model)
    for row, listed in zip(rows(tmp_path / "out" / "embeddings.csv"), slides, strict=True):
        assert row["slide_id"] == listed.slide_id
        values = np.array([row[f"f{i}"] for i in range(32)], np.float32)
        np.testing.assert_array_equal(
            values, read_features(tmp_path / "out" / "slide_features_longvit" / f"{listed.slide_id}.h5")
        )


def test_a_slide_without_resolution_is_embedded_and_says_so(tmp_path: Path, model: LongViT) -> None:
    slide = find_slides([write_slide(tmp_path / "a.tif", mpp=None)])
    embed_slides(slide, tmp_path / "out", model)
    record = json.loads((tmp_path / "out" / "slide_features_longvit" / "a.json").read_text())
    assert record["mpp"] is None
    with h5py.File(tmp_path / "out" / "slide_features_longvit" / "a.h5") as file:
        assert file["coords"].attrs["level0_magnification"] == "None"


def test_finished_slides_are_skipped_until_slide_model_or_settings_change(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    out = tmp_path / "out"
    embed_slides(slides, out, model)
    again = embed_slides(slides, out, model)
    assert (again.done, again.skipped) == ((), ("s0", "s1", "s2"))

    write_slide(slides[1].path, seed=77)
    assert embed_slides(slides, out, model).done == ("s1",)
    assert embed_slides(slides, out, model, ReadSettings(mpp=0.25)).done == ("s0", "s1", "s2")
    assert embed_slides(slides, out, model, ReadSettings(mpp=0.25)).done == ()
    own_mpp = (replace(slides[0], mpp=0.3), *slides[1:])
    assert embed_slides(own_mpp, out, model, ReadSettings(mpp=0.25)).done == ("s0",)
    other = load_model(write_model(tmp_path / "other", seed=1))
    assert embed_slides(slides, out, other).done == ("s0", "s1", "s2")
    assert embed_slides(slides, out, other, ReadSettings(decode="exact")).done == ()
    assert embed_slides(slides, out, other, ReadSettings(decode="reduced")).done == ("s0", "s1", "s2")


def test_a_vector_that_is_gone_or_damaged_is_made_again(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    out = tmp_path / "out"
    embed_slides(slides, out, model)
    folder = out / "slide_features_longvit"
    (folder / "s0.h5").unlink()
    (folder / "s1.h5").write_bytes(b"not HDF5")
    (folder / "s2.json").write_text('{"digest": ')
    assert embed_slides(slides, out, model).done == ("s0", "s1", "s2")


def test_one_bad_slide_costs_one_row_and_the_others_are_done(tmp_path: Path, model: LongViT) -> None:
    for name in ("a", "d"):
        write_slide(tmp_path / "slides" / f"{name}.tif")
    (tmp_path / "slides" / "b.svs").write_text("hello\n")
    whole = write_slide(tmp_path / "slides" / "c.tif").read_bytes()
    (tmp_path / "slides" / "c.tif").write_bytes(whole[: len(whole) // 3])
    listed = find_slides([tmp_path / "slides"])
    result = embed_slides(listed, tmp_path / "out", model)
    assert result.done == ("a", "d")
    assert [problem.slide for problem in result.left_out] == ["b", "c"]
    table = rows(tmp_path / "out" / "problems.csv")
    assert [row["slide"] for row in table] == ["b", "c"]
    assert {row["stage"] for row in table} <= {"open", "read"}
    assert all("\n" not in row["error"] and row["error"] for row in table)
    assert [row["slide_id"] for row in rows(tmp_path / "out" / "embeddings.csv")] == ["a", "d"]

    # mended, the next run does the rest, and the old problems are gone
    for name in ("b", "c"):
        (tmp_path / "slides" / f"{name}.svs").unlink(missing_ok=True)
        write_slide(tmp_path / "slides" / f"{name}.tif")
    again = embed_slides(find_slides([tmp_path / "slides"]), tmp_path / "out", model)
    assert (again.done, again.skipped) == (("b", "c"), ("a", "d"))
    assert not (tmp_path / "out" / "problems.csv").exists()


def test_holes_are_counted_reported_and_can_be_made_a_failure(tmp_path: Path, model: LongViT) -> None:
    import tifffile

    path = write_slide(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    compressed = tmp_path / "b.tif"
    tifffile.imwrite(
        compressed, tifffile.imread(path), photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None
    )
    with tifffile.TiffFile(compressed) as tiff:
        offset, length = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    data = bytearray(compressed.read_bytes())
    data[offset : offset + length] = bytes(length)
    compressed.write_bytes(data)
    listed = find_slides([compressed])

    result = predict_slides(listed, tmp_path / "out", model, ReadSettings(reader="tiff"))
    assert result.done == ("b",)
    assert not result.left_out
    assert [(problem.slide, problem.stage) for problem in result.problems] == [("b", "tiles")]
    (row,) = rows(tmp_path / "out" / "predictions.csv")
    assert row["n_bad_tiles"] == "1"
    # a run that skips the slide still says that it has holes
    skipped = predict_slides(listed, tmp_path / "out", model, ReadSettings(reader="tiff"))
    assert (skipped.skipped, len(skipped.problems)) == (("b",), 1)

    strict = predict_slides(listed, tmp_path / "out", model, ReadSettings(reader="tiff", max_bad_tiles=0))
    assert [(problem.slide, problem.stage) for problem in strict.left_out] == [("b", "read")]
    assert rows(tmp_path / "out" / "predictions.csv") == []


def test_predict_gives_a_probability_per_class(tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]) -> None:
    import torch

    predict_slides(slides, tmp_path / "out", model, pictures=True)
    for row, listed in zip(rows(tmp_path / "out" / "predictions.csv"), slides, strict=True):
        probabilities = [float(row["prob_benign"]), float(row["prob_tumour"])]
        assert sum(probabilities) == pytest.approx(1, abs=1e-7)
        assert row["prediction"] == ("benign", "tumour")[int(np.argmax(probabilities))]
        pixels = np.asarray(open_slide(listed.path).canvas(64))
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0]
        np.testing.assert_allclose(probabilities, logits.double().softmax(0), atol=1e-6)
        assert (tmp_path / "out" / "slides" / f"{listed.slide_id}.png").read_bytes()[:4] == b"\x89PNG"


def test_pictures_asked_for_later_are_made_later(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    predict_slides(slides, tmp_path / "out", model)
    assert predict_slides(slides, tmp_path / "out", model, pictures=True).done == ("s0", "s1", "s2")
    assert predict_slides(slides, tmp_path / "out", model, pictures=True).done == ()
    other = load_model(write_model(tmp_path / "other", seed=1))
    assert predict_slides(slides, tmp_path / "out", other).done == ("s0", "s1", "s2")


def test_a_model_without_classes_is_refused_before_any_slide(tmp_path: Path, slides: tuple[ListedSlide, ...]) -> None:
    headless = load_model(write_model(tmp_path / "headless", num_classes=0))
    with pytest.raises(InputError, match="no classes"):
        predict_slides(slides, tmp_path / "out", headless)
    assert not (tmp_path / "out").exists()


def test_a_model_that_gives_nan_is_a_problem_of_stage_model(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]
) -> None:
    import torch

    with torch.no_grad():
        model.fc_norm.bias[0] = torch.nan
    for result in (
        embed_slides(slides, tmp_path / "embed", model),
        predict_slides(slides, tmp_path / "predict", model),
    ):
        assert [problem.stage for problem in result.left_out] == ["model"] * 3
        assert "not finite" in result.left_out[0].error


def test_a_killed_run_goes_on_without_redoing_finished_slides(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for i in range(6):
        write_slide(tmp_path / "slides" / f"s{i}.tif", seed=i)
    command = [sys.executable, str(Path(__file__).parents[1] / "small_slides.py")]
    command += [str(tmp_path / name) for name in ("model", "slides", "out")]
    folder = tmp_path / "out" / "slide_features_longvit"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("s*.json"))) < 2:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("s*.json")}
    vectors = {path.with_suffix(".h5"): path.with_suffix(".h5").stat().st_mtime_ns for path in finished}
    assert 2 <= len(finished) < 6

    model, listed = load_model(tmp_path / "model"), find_slides([tmp_path / "slides"])
    result = embed_slides(listed, tmp_path / "out", model)
    assert set(result.skipped) == {path.stem for path in finished}
    assert len(result.done) == 6 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in {**finished, **vectors}} == {**finished, **vectors}

    whole = embed_slides(listed, tmp_path / "uninterrupted", model)
    assert len(whole.done) == 6
    for slide in listed:
        name = f"slide_features_longvit/{slide.slide_id}.h5"
        np.testing.assert_array_equal(
            read_features(tmp_path / "out" / name), read_features(tmp_path / "uninterrupted" / name)
        )


def test_a_full_disk_stops_the_run_and_leaves_the_old_file(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    embed_slides(slides, out, model)
    results = (out / "slide_features_longvit", out / "embeddings.csv")
    before = {path: path.read_bytes() for top in results for path in (top, *top.rglob("*")) if path.is_file()}
    sync = os.fsync

    def full(handle: int) -> None:
        if ".h5" not in os.readlink(f"/proc/self/fd/{handle}"):  # noqa: PTH115
            return sync(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"s0\.h5: not written: no space left"):
        embed_slides(slides, out, model, ReadSettings(mpp=0.25))
    after = {path: path.read_bytes() for top in results for path in (top, *top.rglob("*")) if path.is_file()}
    assert after == before
    assert not [path for path in out.rglob("*") if ".part" in path.name or path.suffix == ".claim"]


def test_a_really_full_disk_gives_one_line(tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...]) -> None:
    mount = tmp_path / "small_disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(InputError) as caught:
            embed_slides(slides, mount, model)
        assert "\n" not in str(caught.value)
        assert "not written" in str(caught.value)
        assert not [path for path in mount.rglob(".*") if path.is_file()], "a half file is left"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_at_most_two_canvases_are_held(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EmbedJob(model, tmp_path / "out" / "features")
    alive = most = 0
    read, finish = reading.read, job.finish

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def counted_read(*arguments: Any) -> Any:
        nonlocal alive, most
        canvas = read(*arguments)
        alive += 1
        most = max(most, alive)
        weakref.finalize(canvas, gone)
        return canvas

    def slow_finish(*arguments: Any) -> Any:
        time.sleep(0.1)  # long enough for a reader that runs too far ahead to be seen
        return finish(*arguments)

    monkeypatch.setattr(reading, "read", counted_read)
    monkeypatch.setattr(job, "finish", slow_finish)
    many = [ListedSlide(f"n{i}", slides[i % 3].path) for i in range(9)]
    assert len(run_job(job, many, tmp_path / "out").done) == 9
    assert most == 2


def test_the_next_slide_is_read_while_the_model_works(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EmbedJob(model, tmp_path / "out" / "features")
    second_was_read = threading.Event()
    read, finish = reading.read, job.finish

    def watched_read(request: ReadRequest, *arguments: Any) -> Any:
        canvas = read(request, *arguments)
        if request.path == slides[1].path:
            second_was_read.set()
        return canvas

    def waiting_finish(listed: ListedSlide, *arguments: Any) -> Any:
        if listed.slide_id == "s0":
            assert second_was_read.wait(20), "nothing is read ahead"
        return finish(listed, *arguments)

    monkeypatch.setattr(reading, "read", watched_read)
    monkeypatch.setattr(job, "finish", waiting_finish)
    run_job(job, slides, tmp_path / "out")


def test_an_interrupt_ends_the_reading_thread_and_keeps_what_is_finished(
    tmp_path: Path, model: LongViT, slides: tuple[ListedSlide, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EmbedJob(model, tmp_path / "out" / "features")
    finish = job.finish

    def interrupted(listed: ListedSlide, *arguments: Any) -> Any:
        if listed.slide_id == "s1":
            raise KeyboardInterrupt
        return finish(listed, *arguments)

    monkeypatch.setattr(job, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, slides, tmp_path / "out")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    monkeypatch.undo()
    again = run_job(job, slides, tmp_path / "out")
    assert (again.skipped, again.done) == (("s0",), ("s1", "s2"))


def test_digest_of_a_model_is_that_of_its_numbers(tmp_path: Path) -> None:
    import torch

    model = load_model(write_model(tmp_path / "a"))
    assert model_digest(model) == model_digest(load_model(write_model(tmp_path / "b")))
    digest = model_digest(model)
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-6
    assert model_digest(model) != digest
