"""The contract, for SQLite files."""

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import open_admin
from dpmesh.ledger.sqlite import store
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.adoptions import AdoptionSuite
from tests.contract.model import LedgerModel
from tests.contract.rewinds import FAR, RewindSuite
from tests.contract.suite import TENTH, LedgerSuite


class OnDisk:
    def store(self, place):
        return SQLiteStore(place / "dir" / "ledger.db", busy_timeout=60.0)

    def admin(self, place):
        return open_admin(f"sqlite:///{place}/dir/ledger.db")


class TestSQLiteLedger(OnDisk, AdoptionSuite, LedgerSuite):
    async def check_erased(self, place, erased, kept):
        content = b"".join(file.read_bytes() for file in (place / "dir").iterdir())
        assert kept in content
        assert erased not in content

    async def test_a_key_is_erased_once_nobody_reads_the_log_any_more(
        self, make, clock, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(store, "_ERASE_AGAIN", 0.0)
        ledger = make()
        await ledger.open()
        await ledger.hold_keys([3600.0])
        old = ledger.epoch_key(3600.0).key
        async with self.admin(tmp_path).view():
            clock.now += 3600
            await ledger.hold_keys([3600.0])
            assert await ledger.redeemed([bytes(32)]) == [False]
        await ledger.redeemed([bytes(32)])
        await self.check_erased(tmp_path, old, ledger.epoch_key(3600.0).key)
        await ledger.close()

    async def test_a_change_that_fails_leaves_the_old_key(self, make, clock, monkeypatch):
        ledger = make()
        await ledger.open()
        await ledger.hold_keys([3600.0])
        old = ledger.epoch_key(3600.0)
        clock.now += 3600
        with monkeypatch.context() as patch:
            patch.setattr("dpmesh.ledger.sqlite.queries.count_commit", lambda _: 1 // 0)
            with pytest.raises(LedgerError, match="ZeroDivisionError"):
                await ledger.hold_keys([3600.0])
        assert not ledger.holds_keys([3600.0])
        clock.now -= 3600
        other = make()
        await other.open()
        await other.hold_keys([3600.0])
        assert other.epoch_key(3600.0).key == old.key
        await other.close()
        await ledger.close()


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
