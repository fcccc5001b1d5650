"""Benchmark of learning curves on real tissue: LongViT against its controls, by slides, pixels, epochs and parameters.

    python benchmarks/evidence.py [--save] [--fields oral_scc …] [--axes slides …] [--systems …] [--seeds 0 1 2]
    python benchmarks/evidence.py --save --plot      # table and plot of the stored trials, nothing runs
    python benchmarks/evidence.py --quick            # every system at toy size, in a temporary file

The systems are in `evidence_systems.py`. All have the same folds: each source (staining, patient) is held out in turn.
One setting changes along an axis, the others stay at their base: all training fields, the largest canvas but one, the
base epochs, the width of the named size. A control without a setting (epochs, width) is drawn as a level.

The table has the AUC at the base and LongViT's gap to every control. Intervals (95 %) are paired: each resample draws
the cases of every source, the same ones for both systems, then folds and seeds (`paired.py`).

A power law, error = a · slides^(-b), is fitted to the mean error 1 - AUC by least squares in logarithms. It is drawn,
to ten times the slides, only where it fits: three sizes or more, a falling error, R² of at least 0.9. It is an
extrapolation, not a measurement; `crosses` is the number of slides at which two such laws meet.

`--save` keeps trials in results/evidence.json and draws evidence.png; `--out FILE` names another file. Both resume.
All trials take hours on two cores; `--work` keeps canvases and features between commands. Needs ../shared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evidence_plot import plot
from evidence_systems import FINETUNED, POOLED, SYSTEMS, Places, Trial, run_trial
from paired import gap, rounds_of
from side_by_side import HERE
from trainability_tasks import REAL, why_absent
from trials import Row, TrialFile, run_trials

RESULT = HERE / "results" / "evidence.json"
MODEL, WEIGHTS = "longvit_tiny_stem_patch32", "longvit-tiny-stem"


AXES = {"slides": "share", "pixels": "side_px", "epochs": "epochs", "parameters": "width"}
"""Axis -> the setting that changes along it."""


@dataclass(frozen=True)
class Grid:
    """Values of each axis for a set of fields; the base is the one named."""

    sides_px: tuple[int, ...]
    side_px: int
    epochs: tuple[int, ...]
    base_epochs: int
    shares: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    widths: tuple[int, ...] = (48, 96, 192)

    def base(self, system: str) -> dict[str, float]:
        """Settings of a system at the base, without those that it does not have."""
        base = {"share": 1.0, "side_px": self.side_px, "epochs": self.base_epochs, "width": self.widths[-1]}
        return {name: value for name, value in base.items() if name in settings_of(system)}


GRIDS = {
    "oral_scc": Grid((64, 128, 256), 256, (3, 6, 12, 24), 12),
    "osteosarcoma": Grid((128, 256, 512), 256, (10, 20, 40, 80), 40, shares=(0.25, 0.5, 1.0)),
    "colon": Grid((64, 128, 256, 448), 256, (3, 6, 12, 24), 12),
}
QUICK = Grid((64,), 64, (1,), 1, shares=(0.5, 1.0), widths=(48, 192))


def settings_of(system: str) -> set[str]:
    """Settings along which a system changes."""
    if system == "longvit_random":
        return {"share", "side_px", "epochs", "width"}
    return {"share", "side_px", "epochs"} if system in FINETUNED else {"share", "side_px"}


def trial_of(
    fields: str, grid: Grid, system: str, fold: str, seed: int, model: str, weights: str, **changed: float
) -> Trial:
    """A trial at the base, with the settings in `changed`."""
    settings = dict.fromkeys(AXES.values()) | grid.base(system) | changed
    return Trial(
        fields,
        system,
        fold,
        seed,
        model=model if system in FINETUNED else None,
        weights=weights if system in POOLED or system == "longvit_pretrained" else None,
        **settings,
    )


def trials_of(
    fields: str, grid: Grid, systems: Sequence[str], axes: Sequence[str], seed: int, model: str, weights: str
) -> list[Trial]:
    """Trials of a seed along some axes, the base among them; each once."""
    values = {"share": grid.shares, "side_px": grid.sides_px, "epochs": grid.epochs, "width": grid.widths}
    changes = [{}] + [{AXES[axis]: value} for axis in axes for value in values[AXES[axis]]]
    return list(
        dict.fromkeys(
            trial_of(fields, grid, system, fold, seed, model, weights, **change)
            for change in changes
            for fold in REAL[fields].held_out
            for system in systems
            if set(change) <= settings_of(system)
        )
    )


# --- curves ---------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Mean AUC over folds and seeds at one value of an axis."""

    x: float
    auc: float
    sd: float
    trials: int


class PowerLaw(NamedTuple):
    """error = a · x^(-b)."""

    a: float
    b: float
    r2: float

    def auc(self, x: np.ndarray | float) -> np.ndarray:
        return 1 - self.a * np.asarray(x, float) ** -self.b

    def text(self) -> str:
        return f"1 − AUC = {self.a:.3g} · slides^−{self.b:.3g}, R² {self.r2:.2f}"


def fit(points: Sequence[Point]) -> PowerLaw | None:
    """Power law through the mean errors; None where it does not fit (see the head of this file)."""
    if len(points) < 3 or any(point.auc >= 1 for point in points):
        return None
    x, y = np.log([point.x for point in points]), np.log([1 - point.auc for point in points])
    slope, offset = np.polyfit(x, y, 1)
    left, total = ((y - slope * x - offset) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    r2 = float(1 - left / total) if total > 0 else 0.0
    return PowerLaw(float(np.exp(offset)), float(-slope), r2) if slope < 0 and r2 >= 0.9 else None


def crossing(ours: PowerLaw, other: PowerLaw) -> float | None:
    """Number of slides from which our error is below the other's; None where it never is."""
    if ours.b <= other.b:
        return None
    return float((ours.a / other.a) ** (1 / (ours.b - other.b)))


def curve(rows: Sequence[Row], fields: str, grid: Grid, system: str, axis: str) -> list[Point]:
    """Points of a system along an axis; a single one, the base, where the axis does not apply.

    A value that lacks a source is left out: sources differ too much for a mean over some of them.
    """
    changing = AXES[axis]
    fixed = {name: value for name, value in grid.base(system).items() if name != changing}
    groups: dict[float, list[Row]] = {}
    for row in rows:
        if row["fields"] == fields and row["system"] == system and fixed.items() <= row.items():
            groups.setdefault(row[changing] or 0, []).append(row)
    points = []
    for value, found in sorted(groups.items()):
        if {row["fold"] for row in found} != set(REAL[fields].held_out):
            continue
        aucs = [row["auc"] for row in found]
        shared = [row["slides"] for row in rows if (row["fields"], row["share"]) == (fields, found[0]["share"])]
        x = {"slides": statistics.mean(shared), "pixels": value * value, "epochs": value}
        x["parameters"] = statistics.mean(row["parameters"] for row in found)
        points.append(Point(x[axis], statistics.mean(aucs), statistics.stdev(aucs) if len(aucs) > 1 else 0, len(aucs)))
    return points


def at_base(rows: Sequence[Row], fields: str, grid: Grid, system: str) -> list[Row]:
    """Rows of a system with every setting at its base."""
    fixed = {"fields": fields, "system": system} | grid.base(system)
    return [row for row in rows if fixed.items() <= row.items()]


def table(rows: Sequence[Row], grids: dict[str, Grid], asked: Sequence[Trial], done: int) -> str:
    """Text: AUC at the base, gaps of LongViT to every control, and where the curves would cross."""
    lines = [f"{done} of {len(asked)} trials"]
    for fields, grid in grids.items():
        base = {system: at_base(rows, fields, grid, system) for system in SYSTEMS}
        laws = {system: fit(curve(rows, fields, grid, system, "slides")) for system in SYSTEMS}
        if any(base.values()):
            lines += [
                "",
                f"{fields:14}{'system':20}{'AUC (trials)':16}" + "".join(f"{ours + ' −':25}" for ours in FINETUNED),
            ]
        for system, found in base.items():
            if found:
                gaps = [gap(rounds_of(base[ours], found)) for ours in FINETUNED]
                texts = [
                    f"{g.text() if ours != system and base[ours] else '':25}"
                    for ours, g in zip(FINETUNED, gaps, strict=True)
                ]
                mean = f"{statistics.mean(row['auc'] for row in found):.3f} ({len(found)})"
                lines.append(f"{'':14}{system:20}{mean:16}{''.join(texts)}")
        lines += [f"{'':14}{system}: {law.text()} (fitted, extrapolates)" for system, law in laws.items() if law]
        for ours in FINETUNED:
            for system in SYSTEMS:
                one, other = laws[ours], laws[system]
                if system not in FINETUNED and one and other:
                    n = crossing(one, other)
                    where = "never" if n is None else f"from {n:.3g} slides"
                    lines.append(f"{'':14}{ours} crosses {system}: {where} (extrapolated)")
    return "\n".join(lines)


# --- command --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="*", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--model", default=MODEL, help=f"size that starts from random weights; default: {MODEL}")
    parser.add_argument(
        "--weights", default=WEIGHTS, help=f"of longvit_pretrained and the features; default: {WEIGHTS}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trials at once, each in a process")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--quick", action="store_true", help="toy size: one epoch of 64 px, one seed")
    parser.add_argument("--plot", action="store_true", help="table and plot of the stored trials only")
    parser.add_argument("--out", type=Path, help="file of the trials, to be resumed; default: a temporary one")
    parser.add_argument("--work", type=Path, help="folder of canvases and features; default: a temporary one")
    parser.add_argument("--save", action="store_true", help="keep the trials in benchmarks/results/")
    args = parser.parse_args()
    grids = {name: QUICK if args.quick else GRIDS[name] for name in args.fields}
    for name in list(grids):
        if reason := why_absent(name):
            print(reason)
            del grids[name]
    trials = [
        trial
        for seed in ([0] if args.quick else args.seeds)
        for name, grid in grids.items()
        for trial in trials_of(name, grid, args.systems, args.axes, seed, args.model, args.weights)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        path = args.out or (RESULT if args.save else Path(temporary) / RESULT.name)
        file = TrialFile(path, "evidence")
        if not args.plot:
            places = Places(args.work or Path(temporary) / "work", args.threads)
            run_trials(file, trials, partial(run_trial, places=places), jobs=args.jobs, threads=args.threads)
        rows = [row for trial in trials if (row := file.finished(trial))]
        for failed in (row for row in file.rows() if "failed" in row):
            print(f"failed: {failed['fields']} {failed['system']} {failed['fold']}: {failed['failed']}")
        print(table(rows, grids, trials, len(rows)))
        if rows and path.parent != Path(temporary):
            curves = {
                (name, axis): {system: curve(rows, name, grid, system, axis) for system in SYSTEMS}
                for name, grid in grids.items()
                for axis in args.axes
            }
            plot(
                curves,
                {key: {s: fit(p) for s, p in c.items()} for key, c in curves.items() if key[1] == "slides"},
                path.with_suffix(".png"),
            )


if __name__ == "__main__":
    main()
