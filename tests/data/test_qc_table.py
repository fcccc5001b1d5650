"""qc.csv, as written and as edited by hand: what it excludes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvit.data.qc_table import SlideQuality, read_qc, without_failed, write_excluded
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError


def table(folder: Path, text: str) -> Path:
    path = folder / "qc.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_failed_slides_are_excluded_and_unknown_ones_stay(tmp_path: Path) -> None:
    path = table(tmp_path, "Slide ID;QC;reason\na.svs;fail;pen\nb;Warn;folds\nc;pass;\nz;fail;elsewhere\n")
    slides = [ListedSlide(name, Path(name)) for name in "abcd"]
    kept, excluded = without_failed(slides, read_qc(path))
    assert [slide.slide_id for slide in kept] == ["b", "c", "d"]
    assert excluded == (SlideQuality("a", "fail", "pen"),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("slide_id,reason\na,x\n", "no column qc"),
        ("slide_id,qc\na,bad\n", "line 2: qc 'bad' is not one of pass, warn, fail"),
        ("slide_id,qc\na,pass\na.svs,fail\n", "line 3: slide a has two rows"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        read_qc(table(tmp_path, text))


def test_excluded_csv_names_them_and_goes_when_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "excluded.csv"
    write_excluded(path, [SlideQuality("a", "fail", "pen on 40 % of the tissue")])
    assert path.read_text(encoding="utf-8").splitlines() == ["slide_id,qc,reason", "a,fail,pen on 40 % of the tissue"]
    write_excluded(path, [])
    assert not path.exists()
