"""The contract, for SQLite files."""

from dpmesh.ledger import open_books, open_store
from tests.contract.model import LedgerModel
from tests.contract.suite import LedgerSuite


class OnDisk:
    def store(self, place):
        return open_store(f"sqlite:///{place}/dir/ledger.db")

    def books(self, place):
        return open_books(f"sqlite:///{place}/dir/ledger.db")


class TestSQLiteLedger(OnDisk, LedgerSuite):
    pass


class TestSQLiteModel(OnDisk, LedgerModel):
    pass
