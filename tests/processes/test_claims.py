"""Leases in folders that several machines share: one holder, dead holders are found, clocks may differ."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvit.process_identity import this_host
from longvit.processes import leases as lease_module
from longvit.processes.leases import Lease, Leases, folder_time, holder, read_lease


def of_another_machine(lease_path: Path) -> Path:
    lease_path.write_text(json.dumps({"host": "elsewhere", "process": 1, "token": "theirs", "worker": "w7"}))
    return lease_path


def test_a_number_that_another_process_got_since_is_no_holder(tmp_path: Path) -> None:
    """Process numbers come again; with the start they do not."""
    lease_path = tmp_path / "x"
    lease_path.write_text(json.dumps(holder() | {"token": "theirs", "started": 1}))
    with Leases() as leases:
        assert leases.is_expired(lease_path)
        lease = leases.acquire(lease_path)
        assert lease is not None
        assert lease.former is not None
        assert lease.former["token"] == "theirs"
    lease_path.write_text(json.dumps(holder() | {"token": "theirs"}))
    assert not Leases().is_expired(lease_path)


def test_a_claim_that_is_old_by_the_folders_clock_is_dead_after_a_short_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_OBSERVED_S", 0.1)
    lease_path = of_another_machine(tmp_path / "x")
    now = folder_time(tmp_path)
    os.utime(lease_path, (now - 61, now - 61))
    leases = Leases()
    assert not leases.is_expired(lease_path)  # not at the first look: the clocks may differ
    time.sleep(0.15)
    assert leases.is_expired(lease_path)


def test_a_holder_whose_clock_is_an_hour_behind_is_alive_while_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_OBSERVED_S", 0.2)
    lease_path = of_another_machine(tmp_path / "x")
    leases = Leases()
    for beat in range(20):
        os.utime(lease_path, (time.time() - 3600 + beat, time.time() - 3600 + beat))
        assert not leases.is_expired(lease_path)
        time.sleep(0.03)


def test_a_settled_claim_is_nobodys_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "EXPIRES_AFTER_S", -1.0)
    with Leases() as leases:
        lease = leases.acquire(tmp_path / "x", {"worker": "w1"})
        assert lease is not None
        assert leases.complete(lease, {"end": "done"})
        assert read_lease(lease.path) == {"end": "done", "settled": True}
        assert leases.acquire(lease.path) is None
    assert lease.path.exists()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["x"]


def test_a_process_that_slept_neither_settles_nor_removes_what_its_heir_holds(tmp_path: Path) -> None:
    with Leases() as leases:
        lease = leases.acquire(tmp_path / "x")
        assert lease is not None
        of_another_machine(lease.path)
        assert not leases.complete(lease, {"end": "done"})
        leases.release(lease)
    assert read_lease(lease.path)["token"] == "theirs"


def test_what_is_still_held_at_the_end_is_given_back(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), Leases() as leases:
        assert leases.acquire(tmp_path / "x")
        raise KeyboardInterrupt
    assert not (tmp_path / "x").exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network folder whose server keeps no locks."""

    @contextlib.contextmanager
    def nothing(path: Path) -> Iterator[None]:
        yield

    monkeypatch.setattr(lease_module, "locked", nothing)


@pytest.mark.usefixtures("no_locks")
def test_of_many_that_take_over_one_wins_also_without_locks(tmp_path: Path) -> None:
    for _ in range(60):
        lease_path = tmp_path / "x"
        lease_path.write_text(json.dumps({"host": this_host(), "process": 2**22 + 1, "token": "dead"}))
        barrier = threading.Barrier(4)
        holds: list[Lease] = []

        def contend(
            lease_path: Path = lease_path, barrier: threading.Barrier = barrier, holds: list[Lease] = holds
        ) -> None:
            with Leases() as leases:
                barrier.wait()
                lease = leases.acquire(lease_path)
                barrier.wait()
                # The holder is the one whose token is in the file; a lease that was moved aside is lost.
                if lease is not None and leases.is_ours(lease):
                    holds.append(lease)
                barrier.wait()

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(holds) <= 1
        lease_path.unlink(missing_ok=True)
        assert [path.name for path in tmp_path.iterdir()] == []


def test_claims_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / "x.tif.claim", tmp_path / "y.tif.claim"
    dead.write_text(json.dumps(holder() | {"token": "theirs", "started": 1}))
    alive.write_text(json.dumps(holder() | {"token": "theirs"}))
    with Leases() as leases:
        leases.remove_expired(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["y.tif.claim"]
