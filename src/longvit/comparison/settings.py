"""Settings of a comparison, with the papers' defaults. Light to import: the command line reads them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from longvit.comparison.system_spec import SystemSpec, system_spec
from longvit.config import check_choices, check_values, read_yaml
from longvit.errors import InputError
from longvit.tasks.settings import TaskSettings
from longvit.training.settings import DeviceRuntime


@dataclass(frozen=True, kw_only=True)
class ComparisonRecipe(TaskSettings):
    """Settings of a comparison that decide the result of every trial."""

    epochs: int = 20
    """Passes over the training bags; the model is evaluated after the last one."""
    lr: float = 2e-4
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    """Weight decay of Adam, added to the gradient."""
    bags: Literal["slide", "patient"] | None = None
    """A bag: the tiles of a slide, or of all slides of a patient together. Left out: a patient in survival, else a
    slide."""
    bags_per_step: int | None = None
    """Bags per optimiser step. Left out: as published, 1 for subtyping, 32 for survival."""
    rest: Literal["carried", "stepped", "dropped"] | None = None
    """Last bags of an epoch, fewer than a step takes: carried into the next epoch's first step, stepped by themselves,
    or dropped. Left out: as published, carried for survival, stepped for subtyping."""
    balanced: bool = True
    """Draw training bags with replacement so that classes (survival: time bins, with and without event) are equally
    frequent."""
    seed: int = 1
    """Seed of the weights, the order of the bags, dropout, new folds and the bootstrap."""
    allow_leak: bool = False
    """Train although a patient is on two sides of a fold, as in some published folds; every result states it."""


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(DeviceRuntime, ComparisonRecipe):
    """Baselines on bags of tile features; the defaults are those of HIPT's and MCAT's trainings.

    A bag is a slide, or (survival, or with `bags="patient"`) a patient with all slides concatenated.

    >>> import longvit
    >>> longvit.ComparisonSettings(systems=("clam_sb", "transmil"), epochs=5).task
    'subtyping'
    """

    systems: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Systems to compare, e.g. clam_sb, mcat, deep_sets+concat (omics joined to the tiles; or +bilinear). Left out: all
    that the inputs allow."""
    set: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Settings of a system, e.g. gcn_mil.graph=coordinates or hipt.region_checkpoint=vit4k_xs_dino.pth."""
    cell: str | None = None
    """Column of the paper's tables, for the published rows: table1/brca, table2/ucec …"""
    bootstrap: int = 1000
    """Resamples of the patients for the 95 % intervals."""
    memory_mb: int = 4096
    """Features kept in memory, in MB; the others are read whenever they are needed."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("bags_per_step", 1), ("seed", 0), ("bootstrap", 0), ("memory_mb", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} {value}: at least {low}")
        super().__post_init__()
        check_choices(self)
        check_values(self, n_bins=1000, threads=4096, bootstrap=10**6)
        for text in self.systems:
            system_spec(text)
        _ = self.system_settings

    @property
    def system_settings(self) -> dict[str, dict[str, Any]]:
        """System -> its settings in `set`; `InputError` for one that cannot be parsed."""
        settings: dict[str, dict[str, Any]] = {}
        for text in self.set:
            name, equals, value = text.partition("=")
            system, dot, key = name.partition(".")
            if not (equals and dot and key):
                raise InputError(f"--set {text}: expected a form such as gcn_mil.graph=coordinates")
            system_spec(system)
            parsed = read_yaml(value, f"--set {text}")
            if isinstance(parsed, str):
                with suppress(ValueError):
                    parsed = float(parsed)  # 1e-4 is a text to YAML 1.1
            settings.setdefault(system, {})[key] = parsed
        return settings

    def system_specs(self) -> tuple[SystemSpec, ...]:
        """`systems`, parsed; empty where they were left out."""
        return tuple(system_spec(text) for text in dict.fromkeys(self.systems))
