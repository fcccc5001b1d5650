"""A fetch on the nodes of a Dask cluster: two real nodes share the work list and the disk bound of one folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.public.archive import SIDE_PX, make_archive, settings
from tests.public.archive_server import ArchiveServer
from tests.public.test_fetch import assert_canvases_of_the_sources, assert_nothing_else, sampled

from longvit.public.fetch_job import fetch
from longvit.slide_jobs.run import SlideJobsResult
from longvit.slide_jobs.status import status
from longvit.slides.tiles import TileSettings

pytest.importorskip("requests", reason="the extra public is not installed")


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs longvit[cluster]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


@pytest.mark.slow
def test_two_nodes_fetch_every_slide_once_within_one_disk_bound(tmp_path: Path, cluster: Any) -> None:
    slides, out = make_archive(tmp_path, 8), tmp_path / "out"
    most = 3 * max(slide.n_bytes for slide in slides)
    (out / "work" / "downloads").mkdir(parents=True)
    with (
        ArchiveServer(tmp_path / "served", rate=8 * slides[0].n_bytes) as server,
        sampled(out / "work" / "downloads") as samples,
    ):
        wanted = settings(
            server.address,
            cluster=cluster.scheduler_address,
            encoder="stain-texture",
            tiles=TileSettings(64),
            disk_gb=most / 2**30,
        )
        result = fetch(slides, out, wanted)
        assert set(server.gets.values()) == {1}
    assert not result.problems
    assert len(result.done) == 8
    assert 0 < max(samples) <= most
    assert_canvases_of_the_sources(tmp_path, out, slides, SIDE_PX)
    assert_nothing_else(out, slides)
    folder = out / "20x_64px_0px_overlap" / "features_stain-texture"
    assert sorted(path.stem for path in folder.glob("*.h5")) == [slide.slide_id for slide in slides]
    assert status(out)[0].state == "finished"


@pytest.mark.slow
def test_the_slides_of_a_killed_node_are_fetched_by_the_other(tmp_path: Path, cluster: Any) -> None:
    from distributed import Client

    slides, out = make_archive(tmp_path, 12), tmp_path / "out"
    with Client(cluster.scheduler_address) as client:
        nodes = set(client.run(os.getpid).values())
    assert len(nodes) == 2
    found: list[SlideJobsResult] = []
    with ArchiveServer(tmp_path / "served", rate=4 * slides[0].n_bytes) as server:
        wanted = settings(server.address, cluster=cluster.scheduler_address, retries=1)
        run = threading.Thread(target=lambda: found.append(fetch(slides, out, wanted)), daemon=True)
        run.start()
        end = time.monotonic() + 120
        while len(list(out.glob("fetched/*.json"))) < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(nodes.pop(), signal.SIGKILL)
        run.join(300)
    (result,) = found
    assert not result.problems
    assert result.done == tuple(slide.slide_id for slide in slides)
    assert_canvases_of_the_sources(tmp_path, out, slides)
    assert_nothing_else(out, slides)
