"""Reproduction before anything runs: protocol, slides, starting weights, settings, cost; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.comparison.settings import ComparisonSettings
from longvit.config import check_keys, load_settings, read_recipe, typed
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.public.selection import Selection, select
from longvit.reproduce.cells import Cell
from longvit.reproduce.cost import Cost, cell_cost
from longvit.reproduce.protocol import CellProtocol, read_protocol
from longvit.reproduce.settings import ReproduceSettings

if TYPE_CHECKING:
    from longvit.public.idc_index import IdcIndex

_FIXED = ("task", "cell", "systems", "weights", "cache_dir", "device")
"""Settings that the cell and the command decide."""


@dataclass(frozen=True)
class Reproduction:
    """A reproduction before anything runs."""

    cell: Cell
    protocol: CellProtocol
    selection: Selection
    """Slides of the archive; empty for a cell that reads none."""
    settings: FinetuneSettings | ComparisonSettings
    """Settings of the training: those of the recipe with the changes."""
    changes: Mapping[str, Any]
    """Settings that differ from the recipe."""
    options: ReproduceSettings
    cost: Cost

    @property
    def start(self) -> str:
        """Starting weights in words; those of a baseline are random."""
        if self.cell.system is not None:
            return "random weights, as published"
        weights = self.options.weights
        if weights is None:
            return "random weights: no --weights was given, while the paper's LongViT was pretrained"
        return f"the checkpoint {weights}" if weights.is_file() else f"the model {weights}"


def prepare(cell: Cell, options: ReproduceSettings, fetched: Path | None = None) -> Reproduction:
    """Reads the protocol, selects the slides and plans the cost of a cell.

    `fetched`: folder of canvases and features, where it exists.

    Raises `InputError`: a clone that lacks the protocol, no index, an unknown setting, weights that do not exist, and
    an encoder for LongViT.
    """
    _check_options(cell, options)
    protocol = read_protocol(cell, options.protocol, fetched)
    settings, changes = _settings(cell, options)
    selection = select_slides(protocol, options.index)
    cost = cell_cost(
        protocol,
        selection.slides,
        disk_gb=options.disk_gb,
        settings=settings if isinstance(settings, FinetuneSettings) else None,
        keep_slides=options.keep_slides,
        has_weights=options.weights is not None,
    )
    return Reproduction(cell, protocol, selection, settings, changes, options, cost)


def select_slides(protocol: CellProtocol, index: Path | None = None) -> Selection:
    """Slides of a cell in the archive, by the ids of the published table."""
    if not protocol.slides:
        return Selection(())
    ids = [row.slide_id for row in protocol.slides]
    return select(protocol.cell.protocol.collections, ids=ids, index=_index(index))


@cache
def _index(path: Path | None) -> IdcIndex:
    """The index, opened once."""
    from longvit.public.idc_index import IdcIndex

    return IdcIndex(path)


def _check_options(cell: Cell, options: ReproduceSettings) -> None:
    if options.changes is not None and not options.changes.is_file():
        raise InputError(f"--changes {options.changes}: no such file")
    if cell.system is None and options.encoder is not None:
        raise InputError(f"--encoder {options.encoder}: {cell.name} is LongViT, which reads canvases; omit it")
    if cell.system is not None and options.weights is not None:
        raise InputError(f"--weights {options.weights}: {cell.name} starts from random weights, as published; omit it")
    if options.weights is not None and not options.weights.exists():
        from longvit.model.pretrained import shipped_names

        if str(options.weights) not in shipped_names():
            raise InputError(f"--weights {options.weights}: no such file, folder or model of the package")


def _settings(
    cell: Cell, options: ReproduceSettings
) -> tuple[FinetuneSettings | ComparisonSettings, Mapping[str, Any]]:
    """Settings of the training, and those that differ from the recipe."""
    kind: type[FinetuneSettings] | type[ComparisonSettings]
    kind = FinetuneSettings if cell.system is None else ComparisonSettings
    recipe: FinetuneSettings | ComparisonSettings = load_settings(kind, cell.recipe)
    given: dict[str, Any] = {"device": options.device}
    changes: dict[str, Any] = {}
    if options.changes is not None:
        changes = {key.replace("-", "_"): value for key, value in read_recipe(options.changes).items()}
        check_keys(options.changes, changes, [field.name for field in fields(kind) if field.name not in _FIXED])
        changes = typed(kind, changes, options.changes)
        given |= changes
    if isinstance(recipe, ComparisonSettings):
        assert cell.system is not None
        given["systems"] = (cell.system,)
    settings = replace(recipe, **given)
    return settings, {name: value for name, value in changes.items() if getattr(recipe, name) != value}
