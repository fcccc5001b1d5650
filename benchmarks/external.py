"""External validation as a user runs it: fields of colon split by source into A and B, both directions, seconds.

    python benchmarks/external.py [--save] [--quick] [--out FOLDER]

Cohort A has the fields of six sources, B those of four others. Three commands: `longvit train A`; then `longvit predict
RUN B` and the same with `--back`, whose canvases are cached (a first, unmeasured call of `predict` makes those of B).
Every metric of both pages is computed again from the tables by scikit-learn; the largest difference is a row.
Needs ../shared/slides/colon beside the project.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import HERE, report

COLON = HERE.parents[1] / "shared" / "slides" / "colon"
SITES_OF_A = ("a0", "a1", "a3", "h0", "h1", "h3")
COLUMNS = ("case_id", "slide_id", "label", "site", "path")


def write_halves(folder: Path) -> tuple[Path, Path]:
    """a.csv and b.csv: the fields of the sources of A, and the others."""
    with (COLON / "cohort.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in ("a", "b"):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            for row in rows:
                if (row["site"] in SITES_OF_A) is (name == "a"):
                    writer.writerow(row | {"path": str(COLON / row["path"])})
    return folder / "a.csv", folder / "b.csv"


def longvit(*arguments: object) -> float:
    """Wall seconds of a command."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "longvit", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"longvit {arguments[0]} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def compared(folder: Path) -> dict[str, Any]:
    """Metrics of a page against scikit-learn: how many, and the largest difference."""
    from sklearn import metrics as sk

    stored = json.loads((folder / "metrics.json").read_text())
    second = stored["classes"][1]
    worst, n = 0.0, 0
    for level, name in (("slides", "predictions.csv"), ("patients", "patients.csv")):
        entries = stored["levels"][level]
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for system, values in entries["systems"].items():
            part = [row for row in rows if row["system"] == system]
            y = [int(row["label"] == second) for row in part]
            p = [float(row[f"prob_{second}"]) for row in part]
            called = [int(row["prediction"] == second) for row in part]
            expected = {
                "auc": sk.roc_auc_score(y, p),
                "average_precision": sk.average_precision_score(y, p),
                "balanced_accuracy": sk.balanced_accuracy_score(y, called),
                "accuracy": sk.accuracy_score(y, called),
                "f1": sk.f1_score(y, called),
            }
            differences = [abs(values[metric]["value"] - value) for metric, value in expected.items()]
            if system == "model":
                differences.append(abs(entries["calibration"]["brier"]["value"] - sk.brier_score_loss(y, p)))
                at = entries["threshold"]
                calls = [int(x >= at["value"]) for x in p]
                recall = sk.recall_score(y, calls, zero_division=0)
                differences.append(abs(at["at_prevalence_of_b"]["sensitivity"]["value"] - recall))
            worst, n = max(worst, *differences), n + len(differences)
    auc = stored["levels"]["slides"]["systems"]["model"]["auc"]
    return {"slides": stored["cohort_b"]["slides"], "auc": auc, "metrics": n, "largest_difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the runs, to be resumed; default: a temporary one")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="64 px, one epoch: does it run")
    args = parser.parse_args()
    if not COLON.is_dir():
        raise SystemExit("needs the reference material: slides/colon is not at ../shared")
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        a, b = write_halves(out)
        cache = ("--cache-dir", out / "canvases", "--device", "cpu")
        side, epochs = (64, 1) if args.quick else (224, 4)
        model = ("--model", "longvit_tiny_patch32", "--side-px", side, "--epochs", epochs, "--lr", "3e-4")
        bootstrap = ("--bootstrap", 20) if args.quick else ()
        train = ("train", a, "--out", out / "run", *model, *bootstrap, "--deletion-slides", 0, *cache)
        predict = ("predict", out / "run", b, *bootstrap, *cache)
        rows: list[dict[str, Any]] = [{"command": "train A", "seconds": round(longvit(*train), 1)}]
        if not args.quick:
            longvit(*predict, "--out", out / "first", "--bootstrap", 0)
        rows.append({"command": "predict B", "seconds": round(longvit(*predict, "--out", out / "there"), 1)})
        seconds = longvit(*predict, "--out", out / "both", "--back")
        rows.append({"command": "predict B --back", "seconds": round(seconds, 1)})
        for name, folder in (("A to B", out / "both"), ("B to A", out / "both" / "back")):
            rows.append({"direction": name, **compared(folder / "external")})
        report("external", rows, args.save and not args.quick)


if __name__ == "__main__":
    main()
