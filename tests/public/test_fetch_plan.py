"""The plan of a resumed fetch counts what is left to do with these settings, and the disk that this takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.public.archive import make_archive, settings
from tests.public.archive_server import ArchiveServer

from longvit.public.fetch_job import fetch
from longvit.public.fetch_plan import plan_fetch
from longvit.public.selection import Selection
from longvit.slides.tiles import TileSettings

pytest.importorskip("requests", reason="the extra public is not installed")


def test_what_other_settings_made_is_not_finished_and_what_is_there_takes_no_more_disk(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 2), tmp_path / "out"
    selection, first = Selection(tuple(slides)), settings("http://localhost")
    fresh = plan_fetch(selection, out, first)
    assert (fresh.n_finished, fresh.n_bytes_left) == (0, selection.n_bytes)
    assert fresh.disk_bytes == selection.n_bytes + 2 * 3 * 128**2

    with ArchiveServer(tmp_path / "served") as server:
        fetch(slides[:1], out, replace(first, endpoint=server.address))
    resumed = plan_fetch(selection, out, first)
    assert (resumed.n_finished, resumed.n_bytes_left) == (1, slides[1].n_bytes)
    assert resumed.disk_bytes == slides[1].n_bytes + 3 * 128**2
    for more in (
        {"side_px": 64},
        {"fit": "pad"},
        {"keep_slides": True},
        {"encoder": "stain-texture", "tiles": TileSettings(64)},
    ):
        assert plan_fetch(selection, out, replace(first, **more)).n_finished == 0, more  # type: ignore[arg-type]

    everything = replace(first, keep_slides=True, encoder="stain-texture", tiles=TileSettings(64))
    with ArchiveServer(tmp_path / "served") as server:
        fetch(slides[:1], out, replace(everything, endpoint=server.address))
    assert plan_fetch(selection, out, everything).n_finished == 1
    kept = plan_fetch(selection, out, replace(everything, side_px=64))
    assert (kept.n_finished, kept.n_bytes_left, kept.kept_bytes) == (0, slides[1].n_bytes, slides[1].n_bytes)


def test_a_damaged_record_is_not_finished(tmp_path: Path) -> None:
    slides, out = make_archive(tmp_path, 1), tmp_path / "out"
    for folder in ("fetched", "records"):
        (out / folder).mkdir(parents=True)
        (out / folder / f"{slides[0].slide_id}.json").write_text('{"canvas": [1]}')
    assert plan_fetch(Selection(tuple(slides)), out, settings("http://localhost")).n_finished == 0
