"""`longvit init COHORT.csv`"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import AsJson, CohortOptions, Device, echo
from longvit.errors import InputError
from longvit.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from longvit.proposal.propose import Proposal

_COLUMNS = "^(?!(task|n_bins|bins|alpha)$)"


def init(
    cohort: Annotated[
        Path,
        Parameter(help="CSV with a row per slide, as `longvit train` reads it: slide_id or path, and the label."),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="File for the settings.")] = Path("longvit.yaml"),
    force: Annotated[bool, Parameter(negative="", help="Replace the file if it exists.")] = False,
    task: Annotated[
        str | None,
        Parameter(
            help="Task: subtyping, survival, regression, ordinal or multilabel. Default: by the columns of the table.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[TaskSettings, Parameter(name="*", parse=_COLUMNS)] = TaskSettings(),
    cohort_options: Annotated[CohortOptions, Parameter(name="*")] = CohortOptions(),
    allow_missing: Annotated[
        bool, Parameter(negative="", help="Leave out slides without a file, as `longvit train --allow-missing`.")
    ] = False,
    slides: Annotated[int, Parameter(help="Slides that are opened, spread over the table.")] = 5,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Propose the settings of a first training, as a commented YAML file, and print the next commands.

    Reads the cohort table as `longvit train` does. Opens a few slides for their size and resolution, and reads one of
    them. Computes the memory as `longvit plan` does, and times a few training steps on this machine. The file has a
    reason for every line. `longvit train COHORT.csv --recipe longvit.yaml` accepts it without an edit. Exit code 1 if
    a slide cannot be read; it is named, and the file is written from the others.

    **Examples**

    ```
    longvit init cohort.csv
    longvit init cohort.csv --slides-dir /data/slides --out runs/first.yaml
    longvit init outcomes.csv --task survival
    longvit init cohort.csv --task multilabel --label-columns MSI=MSI-H BRAF KRAS --force
    longvit init cohort.csv --json > init.json
    ```
    """
    from longvit.files import write_text
    from longvit.proposal.propose import propose
    from longvit.proposal.recipe_text import as_json as proposal_json
    from longvit.proposal.recipe_text import recipe_text

    if slides < 1:
        raise InputError(f"--slides {slides}: at least 1")
    if out.exists() and not force:
        raise InputError(f"{out}: exists; give --force to replace it, or another --out")
    settings, why = _task(cohort, task, columns, cohort_options)
    is_detected_number = task is None and settings.task == "regression"  # its column is now in label_columns
    options = replace(cohort_options, label_column="label") if is_detected_number else cohort_options
    table = options.read(cohort, settings.task, need_files=not allow_missing, allow_leak=False)
    for note in table.notes:
        echo(note)
    proposal = propose(table, settings, slides=slides, device=device)
    keys = _table_keys(options, allow_missing)
    single, cross = _trainings(cohort, out, proposal.runs.folds)
    meanings = {shlex.join(single): "one split"} | ({shlex.join(cross): "cross-validation"} if cross else {})
    write_text(out, recipe_text(proposal, meanings, keys, why))
    commands = _commands(cohort, cross or single, options.slides_dir, [row.path for row in table.rows])
    for slide_id, error in proposal.sample.unreadable.items():
        echo(f"cannot be read: {slide_id}: {error}")
    if as_json:
        found = {"recipe": str(out), **proposal_json(proposal, keys, why), "commands": list(map(shlex.join, commands))}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_summary(proposal, out, commands, why)))
    return 1 if proposal.sample.unreadable else 0


def _task(cohort: Path, task: str | None, columns: TaskSettings, options: CohortOptions) -> tuple[TaskSettings, str]:
    """Task settings and the reason of the task: named by the user, or by the columns."""
    if task is not None:
        return replace(columns, task=task), "as given with --task"
    from longvit.proposal.task_of_table import task_of_table

    return task_of_table(cohort, options.label_column, columns, options.clini)


def _table_keys(options: CohortOptions, allow_missing: bool) -> dict[str, tuple[Any, str]]:
    """Options of the cohort table that are not at their default, with reasons."""
    keys: dict[str, tuple[Any, str]] = {}
    if options.label_column != "label":
        keys["label_column"] = (options.label_column, "Column with the class, as given.")
    if options.keep:
        keys["keep"] = (list(options.keep), "Classes that are used, in this order, as given.")
    if options.slides_dir is not None:
        keys["slides_dir"] = (str(options.slides_dir), "Folder of the slides, as given: relative to where train runs.")
    if options.clini is not None:
        keys["clini"] = (str(options.clini), "Table of the patients, as given: relative to where train runs.")
    if allow_missing:
        keys["allow_missing"] = (True, "Slides without a file are left out, as given.")
    return keys


def _trainings(cohort: Path, recipe: Path, folds: str | None) -> tuple[list[str], list[str]]:
    """The command of a training on one split, and that of a cross-validation (empty without folds)."""
    train = ["longvit", "train", str(cohort), "--recipe", str(recipe)]
    single = [*train, "--out", _free("runs/first")]
    return single, [*train, "--folds", folds, "--out", _free("runs/cv")] if folds is not None else []


def _free(run: str) -> str:
    """The folder, or with a number where it exists: train refuses the folder of a run with other settings."""
    free, number = run, 2
    while Path(free).exists():
        free, number = f"{run}-{number}", number + 1
    return free


def _commands(cohort: Path, train: list[str], slides_dir: Path | None, slides: Sequence[Path]) -> list[list[str]]:
    """The next three commands: check every slide, train, view."""
    places = ["--slides-dir", str(slides_dir)] if slides_dir is not None else []
    check = ["longvit", "doctor", *_slide_list(cohort, slides_dir, slides), "--out", "qc"]
    return [check, train, ["longvit", "view", train[-1], *places]]


def _slide_list(cohort: Path, slides_dir: Path | None, slides: Sequence[Path]) -> list[str]:
    """Arguments of `longvit doctor`: the cohort table, or the folder of the slides where it is read by train alone."""
    from longvit.data.slide_list import find_slides

    try:
        found = find_slides([cohort], slides_dir=slides_dir, note=lambda _: None)
        if {slide.path for slide in found} >= {path for path in slides if path.exists()}:
            return [str(cohort), *(["--slides-dir", str(slides_dir)] if slides_dir is not None else [])]
    except InputError:  # a table of another project
        pass
    return [os.path.commonpath([path.parent for path in slides]) or "."]


def _summary(proposal: Proposal, out: Path, commands: list[list[str]], why: str) -> list[str]:
    from longvit.proposal.recipe_text import folds_line, memory_line, slides_line, time_line

    s, um = proposal.settings, proposal.um_per_px
    side = f"{s.side_px:,} × {s.side_px:,} px" + ("" if um is None else f", {um:.3g} µm per px")
    rows = [
        ("cohort", proposal.cohort.summary()),
        ("task", f"{s.task}: {why}"),
        ("slides", slides_line(proposal)),
        ("model", s.model + ("" if s.weights is None else f", from {s.weights}")),
        ("canvas", side),
        ("folds", folds_line(proposal)),
        ("memory", memory_line(proposal)),
        ("time", time_line(proposal)),
        ("settings", str(out)),
    ]
    return [*(f"{name:<9} {text}" for name, text in rows), "", "next:", *(f"  {shlex.join(c)}" for c in commands)]
