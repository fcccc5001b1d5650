"""Text of a proposal: the commented YAML that `longvit train --recipe` reads, and a summary for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import yaml

from longvit import __version__
from longvit.files import printable
from longvit.proposal.propose import FEW_SLIDES, FEWEST_STEPS, MOST_EPOCHS, Proposal
from longvit.tasks.settings import TaskSettings

_WIDTH = 110
_GIB = 2**30


def recipe_text(
    proposal: Proposal, commands: Mapping[str, str], table: Mapping[str, tuple[Any, str]], task_why: str
) -> str:
    """YAML with a reason and a unit above every key.

    - `commands`: training commands for the first lines, each with its meaning.
    - `table`: options of the cohort table that are not at their default, each with its reason.
    - `task_why`: reason of the task.
    """
    names = ", ".join(f"{label} {n}" for label, n in class_counts(proposal).items())
    cases = len({row.case_id for row in proposal.cohort.rows})
    widest = max(map(len, commands))
    head = [
        f"# Settings of a first training, proposed by `longvit init` (longvit {__version__}).",
        "#",
        *(f"#   {printable(command):<{widest}}    # {meaning}" for command, meaning in commands.items()),
        "#",
        *_comment(f"{len(proposal.cohort.rows)} slides of {cases} patients" + (f": {names}." if names else ".")),
        *_comment(f"Slides: {slides_line(proposal)}."),
        *_comment(f"Folds: {folds_line(proposal)}."),
        *_comment(f"Memory: {memory_line(proposal)}."),
        *_comment(f"Time: {time_line(proposal)}."),
        *_comment("An option of the command line overrides its line here; `longvit train --help` describes them all."),
    ]
    blocks = [_block(key, value, why) for key, (value, why) in lines(proposal, table, task_why).items()]
    return "\n\n".join(["\n".join(head), *blocks]) + "\n"


def lines(proposal: Proposal, table: Mapping[str, tuple[Any, str]], task_why: str) -> dict[str, tuple[Any, str]]:
    """Key → value and reason, in the order of the file."""
    s, slides = proposal.settings, proposal.runs.single.train
    found: dict[str, tuple[Any, str]] = {"task": (s.task, f"Kind of label: {task_why}."), **table}
    plain = {field.name: field.default for field in fields(TaskSettings)}
    for key in ("label_columns", "time_column", "event_column", "censorship_column"):
        if (value := getattr(s, key)) != plain[key]:
            found[key] = (list(value) if isinstance(value, tuple) else value, "Column of the label, as given.")
    if s.weights is None:
        why = f"The paper's LongViT-S, from random weights: {slides} training slides, at least {FEW_SLIDES}."
        found["model"] = (
            s.model,
            f"{why} With pretrained weights, add a line `weights: FOLDER`; see docs/pretraining.md.",
        )
    else:
        why = f"A small model for few slides: {slides} training slides, below {FEW_SLIDES}."
        found["model"] = (s.model, why)
        found["weights"] = (str(s.weights), "Pretrained weights that ship with longvit, for this model.")
    found["side_px"] = (s.side_px, _side_reason(proposal))
    if s.recompute:
        found["recompute"] = (True, "Layers are computed twice: without it a step does not fit into memory.")
    if s.offload:
        found["offload"] = (True, "Activations wait in host memory: without it a step does not fit into memory.")
    found["epochs"] = (s.epochs, _epochs_reason(proposal))
    found["batch_size"] = (s.batch_size, _batch_reason(proposal))
    found["lr"] = (
        s.lr,
        "Peak learning rate of AdamW: "
        + ("the paper's." if s.weights is None else "that of the recipe tiny, above the paper's 5e-5 for few steps."),
    )
    if s.dtype != "float32":
        found["dtype"] = (s.dtype, f"Arithmetic of the model, fast on {proposal.device.name}; parameters stay float32.")
    if s.device != "auto":
        found["device"] = (s.device, "Device, as given.")
    return found


def _side_reason(proposal: Proposal) -> str:
    side, sample = proposal.settings.side_px, proposal.sample
    um = proposal.um_per_px
    size = f"the longer side of the slides is {sample.longer_px:,.0f} px" + (
        "" if um is None else f", so a pixel of the canvas is {um:.3g} µm"
    )
    limits = {
        "slides": f"The next size, {2 * side:,} px, is larger than the slides.",
        "memory": "A larger canvas does not fit into memory.",
        "time": "A larger canvas would take longer than a night.",
        "recipe": f"For few slides the paper's smallest; --side-px {4 * side} shows more and takes 16 times as long.",
    }
    return f"Side of the square canvas that a slide is resized to, in px: {size}. {limits[proposal.canvas.limit]}"


def _epochs_reason(proposal: Proposal) -> str:
    steps = -(-proposal.runs.fewest_train // proposal.settings.batch_size)
    text = f"Passes over the training slides, {steps} steps each"
    if proposal.settings.weights is None:
        return text + ": the paper's."
    return text + f": 12 as in the recipe tiny, or more for {FEWEST_STEPS} steps, at most {MOST_EPOCHS}."


def _batch_reason(proposal: Proposal) -> str:
    text = "Slides per optimiser step: "
    if proposal.settings.batch_size == 8:
        return text + "the paper's."
    return text + f"at most half of the {proposal.runs.fewest_train} training slides."


def class_counts(proposal: Proposal) -> dict[str, int]:
    """Class → slides; empty where the task has no classes."""
    rows = proposal.cohort.rows
    return {label: sum(row.label == label for row in rows) for label in proposal.cohort.classes}


def slides_line(proposal: Proposal) -> str:
    """Number of slides opened, their median side, their resolutions, and the number not opened."""
    sample = proposal.sample
    tried = len(sample.opened) + len(sample.unreadable)
    found = sorted({f"{slide.mpp:.3g}" for slide in sample.opened if slide.mpp is not None}, key=float)
    parts = [
        f"{len(sample.opened)} of {len(proposal.cohort.rows)} opened, longer side {sample.longer_px:,.0f} px (median)",
        f"{' and '.join(found[:3])}{' …' if found[3:] else ''} µm per px" if found else "no resolution in the files",
    ]
    if sample.unreadable:
        parts.append(f"{len(sample.unreadable)} of the {tried} tried cannot be read")
    return ", ".join(parts)


def memory_line(proposal: Proposal) -> str:
    """Peak of a training step, and the memory of the device, both of `longvit plan`."""
    canvas = proposal.canvas
    slides = canvas.plan.settings.batch_size
    return (
        f"{canvas.peak / _GIB:.2f} GiB for a training step of {slides} slide{'s' * (slides != 1)}, computed as by "
        f"`longvit plan`, of {canvas.plan.budget / _GIB:,.1f} GiB on {proposal.device.name}"
    )


def folds_line(proposal: Proposal) -> str:
    """Folds that are proposed, or none, with the reason."""
    folds = proposal.runs.folds
    return f"none: {proposal.runs.why}" if folds is None else f"--folds {folds}: {proposal.runs.why}"


def time_line(proposal: Proposal) -> str:
    """Hours of training and of reading, and where the numbers come from."""
    speed, runs = proposal.speed, proposal.runs
    text = ("about " if speed.steps else "at least ") + duration(proposal.training_s([runs.single]))
    if runs.of_folds:
        text += f", {duration(proposal.training_s(runs.of_folds))} for {len(runs.of_folds)} folds"
    if speed.steps:
        text += f" (measured here: {speed.step_s:.2g} s a slide, {speed.steps} step{'s' * (speed.steps != 1)})"
    else:
        text += " (not measured: the floor of `longvit plan`; a step takes about 3 times as long)"
    if proposal.reading_s is None:
        return f"{text}; reading every slide once is not measured and takes additional time"
    return f"{text}; {duration(proposal.reading_s)} to read every slide once (measured on one)"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_json(proposal: Proposal, table: Mapping[str, tuple[Any, str]], task_why: str) -> dict[str, Any]:
    """The proposal as JSON values: settings with reasons, slides, bytes, seconds."""
    sample, plan, runs = proposal.sample, proposal.canvas.plan, proposal.runs
    return {
        "settings": {key: value for key, (value, _) in lines(proposal, table, task_why).items()},
        "reasons": {key: why for key, (_, why) in lines(proposal, table, task_why).items()},
        "slides": len(proposal.cohort.rows),
        "patients": len({row.case_id for row in proposal.cohort.rows}),
        "classes": class_counts(proposal),
        "opened": [{**asdict(slide), "size_px": list(slide.size_px)} for slide in sample.opened],
        "unreadable": [{"slide_id": slide_id, "error": error} for slide_id, error in sample.unreadable.items()],
        "folds": runs.folds,
        "um_per_px": proposal.um_per_px,
        "memory": {"peak_bytes": plan.memory.total, "budget_bytes": plan.budget, "device": proposal.device.name},
        "time": {
            "training_s": proposal.training_s([runs.single]),
            "folds_s": proposal.training_s(runs.of_folds) if runs.of_folds else None,
            "reading_s": proposal.reading_s,
            "step_s_per_slide": proposal.speed.step_s,
            "source": "measured" if proposal.speed.steps else "floor of plan",
        },
    }


def _block(key: str, value: Any, why: str) -> str:
    text = yaml.safe_dump({key: value}, default_flow_style=False, allow_unicode=True, width=10**6).rstrip()
    return "\n".join([*_comment(why), text])


def _comment(text: str) -> Sequence[str]:
    marked = {"width": _WIDTH, "initial_indent": "# ", "subsequent_indent": "# "}
    return textwrap.wrap(printable(text), **marked, break_long_words=False)  # type: ignore[arg-type]
