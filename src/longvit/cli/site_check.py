"""`longvit site-check SOURCE --cohort COHORT.csv`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import AsJson, echo


def site_check(
    source: Annotated[
        Path,
        Parameter(help="embeddings.csv (or its folder), a CSV of predictions, or a folder of feature bags."),
    ],
    /,
    *,
    cohort: Annotated[Path, Parameter(help="CSV with slide_id, site, and where known case_id (the patient), label.")],
    label_column: Annotated[str, Parameter(help="Column of the CSV with the class.")] = "label",
    out: Annotated[Path | None, Parameter(help="Folder of the report.", show_default=False)] = None,
    permutations: Annotated[int, Parameter(help="Permutations of the sites; p cannot be below 1 / (1 + this).")] = 999,
    seed: Annotated[int, Parameter(help="Seed of permutations, folds and intervals.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Check whether embeddings or predictions show the hospital: a shortcut that fails at other hospitals.

    Predicts the column site from the vectors, by patient and against permuted sites, and compares sites with labels.
    Prints one sentence: whether a shortcut is likely. For embeddings also the robustness index, for predictions the
    metrics of each site. With `--out` writes `site_check.json`, `site_check.html` and `site_check.png`. A shortcut
    does not change the exit code.

    **Examples**

    ```
    longvit site-check embeddings/embeddings.csv --cohort cohort.csv
    longvit site-check runs/cv/predictions.csv --cohort cohort.csv --out site_check
    longvit site-check job/20x_256px_0px_overlap/features_uni2-h --cohort cohort.csv --json
    ```
    """
    from longvit.errors import InputError
    from longvit.sites.check import site_check as check_sites

    if not 199 <= permutations <= 100_000:
        raise InputError(f"--permutations {permutations}: from 199 to 100,000")
    check = check_sites(source, cohort, label_column=label_column, permutations=permutations, seed=seed)
    if out is not None:
        from longvit.files import make_folder, write_text
        from longvit.report.site_check import site_check_report

        make_folder(out)
        page = site_check_report(check, out)
        write_text(out / "site_check.json", json.dumps(check.as_json(), indent=1, ensure_ascii=False) + "\n")
    if as_json:
        print(json.dumps(check.as_json(), indent=1, ensure_ascii=False))
        return 0
    print(check.sentence)
    for one in check.predictions:
        print(
            f"site by {one.method:<7} {one.accuracy:.3f} [{one.low:.3f}, {one.high:.3f}], "
            f"chance {one.chance:.3f}, p {one.p:.3g}"
        )
    if check.association is not None:
        print(f"site and label  Cramér's V {check.association.v:.3f}, p {check.association.p:.3g}")
    if check.robustness is not None:
        print(f"robustness index {check.robustness.value:.3f} ({check.robustness.k} neighbours; 1: label, 0: site)")
    for site in check.sites:
        metrics = "".join(f", {name} {value:.3f}" for name, value in site.metrics.items())
        print(f"  {site.site}: {site.slides} slides of {site.patients} patients{metrics}")
    for note in check.notes:
        echo(note)
    if out is not None:
        echo(f"Report: {page}")
    return 0
