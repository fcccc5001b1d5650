"""Tables that want too much memory or time, and tables as programs write them: one line, or what stands in them."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from longvit.cli import main
from longvit.comparison.omics import read_omics
from longvit.data import table as tables
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import read_folds
from longvit.data.slide_list import find_slides
from longvit.data.table import number, read_table, records
from longvit.errors import InputError
from longvit.finetuning.evaluate import evaluate

Read = Callable[[Path], object]
READERS: dict[str, Read] = {
    "a cohort": lambda path: read_cohort(path, need_files=False),
    "folds": lambda path: read_folds([path]),
    "predictions": evaluate,
    "omics": read_omics,
    "signatures": lambda path: read_omics(_omics(path.parent), path),
}
TEXT = "slide_id,label\na,x\nb,y\n"
MEGABYTE = 2**20


def _omics(folder: Path) -> Path:
    path = folder / "genes.csv"
    path.write_text("case_id,A_cnv\np,1\n")
    return path


def zipped(path: Path, chunk: bytes, chunks: int, head: bytes = TEXT.encode()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("t.csv", "w") as member:
        member.write(head)
        for _ in range(chunks):
            member.write(chunk)
    return path


def gzipped(path: Path, chunk: bytes, chunks: int) -> Path:
    with gzip.open(path, "wb", 1) as file:
        file.write(TEXT.encode())
        for _ in range(chunks):
            file.write(chunk)
    return path


def refusal(read: Read, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def written(folder: Path, data: bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# --- too much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_archive_that_unpacks_to_gigabytes_is_refused_in_bytes(read: Read, tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.csv.zip", b"\0" * MEGABYTE, 300)
    assert bomb.stat().st_size < MEGABYTE
    assert "unpacks to 314,572,823 bytes, and at most 268,435,456 are read from an archive" in refusal(read, bomb)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_archive_that_lies_about_its_size_is_read_to_the_limit(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", MEGABYTE)
    chunk = (b"a," + b"x" * 997 + b"\n") * 100
    gz = gzipped(tmp_path / "bomb.csv.gz", chunk, 30)  # a .gz does not say how large it is
    assert "unpacks to more than 1,048,576 bytes" in refusal(lambda path: list(records(path)), gz)
    with pytest.raises(InputError):
        read(gz)
    path = zipped(tmp_path / "bomb.csv.zip", chunk, 30)
    real = zipfile.ZipFile.getinfo

    def lies(self: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        info = real(self, name)
        monkeypatch.setattr(info, "file_size", 1000)
        return info

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", lies)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows.csv.zip", "more than 500,000 rows"),
        ("blank.csv.zip", "more than 2,000,000 lines"),
        ("line.csv.zip", r"more than 33,554,432 characters|cell of more than 131,072 characters"),
        ("quote.csv.zip", r"more than 131,072 characters; is a quote"),
        ("columns.csv", "two columns are called"),
    ],
)
def test_a_large_table_takes_less_than_a_gigabyte(name: str, words: str, tmp_path: Path) -> None:
    """In a process whose memory ends at 1 GB."""
    path = tmp_path / name
    if name == "columns.csv":
        path.write_text("slide_id,label" + ",c" * 10**6 + "\n")
    else:
        chunk = {
            "rows": b"a,b\n" * 2**18,
            "blank": b"\n" * MEGABYTE,
            "line": b"a" * MEGABYTE,
            "quote": b"a,x\n" * 2**18,
        }
        kind = name.split(".")[0]
        zipped(path, chunk[kind], 60, TEXT.encode() + b'"' * (kind == "quote"))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
        "from longvit.data.cohort_table import read_cohort\n"
        "from longvit.errors import InputError\n"
        "try: read_cohort(sys.argv[1], need_files=False)\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(words, done.stdout), done.stdout


def test_hundred_thousand_columns_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, b"slide_id,label," + b",".join(b"c%d" % i for i in range(10**5)) + b"\na,x\nb,y\n")
    assert len(read_cohort(path, need_files=False).rows) == 2
    assert len(refusal(lambda p: read_cohort(p, label_column="none there", need_files=False), path)) < 1000


def test_blank_cells_without_end_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELLS_READ", 10_000)
    path = written(tmp_path, TEXT.encode() + b",,,,,,,,,\n" * 2000)
    assert "more than 10,000 cells" in refusal(READERS["a cohort"], path)


def test_omics_of_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longvit.comparison.omics.MAX_VALUES", 10)
    path = written(tmp_path, b"case_id,A_cnv,B_cnv\n" + b"".join(b"p%dx,1,2\n" % i for i in range(6)))
    assert "more than 10 values" in refusal(read_omics, path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(read: Read, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", Path("/dev/zero")):
        assert "not a regular file (a pipe or device)" in refusal(read, path)
    folder = refusal(read, tmp_path)  # a cohort may be the folder of a task
    assert "cannot be read: Is a directory" in folder or "a folder with no table of slides in it" in folder
    assert "cannot be read: No such file" in refusal(read, tmp_path / "nothing.csv")


# --- as programs write them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;;", "\nsep=;"])
def test_the_line_that_excel_wants_first_is_understood(first: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{first}\r\nslide_id;label\r\na,1;x\r\nb;y\r\n".encode("utf-8-sig"))
    found = read_cohort(path, need_files=False)
    assert [row.slide_id for row in found.rows] == ["a,1", "b"]
    assert found.rows[0].line == first.count("\n") + 3


def test_any_delimiter_that_is_stated_is_taken(tmp_path: Path) -> None:
    for stated, delimiter in (("|", "|"), ("\\t", "\t"), ("\t", "\t"), (",", ",")):
        path = written(tmp_path, f"sep={stated}\nslide_id{delimiter}label\na{delimiter}x\nb{delimiter}y\n".encode())
        assert read_cohort(path, need_files=False).classes == ("x", "y")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_in_any_unicode_form_is_read(encoding: str, newline: str, tmp_path: Path) -> None:
    text = newline.join(["slide_id\tlabel", "Präparat 1\tx", "", "b\ty", ""])
    found = read_cohort(written(tmp_path, text.encode(encoding)), need_files=False)
    assert [row.slide_id for row in found.rows] == ["Präparat 1", "b"]
    assert [row.line for row in found.rows] == [2, 4]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("slide_id,label\na,x\nPräparat,y\n".encode("latin-1"), "line 3: a byte that is not UTF-8 text; save it as"),
        (TEXT.encode("utf-16")[2:], "not a text file; save the table as CSV"),
        (TEXT.encode("utf-16")[:-1], "not UTF-8 text|not a text file"),
        (b"PK\x03\x04\x00\x00", "not a text file"),
        (TEXT.encode() + b"c\0d,x\n", r"line 4: slide_id 'c\\x00d' has the control character U\+0000"),
        (TEXT.encode() * 9 + bytes(99), "not a text file"),
        (b'slide_id,label\na,"x\nb,y\nc,z\n', r'line 2: a quote \("\) is not closed'),
        (b'slide_id,label\na,x\n"b,y', r'line 3: a quote \("\) is not closed'),
        (b'slide_id,label\na,"' + b"x\n" * 100_000 + b'"\n', "line 2: not CSV: a cell of more than 131,072 characters"),
        (b'slide_id,label\na,"x\nb,y\nc,"z\n', "line 2: label 'x.nb,y.nc,z' has a line break; is a quote not closed"),
        (b"slide_id,label\na,x\n" + b"b,y,z\n", "line 3: 3 cells for 2 columns"),
    ],
)
def test_what_is_no_table_is_one_line_with_its_place(data: bytes, words: str, tmp_path: Path) -> None:
    assert re.search(words, refusal(READERS["a cohort"], written(tmp_path, data)))


def test_quotes_inside_quotes_and_cells_of_several_lines_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, b'slide_id,note,label\n"a","5"" needle, ""x""\nsecond line",x\nb,5" needle,y\n')
    _, rows = read_table(path)
    assert rows == [
        (2, {"slide_id": "a", "note": '5" needle, "x"\nsecond line', "label": "x"}),
        (4, {"slide_id": "b", "note": '5" needle', "label": "y"}),
    ]


def test_a_header_in_quotes_does_not_hide_the_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path, b'slide_id;label;"age, sex, site"\na;x;1\nb;y;2\n')
    assert read_table(path)[0] == ["slide_id", "label", "age,_sex,_site"]


def test_column_names_may_have_marks_that_nobody_sees(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff\ufeffslide_id,\u200blabel\u00a0\na,x\nb,y\n".encode())
    assert read_cohort(path, need_files=False).classes == ("x", "y")


@pytest.mark.parametrize("text", ["1_000", "0x10", "infinity", "nan", "", "1e999", "٣", "1 2"])
def test_only_what_is_written_as_a_number_is_one(text: str) -> None:
    assert number(text) is None


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.csv.zip", os.urandom(1000).hex().encode() + b"\n", 50)
    data = bytearray(path.read_bytes())
    data[600:700] = bytes(100)
    path.write_bytes(data)
    assert "not a readable zip file: " in refusal(lambda path: list(records(path)), path)
    path.write_bytes(gzip.compress(TEXT.encode())[:-6])
    assert "damaged: " in refusal(READERS["a cohort"], path.rename(tmp_path / "cut.csv.gz"))


def test_a_list_of_slides_is_read_with_the_same_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, b"sep=;\nslide_id;mpp\na;NA\nb;0.5\n", "list.csv")
    assert [(slide.slide_id, slide.mpp) for slide in find_slides([path])] == [("a", None), ("b", 0.5)]
    os.mkfifo(tmp_path / "pipe.csv")
    assert main(["embed", "no-model", str(tmp_path / "pipe.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "not a regular file" in capsys.readouterr().err
