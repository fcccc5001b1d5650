"""The site check: a planted shortcut is named, nothing else is; bad input is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.sites.made import made, write

from longvit.cli import main
from longvit.errors import InputError
from longvit.sites.check import site_check
from longvit.sites.samples import read_samples

CLEAN = {
    "neither": {"linked": False, "stained": False},
    "stain only": {"linked": False, "stained": True},
    "label only": {"linked": True, "stained": False},
}


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_shortcut_is_named(seed: int, tmp_path: Path) -> None:
    if seed % 2:  # site and label are the same
        data = made(seed, linked=True, stained=True, sites=("A", "B"), share=1.0)
    else:
        data = made(seed, linked=True, stained=True)
    cohort, table = write(tmp_path, data)
    check = site_check(table, cohort, permutations=199, seed=seed)
    assert check.shortcut, check.sentence
    assert check.within_label == (seed % 2 == 0)
    assert check.sentence.startswith("A shortcut is likely: the site predicts the label (balanced accuracy ")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", CLEAN)
def test_a_cohort_without_a_shortcut_raises_no_alarm(kind: str, seed: int, tmp_path: Path) -> None:
    cohort, table = write(tmp_path, made(seed, **CLEAN[kind]))
    check = site_check(table, cohort, permutations=199, seed=seed)
    assert not check.shortcut, check.sentence
    assert check.sentence.startswith("No shortcut found")


def test_a_prediction_that_follows_the_stain_is_named(tmp_path: Path) -> None:
    data = made(1, linked=True, stained=True, n=300)
    data.vectors[:, 0] = np.where(np.array(data.sites) == "B", 2, -2) + np.random.default_rng(0).normal(size=360)
    cohort, table = write(tmp_path, data, probabilities=True)
    check = site_check(table, cohort, permutations=199)
    assert check.kind == "predictions"
    assert check.shortcut, check.sentence
    assert "the prediction shows the site beyond the label" in check.sentence
    assert check.robustness is None
    assert {site.site for site in check.sites} == {"A", "B", "C"}
    assert all(set(site.metrics) == {"auc", "balanced_accuracy"} for site in check.sites)


def test_metrics_of_a_site_are_those_of_its_slides(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    data = made(2, linked=False, stained=False)
    cohort, table = write(tmp_path, data, probabilities=True)
    for site in site_check(table, cohort, permutations=199).sites:
        rows = np.array(data.sites) == site.site
        truth = (np.array(data.labels) == "tumour")[rows]
        assert site.slides == rows.sum()
        assert site.patients == len(set(np.array(data.patients)[rows]))
        assert site.labels == {"benign": (~truth).sum(), "tumour": truth.sum()}
        assert site.metrics["auc"] == pytest.approx(roc_auc_score(truth, data.vectors[rows, 0]), abs=1e-9)


def test_a_sample_is_a_patient_at_a_site(tmp_path: Path) -> None:
    data = made(0, linked=False, stained=False, n=20, width=3)
    cohort, table = write(tmp_path, data)
    samples = read_samples(table, cohort)
    assert samples.vectors.shape == (20, 3)
    np.testing.assert_allclose(samples.vectors[0], (data.vectors[0] + data.vectors[20]) / 2)
    assert read_samples(tmp_path, cohort).patients == samples.patients  # the folder of the table


def test_feature_bags_are_averaged(tmp_path: Path) -> None:
    data = made(0, linked=False, stained=False, n=20, width=4)
    cohort, _ = write(tmp_path, data)
    folder = tmp_path / "features_x"
    folder.mkdir()
    for i, vector in enumerate(data.vectors):
        with h5py.File(folder / f"s{i}.h5", "w") as file:
            file["features"] = np.stack([vector + 1, vector - 1]).astype(np.float32)
            file["coords"] = np.zeros((2, 2), np.int64)
    samples = read_samples(folder, cohort)
    assert samples.kind == "features"
    np.testing.assert_allclose(samples.vectors[1], data.vectors[1], atol=1e-6)


def test_only_test_rows_of_predictions_count(tmp_path: Path) -> None:
    cohort, table = write(tmp_path, made(0, linked=False, stained=False), probabilities=True)
    head, *lines = table.read_text().splitlines()
    rows = [f"{head},split", *(f"{line},test" for line in lines), *(f"{line},train" for line in lines)]
    table.write_text("\n".join(rows) + "\n")
    assert len(read_samples(table, cohort).slides) == len(lines)
    table.write_text("\n".join([head, *lines, lines[0]]) + "\n")
    with pytest.raises(InputError, match=r"predictions.csv, line 182: slide s0 is there twice; keep the rows of one"):
        read_samples(table, cohort)


def without_labels(cohort: Path) -> None:
    cohort.write_text("\n".join(",".join(np.delete(line.split(","), 2)) for line in cohort.read_text().splitlines()))


def test_without_labels_the_site_alone_is_judged(tmp_path: Path) -> None:
    cohort, table = write(tmp_path, made(0, linked=True, stained=True))
    without_labels(cohort)
    check = site_check(table, cohort, permutations=199)
    assert not check.shortcut
    assert check.sentence.startswith("The embedding shows the site (")
    assert check.sentence.endswith("Without labels nothing can be said about a shortcut.")
    assert any("no column label" in note for note in check.notes)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda text: text.replace("site", "hospital"),
            r"no column 'site' \(it has case_id, slide_id, label, hospital\)",
        ),
        (lambda text: text.replace(",A\n", ",\n"), r"has no site \(\d+ in total\); fill in the column site"),
        (lambda text: text.replace(",B\n", ",A\n").replace(",C\n", ",A\n"), r"1 site and 150 patients with a vector"),
        (
            lambda text: re.sub(r",s(\d)", r",t\1", text),
            r"no slide of .*cohort.csv in it; the column slide_id must agree",
        ),
    ],
)
def test_a_cohort_that_cannot_be_used_is_one_line(change: Callable[[str], str], line: str, tmp_path: Path) -> None:
    cohort, table = write(tmp_path, made(0, linked=False, stained=False))
    cohort.write_text(change(cohort.read_text()))
    with pytest.raises(InputError, match=line) as caught:
        site_check(table, cohort, permutations=199)
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    cohort, table = write(tmp_path, made(0, linked=False, stained=False, width=2))
    text = table.read_text()
    table.write_text(text.replace("\ns2,,", "\ns2,,nan,"))
    with pytest.raises(InputError, match=r"embeddings\.csv"):
        site_check(table, cohort)
    table.write_text(text.replace(",f0,f1", ",a,b"))
    with pytest.raises(
        InputError, match=r"embeddings.csv: needs columns slide_id, and f0, f1, … \(embeddings\), prob_"
    ):
        site_check(table, cohort)
    lines = text.splitlines()
    lines[3] = "s2,,x,1"
    table.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"embeddings.csv, line 4: f0 is 'x', not a finite number"):
        site_check(table, cohort)


def test_the_command_prints_the_sentence_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, table = write(tmp_path, made(0, linked=True, stained=True))
    out = tmp_path / "check"
    arguments = ["site-check", str(table), "--cohort", str(cohort), "--permutations", "199"]
    assert main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("A shortcut is likely: ")
    assert "site by linear" in text
    saved = json.loads((out / "site_check.json").read_text())
    assert saved["shortcut"] is True
    page = (out / "site_check.html").read_text()
    assert saved["sentence"].split("(`")[0].split("; test it")[0] in page
    assert (out / "site_check.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == saved
    assert main([*arguments[:-1], "10"]) == 2
    assert "--permutations 10: from 199 to 100,000" in capsys.readouterr().err


@pytest.mark.parametrize("linked", [True, False])
def test_a_cohort_whose_sites_predict_the_labels_has_a_note(
    linked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, _ = write(tmp_path, made(0, linked=linked, stained=False))
    main(["cohort", "check", str(cohort), "--no-contents"])
    note = "the site predicts the label (balanced accuracy 0.78, chance 0.50; Cramér's V 0.56)"
    assert (note in capsys.readouterr().err) == linked
    without_sites = cohort.read_text().replace(",A\n", ",\n")
    cohort.write_text(without_sites)
    main(["cohort", "check", str(cohort), "--no-contents"])
    assert "predicts the label" not in capsys.readouterr().err
