"""Two spellings of one patient, slide or class: refused by name wherever tables meet, never two, never one by guess."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import pytest
from tests.conftest import shared

from longvit.cli import main
from longvit.comparison.omics import OmicTable, read_omics
from longvit.data.bags import find_bags
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import match, read_folds
from longvit.data.identity import canonical, clashes, folded, read_classes
from longvit.errors import InputError
from longvit.finetuning.evaluate import evaluate
from longvit.pretraining.probes import read_probe

Captured = pytest.CaptureFixture[str]

# What a table program, a keyboard or a file system made of the first.
PAIRS = {
    "capitals": ("P01", "p01"),
    "leading zeros": ("001", "1"),
    "leading zeros behind a letter": ("P001", "P1"),
    "leading zeros behind a dot": ("P.01", "P.1"),
    "a column of floats": ("7", "7.0"),
    "floats and zeros": ("007", "7.00"),
    "a decimal comma": ("7", "7,0"),
    "an inner blank": ("P01", "P 01"),
    "a no-break space": ("P01", "P\u00a001"),
    "two blanks": ("A 1 2", "A 1  2"),
    "thousands": ("12345", "12 345"),
    "a zero-width space": ("P01", "P\u200b01"),
    "a byte order mark inside": ("P01", "P\ufeff01"),
    "a soft hyphen": ("P-01", "P-\u00ad01"),
    "full-width letters": ("P01", "Ｐ０１"),
    "digits of another script": ("12", "١٢"),
    "an en dash": ("A-7-1", "A\u20137\u20131"),
    "a non-breaking hyphen": ("A-B", "A\u2011B"),
    "a minus": ("A-B", "A\u2212B"),
    "an underscore": ("A-B", "A_B"),
    "a blank for an underscore": ("Patient_A", "Patient A"),
    "a trailing dot": ("P01", "P01."),
    "an apostrophe before": ("0012", "'0012"),
    "a Cyrillic letter": ("P01", "\u042001"),
    "quotes around": ("P01", '"P01"'),
    "another apostrophe": ("O'Neil", "O\u2019Neil"),
    "a blank before a bracket": ("P1(2)", "P1 (2)"),
    "a ligature": ("fine", "ﬁne"),
    "German capitals": ("straße", "STRASSE"),
}
SNN = ("--task", "survival", "--systems", "snn")
DIFFERENT = [
    ("12.1", "12.10"),
    ("12.1", "12.01"),
    ("s.1", "s.2"),
    ("1-11", "11-1"),
    ("1 11", "11 1"),
    ("1 11", "111"),
    ("1-11", "111"),
    ("P1", "P1 2"),
    ("P12", "P1 2"),
    ("ER+", "ER-"),
    ("P10", "P100"),
    ("P01", "P0l"),
    ("1E3", "10E2"),
    ("a[1]", "a(1)"),
    ("a'b", 'a"b'),
    ("a<b>", "ab"),
    ("CD3", "CD3-"),
    ("TCGA-A1-A0SB-01Z-00-DX1.07AE0E16", "TCGA-A1-A0SB-01Z-00-DX2.07AE0E16"),
]


def table(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def cohort(folder: Path, cases: tuple[str, ...], slides: tuple[str, ...] = ()) -> Path:
    """Twelve slides, two of each patient; `cases` and `slides` replace the first ones; empty files stand for slides."""
    rows = []
    for i in range(12):
        name = slides[i] if i < len(slides) else f"slide{i}x"
        case = cases[i] if i < len(cases) else f"patient{i // 2}x"
        (folder / f"f{i}.tif").touch()
        rows.append((name, case, "ab"[i // 2 % 2], f"f{i}.tif", 10 + i // 2, i // 4 % 2))
    return table(folder / "cohort.csv", "slide_id,case_id,label,path,survival_months,event", rows)


def refused(capsys: Captured, *arguments: object) -> str:
    """What a command that cannot use its input says in one line, behind what it said of the cohort before."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *_, line = err.splitlines()
    assert line.startswith("longvit: ")
    return line


def assert_both_named(text: str, one: str, other: str, *lines: int) -> None:
    assert "differ in spelling only" in text
    for name in (one, other):
        assert repr(name).replace("  ", "␣␣") in text
        assert name.isascii() or ascii(name)[1:-1] in text  # two that look the same can be told apart
    for line in lines:
        assert f"line {line}" in text
    assert "write one spelling" in text


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_a_patient_in_two_spellings_never_passes_a_command(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    path = cohort(tmp_path, (one, other))
    for arguments in (
        ("cohort", "check", path),
        ("cohort", "check", path, "--task", "survival"),
        ("cohort", "split", path, "--k", 3, "--out", tmp_path / "folds"),
        ("train", path, "--out", tmp_path / "run"),
        ("train", path, "--folds", 3, "--out", tmp_path / "run"),
        ("benchmark", path, "--features", tmp_path, "--folds", 3, "--out", tmp_path / "compared"),
    ):
        assert_both_named(refused(capsys, *arguments), one, other, 2, 3)
    assert not (tmp_path / "folds").exists()


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_a_slide_in_two_spellings_is_refused_in_cohorts_and_lists(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    path = cohort(tmp_path, (), (one, other))
    for arguments in (
        ("cohort", "check", path),
        ("train", path, "--out", tmp_path / "run"),
        ("predict", "no-model", path, "--out", tmp_path / "predicted"),
        ("embed", "no-model", path, "--out", tmp_path / "embedded"),
    ):
        assert_both_named(refused(capsys, *arguments), one, other, 2, 3)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_folds_that_spell_a_slide_or_a_patient_otherwise_are_refused(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    """Otherwise it drops out of its side of the fold, and its patient may stand on the other."""
    for of_slides in (True, False):
        path = cohort(tmp_path, () if of_slides else (one, one), (one,) if of_slides else ())
        known = read_cohort(path)
        ids = list(dict.fromkeys(row.slide_id if of_slides else row.case_id for row in known.rows))
        folds = tmp_path / "folds"
        folds.mkdir(exist_ok=True)
        columns = [[other, *ids[3:]], [ids[1]], [ids[2]]]
        rows = [(i, *(c[i] if i < len(c) else "" for c in columns)) for i in range(len(columns[0]))]
        table(folds / "splits_0.csv", ",train,val,test", rows)
        omics = _omics(tmp_path, known_cases(path))
        for arguments in (
            ("cohort", "check", path, "--folds", folds),
            ("cohort", "split", path, "--patient-disjoint", folds, "--out", tmp_path / "new"),
            ("train", path, "--folds", folds, "--out", tmp_path / "run"),
            ("benchmark", path, "--omics", omics, "--folds", folds, "--out", tmp_path / "c", *SNN),
        ):
            assert_both_named(refused(capsys, *arguments), one, other, 2)


def known_cases(path: Path) -> list[str]:
    return list(dict.fromkeys(row.case_id for row in read_cohort(path).rows))


def _omics(folder: Path, cases: list[str]) -> Path:
    return table(folder / "omics.csv", "case_id,AAA_cnv", [(case, i) for i, case in enumerate(cases)])


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_omics_that_spell_a_patient_otherwise_are_refused(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    path = cohort(tmp_path, (one, one))
    omics = _omics(tmp_path, [other, *known_cases(path)[1:]])
    settings = (*SNN, "--folds", 3, "--out", tmp_path / "compared")
    assert_both_named(refused(capsys, "benchmark", path, "--omics", omics, *settings), one, other, 2)
    with pytest.raises(InputError) as caught:
        read_omics(_omics(tmp_path, [one, other]))
    assert_both_named(str(caught.value), one, other, 2, 3)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_predictions_that_spell_a_patient_or_slide_in_two_ways_are_refused(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    for column in ("case_id", "slide_id"):
        rows = [(name, i % 2, 0.5, 0.5) for i, name in enumerate((one, other, "x", "y"))]
        path = table(tmp_path / "predictions.csv", f"{column},label,prob_0,prob_1", rows)
        assert_both_named(refused(capsys, "evaluate", path), one, other, 2, 3)
        rows = [(name, i, 5 + i, 1) for i, name in enumerate((one, other, "x", "y"))]
        path = table(tmp_path / "predictions.csv", f"{column},risk,months,event", rows)
        assert_both_named(refused(capsys, "evaluate", path), one, other, 2, 3)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_a_class_in_two_spellings_is_refused_but_for_numbers(
    one: str, other: str, tmp_path: Path, capsys: Captured
) -> None:
    rows = [(f"s{i}x", (one, other, "third class")[i % 3]) for i in range(12)]
    path = table(tmp_path / "cohort.csv", "slide_id,label", rows)
    if one in ("7", "007", "001"):  # 7 and 7.0 are one number
        found = read_cohort(path, need_files=False)
        assert found.classes == (one.lstrip("0"), "third class")
        return
    named = (one, other) if one != "0012" else ("12", other)
    assert_both_named(refused(capsys, "cohort", "check", path), *named, 2, 3)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_ids_that_differ_in_more_than_spelling_are_two(one: str, other: str) -> None:
    assert clashes([one, other]) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Präparat", unicodedata.normalize("NFD", "Präparat")),
        ("P01", "P01 "),
        ("P01", "\u00a0P01\u2003"),
        ("P01", "\ufeffP01"),
    ],
)
def test_the_same_text_in_another_unicode_form_or_with_outer_blanks_is_the_same_id(
    one: str, other: str, tmp_path: Path
) -> None:
    assert canonical(one) == canonical(other)
    path = cohort(tmp_path, (one, other))
    assert read_cohort(path).rows[1].case_id == one
    (tmp_path / f"{canonical(other)}.h5").touch()
    assert set(find_bags(tmp_path, [one]).paths) == {one}


def test_a_decomposed_file_of_features_is_found_by_a_composed_id(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Präparat")
    (tmp_path / f"{decomposed}.h5").touch()
    assert find_bags(tmp_path, ["Präparat"]).paths["Präparat"].name == f"{decomposed}.h5"


def test_features_that_differ_in_spelling_are_a_hint_never_an_answer(tmp_path: Path) -> None:
    for name in ("001.h5", "x.h5"):
        (tmp_path / name).touch()
    found = find_bags(tmp_path, ["1.0", "x", "y"])
    assert (set(found.paths), found.missing, found.near) == ({"x"}, ("1.0", "y"), {"1.0": "001.h5"})


def test_ids_that_are_all_written_as_floats_are_accepted(tmp_path: Path) -> None:
    path = cohort(tmp_path, tuple(f"{i // 2}.0" for i in range(12)))
    assert len({row.case_id for row in read_cohort(path).rows}) == 6


def test_folds_may_have_patients_in_one_column_and_slides_of_the_same_numbers_in_another(tmp_path: Path) -> None:
    path = cohort(tmp_path, tuple(str(i // 2) for i in range(12)), tuple(f"{100 + i}" for i in range(12)))
    folds = table(tmp_path / "splits_0.csv", ",train,test", [(0, "0", "0104"), (1, "1", "")])
    with pytest.raises(InputError, match=r"'0104' and slide '104'"):
        match(read_cohort(path), read_folds(folds)[0])
    folds = table(tmp_path / "splits_0.csv", ",train,test", [(0, "0", "104"), (1, "1", "")])
    assert match(read_cohort(path), read_folds(folds)[0]).rows == {"train": (0, 1, 2, 3), "val": (), "test": (4,)}


def test_a_slide_without_a_label_is_not_taken_for_the_patient_of_that_number(tmp_path: Path) -> None:
    path = cohort(tmp_path, tuple(f"{i // 2:03d}" for i in range(12)), tuple(f"{100 + i}" for i in range(12)))
    folds = table(tmp_path / "splits_0.csv", ",train,test", [(0, "100", "104"), (1, "2", "")])
    assert match(read_cohort(path), read_folds(folds)[0]).unknown["train"] == ("2",)
    folds = table(tmp_path / "splits_0.csv", ",train,test", [(0, "000", "2"), (1, "001", "")])
    with pytest.raises(InputError, match=r"line 2: id '2' and patient '002'"):
        match(read_cohort(path), read_folds(folds)[0])


def test_two_manifests_that_spell_a_slide_otherwise_do_not_agree_on_nothing(tmp_path: Path, capsys: Captured) -> None:
    one = table(tmp_path / "one.csv", "slide_id,label", [("001", "a"), ("002", "b"), ("003", "b")])
    other = table(tmp_path / "other.csv", "slide_id,label", [("1", "b"), ("2", "b"), ("5", "a")])
    assert_both_named(refused(capsys, "cohort", "check", one, "--other", other), "001", "1", 2)


def test_a_hospital_in_two_spellings_is_refused_where_sites_matter(tmp_path: Path, capsys: Captured) -> None:
    rows = [(f"s{i}x", "ab"[i % 2], ("Ulm", "ULM", "Bonn", "Kiel")[i % 4]) for i in range(16)]
    path = table(tmp_path / "cohort.csv", "slide_id,label,site", rows)
    assert main(["cohort", "check", str(path)]) == 0
    text = refused(capsys, "cohort", "split", path, "--by-site", "--k", 2, "--out", tmp_path / "folds")
    assert_both_named(text, "Ulm", "ULM", 2, 3)


def test_folds_of_a_column_of_floats_are_the_same_folds(tmp_path: Path) -> None:
    rows = [(f"s{i}x", "ab"[i % 2], f"{i % 4 // 2}{'.0' * (i % 2)}") for i in range(12)]
    found = read_cohort(table(tmp_path / "cohort.csv", "slide_id,label,fold", rows), need_files=False)
    assert {row.fold for row in found.rows} == {"0", "1"}


# --- nobody -----------------------------------------------------------------------------------------------------------


def predictions(path: Path, cases: list[str] | None) -> Path:
    rows = [(f"s{i}", i % 2, f"{(i * 7 % 10) / 10:.1f}", f"{1 - (i * 7 % 10) / 10:.1f}") for i in range(40)]
    if cases is None:
        return table(path, "slide_id,label,prob_0,prob_1", list(rows))
    return table(path, "case_id,slide_id,label,prob_0,prob_1", [(c, *r) for c, r in zip(cases, rows, strict=True)])


def test_rows_without_case_id_are_never_one_patient(tmp_path: Path) -> None:
    """As one patient, forty slides gave an interval of width zero."""
    without = evaluate(predictions(tmp_path / "without.csv", None), resamples=50)
    for empty in ("", "nan", "NaN", "<NA>", "\u00a0"):
        blank = evaluate(predictions(tmp_path / "blank.csv", [empty] * 40), resamples=50)
        assert blank.groups[0].metrics == without.groups[0].metrics
        assert blank.groups[0].patients == 40
        assert "40 rows without case_id: each counts as a separate patient" in blank.notes
    some = evaluate(predictions(tmp_path / "some.csv", ["", "", "", *["p"] * 37]), resamples=50)
    assert some.groups[0].patients == 4


def test_survival_rows_without_case_id_are_never_one_patient(tmp_path: Path) -> None:
    rows = [("" if i < 3 else f"P{i}x", f"s{i}", -i, 5 + i, i % 2) for i in range(20)]
    found = evaluate(table(tmp_path / "p.csv", "case_id,slide_id,risk,survival_months,event", rows), resamples=20)
    assert (found.groups[0].patients, found.groups[0].events) == (20, 10)
    rows = [("", f"s{i % 19}", -i, 5 + i, i % 2) for i in range(20)]  # s0 stands there twice
    with pytest.raises(InputError, match=r"slide s0 has rows with different times or events \(line 2: 5.*line 21: 24"):
        evaluate(table(tmp_path / "p.csv", "case_id,slide_id,risk,survival_months,event", rows))


def test_a_patient_with_two_outcomes_is_named_with_the_lines(tmp_path: Path) -> None:
    rows = [("a", 1, 5, 1), ("b", 2, 6, 1), ("a", 1, 7, 1)]
    with pytest.raises(InputError, match=r"patient a has rows with different times.*\(line 2: 5, event 1; line 4: 7"):
        evaluate(table(tmp_path / "p.csv", "case_id,risk,months,event", rows))


def test_a_cohort_counts_rows_without_case_id_one_by_one(tmp_path: Path) -> None:
    for empty in ("", "nan", "\u00a0"):
        found = read_cohort(cohort(tmp_path, (empty,) * 4))
        assert len({row.case_id for row in found.rows}) == 8
        assert any("4 rows without case_id: each counts as a separate patient" in note for note in found.notes)
    with pytest.raises(InputError, match="line 2: slide P7 has no case_id, and line 4 has the patient P7; fill in"):
        read_cohort(cohort(tmp_path, ("", "q", "P7"), ("P7",)))


@pytest.mark.parametrize("word", ["NA", "none", "None", "null", "N/A"])
def test_a_word_that_may_be_a_patient_or_nobody_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"line 2: case_id is '{word}': a name, or a missing value"):
        read_cohort(cohort(tmp_path, (word, word)))


def test_omics_of_nobody_are_left_out_with_a_note_and_contradictions_are_refused(tmp_path: Path) -> None:
    rows = [("a", 1, "NA"), ("", 2, 2), ("a", 1, ""), ("007", 3, 4)]
    found = read_omics(table(tmp_path / "o.csv", "case_id,A_cnv,B_cnv", rows))
    assert list(found.of_case) == ["a", "007"]
    assert found.notes == (f"{tmp_path / 'o.csv'}: 1 rows without case_id are left out",)
    with pytest.raises(InputError, match="line 3: patient a has other values than on line 2"):
        read_omics(table(tmp_path / "o.csv", "case_id,A_cnv", [("a", 1), ("a", 2)]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1.23457E+11", "a long number that a spreadsheet has rounded"),
        ("a\x1b[31m", r"has the control character U\+001B"),
        ("a\nb", "has a line break; is a quote not closed"),
    ],
)
def test_an_id_that_is_none_is_named(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_cohort(cohort(tmp_path, (name,)))
    with pytest.raises(InputError, match=words):
        read_cohort(cohort(tmp_path, (), (name,)))


# --- classes ----------------------------------------------------------------------------------------------------------


def labels(*cells: str, keep: tuple[str, ...] | None = None) -> tuple[list[str | None], str]:
    found = read_classes([(cell, f"line {i + 2}") for i, cell in enumerate(cells)], "label", "c.csv", keep)
    return list(found.names), " | ".join(found.notes)


def test_numbers_among_words_are_one_class() -> None:
    assert labels("1", "1.0", "01", "unknown", "0")[0] == ["1", "1", "1", "unknown", "0"]
    assert labels("100000", "1e+05", "1E5", "2")[0] == ["100000", "100000", "1E5", "2"]


@pytest.mark.parametrize("word", ["none", "None", "null", "NULL"])
def test_none_is_a_class_among_words_and_missing_among_numbers(word: str) -> None:
    names, notes = labels(word, "low", "high", word)
    assert names == [word, "low", "high", word]
    assert f"2 rows have the label {word!r}, which is read as a class" in notes
    assert "empty those cells, or name the classes: --keep high low" in notes
    names, notes = labels(word, "0", "1.0")
    assert names == [None, "0", "1"]
    assert f"1 rows have the label {word!r}, which means missing" in notes
    assert labels(word, "0", "1", keep=(word, "0"))[0] == [word, "0", "1"]


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "<NA>"])
def test_what_programs_write_for_an_empty_cell_is_missing_unless_it_is_kept(word: str) -> None:
    names, notes = labels(word, "low", "high", "")
    assert names == [None, "low", "high", None]
    assert f"1 rows have the label {word!r}, which means missing; if it is a class, name it in --keep" in notes
    assert labels(word, "low", "high", keep=(word, "low"))[0] == [word, "low", "high"]


def test_the_word_taken_for_missing_is_named_by_every_command(tmp_path: Path, capsys: Captured) -> None:
    rows = [(f"s{i}x", ("NA", "tumour")[i % 2]) for i in range(6)]
    path = table(tmp_path / "cohort.csv", "slide_id,label", rows)
    assert "every row has the label 'tumour' ('NA' means missing; --keep makes it a class)" in refused(
        capsys, "cohort", "check", path
    )
    assert "line 2 and 2 more: no label ('NA' means missing; --keep" in refused(
        capsys, "train", path, "--out", tmp_path / "r"
    )
    assert main(["cohort", "check", str(path), "--keep", "NA", "tumour"]) == 0
    assert "NA 3 of 3; tumour 3 of 3" in capsys.readouterr().out


def test_two_spellings_of_a_class_may_be_two_where_the_user_names_both() -> None:
    with pytest.raises(InputError, match=r"labels 'AA' \(line 2\) and 'Aa' \(line 3\) differ in spelling only"):
        labels("AA", "Aa", "AA")
    assert labels("AA", "Aa", keep=("AA", "Aa"))[0] == ["AA", "Aa"]
    with pytest.raises(InputError, match=r"'Tumour'.*'tumour'"):
        labels("Tumour", "tumour", "normal", keep=("tumour", "normal"))


def test_predictions_may_write_a_class_as_a_float_and_a_near_one_is_shown(tmp_path: Path) -> None:
    rows = [("1.0", 0.1, 0.9), ("0", 0.9, 0.1), ("1", 0.2, 0.8)]
    found = evaluate(table(tmp_path / "p.csv", "label,prob_0,prob_1.0", rows), resamples=0)
    assert found.groups[0].metrics["auc"].mean == 1
    with pytest.raises(InputError, match=r"label 'idc'.*'IDC' differs from it in spelling only"):
        evaluate(table(tmp_path / "p.csv", "label,prob_IDC,prob_ILC", [("idc", 1, 0)]))
    with pytest.raises(InputError, match="'prob_Tumour' and 'prob_tumour' differ in spelling only"):
        evaluate(table(tmp_path / "p.csv", "label,prob_Tumour,prob_tumour", [("tumour", 1, 0)]))


def test_predictions_of_one_split_in_two_spellings_are_no_two_groups(tmp_path: Path) -> None:
    rows = [("test", i % 2, 0.5, 0.5) for i in range(4)] + [("Test", i % 2, 0.5, 0.5) for i in range(4)]
    with pytest.raises(InputError, match=r"split 'test' \(line 2\) and 'Test' \(line 6\) differ in spelling only"):
        evaluate(table(tmp_path / "p.csv", "split,label,prob_0,prob_1", rows))


def test_labelled_regions_are_named_as_cohorts_are(tmp_path: Path) -> None:
    path = table(tmp_path / "probe.csv", "path,label,case_id", [("a.png", "x", "P1"), ("b.png", "y", "p1")])
    with pytest.raises(InputError, match=r"'P1' \(line 2\) and 'p1' \(line 3\)"):
        read_probe(path, 32)
    path = table(tmp_path / "probe.csv", "path,label", [("a.png", "Tumour"), ("b.png", "tumour")])
    with pytest.raises(InputError, match=r"'Tumour'.*'tumour'"):
        read_probe(path, 32)


def test_rows_without_a_time_or_event_drop_out_of_a_check_and_are_refused_in_training(
    tmp_path: Path, capsys: Captured
) -> None:
    rows = [(f"s{i}x", 5 + i, i % 2) for i in range(6)] + [("s6x", "NA", 1), ("s7x", 4, ""), ("s8x", "none", 0)]
    path = table(tmp_path / "cohort.csv", "slide_id,survival_months,event", rows)
    assert main(["cohort", "check", str(path), "--task", "survival"]) == 0
    assert "3 of 9 rows have no time or event and are left out: s6x, s7x, s8x" in capsys.readouterr().out
    text = refused(capsys, "train", path, "--task", "survival", "--out", tmp_path / "run", "--allow-missing")
    assert "line 8: slide s6x: survival_months is 'NA', which stands for none; fill it in or remove the row" in text


def test_a_formula_goes_through_as_it_is_and_is_noted(tmp_path: Path) -> None:
    found = read_cohort(cohort(tmp_path, ("=cmd|' !A0'!A1", "@SUM(1)")))
    assert found.rows[0].case_id == "=cmd|' !A0'!A1"
    assert any(
        "line 2: \"=cmd|' !A0'!A1\" is a formula for a spreadsheet (1 more such cells)" in n for n in found.notes
    )
    assert not any("formula" in n for n in read_cohort(cohort(tmp_path, ("-1", "+", "ER+", "HER2-", "<5"))).notes)


# --- no false alarm ---------------------------------------------------------------------------------------------------


def test_ids_as_they_are_given_in_the_field_do_not_clash() -> None:
    ids = [f"{p}-{b}{s}" for p in range(1, 30) for b in "ABC" for s in range(1, 12)]
    ids += [f"{p}.{s}" for p in range(1, 30) for s in range(1, 30)]
    ids += [f"S{p} {b} {s}" for p in range(1, 20) for b in range(1, 20) for s in range(1, 5)]
    ids += [f"H{year}-{n:05d}_{s}" for year in (19, 20) for n in range(1, 200) for s in range(1, 4)]
    ids += ["a[1]", "a(1)", "a#1", "a%201", "a<b>", "[bold]x", "x"]
    assert clashes(ids) == []
    assert len({folded(name) for name in ids}) == len(ids)


HIPT = ("brca", "lung", "kidney")


@pytest.mark.shared
@pytest.mark.parametrize("name", HIPT)
def test_no_false_alarm_on_the_published_subtyping_cohorts(name: str) -> None:
    path = shared(f"data/hipt/labels/tcga_{name}_subset.csv.zip")
    found = read_cohort(path, label_column="oncotree_code", need_files=False, need_labels=False, allow_leak=True)
    folds = read_folds(shared(f"data/hipt/splits/tcga_{name}"))
    assert [any(match(found, fold).rows.values()) for fold in folds] == [True] * 10
    assert not any("formula" in note or "taken for" in note for note in found.notes)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ucec", "luad"])
def test_no_false_alarm_on_the_published_survival_cohorts(name: str) -> None:
    path = shared(f"data/mcat/clinical/tcga_{name}_all_clean.csv.zip")
    found = read_cohort(path, label_column=None, need_files=False)
    folds = read_folds(shared(f"data/mcat/splits/tcga_{name}"))
    assert [any(match(found, fold).rows.values()) for fold in folds] == [True] * 5
    omics: OmicTable = read_omics(path, shared("data/mcat/clinical/signatures.csv"))
    assert {row.case_id for row in found.rows} <= set(omics.of_case)
    read_folds(shared("data/mcat/splits/tcga_brca"))


@pytest.mark.shared
def test_no_false_alarm_on_the_published_predictions(capsys: Captured) -> None:
    path = shared("data/mcat/published_survival_predictions.csv.gz")
    assert main(["evaluate", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["groups"]) > 20


@pytest.mark.shared
@pytest.mark.parametrize("name", ["colon", "oral-scc"])
def test_no_false_alarm_on_the_small_cohorts(name: str) -> None:
    assert len(read_cohort(shared(f"slides/{name}/cohort.csv"), need_files=False, allow_leak=True).rows) > 50
