"""The GDC's API on this machine: `/files` with filters, pages and fields, beside the data endpoint of the archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.public.archive_server import ArchiveServer, _Handler


def hit(name: str, patient: str, *, project: str = "TCGA-ACC", content: bytes = b"slide", n: int = 0) -> dict[str, Any]:
    """A file as the API describes it; its uuid is made of its name."""
    digits = hashlib.md5(f"{name} {n}".encode()).hexdigest()
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return {
        "file_id": uuid,
        "file_name": name,
        "md5sum": hashlib.md5(content).hexdigest(),
        "file_size": len(content),
        "access": "open",
        "data_type": "Slide Image",
        "cases": [{"submitter_id": patient, "project": {"project_id": project}}],
    }


class GdcServer(ArchiveServer):
    """Answers questions about `hits`, and serves FOLDER/data/<uuid>."""

    def __init__(self, folder: Path, hits: Sequence[Mapping[str, Any]] = (), **faults: Any) -> None:
        super().__init__(folder, **faults)
        self.RequestHandlerClass = _GdcHandler
        self.hits = list(hits)
        self.questions: list[dict[str, Any]] = []
        """Parameters of each question."""
        self.answers: list[bytes | int] = []
        """Bodies, or statuses of errors, of the first answers, instead of the true ones."""


class _GdcHandler(_Handler):
    server: GdcServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/files":
            super().do_GET()
            return
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.questions.append(parameters)
        if self.server.answers:
            answer = self.server.answers.pop(0)
            self._send(answer if isinstance(answer, int) else 200, b"" if isinstance(answer, int) else answer)
            return
        filters = json.loads(parameters["filters"])
        assert filters["op"] == "and"
        found = sorted(
            (one for one in self.server.hits if all(_fits(one, part) for part in filters["content"])),
            key=lambda one: one["file_name"],
        )
        start, size = int(parameters["from"]), int(parameters["size"])
        page = found[start : start + size]
        data = {"hits": page, "pagination": {"count": len(page), "total": len(found), "from": start, "size": size}}
        self._send(200, json.dumps({"data": data, "warnings": {}}).encode())


def _fits(one: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    assert part["op"] == "in"
    value: Any = one
    for name in part["content"]["field"].split("."):
        value = value[0][name] if isinstance(value, list) else value[name]
    return value in part["content"]["value"]
