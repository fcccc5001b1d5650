"""Clones of the published repositories, laid out as they are, from the reference material."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

from tests.conftest import shared

from longvit.reproduce.cells import HIPT, MCAT, PROTOCOLS, Repository


def hipt_checkout(folder: Path) -> Path:
    """A clone of HIPT with the protocols of table 1."""
    for (table, _), protocol in PROTOCOLS.items():
        if table == 1:
            name = Path(protocol.folds).name
            copy(shared(f"data/hipt/labels/{Path(protocol.table).name}"), folder / protocol.table)
            copy(shared(f"data/hipt/splits/{name}"), folder / protocol.folds)
    return with_commit(folder, HIPT)


def mcat_checkout(folder: Path) -> Path:
    """A clone of MCAT; its BRCA table, which the reference material lacks, is made of the published predictions."""
    for (table, cohort), protocol in PROTOCOLS.items():
        if table == 2:
            copy(shared(f"data/mcat/splits/tcga_{cohort}"), folder / protocol.folds)
            assert protocol.signatures
            copy(shared("data/mcat/clinical/signatures.csv"), folder / protocol.signatures)
            if cohort == "brca":
                write_brca_table(folder / protocol.table)
            else:
                copy(shared(f"data/mcat/clinical/{Path(protocol.table).name}"), folder / protocol.table)
    return with_commit(folder, MCAT)


def write_brca_table(path: Path) -> None:
    """Times and events of the published predictions, and the first slide of each patient, named DX1."""
    import io
    import zipfile

    outcomes = {}
    with gzip.open(shared("data/mcat/published_survival_predictions.csv.gz"), "rt") as file:
        for row in csv.DictReader(file):
            if row["cohort"] == "brca":
                outcomes[row["case_id"]] = row["survival_months"], row["censorship"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["case_id", "slide_id", "survival_months", "censorship", "TP53_mut", "TP53_cnv", "TP53_rnaseq"])
    for case, outcome in sorted(outcomes.items()):
        writer.writerow([case, f"{case}-01Z-00-DX1.svs", *outcome, 0, 0, 0.5])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, text.getvalue())


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def with_commit(folder: Path, repository: Repository) -> Path:
    git = folder / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text(f"{repository.commit}\n")
    return folder
