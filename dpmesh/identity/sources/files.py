"""Identities from files that somebody else renews: cert-manager's secrets, Vault's agent."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from typing_extensions import override

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import Identity, Source, signed_by

# Seconds: between two readings that must agree, and until `fetch` gives up on files that never fit each other. Writing
# three files takes less.
_PAUSE = 0.05
_PATIENCE = 2.0
# Bytes. Larger than any bundle of roots, and read once a second.
_LARGEST = 1 << 20

_Read = tuple[bytes, bytes, bytes]


class FileSource(Source):
    """A certificate chain, its key and the trust bundle, each in a PEM file.

    The files are accepted only together: two readings agree, the key is the leaf's, and the chain leads to a root of
    the bundle. Otherwise they are just being written, and are read again for up to two seconds.

    Args:
        certificates: Path of the chain, leaf first (cert-manager: tls.crt).
        key: Path of the private key, not encrypted (cert-manager: tls.key).
        trust_bundle: Path of the roots (cert-manager: ca.crt).
        clock: Seconds since 1970.
    """

    follows = True

    def __init__(
        self,
        certificates: str | os.PathLike[str],
        key: str | os.PathLike[str],
        trust_bundle: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._certificates = Path(certificates)
        self._key = Path(key)
        self._trust_bundle = Path(trust_bundle)
        self._clock = clock
        self._last: tuple[_Read, Identity] | None = None

    @override
    async def fetch(self) -> Identity:
        """Returns the identity in the files: one object for as long as they don't change.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE: a file can't be read. MALFORMED, UNTRUSTED: they don't fit each other.
                EXPIRED: the certificate has expired.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return await self._try()
            except IdentityError:
                if time.monotonic() >= end:
                    raise
            await asyncio.sleep(_PAUSE)

    @override
    async def close(self) -> None:
        self._last = None

    async def _try(self) -> Identity:
        read = await asyncio.to_thread(self._read)
        if self._last is not None and self._last[0] == read and self._clock() < self._last[1].not_after:
            return self._last[1]
        await asyncio.sleep(_PAUSE)
        if await asyncio.to_thread(self._read) != read:
            raise IdentityError("MALFORMED", "the identity's files are just being written")
        identity = Identity.load(*read, self._clock())
        _check_path(identity)
        self._last = read, identity
        return identity

    def _read(self) -> _Read:
        return (
            _content(self._certificates, "certificate chain"),
            _content(self._key, "private key"),
            _content(self._trust_bundle, "trust bundle"),
        )


def _content(path: Path, what: str) -> bytes:
    """The bytes of a regular file. A pipe or a device could make the reader wait for ever."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(_LARGEST + 1) if is_regular else b""
    except OSError as error:
        kind = type(error).__name__
    else:
        if 0 < len(content) <= _LARGEST:
            return content
        kind = "not a file of 1 byte to 1 MiB"
    raise IdentityError("ISSUER_UNAVAILABLE", f"the identity's {what} can't be read ({kind})")


def _check_path(identity: Identity) -> None:
    """Checks that the next certificate of the chain issued each one, and that a root issued the last one.

    In SPIFFE one bundle checks all certificates of a trust domain, one's own too (X509-SVID, section 5.2).
    """
    chain = x509.load_pem_x509_certificates(identity.certificates)
    roots = x509.load_pem_x509_certificates(identity.trust_bundle)
    steps = all(signed_by(child, parent) for child, parent in itertools.pairwise(chain))
    if not (steps and any(chain[-1] == root or signed_by(chain[-1], root) for root in roots)):
        raise IdentityError("UNTRUSTED", "the certificate chain does not lead to a root of the trust bundle")
