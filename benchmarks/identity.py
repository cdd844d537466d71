"""Certificates: issued by the embedded CA, and by the issuer with all its checks and its records on disk, on one core.

The fastest of four rounds.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.table import Row
from dpmesh.identity import Identity, Root
from dpmesh.identity.ca.folder import create_folder, open_folder
from dpmesh.identity.ca.issuer import Issuer
from dpmesh.identity.ca.proof import RENEW, prove
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.v1.identity_pb2 import EnrolRequest, RenewRequest
from dpmesh_grpc.issuer.server import issuer_server
from dpmesh_grpc.issuer.source import IssuerSource

ROUNDS = 4
ISSUED = 4000
DEVICES = 2000
CONCURRENT = 64
FETCHED = 200
LIFE = 1800.0
BAR = "at least 500"

_T = TypeVar("_T")


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those it starts, on one core."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


@asynccontextmanager
async def issuer(folder: Path) -> AsyncIterator[tuple[Issuer, Any]]:
    """An issuer with a folder of its own, and its records."""
    create_folder(folder, "bench.example.org", now=time.time())
    authority, enrolments = open_folder(folder)
    made = Issuer(authority, enrolments, life=LIFE)
    yield made, enrolments
    made.close()
    enrolments.close()


def plain() -> float:
    """Certificates a second by the authority alone."""
    authority = Root.create("bench.example.org", now=time.time()).sign_intermediate(now=time.time())
    keys = [new_key().public_key() for _ in range(ISSUED)]
    rates = []
    for part in _rounds(keys):
        start = time.perf_counter()
        for key in part:
            authority.issue(key, now=time.time(), life=LIFE)
        rates.append(len(part) / (time.perf_counter() - start))
    return max(rates)


async def decided(folder: Path) -> tuple[float, float, float]:
    """Enrolments a second, and renewals a second: one after the other, and 64 at a time."""
    async with issuer(folder) as (served, enrolments):
        tokens = [enrolments.invite(now=time.time()).token for _ in range(DEVICES)]
        keys = [new_key() for _ in tokens]
        first = [
            EnrolRequest(enrolment_token=token, certificate_request=_request(key))
            for token, key in zip(tokens, keys, strict=True)
        ]
        enrolled, answers = await _rate(served.enrol, first, CONCURRENT)
        identities = [
            Identity.load(
                answer.certificate.chain, key_pem(key), answer.certificate.trust_bundle, time.time()
            )
            for answer, key in zip(answers, keys, strict=True)
        ]
        single, _ = await _rate(served.renew, [_renewal(identity) for identity in identities], 1)
        many, _ = await _rate(served.renew, [_renewal(identity) for identity in identities], CONCURRENT)
    return enrolled, single, many


async def fetched(folder: Path) -> float:
    """Seconds for one identity from a server over TLS: key, request, new connection, certificate."""
    async with issuer(folder) as (served, enrolments), issuer_server(served, "127.0.0.1:0") as port:
        source = IssuerSource(
            f"127.0.0.1:{port}",
            served.authority.trust_bundle,
            enrolment_token=enrolments.invite(now=time.time()).token,
        )
        await source.fetch()
        start = time.perf_counter()
        for _ in range(FETCHED):
            await source.fetch()
        return (time.perf_counter() - start) / FETCHED


async def _rate(
    function: Callable[[Any], Awaitable[Any]], requests: Sequence[Any], concurrent: int
) -> tuple[float, list[Any]]:
    """Requests answered a second, and the answers in order."""
    answers: list[Any] = [None] * len(requests)
    rates = []
    for part in _rounds(range(len(requests))):
        waiting = iter(part)

        async def worker(waiting: Iterator[int] = waiting) -> None:
            for index in waiting:
                answers[index] = await function(requests[index])

        start = time.perf_counter()
        await asyncio.gather(*[worker() for _ in range(concurrent)])
        rates.append(len(part) / (time.perf_counter() - start))
    return max(rates), answers


def _rounds(items: Sequence[_T]) -> list[Sequence[_T]]:
    """The items in equal parts. The fastest round counts: what else runs on that core only makes others slower."""
    size = len(items) // ROUNDS
    return [items[size * index : size * (index + 1)] for index in range(ROUNDS)]


def _request(key: Any) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _renewal(identity: Identity) -> RenewRequest:
    request = RenewRequest(certificate_request=_request(new_key()))
    prove(RENEW, request, identity, time.time())
    return request


def rows() -> list[Row]:
    """All figures of the embedded CA."""
    with tempfile.TemporaryDirectory() as place:
        with one_core():
            issued = plain()
            enrolled, single, many = asyncio.run(decided(Path(place) / "decided"))
        seconds = asyncio.run(fetched(Path(place) / "fetched"))
    return [
        Row("certificates issued by the embedded CA, one core", issued, "/s", BAR),
        Row("enrolments, checked and durable, 64 concurrent, one core", enrolled, "/s", BAR),
        Row("renewals, checked and durable, 64 concurrent, one core", many, "/s", BAR),
        Row("  one after the other", single, "/s", ""),
        Row("one identity over TLS, client and new connection included", seconds * 1e3, "ms", ""),
    ]
