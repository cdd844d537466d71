"""What stays of a name when identities rotate."""

import pytest
from cryptography import x509

from dpmesh.identity.ca import profile
from dpmesh.identity.ca.authority import Root
from dpmesh.identity.identity import spiffe_id
from dpmesh.identity.keys import new_key

NOW = 1_800_000_000.0


def test_what_the_authority_issues_counts_as_its_trust_domain():
    authority = Root.create("fleet.example", now=NOW).sign_intermediate(now=NOW)
    names = set()
    for server in (False, True):
        chain = authority.issue(new_key().public_key(), now=NOW, life=600.0, server=server)
        names.add(spiffe_id(x509.load_pem_x509_certificate(chain)))
    assert len(names) == 2
    assert {profile.stable_name(name) for name in names} == {"spiffe://fleet.example"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "spiffe://fleet.example",
        "spiffe://fleet.example/analytics",
        "spiffe://fleet.example/team/0123456789abcdef0123456789abcdef",
        "spiffe://fleet.example/0123456789ABCDEF0123456789ABCDEF",
        "spiffe://fleet.example/0123456789abcdef0123456789abcdef/x",
        "spiffe://fleet.example/0123456789abcdef0123456789abcdef\n",
        "https://fleet.example/0123456789abcdef0123456789abcdef",
    ],
)
def test_every_other_name_lasts(name):
    assert profile.stable_name(name) == name
