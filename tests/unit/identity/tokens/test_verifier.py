"""When a verifier asks the issuer for its keys: once for all, whoever gives up waiting, and never for long without."""

from __future__ import annotations

import asyncio

import pytest

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens import TokenChallenge, TokenKeys, Verifier
from dpmesh.identity.tokens import verifier as module


class Issuer:
    """Gives its keys when it is let."""

    def __init__(self, keys):
        self.keys = list(keys)
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.error = None

    async def fetch(self):
        self.asked += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.keys


@pytest.fixture(scope="module")
def keys():
    return TokenKeys(epoch=60, overlap=10).published(0.0)


@pytest.fixture
def now(monkeypatch):
    """The monotonic clock."""
    at = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: at[0])
    return at


def made(issuer):
    return Verifier(TokenChallenge("mesh.example"), issuer.fetch, None)


async def settled():
    """Lets what is ready run; the clock stands still, and asyncio.sleep would wait for it."""
    for _ in range(10):
        await asyncio.sleep(0)


async def reason(waiting):
    with pytest.raises(IdentityError) as caught:
        await waiting
    return caught.value.reason


async def test_who_gives_up_waiting_does_not_make_it_ask_again(keys, now):
    issuer = Issuer(keys)
    issuer.answers.clear()
    verifier = made(issuer)
    for number in range(50):
        task = asyncio.create_task(verifier._key(bytes([number]) * 32))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    honest = asyncio.create_task(verifier._key(keys[0].key_id))
    await asyncio.sleep(0)
    issuer.answers.set()
    assert (await honest)[1] == keys[0]
    assert issuer.asked == 1
    for number in range(50):
        assert await reason(verifier._key(bytes([number]) * 32)) == "TOKEN_INVALID"
    assert issuer.asked == 1
    now[0] += 61
    assert await reason(verifier._key(b"?" * 32)) == "TOKEN_INVALID"
    assert issuer.asked == 2


@pytest.mark.parametrize(
    "error", [IdentityError("ISSUER_UNAVAILABLE", "x"), ValueError("a secret"), OSError()]
)
async def test_an_issuer_that_fails_is_asked_again_soon_but_not_by_everybody(keys, now, error, caplog):
    issuer = Issuer(keys)
    issuer.error = error
    verifier = made(issuer)
    for _ in range(20):
        assert await reason(verifier._key(keys[0].key_id)) == "ISSUER_UNAVAILABLE"
    assert issuer.asked == 1
    issuer.error = None
    now[0] += 6
    assert (await verifier._key(keys[0].key_id))[1] == keys[0]
    assert "secret" not in caplog.text


@pytest.mark.lazy_tasks
async def test_a_key_that_the_issuer_took_back_is_not_taken_for_long(keys, now):
    issuer = Issuer(keys)
    verifier = made(issuer)
    await verifier._key(keys[0].key_id)
    issuer.keys = keys[1:]
    now[0] += 299
    await verifier._key(keys[0].key_id)
    assert issuer.asked == 1
    now[0] += 2
    await verifier._key(keys[0].key_id)  # begins to ask, and does not wait
    await settled()
    assert issuer.asked == 2
    assert await reason(verifier._key(keys[0].key_id)) == "TOKEN_INVALID"
    await verifier._key(keys[1].key_id)


async def test_known_keys_are_taken_for_an_hour_while_the_issuer_is_down(keys, now):
    issuer = Issuer(keys)
    verifier = made(issuer)
    await verifier._key(keys[0].key_id)
    issuer.error = IdentityError("ISSUER_UNAVAILABLE", "x")
    for _ in range(11):
        now[0] += 301
        await verifier._key(keys[0].key_id)
        await settled()
    now[0] += 301
    assert await reason(verifier._key(keys[0].key_id)) == "ISSUER_UNAVAILABLE"
    issuer.error = None
    now[0] += 6
    await verifier._key(keys[0].key_id)
