"""Tables as other projects publish them: what is there is read; what is broken is one line, and never a guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from longvit.cli import main
from longvit.data.bags import read_bag
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import assign, folds_of_column
from longvit.data.published_tables import tcga_patient
from longvit.errors import InputError

TSV = """case_id\tslide_id\tGrade\tfold_0\tfold_1
P0\ta.svs\t0\ttrain\ttest
P1\tb.svs\t1\ttrain\ttrain
P2\tc.svs\t0\ttest\ttrain
P3\td.svs\t1\ttest\ttest
"""
CONFIG = """task_col: Grade
sample_col: case_id
extra_cols: []
label_dict: {0: low, 1: high}
metrics: [macro-ovr-auc]
"""
MOOZY_CSV = "case_id,filename,label\nP0,a.h5,x\nP1,b.h5,y\nP1,c.h5,y\n"
MOOZY_CONFIG = "task_type: classification\nsample_col: case_id\n"
SLIDES = "PATIENT,FILENAME\nP0,a.h5\nP0,b.h5\nP1,c.h5\n"
CLINI = "PATIENT,MSI,AGE\nP0,high,61\nP1,low,70\n"
CLAM_CSV = "case_id,slide_id,label\nP0,a,tumor\nP1,b,normal\nP1,c,normal\n"
TCGA_CSV = (
    "slide_id,label\nTCGA-A7-A6VV-01Z-00-DX1.07AE,x\nTCGA-A7-A6VV-01Z-00-DX2.0000,x\nTCGA-BH-A202-01Z-00-DX1.8CEC,y\n"
)


def patho_bench(folder: Path, tsv: str = TSV, config: str | None = CONFIG) -> Cohort:
    (folder / "k=all.tsv").write_text(tsv)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return read_cohort(folder, need_files=False)


def moozy(folder: Path, table: str = MOOZY_CSV, config: str | None = MOOZY_CONFIG) -> Cohort:
    (folder / "task.csv").write_text(table)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return read_cohort(folder, need_files=False)


def stamp(folder: Path, slides: str = SLIDES, clini: str = CLINI, label: str = "MSI") -> Cohort:
    (folder / "slides.csv").write_text(slides)
    (folder / "clini.csv").write_text(clini)
    return read_cohort(folder / "slides.csv", clini=folder / "clini.csv", label_column=label, need_files=False)


def table(folder: Path, text: str) -> Cohort:
    (folder / "cohort.csv").write_text(text)
    return read_cohort(folder / "cohort.csv", need_files=False)


def tcga(folder: Path, column: str, *cells: str) -> Cohort:
    """The table of TCGA with one more column."""
    header, *lines = TCGA_CSV.splitlines()
    more = [f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)]
    return table(folder, "\n".join([f"{header},{column}", *more]) + "\n")


def write_stamp_bag(
    path: Path, coords: np.ndarray | None, unit: str = "um", features: np.ndarray | None = None, name: str = "feats"
) -> Path:
    values = np.ones((3, 4), np.float32) if features is None else features
    with h5py.File(path, "w") as file:
        file[name] = values
        if coords is not None:
            file["coords"] = coords
        file.attrs["unit"] = unit
        file.attrs["tile_size_um"] = 256.0
    return path


def test_a_task_of_patho_bench_is_read_with_its_folds_and_the_names_of_its_classes(tmp_path: Path) -> None:
    cohort = patho_bench(tmp_path)
    assert [(row.case_id, row.slide_id, row.label) for row in cohort.rows] == [
        ("P0", "a", "low"), ("P1", "b", "high"), ("P2", "c", "low"), ("P3", "d", "high"),
    ]  # fmt: skip
    first, second = folds_of_column(cohort)
    assert (first.name, first.train, first.test) == ("0", ("a", "b"), ("c", "d"))
    assert second.test == ("a", "d")
    assert len(assign(cohort, first).split("train")) == 2
    again = read_cohort(tmp_path / "k=all.tsv", need_files=False)  # the file names its folder's config too
    assert again.rows == cohort.rows


def test_cohort_check_prints_the_leak_of_a_task_of_patho_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patho_bench(tmp_path, TSV.replace("P3\td", "P1\td"))
    assert main(["cohort", "check", str(tmp_path)]) == 1
    out = capsys.readouterr()
    assert "patients in train+test: P1" in out.out
    assert "2 of 2 folds leak" in out.err


def test_a_list_of_slides_is_a_row_for_each_and_days_become_months(tmp_path: Path) -> None:
    tsv = "case_id\tslide_id\tOS_days\tOS_event\tfold_0\nP0\t['a.svs', 'b.svs']\t365.25\t1\ttrain\nP1\tc\t30\t0\ttest\n"
    (tmp_path / "k=all.tsv").write_text(tsv)
    (tmp_path / "config.yaml").write_text("task_col: OS\n")
    cohort = read_cohort(tmp_path, label_column=None, need_files=False)
    assert [row.slide_id for row in cohort.rows] == ["a", "b", "c"]
    assert float(cohort.rows[0].extra_columns["survival_months"]) == pytest.approx(12, abs=1e-12)
    assert [row.extra_columns["event"] for row in cohort.rows] == ["1", "1", "0"]


def test_moozy_stamp_clam_and_tcga_are_read(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("moozy", "stamp", "clam", "tcga")]
    for folder in folders:
        folder.mkdir()
    cohort = moozy(folders[0])
    assert [(row.case_id, row.slide_id, row.label) for row in cohort.rows] == [
        ("P0", "a", "x"), ("P1", "b", "y"), ("P1", "c", "y"),
    ]  # fmt: skip
    cohort = stamp(folders[1])
    assert [(row.case_id, row.slide_id, row.label) for row in cohort.rows] == [
        ("P0", "a", "high"), ("P0", "b", "high"), ("P1", "c", "low"),
    ]  # fmt: skip
    assert cohort.rows[0].extra_columns["age"] == "61"
    assert [row.label for row in table(folders[2], CLAM_CSV).rows] == ["tumor", "normal", "normal"]
    cohort = table(folders[3], TCGA_CSV)
    assert [row.case_id for row in cohort.rows] == ["TCGA-A7-A6VV", "TCGA-A7-A6VV", "TCGA-BH-A202"]
    assert "3 rows without case_id: the patient is that of the TCGA barcode" in " ".join(cohort.notes)
    assert tcga_patient("TCGA-A7-A6VVX-01Z") is tcga_patient("my-TCGA-A7-A6VV") is None


def test_coords_of_stamp_become_level_0_pixels_with_the_resolution_of_the_slide(tmp_path: Path) -> None:
    um = np.array([[0, 0], [256, 0], [512, 768]], np.float64)
    path = write_stamp_bag(tmp_path / "a.h5", um)
    bag = read_bag(path, mpp=0.5)
    assert bag.coords is not None
    assert bag.coords.tolist() == [[0, 0], [512, 0], [1024, 1536]]
    assert bag.tile_level0_px == 512
    assert read_bag(path).coords is None  # without the resolution there are no pixels
    mm = read_bag(write_stamp_bag(tmp_path / "b.h5", um / 1000, unit="mm"), mpp=0.5).coords
    assert np.array_equal(bag.coords, mm if mm is not None else [])


def test_excel_sheets_are_read_like_csv(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["PATIENT", "MSI", "AGE", None], ["P0", "high", 61.0, None], [None] * 4, ["P1", "low", 70.5, None]):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "clini.xlsx")
    (tmp_path / "slides.csv").write_text(SLIDES)
    cohort = read_cohort(tmp_path / "slides.csv", clini=tmp_path / "clini.xlsx", label_column="MSI", need_files=False)
    assert [(row.label, row.extra_columns["age"]) for row in cohort.rows] == [
        ("high", "61"), ("high", "61"), ("low", "70.5"),
    ]  # fmt: skip
    book["empty"].append(["more"])
    book.save(tmp_path / "clini.xlsx")
    with pytest.raises(InputError, match=r"2 sheets with content \(Sheet, empty\)"):
        read_cohort(tmp_path / "slides.csv", clini=tmp_path / "clini.xlsx", need_files=False)
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04 not a workbook")
    with pytest.raises(InputError, match="not a readable Excel file"):
        read_cohort(tmp_path / "broken.xlsx", need_files=False)


Broken = tuple[str, Callable[[Path], object], str]
UM = np.array([[0, 0], [256, 0], [512, 768]], np.float64)
BROKEN: list[Broken] = [
    # Patho-Bench
    ("pb: no config", lambda p: patho_bench(p, config=None), "no config.yaml beside k=all.tsv"),
    ("pb: an empty config", lambda p: patho_bench(p, config=""), "not a mapping of keys to values"),
    ("pb: no task_col", lambda p: patho_bench(p, config="sample_col: case_id\n"), "no task_col"),
    ("pb: a task_col that is absent", lambda p: patho_bench(p, config="task_col: Stage\n"), "has no such column"),
    ("pb: a class without a name", lambda p: patho_bench(p, TSV.replace("\t1\t", "\t7\t")), "which label_dict"),
    (
        "pb: label_dict is a list",
        lambda p: patho_bench(p, config="task_col: Grade\nlabel_dict: [a]\n"),
        "not a mapping",
    ),
    (
        "pb: a word in a fold",
        lambda p: folds_of_column(patho_bench(p, TSV.replace("\ttest\n", "\tteste\n", 1))),
        "train, val or test",
    ),
    (
        "pb: a fold without test",
        lambda p: folds_of_column(patho_bench(p, TSV.replace("test", "train"))),
        "none in val and test",
    ),
    (
        "pb: a slide that is a broken list",
        lambda p: patho_bench(p, TSV.replace("a.svs", "['a.svs'")),
        "not a name or a list",
    ),
    ("pb: a slide twice", lambda p: patho_bench(p, TSV.replace("b.svs", "a.svs")), "is already on line"),
    ("pb: an alias in the config", lambda p: patho_bench(p, config="task_col: &a Grade\nx: *a\n"), "an alias"),
    # MOOZY
    ("moozy: no config", lambda p: moozy(p, config=None), "no config.yaml beside task.csv"),
    ("moozy: a broken config", lambda p: moozy(p, config="a: [1\n"), "config.yaml"),
    ("moozy: no label", lambda p: moozy(p, MOOZY_CSV.replace(",label", ",grade")), "has no such column"),
    ("moozy: an empty label", lambda p: moozy(p, MOOZY_CSV.replace("a.h5,x", "a.h5,")), "no label"),
    ("moozy: no slide", lambda p: moozy(p, MOOZY_CSV.replace("a.h5", "")), "neither slide_id nor path"),
    (
        "moozy: no column of slides",
        lambda p: moozy(p, MOOZY_CSV.replace("filename", "file")),
        "no column 'slide_id' or 'path'",
    ),
    ("moozy: one class", lambda p: moozy(p, MOOZY_CSV.replace(",y", ",x")), "at least two classes"),
    ("moozy: a header alone", lambda p: moozy(p, "case_id,filename,label\n"), "a header but no rows"),
    ("moozy: two spellings", lambda p: moozy(p, MOOZY_CSV.replace("P1,c", "p1,c")), "differ in spelling only"),
    ("moozy: a long row", lambda p: moozy(p, MOOZY_CSV.replace("P0,a.h5,x", "P0,a.h5,x,z")), "4 cells for 3 columns"),
    # STAMP's two tables
    ("stamp: a patient that clini lacks", lambda p: stamp(p, clini="PATIENT,MSI\nP0,high\n"), "'P1' is not in"),
    ("stamp: two rows of a patient", lambda p: stamp(p, clini=CLINI + "P1,high,70\n"), "two rows of patient P1 differ"),
    ("stamp: no PATIENT in clini", lambda p: stamp(p, clini=CLINI.replace("PATIENT", "PERSON")), "no column PATIENT"),
    ("stamp: no PATIENT in slides", lambda p: stamp(p, SLIDES.replace("PATIENT", "PERSON")), "no column PATIENT"),
    ("stamp: another spelling", lambda p: stamp(p, clini=CLINI.replace("P1", "p1")), "differ in spelling only"),
    ("stamp: no label column", lambda p: stamp(p, label="KRAS"), "no column 'KRAS'"),
    ("stamp: an empty label", lambda p: stamp(p, clini=CLINI.replace("high", "")), "no msi"),
    ("stamp: an empty clini", lambda p: stamp(p, clini=""), "empty"),
    ("stamp: no patient in a row", lambda p: stamp(p, clini=CLINI.replace("P1", "")), "no patient"),
    ("stamp: no FILENAME", lambda p: stamp(p, SLIDES.replace("FILENAME", "F")), "no column 'slide_id' or 'path'"),
    # STAMP's features
    (
        "bag: coords of three columns",
        lambda p: read_bag(write_stamp_bag(p / "a.h5", np.ones((3, 3))), mpp=0.5),
        "not (tiles, 2)",
    ),
    ("bag: fewer coords", lambda p: read_bag(write_stamp_bag(p / "a.h5", UM[:2]), mpp=0.5), "do not match"),
    ("bag: coords that are NaN", lambda p: read_bag(write_stamp_bag(p / "a.h5", UM * np.nan), mpp=0.5), "not finite"),
    ("bag: negative coords", lambda p: read_bag(write_stamp_bag(p / "a.h5", UM - 600), mpp=0.5), "outside any slide"),
    ("bag: coords far away", lambda p: read_bag(write_stamp_bag(p / "a.h5", UM * 1e9), mpp=0.5), "outside any slide"),
    ("bag: coords of text", lambda p: read_bag(write_stamp_bag(p / "a.h5", np.full((3, 2), b"x")), mpp=0.5), "coords"),
    (
        "bag: no features",
        lambda p: read_bag(write_stamp_bag(p / "a.h5", UM, name="x"), mpp=0.5),
        "no dataset 'features'",
    ),
    (
        "bag: no tiles",
        lambda p: read_bag(write_stamp_bag(p / "a.h5", UM[:0], features=np.ones((0, 4), np.float32))),
        "an empty bag",
    ),
    (
        "bag: features that are NaN",
        lambda p: read_bag(write_stamp_bag(p / "a.h5", UM, features=np.full((3, 4), np.nan, np.float32))),
        "not finite",
    ),
    ("bag: no HDF5", lambda p: [(p / "a.h5").write_bytes(b"x" * 99), read_bag(p / "a.h5")], "a.h5"),
    # CLAM
    ("clam: no label column", lambda p: table(p, CLAM_CSV.replace(",label", ",kind")), "no column 'label'"),
    ("clam: an empty label", lambda p: table(p, CLAM_CSV.replace("tumor", "")), "no label"),
    ("clam: one class", lambda p: table(p, CLAM_CSV.replace("tumor", "normal")), "at least two classes"),
    ("clam: a slide twice", lambda p: table(p, CLAM_CSV.replace("P1,c", "P1,b")), "is already on line"),
    (
        "clam: slides that differ in spelling",
        lambda p: table(p, CLAM_CSV.replace("P1,c", "P1,B")),
        "differ in spelling only",
    ),
    (
        "clam: numbers, not classes",
        lambda p: table(p, CLAM_CSV.replace("tumor", "0.5").replace("normal", "1.5")),
        "a measurement",
    ),
    (
        "clam: binary",
        lambda p: [(p / "cohort.csv").write_bytes(bytes(range(256)) * 9), read_cohort(p / "cohort.csv")],
        "cohort.csv",
    ),
    ("clam: an open quote", lambda p: table(p, CLAM_CSV.replace("tumor", '"tumor')), "quote"),
    ("clam: two columns of one name", lambda p: table(p, CLAM_CSV.replace("case_id", "label")), "two columns"),
    ("clam: a number that was rounded", lambda p: table(p, CLAM_CSV.replace("P1,b", "1.2E+11,b")), "rounded"),
    # TCGA
    ("tcga: the patient in two splits", lambda p: tcga(p, "split", "train", "test", "test"), "A6VV is in two splits"),
    ("tcga: the patient in two folds", lambda p: tcga(p, "fold", "0", "1", "1"), "TCGA-A7-A6VV is in two folds"),
    ("tcga: a slide twice", lambda p: table(p, TCGA_CSV.replace("DX2.0000", "DX1.07AE")), "is already on line"),
    ("tcga: no label", lambda p: table(p, TCGA_CSV.replace(",y", ",")), "no label"),
    ("tcga: a label of another column", lambda p: table(p, TCGA_CSV.replace("label", "project")), "no column 'label'"),
    ("tcga: one class", lambda p: table(p, TCGA_CSV.replace(",y", ",x")), "at least two classes"),
    ("tcga: no ids", lambda p: table(p, TCGA_CSV.replace("slide_id", "barcode")), "no column 'slide_id' or 'path'"),
    ("tcga: an empty id", lambda p: table(p, TCGA_CSV + ",y\n"), "neither slide_id nor path"),
    ("tcga: a split of another word", lambda p: tcga(p, "split", "learn", "learn", "test"), "train, val or test"),
    ("tcga: an mpp that is text", lambda p: tcga(p, "mpp", "40x", "1", "1"), "a positive number"),
]


@pytest.mark.parametrize(("read", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_table_is_one_line(read: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_ten_broken_variants_of_each_of_six_formats_are_tried() -> None:
    formats = [case[0].partition(":")[0] for case in BROKEN]
    assert all(formats.count(name) >= 10 for name in ("pb", "moozy", "stamp", "bag", "clam", "tcga"))
