"""Tokens, challenges and keys on the wire, against the RFCs' vectors."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmesh.errors import ConfigError
from dpmesh.identity.tokens import (
    PublishedKey,
    Token,
    TokenChallenge,
    blind_rsa,
    decode_key,
    encode_key,
    from_credentials,
    to_credentials,
)
from dpmesh.identity.tokens import format as token_format
from tests.support.tokens import START, issued, reason


def test_the_challenges_of_rfc_9577(vectors):
    for vector in vectors("rfc9577_challenges.json"):
        fields = {name: bytes.fromhex(value) for name, value in vector.items()}
        challenge = TokenChallenge(
            fields["issuer_name"].decode(), fields["origin_info"].decode(), fields["redemption_context"]
        )
        token = Token(fields["nonce"], challenge.digest, fields["token_key_id"], b"")
        assert token.signed == fields["token_authenticator_input"]


def test_the_tokens_of_rfc_9578(vectors):
    """Each vector goes the whole way: key, challenge, request, response and token, octet for octet."""
    found = vectors("rfc9578_blind_rsa_tokens.json")
    assert len(found) == 5
    for vector in found:
        fields = {name: bytes.fromhex(value) for name, value in vector.items()}
        private = load_pem_private_key(fields["skS"], None)
        assert encode_key(private.public_key()) == fields["pkS"]
        public = decode_key(fields["pkS"])
        assert public == private.public_key()
        key = PublishedKey(fields["pkS"], 0, 1)

        expected = Token.decode(fields["token"])
        issuer, context, origin = read_challenge(fields["token_challenge"])
        challenge = TokenChallenge(issuer, origin, context)
        assert challenge.encode() == fields["token_challenge"]
        token = Token(fields["nonce"], challenge.digest, key.key_id, b"")
        assert token.signed == expected.signed

        factor = int.from_bytes(fields["blind"])
        blinded = blind_rsa.blind(
            token_format.VARIANT, public, token.signed, salt=fields["salt"], factor=factor
        )
        assert b"\0\2" + bytes([key.truncated_key_id]) + blinded.message == fields["token_request"]
        response = blind_rsa.blind_sign(private, blinded.message)
        assert response == fields["token_response"]
        signature = blind_rsa.finalize(token_format.VARIANT, public, token.signed, response, blinded.inverse)
        whole = Token(token.nonce, token.challenge_digest, token.key_id, signature)
        assert whole.encode() == fields["token"]
        assert from_credentials(to_credentials(whole)) == whole


def read_challenge(data):
    parts, rest = [], data[2:]
    for size in (2, 1, 2):
        length = int.from_bytes(rest[:size])
        parts.append(rest[size : size + length])
        rest = rest[size + length :]
    assert not rest
    return parts[0].decode(), parts[1], parts[2].decode()


def test_a_challenge_of_another_form_is_refused():
    for bad in (("",), ("i\u00e4",), ("i" * 65536,), ("i", "\u00e4"), ("i", "o" * 65536), ("i", "o", b"x")):
        with pytest.raises(ConfigError):
            TokenChallenge(*bad)
    digests = {
        TokenChallenge(*parts).digest
        for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", b"c" * 32), ("a", "", b"c" * 32))
    }
    assert len(digests) == 5


def test_credentials_of_another_form_are_refused(keys):
    (held,) = issued(keys)
    good = to_credentials(held.token)
    assert from_credentials(good) == held.token
    assert from_credentials(good.replace("token=", 'token="') + '"') == held.token
    assert from_credentials("privatetoken" + good[len("PrivateToken") :]) == held.token
    for other in ("", "Bearer x", "PrivateTokens token=x", "PrivateToken"):
        assert reason(from_credentials, other) == "TOKEN_MISSING"
    for bad in (
        "PrivateToken token=",
        good[:-4],
        good + "AAAA",
        good + "=",
        good + '"',
        good + ", token=AAAA",
        "PrivateToken token=" + base64.urlsafe_b64encode(b"\0\1" + held.token.encode()[2:]).decode(),
        good[:-1] + "+",
        good[:-1] + "\u00e4",
        good + "\n",
    ):
        assert reason(from_credentials, bad) == "TOKEN_INVALID"


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text().map(lambda t: f"PrivateToken token={t}"), st.binary(max_size=400)))
def test_garbage_is_refused_and_nothing_else(value):
    read = Token.decode if isinstance(value, bytes) else from_credentials
    assert reason(read, value) in ("TOKEN_INVALID", "TOKEN_MISSING")


def test_a_key_has_one_encoding(keys):
    der = keys.current(START).public_key
    assert len(der) == 342
    assert encode_key(decode_key(der)) == der
    plain = rsa.generate_private_key(65537, 3072).public_key()
    three = rsa.generate_private_key(3, 2048).public_key()
    for bad in (
        b"",
        der[:-1],
        der + b"\0",
        der[70:],
        der.replace(bytes.fromhex("040202a11a"), bytes.fromhex("040201a11a")),
        der[:-5] + b"\x02\x03\x01\x00\x02",
        encode_key(plain),
        encode_key(three),
    ):
        assert reason(decode_key, bad) == "MALFORMED"


def test_nothing_secret_shows(keys, clock):
    (held,) = issued(keys)
    shown = repr(held) + repr(held.token) + repr(keys._keys)
    for part in (held.token.nonce, held.token.authenticator):
        assert part.hex() not in shown
        assert repr(part) not in shown
    assert "PRIVATE" not in shown
