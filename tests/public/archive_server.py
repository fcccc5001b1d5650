"""A public archive on this machine: S3's ListObjectsV2 and GET with ranges, the GDC's data endpoint, and faults.

python archive_server.py FOLDER [BYTES A SECOND]    prints its port; FOLDER/<bucket>/<key> are the objects
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Callable[[str, int], str]
"""Called with (path, number of the GET of this path, from 1); "" or a fault of `ArchiveServer`."""
_PIECE = 64 * 1024


class ArchiveServer(ThreadingHTTPServer):
    """Serves the objects below a folder, read at each request.

    Faults: `reset` after half of the body, `truncate` (a short body that claims to be whole), `corrupt` (one byte),
    `silent` (half of the body, then nothing), `trickle`, a status such as `503`, `ignore-range`.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, *, fault: Fault = lambda path, number: "", rate: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fault, self.rate = folder, fault, rate
        self.gets: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        """Bytes sent of each path."""
        self.page = 1000
        self.part_etags = False
        """ETags as of objects stored in several parts, which are no MD5."""
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._md5: dict[tuple[Path, int], str] = {}
        self._next_s = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> ArchiveServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are part of the tests."""

    def etag(self, path: Path) -> str:
        key = (path, path.stat().st_mtime_ns)
        if key not in self._md5:
            self._md5[key] = hashlib.md5(path.read_bytes()).hexdigest()
        return f'"{self._md5[key]}{"-2" if self.part_etags else ""}"'

    def wait_for_turn(self, n_bytes: int) -> None:
        """Limits all connections together to `rate` bytes a second."""
        if not self.rate:
            return
        with self.lock:
            now = time.monotonic()
            self._next_s = max(now, self._next_s) + n_bytes / self.rate
            wait_s = self._next_s - now
        time.sleep(wait_s)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ArchiveServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query, path = parse_qs(url.query), unquote(url.path)
        if query.get("list-type") == ["2"]:
            self._list(path.strip("/"), query)
            return
        file = self.server.folder / path.lstrip("/")
        if not file.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        with self.server.lock:
            self.server.gets[path] += 1
            number = self.server.gets[path]
        self._object(path, file, self.server.fault(path, number))

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        root = self.server.folder / bucket
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        keys = [key for key in keys if key.startswith(prefix) and key > after]
        page, is_more = keys[: self.server.page], len(keys) > self.server.page
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><ETag>{escape(self.server.etag(root / key))}</ETag>"
            f"<Size>{(root / key).stat().st_size}</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_more else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(is_more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._send(200, text.encode())

    def _object(self, path: str, file: Path, fault: str) -> None:
        if fault.isdigit():
            self._send(int(fault), b"")
            return
        data, etag = file.read_bytes(), self.server.etag(file)
        if self.headers.get("If-Match", etag) != etag:
            self._send(412, b"")
            return
        start = 0
        if (wanted := self.headers.get("Range")) and fault != "ignore-range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self._send(416, b"")
                return
        body = data[start:]
        headers = {"ETag": etag} | ({"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {})
        half = len(body) // 2
        if fault == "truncate":
            body = body[:half]
        elif fault == "corrupt":
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        self._begin(206 if start else 200, len(body), headers)
        if fault in ("reset", "silent"):
            self._write(path, body[:half])
            if fault == "silent":
                self.server.closing.wait(60)
            self.close_connection = True
            return
        if fault == "trickle":
            for place in range(len(body)):
                self._write(path, body[place : place + 1])
                if self.server.closing.wait(0.2):
                    return
        self._write(path, body)

    def _write(self, path: str, data: bytes) -> None:
        for place in range(0, len(data), _PIECE):
            piece = data[place : place + _PIECE]
            self.server.wait_for_turn(len(piece))
            self.wfile.write(piece)
            with self.server.lock:
                self.server.sent[path] += len(piece)

    def _send(self, status: int, body: bytes) -> None:
        self._begin(status, len(body), {})
        self.wfile.write(body)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    server = ArchiveServer(Path(sys.argv[1]), rate=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    print(server.server_port, flush=True)
    server.serve_forever()
