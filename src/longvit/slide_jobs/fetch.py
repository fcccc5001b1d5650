"""Slides of a public archive: download -> check -> canvas, features, or both -> drop the slide.

    OUT/<slide_id>.tif, OUT/records/<slide_id>.json   as `longvit canvas` writes them
    OUT/20x_256px_0px_overlap/features_<encoder>/…    as `longvit features` writes them
    OUT/fetched/<slide_id>.json                       record: address, files with their hashes, results
    OUT/slides/<slide_id>/                            the slide's files, where they are kept
    OUT/work/downloads/<slide_id>/                    files that are being downloaded or read

A slide is finished when its record exists and its results are those of the record. It is then never downloaded again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.slide_list import ListedSlide
from longvit.files import file_stem, make_folder, write_error
from longvit.slide_jobs.canvas import CanvasJob
from longvit.slide_jobs.job import SlideJob, digest_of, read_record
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError
from longvit.transfer.client import Client, Patience, Stopped, TransferError
from longvit.transfer.disk_bound import DiskBound
from longvit.transfer.download import download, part_of
from longvit.transfer.remote_file import RemoteFile, Source, remote_files

if TYPE_CHECKING:
    import torch

    from longvit.slide_jobs.features import FeaturesJob
    from longvit.slide_jobs.tile_process import TileProcess
    from longvit.slides.canvas import Canvas

FOLDER, SLIDES, DOWNLOADS = "fetched", "slides", "downloads"
_AHEAD = 2
_CHANGED = 412


@dataclass(frozen=True)
class ArchivedFiles:
    """Address of a slide's files in an archive."""

    source: Source
    location: str
    """`s3://bucket/prefix/*` (idc) or the uuid of a file (gdc)."""
    n_bytes: int
    """Size of all files; exact for gdc."""
    md5: str = ""
    """Known for gdc."""

    @property
    def key(self) -> str:
        """Hash that changes with the slide."""
        return digest_of(source=self.source, location=self.location, n_bytes=self.n_bytes, md5=self.md5)


class FetchJob(SlideJob):
    """Fetch job: address -> files -> results of its parts."""

    verb = "fetch"
    ahead = _AHEAD

    def __init__(
        self,
        out_dir: Path,
        archived: Mapping[str, ArchivedFiles],
        parts: list[CanvasJob | FeaturesJob],
        reader: TileProcess | None,
        settings: ReadSettings,
        *,
        keep_slides: bool,
        most_bytes: int,
        patience: Patience,
        endpoint: str,
    ) -> None:
        """`reader`: reads the tiles, and the canvas of each part after the first."""
        first = parts[0]
        super().__init__(out_dir / FOLDER, first.side_px, first.fit, settings)
        self.out_dir, self.archived, self.parts, self.reader = out_dir, archived, parts, reader
        self.keep_slides, self.endpoint = keep_slides, endpoint
        self.patience = patience
        self.bound = DiskBound(make_folder(out_dir / "work") / DOWNLOADS, most_bytes).__enter__()
        self._files: dict[str, tuple[RemoteFile, ...]] = {}

    @classmethod
    def from_parameters(
        cls,
        folder: Path,
        given: Mapping[str, Any],
        settings: ReadSettings,
        device: torch.device | None,
        *,
        timeout_s: float | None,
        threads: int | None,
    ) -> FetchJob:
        """Job with the parameters stored in run.json. Raises `InputError` for an encoder that cannot be used."""
        out_dir = folder.parent
        archived = {slide_id: ArchivedFiles(*fields) for slide_id, fields in given["archived"].items()}
        parts: list[CanvasJob | FeaturesJob] = []
        reader = None
        if given["canvas"] is not None:
            parts.append(CanvasJob(out_dir / "records", given["canvas"]["side_px"], given["canvas"]["fit"], settings))
        if given["features"] is not None:
            from longvit.slide_jobs.features import FeaturesJob, silence_timeout
            from longvit.slide_jobs.tile_process import TileProcess

            features, reader = given["features"], TileProcess(silence_timeout(timeout_s), threads)
            parts.append(FeaturesJob.from_parameters(Path(features["folder"]), features, settings, device, reader))
        return cls(
            out_dir,
            archived,
            parts,
            reader,
            settings,
            keep_slides=given["keep_slides"],
            most_bytes=given["most_bytes"],
            patience=Patience(**given["patience"]),
            endpoint=given["endpoint"],
        )

    def close(self) -> None:
        """Ends the reading process and the leases of downloads."""
        if self.reader is not None:
            self.reader.stop()
        self.bound.__exit__()

    def prepare(self, listed: ListedSlide, stopping: threading.Event) -> bool:
        slide_id = listed.slide_id
        has_slide = self._kept(slide_id).exists()
        if not self._parts_to_do(listed) and (has_slide or not self.keep_slides):
            self.bound.discard(slide_id)
            return False
        if has_slide:
            return True
        try:
            with Client(self.patience, stopping) as client:
                self._download(client, slide_id, stopping)
            return True
        except Stopped:
            raise SlideFailedError("fetch", "stopped") from None
        except TransferError as error:
            may_pass = error.is_temporary or error.status == _CHANGED
            self.bound.release(slide_id, keep_files=may_pass)
            raise SlideFailedError("fetch", str(error), "passing" if may_pass else "slide") from error
        except OSError as error:
            raise write_error(self.bound.place(slide_id), error) from error

    def _download(self, client: Client, slide_id: str, stopping: threading.Event) -> None:
        archived = self.archived[slide_id]
        files = remote_files(
            client,
            archived.source,
            archived.location,
            stem=file_stem(slide_id),
            n_bytes=archived.n_bytes,
            md5=archived.md5,
            endpoint=self.endpoint,
        )
        folder = self.bound.reserve(slide_id, [file.n_bytes for file in files], stopping)
        expected = {file.name for file in files} | {part_of(folder, file).name for file in files}
        for path in folder.iterdir():
            if path.name not in expected:
                path.unlink()
        for file in files:
            download(client, file, folder)
        self._files[slide_id] = files

    def release(self, listed: ListedSlide) -> None:
        self.bound.release(listed.slide_id)
        self._files.pop(listed.slide_id, None)

    def request(self, listed: ListedSlide) -> ReadRequest:
        return self._parts_in_turn(listed)[0].request(self._placed(listed))

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """False: `prepare` has decided already."""
        return False

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        placed, parts = self._placed(listed), self._parts_in_turn(listed)
        results = self._results(listed.slide_id)
        bad: dict[str, int] = {}
        for number, part in enumerate(parts):
            request = part.request(placed)
            if number:
                canvas = self._read(request)
            part_digest = part.digest(canvas.source.identity, request)
            record = part.finish(placed, part_digest, canvas)
            results[part.verb] = {"key": self._part_key(part, listed), "digest": part_digest}
            if record["n_bad_tiles"]:
                tiles = record.get("n_file_tiles", canvas.tiles)
                bad = {"n_bad_tiles": record["n_bad_tiles"], "n_file_tiles": tiles}
        files = self._files.get(listed.slide_id, ())
        if self.keep_slides and files:
            self._keep(listed.slide_id)
        archived = self.archived[listed.slide_id]
        kept = read_record(self.record_path(listed.slide_id)).get("files", [])
        return {
            "path": str(listed.path),
            **bad,
            "archived": asdict(archived),
            "files": [{"name": file.name, "bytes": file.n_bytes, "md5": file.md5} for file in files] or kept,
            "results": results,
        }

    def _read(self, request: ReadRequest) -> Canvas:
        assert self.reader is not None
        canvas = self.reader.read(request, lambda identity: True)
        assert canvas is not None
        return canvas

    def _parts_in_turn(self, listed: ListedSlide) -> list[CanvasJob | FeaturesJob]:
        """Parts that lack their result; the first part where only the slide is missing, which is to be kept."""
        return self._parts_to_do(listed) or self.parts[:1]

    def _parts_to_do(self, listed: ListedSlide) -> list[CanvasJob | FeaturesJob]:
        results, todo = self._results(listed.slide_id), []
        for part in self.parts:
            made = results.get(part.verb, {})
            is_same = made.get("key") == self._part_key(part, listed)
            if not is_same or not part.is_finished(listed.slide_id, made.get("digest", "")):
                todo.append(part)
        return todo

    def _part_key(self, part: SlideJob, listed: ListedSlide) -> str:
        """Hash of the slide's address and of all settings of a part, known before the download."""
        return part.digest(self.archived[listed.slide_id].key, part.request(self._placed(listed)))

    def _results(self, slide_id: str) -> dict[str, Any]:
        results = read_record(self.record_path(slide_id)).get("results", {})
        return dict(results) if isinstance(results, dict) else {}

    def _kept(self, slide_id: str) -> Path:
        return self.out_dir / SLIDES / file_stem(slide_id)

    def _placed(self, listed: ListedSlide) -> ListedSlide:
        """The slide with the place of its files."""
        kept = self._kept(listed.slide_id)
        folder = kept if kept.exists() else self.bound.place(listed.slide_id)
        is_file = self.archived[listed.slide_id].source == "gdc"
        return replace(listed, path=folder / f"{file_stem(listed.slide_id)}.svs" if is_file else folder)

    def _keep(self, slide_id: str) -> None:
        """Moves a slide to those that are kept, whole."""
        folder = self.bound.place(slide_id)
        try:
            for path in folder.iterdir():
                with path.open("rb+") as file:  # Windows syncs only what it may write
                    os.fsync(file.fileno())
            folder.rename(make_folder(self.out_dir / SLIDES) / folder.name)
        except OSError as error:
            raise write_error(self._kept(slide_id), error) from error
