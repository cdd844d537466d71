"""The contract, for the store in memory."""

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, MemoryStore
from tests.contract.adoptions import AdoptionSuite
from tests.contract.model import LedgerModel
from tests.contract.suite import BUDGETS, TENTH, LedgerSuite
from tests.support import children
from tests.support.steady import no_time_passes


class Holder(MemoryStore):
    """A store whose ledger has budgets of its own, and shares what is kept with others."""

    def __init__(self, shared):
        vars(self).update(vars(shared), shared=shared)

    _now = property(lambda self: self.shared._now, lambda self, now: setattr(self.shared, "_now", now))


class InMemory:
    """A place's memory store: two ledgers share what is kept, and each knows its own budgets."""

    @pytest.fixture(autouse=True)
    def _places(self):
        self._stores = {}

    def store(self, place):
        return Holder(self._stores.setdefault(place, MemoryStore()))


class TestMemoryLedger(InMemory, AdoptionSuite, LedgerSuite):
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
