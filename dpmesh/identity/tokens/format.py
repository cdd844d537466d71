"""The format of tokens, challenges and keys on the wire: type 0x0002, "Blind RSA (2048-bit)" (RFC 9577, RFC 9578).

A TokenChallenge says which issuer and which service a token is for. The token holds the SHA-256 of the challenge, and
the id of the issuer's key: the SHA-256 of the key's encoding.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.tokens import blind_rsa

TOKEN_TYPE = 0x0002
VARIANT = blind_rsa.PSS_DETERMINISTIC
NONCE_BYTES = 32
KEY_BITS = 2048
EXPONENT = 65537
TOKEN_BYTES = 2 + 3 * 32 + KEY_BITS // 8

_TYPE = TOKEN_TYPE.to_bytes(2)
_SCHEME = "PrivateToken"
# RFC 9577, section 2.2: one parameter, which may be quoted. A token's base64url has no padding (354 = 3 * 118).
_CREDENTIALS = re.compile(rf'{_SCHEME} +token=("?)([A-Za-z0-9_-]{{{TOKEN_BYTES // 3 * 4}}})\1', re.IGNORECASE)

# DER of SubjectPublicKeyInfo up to the key: SEQUENCE, id-RSASSA-PSS with hashAlgorithm SHA-384, maskGenAlgorithm MGF1
# with SHA-384, saltLength 48, and the BIT STRING's head. The lengths are those of every 2048-bit key with e = 65537.
_SPKI_PREFIX = bytes.fromhex(
    "30820152303d06092a864886f70d01010a3030a00d300b0609608648016503040202a11a301806092a864886f70d010108"
    "300b0609608648016503040202a2030201300382010f00"
)


class PublishedKey(NamedTuple):
    """An issuer's key, and when tokens under it are valid.

    Attributes:
        public_key: DER, as `encode_key` makes it.
        not_before: When they begin to be valid, in seconds since 1970.
        not_after: When they expire, in seconds since 1970.
    """

    public_key: bytes
    not_before: float
    not_after: float

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the key's encoding (RFC 9578, section 6.5)."""
        return hashlib.sha256(self.public_key).digest()

    @property
    def truncated_key_id(self) -> int:
        """The last byte of the key's id (RFC 9578, section 6.1)."""
        return self.key_id[-1]


@dataclass(frozen=True, slots=True)
class TokenChallenge:
    """What tokens are for (RFC 9577, section 2.1.1). A challenge is public, and all devices use one.

    Attributes:
        issuer_name: The issuer that signs the tokens, as a host name.
        origin_info: The services that accept the tokens, as host names separated by commas; may be empty.
        redemption_context: Empty or 32 bytes. A context that differs between devices or sessions would identify them.

    Raises:
        ConfigError: A part is not of this form.
    """

    issuer_name: str
    origin_info: str = ""
    redemption_context: bytes = b""
    digest: bytes = field(init=False, repr=False)
    """SHA-256 of the encoding, 32 bytes."""

    def __post_init__(self) -> None:
        if not self.issuer_name or not self.issuer_name.isascii() or len(self.issuer_name) >= 1 << 16:
            raise ConfigError("the issuer's name must be 1 to 65535 characters of ASCII")
        if not self.origin_info.isascii() or len(self.origin_info) >= 1 << 16:
            raise ConfigError("the origin info must be at most 65535 characters of ASCII")
        if len(self.redemption_context) not in (0, 32):
            raise ConfigError("the redemption context must be empty or 32 bytes")
        object.__setattr__(self, "digest", hashlib.sha256(self.encode()).digest())

    def encode(self) -> bytes:
        """The struct's octets."""
        issuer, origin = self.issuer_name.encode(), self.origin_info.encode()
        return _TYPE + _counted(issuer, 2) + _counted(self.redemption_context, 1) + _counted(origin, 2)


def _counted(part: bytes, size: int) -> bytes:
    """A vector of TLS (RFC 8446, section 3.4): its length in so many bytes, then itself."""
    return len(part).to_bytes(size) + part


@dataclass(frozen=True, slots=True)
class Token:
    """A token (RFC 9577, section 2.2). Its repr shows nothing, because anybody who reads a token can spend it.

    Attributes:
        nonce: 32 random bytes, by which a second use is detected.
        challenge_digest: SHA-256 of the challenge.
        key_id: SHA-256 of the issuer's key.
        authenticator: The issuer's signature over the other three and the type.
    """

    nonce: bytes = field(repr=False)
    challenge_digest: bytes = field(repr=False)
    key_id: bytes = field(repr=False)
    authenticator: bytes = field(repr=False)

    @property
    def signed(self) -> bytes:
        """The octets under the signature (RFC 9578, section 6.3)."""
        return _TYPE + self.nonce + self.challenge_digest + self.key_id

    def encode(self) -> bytes:
        """The struct's octets."""
        return self.signed + self.authenticator

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads a struct.

        Raises:
            IdentityError: TOKEN_INVALID: another length or type.
        """
        if len(data) != TOKEN_BYTES or data[:2] != _TYPE:
            raise IdentityError("TOKEN_INVALID", "the token is not one of type 0x0002")
        return cls(data[2:34], data[34:66], data[66:98], data[98:])


def to_credentials(token: Token) -> str:
    """A token as the value of the metadata key `authorization` (RFC 9577, section 2.2)."""
    return f"{_SCHEME} token={base64.urlsafe_b64encode(token.encode()).decode()}"


def from_credentials(value: str) -> Token:
    """Reads the value of the metadata key `authorization`.

    Raises:
        IdentityError: TOKEN_MISSING: another scheme. TOKEN_INVALID: not a token of this type.
    """
    if value[: len(_SCHEME) + 1].lower() != _SCHEME.lower() + " ":
        raise IdentityError("TOKEN_MISSING", "the authorization is not of the scheme PrivateToken")
    match = _CREDENTIALS.fullmatch(value)
    if match is None:
        raise IdentityError("TOKEN_INVALID", "the credentials hold no token of type 0x0002")
    return Token.decode(base64.urlsafe_b64decode(match[2]))


def encode_key(key: rsa.RSAPublicKey) -> bytes:
    """An issuer's key as SubjectPublicKeyInfo with the RSASSA-PSS identifier (RFC 9578, section 6.5)."""
    return _SPKI_PREFIX + key.public_bytes(Encoding.DER, PublicFormat.PKCS1)


def decode_key(der: bytes) -> rsa.RSAPublicKey:
    """Reads an issuer's key. Only one encoding is accepted, so that a key has one id.

    Raises:
        IdentityError: MALFORMED: the key is not in this encoding, not of 2048 bits, or its exponent is not 65537.
    """
    try:
        key = load_der_public_key(der.removeprefix(_SPKI_PREFIX)) if der.startswith(_SPKI_PREFIX) else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if (
        not isinstance(key, rsa.RSAPublicKey)
        or key.key_size != KEY_BITS
        or key.public_numbers().e != EXPONENT
        or encode_key(key) != der
    ):
        raise IdentityError("MALFORMED", "the issuer's token key is not a 2048-bit RSASSA-PSS key in DER")
    return key
