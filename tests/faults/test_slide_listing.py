"""What is listed is what can be opened: each slide of a folder once, nothing lost without a word, no hang."""

from __future__ import annotations

import contextlib
import csv
import os
import socket
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.slides.slide_files import dicom_series, halved, tissue, write_dicom, write_mrxs
from tests.small_slides import write_slide

from longvit.cli import main
from longvit.data.cohort_table import read_cohort
from longvit.data.slide_files import SlideFinder
from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError
from longvit.files import require_regular_file
from longvit.slides import folder as folder_module
from longvit.slides.file_kind import SLIDE_SUFFIXES
from longvit.slides.reader import open_slide

NOT_UTF8 = os.fsdecode(b"bad\xff\xfe")
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Präparat_01") for form in ("NFC", "NFD"))


def ids(*sources: str | Path, notes: list[str] | None = None, **settings: str | Path) -> list[str]:
    note = (lambda _: None) if notes is None else notes.append
    return [slide.slide_id for slide in find_slides(sources, note=note, **settings)]


def canvases(out: Path, *sources: str | Path) -> tuple[int, dict[str, str], dict[str, str]]:
    """`longvit canvas`: its exit code, the path of every slide that was done, the error of every other one."""
    code = main(["canvas", *map(str, sources), "--side-px", "64", "--out", str(out), "--retries", "0"])
    done, problems = (
        {row[key]: row[value] for row in csv.DictReader(path.open(encoding="utf-8"))} if path.exists() else {}
        for path, key, value in (
            (out / "canvases.csv", "slide_id", "path"),
            (out / "problems.csv", "slide", "error"),
        )
    )
    return code, done, problems


def two_level_dicom(folder: Path, name: str) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    series, pixels = dicom_series(), tissue(128, 128)
    return (
        write_dicom(folder / f"{name}0.dcm", pixels, 0.0005, series),
        write_dicom(folder / f"{name}1.dcm", halved(pixels), 0.001, series, number=2),
    )


def one_level_dicom(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_dicom(path, tissue(128, 64), 0.0005, dicom_series())


def dicom_report(path: Path) -> Path:
    """A DICOM file that is no image of a slide."""
    import pydicom

    one_level_dicom(path)
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    data.save_as(path)
    return path


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    return folder


# DICOM: what a folder is


def test_a_dicom_file_hides_no_slide_beside_it(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "p.tif", seed=1)
    write_slide(slides / "q.tif", seed=2)
    one_level_dicom(slides / "r.dcm")
    write_slide(slides / "deep" / "s.tif", seed=3)
    one_level_dicom(slides / "deep" / "t.dcm")
    code, done, problems = canvases(tmp_path / "out", slides)
    assert (code, problems) == (0, {})
    assert sorted(done) == ["p", "q", "r", "s", "t"]
    finder = SlideFinder([slides])
    assert [finder.find(name) for name in "pqr"] == [slides / "p.tif", slides / "q.tif", slides / "r.dcm"]
    with pytest.raises(InputError, match=r"a folder of 3 slides; name one of their files .*p\.tif"):
        open_slide(slides)


def test_a_folder_of_one_series_is_one_slide_unless_other_slides_lie_below(slides: Path) -> None:
    first, _ = two_level_dicom(slides, "a")
    assert find_slides([slides]) == (ListedSlide("slides", slides),)
    assert find_slides([slides.parent]) == (ListedSlide("slides", slides),)
    write_slide(slides / "below" / "p.tif")
    assert find_slides([slides]) == (
        ListedSlide("a0", first),
        ListedSlide("p", slides / "below" / "p.tif"),
    )
    assert ids(slides.parent) == ["p", "slides"]


def test_several_series_in_one_folder_are_a_slide_each_however_they_are_given(slides: Path, tmp_path: Path) -> None:
    two_level_dicom(slides, "a")
    one_level_dicom(slides / "b0.dcm")
    (tmp_path / "paths.csv").write_text("path\nslides/a0.dcm\nslides/a1.dcm\nslides/b0.dcm\n")
    everything = [slides, f"{slides}/*.dcm", f"{slides}/**/*.dcm", tmp_path / "paths.csv"]
    for sources in (*([source] for source in everything), sorted(slides.iterdir()), everything):
        assert ids(*sources) == ["a0", "b0"], sources
    assert ids(slides / "a1.dcm") == ["a1"]
    finder = SlideFinder([slides])
    assert finder.find("a0") == finder.find("a1") == slides / "a0.dcm"
    assert len(open_slide(slides / "a1.dcm").levels) == 2
    assert open_slide(slides / "b0.dcm").size_px == (128, 64)


def test_a_series_named_by_its_folder_and_by_its_files_is_one_slide(slides: Path) -> None:
    two_level_dicom(slides, "a")
    assert ids(slides, f"{slides}/*.dcm") == ["slides"]
    assert ids(f"{slides}/*.dcm", slides) == ["a0"]


def test_two_ids_for_one_series_are_refused_with_their_lines(slides: Path, tmp_path: Path) -> None:
    two_level_dicom(slides, "a")
    one_level_dicom(slides / "b0.dcm")
    table = "slide_id,path,label\na0,slides/a0.dcm,x\nb,slides/b0.dcm,y\na1,slides/a1.dcm,x\n"
    (tmp_path / "list.csv").write_text(table)
    with pytest.raises(InputError, match=r"list\.csv, lines 2 and 4: a0 and a1 are files of one DICOM slide"):
        find_slides([tmp_path / "list.csv"])
    with pytest.raises(InputError, match=r"line 4: .*a1\.dcm is part of the DICOM slide of line 2"):
        read_cohort(tmp_path / "list.csv")


def test_one_id_for_two_series_is_refused_with_both_files(slides: Path) -> None:
    for folder in ("x", "y"):
        two_level_dicom(slides / folder, "a")
        one_level_dicom(slides / folder / f"{folder}0.dcm")
    with pytest.raises(InputError, match=r"x/a0\.dcm and .*y/a0\.dcm: one slide id for two files"):
        find_slides([slides])


def test_dicom_files_without_the_suffix_are_listed(slides: Path) -> None:
    pixels, series = tissue(128, 128), dicom_series()
    write_dicom(slides / "IM0", pixels, 0.0005, series)
    write_dicom(slides / "IM1", halved(pixels), 0.001, series, number=2)
    one_level_dicom(slides / "1.2.840.99.7")
    dicom_report(slides / "DICOMDIR")
    (slides / "README").write_text("no slide")
    notes: list[str] = []
    assert ids(slides, notes=notes) == ["1.2.840.99.7", "IM0"]
    assert notes == ["passed over: 2 files: (no suffix) 1, (no suffix) (DICOM, but no whole slide) 1"]
    assert len(open_slide(slides / "IM1").levels) == 2


def test_a_label_in_the_series_is_no_slide_of_its_own(slides: Path) -> None:
    import pydicom

    _, small = two_level_dicom(slides, "level")
    one_level_dicom(slides / "other.dcm")
    label = pydicom.dcmread(small)
    label.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    label.save_as(slides / "a_label.dcm")
    small.unlink()
    assert ids(slides) == ["a_label", "other"]
    assert open_slide(slides / "a_label.dcm").size_px == (128, 128)


def test_a_report_among_dicom_slides_is_counted(slides: Path) -> None:
    one_level_dicom(slides / "a.dcm")
    dicom_report(slides / "report.dcm")
    write_slide(slides / "p.tif")
    notes: list[str] = []
    assert ids(slides, notes=notes) == ["a", "p"]
    assert notes == ["passed over: 1 file: .dcm (DICOM, but no whole slide) 1"]


def test_a_damaged_dicom_file_beside_a_whole_one_is_a_row(slides: Path, tmp_path: Path) -> None:
    one_level_dicom(slides / "a.dcm")
    (slides / "cut.dcm").write_bytes((slides / "a.dcm").read_bytes()[:200])
    (slides / "empty.dcm").touch()
    code, done, problems = canvases(tmp_path / "out", slides)
    assert (code, list(done)) == (1, ["a"])
    assert "not a whole-slide DICOM" in problems["cut"]
    assert "the file is empty" in problems["empty"]


# One list of suffixes, and what is passed over


@pytest.mark.parametrize("suffix", [s for s in SLIDE_SUFFIXES if s not in (".dcm", ".dicom")])
def test_what_opening_takes_by_its_suffix_is_listed_and_looked_up(slides: Path, suffix: str) -> None:
    for name in (f"s.1{suffix}", f"S2{suffix.upper()}"):
        (slides / name).write_bytes(b"II*\0")
    assert ids(slides) == ["S2", "s.1"]
    assert SlideFinder([slides]).find("s.1") == slides / f"s.1{suffix}"


def test_tiffs_of_any_suffix_in_one_folder_are_all_done(slides: Path, tmp_path: Path) -> None:
    for index, suffix in enumerate(("tif", "TIF", "btf", "tf8", "qptiff")):
        write_slide(slides / f"s{index}.{suffix}", seed=index)
    write_slide(slides / "s5", seed=5)
    code, done, _ = canvases(tmp_path / "out", slides)
    assert (code, sorted(done)) == (0, ["s0", "s1", "s2", "s3", "s4", "s5"])


def test_what_is_passed_over_is_counted_in_one_line(slides: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_slide(slides / "a.tif")
    for name in ("a.vsi", "notes.txt", "deep/more.TXT", ".hidden", "a.tif.json"):
        (slides / name).parent.mkdir(exist_ok=True)
        (slides / name).touch()
    assert canvases(slides / "out", slides)[0] == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "passed over" in line]
    assert lines == ["passed over: 4 files: .json 1, .txt 2, .vsi 1"]


def test_downloads_that_were_not_finished_and_names_with_blanks_at_the_end_are_counted(slides: Path) -> None:
    write_slide(slides / "a.tif")
    for name in ("b.tif.part", "c.svs.crdownload", "d.tif.tmp", "e.ndpi~", "f.svs.gz", "g.tif "):
        (slides / name).touch()
    notes: list[str] = []
    assert ids(slides, notes=notes) == ["a"]
    assert notes == ["passed over: 6 files: .crdownload 1, .gz 1, .ndpi~ 1, .part 1, .tif  1, .tmp 1"]


def test_nothing_but_other_files_says_which(slides: Path) -> None:
    (slides / "a.vsi").touch()
    with pytest.raises(InputError, match=r"no slides in it .*passed over: 1 file: \.vsi 1"):
        ids(slides)


def test_listing_opens_no_file_whose_suffix_says_what_it_is(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(folder_module, "first_bytes", refuse)
    monkeypatch.setattr(folder_module, "read_dicom_header", refuse)
    for name in ("a.svs", "b.png", "c.dcm", "notes.txt", "one/d.dcm"):
        (slides / name).parent.mkdir(exist_ok=True)
        (slides / name).touch()
    assert ids(slides) == ["a", "b", "c", "one"]


def test_the_data_folder_of_a_mrxs_slide_is_part_of_it(slides: Path, tmp_path: Path) -> None:
    file = write_mrxs(slides / "m.mrxs", tissue(128, 128))
    (slides / "m" / "Thumbnail.jpg").touch()
    write_slide(slides / "a.tif")
    assert ids(slides) == ["a", "m"]
    assert ids(*sorted(slides.iterdir())) == ["a", "m"]  # `slides/*` of a shell
    assert find_slides([slides / "m"]) == (ListedSlide("m", file),)
    write_slide(slides / "a" / "inside.tif")
    (slides / "a.mrxs").touch()
    (slides / "a.tif").unlink()
    assert ids(slides) == ["inside", "a", "m"]  # a folder of that name that is none
    (slides / "a.mrxs").unlink()
    file.unlink()
    code, done, problems = canvases(tmp_path / "out", slides)
    assert (code, list(done)) == (1, ["inside"])
    assert "without the file m.mrxs beside it" in problems["m"]


def test_the_pictures_of_a_hamamatsu_vms_slide_are_no_slides(slides: Path) -> None:
    (slides / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v.jpg\nImageFile(1,0)=v(1,0).jpg\n")
    for name in ("v.jpg", "v(1,0).jpg", "other.jpg"):
        (slides / name).touch()
    assert ids(slides) == ["other", "v"]


# Links and folders that fail


def test_links_that_loop_list_each_slide_once(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif")
    write_slide(slides / "sub" / "b.tif")
    write_slide(tmp_path / "elsewhere" / "c.tif")
    write_slide(tmp_path / "above.tif")
    for link, target in {
        "all": ".", "again": ".", "sub/up": "..", "sub/top": str(slides), "parent": "..",
        "outside": "../elsewhere", "outside2": "../elsewhere", "self": "self",
    }.items():  # fmt: skip
        (slides / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to("../slides")
    assert ids(slides) == ["a", "c", "b"]
    assert sorted(ids(f"{slides}/**/*.tif")) == ["a", "b", "c"]
    finder = SlideFinder([slides])
    assert [finder.find(name) for name in "bc"] == [slides / "sub" / "b.tif", slides / "outside" / "c.tif"]
    assert finder.find("above") is None


def test_a_link_to_itself_or_to_nothing_is_a_row(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif")
    (slides / "loop.tif").symlink_to("loop.tif")
    (slides / "gone.tif").symlink_to("/nowhere/gone.tif")
    (slides / "batch2").symlink_to("/nowhere/batch2")
    code, done, problems = canvases(tmp_path / "out", slides)
    assert (code, list(done)) == (1, ["a"])
    assert "it is a link to /nowhere/gone.tif, which is not there" in problems["gone"]
    assert "it is a link to /nowhere/batch2, which is not there" in problems["batch2"]
    assert "Too many levels of symbolic links" in problems["loop"]


def test_an_entry_that_cannot_be_asked_what_it_is_is_searched_as_a_folder(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a link to a network folder that is gone."""

    class Stale:
        name, path = "stale", str(slides / "stale")

        def is_dir(self) -> bool:
            raise OSError(116, os.strerror(116))

    write_slide(slides / "a.tif")
    (slides / "stale").symlink_to("stale")  # so that its listing fails too
    whole = os.scandir

    @contextlib.contextmanager
    def scandir(path: str | Path = ".") -> Iterator[list[object]]:
        with whole(path) as entries:
            yield [Stale() if entry.name == "stale" else entry for entry in entries]

    monkeypatch.setattr(os, "scandir", scandir)
    assert ids(slides) == ["a", "stale (folder)"]


@pytest.mark.parametrize("number", [13, 116])  # EACCES, ESTALE
def test_a_folder_below_that_cannot_be_listed_is_a_row(
    slides: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_slide(slides / "a.tif")
    (slides / "closed").mkdir()
    whole = os.scandir

    def scandir(path: str | Path = ".") -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise OSError(number, os.strerror(number))
        return whole(path)  # type: ignore[return-value]

    monkeypatch.setattr(os, "scandir", scandir)
    assert ids(slides) == ["a", "closed (folder)"]
    with pytest.raises(InputError, match=f"closed: the folder cannot be listed \\({os.strerror(number)}"):
        open_slide(slides / "closed")
    finder = SlideFinder([slides])
    assert finder.find("b") is None
    assert os.strerror(number) in finder.where()


def test_a_folder_that_goes_while_it_is_listed_is_no_error(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(slides / "a.tif")
    (slides / "gone").mkdir()
    whole = folder_module.read_folder

    def read_folder(path: Path) -> folder_module.Folder:
        found = whole(path)
        if path == slides:
            (slides / "gone").rmdir()
        return found

    monkeypatch.setattr("longvit.data.slide_files.read_folder", read_folder)
    assert ids(slides) == ["a"]


# How deep, and where


def test_every_command_searches_to_the_same_depth(slides: Path, tmp_path: Path) -> None:
    deep = slides / Path(*["d"] * 100)
    for name in ("a", "b"):
        write_slide(deep / f"{name}.tif", seed=ord(name))
    (tmp_path / "cohort.csv").write_text("slide_id,label\na,x\nb,y\n")
    files = [deep / "a.tif", deep / "b.tif"]
    assert [slide.path for slide in find_slides([slides])] == files
    for where in ({}, {"slides_dir": slides}):
        assert [slide.path for slide in find_slides([tmp_path / "cohort.csv"], **where)] == files
        assert [row.path for row in read_cohort(tmp_path / "cohort.csv", **where).rows] == files


def test_an_extension_in_a_list_decides_between_two_files_as_it_does_in_a_cohort(tmp_path: Path) -> None:
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("slide_id\na.tif\n")
    assert find_slides([tmp_path / "list.csv"]) == (ListedSlide("a", tmp_path / "a.tif"),)
    (tmp_path / "list.csv").write_text("slide_id\na\n")
    with pytest.raises(InputError, match="2 files match this slide id"):
        find_slides([tmp_path / "list.csv"])


def test_a_picture_in_the_results_of_a_run_is_not_taken_for_its_missing_slide(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif", seed=1)
    write_slide(slides / "b.tif", seed=2)
    assert canvases(tmp_path / "canvases", slides)[0] == 0
    (slides / "a.tif").unlink()
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "run" / "run.lock").touch()
    (tmp_path / "run" / "pictures" / "a.png").touch()
    write_slide(tmp_path / "run" / "slides" / "c.tif")  # somebody's results may lie around the slides
    (tmp_path / "cohort.csv").write_text("slide_id,label\na,x\nb,y\nc,y\n")
    with pytest.raises(InputError, match="line 2: no slide a "):
        read_cohort(tmp_path / "cohort.csv")
    missing, *found = find_slides([tmp_path / "cohort.csv"])
    assert not missing.path.exists()
    assert [slide.path for slide in found] == [slides / "b.tif", tmp_path / "run" / "slides" / "c.tif"]


# Names


@pytest.mark.parametrize(("on_disk", "listed"), [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)])
def test_a_name_is_found_in_either_unicode_form(tmp_path: Path, on_disk: str, listed: str) -> None:
    file = write_slide(tmp_path / on_disk / f"{on_disk}.tif")
    if (tmp_path / listed).exists():
        pytest.skip("the file system changes names")
    for table in (
        f"slide_id\n{listed}\n",
        f"path\n{listed}/{listed}.tif\n",
        f"slide_id,path\nx,{listed}/{on_disk}.tif\n",
    ):
        (tmp_path / "list.csv").write_text(table, encoding="utf-8")
        (slide,) = find_slides([tmp_path / "list.csv"])
        assert slide.path == file
    (tmp_path / "cohort.csv").write_text(f"slide_id,label\n{listed},x\nb,y\n", encoding="utf-8")
    write_slide(tmp_path / "b.tif")
    assert read_cohort(tmp_path / "cohort.csv").rows[0].path == file
    with pytest.raises(InputError, match="there is one that differs in Unicode form only"):
        open_slide(file.with_name(f"{listed}.tif"))


def test_of_two_unicode_forms_the_one_that_is_asked_for_is_taken(slides: Path) -> None:
    files = [write_slide(slides / f"{name}.tif") for name in (COMPOSED, DECOMPOSED)]
    if len(list(slides.iterdir())) < 2:
        pytest.skip("the file system changes names")
    finder = SlideFinder([slides])
    assert [finder.find(name) for name in (COMPOSED, DECOMPOSED)] == files


def test_a_windows_path_is_read_with_slashes_or_named(slides: Path, tmp_path: Path) -> None:
    file = write_slide(slides / "p1.tif")
    other = write_slide(slides / "p2.tif", seed=2)
    table = "path,label\r\nslides\\p1.tif,x\r\n.\\slides\\p2.tif,y\r\n"
    (tmp_path / "list.csv").write_bytes(table.encode())
    assert [(s.slide_id, s.path.resolve()) for s in find_slides([tmp_path / "list.csv"])] == [
        ("p1", file),
        ("p2", other),
    ]
    assert [row.path.resolve() for row in read_cohort(tmp_path / "list.csv").rows] == [file, other]
    (tmp_path / "list.csv").write_bytes(b"path\r\nC:\\scans\\p9.tif\r\nslides\\p8.tif\r\n")
    far, near = find_slides([tmp_path / "list.csv"])
    assert (far.slide_id, near.path) == ("p9", slides / "p8.tif")
    with pytest.raises(InputError, match=r"no such file; on this machine a path has / where that has"):
        open_slide(far.path)


@pytest.mark.parametrize("asked", ["1", "1.0", "01", "0001", " 1"])
def test_a_number_that_lost_its_zeros_is_told_of_its_file(slides: Path, tmp_path: Path, asked: str) -> None:
    write_slide(slides / "001.tif")
    write_slide(slides / "B 2.tif")
    (tmp_path / "list.csv").write_text(f"slide_id,label\n{asked},x\nb2,y\n")
    for slide, name in zip(find_slides([tmp_path / "list.csv"]), ("001", "B 2"), strict=True):
        with pytest.raises(InputError, match=rf"no such file; there is {name}\.tif"):
            open_slide(slide.path)
    with pytest.raises(InputError, match=r"line 2: no slide .*; there is .*001\.tif\)"):
        read_cohort(tmp_path / "list.csv")
    notes = read_cohort(tmp_path / "list.csv", need_files=False).notes
    assert any("there is" in note and "(and 1 more)" in note for note in notes)
    with pytest.raises(InputError, match=r"no such file or folder; there is 001\.tif"):
        find_slides([slides / "1.tif"])


def test_a_name_that_no_result_can_have_costs_one_row(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif")
    long = "l" * 240
    write_slide(slides / f"{long}.tif", seed=1)
    write_slide(slides / f"{NOT_UTF8}.tif", seed=2)
    write_slide(slides / os.fsdecode(b"folder\xe9") / "in.tif", seed=3)
    (tmp_path / "list.csv").write_bytes(
        b"slide_id,path\nx\0y,slides/a.tif\nz,slides/a\0.tif\nu" + b"u" * 250 + b",slides/a.tif\n"
    )
    code, done, problems = canvases(tmp_path / "out", slides, tmp_path / "list.csv")
    assert (code, list(done)) == (1, ["a"])
    assert "bytes that are not UTF-8; rename it" in problems.pop(r"bad\xff\xfe")
    assert r"folder\xe9/in.tif: its path holds bytes that are not UTF-8" in problems.pop("in")
    assert "its slide id holds a NUL character" in problems.pop(r"x\x00y")
    assert r"a\x00.tif: its path holds a NUL character" in problems.pop("z")
    assert sorted(name[0] for name in problems) == ["l", "u"]
    assert all("bytes long" in error and "under a shorter one" in error for error in problems.values())


def test_a_cohort_with_such_a_name_is_refused_with_the_line(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif")
    for row in (b"b\0,y,slides/a.tif", b"b,y,slides/a\0.tif", b"b" * 250 + b",y,slides/a.tif"):
        (tmp_path / "c.csv").write_bytes(b"slide_id,label,path\na,x,slides/a.tif\n" + row + b"\n")
        for need_files in (True, False):
            with pytest.raises(InputError, match="line 3") as caught:
                read_cohort(tmp_path / "c.csv", need_files=need_files)
            assert "\0" not in str(caught.value)


# What is no file


def test_fifos_sockets_and_devices_are_rows_and_nothing_waits_for_them(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tif")
    os.mkfifo(slides / "fifo.tif")
    os.mkfifo(slides / "fifo.dcm")
    os.mkfifo(slides / "FIFO")
    (slides / "zero.png").symlink_to("/dev/zero")
    (slides / "linked.svs").symlink_to("FIFO")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(".", os.O_RDONLY)
        os.chdir(slides)  # the name of a socket may be no longer than 107 bytes
        bound.bind("s.svs")
        os.fchdir(here)
        os.close(here)
        code, done, problems = canvases(
            tmp_path / "out", *(path for path in slides.iterdir() if "dcm" not in path.name)
        )
    assert (code, list(done)) == (1, ["a"])
    assert {name: text.split(": ")[-1] for name, text in problems.items()} == {
        "fifo": "a FIFO (named pipe), not a file",
        "FIFO": "a FIFO (named pipe), not a file",
        "linked": "a FIFO (named pipe), not a file",
        "zero": "a device, not a file",
        "s": "a socket, not a file",
    }
    (slides / "fifo.tif").unlink()
    assert ids(slides) == ["a", "fifo", "linked", "s", "zero"]
    with pytest.raises(InputError, match="a FIFO"):
        open_slide(slides / "fifo.dcm")


def test_a_fifo_beside_a_dicom_or_in_a_mrxs_slide_is_named(slides: Path) -> None:
    """OpenSlide opens every file of those folders, and would wait for ever."""
    file = one_level_dicom(slides / "a.dcm")
    os.mkfifo(slides / "pipe")
    for path in (file, slides):
        with pytest.raises(InputError, match="pipe in it is a FIFO"):
            open_slide(path)
    mrxs = write_mrxs(slides / "m.mrxs", tissue(128, 128))
    (slides / "m" / "Index.dat").unlink()
    os.mkfifo(slides / "m" / "Index.dat")
    with pytest.raises(InputError, match=r"Index\.dat in it is a FIFO"):
        open_slide(mrxs)


def test_a_file_of_the_system_that_would_wait_is_read_without_waiting(slides: Path) -> None:
    for target in ("/proc/kmsg", "/proc/self/mem"):
        if Path(target).exists():
            link = slides / f"{Path(target).name}.tif"
            link.symlink_to(target)
            with pytest.raises(InputError):
                open_slide(link)


def test_only_a_regular_file_passes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    require_regular_file(tmp_path / "file")
    require_regular_file(tmp_path / "missing")
    for path, words in (
        ("fifo", "a FIFO"),
        (".", "a folder"),
        ("a\0b", "no path of a file"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(InputError, match=words):
            require_regular_file(tmp_path / path)


def test_a_cohort_whose_paths_cannot_be_looked_at_is_checked_all_the_same(slides: Path, tmp_path: Path) -> None:
    (slides / "loop.tif").symlink_to("loop.tif")
    write_slide(slides / "a.tif")
    (tmp_path / "c.csv").write_text(
        f"slide_id,label,path\na,x,slides/a.tif\nb,y,slides/loop.tif\nc,y,{'d' * 300}/c.tif\n"
    )
    assert main(["cohort", "check", str(tmp_path / "c.csv")]) == 0
    with pytest.raises(InputError, match="line 3: no slide b"):
        read_cohort(tmp_path / "c.csv")


def test_a_folder_for_slides_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide_id\na\nb\n")
    with pytest.raises(InputError, match=r"--slides-dir .*nowhere: no such folder"):
        find_slides([tmp_path / "list.csv"], slides_dir=tmp_path / "nowhere")
