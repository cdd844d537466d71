"""Issuer refuses lives that are none."""

import pytest

from dpmesh.errors import ConfigError
from dpmesh.identity import Root
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.issuer import Issuer


@pytest.fixture
def authority():
    return Root.create("fleet.example", now=0).sign_intermediate(now=0)


@pytest.mark.parametrize("life", [0, -1, float("nan"), float("inf")])
def test_a_life_is_a_positive_number(authority, tmp_path, life):
    enrolments = Enrolments.create(tmp_path / "issuer.db")
    with pytest.raises(ConfigError, match="life"):
        Issuer(authority, enrolments, life=life)
    enrolments.close()
