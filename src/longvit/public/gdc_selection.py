"""Selection of SVS files of the GDC: a project, a cohort table or folds become slides, or reasons.

The GDC's file names are the slide ids with `.svs`, so a listed slide is one file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from longvit.data.published_tables import tcga_patient
from longvit.errors import InputError
from longvit.public.archive_slide import ArchiveSlide
from longvit.public.gdc_files import GdcApi, GdcFile, files_of_manifest, project_id
from longvit.public.listed_ids import read_listed, refuse_mixed_kinds
from longvit.public.selection import Selection
from longvit.public.series_match import Unresolved
from longvit.public.tcga_barcode import parse_barcode
from longvit.slides.slide_name import fault_of_name

LICENCE = "GDC open access (no attempt to identify patients)"
CITATION = (
    "Grossman, R. L., Heath, A. P., Ferretti, V., et al. (2016). Toward a Shared Vision for Cancer Genomic Data. "
    "New England Journal of Medicine, 375(12), 1109-1112. https://doi.org/10.1056/NEJMp1607591"
)
_PROJECT = re.compile(r"[A-Z][A-Z0-9_.-]{1,59}")


def select_from_gdc(
    collections: Sequence[str] = (),
    *,
    slides: Path | None = None,
    folds: Path | None = None,
    ids: Sequence[str] | None = None,
    frozen: bool = False,
    manifest: Path | None = None,
    api: GdcApi | None = None,
) -> Selection:
    """SVS files of the GDC, selected as `select` selects series of IDC.

    - `collections`: projects, such as `tcga-brca`.
    - `manifest`: a GDC manifest, as its portal exports it; nothing is then asked over the network.
    - `api`: the API to ask; None: the GDC's.

    Raises `InputError` as `select` does, where the API cannot be reached, and for a faulty GDC manifest.
    """
    listed, source = read_listed(slides, folds, ids)
    if listed is None and not collections and manifest is None:
        raise InputError(
            "name a project (longvit fetch tcga-brca --source gdc), a table (--slides), folds or a GDC manifest"
        )
    projects = [project_id(name) for name in dict.fromkeys(collections)]
    if bad := [name for name in projects if not _PROJECT.fullmatch(name)]:
        raise InputError(f"{bad[0]}: not the name of a project of the GDC, such as TCGA-BRCA")
    if manifest is not None:
        if projects:
            raise InputError(f"--manifest {manifest}: has no projects; leave out {collections[0]}, or --manifest")
        files, archive = files_of_manifest(manifest), f"GDC manifest {manifest}"
    else:
        api = api or GdcApi()
        archive = f"GDC ({api.address})"
        if listed is None:
            files = api.of_projects(projects)
            if not files:
                raise InputError(f"{', '.join(projects)}: the GDC has no open slide of this project")
        else:
            patients = sorted({tcga_patient(text) or text for text in listed})
            files = api.of_patients(patients, projects)
    if listed is None:
        return _whole(files, archive, frozen=frozen)
    return _listed(files, listed, source, archive, frozen=frozen)


def _is_frozen(file: GdcFile) -> bool:
    barcode = parse_barcode(file.slide_id)
    return barcode is not None and barcode.is_frozen


def _whole(files: Sequence[GdcFile], archive: str, *, frozen: bool) -> Selection:
    kept = [file for file in files if frozen or not _is_frozen(file)]
    if not kept:
        raise InputError(f"{archive}: all {len(files)} slides are frozen sections; --frozen includes them")
    return _selection(kept, archive, n_frozen=len(files) - len(kept))


def _listed(files: Sequence[GdcFile], ids: Sequence[str], source: str, archive: str, *, frozen: bool) -> Selection:
    by_name: dict[str, list[GdcFile]] = defaultdict(list)
    by_patient: dict[str, list[GdcFile]] = defaultdict(list)
    for file in files:
        by_patient[file.patient].append(file)
        name = file.slide_id.lower()
        for key in {name, name.partition(".")[0]}:  # a barcode may be listed without its uuid
            by_name[key].append(file)
    chosen: list[tuple[str, GdcFile]] = []
    missing, ambiguous = [], []
    slides: list[str] = []
    patients: list[str] = []
    n_frozen = 0
    for text in ids:
        found = by_name.get(text.lower(), [])
        if found or parse_barcode(text) is not None:
            slides.append(text)
            if len(found) > 1:
                names = ", ".join(file.slide_id for file in found)
                ambiguous.append(Unresolved(text, f"{len(found)} files: {names}; list one with its uuid"))
            elif not found:
                missing.append(Unresolved(text, _reason(text, by_patient)))
            elif _is_frozen(found[0]) and not frozen:
                missing.append(Unresolved(text, "a frozen section; --frozen includes them"))
            else:
                chosen.append((text, found[0]))
        elif text in by_patient:
            patients.append(text)
            kept = [file for file in by_patient[text] if frozen or not _is_frozen(file)]
            n_frozen += len(by_patient[text]) - len(kept)
            chosen += [(file.slide_id, file) for file in kept]
            if not kept:
                missing.append(Unresolved(text, "only frozen sections; --frozen includes them"))
        else:
            missing.append(Unresolved(text, f"no patient and no slide of {archive}"))
    refuse_mixed_kinds(source, slides, patients)
    first: dict[str, str] = {}
    for text, file in chosen:
        if (other := first.setdefault(file.uuid, text)) != text:
            raise InputError(f"{source}: {other} and {text} are one file of the GDC; list it once")
    if not chosen:
        one = [*missing, *ambiguous][0]
        raise InputError(f"{source}: none of its {len(ids)} ids has a slide; {one.listed_id}: {one.reason}")
    return _selection(
        [file for _, file in chosen],
        archive,
        ids=[text for text, _ in chosen],
        missing=missing,
        ambiguous=ambiguous,
        n_frozen=n_frozen,
    )


def _reason(text: str, by_patient: dict[str, list[GdcFile]]) -> str:
    patient = tcga_patient(text) or text
    has = ", ".join(file.slide_id for file in by_patient.get(patient, []) if not _is_frozen(file))
    return f"no file of this name; patient {patient} has {has or 'no diagnostic slide'}"


def _selection(
    files: Sequence[GdcFile],
    archive: str,
    *,
    ids: Sequence[str] | None = None,
    missing: Sequence[Unresolved] = (),
    ambiguous: Sequence[Unresolved] = (),
    n_frozen: int = 0,
) -> Selection:
    ids = [file.slide_id for file in files] if ids is None else ids
    for slide_id in ids:
        if (fault := fault_of_name(slide_id, slide_id)) is not None:
            raise InputError(f"{slide_id}: {fault}")
    slides = tuple(
        ArchiveSlide(
            slide_id=slide_id,
            case_id=file.patient,
            source="gdc",
            location=file.uuid,
            n_bytes=file.n_bytes,
            collection=file.project.lower().replace("-", "_"),
            licence=LICENCE,
            md5=file.md5,
        )
        for slide_id, file in zip(ids, files, strict=True)
    )
    notes = (f"{n_frozen:,} frozen sections are left out; --frozen includes them",) if n_frozen else ()
    return Selection(slides, tuple(missing), tuple(ambiguous), archive, (CITATION,), notes)
