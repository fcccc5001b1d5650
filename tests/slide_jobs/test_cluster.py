"""Workers on the nodes of a Dask cluster: two real nodes, each a process that Dask started and watches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.slide_jobs.many_slides import (
    Run,
    assert_each_once,
    assert_nothing_left,
    assert_same_bits,
    in_model,
    lines_of,
    make,
    wait_for,
)

from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.slide_jobs.embed import embed_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.status import status

ONE = RunSettings(device="cpu", threads=1)


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs longvit[cluster]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def node_processes(address: str) -> set[int]:
    """The processes of the nodes."""
    from distributed import Client

    with Client(address) as client:
        return set(client.run(os.getpid).values())


def children(process: int) -> set[int]:
    """The processes that a process has started."""
    found = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found |= {int(child) for child in task.read_text().split()}
    return found


@pytest.mark.slow
def test_a_killed_node_of_two_leaves_every_slide_done_once_with_the_bits_of_one_process(
    tmp_path: Path, cluster: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    model, slides = make(tmp_path, 40)
    nodes = node_processes(cluster.scheduler_address)
    assert len(nodes) == 2
    run = Run(model, slides, tmp_path / "out", cluster=cluster.scheduler_address)
    wait_for(lambda: len([1 for _, line in lines_of(tmp_path / "out") if line["event"] == "start"]) == 2)
    victim = nodes.pop()
    workers = children(victim)
    assert wait_for(lambda: in_model(tmp_path / "out", workers))
    os.kill(victim, signal.SIGKILL)
    result = run.result()
    assert result.done == tuple(listed.slide_id for listed in slides)
    assert_each_once(tmp_path / "out", slides)
    assert_nothing_left(tmp_path / "out")
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 20)
    embed_slides(slides, tmp_path / "one", model, run_settings=ONE)
    assert_same_bits(tmp_path / "out", tmp_path / "one", slides)
    assert status(tmp_path / "out")[0].state == "finished"
    processes = {line["process"] for _, line in lines_of(tmp_path / "out") if line["event"] == "start"}
    assert os.getpid() not in processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nodes_let_go_when_the_command_is_gone(tmp_path: Path, cluster: Any, number: int) -> None:
    import subprocess

    make(tmp_path, 80)
    out = tmp_path / "out"
    code = "import sys; from longvit.cli import main; sys.exit(main())"
    words = ["embed", tmp_path / "model", tmp_path / "slides", "--out", out, "--device", "cpu", "--threads", "1"]
    command = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words), "--cluster", cluster.scheduler_address],
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: in_model(out))
    command.send_signal(number)
    assert command.wait(60) == (130 if number == signal.SIGINT else -number)
    processes = {line["process"] for _, line in lines_of(out) if line["event"] == "start"}
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 30)
    assert status(out)[0].state == "stopped"
    if number == signal.SIGINT:
        assert_nothing_left(out)


def test_without_dask_the_flag_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    model, slides = make(tmp_path, 1)
    with pytest.raises(InputError, match=r"pip install 'longvit\[cluster\]'"):
        embed_slides(slides, tmp_path / "out", model, run_settings=RunSettings(cluster="tcp://127.0.0.1:1"))


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs longvit[cluster]")
    monkeypatch.setattr("longvit.slide_jobs.cluster._CONNECT_S", 1)
    model, slides = make(tmp_path, 1)
    with pytest.raises(InputError, match="no Dask scheduler answers") as caught:
        embed_slides(slides, tmp_path / "out", model, run_settings=RunSettings(cluster="tcp://127.0.0.1:1"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_last_slide_that_fails_on_a_node_is_a_row(tmp_path: Path, cluster: Any) -> None:
    model, slides = make(tmp_path, 2, image_px=64)
    unreadable = ListedSlide("z", Path("/proc/self/mem"))  # EIO, as of a network folder that is gone
    run = Run(model, (*slides, unreadable), tmp_path / "out", cluster=cluster.scheduler_address, retries=1)
    result = run.result()
    assert result.done == ("s00", "s01")
    assert [(problem.slide, problem.stage) for problem in result.left_out] == [("z", "open")]


@pytest.mark.slow
def test_a_work_list_that_is_removed_is_a_row_for_every_slide_that_has_no_end(tmp_path: Path, cluster: Any) -> None:
    model, slides = make(tmp_path, 30)
    run = Run(model, slides, tmp_path / "out", cluster=cluster.scheduler_address)
    wait_for(lambda: in_model(tmp_path / "out"))
    (tmp_path / "out" / "work").rename(tmp_path / "gone")  # at once, whatever is being written in it
    result = run.result()
    assert result.left_out
    assert {problem.stage for problem in result.left_out} == {"end"}
    assert sorted([*result.done, *(p.slide for p in result.left_out)]) == [slide.slide_id for slide in slides]
