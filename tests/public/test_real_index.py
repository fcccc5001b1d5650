"""The index that `idc-index-data` ships has the slides of the published folds: counts, sizes, one series per slide.

A newer release may add series, so numbers of whole collections are lower bounds, and those of the folds are exact.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.conftest import shared

from longvit.data.folds import read_folds
from longvit.public.idc_index import IdcIndex
from longvit.public.selection import select
from longvit.public.series_match import slide_id_of
from longvit.public.tcga_barcode import parse_barcode
from longvit.slides.slide_name import fault_of_name

pytest.importorskip("duckdb", reason="needs the extra public")
pytest.importorskip("idc_index_data", reason="needs the extra public")

FOLDS = {"tcga_brca": (1041, 1095), "tcga_lung": (1033, 820), "tcga_kidney": (931, 929)}
"""Cohort of HIPT -> slides of its ten folds, and their size in 1,024 MB as the index counts MB (10^6 bytes)."""
SECTIONS_ALONE_ARE_AMBIGUOUS = {"tcga_brca": 0, "tcga_lung": 2, "tcga_kidney": 26}


@pytest.fixture(scope="module")
def index() -> IdcIndex:
    return IdcIndex()


def test_tcga_has_its_thirty_thousand_slides_in_32_collections(index: IdcIndex) -> None:
    tcga = {name: size for name, size in index.collections.items() if name.startswith("tcga_")}
    assert len(tcga) == 32
    assert sum(n for n, _ in tcga.values()) >= 30_075
    assert len(index.collections) >= 70


@pytest.mark.shared
@pytest.mark.parametrize("cohort", FOLDS)
def test_every_slide_of_the_ten_folds_is_one_series(cohort: str, index: IdcIndex) -> None:
    folder = shared(f"data/hipt/splits/{cohort}")
    n_slides, size = FOLDS[cohort]
    listed = {text for fold in read_folds(folder) for split in ("train", "val", "test") for text in fold.ids(split)}
    selection = select(folds=folder, index=index)
    assert selection.missing == selection.ambiguous == ()
    assert {slide.slide_id for slide in selection.slides} == listed
    assert len(selection.slides) == len({slide.series_uid for slide in selection.slides}) == n_slides
    assert round(selection.n_bytes / 1e6 / 1024) == size
    assert {slide.licence for slide in selection.slides} == {"CC BY 3.0"}
    assert all(slide.slide_id.startswith(slide.case_id) for slide in selection.slides)


@pytest.mark.shared
@pytest.mark.parametrize("cohort", FOLDS)
def test_the_sample_type_resolves_what_the_section_leaves_ambiguous(cohort: str, index: IdcIndex) -> None:
    folder = shared(f"data/hipt/splits/{cohort}")
    slides = select(folds=folder, index=index).slides
    series = {one.uid: one for one in index.series(keys=[slide.case_id.lower() for slide in slides])}
    sections: Counter[tuple[str, str]] = Counter(
        (one.patient, one.description.split()[-1]) for one in series.values() if one.description.startswith("FFPE")
    )
    n_ambiguous = 0
    for slide in slides:
        barcode, description = parse_barcode(slide.slide_id), series[slide.series_uid].description
        assert barcode is not None
        match = re.fullmatch(r"FFPE HE (TP|NT|) (DX\w+)", description)
        assert match is not None
        assert match[1] == {"01": "TP", "11": "NT"}.get(barcode.sample, "")
        assert match[2] == barcode.section
        n_ambiguous += sections[barcode.patient, barcode.section] > 1
    assert n_ambiguous == SECTIONS_ALONE_ARE_AMBIGUOUS[cohort]


@pytest.mark.shared
@pytest.mark.parametrize("cohort", ["tcga_brca", "tcga_luad", "tcga_ucec"])
def test_every_patient_of_the_survival_folds_has_slides(cohort: str, index: IdcIndex) -> None:
    folder = shared(f"data/mcat/splits/{cohort}")
    patients = {text for fold in read_folds(folder) for split in ("train", "val") for text in fold.ids(split)}
    selection = select(folds=folder, index=index)
    assert selection.missing == selection.ambiguous == ()
    assert {slide.case_id for slide in selection.slides} == patients


@pytest.mark.shared
@pytest.mark.parametrize(
    "table",
    [
        "hipt/labels/tcga_brca_subset.csv.zip",
        "hipt/labels/tcga_kidney_subset.csv.zip",
        "hipt/labels/tcga_lung_subset.csv.zip",
        pytest.param("mcat/clinical/tcga_luad_all_clean.csv.zip", marks=pytest.mark.slow),  # 20,000 columns
        "mcat/clinical/tcga_ucec_all_clean.csv.zip",
    ],
)
def test_every_slide_of_the_published_tables_is_one_series(table: str, index: IdcIndex) -> None:
    path: Path = shared(f"data/{table}")
    selection = select(slides=path, index=index)
    assert selection.missing == selection.ambiguous == ()
    assert len(selection.slides) > 500


@pytest.mark.parametrize("collection", ["gtex", "nlst", "cptac-luad", "tcga-brca"])
def test_any_collection_can_be_selected_without_frozen_sections(collection: str, index: IdcIndex) -> None:
    selection = select([collection], index=index)
    assert len(selection.slides) > 1000
    assert len(selection.slides) < len(select([collection], frozen=True, index=index).slides) or collection in (
        "nlst",
        "cptac-luad",
    )
    assert len({slide.slide_id for slide in selection.slides}) == len(selection.slides)
    (citation,) = selection.citations
    assert "Data set" in citation
    assert "<" not in citation


def test_every_series_has_a_name_of_its_own_that_a_file_can_have(index: IdcIndex) -> None:
    series = index.series()
    names = {slide_id_of(one) for one in series}
    assert len(names) == len(series)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) and fault_of_name(name, name) is None for name in names)


def test_two_series_that_the_index_cannot_tell_apart_are_listed(index: IdcIndex) -> None:
    ids = ["TCGA-D3-A1QA-06Z-00-DX1", "TCGA-SR-A6MX-06Z-00-DX1", "TCGA-3C-AALI-01Z-00-DX1"]
    selection = select(ids=ids, index=index)
    assert {one.listed_id for one in selection.ambiguous} == set(ids[:2])
    assert [slide.slide_id for slide in selection.slides] == ids[2:]
