"""Checkpoints: they are read back as they were written, and show every alteration."""

import asyncio
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger
from dpmesh.ledger.audit.checkpoint import Checkpoint, checkpoint, fingerprint
from dpmesh.ledger.charge_log import Head
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import BUDGETS, TENTH

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def path(tmp_path):
    """A ledger of two chains."""

    async def charge():
        ledger = Ledger(SQLiteStore(tmp_path / "ledger.db", busy_timeout=60.0), BUDGETS, timeout=120.0)
        for unit in (b"a", b"b"):
            await ledger.open()
            await ledger.charge([(0, unit, TENTH)])
            await ledger.close()

    asyncio.run(charge())
    return tmp_path / "ledger.db"


async def test_a_checkpoint_is_read_back_and_signed(path):
    async with SQLiteAdmin(path).view() as view:
        known = (await checkpoint(view)).sign(KEY)
    assert Checkpoint.from_json(known.to_json()) == known
    known.check(KEY.public_key())
    Checkpoint.from_json(known.to_json()).check(KEY.public_key())
    async with SQLiteAdmin(path).view() as view:
        assert known.ledger == fingerprint(view.secret)
        assert view.secret.hex()[:16] not in known.to_json()
    with pytest.raises(LedgerError, match="not signed"):
        replace(known, signature=b"").check(KEY.public_key())
    with pytest.raises(LedgerError, match="altered, or another key"):
        known.check(Ed25519PrivateKey.generate().public_key())
    name, head = next(iter(known.heads.items()))
    for altered in (
        replace(known, time=known.time + 1),
        replace(known, ledger="00" * 16),
        replace(known, heads={**known.heads, name: Head(head.seq - 1, head.hash)}),
        replace(known, heads={n: h for n, h in known.heads.items() if n != name}),
    ):
        with pytest.raises(LedgerError, match="altered"):
            altered.check(KEY.public_key())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"format": "dpmesh checkpoint 2", "ledger": "", "time": 1, "chains": {}, "signature": ""}',
        '{"format": "dpmesh checkpoint 1", "ledger": "00", "time": 1, "chains": {}, "signature": ""}',
        '{"format": "dpmesh checkpoint 1", "ledger": "%s", "time": 1.5, "chains": {}, "signature": ""}'
        % ("00" * 16),
        '{"format": "dpmesh checkpoint 1", "ledger": "%s", "time": 1, "chains": [], "signature": ""}'
        % ("00" * 16),
        '{"format": "dpmesh checkpoint 1", "ledger": "%s", "time": 1, "chains": {"0": [1, "0"]}, "signature": ""}'
        % ("00" * 16),
        '{"format": "dpmesh checkpoint 1", "ledger": "%s", "time": 1, "chains": {}, "signature": "AAAA"}'
        % ("00" * 16),
        "[" * 100_000,
    ],
)
def test_what_is_no_checkpoint(text):
    with pytest.raises(LedgerError, match="no checkpoint"):
        Checkpoint.from_json(text)
