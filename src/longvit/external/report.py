"""Report of an external validation: one page with metrics, intervals, calibration, decisions, the drop and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.data.cohort import Cohort
from longvit.external.label_sections import label_group_sections, label_threshold_sections
from longvit.external.member_predictions import ExternalLogits
from longvit.external.reporting_items import reporting_rows
from longvit.external.source_run import SourceRun
from longvit.external.text import levels_of, main_metric, main_system, ranged, warnings_of
from longvit.metrics.classification import METRICS
from longvit.report.labels import MEANINGS, counted, display_name, metric_label
from longvit.report.page import MetricCard, Report, ReportImage, Row, Section, Table, number, write_report
from longvit.report.sections import saved_plot
from longvit.report.versions import versions_line

_CALIBRATION = {
    "slope": "calibration slope",
    "intercept": "calibration intercept",
    "in_the_large": "calibration in the large",
    "brier": "Brier score",
}


def write_external_report(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, metrics: Mapping[str, Any], folder: Path
) -> Path:
    """Writes index.html, with its plots in pictures/; `metrics`: content of metrics.json."""
    plots = _plots(run, cohort, logits, metrics, folder / "pictures")
    a, b = metrics["cohort_a"], metrics["cohort_b"]
    main = main_system(metrics)
    subject = "The model" if len(metrics["members"]) == 1 else f"The ensemble of {len(metrics['members'])} folds"
    lead = (
        f"{subject} of {Path(metrics['run']).name} (cohort A, {counted(a['slides'], 'slide')} of "
        f"{counted(a['patients'], 'patient')}) on {counted(b['slides'], 'slide')} of "
        f"{counted(b['patients'], 'patient')} of {Path(metrics['table']).name} (cohort B).",
    )
    sections: list[Section] = [Section("Metrics on cohort B", tables=_metric_tables(metrics), points=_points(metrics))]
    sections += _drop_section(metrics)
    if plots:
        sections.append(Section("Discrimination, calibration, decisions", plots=plots, side_by_side=True))
    sections += _calibration_section(metrics) + _threshold_section(metrics) + _cut_section(metrics)
    sections += _difference_section(metrics) + _group_sections(metrics) + _recalibration_section(metrics)
    sections += [_overlap_section(metrics), _reporting_section(run, metrics)]
    sections.append(Section("Versions", points=(versions_line(),), folded="Show versions"))
    report = Report(
        title=f"External validation of {Path(metrics['run']).name} on {Path(metrics['table']).name}",
        lead=lead,
        notes=(*warnings_of(metrics), *metrics["notes"]),
        cards=_cards(metrics, main),
        sections=tuple(sections),
    )
    return write_report(report, folder / "index.html")


def _cards(metrics: Mapping[str, Any], main: str) -> list[MetricCard]:
    name = main_metric(metrics)
    label = metric_label(name)
    cards = []
    for level, entries in levels_of(metrics).items():
        entry = entries["systems"][main][name]
        cards.append(MetricCard(f"{label}, {level}", number(entry["value"], 3), _interval(entry)))
    entries = next(iter(levels_of(metrics).values()))
    if (drop := entries.get("drop")) is not None:
        change = drop["metrics"][name]
        more = f"{number(change['a'])} on A ({display_name(drop['split_of_a'])}); {_interval(change['difference'])}"
        cards.append(MetricCard(f"change of {label}, A to B", _signed(change["difference"]["value"]), more))
    if (threshold := entries.get("threshold")) and "at_prevalence_of_b" in threshold:
        point = threshold["at_prevalence_of_b"]
        cards.append(
            MetricCard(
                "sensitivity / specificity",
                f"{number(point['sensitivity']['value'])} / {number(point['specificity']['value'])}",
                f"at A's threshold {threshold['value']:.3f}",
            )
        )
    if "calibration" in entries and isinstance(entries["calibration"], dict):
        slope = entries["calibration"]["slope"]
        cards.append(
            MetricCard(
                "calibration slope", number(slope["value"]).replace("-", "−"), f"1 is perfect; {_interval(slope)}"
            )
        )
    for control in entries["differences"]:
        if control == "mean_colour":
            entry = entries["systems"][control][name]
            cards.append(MetricCard(display_name(control), number(entry["value"], 3), _interval(entry)))
    return cards


def _metric_tables(metrics: Mapping[str, Any]) -> list[Table]:
    tables = []
    for level, entries in levels_of(metrics).items():
        systems = entries["systems"]
        main = main_system(metrics)
        names = [name for name in systems[main] if metrics["task"] != "subtyping" or name in METRICS]
        rows = [
            Row(
                [display_name(system), *(ranged(by[name]) if name in by else "" for name in names)],
                "strong" if system == main else "other" if system not in metrics["members"] else "",
            )
            for system, by in systems.items()
        ]
        if "auc_delong" in systems[main]:
            names = [*names, "auc_delong"]
            rows = [
                Row([*row.cells, ranged(by["auc_delong"])], row.kind)
                for row, by in zip(rows, systems.values(), strict=True)
            ]
        labels = [metric_label(name) if name != "auc_delong" else "AUC, DeLong's interval" for name in names]
        size = f"{entries['cases']} {level}" if "cases" in entries else f"{entries['patients']} patients"
        if metrics["task"] == "survival":
            size += f", {entries['events']} events"
        elif entries["left_out_mixed_labels"]:
            size += f"; {entries['left_out_mixed_labels']} patients whose slides have different labels are left out"
        columns = (f"per {level[:-1]}", *labels)
        tables.append(Table(columns, rows, frozenset(range(1, len(columns))), size, first_stays=True))
    return tables


def _points(metrics: Mapping[str, Any]) -> list[str]:
    shown = {name for entries in levels_of(metrics).values() for by in entries["systems"].values() for name in by}
    points = [text for name, text in MEANINGS.items() if name in shown]
    points.append(f"In brackets: 95 % intervals, {metrics['bootstrap']} bootstrap resamples of the patients.")
    if "auc_delong" in shown:
        points.append("DeLong's interval takes cases as independent: read it per patient.")
    if metrics["task"] != "survival":
        what = "predicted numbers" if metrics["task"] == "regression" else "probabilities"
        points.append(f"Per patient: the mean of the {what} of its slides.")
    else:
        points.append("Per patient: the mean of the risks of its slides. Censoring weights are estimated on cohort B.")
    if len(metrics["members"]) > 1:
        points.append("Ensemble: the mean of the probabilities (or risks, or numbers) of all folds' models.")
    return points


def _drop_section(metrics: Mapping[str, Any]) -> list[Section]:
    tables = []
    split = ""
    for level, entries in levels_of(metrics).items():
        if (drop := entries.get("drop")) is None:
            continue
        split = display_name(drop["split_of_a"])
        rows = []
        for name, change in drop["metrics"].items():
            p = change.get("delong", {}).get("p")
            rows.append(
                Row(
                    [metric_label(name), number(change["a"], 3), number(change["b"], 3), ranged(change["difference"])]
                    + ([_p(p)] if any("delong" in c for c in drop["metrics"].values()) else [])
                )
            )
        columns = ["per " + level[:-1], f"A ({split})", "B", "change (95 % interval)"]
        columns += ["DeLong p"] if len(rows[0].cells) == 5 else []
        caption = f"{drop['cases_of_a']} {level} of A"
        tables.append(Table(columns, rows, frozenset(range(1, len(columns))), caption))
    if not tables:
        return []
    several = len(metrics["members"]) > 1
    text = (
        f"A: predictions of cohort A's {split} slides by models that were not trained on them"
        + (", mean over the folds; B: mean over the same models, not their ensemble" if several else "")
        + ". Patients of both cohorts are resampled independently."
    )
    return [Section("From cohort A to cohort B", text=(text,), tables=tables)]


def _plots(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, metrics: Mapping[str, Any], folder: Path
) -> list[ReportImage]:
    if metrics["task"] == "survival":
        return _survival_plots(run, logits, metrics, folder)
    if metrics["task"] != "subtyping":
        from longvit.external.label_sections import label_plots

        return label_plots(run, cohort, logits, folder)
    from longvit.external.classification import classified, reference_of
    from longvit.plots.external import class_calibration_plot, cohort_roc_plot, decision_curve_plot

    data = classified(run, logits)
    if not data.is_binary:
        from longvit.plots.classification import confusion_plot, reliability_plot

        main = data.slides.probabilities[data.main]
        confusion_plot(data.slides.labels, main, data.classes, folder / "confusion.png")
        reliability_plot(data.slides.labels, main, folder / "calibration.png")
        return [
            saved_plot("Confusion", folder / "confusion.png", "Slides of B by label (rows) and predicted class."),
            saved_plot("Calibration", folder / "calibration.png", "Accuracy against the probability of the top class."),
        ]
    positive = data.slides.probabilities[data.main][:, 1]
    curves = {"B": (data.slides.labels, positive)}
    if (reference := reference_of(run)) is not None:
        from longvit.external.cases import joined

        a = joined(reference.reported)
        curves = {f"A, {display_name(reference.reported_split)}": (a.labels, a.probabilities["model"][:, 1])} | curves
    cohort_roc_plot(curves, folder / "roc.png")
    entries = metrics["levels"]["slides"]
    fit = {name: _nan(entries["calibration"][name]["value"]) for name in ("slope", "intercept")}
    class_calibration_plot(data.slides.labels, positive, folder / "calibration.png", **fit)
    threshold = _nan(entries.get("threshold", {}).get("value"))
    pooled = "; folds of A pooled" if len(data.members) > 1 else ""
    decision_curve_plot(entries["decision_curve"], folder / "decision_curve.png", threshold=threshold)
    return [
        saved_plot("ROC on A and B", folder / "roc.png", f"Slides of both cohorts{pooled}."),
        saved_plot(
            "Calibration on B",
            folder / "calibration.png",
            f"Observed fraction of {data.classes[1]} against its probability, bins of equal size. Below: slides "
            f"({data.classes[1]} in blue).",
        ),
        saved_plot(
            "Decision curve on B",
            folder / "decision_curve.png",
            "Net benefit: true positives minus false positives, weighted by the odds of the threshold. "
            + ("Vertical line: A's threshold." if math.isfinite(threshold) else ""),
        ),
    ]


def _survival_plots(
    run: SourceRun, logits: ExternalLogits, metrics: Mapping[str, Any], folder: Path
) -> list[ReportImage]:
    from longvit.external.survival import followed, risk_groups
    from longvit.plots.external import survival_calibration_plot
    from longvit.plots.survival import kaplan_meier_plot

    data = followed(run, logits, str(metrics["table"]))
    images = []
    if (cut := metrics.get("cut")) is not None:
        kaplan_meier_plot(data.months, data.event, risk_groups(data, cut["risk"]), folder / "kaplan_meier.png")
        caption = f"Patients of B split at A's cut, the median risk of its {display_name(cut['chosen_on'])} patients."
        images.append(saved_plot("Kaplan–Meier with A's cut", folder / "kaplan_meier.png", caption))
    if metrics["calibration"]:
        survival_calibration_plot(metrics["calibration"], folder / "calibration.png")
        caption = "Observed (Kaplan–Meier) against predicted survival, in groups of equal size."
        images.append(saved_plot("Calibration on B", folder / "calibration.png", caption))
    return images


def _calibration_section(metrics: Mapping[str, Any]) -> list[Section]:
    if metrics["task"] == "survival":
        rows = [Row([f"{e['months']:.3g}", number(e["observed_to_expected"])]) for e in metrics["calibration"]]
        if not rows:
            return []
        text = "Observed events (Kaplan–Meier) divided by the mean predicted probability of an event. 1 is perfect."
        table = Table(("months", "observed / expected"), rows, frozenset((0, 1)))
        return [Section("Calibration over time", text=(text,), tables=(table,))]
    levels = {k: e["calibration"] for k, e in metrics["levels"].items() if "calibration" in e}
    if not levels:
        return []
    rows = [Row([label, *(ranged(c[key]) for c in levels.values())]) for key, label in _CALIBRATION.items()]
    points = (
        "Slope 1 and intercept 0 are perfect. A slope below 1: predictions are too extreme. Calibration in the large "
        "above 0: probabilities are too low on average.",
    )
    columns = ("", *(f"per {level[:-1]}" for level in levels))
    return [Section("Calibration", points=points, tables=(Table(columns, rows, frozenset(range(1, len(columns)))),))]


def _threshold_section(metrics: Mapping[str, Any]) -> list[Section]:
    if metrics["task"] != "subtyping":
        return label_threshold_sections(metrics)
    tables, chosen = [], ""
    for level, entries in metrics["levels"].items():
        threshold = entries.get("threshold")
        if not threshold or "at_prevalence_of_b" not in threshold:
            continue
        chosen = display_name(threshold["chosen_on"])
        keys = [k for k in ("at_prevalence_of_b", "at_stated_prevalence") if k in threshold]
        names = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
        rows = [Row([label, *(ranged(threshold[k][name]) for k in keys)]) for name, label in names.items()]
        shown = {
            "at_prevalence_of_b": f"prevalence of B, {threshold['prevalence']:.3f}",
            "at_stated_prevalence": f"prevalence {threshold.get('stated_prevalence')}",
        }
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in threshold["counts"].items())
        columns = (f"per {level[:-1]}", *(shown[k] for k in keys))
        caption = f"threshold {threshold['value']:.4f}; {counts}"
        tables.append(Table(columns, rows, frozenset(range(1, len(columns))), caption))
    if not tables:
        return []
    text = (
        f"The threshold has the highest sensitivity + specificity (Youden) on cohort A's {chosen} predictions; "
        f"nothing of it is chosen on B. Positive: {metrics['classes'][1]}."
    )
    return [Section("A's threshold on B", text=(text,), tables=tables)]


def _cut_section(metrics: Mapping[str, Any]) -> list[Section]:
    if (cut := metrics.get("cut")) is None:
        return []
    rows = [
        Row([name, str(g["patients"]), str(g["events"]), number(g["median_months"], 1)])
        for name, g in cut["groups"].items()
    ]
    columns = ("group", "patients", "events", "median survival, months")
    caption = f"risk above {cut['risk']:.4g}; log-rank p {_p(cut['p'])}"
    return [Section("A's cut on B", tables=(Table(columns, rows, frozenset((1, 2, 3)), caption),))]


def _difference_section(metrics: Mapping[str, Any]) -> list[Section]:
    name = main_metric(metrics)
    tables = []
    for level, entries in levels_of(metrics).items():
        rows = []
        for other, entry in entries["differences"].items():
            delong = entry.get("auc_delong")
            rows.append(
                Row([display_name(other), ranged(entry[name])] + ([ranged(delong), _p(delong["p"])] if delong else []))
            )
        if rows:
            columns = [f"per {level[:-1]}", f"difference of {metric_label(name)}"]
            columns += ["DeLong's interval", "DeLong p"] if len(rows[0].cells) > 2 else []
            tables.append(Table(columns, rows, frozenset(range(1, len(columns)))))
    if not tables:
        return []
    text = f"The {main_system(metrics)} minus the other, on the same cases of B. Controls are fitted on cohort A."
    return [Section("Against controls and single models", text=(text,), tables=tables)]


def _group_sections(metrics: Mapping[str, Any]) -> list[Section]:
    if metrics["task"] not in ("subtyping", "survival"):
        return label_group_sections(metrics)
    name = main_metric(metrics)
    sections = []
    for column, groups in metrics["groups"].items():
        rows = []
        for value, entry in groups.items():
            if metrics["task"] == "survival":
                cells = [value, str(entry["patients"]), str(entry["events"]), ranged(entry["metrics"][name])]
            else:
                classes = ", ".join(f"{k} {n}" for k, n in entry["classes"].items() if n)
                at = entry.get("at_threshold", {})
                cells = [
                    value, str(entry["slides"]), str(entry["patients"]), classes, ranged(entry["metrics"][name]),
                    ranged(entry["metrics"]["accuracy"]), number(at.get("sensitivity")), number(at.get("specificity")),
                ]  # fmt: skip
            rows.append(Row(cells))
        label = metric_label(name)
        columns: Sequence[str] = (column, "patients", "events", label)
        if metrics["task"] != "survival":
            columns = (column, "slides", "patients", "classes", label, "accuracy", "sensitivity", "specificity")
        caption = (
            f"A dash: not defined, since all slides of the {column} are of one class."
            if any("–" in cell for row in rows for cell in row.cells if isinstance(cell, str))
            else ""
        )
        table = Table(columns, rows, frozenset(range(1, len(columns))) - {3}, caption, first_stays=True)
        sections.append(Section(f"By {column}", tables=(table,)))
    return sections


def _recalibration_section(metrics: Mapping[str, Any]) -> list[Section]:
    if (entry := metrics.get("recalibration")) is None:
        return []
    text = (
        f"Logistic recalibration fitted on {counted(entry['fitted_on_slides'], 'slide')} of B ({entry['part']}); "
        f"metrics of the {counted(entry['evaluated_on_slides'], 'slide')} of other patients."
    )
    if "after" not in entry:
        return [Section("Recalibration", text=(text, "No fit: a threshold separates the classes of this part."))]
    names = ("auc", "ece", *_CALIBRATION)
    rows = [
        Row([_CALIBRATION.get(name, metric_label(name)), ranged(entry["before"][name]), ranged(entry["after"][name])])
        for name in names
    ]
    return [Section("Recalibration", text=(text,), tables=(Table(("", "before", "after"), rows, frozenset((1, 2))),))]


def _overlap_section(metrics: Mapping[str, Any]) -> Section:
    overlap = metrics["overlap"]
    counts = {name: len(overlap[name]) for name in ("patients", "slides", "content")}
    points = [
        f"In both cohorts: {counted(counts['patients'], 'patient')}, {counted(counts['slides'], 'slide id')}, "
        f"{counted(counts['content'], 'file')} with the same content (--overlap {overlap['policy']}).",
        f"Left out for it: {counted(len(overlap['dropped']), 'slide')}.",
        "Ids count as equal where they differ in spelling only. A slide that was exported again in another format is "
        "found by its id, not by its content.",
    ]
    if left_out := metrics["cohort_b"]["left_out"]:
        points.append(f"{counted(len(left_out), 'slide')} could not be read, see problems.csv.")
    return Section("Overlap of the cohorts", points=points)


def _reporting_section(run: SourceRun, metrics: Mapping[str, Any]) -> Section:
    rows = [Row([guideline, item, text]) for guideline, item, text in reporting_rows(run, metrics)]
    table = Table(("guideline", "item", "content"), rows, caption="Also in reporting.md.")
    return Section("Reporting table", tables=(table,), folded="Show TRIPOD+AI and STARD-AI items")


def _interval(entry: Mapping[str, float | None]) -> str:
    if entry.get("low") is None:
        return "no interval"
    return f"95\u00a0% interval {entry['low']:.2f} to {entry['high']:.2f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(np.float64(value))
