"""The settings of a comparison: how the papers trained their systems. Light to import: the command line reads them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from longvit.comparison.system_spec import SystemSpec, system_spec
from longvit.config import check_choices, check_values, read_yaml
from longvit.errors import InputError
from longvit.tasks.catalogue import TASKS
from longvit.tasks.settings import FinetuneSettings

# What may differ when a comparison is started again: who takes part, and what does not change a cell.
_RUNTIME_ONLY = ("systems", "cell", "bootstrap", "memory_mb", "checkpoint_minutes", "device", "threads")


@dataclass(frozen=True)
class ComparisonSettings:
    """Baselines on bags of tile features; the defaults are those of HIPT's and MCAT's trainings.

    >>> import longvit
    >>> longvit.ComparisonSettings(systems=("clam_sb", "transmil"), epochs=5).task
    'subtyping'
    """

    task: str = "subtyping"
    """What is asked: subtyping (a bag is a slide) or survival (a bag is a patient, all slides behind each other)."""
    systems: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Who takes part, e.g. clam_sb, mcat, deep_sets+concat (omics joined to the tiles; or +bilinear). Left out: all
    that the inputs allow."""
    set: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Settings of a system, e.g. gcn_mil.graph=coordinates or hipt.region_checkpoint=vit4k_xs_dino.pth."""
    epochs: int = 20
    """Passes over the training bags; the last is evaluated."""
    lr: float = 2e-4
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    """Adam's own, added to the gradient."""
    bags_per_step: int | None = None
    """Bags for each optimiser step. Left out: as published, 1 for subtyping, 32 for survival."""
    rest: Literal["carried", "stepped", "dropped"] | None = None
    """An epoch's last bags, fewer than a step takes: carried into the next epoch's first step, a step of their own, or
    dropped. Left out: as published, carried for survival, stepped for subtyping."""
    balanced: bool = True
    """Draw training bags so that every class (survival: every bin of time, with and without event) comes equally often,
    with replacement."""
    seed: int = 1
    """Seeds the weights, the order of the bags, dropout, new folds and the bootstrap."""
    n_bins: int = 4
    """Survival: bins of time, with equally many events in each."""
    bins: Literal["fold", "cohort"] = "fold"
    """Survival: edges of the bins from the training patients, or from the whole cohort, the published way (which lets
    the edges know the evaluated patients' times)."""
    alpha: float = 0.0
    """Survival: weight taken from the censored patients, 0 … 1."""
    time_column: str = "survival_months"
    """Survival: column of the CSV with the time, in months."""
    event_column: str | None = None
    """Survival: column that is 1 where the event happened; left out: a column called event."""
    censorship_column: str | None = None
    """Survival: column that is 1 where follow-up ended before it; left out: a column called censorship."""
    cell: str | None = None
    """Which column of the paper's tables this is, for the published rows: table1/brca, table2/ucec …"""
    allow_leak: bool = False
    """Train although a patient stands on two sides of a fold, as in some published folds; every result says so."""
    bootstrap: int = 1000
    """Resamples of the patients for the 95 % intervals."""
    memory_mb: int = 4096
    """Features kept in memory, in MB; the rest is read anew whenever it is needed."""
    checkpoint_minutes: float = 10.0
    """A checkpoint after this long, beside the one after every epoch."""
    device: str = "auto"
    """Where to compute: auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads; default: one per core."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task {self.task!r}: choose {', '.join(TASKS)}")
        for name, low in (("epochs", 1), ("bags_per_step", 1), ("seed", 0), ("bootstrap", 0), ("memory_mb", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} {value}: at least {low}")
        check_choices(self)
        check_values(self, n_bins=1000, threads=4096, bootstrap=10**6)
        self.of_task()  # checks the rest
        for text in self.systems:
            system_spec(text)
        _ = self.of_systems

    def of_task(self) -> FinetuneSettings:
        """What the task reads."""
        names = (
            *("task", "seed", "n_bins", "bins", "alpha", "time_column", "event_column", "censorship_column"),
            *("bootstrap", "allow_leak"),
        )
        return FinetuneSettings(**{name: getattr(self, name) for name in names})

    @property
    def of_systems(self) -> dict[str, dict[str, Any]]:
        """System -> its settings in `set`; `InputError` for one that cannot be read."""
        found: dict[str, dict[str, Any]] = {}
        for text in self.set:
            name, equals, value = text.partition("=")
            system, dot, key = name.partition(".")
            if not (equals and dot and key):
                raise InputError(f"--set {text}: it reads like gcn_mil.graph=coordinates")
            system_spec(system)
            read = read_yaml(value, f"--set {text}")
            if isinstance(read, str):
                with suppress(ValueError):
                    read = float(read)  # 1e-4 is a text to YAML 1.1
            found.setdefault(system, {})[key] = read
        return found

    def system_specs(self) -> tuple[SystemSpec, ...]:
        """`systems`, read; empty where they were left out."""
        return tuple(system_spec(text) for text in dict.fromkeys(self.systems))

    def result_settings(self) -> dict[str, Any]:
        """Name -> value of what decides a cell; it goes on only with the same. `set` is each system's own."""
        return {k: v for k, v in asdict(self).items() if k not in (*_RUNTIME_ONLY, "set")}
