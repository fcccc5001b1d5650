"""Barcodes and descriptions are read for what they say: no section of a frozen block counts as a diagnostic slide."""

from __future__ import annotations

import pytest

from longvit.public.tcga_barcode import Barcode, parse_barcode, section_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291", ("TCGA-3C-AALI", "01", "DX1")),
        ("tcga-3c-aali-01z-00-dx12", ("TCGA-3C-AALI", "01", "DX12")),
        ("TCGA-A2-A0CP-01A-02-DXB.ab-1", ("TCGA-A2-A0CP", "01", "DXB")),
        ("TCGA-3C-AALI-11A-01-TSA", ("TCGA-3C-AALI", "11", "TSA")),
    ],
)
def test_a_barcode_is_read(text: str, parts: tuple[str, str, str]) -> None:
    assert parse_barcode(text) == Barcode(*parts)


@pytest.mark.parametrize(
    "text",
    [
        "TCGA-3C-AALI",
        "TCGA-3C-AALI-01Z",
        "TCGA-3C-AALI-DX1.1f0c2a9b",
        "TCGA-3C-AALI-01Z-00-DX",
        "C3L-00001-21",
        "",
        "x",
    ],
)
def test_another_name_is_no_barcode(text: str) -> None:
    assert parse_barcode(text) is None


def test_only_diagnostic_sections_are_not_frozen() -> None:
    frozen = {section: Barcode("TCGA-3C-AALI", "01", section).is_frozen for section in ("DX1", "TS1", "BSA", "MS2")}
    assert frozen == {"DX1": False, "TS1": True, "BSA": True, "MS2": True}


@pytest.mark.parametrize(
    ("description", "found"),
    [
        ("FFPE HE TP DX1", ("TP", "DX1")),
        ("FFPE HE NT DX2", ("NT", "DX2")),
        ("FFPE HE  DX1", ("", "DX1")),
        ("Frozen HE TP TSA", ("TP", "TSA")),
        ("HE tumor", None),
        ("DX1", None),
        ("", None),
    ],
)
def test_the_end_of_a_description_is_sample_type_and_section(description: str, found: tuple[str, str] | None) -> None:
    assert section_of(description) == found


@pytest.mark.parametrize(
    ("sample", "fitting"),
    [("01", {"TP"}), ("11", {"NT"}), ("02", {"", "TR"}), ("06", {"", "TM"}), ("05", {"", "TAP"}), ("14", {""})],
)
def test_a_sample_type_fits_its_word_alone(sample: str, fitting: set[str]) -> None:
    types = ("TP", "NT", "", "TR", "TM", "TAP")
    assert {tissue for tissue in types if Barcode("TCGA-3C-AALI", sample, "DX1").is_of_type(tissue)} == fitting
