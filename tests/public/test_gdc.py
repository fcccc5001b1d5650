"""A listed slide is the GDC's file of that name, with its MD5; a faulty answer or manifest is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.public.gdc_server import GdcServer, hit

from longvit.errors import InputError
from longvit.public import gdc_files
from longvit.public.gdc_files import GdcApi, files_of_manifest
from longvit.public.gdc_selection import select_from_gdc
from longvit.transfer.client import Patience

pytest.importorskip("requests", reason="needs the extra public")

UUIDS = ("D2D6FCC6-719A-4C03-A496-E23D18655538", "ADAF7B0F-8EDC-4022-A873-3A5EBA4A46C3")
A, B = (f"TCGA-UW-A7GC-{kind}Z-00-DX1.{uuid}" for kind, uuid in zip(("01", "11"), UUIDS, strict=True))
FROZEN = "TCGA-UW-A7GC-01A-01-TS1.0A1B2C3D-719A-4C03-A496-E23D18655538"
OTHER = "TCGA-OR-A5J1-01Z-00-DX1.600C7D8C-F04C-4125-AF14-B1E76DC01A1E"
HITS = [
    hit(f"{A}.svs", "TCGA-UW-A7GC", project="TCGA-KICH"),
    hit(f"{B}.svs", "TCGA-UW-A7GC", project="TCGA-KICH"),
    hit(f"{FROZEN}.svs", "TCGA-UW-A7GC", project="TCGA-KICH"),
    hit(f"{OTHER}.svs", "TCGA-OR-A5J1"),
    hit("closed.svs", "TCGA-OR-A5J1") | {"access": "controlled"},
    hit("report.svs", "TCGA-OR-A5J1") | {"data_type": "Pathology Report"},
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GdcServer]:
    with GdcServer(tmp_path, HITS) as running:
        yield running


def api(server: GdcServer) -> GdcApi:
    return GdcApi(server.address, Patience(retries=1, timeout_s=5))


def test_a_listed_slide_is_the_file_of_its_name_with_its_hash(server: GdcServer) -> None:
    selection = select_from_gdc(ids=[B, A], api=api(server))
    assert [slide.slide_id for slide in selection.slides] == [B, A]
    slide, own = selection.slides[1], HITS[0]
    assert (slide.location, slide.md5, slide.n_bytes) == (own["file_id"], own["md5sum"], own["file_size"])
    assert (slide.source, slide.case_id, slide.collection) == ("gdc", "TCGA-UW-A7GC", "tcga_kich")
    assert "Grossman" in selection.citations[0]


def test_a_project_has_its_open_slides_without_frozen_sections(server: GdcServer) -> None:
    assert [slide.slide_id for slide in select_from_gdc(["tcga-kich"], api=api(server)).slides] == [A, B]
    with_frozen = select_from_gdc(["TCGA_KICH", "tcga-acc"], frozen=True, api=api(server))
    assert {slide.slide_id for slide in with_frozen.slides} == {A, B, FROZEN, OTHER}
    with pytest.raises(InputError, match="TCGA-KIHC: the GDC has no open slide"):
        select_from_gdc(["tcga-kihc"], api=api(server))


def test_all_pages_are_asked_for(server: GdcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdc_files, "PAGE", 2)
    assert len(select_from_gdc(["tcga-kich", "tcga-acc"], frozen=True, api=api(server)).slides) == 4
    assert [question["from"] for question in server.questions] == ["0", "2"]


def test_many_patients_are_asked_for_in_addresses_of_a_bearable_length(server: GdcServer) -> None:
    patients = [f"TCGA-ZZ-{n:04d}" for n in range(250)]
    selection = select_from_gdc(ids=["TCGA-UW-A7GC", *patients], api=api(server))
    assert [slide.slide_id for slide in selection.slides] == [A, B]
    assert len(selection.missing) == 250
    assert len(server.questions) == 3
    assert max(len(json.dumps(question)) for question in server.questions) < 4000


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (FROZEN, "a frozen section; --frozen"),
        ("TCGA-UW-A7GC-01Z-00-DX1.00000000-719A-4C03-A496-E23D18655538", f"patient TCGA-UW-A7GC has {A}, {B}"),
        ("TCGA-ZZ-0000-01Z-00-DX1", "patient TCGA-ZZ-0000 has no diagnostic slide"),
    ],
)
def test_a_slide_of_another_uuid_is_not_taken(listed: str, words: str, server: GdcServer) -> None:
    selection = select_from_gdc(ids=[A, listed], api=api(server))
    assert [slide.slide_id for slide in selection.slides] == [A]
    (one,) = selection.missing
    assert words in one.reason


def test_a_barcode_without_a_uuid_is_the_only_file_of_it_or_ambiguous(server: GdcServer) -> None:
    short = A.partition(".")[0]
    assert select_from_gdc(ids=[short], api=api(server)).slides[0].location == HITS[0]["file_id"]
    server.hits.append(hit(f"{short}.11111111-719A-4C03-A496-E23D18655538.svs", "TCGA-UW-A7GC", project="TCGA-KICH"))
    selection = select_from_gdc(ids=[short, B], api=api(server))
    assert [one.listed_id for one in selection.ambiguous] == [short]
    assert "2 files" in selection.ambiguous[0].reason


def test_one_file_under_two_names_is_refused(server: GdcServer) -> None:
    with pytest.raises(InputError, match="are one file of the GDC"):
        select_from_gdc(ids=[A, A.partition(".")[0]], api=api(server))


def test_slides_and_patients_in_one_list_are_refused(server: GdcServer) -> None:
    with pytest.raises(InputError, match="write one kind"):
        select_from_gdc(ids=[A, "TCGA-OR-A5J1"], api=api(server))


def test_an_overloaded_server_is_asked_again(server: GdcServer) -> None:
    server.answers = [503]
    assert len(select_from_gdc(ids=[A], api=api(server)).slides) == 1
    server.answers = [b'{"data": {"hits": [']
    assert len(select_from_gdc(ids=[A], api=api(server)).slides) == 1


@pytest.mark.parametrize(
    "answers",
    [
        [500, 500],
        [403],
        [b"<html>", b"<html>"],
        [b"[]"],
        [b"{}"],
        [b'{"data": {"hits": [], "pagination": {"total": 3}}}'],
        [b'{"data": {"hits": [{}], "pagination": {"total": 1}}}'],
        [b'{"data": {"hits": 3, "pagination": {"total": 1}}}'],
        [json.dumps({"data": {"hits": [HITS[0] | {"md5sum": "?"}], "pagination": {"total": 1}}}).encode()],
        [json.dumps({"data": {"hits": [HITS[0] | {"file_name": "../a.svs"}], "pagination": {"total": 1}}}).encode()],
        [json.dumps({"data": {"hits": [HITS[0] | {"cases": []}], "pagination": {"total": 1}}}).encode()],
    ],
)
def test_an_answer_that_is_not_understood_is_one_line(answers: list[bytes | int], server: GdcServer) -> None:
    server.answers = list(answers)
    with pytest.raises(InputError) as error:
        select_from_gdc(ids=[A], api=api(server))
    assert server.address in str(error.value)
    assert "\n" not in str(error.value)


def test_an_address_without_a_server_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no connection.*--manifest FILE"):
        select_from_gdc(ids=[A], api=GdcApi("http://127.0.0.1:9", Patience(retries=0, timeout_s=2)))


def manifest(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["id\tfilename\tmd5\tsize\tstate", *rows]) + "\n", encoding="utf-8")
    return path


def line_of(n: int, **other: str) -> str:
    one = HITS[n]
    cells = {"id": one["file_id"], "filename": one["file_name"], "md5": one["md5sum"], "size": str(one["file_size"])}
    return "\t".join([*(cells | other).values(), "released"])


def test_a_manifest_gives_the_same_slides_without_a_connection(server: GdcServer, tmp_path: Path) -> None:
    path = manifest(tmp_path / "gdc_manifest.txt", [line_of(n) for n in range(4)])
    offline = select_from_gdc(ids=[A, B, OTHER], manifest=path)
    online = select_from_gdc(ids=[A, B, OTHER], api=api(server))
    known = [(slide.slide_id, slide.case_id, slide.location, slide.md5, slide.n_bytes) for slide in online.slides]
    assert [(one.slide_id, one.case_id, one.location, one.md5, one.n_bytes) for one in offline.slides] == known
    whole = select_from_gdc(manifest=path)
    assert [slide.slide_id for slide in whole.slides] == [A, B, OTHER]
    assert "1 frozen sections" in whole.notes[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([line_of(0, id="abc")], "line 2: 'abc' is not the uuid of a file"),
        ([line_of(0, md5="abc")], "line 2: 'abc' is not an MD5"),
        ([line_of(0, size="")], "line 2: size 0 is not"),
        ([line_of(0, size="x")], "line 2: size 0 is not"),
        ([line_of(0, filename="a.bam")], "line 2: 'a.bam' is not the name of a slide file"),
        ([line_of(0, filename="../../x.svs")], "is not the name of a slide file"),
        ([line_of(0), line_of(0)], "lines 2 and 3"),
        ([line_of(0), line_of(1, filename=f"{A.lower()}.svs")], "lines 2 and 3"),
        ([], "no rows"),
    ],
)
def test_a_faulty_manifest_is_one_line(rows: list[str], words: str, tmp_path: Path) -> None:
    path = manifest(tmp_path / "manifest.txt", rows)
    with pytest.raises(InputError) as error:
        files_of_manifest(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_is_no_manifest_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("slide_id,label\na,b\n")
    with pytest.raises(InputError, match="not a GDC manifest: no column id"):
        files_of_manifest(path)
    with pytest.raises(InputError, match="no such file"):
        files_of_manifest(tmp_path / "no.txt")
    with pytest.raises(InputError, match="has no projects"):
        select_from_gdc(["tcga-acc"], manifest=path)
    with pytest.raises(InputError, match="name a project"):
        select_from_gdc()
