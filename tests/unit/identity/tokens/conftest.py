"""What tests of anonymous tokens share."""

import pytest

from dpmesh.identity.tokens import TokenKeys
from tests.support.tokens import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def keys():
    """One issuer for all tests that only need some issuer; it made its keys once."""
    return TokenKeys(clock=Clock())
