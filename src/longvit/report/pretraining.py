"""The report of a pretraining: does it learn, is it collapsing, what does the backbone see. Made from files alone.

What it reads of the folder (a cell or value that is not defined is empty or null):

metrics.json   epochs, steps, regions, slides, parameters, device, starts_from, seconds; finished; skipped_steps,
               left_out, notes (lists of lines); resolution (µm per pixel); probe: source, regions, cases, classes, or
               null; versions (name -> version) and commit where known. All may be absent but epochs and steps.
settings.yaml  the settings; of them prototypes, epochs, batch_size and what `alarms` judges by
steps.csv      a row per optimiser step: step, loss, and where known lr, weight_decay, teacher_momentum, grad_norm,
               teacher_entropy, kl_to_uniform, mean_kl_to_uniform
history.csv    a row per epoch: epoch, step, train_loss, and where known rankme, feature_std and, with a probe, knn,
               knn_balanced, linear, linear_balanced, linear_auc (`longvit.pretraining.probes.figures`)
controls.json  random_start, mean_colour -> the same figures; may be absent
pictures/      tokens_*.png, neighbours_*.png, labelled_*.png with their titles (`token_pictures.write_pictures`)
problems.csv   slide, stage, error; absent where there are none

It adds the curves to pictures/, as PNG and SVG.
"""

from __future__ import annotations

import csv
import json
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
from longvit.pretraining.collapse import Alarm, alarms
from longvit.report import pretraining_plots
from longvit.report.labels import counted, listed
from longvit.report.page import MetricCard, Report, ReportImage, Row, Section, Table, number, thumbnail_of, write_report
from longvit.report.sections import drawn
from longvit.report.versions import versions_line

if TYPE_CHECKING:
    from longvit.dino.settings import DinoSettings

_PICTURE_PX = 1000
_METRICS = {
    "knn": "k-NN",
    "knn_balanced": "k-NN, balanced",
    "linear": "linear probe",
    "linear_balanced": "linear probe, balanced",
    "linear_auc": "linear probe, AUC",
    "rankme": "RankMe",
    "feature_std": "spread",
}
_JUDGED = {"knn_balanced": "k-NN", "linear_balanced": "linear probe"}
_CONTROLS = {"random_start": "the network before its first step", "mean_colour": "mean colour"}
_MEANINGS = (
    "k-NN: a region gets the class for which its 20 most similar regions of other cases vote. Linear probe: a logistic "
    "regression on the frozen embeddings, trained on other cases. Balanced: the mean of the classes' shares that were "
    "recognised.",
    "Mean colour: the same two on the mean and spread of red, green and blue of each region. What they reach needs no "
    "network.",
)
_OUTPUTS = (
    "Where pretraining collapses, either every output of the teacher is uniform (its entropy is log K), or all crops "
    "have the same output: then the two lower curves lie on each other, since what an output tells of its crop is the "
    "distance between them."
)
_RANK = (
    "RankMe: how many directions the embeddings of the regions looked at use, at most their number and the width of "
    "the model. Spread: how much they differ, 0 where all are the same, about 1 where they fill the sphere."
)


@dataclass(frozen=True)
class _Run:
    """What the files say."""

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
    def classes(self) -> Sequence[str]:
        """Of the labelled regions; none without a probe."""
        return (self.metrics.get("probe") or {}).get("classes", ())

    def last(self, name: str) -> float | None:
        """A figure after the last epoch that has it."""
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
    """Writes `folder`/index.html; returns its path. While the run goes on it says how far it is.

    `InputError`: no run in the folder, or a file of it that cannot be read.
    """
    run = _read(Path(folder))
    return write_report(pretrain_content(run), run.folder / "index.html")


def pretrain_content(run: _Run) -> Report:
    """What the report says."""
    m = run.metrics
    regions = f" on {m['regions']:,} regions of {counted(m['slides'], 'slide')}" if m.get("slides") else ""
    return Report(
        title=f"A LongViT pretrained{regions}",
        lead=(_lead(run),),
        notes=[*(f"Alarm: {a.name}. {a.seen} What to do: {a.advice}" for a in run.alarms()), *_warnings(run)],
        cards=_cards(run),
        sections=(
            *_probe_section(run),
            _training_section(run),
            *_token_section(run),
            *_neighbour_sections(run),
            *_problems_section(run),
            _made_section(run),
        ),
    )


def _lead(run: _Run) -> str:
    m = run.metrics
    size = f"{m['parameters'] / 1e6:.1f} million parameters, from " if m.get("parameters") else "From "
    text = f"{size}{m.get('starts_from', 'random weights')}, by self-distillation without labels (DINO)"
    steps = f"{m['steps']:,} steps" + (f" of {b} regions" if (b := run.settings.get("batch_size")) else "")
    text += f": {m['epochs']} of {run.dino.epochs} epochs, {steps}"
    if m.get("seconds"):
        text += f", {_duration(m['seconds'])}"
    if m.get("device"):
        text += f" on {m['device']}"
    text += ". The figures are those of the teacher's embeddings."
    if m["epochs"] < run.dino.epochs:
        text += " The run is not finished: it goes on, or was interrupted."
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _warnings(run: _Run) -> list[str]:
    """What a reader must know before believing that it learned something."""
    notes = []
    if not run.classes:
        notes.append(
            "No labelled regions were given: curves of loss and rank do not show whether the embeddings are of use. "
            "Give some with --probe (a CSV with path, label, case_id)."
        )
    for control, words in _CONTROLS.items():
        as_good = [
            f"{name} {number(theirs)} against {number(ours)}"
            for figure, name in _JUDGED.items()
            if (theirs := run.control(control, figure)) is not None
            and (ours := run.last(figure)) is not None
            and theirs >= ours
        ]
        if as_good:
            notes.append(
                f"On the labelled regions {words} does as well as the pretrained network or better "
                f"({listed(as_good)}, balanced accuracy): these figures do not show that pretraining brought anything "
                "beyond it."
            )
    if skipped := run.metrics.get("skipped_steps"):
        notes.append(f"{counted(len(skipped), 'step')} skipped for a NaN or an infinity; the first: {skipped[0]}.")
    if lost := sum(p.is_left_out for p in run.problems):
        notes.append(f"{counted(lost, 'file')} could not be used; see Problems.")
    return notes


def _cards(run: _Run) -> list[MetricCard]:
    cards = []
    for name, words in _JUDGED.items():
        if (value := run.last(name)) is not None:
            parts = [
                f"{label} {number(of)}"
                for label, of in (
                    ("random start", run.control("random_start", name)),
                    ("mean colour", run.control("mean_colour", name)),
                    ("guessing", 1 / len(run.classes) if run.classes else None),
                )
                if of is not None
            ]
            cards.append(MetricCard(f"{words}, balanced", number(value), "; ".join(parts)))
    if (rank := run.last("rankme")) is not None:
        start = run.control("random_start", "rankme")
        cards.append(MetricCard("RankMe", number(rank, 1), "" if start is None else f"random start {start:.1f}"))
    cards.append(MetricCard("loss", number(run.last("train_loss")), f"last epoch; guessing: log K = {run.log_k:.2f}"))
    return cards


def _probe_section(run: _Run) -> list[Section]:
    probe = run.metrics.get("probe")
    if not probe or run.last("knn_balanced") is None:
        return []
    png = run.folder / "pictures" / "probe.png"
    chance = 1 / len(run.classes)
    pretraining_plots.probe_plot(run.epochs, run.controls, chance, png)
    caption = (
        "After every epoch that was looked at; epoch 0: the random start. Dashed: on mean colour; dotted: guessing."
    )
    shown = {name: words for name, words in _METRICS.items() if run.last(name) is not None}
    decimals = {name: 1 if name == "rankme" else 2 for name in shown}
    rows = [Row(["pretrained", *(number(run.last(name), decimals[name]) for name in shown)], "strong")]
    for control, words in {"random_start": "random start", "mean_colour": "mean colour"}.items():
        if run.controls.get(control):
            rows.append(Row([words, *(number(run.control(control, name), decimals[name]) for name in shown)]))
    rows.append(Row(["guessing", *(number(chance) if "balanced" in name else "" for name in shown)], "other"))
    n = probe["regions"]
    cases = f" of {counted(probe['cases'], 'case')}" if probe.get("cases") else ""
    text = f"{counted(n, 'region')}{cases}, {listed(list(run.classes))}, which pretraining does not learn from."
    doubt = (
        f"By chance alone figures of {n} regions differ by {1 / math.sqrt(n):.2f}, and by more where the regions of a "
        f"case resemble each other."
    )
    return [
        Section(
            "Does it learn?",
            text=(text,),
            points=_MEANINGS,
            tables=(Table(("", *shown.values()), rows, frozenset(range(1, len(shown) + 1)), doubt, first_stays=True),),
            plots=(drawn("Labelled regions", png, caption, max_px=640),),
        )
    ]


def _training_section(run: _Run) -> Section:
    folder = run.folder / "pictures"
    pretraining_plots.loss_plot(run.steps, run.epochs, run.log_k, folder / "loss.png")
    pretraining_plots.outputs_plot(run.steps, run.log_k, folder / "outputs.png")
    pretraining_plots.rank_plot(run.epochs, run.controls, folder / "rank.png")
    pretraining_plots.rates_plot(run.steps, folder / "rates.png")
    return Section(
        "Training",
        side_by_side=True,
        plots=(
            drawn("Loss", folder / "loss.png", f"The student's against the teacher; K = {run.dino.prototypes:,}."),
            drawn("The teacher's outputs", folder / "outputs.png", _OUTPUTS),
            drawn("Rank", folder / "rank.png", _RANK),
            drawn("Rates", folder / "rates.png", "As the schedules have it; the gradient before clipping."),
        ),
    )


def _token_section(run: _Run) -> list[Section]:
    plots = _titled(run, "tokens")
    text = (
        "Left the region, right its patches: their first three principal components as red, green and blue, the same "
        "for all regions. Patches of one colour look the same to the network; before it has learned, that is position "
        "and stain."
    )
    return [Section("What it sees", text=(text,), plots=plots, side_by_side=True)] if plots else []


def _neighbour_sections(run: _Run) -> list[Section]:
    found = []
    for kind, title, text in (
        ("neighbours", "Nearest neighbours", "Some regions, not chosen by looks"),
        ("labelled", "Nearest neighbours among the labelled regions", "Green: the same label, orange: another one"),
    ):
        if plots := _titled(run, kind):
            more = "; the large one is the query, the number the cosine, the nearest at the top right. Neighbours come "
            more += "from other slides or cases, where there are several."
            found.append(Section(title, text=(text + more,), plots=plots, side_by_side=True))
    return found


def _titled(run: _Run, kind: str) -> list[ReportImage]:
    """pictures/<kind>_*.png, with the titles inside them, as JPEG."""
    from PIL import Image

    found = []
    for path in sorted((run.folder / "pictures").glob(f"{kind}_*.png")):
        with Image.open(path) as image:
            pixels, title = np.asarray(image.convert("RGB")), str(image.info.get("Title", path.stem))
        found.append(thumbnail_of(pixels, title, side_px=_PICTURE_PX))
    return found


def _problems_section(run: _Run) -> list[Section]:
    if not run.problems:
        return []
    rows = [Row([problem.slide, problem.stage, problem.error]) for problem in run.problems]
    return [Section("Problems", tables=(Table(("file", "stage", "what"), rows),))]


def _made_section(run: _Run) -> Section:
    rows = [Row([name, value if isinstance(value, str) else json.dumps(value)]) for name, value in run.settings.items()]
    commit = [f"Commit {run.metrics['commit']}."] if run.metrics.get("commit") else []
    files = "As files beside this one: metrics.json, steps.csv, history.csv, pictures/ (PNG and SVG)."
    return Section(
        "Settings and versions",
        points=[*run.metrics.get("notes", ()), versions_line(run.metrics.get("versions")), *commit, files],
        tables=(Table(("setting", "value"), rows),) if rows else (),
        folded="How this was made",
    )


def _read(folder: Path) -> _Run:
    from longvit.dino.settings import DinoSettings

    metrics = _json(folder / "metrics.json")
    for name in ("epochs", "steps"):
        if not isinstance(metrics.get(name), int):
            raise InputError(f"{folder / 'metrics.json'}: no number {name!r}; is this the folder of a pretraining?")
    settings = read_yaml(_text(folder / "settings.yaml"), str(folder / "settings.yaml")) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{folder / 'settings.yaml'}: names and values are expected, not a {type(settings).__name__}")
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
        raise InputError(f"{path}: not read: {error.strerror}; the pretraining writes it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except OSError as error:
        raise InputError(f"{path}: not read: {error.strerror}; the pretraining writes it") from error


def _columns(path: Path, *needed: str) -> dict[str, NDArray[np.float64]]:
    """Column -> numbers; NaN for an empty cell."""
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
