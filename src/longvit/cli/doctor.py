"""`longvit doctor` and `longvit doctor SLIDES…`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import (
    AsJson,
    CpuWorkers,
    Reading,
    SlidesDir,
    WorkerSettings,
    echo,
    listed_slides,
    print_outcome,
)
from longvit.slide_jobs.reading import ReadSettings

if TYPE_CHECKING:
    from longvit.slide_jobs.run import RunSettings


def doctor(
    slides: Annotated[
        tuple[Path, ...],
        Parameter(
            help="Slides to check: files, folders (searched to any depth), globs in quotes, or a CSV with a column "
            "slide_id, path or wsi, and optionally mpp. Without slides, the installation is checked.",
            show_default=False,
        ),
    ] = (),
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the results of a check of slides.")] = Path("qc"),
    slides_dir: SlidesDir = None,
    as_json: AsJson = False,
    reading: Reading = ReadSettings(),
    workers: CpuWorkers = WorkerSettings(),
) -> int:
    """Check the installation, with a self-test; with slides, check those.

    **Installation:** lists versions, devices, attention back ends and the reason for the choice, readers and their
    formats, free disk. The self-test runs a small model and dilated attention on the chosen device and compares the
    outputs with stored numbers. It takes about two seconds. Exit code 1 if a check fails.

    **Slides:** does each one open, with which reader, size and resolution; how much tissue; focus, folds, bubbles, pen
    marks, unreadable tiles. Writes `OUT/qc.csv`, `OUT/qc.html` with the 20 worst slides (open it in a browser), and a
    thumbnail of each slide in `OUT/slides`. Slides that were checked before are skipped. Run `longvit status OUT` in
    another terminal to see progress. Exit code 1 if a slide fails; `--exclude-qc OUT/qc.csv` of train, predict and
    benchmark leaves those out.

    **Examples**

    ```
    longvit doctor
    longvit doctor --json > doctor.json
    longvit doctor slides/ --out qc
    longvit doctor cohort.csv --slides-dir /data/slides --out qc --workers 4
    longvit doctor "scans/*.svs" --json > qc.json
    ```
    """
    if slides:
        return _check_slides(slides, out, slides_dir, reading, workers, as_json=as_json)
    return _check_installation(as_json=as_json)


def _check_installation(*, as_json: bool) -> int:
    from longvit.doctor import examine

    findings = examine()
    wrong = [finding for finding in findings if finding.verdict == "wrong"]
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 1 if wrong else 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    section = ""
    for finding in findings:
        heading = finding.section if finding.section != section else ""
        section = finding.section
        style = {"ok": "green", "note": "yellow", "wrong": "bold red"}[finding.verdict]
        table.add_row(heading, Text(finding.verdict, style=style), finding.name, Text(finding.text))
    Console(highlight=False).print(table)
    print(f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} wrong" if wrong else "all is well")
    return 1 if wrong else 0


def _check_slides(
    slides: Sequence[Path],
    out: Path,
    slides_dir: Path | None,
    reading: ReadSettings,
    workers: RunSettings,
    *,
    as_json: bool,
) -> int:
    from longvit.data.qc_table import QC_CSV
    from longvit.files import make_folder
    from longvit.report.quality import quality_report
    from longvit.slide_jobs.quality import SLIDES, check_slides

    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result, rows = check_slides(listed, out, reading, workers)
    thumbnails = {record["slide_id"]: out / SLIDES / record["thumbnail"] for record in result.records}
    page = quality_report(rows, thumbnails, out)
    failed = sum(row["qc"] == "fail" for row in rows)
    if as_json:
        print(json.dumps({"ok": not failed, "slides": rows}, indent=1))
    else:
        print(_counts(rows))
        print(f"report: {page}")
    print_outcome(result, out, f"Quality: {out / QC_CSV}")
    if failed:
        echo(f"{failed} of {len(rows)} slides fail")
    return 1 if failed else 0


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """`pass 10, warn 2, fail 1`, and the slides that fail with their reasons."""
    lines = [", ".join(f"{grade} {sum(row['qc'] == grade for row in rows)}" for grade in ("pass", "warn", "fail"))]
    failed = [row for row in rows if row["qc"] == "fail"]
    lines += [f"  {row['slide_id']}: {row['reason']}" for row in failed[:20]]
    if len(failed) > 20:
        lines.append(f"  and {len(failed) - 20} more")
    return "\n".join(lines)
