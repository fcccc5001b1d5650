"""Annotation file of a slide in a folder: its search, its content hash, and the area that it defines."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.annotations.geojson import MOST_BYTES, Annotation, checked_polygons, read_annotations
from longvit.annotations.mask_image import read_mask_image
from longvit.annotations.polygons import Polygons
from longvit.annotations.settings import AnnotationSettings
from longvit.annotations.slide_area import TISSUE, SlideArea
from longvit.errors import InputError
from longvit.files import file_stem, is_folder, require_regular_file
from longvit.slides.placement import Box

SUFFIXES = (".geojson", ".geojson.gz", ".png")
_MOST_NAMES = 12


@dataclass(frozen=True)
class AreaFile:
    """Annotation file of one slide, with the classes that are kept and excluded."""

    path: Path
    digest: str
    """Hash of its bytes."""
    region_class: tuple[str, ...] = ()
    exclude_class: tuple[str, ...] = ()

    def key(self) -> dict[str, Any]:
        """Everything that the area depends on, beside the slide."""
        return {"regions": self.digest, "region_class": self.region_class, "exclude_class": self.exclude_class}

    def read(self, bounds: Box) -> SlideArea:
        """The area of the slide with these bounds. Raises `InputError` for a damaged or unsuitable file."""
        data = _read(self.path)
        if _digest(data) != self.digest:
            raise InputError(f"{self.path}: changed while it was used; rerun the command")
        record: dict[str, Any] = {"file": self.path.name, "digest": self.digest}
        if self.path.suffix == ".png":
            if classes := (*self.region_class, *self.exclude_class):
                raise InputError(f"{self.path}: a mask has no classes, so no {classes[0]!r}; give GeoJSON")
            return SlideArea(read_mask_image(self.path, data, bounds), None, None, False, record)
        source = str(self.path)
        annotations = read_annotations(data, source)
        excluded = [a for a in annotations if a.class_name in self.exclude_class]
        kept = [a for a in annotations if a.class_name not in self.exclude_class]
        tissue = [a for a in kept if a.class_name == TISSUE]
        if self.region_class:
            kept = [a for a in kept if a.class_name in self.region_class]
        if not kept and (self.region_class or not excluded):
            raise InputError(f"{source}: {_nothing_kept(annotations, self.region_class)}")
        kept_classes = {a.class_name for a in kept}
        record |= {
            "annotations": len(kept),
            "excluded": len(excluded),
            "classes": sorted(kept_classes),
            "region_class": list(self.region_class),
            "exclude_class": list(self.exclude_class),
        }

        def area(some: Sequence[Annotation]) -> Polygons | None:
            return Polygons.from_rings(checked_polygons(some, bounds, source)) if some else None

        return SlideArea(area(kept), area(excluded), area(tissue), TISSUE in kept_classes, record)


def find_area_file(settings: AnnotationSettings, slide_id: str) -> AreaFile | None:
    """Annotation file of a slide; None where the settings name no folder.

    Raises `InputError` where there is no such file, or more than one.
    """
    if settings.regions is None:
        return None
    paths = _paths(settings, slide_id)
    if not paths:
        wanted = Path(settings.regions) / f"{file_stem(slide_id)}{SUFFIXES[0]}"
        raise InputError(f"{wanted}: no such file, nor {' or '.join(SUFFIXES[1:])}: the slide has no annotations")
    if len(paths) > 1:
        raise InputError(f"{paths[0]}: {paths[1].name} is there too; keep one of them")
    return AreaFile(paths[0], _digest(_read(paths[0])), tuple(settings.region_class), tuple(settings.exclude_class))


def check_annotations(settings: AnnotationSettings, slide_ids: Iterable[str]) -> None:
    """Raises `InputError` for settings that suit no slide of a list, before any slide is read.

    Refused are classes without a folder, a class both kept and excluded, a folder without a file of any slide, and a
    class that is in no file. A damaged file passes: it is a problem of its slide.
    """
    wanted = (*settings.region_class, *settings.exclude_class)
    if settings.regions is None:
        if wanted:
            raise InputError(f"class {wanted[0]!r} is chosen, but no folder of annotations; pass --regions FOLDER")
        return
    if both := set(settings.region_class) & set(settings.exclude_class):
        raise InputError(f"class {min(both)!r} is in --region-class and in --exclude-class; keep one")
    if not is_folder(settings.regions):
        raise InputError(f"--regions {settings.regions}: no such folder")
    paths = {slide_id: _paths(settings, slide_id) for slide_id in slide_ids}
    if paths and not any(paths.values()):
        first = file_stem(next(iter(paths)))
        raise InputError(
            f"--regions {settings.regions}: no file of any slide; files are named like the slide: {first}{SUFFIXES[0]}"
        )
    if wanted:
        _require_classes(wanted, [path for found in paths.values() for path in found], settings.regions)


def annotations_fingerprint(settings: AnnotationSettings, slide_ids: Iterable[str]) -> dict[str, Any]:
    """Name and hash of the annotations of a list of slides, for the provenance of a run; empty without annotations."""
    if settings.regions is None:
        return {}
    hasher = hashlib.sha256(repr((sorted(settings.region_class), sorted(settings.exclude_class))).encode())
    for slide_id in slide_ids:
        for path in _paths(settings, slide_id):
            with suppress(InputError):  # it becomes a problem of its slide
                hasher.update(f"{slide_id}\0{_digest(_read(path))}\0".encode(errors="surrogatepass"))
    return {"annotations": hasher.hexdigest()[:16]}


def _require_classes(wanted: Sequence[str], paths: Sequence[Path], folder: Path) -> None:
    counts: Counter[str] = Counter()
    for path in paths:
        if path.suffix == ".png":
            continue
        try:
            counts.update(a.class_name for a in read_annotations(_read(path), str(path)))
        except InputError:
            continue
    for name in wanted if counts else ():
        if name not in counts:
            raise InputError(f"--regions {folder}: no annotation of class {name!r}{_nearest(name, counts)}")


def _nothing_kept(annotations: Sequence[Annotation], wanted: Sequence[str]) -> str:
    counts = Counter(a.class_name for a in annotations)
    if not annotations:
        return "no annotation with an area in it"
    return f"no annotation of class {' or '.join(map(repr, wanted))}{_nearest(wanted[0], counts)}"


def _nearest(name: str, counts: Counter[str]) -> str:
    """The nearest class, and the classes that are there with their number."""
    near = difflib.get_close_matches(name, list(counts), n=1, cutoff=0.5)
    known = [f"{one or '(none)'} ({n})" for one, n in sorted(counts.items())]
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    question = f"; did you mean {near[0]!r}? " if near else "; "
    return f"{question}classes there: {', '.join(known[:_MOST_NAMES])}{more}"


def _paths(settings: AnnotationSettings, slide_id: str) -> list[Path]:
    assert settings.regions is not None
    stem = file_stem(slide_id)
    candidates = [Path(settings.regions) / f"{stem}{suffix}" for suffix in SUFFIXES]
    return [path for path in candidates if path.exists()]


def _read(path: Path) -> bytes:
    require_regular_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: not read ({error.strerror})") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: larger than {MOST_BYTES / 2**20:g} MB; export annotations only, no cells")
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
