"""The contract of push stores, for SQLite."""

import os
import sqlite3

import pytest

from dpmesh.errors import ConfigError, RolloutStoreError
from dpmesh.rollout.push.store import open_store
from tests.contract.rollout_stores import RolloutStoreSuite


class TestSQLiteRolloutStore(RolloutStoreSuite):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/folder/rollout.db"

    async def test_only_its_owner_may_read_it(self, store, tmp_path):
        assert os.stat(tmp_path / "folder" / "rollout.db").st_mode & 0o077 == 0

    async def test_another_file_is_left_alone(self, opened, tmp_path):
        (tmp_path / "folder").mkdir()
        path = tmp_path / "folder" / "rollout.db"
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE ledger (x)")
        other.commit()
        for create in (True, False):
            with pytest.raises(RolloutStoreError, match="is no store of a push service"):
                await opened(create=create)
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
        other.close()
        path.write_bytes(b"garbage" * 1000)
        with pytest.raises(RolloutStoreError, match="not a database"):
            await opened(create=True)

    async def test_a_closed_store_says_so(self, store):
        await store.close()
        with pytest.raises(RolloutStoreError, match="is not open"):
            await store.counts()


@pytest.mark.parametrize(
    "url", ["", "rollout.db", "sqlite:///", "sqlite:///x/", "sqlite:///x?mode=ro", "mysql://x"]
)
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError, match="the store is"):
        open_store(url)
