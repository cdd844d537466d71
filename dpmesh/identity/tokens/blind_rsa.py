"""Blind RSA signatures (RFC 9474): the signer can neither read what it signs nor recognise the signature later.

There are four variants, all with SHA-384 and MGF1 with SHA-384. The client prepares and blinds a message, the signer
signs the blinded message, the client finalizes the answer into an ordinary RSASSA-PSS signature (RFC 8017, section
8.1), and anybody can verify that.

`cryptography` has no bare RSA operation, so the signer computes with Python's integers, not in constant time. Therefore
each operation has a freshly blinded base and freshly blinded exponents: its time does not depend on the input, and
averages over many operations do not reveal the key.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from dpmesh.errors import IdentityError

_HASH_BYTES = 48  # SHA-384
_PREFIX_BYTES = 32  # RFC 9474, section 4.1
_EXPONENT_BLIND_BITS = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the four variants (RFC 9474, section 5).

    Attributes:
        name: The RFC's name.
        salt_bytes: The length of the salt of EMSA-PSS: 48 or 0.
        randomized: The message gets a random prefix, so that a signer with a malicious key learns nothing about a
            message that can be guessed. Without it the message itself must be unguessable.
    """

    name: str
    salt_bytes: int
    randomized: bool


PSS_RANDOMIZED = Variant("RSABSSA-SHA384-PSS-Randomized", _HASH_BYTES, True)
PSSZERO_RANDOMIZED = Variant("RSABSSA-SHA384-PSSZERO-Randomized", 0, True)
PSS_DETERMINISTIC = Variant("RSABSSA-SHA384-PSS-Deterministic", _HASH_BYTES, False)
PSSZERO_DETERMINISTIC = Variant("RSABSSA-SHA384-PSSZERO-Deterministic", 0, False)
VARIANTS = (PSS_RANDOMIZED, PSSZERO_RANDOMIZED, PSS_DETERMINISTIC, PSSZERO_DETERMINISTIC)


@dataclass(frozen=True, slots=True)
class Blinded:
    """A message that was blinded.

    Attributes:
        message: What the signer gets; as long as the modulus.
        inverse: Turns the signer's answer into the signature. It links the two, so only the client may have it.
    """

    message: bytes
    inverse: int = field(repr=False)


def prepare(variant: Variant, message: bytes, *, prefix: bytes | None = None) -> bytes:
    """The message that is blinded, signed and verified (RFC 9474, section 4.1).

    A prefix of 32 bytes instead of random ones is for test vectors only.
    """
    if not variant.randomized:
        return message
    return (secrets.token_bytes(_PREFIX_BYTES) if prefix is None else prefix) + message


def blind(
    variant: Variant,
    key: rsa.RSAPublicKey,
    prepared: bytes,
    *,
    salt: bytes | None = None,
    factor: int | None = None,
) -> Blinded:
    """Blinds a prepared message (RFC 9474, section 4.2).

    A salt and a blinding factor r instead of random ones are for test vectors only.

    Raises:
        IdentityError: UNTRUSTED: the message and the modulus share a factor, so the key is not an RSA key.
    """
    n = key.public_numbers().n
    salt = secrets.token_bytes(variant.salt_bytes) if salt is None else salt
    encoded = int.from_bytes(emsa_pss_encode(prepared, n.bit_length() - 1, salt))
    if math.gcd(encoded, n) != 1:
        raise IdentityError("UNTRUSTED", "the message shares a factor with the modulus: this is no RSA key")
    factor, inverse = _invertible(n) if factor is None else (factor, pow(factor, -1, n))
    blinded = encoded * pow(factor, key.public_numbers().e, n) % n
    return Blinded(blinded.to_bytes(_size(n)), inverse)


def blind_sign(key: rsa.RSAPrivateKey, blinded: bytes) -> bytes:
    """Signs a blinded message (RFC 9474, section 4.3). The blind signature is as long as the modulus.

    Raises:
        IdentityError: MALFORMED: the input is of another length, or not smaller than the modulus. REFUSED: the result
            is not the input's signature (one wrong bit of it would give the key away: Boneh, DeMillo, Lipton 1997).
    """
    numbers = key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    message = _integer(blinded, n, "the blinded message")
    factor, inverse = _invertible(n)
    signature = _private(numbers, message * pow(factor, e, n) % n) * inverse % n
    if pow(signature, e, n) != message:
        raise IdentityError("REFUSED", "a blind signature came out wrong, so it is withheld")
    return signature.to_bytes(_size(n))


def finalize(
    variant: Variant, key: rsa.RSAPublicKey, prepared: bytes, blind_signature: bytes, inverse: int
) -> bytes:
    """Turns the signer's answer into a signature of the prepared message (RFC 9474, section 4.4).

    Raises:
        IdentityError: MALFORMED: the answer is of another length, or not smaller than the modulus. TOKEN_INVALID: it
            is no signature of this message.
    """
    n = key.public_numbers().n
    answer = _integer(blind_signature, n, "the blind signature")
    signature = (answer * inverse % n).to_bytes(_size(n))
    if not verify(variant, key, prepared, signature):
        text = "the signer's answer is no signature of what it was asked to sign"
        raise IdentityError("TOKEN_INVALID", text)
    return signature


def verify(variant: Variant, key: rsa.RSAPublicKey, prepared: bytes, signature: bytes) -> bool:
    """Whether a signature is the prepared message's: RSASSA-PSS-VERIFY (RFC 8017, section 8.1.2)."""
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), variant.salt_bytes)
    try:
        key.verify(signature, prepared, pss, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def emsa_pss_encode(message: bytes, bits: int, salt: bytes) -> bytes:
    """EMSA-PSS-ENCODE with SHA-384 (RFC 8017, section 9.1.1) to so many bits, one less than the modulus has.

    Raises:
        IdentityError: MALFORMED: the modulus is too short for the hash and the salt.
    """
    size = (bits + 7) // 8
    filler = size - len(salt) - _HASH_BYTES - 2
    if filler < 0:
        raise IdentityError("MALFORMED", "the RSA key is too short for SHA-384 with this salt")
    digest = hashlib.sha384(bytes(8) + hashlib.sha384(message).digest() + salt).digest()
    block = bytes(filler) + b"\x01" + salt
    masked = int.from_bytes(block) ^ int.from_bytes(_mgf1(digest, len(block)))
    masked &= (1 << (bits - 8 * (_HASH_BYTES + 1))) - 1
    return masked.to_bytes(len(block)) + digest + b"\xbc"


def _mgf1(seed: bytes, size: int) -> bytes:
    """MGF1 with SHA-384 (RFC 8017, appendix B.2.1)."""
    blocks = (hashlib.sha384(seed + i.to_bytes(4)).digest() for i in range(-(-size // _HASH_BYTES)))
    return b"".join(blocks)[:size]


def _private(numbers: rsa.RSAPrivateNumbers, base: int) -> int:
    """base^d mod n by the Chinese remainder theorem (RFC 8017, section 5.1.2), with blinded exponents.

    A multiple of the group's order added to an exponent changes its bits and not the result.
    """
    p, q = numbers.p, numbers.q
    order_p, order_q = p - 1, q - 1
    at_p = pow(base % p, numbers.dmp1 + order_p * secrets.randbits(_EXPONENT_BLIND_BITS), p)
    at_q = pow(base % q, numbers.dmq1 + order_q * secrets.randbits(_EXPONENT_BLIND_BITS), q)
    return at_q + q * ((at_p - at_q) * numbers.iqmp % p)


def _invertible(n: int) -> tuple[int, int]:
    """A random number below n, not 0, and its inverse; uniform among those that have one.

    Raises:
        IdentityError: UNTRUSTED: there was none, which for an RSA key happens once in 2^1000 times.
    """
    factor = secrets.randbelow(n - 1) + 1
    try:
        return factor, pow(factor, -1, n)
    except ValueError:
        text = "a random number shares a factor with the modulus: no RSA key"
        raise IdentityError("UNTRUSTED", text) from None


def _integer(data: bytes, n: int, what: str) -> int:
    """OS2IP (RFC 8017, section 4.2) of what must be as long as the modulus, and smaller; else MALFORMED."""
    number = int.from_bytes(data)
    if len(data) != _size(n) or number >= n:
        raise IdentityError("MALFORMED", f"{what} is not as long as the modulus, or not smaller")
    return number


def _size(n: int) -> int:
    return (n.bit_length() + 7) // 8
