"""Model card of a fine-tuning: the model, its data, metrics, limits and provenance (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit import __version__
from longvit.data.cohort import SlideRow
from longvit.files import write_text

if TYPE_CHECKING:
    from longvit.finetuning.settings import FinetuneSettings
    from longvit.tasks.task import Task

MODEL_CARD = "MODEL_CARD.md"


def write_model_card(
    folder: Path, task: Task, settings: FinetuneSettings, metrics: Mapping[str, Any], rows: Sequence[SlideRow]
) -> None:
    """Writes the card of a finished run; `metrics`: content of metrics.json, `rows`: all slides that were used."""
    training = metrics["training"]
    names = task.classes_of(metrics["classes"]) if task.has_classes else metrics["classes"]
    outputs = ", ".join(map(_plain, names))
    what = f"classes: {outputs}" if task.has_classes else f"outputs: {outputs}"
    lines = [
        f"# Model card: LongViT for {task.name}",
        "",
        "Written by `longvit train`. Complete the lines marked *to be filled in*.",
        "",
        "## Model",
        "",
        f"- Task: {task.name}; {what}.",
        f"- Input: a whole slide, reduced to a canvas of {settings.side_px} × {settings.side_px} px ({settings.fit}).",
        f"- {training['parameters']:,} parameters; started from {_plain(training['starts_from'])}; "
        f"{training['epochs']} epochs; the last epoch is kept{', as an EMA' if settings.ema else ''}.",
        "- Files: `model/config.json`, `model/model.safetensors`; `longvit predict` reads them.",
        "- Intended use: research on slides like those below; not a medical device. *To be filled in.*",
        "",
        "## Data",
        "",
        f"- Source: {_plain(Path(task.cohort.source).name)}; slides, patients, splits, content in `slides.csv`.",
        *_splits(rows),
        f"- Sites: {_sites(rows)}.",
        "- Origin, period, scanner, stain, consent: *to be filled in.*",
        "",
        "## Metrics",
        "",
        *_metrics(task, metrics),
        "",
        "95 % intervals: bootstrap by patient. Controls use the same slides.",
        "",
        "## Limits",
        "",
        *(f"- {line}" for line in _limits(task, metrics)),
        "- Not validated on another cohort by this run; `longvit predict RUN cohortB.csv` does that.",
        "",
        "## Provenance",
        "",
        f"- longvit {__version__}; device {training['device']}; seed {settings.seed}.",
        "- All settings in `settings.yaml`; repeat with `longvit train cohort.csv --recipe settings.yaml`.",
    ]
    write_text(folder / MODEL_CARD, "\n".join(lines) + "\n")


def _splits(rows: Sequence[SlideRow]) -> list[str]:
    lines = []
    for split in ("train", "val", "test"):
        if part := [row for row in rows if row.split == split]:
            labels = {label: sum(row.label == label for row in part) for label in sorted({row.label for row in part})}
            classes = ", ".join(f"{_plain(name)} {n}" for name, n in labels.items() if name)
            patients = len({row.case_id for row in part})
            lines.append(
                f"- {split}: {len(part)} slides of {patients} patients" + (f" ({classes})." if classes else ".")
            )
    return lines


def _sites(rows: Sequence[SlideRow]) -> str:
    sites = sorted({row.site for row in rows if row.site})
    shown = ", ".join(map(_plain, sites[:20])) + (f" and {len(sites) - 20} more" if len(sites) > 20 else "")
    return shown or "not stated in the cohort table"


def _metrics(task: Task, metrics: Mapping[str, Any]) -> list[str]:
    main = metrics["figure"]
    lines = [f"| system | split | {task.metric_label} | 95 % interval |", "|---|---|---|---|"]
    for split, values in metrics["splits"].items():
        low, high = values.get(f"{main}_interval", (None, None))
        lines.append(f"| model | {split} | {_number(values[main])} | {_number(low)} to {_number(high)} |")
        for control, by_split in metrics["controls"].items():
            if split in by_split:
                lines.append(f"| {control.replace('_', ' ')} | {split} | {_number(by_split[split][main])} | |")
    return lines


def _limits(task: Task, metrics: Mapping[str, Any]) -> list[str]:
    main = metrics["figure"]
    reported = "test" if "test" in metrics["splits"] else "val"
    values = metrics["splits"][reported]
    limits = [f"Evaluated on {values['slides']} slides of {values['patients']} patients ({reported})."]
    as_good = [
        name.replace("_", " ")
        for name, by_split in metrics["controls"].items()
        if (value := by_split.get(reported, {}).get(main)) is not None
        and values[main] is not None
        and value >= values[main]
    ]
    if as_good:
        limits.append(f"The {task.metric_label} of these controls is at least as high: {', '.join(as_good)}.")
    if leaking := metrics["leaks"].get(f"train_{reported}"):
        limits.append(f"{leaking} patients are both in train and {reported}: the metrics are optimistic.")
    if (optimism := metrics.get("epoch_optimism")) is not None:
        limits.append(
            f"Choosing the epoch on {optimism['split']} would have added {_number(optimism['value'])} to the "
            f"{task.metric_label}; the last epoch is reported."
        )
    if metrics.get("shortcut"):
        limits.append(str(metrics["shortcut"]))
    if metrics["left_out"]:
        limits.append(f"{len(metrics['left_out'])} slides could not be read and were left out.")
    return limits + [_plain(note) for note in metrics["notes"]]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """The text on one line, without the characters that mean a table or an element in Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
