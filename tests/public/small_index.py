"""A small index of IDC, as a parquet file with the columns of `idc_index.parquet` that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
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
    "Modality",
)


def row(collection: str, patient: str, description: str | None, uid: str, **other: Any) -> dict[str, Any]:
    """A series of slide microscopy of 2.5 MB; `other` replaces values by column."""
    values = (
        collection,
        patient,
        uid,
        description,
        2.5,
        f"s3://idc-open-data/{uid}/*",
        "CC BY 3.0",
        f"10.5281/{collection}",
        "Explicit VR Little Endian,JPEG Baseline",
        "RGB,YBR_FULL_422",
        "SM",
    )
    return dict(zip(COLUMNS, values, strict=True)) | other


def write_index(path: Path, rows: Sequence[Mapping[str, Any]], *, without: str = "") -> Path:
    """Writes the rows, without one column if it is named."""
    import duckdb

    columns = [column for column in COLUMNS if column != without]
    kinds = ", ".join(f"{column} {'DOUBLE' if column == 'series_size_MB' else 'VARCHAR'}" for column in columns)
    database = duckdb.connect()
    database.execute(f"CREATE TABLE series ({kinds})")
    for one in rows:
        marks = ", ".join("?" for _ in columns)
        database.execute(f"INSERT INTO series VALUES ({marks})", [one[column] for column in columns])
    database.execute(f"COPY series TO '{path}' (FORMAT parquet)")
    database.close()
    return path


ROWS = (
    row("tcga_kich", "TCGA-UW-A7GC", "FFPE HE NT DX1", "1.1"),
    row("tcga_kich", "TCGA-UW-A7GC", "FFPE HE TP DX1", "1.2", series_size_MB=7.25),
    row("tcga_kich", "TCGA-UW-A7GC", "Frozen HE TP TS1", "1.3"),
    row("tcga_luad", "TCGA-50-5066", "FFPE HE TP DX1", "2.1"),
    row("tcga_luad", "TCGA-50-5066", "FFPE HE  DX1", "2.2"),
    row("tcga_acc", "TCGA-OR-A5J1", "FFPE HE TP DX1", "3.1"),
    row("tcga_acc", "TCGA-OR-A5J1", "FFPE HE TP DX1", "3.2", series_size_MB=4.0),
    row("tcga_acc", "TCGA-OR-A5J2", "Frozen HE TP TSA", "3.3"),
    row("cptac_luad", "C3L-00001", "HE tumor", "4.1"),
    row("cptac_luad", "C3L-00001", "HE normal", "4.2"),
    row("cptac_luad", "C3L-00001", "OCT HE T", "4.3"),
    row("htan_wustl", "HTA12_1", "IMC", "5.1", PhotometricInterpretation="MONOCHROME2"),
    row("htan_wustl", "HTA12_1", "H&E", "5.2"),
    row("nlst", "100012", "FFPE HE", "6.1"),
    row("gtex", "100012", None, "7.1"),
    row("nlst", "100013", "chest", "6.2", Modality="CT"),
    row("rider_ct", "R1", "chest", "8.1", Modality="CT"),
)
"""Series of seven collections: a patient with slides of tumour and normal tissue, two indistinguishable ones …"""
