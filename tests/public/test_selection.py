"""A listed id becomes its own slide, or a row with a reason; never another slide."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.public.small_index import ROWS, row, write_index

from longvit.errors import InputError
from longvit.public.idc_index import IdcIndex
from longvit.public.selection import Selection, select

pytest.importorskip("duckdb", reason="needs the extra public")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> IdcIndex:
    return IdcIndex(write_index(tmp_path_factory.mktemp("index") / "idc_index.parquet", ROWS))


def series_of(selection: Selection) -> dict[str, str]:
    return {slide.slide_id: slide.series_uid for slide in selection.slides}


def reasons(selection: Selection) -> dict[str, str]:
    return {one.listed_id: one.reason for one in (*selection.missing, *selection.ambiguous)}


def test_a_slide_of_normal_tissue_is_not_taken_for_that_of_the_tumour(index: IdcIndex) -> None:
    tumour, normal = "TCGA-UW-A7GC-01Z-00-DX1.D2D6FCC6-719A-4C03-A496-E23D18655538", "TCGA-UW-A7GC-11Z-00-DX1"
    selection = select(ids=[tumour, normal], index=index)
    assert series_of(selection) == {tumour: "1.2", normal: "1.1"}
    slide = selection.slides[0]
    assert (slide.case_id, slide.collection, slide.licence, slide.n_bytes) == (
        "TCGA-UW-A7GC",
        "tcga_kich",
        "CC BY 3.0",
        7_250_000,
    )
    assert slide.location == "s3://idc-open-data/1.2/*"
    assert not selection.missing
    assert not selection.ambiguous


def test_a_recurrent_tumour_is_not_taken_for_the_primary_one(index: IdcIndex) -> None:
    selection = select(ids=["TCGA-50-5066-02Z-00-DX1", "TCGA-50-5066-01Z-00-DX1"], index=index)
    assert series_of(selection) == {"TCGA-50-5066-02Z-00-DX1": "2.2", "TCGA-50-5066-01Z-00-DX1": "2.1"}


def test_series_that_nothing_tells_apart_are_listed_with_their_uids(index: IdcIndex) -> None:
    selection = select(ids=["TCGA-OR-A5J1-01Z-00-DX1", "TCGA-UW-A7GC-01Z-00-DX1"], index=index)
    (one,) = selection.ambiguous
    assert one.listed_id == "TCGA-OR-A5J1-01Z-00-DX1"
    assert "3.1 (FFPE HE TP DX1, 2 MB), 3.2 (FFPE HE TP DX1, 4 MB)" in one.reason
    assert series_of(select(ids=["3.2"], index=index)) == {"3.2": "3.2"}


def test_two_names_of_one_series_are_not_two_slides(index: IdcIndex) -> None:
    ids = ["TCGA-UW-A7GC-01Z-00-DX1", "TCGA-UW-A7GC-01A-01-DX1", "TCGA-UW-A7GC-11Z-00-DX1"]
    selection = select(ids=ids, index=index)
    assert list(series_of(selection)) == ids[2:]
    assert {one.listed_id for one in selection.ambiguous} == set(ids[:2])
    assert "same series 1.2" in selection.ambiguous[0].reason


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("TCGA-UW-A7GC-01Z-00-DX2", "no section DX2"),
        ("TCGA-UW-A7GC-06Z-00-DX1", "has sample type NT, TP"),
        ("TCGA-ZZ-9999-01Z-00-DX1", "patient TCGA-ZZ-9999 is not in"),
        ("TCGA-UW-A7GC-01A-01-TS1.3F2A", "a frozen section; --frozen"),
        ("tcga-uw-a7gc", "has the patient TCGA-UW-A7GC"),
        ("TCGA_UW_A7GC", "has the patient TCGA-UW-A7GC"),
        ("C3L-00001-21", "lists patient C3L-00001 with 3 slides"),
        ("TCGA-OR-A5J2", "only frozen sections"),
        ("100013", "no patient and no slide"),
        ("unknown", "no patient and no slide"),
    ],
)
def test_an_id_without_a_slide_has_a_reason(listed: str, words: str, index: IdcIndex) -> None:
    kind = "TCGA-50-5066-01Z-00-DX1" if "-DX" in listed or "-TS" in listed else "C3L-00001"
    selection = select(ids=[kind, listed], index=index)
    assert words in reasons(selection)[listed]
    assert all(slide.slide_id != listed for slide in selection.slides)
    with pytest.raises(InputError, match="none of its 1 ids has a slide"):
        select(ids=[listed], index=index)


def test_capitals_of_a_barcode_do_not_matter_and_the_id_stays_as_written(index: IdcIndex) -> None:
    listed = "tcga-uw-a7gc-01z-00-dx1.d2d6fcc6-719a-4c03-a496-e23d18655538"
    selection = select(ids=[listed], index=index)
    assert series_of(selection) == {listed: "1.2"}
    assert selection.slides[0].case_id == "TCGA-UW-A7GC"


def test_a_patient_means_all_slides_but_no_frozen_section(index: IdcIndex) -> None:
    selection = select(ids=["C3L-00001"], index=index)
    assert [slide.series_uid for slide in selection.slides] == ["4.2", "4.1"]
    assert "1 frozen sections are left out; --frozen includes them" in selection.notes
    assert len(select(ids=["C3L-00001"], frozen=True, index=index).slides) == 3


def test_a_patient_of_two_collections_is_not_guessed(index: IdcIndex) -> None:
    selection = select(ids=["100012", "C3L-00001"], index=index)
    assert "gtex, nlst" in reasons(selection)["100012"]
    assert [slide.series_uid for slide in select(["nlst"], ids=["100012"], index=index).slides] == ["6.1"]


def test_ids_of_a_collection_name_the_same_slide_in_a_list(index: IdcIndex) -> None:
    everything = select(["tcga-kich", "TCGA_ACC"], index=index)
    ids = [slide.slide_id for slide in everything.slides]
    assert len(set(ids)) == len(ids) == 4
    assert all(name.startswith(("TCGA-UW-A7GC-DX1.", "TCGA-OR-A5J1-DX1.")) for name in ids)
    assert select(ids=ids, index=index).slides == select(ids=ids, frozen=True, index=index).slides
    assert {one.slide_id: one.series_uid for one in select(ids=ids, index=index).slides} == series_of(everything)


def test_an_image_without_colour_is_left_out_and_counted(index: IdcIndex) -> None:
    selection = select(["htan-wustl"], index=index)
    assert [slide.series_uid for slide in selection.slides] == ["5.2"]
    assert any("1 series without colour" in note for note in selection.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tcga-kihc", "did you mean tcga-kich"),
        ("luad", "did you mean cptac-luad, tcga-luad?"),
        ("rider-ct", "the collection has no slides"),
        ("x", "`longvit fetch --list` names all"),
        ("", "`longvit fetch --list` names all"),
    ],
)
def test_a_wrong_collection_is_one_line_with_close_names(name: str, words: str, index: IdcIndex) -> None:
    with pytest.raises(InputError, match=r"no collection|has no slides") as error:
        select([name], index=index)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_slides_and_patients_is_refused(index: IdcIndex) -> None:
    with pytest.raises(InputError, match=r"slide ids \(TCGA.*1 in total\) and patients \(C3L-00001, 1 in total\)"):
        select(ids=["TCGA-UW-A7GC-01Z-00-DX1", "C3L-00001"], index=index)


def test_nothing_or_two_lists_are_refused(index: IdcIndex, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a collection"):
        select(index=index)
    with pytest.raises(InputError, match="--slides and --folds: two lists"):
        select(slides=tmp_path, folds=tmp_path, index=index)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_cohort_table_gives_slides_and_a_table_of_patients_all_of_theirs(index: IdcIndex, tmp_path: Path) -> None:
    slides = write(tmp_path / "a.csv", "case_id,slide_id,label\nTCGA-UW-A7GC,TCGA-UW-A7GC-01Z-00-DX1.AB-1.svs,x\n")
    assert series_of(select(slides=slides, index=index)) == {"TCGA-UW-A7GC-01Z-00-DX1.AB-1": "1.2"}
    patients = write(tmp_path / "b.csv", "PATIENT;age\nTCGA-UW-A7GC;3\nC3L-00001;4\nC3L-00001;5\n")
    assert [slide.series_uid for slide in select(slides=patients, index=index).slides] == ["1.1", "1.2", "4.2", "4.1"]


def test_folds_give_each_slide_once(index: IdcIndex, tmp_path: Path) -> None:
    for n, (a, b) in enumerate((("01", "11"), ("11", "01"))):
        names = [f"TCGA-UW-A7GC-{kind}Z-00-DX1" for kind in (a, b)]
        write(tmp_path / f"splits_{n}.csv", f",train,val\n0,{names[0]},{names[1]}\n")
    assert len(select(folds=tmp_path, index=index).slides) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id\nA\nA\n", "line 3"),
        ("slide_id\nTCGA-UW-A7GC-01Z-00-DX1\ntcga-uw-a7gc-01z-00-dx1\n", "TCGA-UW-A7GC-01Z-00-DX1"),
        ("case_id\nP-1\np-1\n", "P-1"),
        ("case_id,age\nP1,3\n,4\n", "line 3: no patient"),
        ("case_id\n1.2E+11\n", "rounded"),
        ("barcode\nA\n", "no column slide_id, path or case_id (it has barcode)"),
        ("", "empty"),
    ],
)
def test_a_faulty_table_is_one_line(text: str, words: str, index: IdcIndex, tmp_path: Path) -> None:
    path = write(tmp_path / "cohort.csv", text)
    with pytest.raises(InputError) as error:
        select(slides=path, index=index)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["slides", "folds"])
def test_a_missing_list_is_one_line(name: str, index: IdcIndex, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no such .*--{name}"):
        select(index=index, **{name: tmp_path / "no"})  # type: ignore[arg-type]


def test_an_index_of_another_version_is_one_line(tmp_path: Path) -> None:
    path = write_index(tmp_path / "old.parquet", ROWS, without="series_aws_url")
    with pytest.raises(InputError, match=r"no column series_aws_url; pip install --upgrade 'longvit\[public\]'"):
        IdcIndex(path)
    for text in (b"no parquet", b"PAR1" + bytes(40) + b"PAR1"):
        (tmp_path / "damaged.parquet").write_bytes(text)
        with pytest.raises(InputError, match="not an index of IDC") as error:
            IdcIndex(tmp_path / "damaged.parquet")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        IdcIndex(tmp_path / "no.parquet")


@pytest.mark.parametrize(
    "fault",
    [
        {"series_size_MB": None},
        {"series_size_MB": -1.0},
        {"series_size_MB": float("nan")},
        {"series_aws_url": "https://example.org/x"},
        {"series_aws_url": None},
        {"PatientID": None},
    ],
)
def test_a_series_without_size_address_or_patient_is_one_line(fault: dict[str, object], tmp_path: Path) -> None:
    path = write_index(tmp_path / "index.parquet", [row("nlst", "1", "FFPE HE", "6.1", **fault)])
    with pytest.raises(InputError, match=r"series 6.1 has no patient, no size or no address"):
        select(["nlst"], index=IdcIndex(path))


@pytest.mark.parametrize("package", ["duckdb", "idc_index_data"])
def test_an_absent_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'longvit\[public\]'"):
        IdcIndex()
