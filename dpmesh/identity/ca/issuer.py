"""Issuer: decides which device gets a certificate or anonymous tokens. It knows the requests, not the transport."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dpmesh.errors import IdentityError
from dpmesh.identity.ca import enrolment, proof
from dpmesh.identity.ca.authority import AUTHORITY_OVER, LEAF_LIFE, Authority, checked_life
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.profile import is_server
from dpmesh.identity.ca.proof import Provable, Proven
from dpmesh.identity.keys import is_p256, key_pem, new_key
from dpmesh.v1.identity_pb2 import (
    Certificate,
    EnrolRequest,
    EnrolResponse,
    GetTokenKeysRequest,
    GetTokenKeysResponse,
    RenewRequest,
    RenewResponse,
    SignTokensRequest,
    SignTokensResponse,
    TokenKey,
)

ALLOWANCE = 1024
"""Anonymous tokens for one device in one epoch."""

BAD_REQUEST = "the certificate request is not PKCS #10 for a key on P-256, signed by that key"
SAME_KEY = "a renewal needs a new key: the same one would tie both certificates together"
NO_TOKENS = "this issuer signs no anonymous tokens"
BAD_EPOCH = "no key that tokens are signed with now has this id"
NO_REQUEST = "no request came, or not in time"
BAD_MESSAGE = "the request is no message of this method"
BUSY = "the issuer has too much to do now: come back later"
BAD_BLINDED = "a blinded message is not one for this key, or there is none"

TEXTS = frozenset(
    {
        BAD_REQUEST,
        SAME_KEY,
        NO_TOKENS,
        AUTHORITY_OVER,
        BAD_EPOCH,
        BAD_BLINDED,
        NO_REQUEST,
        BAD_MESSAGE,
        BUSY,
        proof.BAD_PROOF,
        proof.BAD_CLOCK,
        proof.OVER,
        enrolment.BAD_TOKEN,
        enrolment.NOT_ENROLLED,
        enrolment.REPLAYED,
        enrolment.USED_UP,
        enrolment.TOO_MANY,
        enrolment.BROKEN,
    }
)
"""All texts of an issuer's refusals. A client repeats no other text."""

_LARGEST_REQUEST = 4096  # bytes of PKCS #10; a plain one has about 200
_LONGEST_TOKEN = 64  # characters; one has 22

_P = ParamSpec("_P")
_T = TypeVar("_T")


class TokenKeys(Protocol):
    """The keys of the epochs of anonymous tokens (dpmesh.identity.tokens)."""

    def published(self, now: float) -> Sequence[tuple[bytes, float, float]]:
        """Every current or future key: (DER, not before, not after)."""

    def sign(self, truncated_key_id: int, blinded_message: bytes) -> bytes:
        """Returns a blind signature; raises ValueError or IdentityError if there can be none."""


class Issuer:
    """Answers the requests of dpmesh.v1.IssuerService. Its decisions are on disk before it answers.

    Args:
        authority: Signs certificates.
        enrolments: The records.
        life: The life of every certificate, in seconds. It is one for all, so that it identifies none.
        token_keys: The keys that sign anonymous tokens; None if the issuer signs none.
        allowance: Anonymous tokens for one device in one epoch.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The life is not positive.

    Attributes:
        authority: May be replaced at any time, by a roll-over.
    """

    def __init__(
        self,
        authority: Authority,
        enrolments: Enrolments,
        *,
        life: float = LEAF_LIFE,
        token_keys: TokenKeys | None = None,
        allowance: int = ALLOWANCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.authority = authority
        self.life = checked_life(life)
        self.clock = clock
        self._enrolments = enrolments
        self._token_keys = token_keys
        self._allowance = allowance
        # One thread: SQLite has one writer, and the event loop must not wait for a disk.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="dpmesh-issuer")

    def close(self) -> None:
        """Ends the thread that writes, after what it is writing."""
        self._disk.shutdown()

    async def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Issues a certificate for a one-time token.

        Raises:
            IdentityError: REFUSED: the token. MALFORMED: the certificate request. EXPIRED: the authority.
                ISSUER_UNAVAILABLE: the records can't be written.
        """
        key, now = _requested_key(request.certificate_request), self.clock()
        token = request.enrolment_token
        if len(token) > _LONGEST_TOKEN:
            raise IdentityError("REFUSED", enrolment.BAD_TOKEN)
        server = await self._write(self._enrolments.is_server, token)
        certificate, fingerprint, end = self._issue(key, now, server=server)
        await self._write(self._enrolments.enrol, token, fingerprint, end, now=now)
        return EnrolResponse(certificate=certificate)

    async def renew(self, request: RenewRequest) -> RenewResponse:
        """Issues a certificate to a device that proves to have one.

        Raises:
            IdentityError: As in `enrol`, and REFUSED: the proof or the device. RATE_LIMITED: the device has too many
                certificates in force.
        """
        now = self.clock()
        proven = self._check(proof.RENEW, request, now)
        key = _requested_key(request.certificate_request)
        if key == proven.certificate.public_key():
            raise IdentityError("MALFORMED", SAME_KEY)
        certificate, fingerprint, end = self._issue(key, now, server=is_server(proven.certificate))
        await self._write(self._enrolments.renew, proven, fingerprint, end, now=now)
        return RenewResponse(certificate=certificate)

    async def token_key_list(self, _: GetTokenKeysRequest) -> GetTokenKeysResponse:
        """The public keys of anonymous tokens.

        Raises:
            NotImplementedError: There are no token keys.
            IdentityError: ISSUER_UNAVAILABLE: the keys can't be read.
        """
        published = await _in_thread(self._keys().published, self.clock())
        keys = [TokenKey(public_key=der, not_before=int(a), not_after=int(b)) for der, a, b in published]
        return GetTokenKeysResponse(keys=keys)

    async def sign_tokens(self, request: SignTokensRequest) -> SignTokensResponse:
        """Makes blind signatures within the device's allowance. They count before they are made, and are not refunded.

        Raises:
            NotImplementedError: There are no token keys.
            IdentityError: REFUSED: the proof or the device. MALFORMED: an unknown key, or a bad blinded message.
                RATE_LIMITED: more than the allowance. ISSUER_UNAVAILABLE: the records or the keys can't be used.
        """
        keys, now = self._keys(), self.clock()
        proven = self._check(proof.SIGN_TOKENS, request, now)
        key_id, blinded = request.truncated_token_key_id, request.blinded_messages
        if not blinded:
            raise IdentityError("MALFORMED", BAD_BLINDED)
        epoch, not_after = _epoch(await _in_thread(keys.published, now), key_id)
        allowance = self._allowance
        await self._write(self._enrolments.allow, proven, epoch, len(blinded), allowance, not_after, now=now)
        signatures = [await _in_thread(keys.sign, key_id, message) for message in blinded]
        return SignTokensResponse(blind_signatures=signatures)

    def server_certificate(self) -> tuple[bytes, bytes, float]:
        """The issuing service's own key and chain in PEM, and the time when half of its life has passed."""
        key, now = new_key(), self.clock()
        chain = self.authority.issue_issuer(key.public_key(), now=now, life=self.life)
        end = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
        return key_pem(key), chain, now + (end - now) / 2

    def _keys(self) -> TokenKeys:
        if self._token_keys is None:
            raise NotImplementedError(NO_TOKENS)
        return self._token_keys

    def _check(self, method: str, request: Provable, now: float) -> Proven:
        proven = proof.check(method, request, now)
        if not self.authority.has_issued(proven.certificate):
            raise IdentityError("REFUSED", proof.BAD_PROOF)
        return proven

    def _issue(
        self, key: ec.EllipticCurvePublicKey, now: float, *, server: bool
    ) -> tuple[Certificate, bytes, float]:
        """A certificate for a key, its SHA-256, and when it expires."""
        authority = self.authority
        chain = authority.issue(key, now=now, life=self.life, server=server)
        leaf = x509.load_pem_x509_certificate(chain)
        certificate = Certificate(chain=chain, trust_bundle=authority.trust_bundle)
        return certificate, leaf.fingerprint(hashes.SHA256()), leaf.not_valid_after_utc.timestamp()

    async def _write(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, lambda: function(*args, **kwargs))


def _requested_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PKCS #10 request, or MALFORMED. Nothing else in the request counts."""
    try:
        if len(der) <= _LARGEST_REQUEST:
            request = x509.load_der_x509_csr(der)
            key = request.public_key()
            # The signature is checked for P-256 only: checking one by a huge RSA key takes long.
            if is_p256(key) and request.is_signature_valid:
                return key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass  # The parser's own text could quote what it read.
    raise IdentityError("MALFORMED", BAD_REQUEST)


def _epoch(published: Sequence[tuple[bytes, float, float]], truncated_key_id: int) -> tuple[bytes, float]:
    """The name of the epoch whose key has this id (the key's hash), and its end; MALFORMED if there is no such key."""
    for der, _, not_after in published:
        name = hashlib.sha256(der).digest()
        if name[-1] == truncated_key_id:
            return name, not_after
    raise IdentityError("MALFORMED", BAD_EPOCH)


async def _in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls a method of the token keys in a thread, because making and using an RSA key takes long.

    Raises:
        IdentityError: With a text of this module, because theirs name files.
    """
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except ValueError:
        reason = "MALFORMED"
    except IdentityError as error:
        reason = error.reason
    if reason == "EXPIRED":
        raise IdentityError("MALFORMED", BAD_EPOCH)
    if reason == "MALFORMED":
        raise IdentityError("MALFORMED", BAD_BLINDED)
    raise IdentityError("ISSUER_UNAVAILABLE", enrolment.BROKEN)
