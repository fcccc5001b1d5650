"""Claims on folders that several machines share: one holder, the dead are found, clocks may differ."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvit.files import this_host
from longvit.processes import leases
from longvit.processes.leases import Claims, Hold, folder_time, holder, read_claim


def of_another_machine(claim: Path) -> Path:
    claim.write_text(json.dumps({"host": "elsewhere", "process": 1, "token": "theirs", "worker": "w7"}))
    return claim


def test_a_number_that_another_process_got_since_is_no_holder(tmp_path: Path) -> None:
    """Process numbers come again; with the start they do not."""
    claim = tmp_path / "x"
    claim.write_text(json.dumps(holder() | {"token": "theirs", "started": 1}))
    with Claims() as claims:
        assert claims.is_dead(claim)
        hold = claims.hold(claim)
        assert hold is not None
        assert hold.former is not None
        assert hold.former["token"] == "theirs"
    claim.write_text(json.dumps(holder() | {"token": "theirs"}))
    assert not Claims().is_dead(claim)


def test_a_claim_that_is_old_by_the_folders_clock_is_dead_after_a_short_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_SEEN_AT_REST_S", 0.1)
    claim = of_another_machine(tmp_path / "x")
    now = folder_time(tmp_path)
    os.utime(claim, (now - 61, now - 61))
    claims = Claims()
    assert not claims.is_dead(claim)  # not at the first look: the clocks may differ
    time.sleep(0.15)
    assert claims.is_dead(claim)


def test_a_holder_whose_clock_is_an_hour_behind_is_alive_while_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_SEEN_AT_REST_S", 0.2)
    claim = of_another_machine(tmp_path / "x")
    claims = Claims()
    for beat in range(20):
        os.utime(claim, (time.time() - 3600 + beat, time.time() - 3600 + beat))
        assert not claims.is_dead(claim)
        time.sleep(0.03)


def test_a_settled_claim_is_nobodys_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DEAD_AFTER_S", -1.0)
    with Claims() as claims:
        hold = claims.hold(tmp_path / "x", {"worker": "w1"})
        assert hold is not None
        assert claims.settle(hold, {"end": "done"})
        assert read_claim(hold.path) == {"end": "done", "settled": True}
        assert claims.hold(hold.path) is None
    assert hold.path.exists()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["x"]


def test_a_process_that_slept_neither_settles_nor_removes_what_its_heir_holds(tmp_path: Path) -> None:
    with Claims() as claims:
        hold = claims.hold(tmp_path / "x")
        assert hold is not None
        of_another_machine(hold.path)
        assert not claims.settle(hold, {"end": "done"})
        claims.release(hold)
    assert read_claim(hold.path)["token"] == "theirs"


def test_what_is_still_held_at_the_end_is_given_back(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), Claims() as claims:
        assert claims.hold(tmp_path / "x")
        raise KeyboardInterrupt
    assert not (tmp_path / "x").exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network folder whose server keeps no locks."""

    @contextlib.contextmanager
    def nothing(path: Path) -> Iterator[None]:
        yield

    monkeypatch.setattr(leases, "_locked", nothing)


@pytest.mark.usefixtures("no_locks")
def test_of_many_that_take_over_one_wins_also_without_locks(tmp_path: Path) -> None:
    for _ in range(60):
        claim = tmp_path / "x"
        claim.write_text(json.dumps({"host": this_host(), "process": 2**22 + 1, "token": "dead"}))
        barrier = threading.Barrier(4)
        holds: list[Hold] = []

        def contend(claim: Path = claim, barrier: threading.Barrier = barrier, holds: list[Hold] = holds) -> None:
            with Claims() as claims:
                barrier.wait()
                hold = claims.hold(claim)
                barrier.wait()
                # The one whose token stands in the file; whoever was moved away in between finds that out.
                if hold is not None and claims.is_ours(hold):
                    holds.append(hold)
                barrier.wait()

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(holds) <= 1
        claim.unlink(missing_ok=True)
        assert [path.name for path in tmp_path.iterdir()] == []


def test_claims_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / "x.tif.claim", tmp_path / "y.tif.claim"
    dead.write_text(json.dumps(holder() | {"token": "theirs", "started": 1}))
    alive.write_text(json.dumps(holder() | {"token": "theirs"}))
    with Claims() as claims:
        claims.remove_dead(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["y.tif.claim"]
