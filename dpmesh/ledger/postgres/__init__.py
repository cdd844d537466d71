"""A ledger in PostgreSQL: its store, its administration, its tables and functions."""
