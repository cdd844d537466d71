"""The tables and functions of PostgreSQL ledgers are in users' databases: they change only with a new migration."""

import hashlib
import re
from importlib.resources import files

import pytest

from dpmesh.ledger.postgres import schema

MIGRATIONS = (
    "a1d24815252531da854e01b5453572eff704359c2e2c9b1e7563ff6e76990feb",
    "618296bfb50493b726ca5000fb4048f75456642ac6112c1b6b7b59ed6abd9648",
    "d2d2699793c06e62ea755352baef6a463a744d81ca53bc24f53ef554e880b93c",
)


@pytest.mark.parametrize("number", range(schema.VERSION))
def test_a_migration_that_was_shipped_is_never_changed(number):
    statements = [
        re.sub(r"\A(--.*\n)*", "", text) for text in schema.migration(number)
    ]  # without the heading comment
    digest = hashlib.sha256("".join(statements).encode()).hexdigest()
    assert digest == MIGRATIONS[number]


def test_every_file_belongs_to_a_migration():
    there = sorted(file.name for file in (files("dpmesh.ledger.postgres") / "sql").iterdir())
    assert there == sorted(f"{name}.sql" for names in schema.MIGRATIONS for name in names)
    assert len(schema.MIGRATIONS) == schema.VERSION
