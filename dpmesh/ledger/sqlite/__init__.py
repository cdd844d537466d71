"""A ledger in one SQLite file: its store, its administration, its tables."""
