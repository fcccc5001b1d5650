"""Files of a slide in a public archive: the objects below a prefix of an S3 bucket, or one file of the GDC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote
from xml.etree import ElementTree

from longvit.transfer.client import Client, TransferError

Source = Literal["idc", "gdc"]
_GDC = "https://api.gdc.cancer.gov"
_MOST_LISTING_BYTES = 2**24
_MOST_FILES = 10_000
_S3_PLACE = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)/(.*?)\*?")
_NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a slide, and what is known about its content."""

    name: str
    """Name on this disk."""
    url: str
    n_bytes: int
    etag: str = ""
    """Version of the object, as the server writes it; "" where it is unknown."""
    md5: str = ""
    """32 hex digits; "" where it is unknown (S3 has it for objects that were stored in one part)."""


def remote_files(
    client: Client, source: Source, location: str, *, stem: str, n_bytes: int = 0, md5: str = "", endpoint: str = ""
) -> tuple[RemoteFile, ...]:
    """Files of a slide, in the order of their names.

    `location`: `s3://bucket/prefix/*` for `idc`; the uuid of a file for `gdc`, whose `n_bytes` and `md5` are needed.
    `endpoint`: address of a mirror, instead of Amazon's or the GDC's. Raises `TransferError`.
    """
    if source == "gdc":
        if n_bytes < 1:
            raise TransferError(f"{location}: a file of unknown size")
        url = f"{endpoint.rstrip('/') or _GDC}/data/{quote(location, safe='')}"
        return (RemoteFile(f"{stem}.svs", url, n_bytes, md5=md5.lower()),)
    match = _S3_PLACE.fullmatch(location)
    if match is None:
        raise TransferError(f"{location}: not an address of the form s3://bucket/prefix/*")
    bucket, prefix = match.groups()
    # A name with a dot is not covered by the certificate of the bucket's own host.
    base = endpoint.rstrip("/") or ("https://s3.amazonaws.com" if "." in bucket else "")
    root = f"{base}/{bucket}" if base else f"https://{bucket}.s3.amazonaws.com"
    files: list[RemoteFile] = []
    token: str | None = ""
    while token is not None:
        page, token = _page(client, root, prefix, token)
        files += page
        if len(files) > _MOST_FILES:
            raise TransferError(f"{location}: more than {_MOST_FILES} objects; not one slide")
    if not files:
        raise TransferError(f"{location}: no object there")
    if len({file.name for file in files}) < len(files):
        raise TransferError(f"{location}: two objects of one name")
    return tuple(sorted(files, key=lambda file: file.name))


def _page(client: Client, root: str, prefix: str, token: str) -> tuple[list[RemoteFile], str | None]:
    """One page of a listing (S3's ListObjectsV2), and the token of the next one."""
    parameters = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})

    def read() -> bytes:
        with client.get(f"{root}/", parameters) as response:
            data = b""
            for chunk in client.chunks(response):
                data += chunk
                if len(data) > _MOST_LISTING_BYTES:
                    raise TransferError(f"{root}/{prefix}: a listing of more than 16 MiB")
            # A body that broke off can look whole to the client.
            if not data.rstrip().endswith(b">"):
                raise TransferError(f"{root}/{prefix}: the listing broke off", is_temporary=True)
            return data

    try:
        listing = ElementTree.fromstring(client.again(read))
        space = listing.tag.partition("}")[0] + "}" if listing.tag.startswith("{") else ""
        files = []
        for entry in listing.iter(f"{space}Contents"):
            key, n_bytes = entry.findtext(f"{space}Key", ""), int(entry.findtext(f"{space}Size", ""))
            if key.endswith("/") and n_bytes == 0:  # a folder, as browsers of buckets make them
                continue
            files.append(_object(root, key, n_bytes, entry.findtext(f"{space}ETag", "")))
        is_last = listing.findtext(f"{space}IsTruncated", "false") != "true"
        return files, None if is_last else listing.findtext(f"{space}NextContinuationToken", "") or None
    except (ElementTree.ParseError, ValueError) as error:
        raise TransferError(f"{root}/{prefix}: not a listing of S3 ({error})") from error


def _object(root: str, key: str, n_bytes: int, etag: str) -> RemoteFile:
    name = key.rpartition("/")[2]
    if _NAME.fullmatch(name) is None:
        raise TransferError(f"{root}: the object {key!r} has no name of a file")
    if n_bytes < 0:
        raise ValueError(f"{n_bytes} bytes")
    plain = etag.strip('"').lower()
    return RemoteFile(name, f"{root}/{quote(key)}", n_bytes, etag, plain if _MD5.fullmatch(plain) else "")
