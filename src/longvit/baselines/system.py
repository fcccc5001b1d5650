"""Interface of a system: features of the tiles of a bag in, logits out. Each is one file under baselines/ and one line
in catalogue.py. Data, folds, loop and metrics are the same for all.

    system = create_system("clam_sb", in_dim=384, outputs=2)
    system.fit(train_bags)                       # parameters fitted before training, on the training fold alone
    prediction = system(bag, label=1)            # logits (C,), attention (N,), a term of the loss
    predictions = system.batch(bags)             # the same numbers, the tiles of all bags at once where possible

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
OutputTask = Literal["subtyping", "survival", "other"]
"""Kind of outputs: those of a softmax over classes, time bins, or other ones (numbers, cuts, labels)."""


@dataclass(frozen=True)
class Shape:
    """Input and output sizes of a system.

    - `in_dim`: D.
    - `outputs`: C, classes, time bins, or the outputs of another task.
    - `task`: kind of the outputs.
    - `omics`: G of the one vector, of each signature, or None where there is none.
    - `fusion`: fusion of the omics with the tiles.
    """

    in_dim: int
    outputs: int
    task: OutputTask = "subtyping"
    omics: int | tuple[int, ...] | None = None
    fusion: Fusion | None = None


class System(nn.Module, ABC):
    """A system trained on bags. A subclass implements `encode` and `pool`, and names the class of its settings in
    `Settings`."""

    Settings: ClassVar[type]
    reads_tiles: ClassVar[bool] = True
    """False for a system on omics alone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.check_shape(shape)
        self.shape = shape
        widths = () if shape.omics is None else (shape.omics,) if isinstance(shape.omics, int) else shape.omics
        self.omic_scales = nn.ModuleList(Standardise(g) for g in widths)

    @classmethod
    def check_shape(cls, shape: Shape) -> None:
        """Raises `InputError` for inputs that the system cannot take; here: anything but one omic vector with a fusion,
        or none."""
        if (shape.omics is None) != (shape.fusion is None):
            raise InputError(
                f"omics {shape.omics}, fusion {shape.fusion}: give both (concat or bilinear) or neither of them"
            )
        if isinstance(shape.omics, tuple):
            raise InputError(f"{len(shape.omics)} omic vectors: only mcat takes signatures; give one vector")

    def fit(self, bags: Sequence[Bag]) -> None:
        """Fits parameters on the bags of the training fold alone, before training; here mean and SD of the omics."""
        for i, scale in enumerate(self.omic_scales):
            assert isinstance(scale, Standardise)
            scale.fit(torch.stack([self._omic_vectors(bag)[i] for bag in bags]))

    def prepare(self, bag: Bag) -> Bag:
        """Adds the parts that do not change in training (phenotypes, a graph), once per bag instead of in every epoch.

        A prepared bag is returned unchanged; `forward` and `batch` prepare other bags themselves.
        """
        return bag

    @abstractmethod
    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        """Input of `pool` for each prepared bag; many bags at once where the layers are independent per tile."""

    @abstractmethod
    def pool(self, encoded: Any, bag: Bag, label: Tensor | None) -> Prediction:
        """Prediction for one bag; `label`: its class, int64 scalar, or None."""

    def forward(self, bag: Bag, label: Tensor | int | None = None) -> Prediction:
        """Prediction for one bag; `label`: its class in training, for systems with an additional loss.

        Raises:
            InputError: no tiles, features of another width, coordinates or omics that are missing or do not fit.
        """
        return self.batch([bag], [label])[0]

    def batch(self, bags: Sequence[Bag], labels: Iterable[Tensor | int | None] | None = None) -> list[Prediction]:
        """Predictions for bags of any sizes; in eval mode each equals the prediction of its bag alone."""
        for bag in bags:
            self._check(bag)
        bags = [self.prepare(bag) for bag in bags]
        label_list = [None] * len(bags) if labels is None else list(labels)
        predictions = []
        for encoded, bag, label in zip(self.encode(bags), bags, label_list, strict=True):
            target = None if label is None else torch.as_tensor(label, device=bag.features.device)
            predictions.append(self.pool(encoded, bag, target))
        return predictions

    def omics(self, bag: Bag) -> tuple[Tensor, ...]:
        """Standardised omic vectors of a bag; none for a system without omics."""
        vectors = self._omic_vectors(bag) if len(self.omic_scales) else ()
        return tuple(scale(v) for scale, v in zip(self.omic_scales, vectors, strict=True))

    def _omic_vectors(self, bag: Bag) -> tuple[Tensor, ...]:
        if bag.omics is None:
            raise InputError(f"{bag.name}: no omics, which this system was made for")
        vectors = (bag.omics,) if isinstance(bag.omics, Tensor) else tuple(bag.omics)
        shapes, expected = [tuple(v.shape) for v in vectors], [(len(cast(Tensor, s.mean)),) for s in self.omic_scales]
        if shapes != expected:
            raise InputError(f"{bag.name}: omics of shapes {shapes}; the system was made for {expected}")
        return vectors

    def _check(self, bag: Bag) -> None:
        if not self.reads_tiles:
            return
        if not len(bag):
            raise InputError(f"{bag.name}: no tiles in it; leave it out, or check why its slide has none")
        if bag.features.shape[-1] != self.shape.in_dim:
            raise InputError(
                f"{bag.name}: features {bag.features.shape[-1]} wide; the system was made for {self.shape.in_dim}"
            )
        if bag.coords is not None and bag.coords.shape != (len(bag), 2):
            raise InputError(f"{bag.name}: {len(bag)} tiles, coordinates of shape {tuple(bag.coords.shape)}")
        if bag.slide_tiles and sum(bag.slide_tiles) != len(bag):
            raise InputError(f"{bag.name}: {len(bag)} tiles, {sum(bag.slide_tiles)} in its slides together")


def system_class(name: str) -> type[System]:
    """Class of a system by its name; an `InputError` lists the known names."""
    if name not in SYSTEMS:
        raise InputError(f"system {name!r}: choose {', '.join(SYSTEMS)}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return cast("type[System]", getattr(import_module(module), attribute))


def create_system(
    name: str,
    *,
    in_dim: int,
    outputs: int,
    task: OutputTask = "subtyping",
    omics: int | tuple[int, ...] | None = None,
    fusion: Fusion | None = None,
    **settings: Any,
) -> System:
    """A system with random weights; hyper-parameters are as published unless `settings` override them.

    - `in_dim`: width of the tile features.
    - `outputs`: classes, or time bins.
    - `omics`: genes in the one vector, or in each of MCAT's signatures.
    - `fusion`: "concat" or "bilinear" where omics are fused with the tiles.

    Raises InputError for an unknown system or setting (the nearest is named), and for inputs that the system cannot
    take.
    """
    shape = Shape(in_dim, outputs, task, omics, fusion)
    return system_class(name)(shape, settings_of(name, settings))  # type: ignore[call-arg]


def settings_of(name: str, settings: Mapping[str, Any]) -> Any:
    """`Settings` of a system with the overrides of `settings`.

    Raises InputError for an unknown system or setting (all are named), and for an invalid value.
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
    """Raises `InputError` for a non-number, or a fraction for a whole number; texts are checked by their choices."""
    hints = get_type_hints(kind)
    for key, value in settings.items():
        kinds = {hints[key], *get_args(hints[key])}
        if value is None and type(None) in kinds:
            continue
        for number, allowed, what in ((int, int, "a whole number"), (float, (int, float), "a number")):
            if number in kinds and (not isinstance(value, allowed) or isinstance(value, bool)):
                raise InputError(f"system {name}: {key} {value!r} is not {what}")


def hidden_width(in_dim: int) -> int:
    """H of the first layer as in HIPT and MCAT: 384 for features of 384 numbers, 512 for others."""
    return 384 if in_dim == 384 else 512


def hidden_layer(width_in: int, width_out: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout: the common layer of the published systems."""
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout))


def check_settings(settings: Any, *, at_least: dict[str, float] | None = None) -> None:
    """Raises `InputError` for a setting out of its range; the range of `dropout…` is 0 … 1."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name.startswith("dropout") and not 0 <= value < 1:
            raise InputError(f"{field.name} {value}: at least 0 and below 1")
        low = (at_least or {}).get(field.name)
        if low is not None and value is not None and not value >= low:
            raise InputError(f"{field.name} {value}: at least {low:g}")
