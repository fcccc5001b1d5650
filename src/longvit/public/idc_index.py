"""Index of the Imaging Data Commons (IDC) as the package `idc-index-data` ships it: one row per DICOM series.

The index is a parquet file of 70 MB. DuckDB reads only the columns and row groups that a query needs, so a selection
takes well under a second. Both packages are the extra `public`. Nothing here opens a connection.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from longvit.errors import InputError, one_line

_EXTRA = "pip install 'longvit[public]'"
_COLUMNS = (
    "collection_id",
    "PatientID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "series_size_MB",
    "series_aws_url",
    "license_short_name",
    "source_DOI",
    "transfer_syntax_name",
    "PhotometricInterpretation",
)
_NEEDED = ("Modality", *_COLUMNS)
_FROZEN = re.compile(r"\b(?:frozen|FZ|OCT)\b", re.IGNORECASE)
_ADDRESS = re.compile(r"s3://[A-Za-z0-9.-]+/[^\s*]+/\*")


@dataclass(frozen=True)
class SlideSeries:
    """One DICOM series of slide microscopy: the instances of one slide."""

    collection: str
    patient: str
    uid: str
    """SeriesInstanceUID."""
    description: str
    """SeriesDescription, such as `FFPE HE TP DX1`; "" where the archive has none."""
    n_bytes: int
    address: str
    """`s3://bucket/folder/*`."""
    licence: str
    doi: str
    transfer_syntax: str
    photometric: str

    @property
    def is_frozen(self) -> bool:
        """True for a frozen section, by the words of its description: Frozen, FZ or OCT."""
        return _FROZEN.search(self.description) is not None

    @property
    def is_colour(self) -> bool:
        """False for fluorescence and the like, whose instances are all greyscale."""
        kinds = {kind.strip() for kind in self.photometric.split(",") if kind.strip()}
        return not kinds or not kinds <= {"MONOCHROME1", "MONOCHROME2"}


def collection_id(name: str) -> str:
    """Name of a collection as IDC writes it: ` TCGA-BRCA` -> `tcga_brca`."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


class IdcIndex:
    """The slide series of IDC, by collection, patient or series.

    `path`: a parquet file of the same columns; None: that of the installed package `idc-index-data`.

    Raises `InputError` where the extra `public` is not installed, and for a file that is not such an index or lacks a
    column.

    >>> from longvit.public.idc_index import IdcIndex
    >>> index = IdcIndex()
    >>> sum(series.n_bytes for series in index.series(["tcga_brca"])) > 10**12
    True
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise InputError(f"public slides need the package duckdb: {_EXTRA}") from error
        self.path, self.version = _packaged_index() if path is None else (path, path.name)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; it must be idc_index.parquet of idc-index-data")
        self._error = duckdb.Error
        self._database = duckdb.connect(
            config={"autoinstall_known_extensions": False, "autoload_known_extensions": False, "threads": 2}
        )
        columns = [str(row[0]) for row in self._rows("DESCRIBE SELECT * FROM read_parquet(?)", [str(self.path)])]
        if absent := [column for column in _NEEDED if column not in columns]:
            raise InputError(
                f"{self.path}: the index has no column {absent[0]}; "
                f"pip install --upgrade 'longvit[public]' brings a version of idc-index-data that has it"
            )

    def _rows(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, list(values)).fetchall()
        except self._error as error:
            raise InputError(f"{self.path}: not an index of IDC that can be read: {one_line(error, 200)}") from error

    @cached_property
    def collections(self) -> dict[str, tuple[int, int]]:
        """Collections with slides, by name: the number of their series, and the bytes of these."""
        query = (
            "SELECT collection_id, count(*), coalesce(sum(series_size_MB) FILTER (isfinite(series_size_MB)), 0) "
            "FROM read_parquet(?) WHERE Modality = 'SM' GROUP BY 1 ORDER BY 1"
        )
        rows = self._rows(query, [str(self.path)])
        return {str(name): (int(n), round(float(megabytes) * 1e6)) for name, n, megabytes in rows}

    def known_collection(self, name: str) -> str:
        """IDC's name of a collection with slides. `InputError`: another name, with those that are close."""
        if (wanted := collection_id(name)) in self.collections:
            return wanted
        query = "SELECT DISTINCT Modality FROM read_parquet(?) WHERE collection_id = ? ORDER BY 1"
        if other := self._rows(query, [str(self.path), wanted]):
            kinds = ", ".join(str(row[0]) for row in other)
            raise InputError(f"{name}: the collection has no slides in {self.version} (it has {kinds})")
        close = difflib.get_close_matches(wanted, self.collections, 3, cutoff=0.6)
        parts = [known for known in self.collections if wanted and wanted in known.split("_")]
        names = list(dict.fromkeys([*parts, *close]))[:4]
        suggestion = ", ".join(known.replace("_", "-") for known in names)
        way_out = f"did you mean {suggestion}?" if names else "`longvit fetch --list` names all"
        raise InputError(f"{name}: no collection of {self.version} with slides has this name; {way_out}")

    def series(self, collections: Sequence[str] = (), keys: Iterable[str] | None = None) -> tuple[SlideSeries, ...]:
        """Slide series, ordered by collection, patient, description and series.

        `collections`: IDC's names; (): all. `keys`: lower-case names of patients and series, of which a series must
        have one; None: all. `InputError`: an address that is not `s3://bucket/folder/*`, a size that is not positive.
        """
        where, values = ["Modality = 'SM'"], [str(self.path)]
        given: list[Any] = []
        if collections:
            where.append("list_contains(?, collection_id)")
            given.append(list(collections))
        if keys is not None:
            where.append("(lower(PatientID) IN (SELECT unnest(?)) OR lower(SeriesInstanceUID) IN (SELECT unnest(?)))")
            names = sorted(set(keys))
            given += [names, names]
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM read_parquet(?) WHERE {' AND '.join(where)} "
            "ORDER BY collection_id, PatientID, SeriesDescription, SeriesInstanceUID"
        )
        return tuple(self._series_of(row) for row in self._rows(query, [*values, *given]))

    def _series_of(self, row: tuple[Any, ...]) -> SlideSeries:
        collection, patient, uid, description, megabytes, address, *texts = row
        try:
            n_bytes = round(float(megabytes) * 1e6)
        except (TypeError, ValueError, OverflowError):
            n_bytes = 0
        if n_bytes <= 0 or not patient or not uid or not _ADDRESS.fullmatch(str(address)):
            raise InputError(
                f"{self.path}: series {one_line(uid or '(no name)', 80)} has no patient, no size or no address "
                f"(size {megabytes}, address {one_line(address, 80)}); install idc-index-data again"
            )
        licence, doi, syntax, photometric = (str(text or "") for text in texts)
        return SlideSeries(
            str(collection),
            str(patient),
            str(uid),
            str(description or ""),
            n_bytes,
            str(address),
            licence,
            doi,
            syntax,
            photometric,
        )

    def citations(self, dois: Iterable[str]) -> tuple[str, ...]:
        """Citation of each data set (DOI), as IDC words it; its address where the package has no text for it."""
        texts: dict[str, str] = {}
        table = self.path.with_name("collections_index.parquet")
        if table.is_file():
            query = (
                "SELECT DISTINCT source.source_doi, source.citation FROM "
                "(SELECT unnest(sources) AS source FROM read_parquet(?)) WHERE source.citation IS NOT NULL"
            )
            texts = {str(doi).lower(): _plain(str(text)) for doi, text in self._rows(query, [str(table)])}
        wanted = dict.fromkeys(doi for doi in dois if doi)
        return tuple(texts.get(doi.lower(), f"https://doi.org/{doi}") for doi in wanted)


def _packaged_index() -> tuple[Path, str]:
    """The parquet file of the installed package, and its version in words."""
    try:
        import idc_index_data
    except ImportError as error:
        raise InputError(f"public slides need the package idc-index-data: {_EXTRA}") from error
    path, release = idc_index_data.IDC_INDEX_PARQUET_FILEPATH, metadata.version("idc-index-data")
    if path is None:
        raise InputError(f"idc-index-data {release} has no index in it; {_EXTRA}")
    return Path(path), f"IDC v{release.split('.')[0]} (idc-index-data {release})"


def _plain(text: str) -> str:
    """Text of a citation without HTML tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", html.unescape(text))).split())
