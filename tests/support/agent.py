"""A fake SPIFFE agent: a real gRPC server on a unix socket that speaks the Workload API's protocol, and says anything."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2

DOMAIN = "example.org"


@dataclass(frozen=True)
class Root:
    """A root certificate and its key, which signs leaves itself."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, now: float) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(key, key, "root", now, 86400.0, ca=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def svid(
        self, path: str, now: float, life: float = 3600.0, bundle: bytes | None = None
    ) -> workload_pb2.X509SVID:
        """An SVID with a new key, as an agent sends it; valid from a minute ago until `life` seconds after now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = f"spiffe://{DOMAIN}/{path}"
        leaf = _builder(key, self.key, name, now, life, ca=False).sign(self.key, hashes.SHA256())
        return workload_pb2.X509SVID(
            spiffe_id=name,
            x509_svid=leaf.public_bytes(Encoding.DER),
            x509_svid_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            bundle=self.der if bundle is None else bundle,
        )


def _builder(
    key: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
    name: str,
    now: float,
    life: float,
    *,
    ca: bool,
) -> x509.CertificateBuilder:
    begin = datetime.datetime.fromtimestamp(now - 60, datetime.UTC)
    usage = {
        "digital_signature": not ca,
        "key_cert_sign": ca,
        "crl_sign": ca,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(seconds=60 + life))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    uri = f"spiffe://{DOMAIN}" if ca else name
    return builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
    )


Said = workload_pb2.X509SVIDResponse | bytes | grpc.StatusCode | None
"""A message, bytes in place of one, the status that ends the stream, or silence."""


def response(*svids: workload_pb2.X509SVID) -> workload_pb2.X509SVIDResponse:
    return workload_pb2.X509SVIDResponse(svids=svids)


class FakeAgent:
    """Says the same to every stream, and what is new to the open ones; use it with `async with`.

    Attributes:
        address: As in SPIFFE_ENDPOINT_SOCKET.
        streams: How many were opened.
        closed: How many of these have ended.
        messages: How many were sent over all of them.
    """

    def __init__(self, folder: Path, said: Said = None) -> None:
        self._path = folder / "agent.sock"
        self.address = f"unix://{self._path}"
        self._said = said
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.streams = self.closed = self.messages = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def start(self) -> None:
        handler = grpc.unary_stream_rpc_method_handler(
            self._fetch,
            request_deserializer=workload_pb2.X509SVIDRequest.FromString,
            response_serializer=lambda said: said if isinstance(said, bytes) else said.SerializeToString(),
        )
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler}),)
        )
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def die(self) -> None:
        """Breaks every stream, and takes the socket away."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
        self._path.unlink(missing_ok=True)

    def say(self, said: Said, *, to_open_streams: bool = True) -> None:
        """Says it to new streams, and mostly to the open ones too."""
        self._said = said
        if to_open_streams:
            self._changed.set()
            self._changed = asyncio.Event()

    async def _fetch(
        self, _: workload_pb2.X509SVIDRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[workload_pb2.X509SVIDResponse | bytes]:
        # SPIFFE Workload Endpoint, section 5: an agent refuses without it.
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        self.streams += 1
        try:
            while True:
                said, changed = self._said, self._changed
                if isinstance(said, grpc.StatusCode):
                    await context.abort(said, f"no identity issued for spiffe://{DOMAIN}/secret")
                elif said is not None:
                    yield said
                    self.messages += 1
                await changed.wait()
        finally:
            self.closed += 1
