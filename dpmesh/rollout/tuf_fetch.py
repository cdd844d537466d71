"""Fetchers: read the files of a policy repository from a folder or over HTTPS, within a deadline.

A server may answer as slowly as it likes, or never end: the deadline bounds each read from its socket, and python-tuf
bounds the length of each file. Redirects are not followed. The system's roots verify the server (SSL_CERT_FILE and
SSL_CERT_DIR replace them).
"""

from __future__ import annotations

import http.client
import math
import os
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from dpmesh import forks

_CHUNK = 1 << 16
# An answer to a request for a file that is not there, which is read to keep the connection.
_SHORT = 1 << 12
_REDIRECTS = (301, 302, 303, 307, 308)


class FolderFetcher(FetcherInterface):
    """Reads a folder. Its URLs are paths."""

    def __init__(self) -> None:
        self._deadline = math.inf

    def begin(self, seconds: float) -> None:
        """Lets all that is read from now on end within a time; a read that hangs in the kernel does not end."""
        self._deadline = time.monotonic() + seconds

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            # O_NONBLOCK: opening a pipe would wait for a writer.
            file = os.open(url, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DownloadHTTPError("no such file", 404) from None
        except OSError as error:
            raise DownloadError(error.strerror or "can't be read") from None
        return self._chunks(file)

    def _chunks(self, file: int) -> Iterator[bytes]:
        with open(file, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise DownloadError("is no regular file")
            try:
                while chunk := stream.read(_CHUNK):
                    if time.monotonic() > self._deadline:
                        raise SlowRetrievalError("took too long")
                    yield chunk
            except OSError as error:
                raise DownloadError(error.strerror or "can't be read") from None


class HttpsFetcher(FetcherInterface):
    """Reads from one HTTPS server, over one connection that stays open between refreshes.

    Args:
        host: The server's name.
        port: Its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._deadline = math.inf
        self._connection: _Connection | None = None
        # Kept, because reading all of a system's roots takes longer than a whole refresh.
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """Leaves the connection to the parent."""
        self._connection = self._session = None

    def begin(self, seconds: float) -> None:
        """Lets all that is read from now on end within a time.

        Only the look-up of the server's name is not bounded by it, but by the system's resolver.
        """
        self._deadline = time.monotonic() + seconds

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            response = self._get(urlsplit(url).path)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from None
        if response.status == http.HTTPStatus.OK:
            return self._chunks(response)
        self._drain(response)
        if response.status in _REDIRECTS:
            raise DownloadError("the server redirects; write the address that it redirects to")
        raise DownloadHTTPError(f"the server answers with status {response.status}", response.status)

    def _get(self, path: str) -> http.client.HTTPResponse:
        kept = self._connection
        if kept is not None:
            try:
                return self._ask(kept, path)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                self.close()  # The server has ended a connection that was idle.
        if self._context is None:
            self._context = ssl.create_default_context()
            self._context.sslsocket_class = _BoundedSocket
            self._session = None
        self._connection = _Connection(self._host, self._port, self._context, self._session)
        return self._ask(self._connection, path)

    def _ask(self, connection: _Connection, path: str) -> http.client.HTTPResponse:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is None:
            connection.timeout = left
            connection.connect()
        connection.sock.deadline = self._deadline
        connection.sock.settimeout(left)
        connection.request("GET", path, headers={"User-Agent": "dpmesh"})
        return connection.getresponse()

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := response.read1(_CHUNK):
                yield chunk
            if response.length:
                raise http.client.IncompleteRead(b"")
            self._finished(response)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from None
        finally:
            if not response.isclosed():
                self.close()  # Nobody wants the rest.

    def _drain(self, response: http.client.HTTPResponse) -> None:
        """Reads the rest of a short answer, so that the connection can go on; ends it otherwise."""
        try:
            left = _SHORT
            while left > 0 and (chunk := response.read1(left)):
                left -= len(chunk)
        except (OSError, http.client.HTTPException):
            pass
        if response.isclosed() or response.length == 0:
            self._finished(response)
        else:
            self.close()

    def _finished(self, response: http.client.HTTPResponse) -> None:
        response.close()
        if self._connection is not None and isinstance(self._connection.sock, ssl.SSLSocket):
            self._session = self._connection.sock.session  # TLS 1.3 gives it after the handshake.

    def _failure(self, error: Exception) -> DownloadError:
        self.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            self._context = None  # The roots of the system may have been renewed.
            return DownloadError(f"the server's certificate is not trusted: {error.verify_message}")
        if isinstance(error, TimeoutError):
            return SlowRetrievalError("took too long")
        text = error.strerror if isinstance(error, OSError) else None
        return DownloadError(text or f"the connection failed ({type(error).__name__})")


class _BoundedSocket(ssl.SSLSocket):
    """A TLS socket whose every read ends at a deadline, by the monotonic clock."""

    deadline = math.inf

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if left < math.inf:
            self.settimeout(left)
        return super().recv_into(buffer, nbytes, flags)


class _Connection(http.client.HTTPSConnection):
    """A connection that goes on with the TLS session of the one before, which saves bytes and time."""

    sock: Any

    def __init__(self, host: str, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        super().__init__(host, port, context=context)
        self._tls, self._session = context, session

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, session=self._session)


def fetcher(url: str) -> tuple[FolderFetcher | HttpsFetcher, str]:
    """The fetcher for a repository, and the base of the addresses that it takes.

    Args:
        url: file:///folder or https://host/path.

    Raises:
        ValueError: The URL is another one.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError("it may have no user, query or fragment")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FolderFetcher(), str(Path(unquote(parts.path)))
    if parts.scheme == "https" and parts.hostname:
        return HttpsFetcher(parts.hostname, parts.port or 443), url.rstrip("/")
    raise ValueError("write tuf+file:///folder or tuf+https://host/path")
