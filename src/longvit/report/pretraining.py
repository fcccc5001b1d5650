"""Report of a pretraining run: probe metrics, training curves, collapse alarms, token images.

It reads these files of the run folder (a value that is not defined is empty or null):

metrics.json   epochs, steps, regions, slides, parameters, device, starts_from, seconds; finished; skipped_steps,
               left_out, notes (lists of lines); resolution (µm per pixel); probe: source, regions, cases, classes, or
               null; versions (name -> version) and commit where known. Only epochs and steps are required.
settings.yaml  settings; the report uses prototypes, epochs, batch_size and the thresholds of `alarms`
steps.csv      a row per optimiser step: step, loss, and where known lr, weight_decay, teacher_momentum, grad_norm,
               teacher_entropy, kl_to_uniform, mean_kl_to_uniform
history.csv    a row per epoch: epoch, step, train_loss, and where known rankme, feature_std and, with a probe, knn,
               knn_balanced, linear, linear_balanced, linear_auc (`longvit.pretraining.probes.metrics`)
controls.json  random_start, mean_colour -> the same metrics; may be absent
pictures/      tokens_*.png, neighbours_*.png, labelled_*.png with their titles (`token_images.write_plots`)
problems.csv   slide, stage, error; absent where there are none

The curves are added to pictures/, as PNG and SVG.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.config import read_yaml
from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems
from longvit.errors import InputError
from longvit.json_file import read_json_object
from longvit.plots import pretraining as plots
from longvit.pretraining.collapse import Alarm, alarms
from longvit.report.labels import counted, listed
from longvit.report.page import (
    MetricCard,
    Report,
    ReportImage,
    Row,
    Section,
    Table,
    number,
    settings_table,
    thumbnail_of,
    write_report,
)
from longvit.report.sections import problems_table, saved_plot
from longvit.report.versions import versions_line

if TYPE_CHECKING:
    from longvit.dino.settings import DinoSettings

_IMAGE_PX = 1000
_METRICS = {
    "knn": "k-NN",
    "knn_balanced": "k-NN, balanced",
    "linear": "linear probe",
    "linear_balanced": "linear probe, balanced",
    "linear_auc": "linear probe, AUC",
    "rankme": "RankMe",
    "feature_std": "spread",
}
_PROBES = {"knn_balanced": "k-NN", "linear_balanced": "linear probe"}
_CONTROLS = {"random_start": "the untrained network", "mean_colour": "mean colour"}
_MEANINGS = (
    "k-NN: weighted vote of the 20 most similar regions of other cases. Linear probe: logistic regression on the "
    "frozen embeddings, trained on other cases. Balanced: mean recall over the classes.",
    "Mean colour: both classifiers on the mean and standard deviation of red, green and blue of each region, without "
    "any network.",
)
_OUTPUTS = (
    "A collapse has two forms. Uniform outputs: the teacher's entropy is log K. The same output for every crop: the "
    "two lower curves coincide, since the distance between them is the information that an output carries about its "
    "crop."
)
_RANK = (
    "RankMe: effective rank of the embeddings of the monitored regions, at most their number and the width of the "
    "model. Spread: standard deviation of the embeddings' directions, 0 where all are equal, about 1 where they cover "
    "the sphere."
)


@dataclass(frozen=True)
class _Run:
    """Content of a run folder."""

    folder: Path
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    dino: DinoSettings
    steps: Mapping[str, NDArray[np.float64]]
    epochs: Mapping[str, NDArray[np.float64]]
    controls: Mapping[str, Mapping[str, float | None]]
    problems: tuple[Problem, ...]

    @property
    def log_k(self) -> float:
        return math.log(self.dino.prototypes)

    @property
    def has_teacher(self) -> bool:
        """True for DINO; the objective texture has one network."""
        return self.settings.get("objective", "dino") == "dino"

    @property
    def classes(self) -> Sequence[str]:
        """Classes of the labelled regions; none without a probe."""
        return (self.metrics.get("probe") or {}).get("classes", ())

    def last(self, name: str) -> float | None:
        """Value of a metric after the last epoch that has it."""
        values = self.epochs.get(name, np.zeros(0))
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else None

    def control(self, control: str, name: str) -> float | None:
        return (self.controls.get(control) or {}).get(name)

    def alarms(self) -> tuple[Alarm, ...]:
        needed = ("loss", "grad_norm", "kl_to_uniform", "mean_kl_to_uniform")
        absent = np.full(len(self.steps["step"]), math.nan)
        history = {name: self.steps.get(name, absent) for name in needed}
        rows = [
            {name: float(values[i]) for name, values in self.epochs.items()} for i in range(len(self.epochs["epoch"]))
        ]
        return alarms(history, rows, self.dino)


def pretrain_report(folder: str | Path) -> Path:
    """Writes `folder`/index.html; returns its path. The report of an unfinished run states its progress.

    `InputError`: no run in the folder, or a file of it that cannot be read.
    """
    run = _read(Path(folder))
    return write_report(pretrain_content(run), run.folder / "index.html")


def pretrain_content(run: _Run) -> Report:
    """Content of the report."""
    m = run.metrics
    regions = f" on {m['regions']:,} regions of {counted(m['slides'], 'slide')}" if m.get("slides") else ""
    return Report(
        title=f"A LongViT pretrained{regions}",
        lead=(_lead(run),),
        notes=[*(f"Alarm: {a.name}. {a.seen} Suggestion: {a.advice}" for a in run.alarms()), *_warnings(run)],
        cards=_cards(run),
        sections=(
            *_probe_section(run),
            _training_section(run),
            *_token_section(run),
            *_neighbour_sections(run),
            *_problems_section(run),
            _settings_section(run),
        ),
    )


def _lead(run: _Run) -> str:
    m = run.metrics
    size = f"{m['parameters'] / 1e6:.1f} million parameters, from " if m.get("parameters") else "From "
    how = "self-distillation without labels (DINO)" if run.has_teacher else "predicting the texture of recoloured crops"
    text = f"{size}{m.get('starts_from', 'random weights')}, by {how}"
    steps = f"{m['steps']:,} steps" + (f" of {b} regions" if (b := run.settings.get("batch_size")) else "")
    text += f": {m['epochs']} of {run.dino.epochs} epochs, {steps}"
    if m.get("seconds"):
        text += f", {_duration(m['seconds'])}"
    if m.get("device"):
        text += f" on {m['device']}"
    text += f". Metrics are computed on the {'teacher' if run.has_teacher else 'network'}'s embeddings."
    if m["epochs"] < run.dino.epochs:
        text += " The run is not finished: it is still running, or was interrupted."
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _warnings(run: _Run) -> list[str]:
    """Caveats of the report: no probe, controls as good as the network, skipped steps, unusable files."""
    notes = []
    if not run.classes:
        notes.append(
            "No labelled regions were given. Loss and rank curves do not show whether the embeddings are useful. "
            "Give labelled regions with --probe (a CSV with path, label, case_id)."
        )
    for control, label in _CONTROLS.items():
        as_good = [
            f"{name} {number(baseline)} against {number(value)}"
            for metric, name in _PROBES.items()
            if (baseline := run.control(control, metric)) is not None
            and (value := run.last(metric)) is not None
            and baseline >= value
        ]
        if as_good:
            notes.append(
                f"On the labelled regions, {label} is at least as good as the pretrained network ({listed(as_good)}, "
                "balanced accuracy). These metrics show no benefit of pretraining over it."
            )
    if skipped := run.metrics.get("skipped_steps"):
        notes.append(f"{counted(len(skipped), 'step')} skipped because of NaN or infinity; the first: {skipped[0]}.")
    if lost := sum(p.is_left_out for p in run.problems):
        notes.append(f"{counted(lost, 'file')} could not be used; see Problems.")
    return notes


def _cards(run: _Run) -> list[MetricCard]:
    cards = []
    for name, label in _PROBES.items():
        if (value := run.last(name)) is not None:
            parts = [
                f"{label} {number(baseline)}"
                for label, baseline in (
                    ("random start", run.control("random_start", name)),
                    ("mean colour", run.control("mean_colour", name)),
                    ("chance", 1 / len(run.classes) if run.classes else None),
                )
                if baseline is not None
            ]
            cards.append(MetricCard(f"{label}, balanced", number(value), "; ".join(parts)))
    if (rank := run.last("rankme")) is not None:
        start = run.control("random_start", "rankme")
        cards.append(MetricCard("RankMe", number(rank, 1), "" if start is None else f"random start {start:.1f}"))
    chance = f"; chance: log K = {run.log_k:.2f}" if run.has_teacher else ""
    cards.append(MetricCard("loss", number(run.last("train_loss")), f"last epoch{chance}"))
    return cards


def _probe_section(run: _Run) -> list[Section]:
    probe = run.metrics.get("probe")
    if not probe or run.last("knn_balanced") is None:
        return []
    png = run.folder / "pictures" / "probe.png"
    chance = 1 / len(run.classes)
    plots.probe_plot(run.epochs, run.controls, chance, png)
    caption = "After each evaluated epoch; epoch 0: random start. Dashed: mean colour. Dotted: chance."
    shown = {name: label for name, label in _METRICS.items() if run.last(name) is not None}
    decimals = {name: 1 if name == "rankme" else 2 for name in shown}
    rows = [Row(["pretrained", *(number(run.last(name), decimals[name]) for name in shown)], "strong")]
    for control, label in {"random_start": "random start", "mean_colour": "mean colour"}.items():
        if run.controls.get(control):
            rows.append(Row([label, *(number(run.control(control, name), decimals[name]) for name in shown)]))
    rows.append(Row(["chance", *(number(chance) if "balanced" in name else "" for name in shown)], "other"))
    n = probe["regions"]
    cases = f" of {counted(probe['cases'], 'case')}" if probe.get("cases") else ""
    text = f"{counted(n, 'region')}{cases}, {listed(list(run.classes))}; pretraining does not use the labels."
    uncertainty = (
        f"With {n} regions, metrics differ by about {1 / math.sqrt(n):.2f} by chance alone, and by more where the "
        f"regions of a case are similar."
    )
    numbers = frozenset(range(1, len(shown) + 1))
    return [
        Section(
            "Labelled regions",
            text=(text,),
            points=_MEANINGS,
            tables=(Table(("", *shown.values()), rows, numbers, uncertainty, first_stays=True),),
            plots=(saved_plot("Probes", png, caption, max_px=640),),
        )
    ]


def _training_section(run: _Run) -> Section:
    folder = run.folder / "pictures"
    plots.rank_plot(run.epochs, run.controls, folder / "rank.png")
    plots.rates_plot(run.steps, folder / "rates.png")
    if run.has_teacher:
        plots.loss_plot(run.steps, run.epochs, run.log_k, folder / "loss.png")
        plots.outputs_plot(run.steps, run.log_k, folder / "outputs.png")
        caption = f"Cross-entropy of the student against the teacher; K = {run.dino.prototypes:,} prototypes."
        outputs = [saved_plot("Teacher outputs", folder / "outputs.png", _OUTPUTS)]
    else:
        plots.loss_plot(run.steps, run.epochs, None, folder / "loss.png")
        caption, outputs = "Squared error of the whitened descriptors, of patches and of whole crops.", []
    return Section(
        "Training",
        side_by_side=True,
        plots=(
            saved_plot("Loss", folder / "loss.png", caption),
            *outputs,
            saved_plot("Rank", folder / "rank.png", _RANK),
            saved_plot("Schedules", folder / "rates.png", "Scheduled values, and the gradient norm before clipping."),
        ),
    )


def _token_section(run: _Run) -> list[Section]:
    images = _titled(run, "tokens")
    text = (
        "Left: the region. Right: the first three principal components of its patch tokens as red, green and blue, "
        "with the same components for all regions. Patches of one colour have similar tokens. In an untrained network "
        "the tokens reflect position and stain."
    )
    return [Section("Patch tokens", text=(text,), plots=images, side_by_side=True)] if images else []


def _neighbour_sections(run: _Run) -> list[Section]:
    sections = []
    for kind, title, text in (
        ("neighbours", "Nearest neighbours", "Evenly spaced regions, not selected by appearance."),
        ("labelled", "Nearest neighbours among the labelled regions", "Green: same label. Orange: another label."),
    ):
        if images := _titled(run, kind):
            legend = (
                "Large: the query. Number: cosine similarity. Top right: the nearest. Neighbours are from other slides "
                "or cases where there are several."
            )
            sections.append(Section(title, text=(f"{text} {legend}",), plots=images, side_by_side=True))
    return sections


def _titled(run: _Run, kind: str) -> list[ReportImage]:
    """Images pictures/<kind>_*.png as JPEG, with the titles stored in them."""
    from PIL import Image

    images = []
    for path in sorted((run.folder / "pictures").glob(f"{kind}_*.png")):
        with Image.open(path) as image:
            pixels, title = np.asarray(image.convert("RGB")), str(image.info.get("Title", path.stem))
        images.append(thumbnail_of(pixels, title, side_px=_IMAGE_PX))
    return images


def _problems_section(run: _Run) -> list[Section]:
    if not run.problems:
        return []
    return [Section("Problems", tables=(problems_table(run.problems, "file"),))]


def _settings_section(run: _Run) -> Section:
    commit = [f"Commit {run.metrics['commit']}."] if run.metrics.get("commit") else []
    files = "Files in this folder: metrics.json, steps.csv, history.csv, pictures/ (PNG and SVG)."
    return Section(
        "Settings and versions",
        points=[*run.metrics.get("notes", ()), versions_line(run.metrics.get("versions")), *commit, files],
        tables=(settings_table(run.settings),) if run.settings else (),
        folded="Show settings and versions",
    )


def _read(folder: Path) -> _Run:
    from longvit.dino.settings import DinoSettings

    metrics = _json(folder / "metrics.json")
    for name in ("epochs", "steps"):
        if not isinstance(metrics.get(name), int):
            raise InputError(f"{folder / 'metrics.json'}: no number {name!r}; is this the folder of a pretraining run?")
    settings = read_yaml(_text(folder / "settings.yaml"), str(folder / "settings.yaml")) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{folder / 'settings.yaml'}: expected names and values, not a {type(settings).__name__}")
    known = {field.name for field in fields(DinoSettings)}
    epochs, steps = (
        _columns(folder / "history.csv", "epoch", "train_loss"),
        _columns(folder / "steps.csv", "step", "loss"),
    )
    steps["at_epoch"] = steps["step"] * (metrics["epochs"] / max(1, metrics["steps"]))
    controls = folder / "controls.json"
    return _Run(
        folder,
        metrics,
        settings,
        DinoSettings(**{name: value for name, value in settings.items() if name in known}),
        steps,
        epochs,
        _json(controls) if controls.exists() else {},
        read_problems(folder / PROBLEMS_CSV),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; the pretraining writes it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; the pretraining writes it") from error


def _columns(path: Path, *needed: str) -> dict[str, NDArray[np.float64]]:
    """Columns of a CSV as numbers, by name; NaN for an empty cell."""
    reader = csv.DictReader(_text(path).splitlines())
    rows = list(reader)
    names = reader.fieldnames or ()
    for name in needed:
        if name not in names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(names) or 'none'}")
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows], dtype=np.float64) for name in names}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a table of numbers: {error}") from error
