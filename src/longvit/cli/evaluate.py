"""`longvit evaluate PREDICTIONS.csv`"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import AsJson

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
            help="Delta degrees of freedom of the standard deviation over folds: 1 for a sample, 0 for the population. "
            "Default: the paper's, 1 for AUCs and 0 for the c-index.",
            show_default=False,
        ),
    ] = None,
    bootstrap: Annotated[
        int, Parameter(help="Bootstrap resamples of the patients for the 95 % interval, without folds; 0: none.")
    ] = 1000,
    aggregate: Annotated[
        Literal["mean", "max"], Parameter(help="Prediction of a patient from those of its slides (column case_id).")
    ] = "mean",
    as_json: AsJson = False,
) -> int:
    """Compute the metrics of a predictions file: AUC and others, or the c-index; per fold and as mean ± SD.

    The columns of the file decide the task. Subtyping: label and `prob_<class>`. Survival: risk, survival_months, and
    event (1 if it happened) or censorship (1 if it did not). Ordinal: label, `prob_<grade>` and expected_rank.
    Regression: value and predicted_value. Multilabel: `label_<column>` and `probability_<column>`. Metrics per fold:
    test_auc and fold. The table has a row per system, cohort and split, if these are columns. Reads the
    `predictions.csv` of a run and the files of published baselines.

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
    evaluation = evaluate_file(predictions, ddof=ddof, resamples=bootstrap, aggregate=aggregate)
    if as_json:
        print(json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe or a file: do not wrap at 80 columns
    console.print(metric_table(evaluation))
    for note in evaluation.notes:
        console.print(note, highlight=False)
    return 0


def metric_table(evaluation: Evaluation) -> Table:
    """Table with a row per group: key, size, metrics, and the first metric of each fold."""
    from rich.table import Table

    table = Table(title=f"{evaluation.path.name}: {evaluation.layout}", title_justify="left")
    first = evaluation.groups[0]
    for name in first.key:
        table.add_column(name)
    counts = ["rows"] + ["patients"] * (first.patients is not None) + ["events"] * (first.events is not None)
    for name in counts:
        table.add_column(name, justify="right")
    for name in first.metrics:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    folds = list(
        dict.fromkeys(fold for group in evaluation.groups for metric in group.metrics.values() for fold in metric.folds)
    )
    main = next(iter(first.metrics))
    for fold in folds:
        table.add_column(f"fold {fold}", justify="right")
    by_patient = [group.by_patient for group in evaluation.groups if group.by_patient is not None]
    if by_patient:
        table.add_column("of", justify="left")
    for group, what in [*((g, "slides") for g in evaluation.groups), *((g, "patients") for g in by_patient)]:
        table.add_row(
            *group.key.values(),
            *(str(getattr(group, name)) for name in counts),
            *(metric_text(metric) for metric in group.metrics.values()),
            *(three_decimals(group.metrics[main].folds.get(fold, math.nan)) for fold in folds),
            *([what] if by_patient else []),
        )
    return table


def metric_text(metric: MetricSummary) -> str:
    """Formats a metric: `0.874 ± 0.060`, or `0.874 (0.81-0.92)` with an interval, or the value alone."""
    text = three_decimals(metric.mean)
    if metric.folds:
        return f"{text} ± {three_decimals(metric.sd)}"
    if metric.interval is not None and not math.isnan(metric.interval[0]):
        return f"{text} ({metric.interval[0]:.2f}-{metric.interval[1]:.2f})"
    return text


def three_decimals(value: float) -> str:
    """Formats a value with three decimals; – for an undefined metric."""
    return "–" if math.isnan(value) else f"{value:.3f}"
