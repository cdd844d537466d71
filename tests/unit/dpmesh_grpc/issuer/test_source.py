"""IssuerSource refuses what it can't ask an issuer with."""

import pytest

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity import Root
from dpmesh_grpc.issuer.source import IssuerSource


@pytest.fixture
def authority():
    return Root.create("fleet.example", now=0).sign_intermediate(now=0)


def test_a_source_has_a_token_or_an_identity(authority):
    with pytest.raises(ConfigError, match="token"):
        IssuerSource("127.0.0.1:1", authority.trust_bundle)
    for bundle in (b"", b"nonsense"):
        with pytest.raises(IdentityError) as caught:
            IssuerSource("127.0.0.1:1", bundle, enrolment_token="x")
        assert caught.value.reason == "MALFORMED"
