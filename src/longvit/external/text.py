"""Metrics of an external validation as text: for the terminal, the report and the reporting table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longvit.report.labels import CHANCE, display_name, metric_label
from longvit.tasks.task import task_class


def ranged(entry: Mapping[str, float | None], decimals: int = 3) -> str:
    """`0.874 (0.81 to 0.92)`; without an interval the value alone; a dash where it is not defined."""
    if entry["value"] is None:
        return "–"
    text = f"{entry['value']:.{decimals}f}"
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" ({entry['low']:.{decimals - 1}f} to {entry['high']:.{decimals - 1}f})"
    return text.replace("-", "−")


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Main metric of the task: auc, c_index, r2, quadratic_kappa."""
    return task_class(metrics["task"]).metric


def main_system(metrics: Mapping[str, Any]) -> str:
    """Name of the main system: model, or ensemble."""
    return "ensemble" if len(metrics["members"]) > 1 else str(metrics["members"][0])


def levels_of(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Level -> its entries; survival has patients only."""
    return {"patients": metrics} if metrics["task"] == "survival" else dict(metrics["levels"])


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: the main metric per level, the controls, A's threshold or cut, the drop."""
    name, main = main_metric(metrics), main_system(metrics)
    label = metric_label(name)
    b = metrics["cohort_b"]
    lines = [f"cohort B: {b['slides']} slides of {b['patients']} patients"]
    if dropped := metrics["overlap"]["dropped"]:
        lines[0] += f"; {len(dropped)} slides of patients of the run left out"
    for level, entries in levels_of(metrics).items():
        controls = [
            f"{display_name(control)} {ranged(entries['systems'][control][name])}"
            for control in entries["differences"]
            if control not in metrics["members"]
        ]
        text = f"{level}: {label} of the {main} {ranged(entries['systems'][main][name])}"
        lines.append("; ".join([text, *controls]))
        if (drop := entries.get("drop")) is not None:
            change = drop["metrics"][name]
            lines.append(
                f"  {label} on A ({display_name(drop['split_of_a'])}) {_number(change['a'])}, on B "
                f"{_number(change['b'])}: change {ranged(change['difference'])}"
            )
        if (threshold := entries.get("threshold")) and "at_prevalence_of_b" in threshold:
            point = threshold["at_prevalence_of_b"]
            lines.append(
                f"  threshold {threshold['value']:.3f} of A ({display_name(threshold['chosen_on'])}): sensitivity "
                f"{ranged(point['sensitivity'])}, specificity {ranged(point['specificity'])}"
            )
        for column, at in entries.get("thresholds", {}).items():
            if "at_prevalence_of_b" in at:
                point = at["at_prevalence_of_b"]
                lines.append(
                    f"  {column}: threshold {at['value']:.3f} of A ({display_name(at['chosen_on'])}): sensitivity "
                    f"{ranged(point['sensitivity'])}, specificity {ranged(point['specificity'])}"
                )
        if (cut := entries.get("cut")) is not None:
            lines.append(f"  cut {cut['risk']:.3f} of A ({display_name(cut['chosen_on'])}): {_p(cut['p'])}")
    return lines


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """Caveats of the report: a likely shortcut, a metric at or below chance, controls that are as good as the model."""
    name, main = main_metric(metrics), main_system(metrics)
    level, entries = next(iter(levels_of(metrics).items()))
    entry = entries["systems"][main][name]
    label = f"{metric_label(name)} on cohort B (per {level[:-1]})"
    notes = [
        f"{where}: {sentence[0].lower()}{sentence[1:]}"
        for where, sentence in (("Cohort B", metrics["shortcut"]["b"]), ("Within cohort A", metrics["shortcut"]["a"]))
        if sentence
    ]
    if entry["value"] is None:
        return [*notes, f"The {label} is not defined: B has one class only, no event, or equal labels."]
    chance = CHANCE[name]
    if chance == 0 and entry["high"] is not None and entry["high"] < 0:
        against = "the mean label of B predicts better" if name == "r2" else "guessing agrees better"
        notes.append(f"The {label} is below 0, with its interval: {against}.")
    elif entry["high"] is not None and entry["high"] < chance:
        notes.append(
            f"The {label} is below 0.5, with its interval: the model ranks the cases of B the wrong way round. A model "
            f"that reads stain or scanner does so where these go with the other class."
        )
    elif entry["low"] is not None and entry["low"] <= chance:
        notes.append(f"The interval of the {label} contains {chance:g}: guessing is not ruled out.")
    controls = {c: entries["systems"][c][name]["value"] for c in entries["differences"] if c not in metrics["members"]}
    as_good = {c: value for c, value in controls.items() if value is not None and value >= entry["value"]}
    if as_good:
        names = ", ".join(f"{display_name(c).removeprefix('control: ')} ({value:.3f})" for c, value in as_good.items())
        notes.append(f"The {label} of these controls is at least as high as the model's {entry['value']:.3f}: {names}.")
    return notes


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _p(p: float | None) -> str:
    return "log-rank p not defined" if p is None else f"log-rank p {p:.3g}"
