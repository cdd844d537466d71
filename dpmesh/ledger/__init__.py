"""Budgets, and where they live: every release is charged here, durably, before it is sampled.

Ledger charges accounts, mostly from leases; a Store (memory, SQLite, PostgreSQL) keeps what is debited; open_store
finds the store that a URL names, and open_books its administration; inspect reads a ledger at rest.
"""

from dpmesh.ledger.books import Books, Snapshot
from dpmesh.ledger.budget import Budget, Charge
from dpmesh.ledger.leases import Ledger
from dpmesh.ledger.memory import MemoryStore
from dpmesh.ledger.store import Account, Batch, Opened, Outcome, Store, account_hash
from dpmesh.ledger.urls import inspect, open_books, open_store

__all__ = [
    "Account",
    "Batch",
    "Books",
    "Budget",
    "Charge",
    "Ledger",
    "MemoryStore",
    "Opened",
    "Outcome",
    "Snapshot",
    "Store",
    "account_hash",
    "inspect",
    "open_books",
    "open_store",
]
