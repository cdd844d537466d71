"""Budgets, and where they live: every release is charged here, durably, before it is sampled.

Ledger charges accounts, mostly from leases; a Store (memory, SQLite) keeps what is debited; open_store finds
the store that a URL names; inspect reads a ledger at rest.
"""

from dpmesh.ledger.budget import Budget, Charge
from dpmesh.ledger.leases import Ledger
from dpmesh.ledger.memory import MemoryStore
from dpmesh.ledger.store import Account, Batch, Opened, Outcome, Store, account_hash
from dpmesh.ledger.urls import Snapshot, inspect, open_store

__all__ = [
    "Account",
    "Batch",
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
    "open_store",
]
