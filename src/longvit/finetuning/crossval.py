"""Cross-validation: a fine-tuning per fold, one after another or in parallel, each resumable; then one table.

OUT/settings.yaml           all settings
OUT/folds/splits_<name>.csv the folds, as every tool reads them
OUT/canvases/               shared by the folds, unless --cache-dir names another folder
OUT/fold_<name>/            a fine-tuning (run.py); fold_<name>.log where folds run in parallel
OUT/pictures/               every plot of the report, as PNG and SVG
OUT/predictions.csv         fold, then the columns of the folds' predictions
OUT/patients.csv            the same per patient
OUT/crossval.json           `CrossValidation.summary`; written last

The metric of a fold is that of its test slides after the last epoch. Where the folds have no test (survival as in
MCAT), it is that of val; `best_val`, chosen on the same slides, is then optimistic and marked so.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, assign, write_folds
from longvit.errors import InputError
from longvit.files import write_csv, write_text
from longvit.finetuning.fold_metrics import Round, gaps, pooled
from longvit.finetuning.patient_results import PATIENTS_CSV
from longvit.finetuning.prepare_cohort import prepare_cohort
from longvit.finetuning.run import FinetuneResult, finetune
from longvit.finetuning.settings import FinetuneSettings
from longvit.finetuning.shortcut import shortcut_of_folds
from longvit.json_file import without_nan
from longvit.processes.child import ChildProcess
from longvit.progress import Progress
from longvit.tasks.task import task_class
from longvit.training.interruption import Interrupted, StopSignals
from longvit.training.run_folder import METRICS_JSON, RunFolder

if TYPE_CHECKING:
    from longvit.parallel.ranks import Ranks

# The papers' tables: sample SD over the 10 subtyping folds, population SD over the 5 survival folds.
DDOF = {"subtyping": 1, "survival": 0}


@dataclass(frozen=True)
class CrossValidation:
    """Result of a cross-validation, finished or not.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=32, epochs=1, device="cpu")
    >>> result = longvit.cross_validate(cohort, "runs/two", longvit.make_folds(cohort, 2), settings, only=["0"])
    >>> result.missing, len(result.summary["folds"])
    (('1',), 1)
    """

    folder: Path
    """Output folder."""
    summary: dict[str, Any]
    """Content of crossval.json (a metric that is not defined is None):

    - `task`, `classes`, `cell`, `figure` (the main metric), `mean`, `sd`, `ddof`, `evaluated` (test or val),
      `optimistic_best_val`
    - `folds`: fold, slides, last, best_val, controls, patients (metrics each), leaks, left_out
    - `patients`: mean and sd of the main metric per patient, and `aggregate`; None for folds of older versions
    - `best_val`: mean and sd of the main metric at the best epoch; `controls`: name -> mean, sd
    - `epoch_optimism`: mean and sd of what choosing the epoch on the evaluated slides would add; None if not defined
    - `gap`: control -> mean over the folds of (model - control), 95 % interval, resampled by patient in every fold
    - `published`: the best published baseline of `cell` (row, mean, sd), or None
    - `shortcut`: sentence on a likely shortcut over the evaluated slides of all folds, or None
    - `pooled`: metric -> value, low, high over all folds' slides, where outputs of different folds can be compared
    """
    missing: tuple[str, ...] = ()
    """Folds that are not finished; the summary covers the others."""
    left_out: tuple[str, ...] = ()
    """Slides without a result in some fold."""

    def text(self) -> str:
        """Lines for the terminal."""
        s = self.summary
        name = f"{task_class(s['task']).metric_label} on {s['evaluated']}"
        lines = [f"{name}: {_mean_sd(s)} over {len(s['folds'])} folds (SD with ddof {s['ddof']}), last epoch"]
        lines += [f"  fold {f['fold']}: {_text(f['last'][s['figure']])}" for f in s["folds"]]
        if (patients := s.get("patients")) is not None:
            lines.append(f"per patient ({patients['aggregate']} of the slides): {_mean_sd(patients)}")
        if s["best_val"] is not None:
            mark = " (optimistic: chosen on the evaluated slides)" if s["optimistic_best_val"] else ""
            lines.append(f"best val epoch: {_mean_sd(s['best_val'])}{mark}")
        if (optimism := s.get("epoch_optimism")) is not None:
            lines.append(f"optimism of choosing the epoch on {s['evaluated']}: {_mean_sd(optimism)}")
        for control, spread in s["controls"].items():
            gap = s["gap"][control]
            lines.append(
                f"control {control.replace('_', ' ')}: {_mean_sd(spread)}; the model is ahead by {_text(gap['value'])} "
                f"(95 % interval {_text(gap['low'])} to {_text(gap['high'])})"
            )
        if leaked := sum(sum(f["leaks"].values()) for f in s["folds"]):
            lines.append(f"LEAK: {leaked} times a patient is on two sides of a fold; the metrics are optimistic")
        return "\n".join(lines)


def cross_validate(
    cohort: Cohort,
    out_dir: str | Path,
    folds: Sequence[Fold],
    settings: FinetuneSettings,
    *,
    only: Sequence[str] = (),
    command: Sequence[str] | None = None,
    jobs: int = 1,
    ranks: Ranks | None = None,
) -> CrossValidation | None:
    """Fine-tunes on every fold (or on those named in `only`) and summarises the finished ones.

    `ranks`: see `finetune`; the first rank returns the summary, the others None.

    With the same cohort, folds and settings an interrupted cross-validation resumes. All folds are checked before the
    first slide is read.

    `jobs` > 1 runs that many folds at once, each in a process with its output in fold_<name>.log. `command`: arguments
    of `longvit` for these processes, to which `--fold NAME` is added.

    Raises `InputError`: a patient on two sides of a fold (unless `settings.allow_leak`), an unknown name in `only`, and
    the errors of `finetune`.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=32, epochs=1, device="cpu")
    >>> result = longvit.cross_validate(cohort, "runs/cv", longvit.make_folds(cohort, 2), settings)
    >>> result.missing
    ()
    """
    run_folder = RunFolder(out_dir, ranks)
    is_first, folder = run_folder.is_first, run_folder.path
    if ranks is not None and ranks.world > 1 and jobs > 1:
        raise InputError(f"--jobs {jobs}: the ranks of torchrun share each fold; omit --jobs")
    if unknown := [name for name in only if name not in {fold.name for fold in folds}]:
        raise InputError(f"--fold {unknown[0]}: choose {', '.join(fold.name for fold in folds)}")
    if settings.cache_dir is None:
        settings = replace(settings, cache_dir=folder / "canvases")
    _published(settings.cell)
    cohorts = {}
    for fold in folds:
        assigned = assign(replace_splits(cohort), fold, allow_leak=settings.allow_leak)
        prepare_cohort(assigned, settings)
        cohorts[fold.name] = assigned
    if not only and is_first:  # the process of one fold must not write what the others read
        write_folds(folder / "folds", folds)
        run_folder.write_settings(settings)
    wanted = [fold.name for fold in folds if not only or fold.name in only]
    if jobs > 1 and command is not None and len(wanted) > 1:
        pending = [name for name in wanted if not (folder / f"fold_{name}" / METRICS_JSON).exists()]
        _run_in_parallel(pending, folder, command, jobs)
    else:
        for name in wanted:
            if is_first:
                print(f"fold {name} ({wanted.index(name) + 1} of {len(wanted)})", file=sys.stderr, flush=True)
            finetune(cohorts[name], folder / f"fold_{name}", settings, ranks=ranks)
    if not is_first:
        return None
    return summarise(cohorts, settings, folder)


def replace_splits(cohort: Cohort) -> Cohort:
    """Cohort without the splits of the CSV; those of a fold replace them."""
    return replace(cohort, rows=tuple(replace(row, split=None) for row in cohort.rows))


def summarise(cohorts: Mapping[str, Cohort], settings: FinetuneSettings, folder: Path) -> CrossValidation:
    """Summary of the finished folds; writes crossval.json and predictions.csv where all are finished.

    `cohorts`: fold -> cohort with its splits.
    """
    results: dict[str, FinetuneResult] = {}
    for name, cohort in cohorts.items():
        if (folder / f"fold_{name}" / METRICS_JSON).exists():
            results[name] = finetune(cohort, folder / f"fold_{name}", settings)
    missing = tuple(name for name in cohorts if name not in results)
    if not results:
        raise InputError(f"{folder}: no fold is finished")
    all_metrics = {name: result.metrics for name, result in results.items()}
    evaluated = "test" if all("test" in m["splits"] for m in all_metrics.values()) else "val"
    first = next(iter(all_metrics.values()))
    main, ddof = first["figure"], DDOF.get(first["task"], 1)
    rounds = [Round(prepare_cohort(cohorts[name], settings), folder / f"fold_{name}", evaluated) for name in results]
    folds = [_fold_summary(name, m, evaluated) for name, m in all_metrics.items()]
    optimism = [entry["value"] for m in all_metrics.values() if (entry := m.get("epoch_optimism")) is not None]
    best_values = [f["best_val"].get(main) for f in folds if f["best_val"] is not None]
    summary = without_nan(
        {
            "task": first["task"],
            "classes": first["classes"],
            "cell": settings.cell,
            "figure": main,
            **_spread([f["last"][main] for f in folds], ddof),
            "ddof": ddof,
            "evaluated": evaluated,
            "optimistic_best_val": evaluated == "val",
            "best_val": _spread(best_values, ddof) if best_values else None,
            "patients": _patients(folds, main, settings, ddof),
            "epoch_optimism": _spread(optimism, ddof) if optimism else None,
            "controls": {c: _spread([f["controls"][c][main] for f in folds], ddof) for c in first["controls"]},
            "gap": gaps(rounds, settings.bootstrap, settings.seed) if first["controls"] else {},
            "pooled": pooled(rounds, settings) if task_class(first["task"]).pools_folds else {},
            "published": _published(settings.cell),
            "shortcut": shortcut_of_folds([(r.task, r.model) for r in rounds]),
            "folds": folds,
            "settings": json.loads(json.dumps(asdict(settings), default=str)),
            "notes": list(dict.fromkeys(note for m in all_metrics.values() for note in m["notes"])),
            **_versions(),
        }
    )
    left_out = tuple(dict.fromkeys(slide for f in folds for slide in f["left_out"]))
    if not missing:
        _join_predictions(results, "predictions.csv", folder)
        if all((result.folder / PATIENTS_CSV).exists() for result in results.values()):
            _join_predictions(results, PATIENTS_CSV, folder)
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "crossval.json", text + "\n")
    return CrossValidation(folder, summary, missing, left_out)


def _fold_summary(name: str, metrics: Mapping[str, Any], evaluated: str) -> dict[str, Any]:
    """Entry of `folds` in the summary, from the metrics of a fine-tuning."""
    best = metrics["best_val"]
    return {
        "fold": name,
        "slides": {"train": metrics["training"]["slides"], **{s: m["slides"] for s, m in metrics["splits"].items()}},
        "last": _metrics(metrics["splits"][evaluated]),
        "best_val": None if best is None else {"epoch": best["epoch"], **_metrics(best.get(evaluated, {}))},
        "patients": _metrics(metrics.get("patients", {}).get(evaluated, {})),
        "controls": {control: by_split[evaluated] for control, by_split in metrics["controls"].items()},
        "leaks": metrics["leaks"],
        "left_out": metrics["left_out"],
    }


def _patients(
    folds: Sequence[Mapping[str, Any]], main: str, settings: FinetuneSettings, ddof: int
) -> dict[str, Any] | None:
    """Mean and SD over the folds of the main metric per patient; None where a fold has none."""
    if any(main not in fold["patients"] for fold in folds):
        return None
    return {"aggregate": settings.aggregate, **_spread([fold["patients"][main] for fold in folds], ddof)}


def _run_in_parallel(names: Sequence[str], folder: Path, command: Sequence[str], jobs: int) -> None:
    """Runs each fold in a process, `jobs` at a time; a failed one does not stop the others.

    A signal that stops this process stops them too, each after a checkpoint.
    """
    waiting, failed = list(names), []
    running: dict[str, tuple[ChildProcess, IO[str]]] = {}
    with Progress("folds", len(names), unit="folds") as progress, StopSignals(log=False) as stop:
        try:
            while waiting or running:
                if stop.received is not None:
                    raise Interrupted(stop.received)
                while waiting and len(running) < jobs:
                    name = waiting.pop(0)
                    log = (folder / f"fold_{name}.log").open("w")
                    # In the session of this process: a terminal that is closed ends the folds too.
                    child = ChildProcess(
                        "longvit", *command, "--fold", name,
                        has_pipe=False, stdout=log, stderr=subprocess.STDOUT, own_session=False,
                    )  # fmt: skip
                    running[name] = (child, log)
                for name in list(running):
                    child, output = running[name]
                    code = child.exit_code()
                    if code is not None:
                        child.close()
                        output.close()
                        del running[name]
                        if code not in (0, 1):  # 1: done, with slides left out
                            failed.append(name)
                        progress.advance(note=f"fold {name}" + (" failed" if name in failed else ""))
                time.sleep(0.1)
        finally:
            for child, _ in running.values():
                child.terminate()
            for child, output in running.values():
                child.wait()
                child.close()
                output.close()
    if failed:
        path = folder / f"fold_{failed[0]}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(
            f"fold {failed[0]} failed: {lines[-1] if lines else 'no message'} (see {path}); the other folds were run"
        )


def _join_predictions(results: Mapping[str, FinetuneResult], name: str, folder: Path) -> None:
    """Joins the folds' tables, with the columns that all have (time bins differ from fold to fold)."""
    tables, headers = {}, []
    for fold, result in results.items():
        with (result.folder / name).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            tables[fold] = list(reader)
            headers.append(list(reader.fieldnames or ()))
    header = [column for column in headers[0] if all(column in other for other in headers)]
    rows = ([fold, *(line[column] for column in header)] for fold, table in tables.items() for line in table)
    write_csv(folder / name, ["fold", *header], rows)


def _metrics(split_metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics of a split, without counts, intervals and loss."""
    others = ("slides", "patients", "loss", "aggregate", "left_out")
    return {k: v for k, v in split_metrics.items() if k not in others and not k.endswith("_interval")}


def _spread(values: Sequence[float | None], ddof: int) -> dict[str, Any]:
    defined = [v for v in values if v is not None and math.isfinite(v)]
    if not defined:
        return {"mean": None, "sd": None}
    sd = None
    if len(defined) > ddof:
        sd = statistics.stdev(defined) if ddof == 1 else statistics.pstdev(defined)
    return {"mean": statistics.fmean(defined), "sd": sd}


def _published(cell: str | None) -> dict[str, Any] | None:
    """Best published baseline of a cell such as table1/brca/1024."""
    if cell is None:
        return None
    from longvit.finetuning.paper_tables import best_published

    try:
        table, cohort, _ = cell.split("/")
        row = best_published({"table1": 1, "table2": 2, "table3": 1, "table4": 2}[table], cohort)
    except (ValueError, KeyError) as error:
        raise InputError(f"cell {cell!r}: expected a form such as table1/brca/1024; or leave it out") from error
    return {"row": row.system, "mean": row.mean, "sd": row.sd}


def _versions() -> dict[str, Any]:
    import platform
    from importlib import metadata

    from longvit import __version__

    versions = {"longvit": __version__, "torch": metadata.version("torch"), "python": platform.python_version()}
    return {**versions, "commit": _commit()}


def _commit() -> str | None:
    """Commit of the clone that this package runs from; None where it is installed or there is no git."""
    clone = Path(__file__).parents[3]
    if not (clone / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(clone), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return described.stdout.strip() or None


def _mean_sd(spread: Mapping[str, Any]) -> str:
    return f"{_text(spread['mean'])} ± {_text(spread['sd'])}"


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
