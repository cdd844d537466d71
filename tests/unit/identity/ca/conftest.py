"""The issuer's records, for the tests of this room."""

import pytest

from dpmesh.identity.ca.enrolment import Enrolments


@pytest.fixture
def path(tmp_path):
    return tmp_path / "issuer.db"


@pytest.fixture
def enrolments(path):
    made = Enrolments.create(path)
    yield made
    made.close()
