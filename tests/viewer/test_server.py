"""Hostile requests: each is refused or answered rightly, no file is sent that is not in the list, the server lives."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.small_slides import write_slide

from longvit.errors import InputError
from longvit.viewer import server as server_module
from longvit.viewer.items import ViewItem, ViewItems
from longvit.viewer.routes import static_file
from longvit.viewer.server import MOST_BODY, ViewServer

SECRET = b"the secret beside the slides"
SHA256 = {
    "openseadragon.min.js": "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad",
    "openseadragon.LICENSE.txt": "17da96b26ac706d2cbd06d4555dedb43026782f4943faf0156fe7acf89454228",
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ViewServer]:
    """A run with an intact and a damaged slide, and a secret file in the same folder."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"II*\0 not a slide")
    items = [ViewItem("good", write_slide(tmp_path / "good.tif", size_px=(1300, 700))), ViewItem("bad", bad)]
    server = ViewServer(ViewItems("slides", "made", items, tmp_path))
    server.start()
    yield server
    server.close()


def ask(
    server: ViewServer, path: str, method: str = "GET", *, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None and "Content_Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


def raw(server: ViewServer, data: bytes, seconds: float = 5) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b"Content-Length: 0" in answer:
                    break
        except (TimeoutError, ConnectionError):
            pass
        return answer


def root(server: ViewServer) -> str:
    return f"/{server.token}/"


def digest(server: ViewServer) -> str:
    return str(json.loads(ask(server, f"{root(server)}slide/0")[1])["digest"])


def lives(server: ViewServer) -> None:
    status, body, _ = ask(server, f"{root(server)}list")
    assert status == 200
    assert len(json.loads(body)["items"]) == 2


def hostile_paths(token: str, digest: str) -> list[str]:
    """Paths of which none names anything: other tokens, files by name and encoding, numbers out of range."""
    up = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "....//", "..\\", "%c0%ae%c0%ae/", "%252e%252e/", ".%00./", "..;/"]
    ends = ["secret.txt", "etc/passwd", "good.tif", "review.csv", "run/model/config.json"]
    files = [f"/{token}/{start}{u}/{u}/{end}" for u in up for end in ends for start in ("", "static/")]
    files += [f"/{token}//{ROOT}/README.md", f"/{token}/{ROOT}/README.md", f"/{token}/file:///etc/passwd"]
    files += [
        f"/{token}/static/{name}" for name in ("", "page.html", "viewer.js/", "viewer.js%00.css", "VIEWER.JS", "..")
    ]
    tokens = [
        "/",
        "//",
        "/list",
        "/ /list",
        f"/{token}",
        f"/{token[:-1]}/list",
        f"/{token}x/list",
        f"/{token.lower()}/list",
    ]
    tokens += [f"/{token}%2flist", f"/%2f{token}/list", f"/{'a' * 5000}/list", "/index.html"]
    numbers = ["-1", "2", "00", "01", "1e3", "0x1", "9" * 7, "9" * 400, "٣", "½", "NaN", "0.0", "+0", "%30", ""]
    slides = [f"/{token}/slide/{n}" for n in numbers]
    thumbnails = [f"/{token}/thumbnail/{n}.jpg" for n in numbers]
    previews = [f"/{token}/preview/{n}/{digest}.jpg" for n in (*numbers, "0")]  # that slide has none
    tile = f"/{token}/tile"
    tiles = [f"{tile}/{n}/{digest}/0/0_0.jpg" for n in numbers]
    tiles += [f"{tile}/0/{digest}/{n}/0_0.jpg" for n in numbers if n != "2"]
    tiles += [f"{tile}/0/{digest}/0/{n}_0.jpg" for n in (*numbers, "1")]
    tiles += [f"{tile}/0/{digest}/0/0_{n}.jpg" for n in (*numbers, "1")]
    tiles += [
        f"{tile}/0/{d}/0/0_0.jpg" for d in ("", "0" * 32, digest.upper() + "A", digest[:-1], "../" * 11, "g" * 32)
    ]
    tiles += [f"{tile}/0/{digest}/0/0_0.png", f"{tile}/0/{digest}/0/0_0.jpg/", f"{tile}/0/{digest}/0/0_0.jpg?x=1"]
    heat = f"/{token}/heat/0/0"
    heats = [f"{heat}/state", f"{heat}/{'a' * 32}/0/viridis/0/0/0_0.png", f"{heat}/{'a' * 32}/0/jet/0/0/0_0.png"]
    heats += [f"/{token}/heat/0/{n}/state" for n in numbers] + [f"{heat}/start"]
    return [*files, *tokens, *slides, *thumbnails, *previews, *tiles, *heats]


def test_no_hostile_path_is_answered(served: ViewServer) -> None:
    paths = hostile_paths(served.token, digest(served))
    assert len(set(paths)) > 200
    for path in paths:
        sent = "".join(c if 32 < ord(c) < 127 else "".join(f"%{b:02x}" for b in c.encode()) for c in path)
        status, body, _ = ask(served, sent)
        assert (status, body) == (404, b""), sent
    lives(served)


def test_raw_requests_that_no_browser_sends_are_refused(served: ViewServer) -> None:
    here = f"Host: 127.0.0.1:{served.server_address[1]}\r\n".encode()
    list_path = f"{root(served)}list".encode()
    requests = {
        b"": b"",
        b"\r\n\r\n": b"",
        b"\0" * 100 + b"\r\n\r\n": b"400",
        b"GET\r\n\r\n": b"400",
        b"GET " + list_path + b"\r\n\r\n": b"400",  # HTTP/0.9
        b"GET " + list_path + b" HTTP/9.9\r\n" + here + b"\r\n": b"505",
        b"GET " + list_path + b" HTTP/1.x\r\n" + here + b"\r\n": b"400",
        b"GET " + list_path + b" HTTP/1.1\r\n\r\n": b"421",
        b"GET " + list_path + b" HTTP/1.1\r\n" + here + here + b"\r\n": b"421",
        b"GET " + list_path + b" HTTP/1.1\r\n" + here + b"Content-Length: 5\r\n\r\nhello": b"400",
        b"GET " + list_path + b" HTTP/1.1\r\n" + here + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n": b"400",
        b"GET http://evil.example" + list_path + b" HTTP/1.1\r\n" + here + b"\r\n": b"404",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + here + b"\r\n": b"414",
        b"GET " + list_path + b" HTTP/1.1\r\n" + here + b"X: " + b"a" * 70_000 + b"\r\n\r\n": b"431",
        b"GET " + list_path + b" HTTP/1.1\r\n" + here + b"X: a\r\n" * 200 + b"\r\n": b"431",
        b"GET /\xff\xfe HTTP/1.1\r\n" + here + b"\r\n": b"404",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": b"400",  # TLS
    }
    for request, status in requests.items():
        if not request:
            continue
        answer = raw(served, request, 2)
        assert SECRET not in answer
        if status:
            assert answer.split(b"\r\n")[0].split(b" ")[1] == status, request[:80]
    lives(served)


@pytest.mark.parametrize(
    "method", ["HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "PROPFIND", "get", "X"]
)
def test_other_methods_are_refused(method: str, served: ViewServer) -> None:
    status, body, headers = ask(served, f"{root(served)}list", method)
    assert (status, body) == (405, b"")
    assert headers["Allow"] == "GET, POST"
    lives(served)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:80", "", "0.0.0.0", "10.0.0.1",
     "[::ffff:1.2.3.4]", "127.0.0.1@evil.example", "user@evil.example", "[", "localhost:99:1", "127.1", "2130706433"],
)  # fmt: skip
def test_a_page_of_another_name_gets_nothing_by_rebinding(host: str, served: ViewServer) -> None:
    status, body, _ = ask(served, f"{root(served)}list", Host=host)
    assert (status, body) == (421, b"")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:8000", "[::1]:8000"])
def test_the_port_of_a_tunnel_is_accepted(host: str, served: ViewServer) -> None:
    assert ask(served, f"{root(served)}list", Host=host)[0] == 200


def test_a_named_host_accepts_addresses_and_its_name_but_no_other() -> None:
    server = ViewServer(ViewItems("slides", "made", []), "0.0.0.0")
    try:
        assert not server.is_loopback
        for host in ("10.1.2.3:80", socket.gethostname(), "localhost", "[fe80::1]:80"):
            assert server.accepts_host(host), host
        for host in ("evil.example", "10.0.0.1.evil.example", ""):
            assert not server.accepts_host(host), host
    finally:
        server.server_close()


def note(server: ViewServer, path: str = "review/0", **changes: str) -> tuple[int, bytes]:
    headers = {"Content_Type": "application/json", **changes}
    body = headers.pop("body", '{"verdict": "agree", "comment": "clear"}').encode()
    return ask(server, root(server) + path, "POST", body=body, **headers)[:2]


def test_a_note_is_written_and_only_in_the_runs_folder(served: ViewServer, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    origin = f"http://127.0.0.1:{served.server_address[1]}"
    assert note(served, Origin=origin) == (200, b'{"verdict": "agree", "comment": "clear"}')
    assert {path.name for path in tmp_path.iterdir()} - before == {"review.csv"}
    items = json.loads(ask(served, f"{root(served)}list")[1])["items"]
    assert items[0]["verdict"] == "agree"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"path": "review/7"}, 404),
        ({"path": "review/../review/0"}, 404),
        ({"path": "list"}, 404),
        ({"path": "slide/0"}, 404),
        ({"body": "x" * (MOST_BODY + 1)}, 413),
        ({"Content_Length": "99999999999999999999"}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "1_0"}, 411),
        ({"Transfer_Encoding": "chunked"}, 411),
        ({"body": ""}, 400),
        ({"body": "[]"}, 400),
        ({"body": "{"}, 400),
        ({"body": "[" * 16_000}, 400),
        ({"body": '{"verdict": 1, "comment": ""}'}, 400),
        ({"body": '{"verdict": "agree"}'}, 400),
        ({"body": '{"verdict": "maybe", "comment": ""}'}, 409),
        ({"body": json.dumps({"verdict": "", "comment": "x" * 2001})}, 409),
    ],
)
def test_a_bad_note_is_refused_and_nothing_is_written(
    changes: dict[str, str], status: int, served: ViewServer, tmp_path: Path
) -> None:
    assert note(served, **changes)[0] == status
    assert not (tmp_path / "review.csv").exists()
    lives(served)


def test_a_note_without_the_token_is_refused(served: ViewServer, tmp_path: Path) -> None:
    status, _, _ = ask(served, "/review/0", "POST", body=b"{}", Content_Type="application/json")
    assert status == 404
    assert not (tmp_path / "review.csv").exists()


def test_slow_clients_are_cut_off_and_others_are_served_meanwhile(
    served: ViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.6)
    monkeypatch.setattr(server_module, "IDLE_S", 0.6)
    address = ("127.0.0.1", served.server_address[1])
    slow = [socket.create_connection(address, timeout=20) for _ in range(20)]
    for connection in slow[:10]:
        connection.sendall(b"GET / HT")
    for connection in slow[10:15]:
        connection.sendall(f"POST {root(served)}review/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
        connection.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    lives(served)
    end = time.monotonic() + 15
    open_ones = list(slow)
    while open_ones and time.monotonic() < end:
        for connection in list(open_ones):
            connection.settimeout(0.05)
            try:
                connection.send(b"P")  # a byte now and then
                if not connection.recv(4096):
                    open_ones.remove(connection)
            except TimeoutError:
                pass
            except OSError:
                open_ones.remove(connection)
    assert not open_ones
    for connection in slow:
        connection.close()
    lives(served)


def test_a_hundred_at_once_are_answered_or_turned_away_and_the_server_lives(served: ViewServer) -> None:
    path = f"{root(served)}tile/0/{digest(served)}/0/0_0.jpg"

    def get(_: int) -> int:
        try:
            return ask(served, path)[0]
        except OSError:
            return 0  # turned away

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(get, range(300)))
    assert set(statuses) <= {0, 200}
    assert statuses.count(200) > 100
    lives(served)


def test_open_connections_above_the_limit_are_closed_and_free_places_are_used_again(served: ViewServer) -> None:
    address = ("127.0.0.1", served.server_address[1])
    held = [socket.create_connection(address, timeout=10) for _ in range(server_module.MOST_CONNECTIONS + 10)]
    time.sleep(0.5)
    for connection in held:
        connection.close()
    for _ in range(50):
        try:
            lives(served)
            break
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
    lives(served)


def test_a_bad_slide_is_an_image_with_its_reason_and_its_path_is_not_sent(served: ViewServer, tmp_path: Path) -> None:
    properties = json.loads(ask(served, f"{root(served)}slide/1")[1])
    assert "bad.svs" in properties["problem"]
    assert str(tmp_path) not in properties["problem"]
    for path in ("thumbnail/1.jpg", f"tile/1/{'0' * 32}/0/0_0.jpg"):
        status, body, headers = ask(served, root(served) + path)
        assert status == 200
        assert body.startswith(b"\xff\xd8")
        assert headers["Cache-Control"] == "no-store"


def test_tiles_may_be_kept_and_are_not_sent_twice(served: ViewServer) -> None:
    path = f"{root(served)}tile/0/{digest(served)}/1/0_0.jpg"
    status, body, headers = ask(served, path)
    assert status == 200
    assert headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert served.token not in headers["ETag"]
    again, nothing, _ = ask(served, path, If_None_Match=headers["ETag"])
    assert (again, nothing) == (304, b"")
    assert len(body) > 1000


def test_every_answer_forbids_other_sites_and_scripts(served: ViewServer) -> None:
    for path in ("", "list", "static/viewer.js", "slide/0", "none"):
        headers = ask(served, root(served) + path)[2]
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None
        assert headers["Server"] == f"longvit/{server_module.__version__}"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_vendored_library_is_the_published_one() -> None:
    for name, expected in SHA256.items():
        assert hashlib.sha256(static_file(name)).hexdigest() == expected
    assert b"BSD" in static_file("openseadragon.LICENSE.txt") or b"Redistribution" in static_file(
        "openseadragon.LICENSE.txt"
    )


def test_the_page_names_no_outside_host() -> None:
    for name in ("page.html", "viewer.js", "viewer.css"):
        text = static_file(name).decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[\w.-]+\.\w+", text), name
        assert "innerHTML" not in text


def test_a_port_in_use_is_one_line(served: ViewServer) -> None:
    with pytest.raises(InputError, match="cannot listen"):
        ViewServer(ViewItems("slides", "made", []), port=served.server_address[1])


def test_a_closed_server_has_ended_its_slides(tmp_path: Path) -> None:
    server = ViewServer(ViewItems("slides", "made", [ViewItem("a", write_slide(tmp_path / "a.tif"))]))
    server.start()
    assert ask(server, f"{root(server)}slide/0")[0] == 200
    server.close()
    assert server.content.slides.open_count == 0
    with pytest.raises(OSError):
        ask(server, f"{root(server)}list")
