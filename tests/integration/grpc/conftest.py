"""The tests' own service is imported as the package `stations`, as its generated code wants it."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stations import rig

import dpmesh
from dpmesh.ledger import Ledger
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.support.listening import Listening
from tests.support.meshes import assembled

# The middle of a day, so that no budget's window ends during a test.
NOW = 1_357_041_600.0


@pytest.fixture
async def stack():
    """Whatever a test enters here is left when it ends, in reverse order."""
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
async def open_mesh(stack, tmp_path):
    """Opens meshes with a SQLite ledger; keywords are sections of dpmesh.toml, `epsilon` is each unit's budget,
    `policy` an overlay, `patience` how many seconds the ledger waits while somebody else has its file locked."""
    count = 0

    async def opened(*, epsilon: float = 1e6, policy=None, patience=None, **sections) -> dpmesh.Mesh:
        nonlocal count
        count += 1
        budget = {"name": "station", "epsilon": epsilon, "accounting": "pure", "window": "24h"}
        url = f"sqlite:///{tmp_path}/ledger-{count}.db"
        config = {"ledger": {"url": url}, "budget": [budget], **sections}
        if patience is None:
            mesh = dpmesh.open(config, policy=policy, clock=lambda: NOW)
        else:
            store = SQLiteStore(url.removeprefix("sqlite:///"), busy_timeout=patience)
            ledger = partial(Ledger, timeout=max(5.0, 2 * patience))
            mesh = assembled(config, policy=policy, clock=lambda: NOW, ledger=ledger, store=store)
        return await stack.enter_async_context(mesh)

    return opened


@pytest.fixture
async def mesh(open_mesh):
    return await open_mesh()


@pytest.fixture
async def serve(stack):
    """Starts servers; see rig.serving."""

    async def started(**arguments) -> str:
        return await stack.enter_async_context(rig.serving(**arguments))

    return started


@pytest.fixture
async def connect(stack):
    """Opens channels and returns their stubs; see rig.connected."""

    async def connected(target: str, mesh=None, **arguments):
        return await stack.enter_async_context(rig.connected(target, mesh, **arguments))

    return connected


@pytest.fixture
def spans(monkeypatch):
    """Records all spans, as the global provider."""
    listening = Listening(monkeypatch)
    listening.trace()
    return listening.spans
