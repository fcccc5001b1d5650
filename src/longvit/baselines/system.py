"""What a system is: features of the tiles of a bag in, logits out, in one file under baselines/ and one line in
catalogue.py. Data, folds, the loop and the figures are the same for all.

    system = create_system("clam_sb", in_dim=384, outputs=2)
    system.fit(train_bags)                       # what is fitted, not trained: on the training fold alone
    prediction = system(bag, label=1)            # logits (C,), attention (N,), a term of the loss
    predictions = system.batch(bags)             # the same numbers, the tiles of all bags at once where it can be

N tiles, D width of their features, H hidden width, C outputs, G genes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, ClassVar, Literal, cast, get_args, get_type_hints

import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.catalogue import SYSTEMS
from longvit.baselines.omics import Standardise
from longvit.config import check_keys
from longvit.errors import InputError

Fusion = Literal["concat", "bilinear"]


@dataclass(frozen=True)
class Shape:
    """What goes in and what comes out.

    in_dim: D. outputs: C, classes or bins of time. omics: G of the one vector, of each signature, or None where there
    is none. fusion: how the omics join the tiles.
    """

    in_dim: int
    outputs: int
    task: Literal["subtyping", "survival"] = "subtyping"
    omics: int | tuple[int, ...] | None = None
    fusion: Fusion | None = None


class System(nn.Module, ABC):
    """A system that is trained on bags. A subclass writes `encode` and `pool`; its settings are of its `Settings`."""

    Settings: ClassVar[type]
    reads_tiles: ClassVar[bool] = True
    """False: omics alone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.check_shape(shape)
        self.shape = shape
        widths = () if shape.omics is None else (shape.omics,) if isinstance(shape.omics, int) else shape.omics
        self.omic_scales = nn.ModuleList(Standardise(g) for g in widths)

    @classmethod
    def check_shape(cls, shape: Shape) -> None:
        """`InputError` where a system cannot be had with these inputs; here: one omic vector with a fusion, or none."""
        if (shape.omics is None) != (shape.fusion is None):
            raise InputError(
                f"omics {shape.omics}, fusion {shape.fusion}: give both (concat or bilinear) or neither of them"
            )
        if isinstance(shape.omics, tuple):
            raise InputError(f"{len(shape.omics)} omic vectors: only mcat takes signatures; give one vector")

    def fit(self, bags: Sequence[Bag]) -> None:
        """What is fitted before training, on the bags of the training fold alone: here mean and SD of the omics."""
        for i, scale in enumerate(self.omic_scales):
            assert isinstance(scale, Standardise)
            scale.fit(torch.stack([self._omic_vectors(bag)[i] for bag in bags]))

    def prepare(self, bag: Bag) -> Bag:
        """Adds what does not change in training (phenotypes, a graph): once for each bag, not in every epoch.

        A bag that has it already comes back as it is; `forward` and `batch` do it themselves where it was not done.
        """
        return bag

    @abstractmethod
    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        """For each prepared bag what `pool` starts from; many bags at once where the layers see tiles alone."""

    @abstractmethod
    def pool(self, encoded: Any, bag: Bag, label: Tensor | None) -> Prediction:
        """One bag's prediction; `label`: its class, int64 scalar, or None."""

    def forward(self, bag: Bag, label: Tensor | int | None = None) -> Prediction:
        """One bag; `label`: its class in training, for systems with a loss of their own.

        Raises:
            InputError: no tiles, features of another width, coordinates or omics that are missing or do not fit.
        """
        return self.batch([bag], [label])[0]

    def batch(self, bags: Sequence[Bag], labels: Iterable[Tensor | int | None] | None = None) -> list[Prediction]:
        """Bags of any sizes; in eval mode each prediction is that of its bag alone."""
        for bag in bags:
            self._check(bag)
        bags = [self.prepare(bag) for bag in bags]
        given = [None] * len(bags) if labels is None else list(labels)
        found = []
        for encoded, bag, label in zip(self.encode(bags), bags, given, strict=True):
            of = None if label is None else torch.as_tensor(label, device=bag.features.device)
            found.append(self.pool(encoded, bag, of))
        return found

    def omics(self, bag: Bag) -> tuple[Tensor, ...]:
        """The standardised omic vectors of a bag; none where the system takes none."""
        vectors = self._omic_vectors(bag) if len(self.omic_scales) else ()
        return tuple(scale(v) for scale, v in zip(self.omic_scales, vectors, strict=True))

    def _omic_vectors(self, bag: Bag) -> tuple[Tensor, ...]:
        if bag.omics is None:
            raise InputError(f"{bag.name}: no omics, which this system was made for")
        vectors = (bag.omics,) if isinstance(bag.omics, Tensor) else tuple(bag.omics)
        found, wanted = [tuple(v.shape) for v in vectors], [(len(cast(Tensor, s.mean)),) for s in self.omic_scales]
        if found != wanted:
            raise InputError(f"{bag.name}: omics of shapes {found}; the system was made for {wanted}")
        return vectors

    def _check(self, bag: Bag) -> None:
        if not self.reads_tiles:
            return
        if not len(bag):
            raise InputError(f"{bag.name}: no tiles in it; leave it out, or look why its slide gave none")
        if bag.features.shape[-1] != self.shape.in_dim:
            raise InputError(
                f"{bag.name}: features {bag.features.shape[-1]} wide; the system was made for {self.shape.in_dim}"
            )
        if bag.coords is not None and bag.coords.shape != (len(bag), 2):
            raise InputError(f"{bag.name}: {len(bag)} tiles, coordinates of shape {tuple(bag.coords.shape)}")
        if bag.slide_tiles and sum(bag.slide_tiles) != len(bag):
            raise InputError(f"{bag.name}: {len(bag)} tiles, {sum(bag.slide_tiles)} in its slides together")


def system_class(name: str) -> type[System]:
    """The class of a system by its name; `InputError` names the ones there are."""
    if name not in SYSTEMS:
        raise InputError(f"system {name!r}: choose {', '.join(SYSTEMS)}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return cast("type[System]", getattr(import_module(module), attribute))


def create_system(
    name: str,
    *,
    in_dim: int,
    outputs: int,
    task: Literal["subtyping", "survival"] = "subtyping",
    omics: int | tuple[int, ...] | None = None,
    fusion: Fusion | None = None,
    **settings: Any,
) -> System:
    """A system with random weights, its hyper-parameters as published where `settings` say nothing else.

    in_dim: width of the tile features. outputs: classes, or bins of time. omics: genes in the one vector, or in each
    of MCAT's signatures. fusion: "concat" or "bilinear" where omics join the tiles.

    Raises InputError: an unknown system or setting (the nearest is named), inputs that the system cannot take.
    """
    shape = Shape(in_dim, outputs, task, omics, fusion)
    return system_class(name)(shape, settings_of(name, settings))  # type: ignore[call-arg]


def settings_of(name: str, settings: Mapping[str, Any]) -> Any:
    """A system's `Settings` with what `settings` say otherwise.

    Raises InputError: an unknown system or setting (all are named), a value that cannot be.
    """
    kind = system_class(name).Settings
    known = [field.name for field in fields(kind)]
    try:
        check_keys(f"system {name}", settings, known)
    except InputError as error:
        raise InputError(f"{error} (its settings: {', '.join(known)})" if known else str(error)) from None
    _check_numbers(name, kind, settings)
    return kind(**settings)


def _check_numbers(name: str, kind: type, settings: Mapping[str, Any]) -> None:
    """An `InputError` for a number that is none, or not a whole one; texts are checked by their choices."""
    hints = get_type_hints(kind)
    for key, value in settings.items():
        kinds = {hints[key], *get_args(hints[key])}
        if value is None and type(None) in kinds:
            continue
        for number, allowed, what in ((int, int, "a whole number"), (float, (int, float), "a number")):
            if number in kinds and (not isinstance(value, allowed) or isinstance(value, bool)):
                raise InputError(f"system {name}: {key} {value!r} is not {what}")


def hidden_width(in_dim: int) -> int:
    """H of the first layer as HIPT and MCAT have it: 384 for features of 384 numbers, 512 for others."""
    return 384 if in_dim == 384 else 512


def hidden_layer(width_in: int, width_out: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout: the layer that all the published systems are built of."""
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout))


def check_settings(settings: Any, *, at_least: dict[str, float] | None = None) -> None:
    """`InputError` for a setting out of its range; what is called `dropout…` is 0 … 1."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name.startswith("dropout") and not 0 <= value < 1:
            raise InputError(f"{field.name} {value}: at least 0 and below 1")
        low = (at_least or {}).get(field.name)
        if low is not None and value is not None and not value >= low:
            raise InputError(f"{field.name} {value}: at least {low:g}")
