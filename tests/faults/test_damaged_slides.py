"""A few hundred damaged slides: none ends in a traceback, a dead process, a hang or a gigabyte, none is read wrongly.

The whole campaign is `make fuzz`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.damaged_slides import DATA_DAMAGES, FAILURES, ReadingProcess, Try, campaign
from tests.faults.damages import applies, damages
from tests.faults.made_slides import kinds

# Which found something in the past: a process that aborted, gigabytes, a failed assertion of a library, silent pixels.
FOUND = [
    ("BIF", "shorter than its tiles"),
    ("TIFF Deflate predictor strips", "a huge side"),
    ("PNG palette", "a chunk lost"),
    ("PNG RGB", "a huge PNG"),
    ("PNG RGBA", "last percent is zeros"),
    ("TIFF Deflate", "photometric"),
    ("TIFF Deflate", "byte count 0"),
    ("TIFF Deflate palette", "512 zeros"),
    ("TIFF LZW", "a huge reduced page"),
    ("TIFF uncompressed", "a tile inside another"),
    ("SCN", "next directory elsewhere"),
    ("SCN", "huge tiles"),
    ("OME-BigTIFF Deflate", "line ends changed"),
    ("TIFF uncompressed strips", "end is zeros"),
    ("DICOM JPEG", "size in DICOM"),
    ("DICOM uncompressed", "tile size in DICOM"),
    ("JPEG CMYK", "last percent is zeros"),
    ("TIFF uncompressed", "end is zeros"),
    ("TIFF uncompressed", "value of a tag"),
    ("TIFF WebP", "end is zeros"),
    ("TIFF Deflate", "a tag lost"),
    ("TIFF Deflate RGBA", "a tag lost"),
    ("TIFF Deflate palette", "photometric"),
    ("SVS JPEG", "byte count 0"),
    ("SVS JPEG 2000", "byte count 0"),
    ("DICOM JPEG 2000", "size in DICOM"),
    ("DICOM JPEG", "some bytes of the header"),
    ("NDPI", "a huge tile stream"),
]


def _none_is_wrong(tries: list[Try]) -> None:
    if wrong := [str(one) for one in tries if one.outcome in FAILURES]:
        pytest.fail("\n".join([f"{len(wrong)} of {len(tries)}:", *wrong]), pytrace=False)


def test_damaged_slides_are_refused_or_reported_never_read_wrongly() -> None:
    tries = campaign(400, seed=1)
    assert len(tries) == 400
    _none_is_wrong(tries)


def test_pixels_under_a_checksum_never_change_without_a_word() -> None:
    checked = [kind.name for kind in kinds().values() if kind.has_checksum]
    found = campaign(120, seed=2, only=[(kind, damage) for kind in checked for damage in DATA_DAMAGES])
    _none_is_wrong(found)
    assert {one.outcome for one in found} <= {"refused", "reported", "same"}


def test_damage_that_found_a_fault_before_finds_none_now() -> None:
    found = campaign(5 * len(FOUND), seed=5, only=FOUND)
    assert {one.kind for one in found} == {kind for kind, _ in FOUND}
    _none_is_wrong(found)


def test_the_campaign_sees_a_process_that_dies_hangs_fails_or_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The start of a process and 1.2 GB take 1 to 3 s of a busy processor; a process that hangs passes any limit.
    monkeypatch.setattr("tests.faults.damaged_slides.LIMIT_S", 8)
    path = tmp_path / "a.tif"
    kinds()["TIFF Deflate"].write(path)
    whole = {"path": str(path), "store": ""}
    ways = {
        "signal": "import os; os.abort()",
        "hang": "while True: pass",
        "traceback": "import longvit.slides.reader as r; r.open_slide = lambda path: 1 / 0",
        "memory": "held = bytes(1) * 1_200_000_000; import longvit.slides.reader as r; r.held = held",
    }
    process = ReadingProcess()
    try:
        assert process.ask(whole)["outcome"] == "same"
        for outcome, code in ways.items():
            assert process.ask(whole | {"test": code})["outcome"] == outcome
            process.end()
        assert process.ask(whole)["outcome"] == "same"
    finally:
        process.end()


def test_the_campaign_has_every_kind_of_slide_and_of_damage() -> None:
    assert len(kinds()) >= 20
    assert len(damages()) >= 24
    assert all(sum(applies(damage, kind) for damage in damages().values()) >= 15 for kind in kinds().values())
