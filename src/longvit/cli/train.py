"""`longvit train COHORT.csv`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from longvit.cli.options import say
from longvit.tasks.settings import FinetuneSettings

_SETTINGS = Group("Settings (also keys of a recipe)", sort_key=1)


def train(
    cohort: Annotated[
        Path,
        Parameter(
            help="CSV with a row per slide: label, slide_id or path; optionally case_id (the patient), split, mpp."
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the run.")] = Path("run"),
    recipe: Annotated[
        str | None,
        Parameter(
            help="YAML file with settings, or the name of one that comes along: subtyping, tiny.", show_default=False
        ),
    ] = None,
    label_column: Annotated[str, Parameter(help="Which column of the CSV holds the class.")] = "label",
    slides_dir: Annotated[
        Path | None, Parameter(help="Where slides without a path lie, if not beside the CSV.", show_default=False)
    ] = None,
    settings: Annotated[FinetuneSettings, Parameter(name="*", group=_SETTINGS)] = FinetuneSettings(),  # noqa: B008
) -> int:
    """Fine-tune on slides and a CSV of labels.

    Writes `OUT/index.html` (open it in a browser), predictions, metrics, pictures, and the model in `OUT/model`.
    Settings come from the defaults (the paper's), then from --recipe, then from the command line. Given again, the
    same command goes on where it was interrupted. A slide that cannot be read costs one row of `OUT/problems.csv` and
    exit code 1, not the run.

    **Examples**

    ```
    longvit train cohort.csv --out runs/first
    longvit train cohort.csv --recipe subtyping --side-px 4096 --lr 1e-4
    longvit train labels.csv --label-column subtype --slides-dir /data/slides --weights longvit-s
    ```
    """
    from longvit.data.cohort import read_cohort
    from longvit.device import pick_device
    from longvit.files import make_folder
    from longvit.report import finetune_report
    from longvit.tasks.finetune import finetune
    from longvit.tasks.task import task_class

    make_folder(out)
    pick_device(settings.device)  # before any slide is touched
    has_classes = task_class(settings.task).has_classes
    manifest = read_cohort(
        cohort,
        label_column=label_column if has_classes else None,
        slides_dir=slides_dir,
        allow_leak=settings.allow_leak,
    )
    for line in (manifest.summary(), *manifest.notes):
        say(line)
    result = finetune(manifest, settings, out)
    if result.was_finished:
        say(f"{out}: finished before with these settings; nothing was computed")
    report = finetune_report(result, manifest, settings)
    print(result.summary())
    print(f"report: {report}")
    if left_out := [problem for problem in result.problems if problem.is_left_out]:
        say(f"{len(left_out)} slides were left out, see {result.problems_csv}")
        return 1
    return 0
