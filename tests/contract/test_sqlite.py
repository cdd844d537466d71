"""The contract, for SQLite files."""

from dpmesh.ledger import open_books
from dpmesh.ledger.sqlite import SQLiteStore
from tests.contract.model import LedgerModel
from tests.contract.suite import LedgerSuite


class OnDisk:
    def store(self, place):
        return SQLiteStore(place / "dir" / "ledger.db", busy_timeout=60.0)

    def books(self, place):
        return open_books(f"sqlite:///{place}/dir/ledger.db")


class TestSQLiteLedger(OnDisk, LedgerSuite):
    pass


class TestSQLiteModel(OnDisk, LedgerModel):
    pass
