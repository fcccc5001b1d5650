"""Slide files of the Genomic Data Commons (GDC): from its API, or from a GDC manifest."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.data.published_tables import tcga_patient
from longvit.data.table import number, read_table
from longvit.errors import InputError, one_line
from longvit.slides.file_kind import slide_stem
from longvit.transfer.client import Client, Patience, TransferError

ADDRESS = "https://api.gdc.cancer.gov"
PAGE = 1000
"""Files of one answer."""
_PATIENTS_A_QUERY = 100  # their names are part of the address, which servers limit to about 8,000 characters
_MOST_ANSWER_BYTES = 64 * 2**20
_FIELDS = "file_id,file_name,md5sum,file_size,cases.submitter_id,cases.project.project_id"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_COLUMNS = ("id", "filename", "md5", "size")


@dataclass(frozen=True)
class GdcFile:
    """One slide file of the GDC."""

    uuid: str
    slide_id: str
    """Name of the file without `.svs`."""
    patient: str
    project: str
    """`TCGA-BRCA`; "" in a GDC manifest."""
    n_bytes: int
    md5: str


def project_id(name: str) -> str:
    """Name of a collection as the GDC writes it: `tcga_brca` -> `TCGA-BRCA`."""
    return re.sub(r"[\s_]+", "-", name.strip()).upper()


class GdcApi:
    """Questions to the GDC's API about its open slide files.

    `endpoint`: another address of the API. Raises `InputError` where `requests` is not installed, and in each method
    where the API cannot be reached or its answer is not understood.
    """

    def __init__(self, endpoint: str = "", patience: Patience | None = None) -> None:
        self.address = endpoint.rstrip("/") or ADDRESS
        self._client = Client(patience or Patience(), threading.Event())

    def of_projects(self, projects: Sequence[str]) -> tuple[GdcFile, ...]:
        """Slide files of projects, in the order of their names."""
        return tuple(self._files(_in("cases.project.project_id", projects)))

    def of_patients(self, patients: Sequence[str], projects: Sequence[str] = ()) -> tuple[GdcFile, ...]:
        """Slide files of patients, of these projects only where there are any."""
        files: list[GdcFile] = []
        for start in range(0, len(patients), _PATIENTS_A_QUERY):
            filters = [_in("cases.submitter_id", patients[start : start + _PATIENTS_A_QUERY])]
            if projects:
                filters.append(_in("cases.project.project_id", projects))
            files += self._files(*filters)
        return tuple(files)

    def _files(self, *filters: dict[str, Any]) -> Iterator[GdcFile]:
        content = [_in("data_type", ["Slide Image"]), _in("access", ["open"]), *filters]
        parameters = {
            "filters": json.dumps({"op": "and", "content": content}, separators=(",", ":")),
            "fields": _FIELDS,
            "format": "JSON",
            "sort": "file_name:asc",
            "size": str(PAGE),
        }
        start, total = 0, 1
        while start < total:
            answer = self._ask(parameters | {"from": str(start)})
            try:
                hits = answer["data"]["hits"]
                total = int(answer["data"]["pagination"]["total"])
                files = [_file_of_hit(hit) for hit in hits]
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise InputError(f"{self.address}: an answer that is not understood: {one_line(error, 120)}") from error
            if not files and start < total:
                raise InputError(f"{self.address}: {start} of {total} files came, and no more; try again later")
            yield from files
            start += len(files)

    def _ask(self, parameters: dict[str, str]) -> dict[str, Any]:
        def read() -> Any:
            with self._client.get(f"{self.address}/files", parameters) as response:
                data = b""
                for chunk in self._client.chunks(response):
                    data += chunk
                    if len(data) > _MOST_ANSWER_BYTES:
                        raise TransferError(f"{self.address}/files: an answer of more than 64 MiB")
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:  # a body that broke off is not JSON
                raise TransferError(f"{self.address}/files: no JSON in the answer", is_temporary=True) from error

        try:
            answer = self._client.again(read)
        except TransferError as error:
            raise InputError(
                f"{error}; --manifest FILE needs no connection, --source idc is the other archive"
            ) from error
        return answer if isinstance(answer, dict) else {}


def _in(field: str, values: Sequence[str]) -> dict[str, Any]:
    return {"op": "in", "content": {"field": field, "value": list(values)}}


def _file_of_hit(hit: dict[str, Any]) -> GdcFile:
    """File of one entry of an answer. Raises ValueError, KeyError, TypeError or IndexError for any other content."""
    name, case = str(hit["file_name"]), hit["cases"][0]
    return _gdc_file(
        str(hit["file_id"]),
        name,
        str(hit["md5sum"]),
        int(hit["file_size"]),
        patient=str(case["submitter_id"]),
        project=str(case["project"]["project_id"]),
    )


def _gdc_file(uuid: str, name: str, md5: str, n_bytes: int, *, patient: str, project: str) -> GdcFile:
    """A file with checked fields. Raises ValueError with the reason."""
    uuid, md5, stem = uuid.lower(), md5.lower(), slide_stem(name)
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"{uuid[:60]!r} is not the uuid of a file")
    if stem == name or not stem or "/" in name:
        raise ValueError(f"{name[:80]!r} is not the name of a slide file (.svs)")
    if not _MD5.fullmatch(md5):
        raise ValueError(f"{md5[:60]!r} is not an MD5 (32 digits 0-9 a-f)")
    if n_bytes <= 0:
        raise ValueError(f"size {n_bytes} is not a number of bytes")
    return GdcFile(uuid, stem, patient, project, n_bytes, md5)


def files_of_manifest(path: Path) -> tuple[GdcFile, ...]:
    """Files of a GDC manifest, a table of tab-separated columns id, filename, md5, size.

    The patient is that of the TCGA barcode; another name is its own patient. Raises `InputError` for no such file, a
    missing column, a row that is not a slide file, and a file or a slide listed twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; --manifest names a GDC manifest, as its portal exports it")
    columns, rows = read_table(path)
    if absent := [column for column in _COLUMNS if column not in columns]:
        has = ", ".join(column or "(no name)" for column in columns)
        raise InputError(f"{path}: not a GDC manifest: no column {absent[0]} (it has {has})")
    files: list[GdcFile] = []
    seen: dict[str, int] = {}
    for line, cells in rows:
        name = cells.get("filename", "")
        stem = slide_stem(name)
        try:
            file = _gdc_file(
                cells.get("id", ""),
                name,
                cells.get("md5", ""),
                int(number(cells.get("size", "")) or 0),
                patient=tcga_patient(stem) or stem,
                project="",
            )
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        for key in (file.uuid, file.slide_id.lower()):
            if (first := seen.setdefault(key, line)) != line:
                raise InputError(f"{path}, lines {first} and {line}: {key} is listed twice; remove one row")
        files.append(file)
    return tuple(files)
