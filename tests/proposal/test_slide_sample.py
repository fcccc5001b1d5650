"""A sample that is not spread, or that ends at a slide that cannot be read, would describe other slides."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.small_slides import write_slide

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError
from longvit.proposal.slide_sample import open_sample, spread, time_reading


def rows(folder: Path, count: int) -> tuple[SlideRow, ...]:
    paths = [write_slide(folder / f"s{i}.tif", seed=i, size_px=(160 + 64 * i, 96)) for i in range(count)]
    return tuple(SlideRow(f"P{i}", path.stem, "ab"[i % 2], path) for i, path in enumerate(paths))


def test_a_sample_is_spread_from_the_first_to_the_last_row(tmp_path: Path) -> None:
    listed = [SlideRow(f"P{i}", f"s{i}", "a", tmp_path) for i in range(100)]
    assert [row.slide_id for row in spread(listed, 5)] == ["s0", "s25", "s50", "s74", "s99"]
    assert [row.slide_id for row in spread(listed[:3], 5)] == ["s0", "s1", "s2"]
    assert [row.slide_id for row in spread(listed, 1)] == ["s0"]


def test_size_and_resolution_are_those_of_the_files(tmp_path: Path) -> None:
    sample = open_sample(Cohort(rows(tmp_path, 3), ("a", "b")), 5)
    assert [slide.size_px for slide in sample.opened] == [(160, 96), (224, 96), (288, 96)]
    assert (sample.longer_px, sample.longer_um) == (224, 112)
    read = time_reading(Cohort(rows(tmp_path, 3), ("a", "b")), sample, 64)
    assert read.read_s is not None
    assert read.read_s > 0


def test_a_slide_that_cannot_be_opened_is_named_and_the_others_remain(tmp_path: Path) -> None:
    listed = rows(tmp_path, 3)
    listed[1].path.write_bytes(b"II*\0 no slide")
    sample = open_sample(Cohort(listed, ("a", "b")), 5)
    assert [slide.slide_id for slide in sample.opened] == ["s0", "s2"]
    assert list(sample.unreadable) == ["s1"]
    assert sample.unreadable["s1"]


def test_a_slide_that_opens_but_cannot_be_read_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longvit.slides.reader import Slide

    canvas = Slide.canvas
    monkeypatch.setattr(
        Slide, "canvas", lambda self, *a, **k: 1 / 0 if self.path.stem == "s0" else canvas(self, *a, **k)
    )
    cohort = Cohort(rows(tmp_path, 3), ("a", "b"))
    read = time_reading(cohort, open_sample(cohort, 5), 64)
    assert list(read.unreadable) == ["s0"]
    assert [slide.slide_id for slide in read.opened] == ["s1", "s2"]
    assert read.read_s is not None


def test_a_sample_without_a_readable_slide_is_one_error(tmp_path: Path) -> None:
    listed = rows(tmp_path, 2)
    for row in listed:
        row.path.write_bytes(b"II*\0 no slide")
    with pytest.raises(InputError, match="none of 2 slides can be opened; s0: "):
        open_sample(Cohort(listed, ("a", "b")), 5)
    for row in listed:
        row.path.unlink()
    with pytest.raises(InputError, match="no slide of the table has a file"):
        open_sample(Cohort(listed, ("a", "b")), 5)
