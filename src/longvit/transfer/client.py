"""Client of a public archive over HTTPS, without credentials: requests with time limits, and errors worth a retry.

`requests` follows the proxy and the certificates of the environment (HTTPS_PROXY, REQUESTS_CA_BUNDLE).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from longvit import __version__
from longvit.errors import InputError, describe_error, one_line

if TYPE_CHECKING:
    import requests

_CHUNK_BYTES = 2**20
_CONNECT_S = 20.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_LEAST_BYTES_A_S = 1024
"""A connection that is slower than this over the time limit counts as stalled."""
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_REASONS = {
    401: "the archive asks for credentials: not public",
    403: "access denied: not public, or not there",
    404: "not there",
    412: "the object has changed meanwhile",
    416: "shorter than it was listed",
}
T = TypeVar("T")


class TransferError(Exception):
    """A failed transfer, on one line; a temporary one is worth a retry."""

    def __init__(self, text: str, *, is_temporary: bool = False, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.is_temporary = is_temporary
        self.status = status
        """Status of the response; 0: there was none."""
        self.wait_s = wait_s
        """Seconds that the server asks to wait."""


class Stopped(Exception):
    """The transfer was asked to stop."""


@dataclass(frozen=True)
class Patience:
    """Time limits and retries of a transfer."""

    retries: int = 5
    """Retries in a row without a new byte, after 0.5, 1, 2 … 30 s, each shortened by chance by up to a half."""
    timeout_s: float = 60.0
    """Seconds without a byte after which a connection is given up, and over which it may not be slower than 1 KiB/s."""


class Client:
    """HTTPS client of one thread; a context manager that ends its connections."""

    def __init__(self, patience: Patience, stopping: threading.Event) -> None:
        """Raises `InputError` where `requests` is not installed."""
        require_requests()
        import requests

        self.patience, self.stopping = patience, stopping
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"longvit/{__version__}"
        self._session.auth = _anonymous  # no credentials of ~/.netrc

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    @contextmanager
    def get(
        self, url: str, parameters: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[requests.Response]:
        """Response of a request whose body has not been read. Raises `TransferError` for any status of an error."""
        import requests

        all_headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            response = self._session.get(
                url,
                params=parameters,
                headers=all_headers,
                stream=True,
                timeout=(min(_CONNECT_S, self.patience.timeout_s), self.patience.timeout_s),
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TransferError(f"{url}: no connection ({_reason(error)})", is_temporary=True) from error
        except requests.RequestException as error:
            raise TransferError(f"{url}: {describe_error(error)}") from error
        with response:
            if response.status_code >= 400:
                raise _status_error(url, response)
            yield response

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Body of a response as it arrives. Raises a temporary `TransferError` where it breaks off or stalls, and
        `Stopped` after `stopping` was set."""
        from urllib3.exceptions import HTTPError

        since, received = time.monotonic(), 0
        try:
            # Each read returns what has arrived, so that little is lost at a break and a slow server is noticed.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                if self.stopping.is_set():
                    raise Stopped
                yield chunk
                received += len(chunk)
                lasted = time.monotonic() - since
                if lasted > self.patience.timeout_s:
                    if received < _LEAST_BYTES_A_S * lasted:
                        text = f"{response.url}: {received} bytes in {lasted:.0f} s, given up"
                        raise TransferError(text, is_temporary=True)
                    since, received = time.monotonic(), 0
        except HTTPError as error:
            raise TransferError(f"{response.url}: broken off ({_reason(error)})", is_temporary=True) from error

    def again(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Result of `action`, repeated after temporary errors. The retries are counted from the last `progress`.

        Raises `TransferError` after the last retry, and `Stopped`.
        """
        tries, reached = 0, progress()
        while True:
            try:
                return action()
            except TransferError as error:
                if progress() > reached:
                    tries, reached = 0, progress()
                tries += 1
                if not error.is_temporary:
                    raise
                if tries > self.patience.retries:
                    raise TransferError(f"{error}; tried {tries} times", is_temporary=True) from error
                wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
                if self.stopping.wait(max(wait_s, min(error.wait_s, _LONGEST_WAIT_S))):
                    raise Stopped from None


def require_requests() -> None:
    """Raises `InputError` where `requests` is not installed."""
    if find_spec("requests") is None:
        raise InputError("downloads need requests: pip install 'longvit[public]'")


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _status_error(url: str, response: requests.Response) -> TransferError:
    status = response.status_code
    reason = _REASONS.get(status, one_line(response.reason or "")[:80])
    wait = response.headers.get("Retry-After", "")
    wait_s = float(wait) if wait.isdigit() else 0.0
    text = f"{url}: {status} {reason}".rstrip()
    return TransferError(text, is_temporary=status in _TEMPORARY, status=status, wait_s=wait_s)


def _reason(error: Exception) -> str:
    """Innermost reason of an error of `requests`, whose own text nests three others."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return one_line(seen, 120)
