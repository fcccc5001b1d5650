"""A few hundred damaged slides: none ends in a traceback, a dead process, a hang or a gigabyte, none is read wrongly.

The whole campaign is `make fuzz`.
"""

from __future__ import annotations

import pytest

from faults.damaged_slides import FAILURES, Try, campaign
from faults.damages import applies, damages
from faults.made_slides import kinds

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
    ("DICOM JPEG", "size in DICOM"),
    ("DICOM uncompressed", "tile size in DICOM"),
    ("JPEG CMYK", "last percent is zeros"),
]


def _wrong(tries: list[Try]) -> str:
    return "\n".join(str(one) for one in tries if one.outcome in FAILURES)


@pytest.fixture(scope="module")
def tries() -> list[Try]:
    return campaign(400, seed=1)


def test_damaged_slides_are_refused_or_reported_never_read_wrongly(tries: list[Try]) -> None:
    assert len(tries) == 400
    assert not _wrong(tries)


def test_pixels_under_a_checksum_never_change_without_a_word(tries: list[Try]) -> None:
    checked = [one for one in tries if one.group == "data" and one.codec in ("Deflate", "PNG")]
    assert len(checked) > 20
    assert {one.outcome for one in checked} <= {"refused", "reported", "same"}


def test_damage_that_found_a_fault_before_finds_none_now() -> None:
    found = campaign(6 * len(FOUND), seed=5, only=FOUND)
    assert {one.kind for one in found} == {kind for kind, _ in FOUND}
    assert not _wrong(found)


def test_the_campaign_has_every_kind_of_slide_and_of_damage() -> None:
    assert len(kinds()) >= 20
    assert len(damages()) >= 24
    assert all(sum(applies(damage, kind) for damage in damages().values()) >= 15 for kind in kinds().values())
