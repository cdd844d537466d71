"""The embedded CA: what its certificates say, what they don't, and what a real TLS peer makes of them."""

import itertools
import re
import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.authority import Authority, LocalSource, Root, issuer_name
from dpmesh.identity.keys import key_pem, new_key
from tests.support.issuing import rogue_leaf

DOMAIN = "fleet.example.org"
NOW = 1_800_000_000.5
TOO_LONG = ".".join(["a" * 60] * 5)


@pytest.fixture(scope="module")
def root():
    return Root.create(DOMAIN, now=NOW)


@pytest.fixture(scope="module")
def authority(root):
    return root.sign_intermediate(now=NOW)


def issued(authority, now=NOW, life=600.0, server=False):
    chain = authority.issue(new_key().public_key(), now=now, life=life, server=server)
    return x509.load_pem_x509_certificates(chain)


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_device_certificate_has_what_spiffe_asks_for_and_nothing_else(authority):
    leaf, intermediate = issued(authority)
    names = extension(leaf, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    assert len(names.value) == len(uris) == 1
    assert re.fullmatch(rf"spiffe://{DOMAIN}/[0-9a-f]{{32}}", uris[0])
    assert names.critical  # RFC 5280, 4.2.1.6: because the subject is empty
    assert list(leaf.subject) == []
    assert isinstance(leaf.public_key().curve, ec.SECP256R1)
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA256)
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert extension(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [Usage.CLIENT_AUTH]
    assert len(leaf.extensions) == 5
    assert leaf.issuer == intermediate.subject


def test_a_server_certificate_has_the_trust_domain_as_its_dns_name(authority):
    leaf = issued(authority, server=True)[0]
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [DOMAIN]
    assert set(extension(leaf, x509.ExtendedKeyUsage).value) == {Usage.CLIENT_AUTH, Usage.SERVER_AUTH}


def test_only_the_issuer_has_the_issuers_name(authority):
    chain = authority.issue_issuer(new_key().public_key(), now=NOW, life=60)
    names = extension(x509.load_pem_x509_certificate(chain), x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [issuer_name(DOMAIN)] != [DOMAIN]


def test_two_certificates_share_only_what_all_share(authority):
    one, two = issued(authority)[0], issued(authority)[0]
    assert one.serial_number != two.serial_number
    assert one.public_key() != two.public_key()
    same = [x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier]
    assert all(extension(one, kind) == extension(two, kind) for kind in same)
    assert extension(one, x509.SubjectAlternativeName) != extension(two, x509.SubjectAlternativeName)


def test_serials_and_names_are_random(authority):
    # 64 of each: each of the first 16 bytes of a serial, and of a name, takes several values.
    # A given byte of 64 random ones takes fewer than 20 values with a probability below 1e-30.
    leaves = [issued(authority)[0] for _ in range(64)]
    serials = [leaf.serial_number.to_bytes(20, "big")[-16:] for leaf in leaves]
    uris = [extension(leaf, x509.SubjectAlternativeName).value[0].value for leaf in leaves]
    names = [bytes.fromhex(uri.rsplit("/", 1)[1]) for uri in uris]
    for column in itertools.chain(zip(*serials, strict=True), zip(*names, strict=True)):
        assert len(set(column)) >= 20


def test_validity_is_backdated_by_five_minutes_and_never_shorter_than_asked(authority):
    leaf = issued(authority, now=NOW, life=2.0)[0]
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(1_800_000_000 - 300, UTC)
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(1_800_000_003, UTC)


def test_a_leaf_never_outlives_its_intermediate_nor_that_its_root():
    root = Root.create(DOMAIN, now=NOW, life=1000)
    authority = root.sign_intermediate(now=NOW, life=5000)
    assert authority.not_after == 1_800_001_001
    assert issued(authority, life=5000)[0].not_valid_after_utc.timestamp() == authority.not_after


def test_an_authority_that_is_over_issues_nothing(root):
    authority = root.sign_intermediate(now=NOW, life=1000)
    issued(authority, now=authority.not_after - 1)
    with pytest.raises(IdentityError) as caught:
        issued(authority, now=authority.not_after)
    assert caught.value.reason == "EXPIRED"


def test_a_root_that_is_over_signs_nothing():
    root = Root.create(DOMAIN, now=NOW, life=10)
    with pytest.raises(IdentityError) as caught:
        root.sign_intermediate(now=NOW + 11)
    assert caught.value.reason == "EXPIRED"


@pytest.mark.parametrize("life", [0, -1, float("nan"), float("inf")])
def test_a_life_is_a_positive_number(root, authority, life):
    for attempt in (
        lambda: Root.create(DOMAIN, now=NOW, life=life),
        lambda: root.sign_intermediate(now=NOW, life=life),
        lambda: issued(authority, life=life),
    ):
        with pytest.raises(ConfigError, match="life"):
            attempt()


@pytest.mark.parametrize(
    "domain",
    [
        "",
        "Fleet.example.org",
        "a..b",
        ".a",
        "a.",
        "a/b",
        "a b",
        "spiffe://a",
        "10.0.0.1",
        "a" * 64,
        "é.org",
        TOO_LONG,
    ],
)
def test_a_trust_domain_is_a_host_name(domain):
    with pytest.raises(ConfigError, match="host name"):
        Root.create(domain, now=NOW)


@pytest.mark.parametrize("domain", ["a", "fleet", "a-b_c.example.org", ".".join(["a" * 60] * 4)])
def test_trust_domains_that_work(domain):
    authority = Root.create(domain, now=NOW).sign_intermediate(now=NOW)
    assert authority.trust_domain == domain
    issued(authority, server=True)


def test_only_p256_is_certified(authority):
    with pytest.raises(IdentityError) as caught:
        authority.issue(ec.generate_private_key(ec.SECP384R1()).public_key(), now=NOW, life=60)
    assert caught.value.reason == "MALFORMED"


def test_the_intermediate_is_constrained(authority):
    intermediate = issued(authority)[1]
    constraints = extension(intermediate, x509.NameConstraints)
    assert constraints.critical
    assert set(constraints.value.permitted_subtrees) == {
        x509.UniformResourceIdentifier(DOMAIN),
        x509.DNSName(DOMAIN),
    }
    assert extension(intermediate, x509.BasicConstraints).value.path_length == 0
    assert extension(intermediate, x509.BasicConstraints).critical


def test_authority_and_root_survive_pem(root, authority):
    again = Authority.load(authority.certificates, authority.key(), authority.trust_bundle)
    assert issued(again)[1] == issued(authority)[1]
    assert again.trust_domain == DOMAIN
    locked = root.key(b"secret")
    assert b"ENCRYPTED" in locked
    assert Root.load(root.certificate, locked, b"secret").certificate == root.certificate
    for password in (None, b"another"):
        with pytest.raises(IdentityError) as caught:
            Root.load(root.certificate, locked, password)
        assert caught.value.reason == "MALFORMED"


def test_parts_that_do_not_belong_together_are_refused(root, authority):
    other = Root.create(DOMAIN, now=NOW)
    foreign = Root.create("other.example.org", now=NOW)
    for parts, reason in (
        ((authority.certificates, key_pem(new_key()), authority.trust_bundle), "MALFORMED"),
        ((authority.certificates, b"nonsense", authority.trust_bundle), "MALFORMED"),
        ((b"nonsense", authority.key(), authority.trust_bundle), "MALFORMED"),
        ((authority.certificates, authority.key(), b""), "MALFORMED"),
        ((authority.certificates, authority.key(), other.certificate), "UNTRUSTED"),
        ((authority.certificates, authority.key(), root.certificate + foreign.certificate), "UNTRUSTED"),
    ):
        with pytest.raises(IdentityError) as caught:
            Authority.load(*parts)
        assert caught.value.reason == reason
        assert "nonsense" not in str(caught.value)
    with pytest.raises(IdentityError):
        Root.load(root.certificate, other.key())


def test_keys_of_another_kind_are_refused(authority):
    other = ec.generate_private_key(ec.SECP384R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(IdentityError) as caught:
        Authority.load(authority.certificates, pem, authority.trust_bundle)
    assert caught.value.reason == "MALFORMED"


def test_a_roll_over_keeps_old_leaves_valid(root, authority):
    old_leaf = issued(authority)[0]
    successor_root = Root.create(DOMAIN, now=NOW)
    trusting = authority.trusting(successor_root.certificate)
    assert issued(trusting)[1] == issued(authority)[1]
    both = set(x509.load_pem_x509_certificates(trusting.trust_bundle))
    assert both == set(x509.load_pem_x509_certificates(root.certificate + successor_root.certificate))
    successor = trusting.followed_by(successor_root.sign_intermediate(now=NOW))
    assert set(x509.load_pem_x509_certificates(successor.trust_bundle)) == both
    new_leaf = issued(successor)[0]
    assert successor.has_issued(old_leaf)
    assert successor.has_issued(new_leaf)
    assert not authority.has_issued(new_leaf)
    again = Authority.load(successor.certificates, successor.key(), successor.trust_bundle)
    assert again.has_issued(old_leaf)
    assert issued(again)[1] == issued(successor)[1] != issued(authority)[1]


def test_a_roll_over_stays_in_its_trust_domain(authority):
    foreign = Root.create("other.example.org", now=NOW)
    with pytest.raises(IdentityError) as caught:
        authority.trusting(foreign.certificate)
    assert caught.value.reason == "UNTRUSTED"
    with pytest.raises(IdentityError) as caught:
        authority.followed_by(foreign.sign_intermediate(now=NOW))
    assert caught.value.reason == "UNTRUSTED"


def test_another_authority_of_the_same_name_has_not_issued(authority):
    other = Root.create(DOMAIN, now=NOW).sign_intermediate(now=NOW)
    assert not authority.has_issued(issued(other)[0])


async def test_a_local_source_never_uses_a_key_twice(authority):
    source = LocalSource(authority, life=600, server=True, clock=lambda: NOW)
    one, two = await source.fetch(), await source.fetch()
    assert source.follows is False
    assert one.key != two.key
    assert one.trust_domain == DOMAIN
    assert one.obtained == NOW
    assert one.trust_bundle == authority.trust_bundle
    await source.close()


# What OpenSSL says of a client's certificate, in a handshake in memory. BoringSSL: tests/integration/identity.


def handshake(tmp_path, server, client, bundle):
    """A TLS handshake in which both sides show certificates; (chain, key) each."""
    contexts = {}
    for name, side, (chain, key) in (
        ("server", ssl.PROTOCOL_TLS_SERVER, server),
        ("client", ssl.PROTOCOL_TLS_CLIENT, client),
    ):
        context = contexts[name] = ssl.SSLContext(side)
        (tmp_path / f"{name}.pem").write_bytes(chain + key)
        context.load_cert_chain(tmp_path / f"{name}.pem")
        context.load_verify_locations(cadata=bundle.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = contexts["client"].wrap_bio(down, up, server_hostname=DOMAIN)
    answers = contexts["server"].wrap_bio(up, down, server_side=True)
    done = set()
    for side in [asks, answers] * 4:
        try:
            side.do_handshake()
            done.add(side)
        except ssl.SSLWantReadError:
            pass
    assert done == {asks, answers}


@pytest.fixture
def present():
    """An authority of now: OpenSSL has no other clock."""
    now = datetime.now(UTC).timestamp()
    return Root.create(DOMAIN, now=now).sign_intermediate(now=now), now


def pair(authority, now, server=False):
    key = new_key()
    return authority.issue(key.public_key(), now=now, life=600, server=server), key_pem(key)


def test_openssl_takes_the_certificates(present, tmp_path):
    authority, now = present
    handshake(tmp_path, pair(authority, now, True), pair(authority, now), authority.trust_bundle)


def test_openssl_takes_what_a_rogue_issues_within_the_constraints(present, tmp_path):
    """Which shows that the names are what the next test's certificates are refused for."""
    authority, now = present
    names = [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/x"), x509.DNSName(f"a.{DOMAIN}")]
    client = rogue_leaf(authority, names, now)
    handshake(tmp_path, pair(authority, now, True), client, authority.trust_bundle)


@pytest.mark.parametrize(
    "name",
    [
        x509.UniformResourceIdentifier("spiffe://other.example.org/x"),
        x509.UniformResourceIdentifier(f"spiffe://sub.{DOMAIN}/x"),
        x509.UniformResourceIdentifier("spiffe://example.org/x"),
        x509.DNSName("other.example.org"),
    ],
    ids=lambda name: name.value,
)
def test_openssl_refuses_what_is_outside_of_the_constraints(present, tmp_path, name):
    authority, now = present
    server = pair(authority, now, True)
    with pytest.raises(ssl.SSLError, match="permitted subtree"):
        handshake(tmp_path, server, rogue_leaf(authority, [name], now), authority.trust_bundle)


def test_openssl_refuses_addresses(present, tmp_path):
    from ipaddress import ip_address

    authority, now = present
    client = rogue_leaf(authority, [x509.IPAddress(ip_address("127.0.0.1"))], now)
    with pytest.raises(ssl.SSLError, match="excluded subtree"):
        handshake(tmp_path, pair(authority, now, True), client, authority.trust_bundle)


def test_openssl_refuses_an_authority_below_the_intermediate(present, tmp_path):
    authority, now = present
    names = [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/x")]
    chain, key = rogue_leaf(authority, names, now, below=True)
    with pytest.raises(ssl.SSLError, match="path length"):
        handshake(tmp_path, pair(authority, now, True), (chain, key), authority.trust_bundle)


def test_a_device_can_not_be_a_server(present, tmp_path):
    authority, now = present
    with pytest.raises(ssl.SSLError, match="certificate"):
        handshake(tmp_path, pair(authority, now), pair(authority, now), authority.trust_bundle)
