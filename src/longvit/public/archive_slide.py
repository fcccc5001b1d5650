"""Slide of a public archive: its names, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ArchiveSlide:
    """One slide of an archive.

    `slide_id` names its canvas and its features; `case_id` is the patient. `location` is the address of its files. For
    the source `idc` it is an s3 prefix (`s3://bucket/series-uuid/*`): its objects are the DICOM instances of a series.
    For `gdc` it is the uuid of one SVS file. `n_bytes` is the size of all files together. Only `gdc` states an `md5`.
    """

    slide_id: str
    case_id: str
    source: Literal["idc", "gdc"]
    location: str
    n_bytes: int
    collection: str
    licence: str
    series_uid: str = ""
    md5: str = ""
