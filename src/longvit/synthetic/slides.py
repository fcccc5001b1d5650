"""Making of synthetic slides: groups of patients, pairs of layouts, tiled TIFF files, masks and the cohort table.

    OUT/slides/<slide_id>.tif     tiled TIFF, JPEG, with its resolution
    OUT/truth/<slide_id>.png      mask: a pixel per square, 255 tumour
    OUT/cohort.csv                case_id, slide_id, label, path, site, fold, truth, patients, pair; written
                                  last
    OUT/synthetic.json            settings and a hash of the fields

The two slides of a pair have the same patients, source, colours, fold and case_id. A patient is in one case only, so
no split by case or fold has a patient on two sides. A square is a random window of a field in one of the 8
orientations. Hue, saturation and density are drawn once per pair, and a little differently for every square, so colour
tells nothing of the class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.data.augmentation import Orientation, recolour
from longvit.errors import InputError
from longvit.files import atomic_path, make_folder, write_csv, write_text
from longvit.json_file import read_json_object
from longvit.progress import Progress
from longvit.synthetic.fields import Field, check_fields
from longvit.synthetic.layouts import Layout, draw_layouts
from longvit.synthetic.settings import CLASSES, ONE_SOURCE, SyntheticSettings
from longvit.synthetic.truth import write_truth

COLUMNS = ("case_id", "slide_id", "label", "path", "site", "fold", "truth", "patients", "pair")
_JPEG_QUALITY = 92
_SQUARE_JITTER = np.array([0.15, 0.2, 0.15])  # largest difference of a square from its slide: hue, saturation, density


@dataclass(frozen=True)
class Group:
    """Patients whose fields make the slides of one case."""

    name: str
    source: str
    fold: str
    healthy: tuple[Field, ...]
    tumour: tuple[Field, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """Names of the patients."""
        return tuple(sorted({field.patient for field in (*self.healthy, *self.tumour)}))


@dataclass(frozen=True)
class Colours:
    """Colours of the two slides of a pair: arguments of `recolour`."""

    hue: float
    saturation: float
    gain: float


def make_slides(fields: Sequence[Field], out_dir: str | Path, settings: SyntheticSettings | None = None) -> Path:
    """Writes the slides of `settings` to a folder and returns the path of its cohort table.

    Use `match_colours` on the fields first. A repeated call makes only what is missing. Raises `InputError`: fields of
    one tissue or smaller than a square, a task for which no source has both tissues, fewer than two folds, a folder
    that holds other slides.

    >>> from longvit.synthetic import SyntheticSettings, drawn_fields, make_slides, match_colours
    >>> fields = match_colours(drawn_fields(patients=4, fields=1, side_px=64))
    >>> settings = SyntheticSettings(task="border", side_px=192, square_px=32, block_px=64, pairs=2, patients=1)
    >>> make_slides(fields, "slides", settings).as_posix()
    'slides/cohort.csv'
    """
    settings = settings or SyntheticSettings()
    check_fields(fields, "the fields")
    for field in fields:
        if min(field.pixels.shape[:2]) < settings.square_px:
            height, width = field.pixels.shape[:2]
            raise InputError(
                f"{field.name}: {width} × {height} px, smaller than a square; give a square_px of at most "
                f"{min(height, width)}"
            )
    groups = make_groups(fields, settings)
    folder = make_folder(out_dir)
    _open_folder(folder, fields, settings)
    cohort_csv = folder / "cohort.csv"
    if cohort_csv.exists():
        return cohort_csv
    rows = []
    with Progress("slides", 2 * settings.pairs, unit="slides", brief=True) as progress:
        for pair in range(settings.pairs):
            group = groups[pair % len(groups)]
            rng = np.random.default_rng([settings.seed, pair])
            colours = Colours(rng.uniform(-0.6, 0.6), rng.uniform(0.6, 1.4), float(np.exp(rng.uniform(-0.3, 0.3))))
            for label, layout in zip(CLASSES[settings.task], draw_layouts(settings, rng), strict=True):
                slide_id = f"p{pair:03d}_{label}"
                slide, truth = Path("slides") / f"{slide_id}.tif", Path("truth") / f"{slide_id}.png"
                if not (folder / slide).exists():
                    write_truth(folder / truth, layout.is_tumour)
                    write_slide(folder / slide, group, layout, colours, pair, settings)
                patients = ";".join(group.patients)
                rows.append([group.name, slide_id, label, slide, group.source, group.fold, truth, patients, pair])
                progress.advance()
    write_csv(cohort_csv, COLUMNS, rows)
    return cohort_csv


def make_groups(fields: Sequence[Field], settings: SyntheticSettings) -> tuple[Group, ...]:
    """Groups of about `settings.patients` patients of each tissue; every patient is in one group, of its fold.

    For the tasks share and any, all patients of a group are of one source; sources with one tissue only are left out.
    Groups of all sources and folds follow each other in turn.
    """
    one_source = settings.task in ONE_SOURCE
    parts: dict[tuple[str, str], list[Field]] = {}
    for field in fields:
        parts.setdefault((field.fold or "", field.source if one_source else ""), []).append(field)
    by_part = []
    for (fold, source), members in sorted(parts.items()):
        divided = _divide(members, settings)
        by_part.append([(fold, source, part) for part in divided])
    in_turn = [part[i] for i in range(max(map(len, by_part))) for part in by_part if i < len(part)]
    if not in_turn:
        where = "no source has fields of both tissues in one fold" if one_source else "no fold has both tissues"
        raise InputError(f"task {settings.task}: {where}")
    groups = tuple(
        Group(
            f"case{number:03d}",
            source or "mixed",
            fold or str(number % settings.folds),
            tuple(field for field in members if not field.is_tumour),
            tuple(field for field in members if field.is_tumour),
        )
        for number, (fold, source, members) in enumerate(in_turn)
    )
    used = groups[: settings.pairs]
    if len({group.fold for group in used}) < 2:
        raise InputError(
            f"all slides are of fold {used[0].fold}: give more pairs, fewer patients a slide, or fields of more folds"
        )
    return groups


def _divide(fields: Sequence[Field], settings: SyntheticSettings) -> list[list[Field]]:
    """Fields of one fold and source, divided by patient into parts with both tissues; none where a tissue is absent."""
    tissues: dict[str, set[bool]] = {}
    for field in fields:
        tissues.setdefault(field.patient, set()).add(field.is_tumour)
    order = np.random.default_rng(settings.seed).permutation(sorted(tissues)).tolist()
    both = [patient for patient in order if len(tissues[patient]) == 2]
    single = {kind: [patient for patient in order if tissues[patient] == {kind}] for kind in (False, True)}
    fewest = len(both) + min(len(single[False]), len(single[True]))
    if not fewest:
        return []
    parts = max(1, fewest // settings.patients)
    part_of = {
        patient: i % parts for kind in (False, True) for i, patient in enumerate([*both, *single[kind]])
    }  # every part gets patients of both tissues: each list has at least as many as there are parts
    return [[field for field in fields if part_of[field.patient] == part] for part in range(parts)]


def write_slide(
    path: Path, group: Group, layout: Layout, colours: Colours, pair: int, settings: SyntheticSettings
) -> None:
    """Writes a slide as a tiled TIFF of JPEG tiles, one per square; only one square is in memory."""
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            _encoded_squares(group, layout, colours, pair, settings),
            shape=(settings.side_px, settings.side_px, 3),
            dtype="uint8",
            tile=(settings.square_px, settings.square_px),
            photometric="ycbcr",
            compression="jpeg",
            subsampling=(1, 1),
            resolution=(1e4 / settings.mpp, 1e4 / settings.mpp),
            resolutionunit="CENTIMETER",
            metadata=None,
        )


def _encoded_squares(
    group: Group, layout: Layout, colours: Colours, pair: int, settings: SyntheticSettings
) -> Iterator[bytes]:
    import simplejpeg

    for is_tumour, draw in zip(layout.is_tumour.ravel().tolist(), layout.draw.ravel().tolist(), strict=True):
        pixels = draw_square(group, is_tumour, draw, colours, pair, settings)
        yield simplejpeg.encode_jpeg(pixels, quality=_JPEG_QUALITY, colorsubsampling="444")


def draw_square(
    group: Group, is_tumour: bool, draw: int, colours: Colours, pair: int, settings: SyntheticSettings
) -> NDArray[np.uint8]:
    """Pixels of a square, uint8 (square, square, 3): the same for the same arguments."""
    rng = np.random.default_rng([settings.seed, pair, draw, int(is_tumour)])
    fields = group.tumour if is_tumour else group.healthy
    pixels = fields[int(rng.integers(len(fields)))].pixels
    side = settings.square_px
    y, x = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
    turn = Orientation(int(rng.integers(4)), bool(rng.integers(2)))
    hue, saturation, density = rng.uniform(-1, 1, 3) * _SQUARE_JITTER
    return recolour(
        np.ascontiguousarray(turn(pixels[y : y + side, x : x + side])),
        colours.hue + hue,
        colours.saturation * (1 + saturation),
        colours.gain * (1 + density),
    )


def _open_folder(folder: Path, fields: Sequence[Field], settings: SyntheticSettings) -> None:
    """Writes synthetic.json, or raises `InputError` for a folder with other slides."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(
            f"{field.patient}\t{field.source}\t{field.fold}\t{field.is_tumour}\t{field.pixels.shape}".encode()
        )
        digest.update(np.ascontiguousarray(field.pixels).data)
    record = {**asdict(settings), "fields": digest.hexdigest()[:16]}
    path = folder / "synthetic.json"
    if not path.exists():
        write_text(path, json.dumps(record, indent=1) + "\n")
        return
    stored = read_json_object(path)
    for name, value in record.items():
        if stored.get(name) != value:
            raise InputError(f"{folder}: holds slides with {name} {stored.get(name)}, not {value}; name another folder")
