"""External validation of a comparison (`longvit benchmark`): every system on the feature bags of cohort B.

The trials of a system are its members, as the folds of a cross-validation are: each predicts the bags of B, and their
ensemble is the mean. Systems that read omics or pixels are left out, with a note.

OUT/external/index.html     every system in one table
OUT/external/metrics.json   system -> the content of the metrics.json of that system
OUT/<system>/external/      page, metrics and tables of one system, as `longvit.external.validate` lists them
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.comparison.bag_cohort import BagCohort, make_bag_cohort
from longvit.comparison.bag_slides import feature_hashes
from longvit.comparison.bags import Bags
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import SystemSpec, system_spec
from longvit.config import check_keys, read_recipe, typed
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.folds import Fold, assign, read_folds
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import pick_device, set_threads
from longvit.errors import InputError
from longvit.external.member_predictions import ExternalLogits
from longvit.external.overlap import find_overlap, resolve_overlap
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import Member, SourceRun
from longvit.external.text import levels_of, main_metric, main_system, ranged
from longvit.external.validate import FOLDER, ExternalResult, check_options, write_validation
from longvit.files import make_folder, write_text
from longvit.finetuning.run_slides import RunSlides, read_run_slides
from longvit.json_file import read_json_object
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.baselines.system import System
    from longvit.device import Device


@dataclass(frozen=True)
class ComparedSystem:
    """A system of a comparison: its trials as the members of a run."""

    spec: SystemSpec
    run: SourceRun


def is_comparison(folder: Path) -> bool:
    """True for the folder of a finished comparison."""
    return (folder / "benchmark.json").is_file()


def read_compared_systems(folder: Path) -> tuple[tuple[ComparedSystem, ...], tuple[str, ...]]:
    """Systems of a comparison that read features alone, and a note on the others. `InputError`: a damaged file."""
    slides = read_run_slides(folder)
    if slides is None:
        raise InputError(
            f"{folder}: no slides.csv, as in comparisons of older versions; give its `longvit benchmark` command again"
        )
    settings = _settings(folder / "settings.yaml")
    folds = {fold.name: fold for fold in read_folds(folder / "folds")}
    try:
        names = [str(row["system"]) for row in read_json_object(folder / "benchmark.json")["systems"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'benchmark.json'}: damaged; give its command again") from error
    systems, others = [], []
    for name in names:
        if name == "longvit":
            others.append(name)
            continue
        spec = system_spec(name)
        if spec.reads_omics or spec.reads_pixels:
            others.append(name)
            continue
        members = [
            member
            for fold in folds.values()
            if (member := _member(folder / name / f"fold_{fold.name}", fold, slides, settings)) is not None
        ]
        if members:
            systems.append(ComparedSystem(spec, SourceRun(folder / name, tuple(members))))
    if not systems:
        raise InputError(f"{folder}: no finished system that reads features alone")
    notes = (f"left out, since they need more than features: {', '.join(others)}",) if others else ()
    return tuple(systems), notes


def validate_comparison(
    folder: Path,
    systems: Sequence[ComparedSystem],
    cohort: Cohort,
    features: Path,
    out_dir: Path,
    settings: ExternalSettings,
    *,
    notes: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
) -> ExternalResult:
    """Validates every system on the bags of a cohort with labels; errors as in `longvit.external.validate.validate`.

    `InputError` also for features of another width than those of the comparison.
    """
    first = systems[0].run
    check_options(first, cohort, settings)
    make_folder(out_dir)
    set_threads(threads)
    chosen = pick_device(device)
    task = first.settings.task
    problems: list[Problem] = []
    bag_cohort = make_bag_cohort(cohort, task, features, None, 2048, left_out=problems.extend)
    write_problems(out_dir / PROBLEMS_CSV, problems)
    known = first.first.slides
    assert known is not None
    overlap = find_overlap(bag_cohort.cohort.rows, feature_hashes(bag_cohort), known.rows, known.content)
    kept, overlap = resolve_overlap(bag_cohort.cohort, overlap, settings.overlap, str(folder))
    kept = replace(kept, notes=(*kept.notes, *notes))
    rows = bag_cohort.unit_rows(kept.rows)
    results: dict[str, dict[str, Any]] = {}
    with Progress("predicting", len(systems) * len(rows) * len(first.members), unit="bags") as progress:
        for system in systems:
            members = {
                member.name: _logits(member, system.spec, bag_cohort, rows, chosen, progress)
                for member in system.run.members
            }
            logits = ExternalLogits(rows, members, {}, tuple(problems))
            own = make_folder(out_dir / system.spec.name)
            results[system.spec.name] = write_validation(system.run, kept, logits, overlap, settings, own)
    external = make_folder(out_dir / FOLDER)
    _write_page(folder, results, external)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(external / "metrics.json", text + "\n")
    return ExternalResult(external, results, tuple(problems))


def comparison_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line per system for the terminal: its main metric per level, and the change from A to B."""
    lines = []
    for name, metrics in results.items():
        parts = []
        for level, entries in levels_of(metrics).items():
            metric = main_metric(metrics)
            text = f"{level} {ranged(entries['systems'][main_system(metrics)][metric])}"
            if (drop := entries.get("drop")) is not None:
                text += f", change from A {ranged(drop['metrics'][metric]['difference'])}"
            parts.append(text)
        lines.append(f"{name}: {'; '.join(parts)}")
    return lines


def _settings(path: Path) -> ComparisonSettings:
    """Settings of a comparison from its settings.yaml."""
    values = {key: value for key, value in read_recipe(path).items() if value is not None}
    check_keys(path, values, ComparisonSettings.__dataclass_fields__)
    return ComparisonSettings(**typed(ComparisonSettings, values, path))


def _member(folder: Path, fold: Fold, slides: RunSlides, settings: ComparisonSettings) -> Member | None:
    """A finished trial; None for another."""
    path = folder / "metrics.json"
    try:
        metrics = read_json_object(path)
        training = metrics["training"]
        cohort = assign(
            replace(slides.cohort(()), rows=tuple(replace(row, split=None) for row in slides.rows)),
            fold,
            allow_leak=True,
        )
        whole = {
            **metrics,
            "classes": list(metrics["outputs"]),
            "training": {**training, "slides": training["bags"], "starts_from": "random weights"},
        }
        whole["training"]["patients"] = len({row.case_id for row in cohort.split("train")})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and give the command again") from error
    return Member(f"fold {fold.name}", folder, settings, whole, RunSlides(slides.path, cohort.rows, slides.content))


def _logits(
    member: Member,
    spec: SystemSpec,
    bag_cohort: BagCohort,
    rows: Sequence[SlideRow],
    device: Device,
    progress: Progress,
) -> np.ndarray:
    """Logits float64 (N, W) of the bags of `rows`."""
    import torch

    model = _load(member, spec, bag_cohort).to(device.device).eval()
    bags = Bags(bag_cohort, rows, spec, device.device)
    bags.prepare(model)
    logits = []
    with torch.no_grad():
        for bag in bags:
            z = model(bag).logits
            if not bool(torch.isfinite(z).all()):
                raise InputError(f"{bag.name}: the output of {spec.name} is not finite")
            logits.append(z.double().cpu().numpy())
            progress.advance()
    return np.stack(logits)


def _load(member: Member, spec: SystemSpec, bag_cohort: BagCohort) -> System:
    """System of a trial with its weights. `InputError`: features of another width, damaged weights."""
    from longvit.baselines.system import create_system
    from longvit.model.checkpoints import read_tensors
    from longvit.tasks.task import task_class

    path, kind = member.folder / "model.safetensors", task_class(member.settings.task)
    model = create_system(
        spec.system,
        in_dim=bag_cohort.width,
        outputs=len(member.classes),
        task="subtyping" if kind.outputs_are_classes else "survival" if kind.per_patient else "other",
        fusion=None,
        **member.metrics["decided_by"]["settings of the system"],
    )
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise InputError(
            f"{path}: does not fit features {bag_cohort.width} wide; give features of the encoder that the comparison "
            f"used"
        ) from error
    return model


def _write_page(folder: Path, results: Mapping[str, Mapping[str, Any]], external: Path) -> None:
    """Writes index.html: every system in one table per level."""
    from longvit.report.labels import counted, metric_label
    from longvit.report.page import Report, Row, Section, Table, number, write_report
    from longvit.report.versions import versions_line

    first = next(iter(results.values()))
    metric = main_metric(first)
    tables = []
    for level in levels_of(first):
        rows = []
        for name, metrics in results.items():
            entries = levels_of(metrics)[level]
            drop = (entries.get("drop") or {"metrics": {}})["metrics"].get(metric)
            point = (entries.get("threshold") or {}).get("at_prevalence_of_b")
            rows.append(
                Row(
                    [
                        name,
                        ranged(entries["systems"][main_system(metrics)][metric]),
                        "–" if drop is None else number(drop["a"], 3),
                        "–" if drop is None else number(drop["b"], 3),
                        "–" if drop is None else ranged(drop["difference"]),
                        "–" if point is None else ranged(point["sensitivity"]),
                        "–" if point is None else ranged(point["specificity"]),
                    ]
                )
            )
        columns = (
            f"per {level[:-1]}", f"{metric_label(metric)} on B (ensemble)", "folds on A", "folds on B",
            "change (95 % interval)", "sensitivity", "specificity",
        )  # fmt: skip
        tables.append(Table(columns, rows, frozenset(range(1, len(columns))), first_stays=True))
    b = first["cohort_b"]
    report = Report(
        title=f"External validation of {folder.name} on {Path(first['table']).name}",
        lead=(
            f"{counted(len(results), 'system')} of {folder.name} (cohort A) on {counted(b['slides'], 'bag')} of "
            f"{counted(b['patients'], 'patient')} (cohort B). A page of each system is in its own folder.",
        ),
        notes=tuple(first["notes"]),
        cards=(),
        sections=(
            Section("Systems", tables=tables),
            Section("Versions", points=(versions_line(),), folded="Show versions"),
        ),
    )
    write_report(report, external / "index.html")
