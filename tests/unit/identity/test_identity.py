"""An identity: what is read, what is refused, and what is never shown."""

from __future__ import annotations

import logging

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from dpmesh.errors import IdentityError
from dpmesh.identity import Identity
from tests.support.certificates import DOMAIN, Root, new_key, private_pem

NOW = 1_800_000_000.0
ROOT = Root()


def load(leaf, now=NOW, **changes) -> Identity:
    parts = {"certificates": leaf.certificates, "key": leaf.key, "trust_bundle": leaf.trust_bundle}
    return Identity.load(**{**parts, **changes}, now=now)


def refused(*args, **kwargs) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        load(*args, **kwargs)
    assert caught.value.__context__ is None, "the parser's own text could quote what it read"
    return caught.value


def test_what_is_read():
    leaf = ROOT.leaf(now=NOW, life=1800, backdated=300)
    found = load(leaf)
    assert found.trust_domain == DOMAIN
    assert (found.not_before, found.not_after, found.obtained) == (NOW - 300, NOW + 1800, NOW)
    assert (found.certificates, found.key, found.trust_bundle) == (
        leaf.certificates,
        leaf.key,
        leaf.trust_bundle,
    )


def test_a_chain_is_read_by_its_first_certificate():
    below = ROOT.intermediate()
    leaf = below.leaf(now=NOW, life=60)
    assert load(leaf, certificates=leaf.certificates + below.pem).not_after == NOW + 60


def test_a_key_of_another_kind_is_read_too():
    key = rsa.generate_private_key(65537, 2048)
    assert load(ROOT.leaf(now=NOW, key=key)).trust_domain == DOMAIN


def test_a_foreign_key_is_refused():
    for key in (new_key(), ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        assert refused(ROOT.leaf(now=NOW), key=private_pem(key)).reason == "MALFORMED"


@pytest.mark.parametrize("part", ["certificates", "key", "trust_bundle"])
@pytest.mark.parametrize(
    "content", [b"", b"hunter2", b"-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----"]
)
def test_what_is_not_pem_is_refused_and_not_quoted(part, content):
    error = refused(ROOT.leaf(now=NOW), **{part: content})
    assert error.reason == "MALFORMED"
    assert "hunter2" not in str(error)


def test_a_truncated_file_is_refused():
    leaf = ROOT.leaf(now=NOW)
    for part in ("certificates", "key", "trust_bundle"):
        content = getattr(leaf, part)
        assert refused(leaf, **{part: content[: len(content) // 2]}).reason == "MALFORMED"


def test_an_encrypted_key_is_refused():
    key = new_key()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    assert refused(ROOT.leaf(now=NOW, key=key), key=pem).reason == "MALFORMED"


def test_over_is_over_to_the_second():
    leaf = ROOT.leaf(now=NOW, life=60)
    assert load(leaf, now=NOW + 59.9).not_after == NOW + 60
    assert refused(leaf, now=NOW + 60).reason == "EXPIRED"
    assert refused(leaf, now=float("nan")).reason == "EXPIRED"


def test_an_authority_is_no_identity():
    assert refused(ROOT.leaf(now=NOW, authority=True)).reason == "MALFORMED"
    assert load(ROOT.leaf(now=NOW, authority=None)).trust_domain == DOMAIN


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (f"spiffe://{DOMAIN}/a", f"spiffe://{DOMAIN}/b"),
        ("https://fleet.example/device-7",),
        ("spiffe://Fleet.Example/device-7",),
        ("spiffe://fleet.example:443/device-7",),
        ("spiffe://user@fleet.example/device-7",),
        ("spiffe://fleet.example/device-7?x=1",),
        ("spiffe://fleet.example/../device-7",),
        ("spiffe://fleet.example/device-7/",),
        ("spiffe:///device-7",),
    ],
)
def test_anything_but_one_spiffe_id_is_refused_and_not_quoted(uris):
    error = refused(ROOT.leaf(uris, now=NOW))
    assert error.reason == "MALFORMED"
    assert "device-7" not in str(error)
    assert "fleet" not in str(error).lower()


def test_a_spiffe_id_has_a_domain_and_perhaps_a_path():
    for uri in ("spiffe://fleet.example/a/B-1", "spiffe://fleet.example"):
        assert load(ROOT.leaf((uri,), now=NOW)).trust_domain == "fleet.example"


def test_nothing_of_it_shows(caplog):
    found = load(ROOT.leaf(now=NOW))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("dpmesh").warning("%s %r", found, [found])
    assert "Identity()" in caplog.text
    for secret in ("BEGIN", "spiffe", DOMAIN, f"{found.not_after:.0f}"):
        assert secret not in caplog.text
