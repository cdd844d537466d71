"""Budgets, and where they are kept: every release is charged here, durably, before it is sampled.

Ledger charges accounts, mostly from leases. A Store (memory, SQLite, PostgreSQL) keeps what is debited. open_store and
open_admin find the store that a URL names and its administration. inspect reads a ledger without changing it.
"""

from dpmesh.ledger.admin import LedgerAdmin, Snapshot
from dpmesh.ledger.backends import inspect, open_admin, open_store
from dpmesh.ledger.budget import Budget, Charge
from dpmesh.ledger.ledger import Ledger
from dpmesh.ledger.memory import MemoryStore
from dpmesh.ledger.store import Account, Batch, EpochKey, Opened, Outcome, Store, account_hash

__all__ = [
    "Account",
    "Batch",
    "Budget",
    "Charge",
    "EpochKey",
    "Ledger",
    "LedgerAdmin",
    "MemoryStore",
    "Opened",
    "Outcome",
    "Snapshot",
    "Store",
    "account_hash",
    "inspect",
    "open_admin",
    "open_store",
]
