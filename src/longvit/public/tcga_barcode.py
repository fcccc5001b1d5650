"""TCGA slide barcode: patient, sample type, portion and section of a slide, and the series that it can be.

    TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291
    patient      |   |  section: DX diagnostic (paraffin); TS, BS, MS top, bottom, middle (frozen)
                 |   portion
                 sample type 01 and vial Z (paraffin)

IDC has sample type and section at the end of a series' description: `FFPE HE TP DX1`. It writes TP for a primary tumour
(01) and NT for normal tissue (11), and nothing for other types. So patient, type and section name a slide together; the
section alone does not, where a patient has slides of tumour and of normal tissue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BARCODE = re.compile(
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-([0-9]{2})[A-Z]-[0-9]{2}-((DX|TS|BS|MS)[A-Z0-9]+)(?:\.[0-9A-F-]+)?", re.IGNORECASE
)
_SECTION = re.compile(r"(?:DX|TS|BS|MS)[A-Z0-9]+")
_TYPES = {"01": "TP", "02": "TR", "03": "TB", "05": "TAP", "06": "TM", "07": "TAM", "11": "NT"}
_ALWAYS_WRITTEN = frozenset({"TP", "NT"})


@dataclass(frozen=True)
class Barcode:
    """Parts of a slide's barcode that tell series apart."""

    patient: str
    sample: str
    """Two digits: 01 primary tumour, 11 normal tissue …"""
    section: str
    """`DX1`."""

    @property
    def is_frozen(self) -> bool:
        """True for the sections of frozen tissue: TS, BS, MS."""
        return not self.section.startswith("DX")

    def is_of_type(self, tissue: str) -> bool:
        """True where a series with this sample type in its description ("" for none) can be the slide."""
        own = _TYPES.get(self.sample, "")
        return tissue == own or (tissue == "" and own not in _ALWAYS_WRITTEN)


def parse_barcode(slide_id: str) -> Barcode | None:
    """Barcode of a slide id in capitals, with or without its uuid; None for another name.

    >>> from longvit.public.tcga_barcode import parse_barcode
    >>> parse_barcode("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291")
    Barcode(patient='TCGA-3C-AALI', sample='01', section='DX1')
    """
    match = _BARCODE.fullmatch(slide_id)
    return Barcode(match[1].upper(), match[2], match[3].upper()) if match else None


def section_of(description: str) -> tuple[str, str] | None:
    """Sample type ("" for none) and section of a series' description: `FFPE HE TP DX1` -> TP, DX1; None without one."""
    words = description.split()
    if len(words) < 2 or not _SECTION.fullmatch(words[-1]):
        return None
    return (words[-2] if words[-2] in _TYPES.values() else ""), words[-1]
