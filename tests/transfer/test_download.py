"""A file arrives whole or not at all: broken, stalled, short, damaged and changed transfers, a full disk."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.public.archive_server import ArchiveServer

from longvit.transfer.client import Client, Patience, Stopped, TransferError
from longvit.transfer.download import download, part_of
from longvit.transfer.remote_file import RemoteFile, remote_files

pytest.importorskip("requests", reason="the extra public is not installed")

CONTENT = np.random.default_rng(0).bytes(3_000_000)
PATH = "/bucket/uid/0.dcm"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longvit.transfer.client._FIRST_WAIT_S", 0.001)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    (folder / "bucket" / "uid").mkdir(parents=True)
    (folder / PATH[1:]).write_bytes(CONTENT)
    return folder


def client(retries: int = 3, timeout_s: float = 5.0, stopping: threading.Event | None = None) -> Client:
    return Client(Patience(retries, timeout_s), stopping or threading.Event())


def listed(server: ArchiveServer, location: str = "s3://bucket/uid/*") -> tuple[RemoteFile, ...]:
    return remote_files(client(), "idc", location, stem="s", endpoint=server.address)


def first(*faults: str) -> Callable[[str, int], str]:
    """These faults for the first requests of a path, none afterwards."""
    return lambda path, number: faults[number - 1] if number <= len(faults) else ""


@pytest.mark.parametrize(
    ("fault", "sent"),
    [("reset", 1.0), ("truncate", 1.0), ("503", 1.0), ("silent", 1.0), ("corrupt", 2.0), ("429", 1.0)],
)
def test_a_broken_transfer_is_resumed_where_it_broke_off(served: Path, tmp_path: Path, fault: str, sent: float) -> None:
    with ArchiveServer(served, fault=first(fault)) as server:
        (file,) = listed(server)
        path = download(client(timeout_s=1.0), file, tmp_path)
        assert path.read_bytes() == CONTENT
        assert server.gets[PATH] == 2
        assert server.sent[PATH] == pytest.approx(sent * len(CONTENT), rel=0.1)  # not from the start, but after damage
    assert not list(tmp_path.glob(".*.part"))


def test_many_breaks_with_progress_between_them_are_no_failure(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served, fault=first(*["reset"] * 8)) as server:
        (file,) = listed(server)
        assert download(client(retries=1), file, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_and_no_byte_is_doubled(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served, fault=first("reset", "ignore-range")) as server:
        (file,) = listed(server)
        assert download(client(), file, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "reason", "gets"),
    [
        ("corrupt", "damaged on the way", 2),
        ("503", "503", 4),
        ("404", "not there", 1),
        ("403", "access denied", 1),
        ("short", "shorter than", 2),
    ],
)
def test_a_lasting_fault_is_one_line_and_leaves_no_file(
    served: Path, tmp_path: Path, fault: str, reason: str, gets: int
) -> None:
    with ArchiveServer(served, fault=lambda path, number: fault.removesuffix("short")) as server:
        (file,) = listed(server)
        if fault == "short":
            file = replace(file, n_bytes=file.n_bytes + 1, md5="", etag="")
        with pytest.raises(TransferError, match=reason) as error:
            download(client(), file, tmp_path)
        assert "\n" not in str(error.value)
        assert server.gets[PATH] >= gets
    assert not (tmp_path / "0.dcm").exists()


def test_an_object_that_changes_between_two_parts_is_not_joined(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served, fault=first("reset")) as server:
        (file,) = listed(server)
        server.fault = first("reset")
        with pytest.raises(TransferError):
            download(client(retries=0), file, tmp_path)
        (served / PATH[1:]).write_bytes(CONTENT[::-1])
        with pytest.raises(TransferError, match="412") as error:
            download(client(), file, tmp_path)
        assert error.value.status == 412
        (again,) = listed(server)
        assert part_of(tmp_path, again) != part_of(tmp_path, file)
        assert download(client(), again, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_server_that_sends_a_few_bytes_a_second_is_given_up(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served, fault=lambda path, number: "trickle") as server:
        (file,) = listed(server)
        with pytest.raises(TransferError, match=r"bytes in|Read timed out|timed out"):
            download(client(retries=0, timeout_s=0.6), file, tmp_path)


def test_a_later_process_resumes_and_checks_what_has_arrived(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served, fault=first("reset")) as server:
        (file,) = listed(server)
        with pytest.raises(TransferError):
            download(client(retries=0), file, tmp_path)
        assert 0 < part_of(tmp_path, file).stat().st_size < len(CONTENT)
        assert download(client(), file, tmp_path).read_bytes() == CONTENT
        assert server.sent[PATH] == pytest.approx(len(CONTENT), rel=0.01)
        path = tmp_path / "0.dcm"
        path.write_bytes(CONTENT[:-1] + b"\0")  # as a crash of the machine may leave it
        assert download(client(), file, tmp_path).read_bytes() == CONTENT
        n = server.gets[PATH]
        download(client(), file, tmp_path)
        assert server.gets[PATH] == n


def test_a_stop_ends_a_transfer_in_progress(served: Path, tmp_path: Path) -> None:
    stopping = threading.Event()
    with ArchiveServer(served, fault=lambda path, number: "503") as server:
        (file,) = listed(server)
        threading.Timer(0.2, stopping.set).start()
        with pytest.raises(Stopped):
            download(client(retries=10**6, stopping=stopping), file, tmp_path)


def test_a_full_disk_is_one_line_and_the_part_is_removed(served: Path, tmp_path: Path) -> None:
    program = """
import resource, sys, threading
from pathlib import Path
from longvit.errors import InputError
from longvit.transfer.client import Client, Patience
from longvit.transfer.download import download
from longvit.transfer.remote_file import remote_files
client = Client(Patience(0, 5.0), threading.Event())
(file,) = remote_files(client, "idc", "s3://bucket/uid/*", stem="s", endpoint=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    download(client, file, Path(sys.argv[2]))
except InputError as error:
    print(error)
"""
    with ArchiveServer(served) as server:
        command = [sys.executable, "-c", program, server.address, str(tmp_path / "out")]
        (tmp_path / "out").mkdir()
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "not written" in run.stdout
    assert not list((tmp_path / "out").iterdir())


def test_a_listing_of_several_pages_is_whole(served: Path) -> None:
    for number in range(1, 8):
        (served / "bucket" / "uid" / f"{number}.dcm").write_bytes(b"x" * number)
    (served / "bucket" / "uid-other").mkdir()
    (served / "bucket" / "uid-other" / "9.dcm").write_bytes(b"other")
    with ArchiveServer(served) as server:
        server.page = 3
        files = listed(server)
    assert [(file.name, file.n_bytes) for file in files[1:]] == [(f"{n}.dcm", n) for n in range(1, 8)]
    assert files[0].md5 == hashlib.md5(CONTENT).hexdigest()


def test_an_etag_of_several_parts_is_not_taken_for_a_hash(served: Path, tmp_path: Path) -> None:
    with ArchiveServer(served) as server:
        server.part_etags = True
        (file,) = listed(server)
        assert not file.md5
        assert download(client(), file, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("s3://bucket/none/*", "no object there"),
        ("https://bucket/uid", "not an address"),
        ("s3://bucket/bad/*", "no name of a file"),
    ],
)
def test_an_address_without_a_slide_is_one_line(served: Path, location: str, reason: str) -> None:
    (served / "bucket" / "bad").mkdir()
    (served / "bucket" / "bad" / "-rf ;").write_bytes(b"x")
    with ArchiveServer(served) as server, pytest.raises(TransferError, match=reason):
        listed(server, location)


@pytest.mark.parametrize("body", [b"<html>log in</html", b"<a><Contents><Size>x</Size></Contents></a>", b"\0"])
def test_an_answer_that_is_no_listing_is_refused(served: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr("tests.public.archive_server._Handler._list", lambda self, bucket, query: self._send(200, body))
    with ArchiveServer(served) as server, pytest.raises(TransferError):
        listed(server)


def test_no_server_is_one_line() -> None:
    with pytest.raises(TransferError, match="no connection"):
        remote_files(client(retries=1), "idc", "s3://bucket/uid/*", stem="s", endpoint="http://127.0.0.1:1")
