"""The contract, for SQLite files."""

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import open_admin
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.model import LedgerModel
from tests.contract.rewinds import FAR, RewindSuite
from tests.contract.suite import TENTH, LedgerSuite


class OnDisk:
    def store(self, place):
        return SQLiteStore(place / "dir" / "ledger.db", busy_timeout=60.0)

    def admin(self, place):
        return open_admin(f"sqlite:///{place}/dir/ledger.db")


class TestSQLiteLedger(OnDisk, LedgerSuite):
    pass


class TestSQLiteRewinds(OnDisk, RewindSuite):
    @pytest.fixture(autouse=True)
    def _machine(self, clock, monkeypatch):
        """The administrator's machine shows the holders' time."""
        monkeypatch.setattr("time.time", clock)

    async def test_a_holder_that_runs_on_refuses_until_it_is_restarted(self, make, clock, tmp_path):
        ledger = make()
        await ledger.open()
        for _ in range(4):
            await ledger.charge([(0, b"a", TENTH)])
        clock.now += FAR
        await ledger.charge([(0, b"a", TENTH)])
        clock.now -= FAR
        await self.accept(tmp_path)
        for _ in range(2):
            with pytest.raises(LedgerError, match="restart this holder"):
                await ledger.charge([(0, b"b", 1)])
            with pytest.raises(LedgerError, match="restart this holder"):
                await ledger.check()
        await ledger.close()
        await ledger.open()
        await ledger.check()
        await ledger.charge([(0, b"b", 1)])
        await ledger.close()
        await self.whole(tmp_path)


class TestSQLiteModel(OnDisk, LedgerModel):
    pass
