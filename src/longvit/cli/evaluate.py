"""`longvit evaluate PREDICTIONS.csv`"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from longvit.finetuning.evaluate import Evaluation, MetricSummary


def evaluate(
    predictions: Annotated[Path, Parameter(help="CSV (or .csv.gz) of predictions, or of the AUC of each fold.")],
    /,
    *,
    ddof: Annotated[
        Literal[0, 1] | None,
        Parameter(
            help="Standard deviation over the folds: 1 of a sample, 0 of the population. Default: the paper's, 1 for "
            "AUCs and 0 for the c-index.",
            show_default=False,
        ),
    ] = None,
    bootstrap: Annotated[
        int, Parameter(help="Draws of the patients for the 95 % interval, where the file has no folds; 0: none.")
    ] = 1000,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of a table.")] = False,
) -> int:
    """The figures of a predictions file: AUC and others, or the c-index; per fold and as mean ± SD.

    The columns say what it is: label and `prob_<class>` (subtyping); risk, survival_months and event, which is 1 where
    it happened, or censorship, which is 1 where it did not (survival); or test_auc and fold. A row per system, cohort
    and split, where these are columns. It reads the `predictions.csv` of a run and the files of published baselines.

    **Examples**

    ```
    longvit evaluate run/predictions.csv
    longvit evaluate published_survival_predictions.csv.gz
    longvit evaluate published_fold_auc.csv --json
    ```
    """
    from longvit.errors import InputError
    from longvit.finetuning.evaluate import evaluate as evaluate_file

    if bootstrap < 0:
        raise InputError(f"bootstrap {bootstrap}: at least 0")
    found = evaluate_file(predictions, ddof=ddof, resamples=bootstrap)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe or a file: no line is folded at 80
    console.print(table_of(found))
    for note in found.notes:
        console.print(note, highlight=False)
    return 0


def table_of(found: Evaluation) -> Table:
    """A row per group: its key, its size, its figures, and the folds of the first figure."""
    from rich.table import Table

    table = Table(title=f"{found.path.name}: {found.layout}", title_justify="left")
    first = found.groups[0]
    for name in first.key:
        table.add_column(name)
    counts = ["rows"] + ["patients"] * (first.patients is not None) + ["events"] * (first.events is not None)
    for name in counts:
        table.add_column(name, justify="right")
    for name in first.metrics:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    folds = list(dict.fromkeys(fold for g in found.groups for f in g.metrics.values() for fold in f.folds))
    main = next(iter(first.metrics))
    for fold in folds:
        table.add_column(f"fold {fold}", justify="right")
    for group in found.groups:
        table.add_row(
            *group.key.values(),
            *(str(getattr(group, name)) for name in counts),
            *(text_of(metric) for metric in group.metrics.values()),
            *(three(group.metrics[main].folds.get(fold, math.nan)) for fold in folds),
        )
    return table


def text_of(metric: MetricSummary) -> str:
    """`0.874 ± 0.060`, or `0.874 (0.81-0.92)` with an interval, or the figure alone."""
    text = three(metric.mean)
    if metric.folds:
        return f"{text} ± {three(metric.sd)}"
    if metric.interval is not None and not math.isnan(metric.interval[0]):
        return f"{text} ({metric.interval[0]:.2f}-{metric.interval[1]:.2f})"
    return text


def three(value: float) -> str:
    """Three decimals; – where the figure is not defined."""
    return "–" if math.isnan(value) else f"{value:.3f}"
