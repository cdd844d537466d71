"""The tables and functions of PostgreSQL ledgers are in users' databases: they change only with a new migration."""

import hashlib
import re
from importlib.resources import files

from dpmesh.ledger.postgres import schema

MIGRATION = "a1d24815252531da854e01b5453572eff704359c2e2c9b1e7563ff6e76990feb"


def test_a_migration_that_was_shipped_is_never_changed():
    statements = [
        re.sub(r"\A(--.*\n)*", "", text) for text in schema.migration(0)
    ]  # without the heading comment
    digest = hashlib.sha256("".join(statements).encode()).hexdigest()
    assert (schema.VERSION, digest) == (1, MIGRATION)


def test_every_file_belongs_to_a_migration():
    there = sorted(file.name for file in (files("dpmesh.ledger.postgres") / "sql").iterdir())
    assert there == sorted(f"{name}.sql" for names in schema.MIGRATIONS for name in names)
    assert len(schema.MIGRATIONS) == schema.VERSION
