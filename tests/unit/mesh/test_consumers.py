"""Consumers: the best name in a certificate, which poses as no other kind of name."""

import pytest

from dpmesh.mesh.consumers import CertificateNames, consumer_of


@pytest.mark.parametrize(
    ("names", "consumer"),
    [
        ({}, ""),
        ({"uris": [b"https://a", b"SPIFFE://Example.org/Path"], "dns": [b"a"]}, "spiffe://example.org/Path"),
        ({"uris": [b"spiffe://one.org/a", b"spiffe://two.org/b"]}, "spiffe://one.org/a"),
        ({"uris": [b"https://a"], "dns": [b"a"]}, "uri:https://a"),
        ({"dns": [b"Spiffe://example.org/a", b"b"]}, "dns:spiffe://example.org/a"),
        ({"emails": [b"Me@Example.ORG"], "ips": [b"10.0.0.1"]}, "email:Me@example.org"),
        ({"ips": [b"10.0.0.1"], "common_names": [b"me"]}, "ip:10.0.0.1"),
        ({"common_names": [b"", b"spiffe://example.org/a"]}, "cn:spiffe://example.org/a"),
        ({"common_names": [b"\xff"]}, "cn:\\xff"),
    ],
)
def test_the_best_name_counts(names, consumer):
    assert consumer_of(CertificateNames(**names)) == consumer
