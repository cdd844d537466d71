"""The contract of push stores, for PostgreSQL."""

import pytest

from dpmesh.errors import ConfigError
from dpmesh.rollout.push.store import open_store
from tests.contract.rollout_stores import RolloutStoreSuite


class TestPostgresRolloutStore(RolloutStoreSuite):
    @pytest.fixture
    def url(self, database):
        return database


def test_a_url_says_how_the_connection_is_protected():
    with pytest.raises(ConfigError, match="^the store's URL: .* add .sslmode=verify-full"):
        open_store("postgresql://somewhere/fleet")
