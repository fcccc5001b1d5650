"""Web server of the viewer: Python's own, for one reader, on this machine unless a host is named.

Every address begins with a random token, so neither another user of the machine nor a page of another site can ask for
anything. Requests are GET, but for notes. Paths are matched whole against a fixed list of forms: numbers, digests and
names, never files. The Host header must name this machine.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import re
import secrets
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from longvit import __version__
from longvit.errors import InputError
from longvit.viewer.content import NotFoundError, Reply, ViewContent
from longvit.viewer.items import ViewItems
from longvit.viewer.routes import NUMBER, Route, routes

REQUEST_S = 10.0
"""Time in which a request must arrive whole."""
IDLE_S = 30.0
"""Time that an open connection may wait for the next request."""
MOST_CONNECTIONS = 64
MOST_BODY = 16_384
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The hash is that of the one style sheet that OpenSeadragon adds; `data:` is the empty icon of the page.
_CONTENT_SECURITY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


class ViewServer(ThreadingHTTPServer):
    """Server of one `ViewItems`; `url` is its address. A thread per connection, at most 64.

    `host`: interface that it listens on. `in_frame`: pages of other origins may show it in a frame (notebooks).
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, items: ViewItems, host: str = "127.0.0.1", port: int = 0, *, in_frame: bool = False) -> None:
        self.token = secrets.token_urlsafe(24)
        self.content = ViewContent(items)
        self.host, self.in_frame = host, in_frame
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.routes = routes(self.content)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            self.content.close()
            raise InputError(f"--host {host} --port {port}: cannot listen there: {error}") from error

    @property
    def url(self) -> str:
        """Address of the page, with its token."""
        name = self.host if self.host not in ("0.0.0.0", "::") else socket.gethostname()
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_address[1]}/{self.token}/"

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can connect."""
        return self.host in _LOOPBACK

    def accepts_host(self, header: str) -> bool:
        """True for a Host header that names this machine; a port may differ, as through `ssh -L`."""
        if not (parts := _HOST.fullmatch(header)):
            return False
        name = parts[1].lower().strip("[]")
        if name in _LOOPBACK:
            return True
        if self.is_loopback:
            return False
        # No name of another site can stand for an address, so any address is one of this machine.
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return True

    def start(self) -> threading.Thread:
        """Serves in a thread that ends with the process."""
        thread = threading.Thread(target=self.serve_forever, name="viewer", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Ends the server and closes its slides."""
        self.shutdown()
        self.server_close()

    def server_close(self) -> None:
        super().server_close()
        self.content.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)  # too many at once: the browser tries again
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or was too slow, is no error of the viewer."""


class _TimedSocket(io.RawIOBase):
    """Bytes of a socket that must arrive before a deadline, however slowly they come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = time.monotonic() + REQUEST_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request came too slowly")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(REQUEST_S)


class _Handler(BaseHTTPRequestHandler):
    """Handler of one connection."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = f"longvit/{__version__}"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(REQUEST_S)
        self.rfile.close()
        self._incoming = _TimedSocket(self.connection)
        self.rfile = self._buffered = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.deadline = time.monotonic() + IDLE_S
        try:
            if not self._buffered.peek(1):
                self.close_connection = True
                return
            self._incoming.deadline = time.monotonic() + REQUEST_S
            super().handle_one_request()
        except (TimeoutError, ConnectionError, ValueError):  # ValueError: closed meanwhile
            self.close_connection = True

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.request_version == "HTTP/0.9" or self.command not in ("GET", "POST"):
            self._refuse(400 if self.request_version == "HTTP/0.9" else 405, {"Allow": "GET, POST"})
            return False
        has_body = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        if self.command == "GET" and has_body:
            self._refuse(400)
            return False
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.accepts_host(hosts[0]):
            self._refuse(421)
            return False
        return True

    def do_GET(self) -> None:
        path = self._inner_path()
        if path is None:
            return self._refuse(404)
        for route in self.server.routes:
            if match := route.pattern.fullmatch(path):
                return self._answer(route, match.groups(), f'"{path}"')
        return self._refuse(404)

    def do_POST(self) -> None:
        path = self._inner_path()
        match = None if path is None else re.fullmatch(f"review/{NUMBER}", path)
        if match is None:
            return self._refuse(404)
        origin, kind = self.headers.get("Origin"), self.headers.get("Content-Type", "")
        if origin is not None and urlsplit(origin).netloc != self.headers["Host"]:
            return self._refuse(403)
        if kind.partition(";")[0].strip() != "application/json":
            return self._refuse(415)
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,9}", length):
            return self._refuse(411)
        if int(length) > MOST_BODY:
            return self._refuse(413)
        body = self.rfile.read(int(length))
        try:
            note = json.loads(body.decode("utf-8"))
            verdict, comment = note["verdict"], note["comment"]
            if not isinstance(verdict, str) or not isinstance(comment, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._refuse(400)
        try:
            made = self.server.content.set_note(int(match[1]), verdict, comment)
            self._send(200, Reply(json.dumps(made).encode(), "application/json"))
        except NotFoundError:
            self._refuse(404)
        except InputError as error:
            self._send(409, Reply(json.dumps({"error": str(error)}).encode(errors="replace"), "application/json"))

    def _inner_path(self) -> str | None:
        """Path after the token; None without it. Nothing is decoded: no route has another character."""
        token, _, path = self.path.removeprefix("/").partition("/")
        is_ascii = token.isascii() and self.path.startswith("/") and self.path.count("/") > 1
        return path if is_ascii and hmac.compare_digest(token, self.server.token) else None

    def _answer(self, route: Route, parts: tuple[str, ...], name: str) -> None:
        try:
            reply = route.answer(*parts)
        except NotFoundError:
            return self._refuse(404)
        except InputError as error:
            return self._send(
                409, Reply(json.dumps({"error": str(error)}).encode(errors="replace"), "application/json")
            )
        except Exception:  # one slide that fails in an unforeseen way does not end the viewer
            return self._refuse(500)
        tag = name if reply.is_lasting else None  # the path names its content
        if tag is not None and self.headers.get("If-None-Match") == tag:
            return self._send(304, Reply(b"", reply.type, is_lasting=True), tag)
        return self._send(200, reply, tag)

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.close_connection = True  # a body may follow that was not read
        self.request_version = "HTTP/1.1"  # an answer to HTTP/0.9 would have no status
        self._send(status, Reply(b"", "text/plain"), headers=headers)

    def _send(self, status: int, reply: Reply, tag: str | None = None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        frame = "" if self.server.in_frame else "; frame-ancestors 'none'"
        lasting = "private, max-age=31536000, immutable" if reply.is_lasting else "no-store"
        for name, value in {
            "Content-Type": reply.type,
            "Content-Length": str(len(reply.body)),
            "Cache-Control": lasting,
            "Content-Security-Policy": f"{_CONTENT_SECURITY}{frame}",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({} if tag is None else {"ETag": tag}),
            **(headers or {}),
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.body:
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses a malformed request without repeating any of it."""
        self._refuse(code)

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their paths hold the token."""
