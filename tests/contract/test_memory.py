"""The contract, for the store in memory."""

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, MemoryStore
from tests.contract.model import LedgerModel
from tests.contract.suite import BUDGETS, TENTH, LedgerSuite
from tests.support import children
from tests.support.steady import no_time_passes


class InMemory:
    """A place's memory store: the same object for all who ask, as two ledgers of one process would share it."""

    @pytest.fixture(autouse=True)
    def _places(self):
        self._stores = {}

    def store(self, place):
        return self._stores.setdefault(place, MemoryStore())


class TestMemoryLedger(InMemory, LedgerSuite):
    async def notes(self, place):
        return self.store(place).notes

    async def test_a_forked_child_may_not_spend_its_copy(self):
        import asyncio

        ledger = Ledger(MemoryStore(), BUDGETS, monotonic=no_time_passes)
        await ledger.open()
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])

        def child():
            assert not ledger.spend([(0, b"a", 1)])
            with pytest.raises(LedgerError, match="forked child"):
                asyncio.run(ledger.redeem_once(b"a" * 32, 1e12))
            try:
                asyncio.run(ledger.charge([(0, b"a", 1)]))
            except LedgerError as error:
                return str(error)
            return "spent"

        assert "forked child" in children.run(child)
        assert ledger.spend([(0, b"a", TENTH)])
        await ledger.close()


class TestMemoryModel(InMemory, LedgerModel):
    pass
