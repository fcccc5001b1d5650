"""The slide as an object: identity, processes, threads, closing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import overwrite, pyramid, tile_place, tissue, write_mrxs, write_scn, write_tiff

from longvit.errors import InputError
from longvit.slides.reader import Slide, open_slide
from longvit.slides.slide_info import describe_readers, info
from longvit.slides.strips import canvas_strips

REGION = (300, 400, 0, 257, 130)


def test_pickled_slide_is_its_path_and_opens_on_first_use() -> None:
    slide = open_slide(EXAMPLE_SLIDE, mpp=0.3, reader="openslide")
    expected = slide.read_region(*REGION)
    data = pickle.dumps(slide)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert copy._opened is None
    assert copy.mpp == slide.mpp
    assert copy.reader == "openslide"
    assert (copy.read_region(*REGION) == expected).all()


def _child(slide: Slide, queue: Any) -> None:
    queue.put(int(slide.read_region(*REGION).astype(np.int64).sum()))


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_forked_process_opens_its_own_handle(reader: Any) -> None:
    """Forked while other threads read: no lock of theirs may be waited for."""
    slide = open_slide(EXAMPLE_SLIDE, reader=reader)
    expected = int(slide.read_region(*REGION).astype(np.int64).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(slide.read_region, 0, 0, 0, 2000, 2000) for _ in range(4)]
        children = [context.Process(target=_child, args=(slide, queue)) for _ in range(3)]
        for child in children:
            child.start()
        assert [queue.get(timeout=60) for _ in children] == [expected] * 3
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        for future in busy:
            future.result()
    assert int(slide.read_region(*REGION).astype(np.int64).sum()) == expected


def test_the_reader_of_another_process_is_never_used_nor_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(EXAMPLE_SLIDE)
    parents = weakref.ref(slide.opened()[0].reader)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    own = slide.opened()[0].reader
    gc.collect()
    assert parents() is not None
    assert own is not parents()


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_threads_read_the_same_as_one(reader: Any, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(768, 640)])
    offset, count = tile_place(path, 40)
    overwrite(path, offset, bytes(count))
    slide = open_slide(path, reader=reader)
    places = [(x, y) for y in range(0, 640, 50) for x in range(0, 768, 60)]
    alone = [slide.read_region(x, y, 0, 90, 70) for x, y in places]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: slide.read_region(*place, 0, 90, 70), places))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_identity_is_the_contents_not_the_paths(tmp_path: Path) -> None:
    copy = tmp_path / "other name.svs"
    shutil.copy(EXAMPLE_SLIDE, copy)
    identity = open_slide(EXAMPLE_SLIDE).identity()
    assert len(identity) == 32
    assert open_slide(copy).identity() == identity
    overwrite(copy, copy.stat().st_size * 20 // 65 + 10, b"\1\2\3\4")  # inside one of the 64 samples
    assert open_slide(copy).identity() != identity
    shutil.copy(EXAMPLE_SLIDE, copy)
    with copy.open("ab") as file:
        file.write(b"\0")
    assert open_slide(copy).identity() != identity


def test_identity_of_a_slide_of_many_files_covers_them(tmp_path: Path) -> None:
    slide = open_slide(write_mrxs(tmp_path / "a.mrxs", tissue(128, 128)))
    before = slide.identity()
    assert slide.file_bytes() > 1000
    data = tmp_path / "a" / "Data0000.dat"
    overwrite(data, data.stat().st_size // 2, b"\1\2\3\4")
    assert slide.identity() != before


def test_closed_slide_says_so() -> None:
    with open_slide(EXAMPLE_SLIDE) as slide:
        assert slide.size_px == (2220, 2967)
    with pytest.raises(InputError, match="the slide is closed"):
        slide.read_region(0, 0, 0, 10, 10)
    slide.close()


def test_closing_while_a_canvas_is_read_ends_it_with_one_line() -> None:
    slide = open_slide(EXAMPLE_SLIDE)
    stream = canvas_strips(slide, 512, strip_px=16, threads=2)
    next(stream)
    slide.close()
    with pytest.raises(InputError, match="the slide is closed"):
        list(stream)


def test_no_file_handle_is_left_behind() -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    open_slide(EXAMPLE_SLIDE).read_region(*REGION)
    gc.collect()
    before = handles()
    for reader in ("auto", "tiff", "openslide"):
        for _ in range(5):
            open_slide(EXAMPLE_SLIDE, reader=reader).read_region(*REGION)  # type: ignore[arg-type]
    gc.collect()
    assert handles() <= before


def test_info_is_plain_and_complete(tmp_path: Path) -> None:
    import json

    found = info(open_slide(EXAMPLE_SLIDE))
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "Aperio SVS"
    assert found["reader"] == "tiff"
    assert found["size_px"] == [2220, 2967]
    assert (found["mpp"], found["mpp_source"], found["magnification"]) == ([0.499, 0.499], "openslide.mpp-x", "20")
    assert found["levels"][0]["tile_px"] == [240, 240]
    assert found["levels"][0]["compression"] == "jpeg"
    assert found["file_bytes"] == EXAMPLE_SLIDE.stat().st_size
    scn = info(open_slide(write_scn(tmp_path / "a.scn", pyramid(tissue(256, 128), 2), 10, 20, (300, 200))))
    assert scn["bounds_level0_px"] == [10, 20, 256, 128]
    assert [level["mpp"] for level in scn["levels"]] == [[0.5, 0.5], [1.0, 1.0]]
    unknown = info(open_slide(write_tiff(tmp_path / "a.tif", [tissue(64, 64)])))
    assert (unknown["mpp"], unknown["mpp_source"], unknown["size_mm"]) == (None, None, None)
    assert unknown["mpp_looked_at"]


def test_readers_are_described_with_versions() -> None:
    readers = {reader.name: reader for reader in describe_readers()}
    assert list(readers) == ["tiff", "dicom", "openslide", "image"]
    assert "Aperio SVS" in readers["tiff"].formats
    assert "DICOM" in readers["openslide"].formats
    assert all(any(c.isdigit() for c in reader.version) for reader in readers.values())
