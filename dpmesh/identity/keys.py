"""Keys of identities: P-256, made in memory, and their PEM."""

from __future__ import annotations

from typing import TypeGuard

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dpmesh.errors import IdentityError


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """A private key as PKCS #8 in PEM, encrypted if there is a password."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def read_key(pem: bytes, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A P-256 private key from PEM.

    Raises:
        IdentityError: MALFORMED: the PEM is not such a key, or the password is missing or wrong.
    """
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError):
        # The parser's own text could quote what it read.
        raise IdentityError(
            "MALFORMED", "a private key is not in PEM, or its password is missing or wrong"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise IdentityError("MALFORMED", "a private key is not on the curve P-256")
    return key


def is_p256(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether it is a public key on P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
