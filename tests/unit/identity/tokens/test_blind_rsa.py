"""Blind RSA against the RFC's vectors, a second implementation, and signers and clients that cheat."""

import functools

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens import blind_rsa

EACH = pytest.mark.parametrize("variant", blind_rsa.VARIANTS, ids=lambda v: v.name)


@functools.cache
def key(bits=2048):
    return rsa.generate_private_key(65537, bits)


def reason(function, *args, **kwargs):
    """Why it was refused."""
    with pytest.raises(IdentityError) as caught:
        function(*args, **kwargs)
    return caught.value.reason


def signed(variant, message):
    """A prepared message, its blinding and the blind signature."""
    prepared = blind_rsa.prepare(variant, message)
    blinded = blind_rsa.blind(variant, key().public_key(), prepared)
    return prepared, blinded, blind_rsa.blind_sign(key(), blinded.message)


# RFC 9474, appendix A


def vector_key(vector):
    p, q, n, e, d = (int(vector[name], 16) for name in "pqned")
    assert p * q == n
    dp, dq = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q)
    return rsa.RSAPrivateNumbers(
        p, q, d, dp, dq, rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
    ).private_key()


@EACH
def test_the_vectors_of_the_rfc(vectors, variant):
    (vector,) = [v for v in vectors("rfc9474_blind_rsa.json") if v["name"] == variant.name]
    assert variant.salt_bytes == int(vector["sLen"], 16)
    assert variant.randomized == bool(int(vector["is_randomized"], 16))
    private = vector_key(vector)
    public = private.public_key()
    n, inverse = int(vector["n"], 16), int(vector["inv"], 16)
    salt = bytes.fromhex(vector["salt"])

    prepared = blind_rsa.prepare(
        variant, bytes.fromhex(vector["msg"]), prefix=bytes.fromhex(vector["msg_prefix"])
    )
    assert prepared.hex() == vector["input_msg"]
    encoded = blind_rsa.emsa_pss_encode(prepared, n.bit_length() - 1, salt)
    if "encoded_msg" in vector:
        assert encoded.hex() == vector["encoded_msg"]
    blinded = blind_rsa.blind(variant, public, prepared, salt=salt, factor=pow(inverse, -1, n))
    assert blinded.message.hex() == vector["blinded_msg"]
    assert blinded.inverse == inverse
    blind_signature = blind_rsa.blind_sign(private, blinded.message)
    assert blind_signature.hex() == vector["blind_sig"]
    signature = blind_rsa.finalize(variant, public, prepared, blind_signature, inverse)
    assert signature.hex() == vector["sig"]
    assert blind_rsa.verify(variant, public, prepared, signature)


def test_there_is_a_vector_for_each_variant(vectors):
    assert [v["name"] for v in vectors("rfc9474_blind_rsa.json")] == [v.name for v in blind_rsa.VARIANTS]


# What comes out, and what it does not show


@EACH
def test_a_signature_is_an_ordinary_one(variant):
    prepared, blinded, answer = signed(variant, b"message")
    signature = blind_rsa.finalize(variant, key().public_key(), prepared, answer, blinded.inverse)
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), variant.salt_bytes)
    key().public_key().verify(signature, prepared, pss, hashes.SHA384())


@EACH
def test_nothing_is_used_twice(variant):
    first, second = (blind_rsa.prepare(variant, b"message") for _ in range(2))
    assert (first != second) == variant.randomized
    assert first.endswith(b"message")
    assert len(first) == 7 + 32 * variant.randomized
    blinded = {blind_rsa.blind(variant, key().public_key(), first).message for _ in range(20)}
    assert len(blinded) == 20
    assert {len(message) for message in blinded} == {256}


def test_any_blind_signature_fits_any_signature():
    """For each pair of what the signer saw and what it sees later there is a blinding factor: it can't tell."""
    variant, n, e = blind_rsa.PSS_DETERMINISTIC, key().public_key().public_numbers().n, 65537
    pairs = []
    for message in (b"one", b"two"):
        prepared, blinded, answer = signed(variant, message)
        signature = blind_rsa.finalize(variant, key().public_key(), prepared, answer, blinded.inverse)
        pairs.append((int.from_bytes(blinded.message), int.from_bytes(signature)))
    for seen, _ in pairs:
        for _, signature in pairs:
            factor = pow(seen * pow(pow(signature, e, n), -1, n), key().private_numbers().d, n)
            assert pow(factor, e, n) * pow(signature, e, n) % n == seen


def test_what_links_does_not_show():
    prepared = blind_rsa.prepare(blind_rsa.PSS_DETERMINISTIC, b"m")
    blinded = blind_rsa.blind(blind_rsa.PSS_DETERMINISTIC, key().public_key(), prepared)
    assert str(blinded.inverse) not in repr(blinded)


# What is refused


@EACH
def test_a_changed_message_signature_or_key_does_not_verify(variant):
    prepared, blinded, answer = signed(variant, b"message")
    public = key().public_key()
    signature = blind_rsa.finalize(variant, public, prepared, answer, blinded.inverse)
    assert not blind_rsa.verify(variant, public, prepared + b"!", signature)
    assert not blind_rsa.verify(variant, key(3072).public_key(), prepared, signature)
    n = public.public_numbers().n
    for wrong in (
        b"",
        signature[:-1],
        signature + b"\0",
        b"\0" + signature,
        bytes(256),
        bytes([signature[0] ^ 1]) + signature[1:],
        n.to_bytes(256),
        b"\xff" * 256,
    ):
        assert not blind_rsa.verify(variant, public, prepared, wrong)
    for other in blind_rsa.VARIANTS:
        assert blind_rsa.verify(other, public, prepared, signature) == (
            other.salt_bytes == variant.salt_bytes
        )


@EACH
def test_a_signer_that_answers_something_else_is_found_out(variant):
    prepared, blinded, answer = signed(variant, b"message")
    public = key().public_key()
    other = blind_rsa.blind_sign(key(), (5).to_bytes(256))
    # Another last bit is never the answer itself.
    altered = answer[:-1] + bytes([answer[-1] ^ 1])
    for wrong in (other, bytes(256), altered):
        assert (
            reason(blind_rsa.finalize, variant, public, prepared, wrong, blinded.inverse) == "TOKEN_INVALID"
        )
    n = public.public_numbers().n
    for wrong in (
        b"",
        answer[1:],
        answer + b"\0",
        b"\0" + answer,
        n.to_bytes(256),
        (n + 1).to_bytes(256),
        b"\xff" * 256,
    ):
        assert reason(blind_rsa.finalize, variant, public, prepared, wrong, blinded.inverse) == "MALFORMED"


def test_a_client_that_sends_something_out_of_range_is_refused():
    n = key().public_key().public_numbers().n
    for wrong in (b"", bytes(255), bytes(257), n.to_bytes(256), (n + 1).to_bytes(256), b"\xff" * 256):
        assert reason(blind_rsa.blind_sign, key(), wrong) == "MALFORMED"
    assert blind_rsa.blind_sign(key(), (n - 1).to_bytes(256)) == (n - 1).to_bytes(256)
    assert blind_rsa.blind_sign(key(), bytes(256)) == bytes(256)


@pytest.mark.parametrize("fault", ["dmp1", "dmq1", "iqmp"])
def test_a_fault_during_signing_gives_nothing_away(monkeypatch, fault):
    """A signature that is right modulo one prime and wrong modulo the other factors the modulus."""
    numbers = key().private_numbers()
    parts = {name: getattr(numbers, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp")}
    parts[fault] += 2
    broken = rsa.RSAPrivateNumbers(**parts, public_numbers=numbers.public_numbers)

    class Faulty:
        def private_numbers(self):
            return broken

    assert reason(blind_rsa.blind_sign, Faulty(), (5).to_bytes(256)) == "REFUSED"


def divisible_by_three():
    """A modulus that is 3 times something, and a message whose encoding is too."""

    class Key:
        def public_numbers(self):
            return rsa.RSAPublicNumbers(65537, 3 * (1 << 2046 | 1))

    encode = functools.partial(blind_rsa.emsa_pss_encode, bits=2047, salt=bytes(48))
    messages = (bytes([i]) for i in range(256))
    return Key(), next(m for m in messages if int.from_bytes(encode(m)) % 3 == 0)


def test_a_key_that_shares_a_factor_with_the_message_is_none():
    shares, message = divisible_by_three()
    blind = functools.partial(blind_rsa.blind, blind_rsa.PSS_DETERMINISTIC)
    assert reason(blind, shares, message, salt=bytes(48)) == "UNTRUSTED"


def test_a_blinding_factor_without_an_inverse_is_not_used(monkeypatch):
    n = divisible_by_three()[0].public_numbers().n
    monkeypatch.setattr(blind_rsa.secrets, "randbelow", lambda _: 5)
    assert reason(blind_rsa._invertible, n) == "UNTRUSTED"


def test_a_key_too_short_for_the_hash_is_refused():
    assert reason(blind_rsa.emsa_pss_encode, b"m", 97 * 8, bytes(48)) == "MALFORMED"
    assert len(blind_rsa.emsa_pss_encode(b"m", 98 * 8, bytes(48))) == 98


# For all inputs


@settings(max_examples=60)
@given(st.binary(max_size=300), st.sampled_from(blind_rsa.VARIANTS))
def test_whatever_the_message(message, variant):
    prepared, blinded, answer = signed(variant, message)
    signature = blind_rsa.finalize(variant, key().public_key(), prepared, answer, blinded.inverse)
    assert blind_rsa.verify(variant, key().public_key(), prepared, signature)


@settings(max_examples=30)
@given(st.integers(0, 2**2048 - 1))
def test_the_private_operation_is_plain_rsa(number):
    numbers = key().private_numbers()
    number %= numbers.public_numbers.n
    expected = pow(number, numbers.d, numbers.public_numbers.n)
    assert blind_rsa.blind_sign(key(), number.to_bytes(256)) == expected.to_bytes(256)


@settings(max_examples=200)
@given(st.binary(max_size=64), st.integers(98 * 8, 2100), st.sampled_from([0, 48]))
def test_encodings_fit_their_bits(message, bits, salt):
    encoded = blind_rsa.emsa_pss_encode(message, bits, bytes(salt))
    assert len(encoded) == (bits + 7) // 8
    assert int.from_bytes(encoded).bit_length() <= bits
    assert encoded.endswith(b"\xbc")
