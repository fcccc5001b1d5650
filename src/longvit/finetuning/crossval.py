"""Cross-validation: a fine-tuning per fold, one after another or several at once, each resumable; then one table.

OUT/settings.yaml           all settings
OUT/folds/splits_<name>.csv the folds, as every tool reads them
OUT/canvases/               shared by the folds, unless --cache-dir says otherwise
OUT/fold_<name>/            a fine-tuning (finetune.py); fold_<name>.log where folds run side by side
OUT/pictures/               every picture of the report, as PNG and SVG
OUT/predictions.csv         fold, then the columns of the folds' predictions
OUT/crossval.json           `CrossValidation.summary`; written last

The figure of a fold is that of its test slides after the last epoch; where the folds have no test (survival as MCAT
does it) that of val, and then `best_val`, chosen on the same slides, flatters: it is marked optimistic.
"""

from __future__ import annotations

import csv
import io
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
from longvit.files import make_folder, write_text
from longvit.finetuning.fold_metrics import Round, gaps, pooled
from longvit.finetuning.prepare_cohort import prepare_cohort
from longvit.finetuning.run import FinetuneResult, finetune
from longvit.progress import Progress
from longvit.tasks.settings import FinetuneSettings
from longvit.tasks.task import task_class
from longvit.training.interruption import Interrupted, StopSignals

if TYPE_CHECKING:
    from longvit.parallel.ranks import Ranks

# The papers' tables: sample SD over the 10 subtyping folds, population SD over the 5 survival folds.
DDOF = {"subtyping": 1, "survival": 0}


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation came to, or how far it is."""

    folder: Path
    summary: dict[str, Any]
    """What crossval.json holds (figures that are not defined are None):

    task, classes, cell, figure, mean, sd, ddof, evaluated (`test` or `val`), optimistic_best_val.
    folds: fold, slides, last, best_val, controls (figures each), leaks, left_out.
    best_val: mean and sd of the figure at the best epoch. controls: name -> mean, sd.
    gap: control -> mean over the folds of (model - control) with its 95 % interval, patients drawn anew in every fold.
    published: the best published baseline of `cell` (row, mean, sd), or None.
    pooled: figure -> value, low, high over all folds' slides; only where outputs of different folds can be compared.
    """
    missing: tuple[str, ...] = ()
    """Folds that are not finished; the summary covers the others."""
    left_out: tuple[str, ...] = ()
    """Slides without a result in some fold."""

    def text(self) -> str:
        """A few lines for the terminal."""
        s = self.summary
        words = task_class(s["task"]).metric_label
        name = f"{words} on {s['evaluated']}"
        lines = [f"{name}: {_mean_sd(s)} over {len(s['folds'])} folds (SD with ddof {s['ddof']}), last epoch"]
        lines += [f"  fold {f['fold']}: {_text(f['last'][s['figure']])}" for f in s["folds"]]
        if s["best_val"] is not None:
            mark = " (optimistic: chosen on the evaluated slides)" if s["optimistic_best_val"] else ""
            lines.append(f"best val epoch: {_mean_sd(s['best_val'])}{mark}")
        for control, of in s["controls"].items():
            gap = s["gap"][control]
            lines.append(
                f"control {control.replace('_', ' ')}: {_mean_sd(of)}; the model is ahead by {_text(gap['value'])} "
                f"(95 % interval {_text(gap['low'])} to {_text(gap['high'])})"
            )
        if leaked := sum(sum(f["leaks"].values()) for f in s["folds"]):
            lines.append(f"LEAK: {leaked} times a patient stands on two sides of a fold; the figures flatter")
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
    """Fine-tunes on every fold (or on those named in `only`) and sums up those that are finished.

    `ranks`: see `finetune`; the first rank sums up, the others return None.

    Started again with the same cohort, folds and settings it goes on where it was. All folds are checked before the
    first slide is read. `jobs` > 1 runs that many folds at once, each in a process that `command` (arguments of
    `longvit`, to which `--fold NAME` is added) starts; its output goes to fold_<name>.log.

    Raises `InputError`: a patient on two sides of a fold (unless `settings.allow_leak`), an unknown name in `only`,
    and what `finetune` raises.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=32, epochs=1, device="cpu")
    >>> result = longvit.cross_validate(cohort, "runs/cv", longvit.make_folds(cohort, 2), settings)
    >>> result.missing
    ()
    """
    from longvit.config import settings_yaml

    is_first, folder = ranks is None or ranks.is_first, Path(out_dir)
    if is_first:
        make_folder(folder)
    if ranks is not None and ranks.world > 1 and jobs > 1:
        raise InputError(f"--jobs {jobs}: the ranks of torchrun share each fold; leave --jobs away")
    if unknown := [name for name in only if name not in {fold.name for fold in folds}]:
        raise InputError(f"--fold {unknown[0]}: choose {', '.join(fold.name for fold in folds)}")
    if settings.cache_dir is None:
        settings = replace(settings, cache_dir=folder / "canvases")
    _published(settings.cell)
    ready = {}
    for fold in folds:
        assigned = assign(replace_splits(cohort), fold, allow_leak=settings.allow_leak)
        prepare_cohort(assigned, settings)
        ready[fold.name] = assigned
    if not only and is_first:  # one fold's process must not write what its siblings read
        write_folds(folder / "folds", folds)
        write_text(folder / "settings.yaml", settings_yaml(settings))
    wanted = [fold.name for fold in folds if not only or fold.name in only]
    if jobs > 1 and command is not None and len(wanted) > 1:
        left = [name for name in wanted if not (folder / f"fold_{name}" / "metrics.json").exists()]
        _side_by_side(left, folder, command, jobs)
    else:
        for name in wanted:
            if is_first:
                print(f"fold {name} ({wanted.index(name) + 1} of {len(wanted)})", file=sys.stderr, flush=True)
            finetune(ready[name], folder / f"fold_{name}", settings, ranks=ranks)
    if not is_first:
        return None
    return sum_up(ready, settings, folder)


def replace_splits(cohort: Cohort) -> Cohort:
    """The cohort without the CSV's splits: the folds say who is where."""
    return replace(cohort, rows=tuple(replace(row, split=None) for row in cohort.rows))


def sum_up(ready: Mapping[str, Cohort], settings: FinetuneSettings, folder: Path) -> CrossValidation:
    """The table over the folds that are finished; writes crossval.json and predictions.csv where all are."""
    results: dict[str, FinetuneResult] = {}
    for name, cohort in ready.items():
        if (folder / f"fold_{name}" / "metrics.json").exists():
            results[name] = finetune(cohort, folder / f"fold_{name}", settings)
    missing = tuple(name for name in ready if name not in results)
    if not results:
        raise InputError(f"{folder}: no fold is finished")
    all_metrics = {name: result.metrics for name, result in results.items()}
    evaluated = "test" if all("test" in m["splits"] for m in all_metrics.values()) else "val"
    first = next(iter(all_metrics.values()))
    main, ddof = first["figure"], DDOF.get(first["task"], 1)
    rounds = {
        name: Round(prepare_cohort(ready[name], settings), folder / f"fold_{name}", evaluated) for name in results
    }
    folds = []
    for name, m in all_metrics.items():
        best = m["best_val"]
        folds.append(
            {
                "fold": name,
                "slides": {"train": m["training"]["slides"], **{s: of["slides"] for s, of in m["splits"].items()}},
                "last": _metrics(m["splits"][evaluated]),
                "best_val": None if best is None else {"epoch": best["epoch"], **_metrics(best.get(evaluated, {}))},
                "controls": {control: of[evaluated] for control, of in m["controls"].items()},
                "leaks": m["leaks"],
                "left_out": m["left_out"],
            }
        )
    of_best = [f["best_val"].get(main) for f in folds if f["best_val"] is not None]
    summary = {
        "task": first["task"],
        "classes": first["classes"],
        "cell": settings.cell,
        "figure": main,
        **_spread([f["last"][main] for f in folds], ddof),
        "ddof": ddof,
        "evaluated": evaluated,
        "optimistic_best_val": evaluated == "val",
        "best_val": _spread(of_best, ddof) if of_best else None,
        "controls": {c: _spread([f["controls"][c][main] for f in folds], ddof) for c in first["controls"]},
        "gap": gaps(list(rounds.values()), settings.bootstrap, settings.seed) if first["controls"] else {},
        "pooled": pooled(list(rounds.values()), settings) if task_class(first["task"]).has_classes else {},
        "published": _published(settings.cell),
        "folds": folds,
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
        "notes": list(dict.fromkeys(note for m in all_metrics.values() for note in m["notes"])),
        **_versions(),
    }
    left_out = tuple(dict.fromkeys(slide for f in folds for slide in f["left_out"]))
    if not missing:
        _join_predictions(results, folder / "predictions.csv")
        text = json.dumps(_plain(summary), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "crossval.json", text + "\n")
    return CrossValidation(folder, _plain(summary), missing, left_out)


def _side_by_side(names: Sequence[str], folder: Path, command: Sequence[str], jobs: int) -> None:
    """Runs folds in processes of their own, `jobs` at a time; a failed one does not stop the others.

    A signal that stops this process stops them too, each after a checkpoint.
    """
    start = "import sys; from longvit.cli import main; sys.exit(main(sys.argv[1:]))"
    waiting, failed = list(names), []
    running: dict[str, tuple[subprocess.Popen[bytes], IO[str]]] = {}
    with Progress("folds", len(names), unit="folds") as progress, StopSignals(log=False) as stop:
        try:
            while waiting or running:
                if stop.received is not None:
                    raise Interrupted(stop.received)
                while waiting and len(running) < jobs:
                    name = waiting.pop(0)
                    log = (folder / f"fold_{name}.log").open("w")
                    arguments = [sys.executable, "-c", start, *command, "--fold", name]
                    running[name] = (subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT), log)
                for name in list(running):
                    process, written = running[name]
                    if process.poll() is not None:
                        written.close()
                        del running[name]
                        if process.returncode not in (0, 1):  # 1: done, with slides left out
                            failed.append(name)
                        progress.advance(note=f"fold {name}" + (" failed" if name in failed else ""))
                time.sleep(0.1)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, written in running.values():
                process.wait()
                written.close()
    if failed:
        path = folder / f"fold_{failed[0]}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"fold {failed[0]} failed: {lines[-1] if lines else 'no word'} (see {path}); others went on")


def _join_predictions(results: Mapping[str, FinetuneResult], path: Path) -> None:
    """The folds' tables under one another, with the columns that all have (time bins differ from fold to fold)."""
    tables = {}
    for name, result in results.items():
        with result.predictions_csv.open(newline="", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    of_all = [list(table[0]) for table in tables.values() if table]
    header = [column for column in of_all[0] if all(column in columns for columns in of_all)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", *header])
    writer.writerows([name, *(line[c] for c in header)] for name, table in tables.items() for line in table)
    write_text(path, text.getvalue())


def _metrics(of_split: Mapping[str, Any]) -> dict[str, float | None]:
    """What a split says of the model, without counts, intervals and loss."""
    others = ("slides", "patients", "loss")
    return {k: v for k, v in of_split.items() if k not in others and not k.endswith("_interval")}


def _spread(values: Sequence[float | None], ddof: int) -> dict[str, Any]:
    defined = [v for v in values if v is not None and math.isfinite(v)]
    if not defined:
        return {"mean": None, "sd": None}
    sd = None
    if len(defined) > ddof:
        sd = statistics.stdev(defined) if ddof == 1 else statistics.pstdev(defined)
    return {"mean": statistics.fmean(defined), "sd": sd}


def _published(cell: str | None) -> dict[str, Any] | None:
    """The best published baseline of a cell such as table1/brca/1024."""
    if cell is None:
        return None
    from longvit.finetuning.paper_tables import best_published

    try:
        table, cohort, _ = cell.split("/")
        row = best_published({"table1": 1, "table2": 2, "table3": 1, "table4": 2}[table], cohort)
    except (ValueError, KeyError) as error:
        raise InputError(f"cell {cell!r}: it reads like table1/brca/1024; or leave it out") from error
    return {"row": row.system, "mean": row.mean, "sd": row.sd}


def _versions() -> dict[str, Any]:
    import platform
    from importlib import metadata

    from longvit import __version__

    versions = {"longvit": __version__, "torch": metadata.version("torch"), "python": platform.python_version()}
    return {**versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the clone that this package runs from; None where it is installed or there is no git."""
    clone = Path(__file__).parents[3]
    if not (clone / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _plain(value: Any) -> Any:
    """NaN is not JSON: a figure that is not defined becomes None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean_sd(of: Mapping[str, Any]) -> str:
    return f"{_text(of['mean'])} ± {_text(of['sd'])}"


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
