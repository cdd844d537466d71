"""What the fault tests on PostgreSQL share."""

from __future__ import annotations

import asyncio

import pytest

from dpmesh.ledger.postgres.admin import PostgresAdmin
from tests.faults.holders import Crew


@pytest.fixture
def crew():
    """Holders, which are gone when the test ends."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def make_ledger():
    """Makes the tables of a new ledger in a new database of a server; returns its URL."""

    def made(server) -> str:
        url = server.url(server.create_database())
        asyncio.run(PostgresAdmin(url).migrate())
        return url

    return made
