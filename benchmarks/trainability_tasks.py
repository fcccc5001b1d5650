"""Tasks of `trainability.py`: images of two classes, synthetic ones without end and real fields of held-out sources.

Synthetic images have random colours and noise, so that neither mean colour nor contrast tells the class. The plain
vision transformer learns each of them in 220 steps, so that a variant that does not is slower:

    texture     stripes in one of two directions; phase and frequency are random
    counting    3 to 5 discs, or 8 to 10; their sizes overlap
    shape       eight discs, or eight rings of the same area
    rare_patch  one patch of 32 px has a fine checkerboard, or none has
    relation    a patch with a checkerboard is above one with stripes, or below

Real fields (../shared): each seed holds out other sources. Training images are turned, mirrored and recoloured by a
random matrix, since colour tells laboratories apart.

    oral_scc      oral mucosa at 400×, normal or carcinoma, 224 px; other stainings
    osteosarcoma  bone at 10×, tumour or none, 1,024 px reduced to 256; another patient
    colon         healthy or adenocarcinoma, 448 px reduced to 224; another source

N images, S side in px.
"""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from side_by_side import HERE

SLIDES = HERE.parents[1] / "shared" / "slides"
PATCH_PX = 32
EVALUATED_AT_ONCE = 32
_TEST_SEED, _SEARCH_SEED = 99_000, 98_000


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that training does not see."""

    test_set: str
    labels: np.ndarray
    cases: Sequence[str]
    """Patient or source of each image; empty where each image is independent."""
    batches: Callable[[], Iterator[Tensor]]
    """Images (≤ 32, 3, S, S), normalised, in the order of the labels."""


class Data(ABC):
    """Images of a task for one seed."""

    @abstractmethod
    def batch(self, n: int, generator: torch.Generator, *, search: bool) -> tuple[Tensor, Tensor]:
        """Training images (N, 3, S, S), normalised, and labels (N,). `search`: without the validation images."""

    @abstractmethod
    def held_out(self, *, search: bool) -> HeldOut:
        """Test images; with `search`, validation images, on which the learning rate is chosen."""


# --- synthetic ------------------------------------------------------------------------------------------------------

Pattern = Callable[[Tensor, int, torch.Generator], Tensor]
"""Labels (N,), side, generator -> (N, S, S): about 0 in the background, up to ± 1."""


def _uniform(n: int, low: float, high: float, g: torch.Generator, *more: int) -> Tensor:
    return low + (high - low) * torch.rand(n, *more, generator=g)


def _axes(side: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates, down (S, 1) and to the right (1, S)."""
    t = torch.arange(side, dtype=torch.float32) + 0.5
    return t[:, None], t[None, :]


def _texture(labels: Tensor, side: int, g: torch.Generator) -> Tensor:
    n = len(labels)
    angle = torch.where(labels == 0, math.pi / 9, 7 * math.pi / 18) + 0.15 * torch.randn(n, generator=g)
    cycles = 2 * math.pi / _uniform(n, 8.5, 12.5, g)
    down, right = _axes(side)
    along = angle.cos().view(-1, 1, 1) * right + angle.sin().view(-1, 1, 1) * down
    return torch.sin(along * cycles.view(-1, 1, 1) + _uniform(n, 0, 2 * math.pi, g).view(-1, 1, 1))


def _disc(row: Tensor, column: Tensor, radius: Tensor, side: int) -> Tensor:
    """Discs (N, S, S) with centres and radii (N,) in px; the edge is one pixel wide."""
    down, right = _axes(side)
    distance = ((down - row.view(-1, 1, 1)) ** 2 + (right - column.view(-1, 1, 1)) ** 2).sqrt()
    return (radius.view(-1, 1, 1) - distance + 0.5).clamp(0, 1)


def _counting(labels: Tensor, side: int, g: torch.Generator) -> Tensor:
    n, drawn = len(labels), torch.zeros(len(labels), side, side)
    count = torch.where(labels == 0, 3, 8) + torch.randint(0, 3, (n,), generator=g)
    for i in range(10):
        disc = _disc(*_uniform(2, 8, side - 8, g, n), _uniform(n, 5, 15, g), side)
        drawn = torch.maximum(drawn, disc * (count > i).view(-1, 1, 1))
    return drawn


def _shape(labels: Tensor, side: int, g: torch.Generator) -> Tensor:
    n, drawn = len(labels), torch.zeros(len(labels), side, side)
    for _ in range(8):
        row, column = _uniform(2, 16, side - 16, g, n)
        radius = _uniform(n, 5, 10, g)
        outer = radius * math.sqrt(1.5)
        ring = _disc(row, column, outer, side) - _disc(row, column, (outer**2 - radius**2).sqrt(), side)
        disc = _disc(row, column, radius, side)
        drawn = torch.maximum(drawn, torch.where((labels == 0).view(-1, 1, 1), disc, ring))
    return drawn


def _checks_and_stripes() -> tuple[Tensor, Tensor]:
    """Two patches with the same pixels in another order: a checkerboard and stripes, 4 px wide."""
    step = torch.arange(PATCH_PX) // 4
    return (-1.0) ** (step[:, None] + step[None, :]), ((-1.0) ** step)[:, None].expand(PATCH_PX, PATCH_PX)


def _rare_patch(labels: Tensor, side: int, g: torch.Generator) -> Tensor:
    checks, _ = _checks_and_stripes()
    places = torch.randint(0, side // PATCH_PX, (len(labels), 2), generator=g) * PATCH_PX
    drawn = torch.zeros(len(labels), side, side)
    for image, label, (row, column) in zip(drawn, labels, places.tolist(), strict=True):
        image[row : row + PATCH_PX, column : column + PATCH_PX] = checks * float(label)
    return drawn


def _relation(labels: Tensor, side: int, g: torch.Generator) -> Tensor:
    rows, n = side // PATCH_PX, len(labels)
    upper, lower = (
        torch.randint(0, rows // 2, (n,), generator=g),
        torch.randint(rows - rows // 2, rows, (n,), generator=g),
    )
    columns = torch.randint(0, rows, (n, 2), generator=g)
    drawn = torch.zeros(n, side, side)
    for image, label, *places in zip(drawn, labels, upper, lower, columns, strict=True):
        patches = _checks_and_stripes() if label else _checks_and_stripes()[::-1]
        for patch, row, column in zip(patches, places[:2], places[2], strict=True):
            y, x = PATCH_PX * int(row), PATCH_PX * int(column)
            image[y : y + PATCH_PX, x : x + PATCH_PX] = patch
    return drawn


@dataclass(frozen=True)
class Synthetic(Data):
    """Synthetic images: every batch is new. Test and validation images have seeds of their own."""

    name: str
    pattern: Pattern
    side_px: int
    n_test: int
    noise: float

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) and labels (N,), as many of each class."""
        labels = torch.arange(n)[torch.randperm(n, generator=g)] % 2
        pattern = self.pattern(labels, self.side_px, g)[:, None]
        contrast = _uniform(n, 0.5, 1.2, g, 3, 1, 1)
        mean = 0.7 * torch.randn(n, 3, 1, 1, generator=g)
        noise = self.noise * torch.randn(n, 3, self.side_px, self.side_px, generator=g)
        return mean + contrast * pattern + noise, labels

    def batch(self, n: int, generator: torch.Generator, *, search: bool) -> tuple[Tensor, Tensor]:
        return self.draw(n, generator)

    def held_out(self, *, search: bool) -> HeldOut:
        def drawn() -> Iterator[tuple[Tensor, Tensor]]:
            g = torch.Generator().manual_seed(_SEARCH_SEED if search else _TEST_SEED)
            for start in range(0, self.n_test, EVALUATED_AT_ONCE):
                yield self.draw(min(EVALUATED_AT_ONCE, self.n_test - start), g)

        labels = np.concatenate([labels.numpy() for _, labels in drawn()])
        return HeldOut(self.name, labels, (), lambda: (images for images, _ in drawn()))


SYNTHETIC: dict[str, tuple[Pattern, float]] = {
    "texture": (_texture, 0.7),
    "counting": (_counting, 0.15),
    "shape": (_shape, 0.15),
    "rare_patch": (_rare_patch, 0.15),
    "relation": (_relation, 0.15),
}
"""Pattern and noise (standard deviation) of each synthetic task."""

# --- real -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """A set of labelled fields, and the column whose values are held out in turn."""

    folder: str
    side_px: int
    positive: tuple[str, ...]
    source: str
    """Column of the cohort table by which fields are held out."""
    held_out: tuple[str, ...]
    """Its values that have both classes, so that their AUC is defined."""
    only: tuple[str, str] | None = None
    """Column and value of the rows that are used."""
    case: str = "case_id"
    """Column of the units that a bootstrap resamples."""


REAL = {
    "oral_scc": Fields("oral-scc", 224, ("OSCC",), "fold", ("0", "2", "3"), ("magnification", "400")),
    "osteosarcoma": Fields(
        "osteosarcoma",
        256,
        ("Viable", "Non-Viable-Tumor"),
        "case_id",
        ("Case-3", "Case-4", "Case-48-P5"),
        case="slide_id",
    ),
    "colon": Fields("colon", 224, ("adenocarcinoma",), "fold", ("2", "3", "1", "4")),
}
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255


def table_of(fields: Fields) -> list[dict[str, str]]:
    """Rows of the cohort table that are used."""
    with (SLIDES / fields.folder / "cohort.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if fields.only is None or row[fields.only[0]] == fields.only[1]]


@lru_cache(maxsize=1)
def _pixels(paths: tuple[Path, ...], side_px: int) -> Tensor:
    """uint8 (N, 3, S, S)."""
    images = [Image.open(path).convert("RGB") for path in paths]
    resized = [image.resize((side_px, side_px), Image.Resampling.LANCZOS) for image in images]
    return torch.stack([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in resized])


class Real(Data):
    """Fields of one task: one source tests, the next one validates the learning rate, all others train."""

    def __init__(self, name: str, fields: Fields, seed: int) -> None:
        rows = table_of(fields)
        self.name = name
        self.pixels = _pixels(tuple(SLIDES / fields.folder / row["path"] for row in rows), fields.side_px)
        self.labels = torch.tensor([int(row["label"] in fields.positive) for row in rows])
        self.source = np.array([row[fields.source] for row in rows])
        self.cases = [row[fields.case] for row in rows]
        at = seed % len(fields.held_out)
        self.test, self.val = fields.held_out[at], fields.held_out[(at + 1) % len(fields.held_out)]

    def batch(self, n: int, generator: torch.Generator, *, search: bool) -> tuple[Tensor, Tensor]:
        trains = (self.source != self.test) & ~(search & (self.source == self.val))
        chosen = []
        for label, size in ((0, n // 2), (1, n - n // 2)):
            index = torch.from_numpy(np.flatnonzero(trains & (self.labels == label).numpy()))
            chosen.append(index[torch.randint(0, len(index), (size,), generator=generator)])
        index = torch.cat(chosen)
        images = torch.stack([_turned(self.pixels[i], generator) for i in index.tolist()])
        return recoloured((images.float() - _MEAN) / _STD, generator), self.labels[index]

    def held_out(self, *, search: bool) -> HeldOut:
        source = self.val if search else self.test
        index = np.flatnonzero(self.source == source)

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(index), EVALUATED_AT_ONCE):
                yield (self.pixels[index[start : start + EVALUATED_AT_ONCE]].float() - _MEAN) / _STD

        cases = [self.cases[i] for i in index]
        return HeldOut(f"{self.name} {source}", self.labels.numpy()[index], cases, batches)


def _turned(pixels: Tensor, g: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square."""
    turns, mirror = torch.randint(0, 4, (1,), generator=g), torch.randint(0, 2, (1,), generator=g)
    pixels = pixels.rot90(int(turns), (1, 2))
    return pixels.flip(2) if mirror else pixels


def recoloured(images: Tensor, g: torch.Generator) -> Tensor:
    """Normalised images (N, 3, S, S) with colours mixed by a random matrix each, and shifted."""
    matrix = torch.eye(3) + 0.35 * torch.randn(len(images), 3, 3, generator=g)
    shift = 0.5 * torch.randn(len(images), 3, 1, 1, generator=g)
    return torch.einsum("nij,njhw->nihw", matrix, images) + shift


TASKS = (*SYNTHETIC, *REAL)


def open_data(task: str, seed: int, image_px: int, n_test: int) -> Data:
    """Images of a task; real fields have a side of their own. Raises `FileNotFoundError` where they are absent."""
    if task in SYNTHETIC:
        pattern, noise = SYNTHETIC[task]
        return Synthetic(task, pattern, image_px, n_test, noise)
    return Real(task, REAL[task], seed)


def why_absent(task: str) -> str | None:
    """Reason why a task cannot run, or None."""
    if task in REAL and not (SLIDES / REAL[task].folder / "cohort.csv").is_file():
        return f"{task}: skipped, slides/{REAL[task].folder} is not at ../shared"
    return None
