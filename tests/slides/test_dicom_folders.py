"""DICOM folders of archives and media: each series is one slide in every command, and none is lost silently."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.fileset import FileSet
from tests.slides.dicom_files import write_level
from tests.slides.slide_files import Pixels, dicom_series, halved, tissue
from tests.small_slides import write_slide

from longvit.cli import main
from longvit.data.cohort_table import read_cohort
from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.slides.dicom_header import read_dicom_header
from longvit.slides.reader import open_slide

WIDTH, HEIGHT = 300, 200


def image(seed: int = 0) -> Pixels:
    return np.roll(tissue(WIDTH, HEIGHT), 37 * seed, axis=1)


def slide(folder: Path, seed: int = 0, study: str = "") -> Path:
    """A series of two levels and a label."""
    folder.mkdir(parents=True, exist_ok=True)
    series = dicom_series()
    series["study"] = study or series["study"]
    write_level(folder / "0.dcm", image(seed), series, codec="jpegls")
    write_level(folder / "1.dcm", halved(image(seed)), series, codec="jpegls", spacing_mm=(0.001, 0.001))
    write_level(folder / "2.dcm", image(seed)[:100, :100], series, flavour="LABEL")
    return folder


def listed(*sources: Path, notes: list[str] | None = None) -> list[str]:
    return [one.slide_id for one in find_slides(sources, note=([] if notes is None else notes).append)]


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """A DICOM medium: DICOMDIR and, in folders of patient, study and series, two slides of one patient."""
    files = FileSet()
    for seed in range(2):
        for path in sorted(slide(tmp_path / f"from{seed}", seed, "1.2.3.4").iterdir()):
            data = dcmread(path)
            data.PatientID = data.PatientName = "p"
            data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20260101", "000000", "1", "1"
            data.SeriesNumber = seed + 1
            data.save_as(path)
            files.add(data)
    files.write(tmp_path / "medium")
    for seed in range(2):
        shutil.rmtree(tmp_path / f"from{seed}")
    return tmp_path / "medium"


def test_a_dicomdir_is_no_slide_and_hides_none(medium: Path) -> None:
    notes: list[str] = []
    slides = find_slides([medium], note=notes.append)
    assert [open_slide(one.path).size_px for one in slides] == [(WIDTH, HEIGHT)] * 2
    assert notes == ["passed over: 1 file: (no suffix) (DICOM, but no whole slide) 1"]
    folder = slides[0].path
    for name in ("DICOMDIR", "index.dcm"):
        shutil.copy(medium / "DICOMDIR", folder / name)
        assert find_slides([folder], note=notes.append)[0].path == folder
        assert len(open_slide(folder).levels) == 2
    with pytest.raises(InputError, match="DICOMDIR: a DICOMDIR, which lists the files of a medium; give the folder"):
        open_slide(medium / "DICOMDIR")
    (medium / "only").mkdir()
    shutil.copy(medium / "DICOMDIR", medium / "only")
    with pytest.raises(InputError, match="no slides in it"):
        listed(medium / "only")


def test_a_damaged_class_makes_a_row_not_a_file_passed_over(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image())
    content = path.read_bytes()
    uid = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    places = [content.index(uid), content.rindex(uid)]
    write_level(tmp_path / "b.dcm", image(1))
    for place in places:
        path.write_bytes(content[:place] + b"3" + content[place + 1 :])
        header = read_dicom_header(path)
        assert header is not None
        assert header.is_slide
        assert listed(tmp_path) == ["a", "b"]


def test_files_of_programs_beside_a_series_leave_the_folder_one_slide(tmp_path: Path) -> None:
    folder = slide(tmp_path / "Präparat 1 (HE)")
    for name in ("README.txt", ".DS_Store", "Thumbs.db", "._0.dcm", "index.html", "checksums.md5"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    for name in ("thumbnail.jpg", "Label.PNG", "macro.jpeg"):
        Image.fromarray(tissue(64, 64)).save(folder / name)
    notes: list[str] = []
    assert find_slides([tmp_path], note=notes.append)[0].path == folder
    assert notes == [
        "passed over: 7 files: .db 1, .html 1, .jpeg (beside DICOM files) 1, .jpg (beside DICOM files) 1, .md5 1, "
        ".png (beside DICOM files) 1, .txt 1"
    ]
    assert len(open_slide(folder).levels) == 2


def test_an_image_that_may_be_a_slide_is_one_beside_dicom_too(tmp_path: Path) -> None:
    slide(tmp_path / "s")
    Image.fromarray(tissue(64, 64)).save(tmp_path / "s" / "case7.jpg")
    assert listed(tmp_path) == ["0", "case7"]
    Image.fromarray(tissue(64, 64)).save(tmp_path / "thumbnail.jpg")  # no DICOM file beside it
    assert listed(tmp_path) == ["0", "case7", "thumbnail"]


def test_an_archive_is_not_a_slide(tmp_path: Path) -> None:
    slide(tmp_path / "s")
    archive = Path(shutil.make_archive(str(tmp_path / "s"), "zip", tmp_path / "s"))
    notes: list[str] = []
    assert listed(tmp_path, notes=notes) == ["s"]
    assert notes == ["passed over: 1 file: .zip 1"]
    with pytest.raises(InputError, match=r"s\.zip: a ZIP archive, not a slide"):
        open_slide(archive)


def test_links_that_loop_through_a_series_count_it_once(tmp_path: Path) -> None:
    folder = slide(tmp_path / "slides" / "s")
    (folder / "again").symlink_to("..")
    (tmp_path / "slides" / "other").symlink_to("s")
    assert len(listed(tmp_path / "slides")) == 1


def test_a_series_in_two_folders_is_noted(tmp_path: Path) -> None:
    """Parts of a slide, each of which would count as a slide; or a copy, which is in the results twice."""
    folder = slide(tmp_path / "slides" / "a")
    notes: list[str] = []
    assert listed(tmp_path, notes=notes) == ["a"]
    shutil.copytree(folder, tmp_path / "slides" / "b")
    slide(tmp_path / "slides" / "c", 1)
    assert listed(tmp_path, notes=notes) == ["a", "b", "c"]
    names = f"{folder} and {folder.parent / 'b'}"
    assert notes == [f"{names}: one DICOM series in 2 folders, copies of a slide or parts of it"]


@pytest.mark.slow
def test_every_command_counts_a_folder_of_instances_as_one_slide(
    medium: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two series of a medium, a slide in one file, and a damaged series: three results and one row with its reason."""
    shutil.copytree(medium, tmp_path / "slides" / "medium")
    write_level(tmp_path / "slides" / "one.dcm", image(2), codec="plain")
    damaged = slide(tmp_path / "slides" / "damaged", 3) / "0.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    names = listed(tmp_path / "slides")
    assert len(names) == 4
    assert main(["canvas", str(tmp_path / "slides"), "--side-px", "64", "--out", str(tmp_path / "c")]) == 1
    with (tmp_path / "c" / "problems.csv").open(newline="") as file:
        problems = list(csv.DictReader(file))
    assert [row["slide"] for row in problems] == ["damaged"]
    with (tmp_path / "c" / "canvases.csv").open(newline="") as file:
        assert sorted([*(row["slide_id"] for row in csv.DictReader(file)), "damaged"]) == sorted(names)
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "slides"), "--out", str(tmp_path / "qc"), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["slides"]
    assert sorted(row["slide_id"] for row in rows) == sorted(names)
    assert main(["info", str(tmp_path / "slides" / "damaged")]) == 2
    table = "".join(f"{one.slide_id},{'ab'[i % 2]},{one.path}\n" for i, one in enumerate(find_slides([medium])))
    (tmp_path / "cohort.csv").write_text(f"slide_id,label,path\n{table}")
    assert [row.path.is_dir() for row in read_cohort(tmp_path / "cohort.csv").rows] == [True, True]


def test_a_command_over_slides_and_dicom_without_preamble_has_a_row_for_it(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slide(slides)
    write_slide(slides / "p.tif")
    largest = slides / "0.dcm"
    largest.write_bytes(largest.read_bytes()[132:])
    assert main(["canvas", str(slides), "--side-px", "64", "--out", str(tmp_path / "c"), "--retries", "0"]) == 1
    with (tmp_path / "c" / "problems.csv").open(newline="") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["0"]
