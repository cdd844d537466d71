"""HTTPS servers for tests: one that serves a folder and counts what it is asked, and ones that behave badly."""

from __future__ import annotations

import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """Writes ca.pem, and a server's certificate for "localhost" with its key.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.chain = folder / "ca.pem", folder / "server.pem"
        key, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = self._certificate("test root", key, "test root", key, True)
        server = self._certificate("localhost", leaf, "test root", key, False)
        self.ca.write_bytes(root.public_bytes(Encoding.PEM))
        private = leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.chain.write_bytes(server.public_bytes(Encoding.PEM) + private)

    def context(self) -> ssl.SSLContext:
        """For servers."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain)
        return context

    def _certificate(self, name, key, issuer, issuer_key, is_ca) -> x509.Certificate:
        def named(text):
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        public = issuer_key.public_key()
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=3))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(issuer_key, hashes.SHA256())


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def send_error(self, code, message=None, explain=None):  # A short answer, as static servers have it.
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass

    def log_request(self, code="-", size="-") -> None:
        self.server.asked.append(self.path)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args, context: ssl.SSLContext) -> None:
        super().__init__(*args)
        self.context = context
        self.asked: list[str] = []
        self.connections: list[socket.socket] = []
        self.resumed: list[bool] = []

    def finish_request(self, request, address) -> None:
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as wrapped:
            self.connections.append(wrapped)
            self.resumed.append(wrapped.session_reused)
            super().finish_request(wrapped, address)

    def handle_error(self, request, address) -> None:
        pass

    def hang_up(self) -> None:
        """Ends all connections, as servers do with idle ones."""
        for each in self.connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.connections.clear()


@contextmanager
def serving(folder: Path, authority: Authority) -> Iterator[_Server]:
    """Serves a folder on https://localhost:server_port."""
    handler = partial(_Handler, directory=str(folder))
    with _Server(("localhost", 0), handler, context=authority.context()) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.hang_up()
            server.shutdown()
            thread.join()


@contextmanager
def answering(answer: Callable[[socket.socket], None], authority: Authority | None) -> Iterator[int]:
    """A server that lets a function answer each connection, over TLS unless there is no authority; yields its port.

    The connection ends when the function has returned, or the client has gone.
    """
    with socket.create_server(("localhost", 0)) as listener:

        def talk(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                if authority is None:
                    answer(connection)
                    return
                with authority.context().wrap_socket(connection, server_side=True) as wrapped:
                    answer(wrapped)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
