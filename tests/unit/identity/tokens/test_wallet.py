"""The wallet: batches, refills, failures and forks."""

import asyncio
import gc
import os
import weakref

import pytest

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.tokens import (
    HeldToken,
    PublishedKey,
    Token,
    TokenKeys,
    TokenRequestState,
    Wallet,
    choose_key,
    wallet,
)
from tests.support import children
from tests.support.tokens import CHALLENGE, DAY, START, Clock, reason, refusal


def test_a_batch_is_of_use_once(keys):
    state = TokenRequestState(keys.current(START), CHALLENGE, 2)
    answer = [keys.sign(state.truncated_key_id, m) for m in state.blinded_messages]
    assert len(state.finalize(answer)) == 2
    assert reason(state.finalize, answer) == "MALFORMED"


def test_a_batch_is_taken_whole_or_not_at_all(keys):
    for spoil in (
        lambda answer: answer[:1],
        lambda answer: [*answer, answer[0]],
        lambda answer: answer[::-1],
        lambda answer: [answer[0], bytes(256)],
        lambda answer: [answer[0], answer[1][:-1]],
    ):
        state = TokenRequestState(keys.current(START), CHALLENGE, 2)
        answer = [keys.sign(state.truncated_key_id, m) for m in state.blinded_messages]
        assert reason(state.finalize, spoil(answer)) in ("MALFORMED", "TOKEN_INVALID")
        assert reason(state.finalize, answer) == "MALFORMED"


def test_the_issuer_sees_nothing_of_a_token(keys):
    state = TokenRequestState(keys.current(START), CHALLENGE, 8)
    seen = list(state.blinded_messages)
    assert len(set(seen)) == 8
    answer = [keys.sign(state.truncated_key_id, m) for m in seen]
    for held in state.finalize(answer):
        for part in (held.token.nonce, held.token.authenticator):
            assert all(part not in each for each in (*seen, *answer))


def test_the_key_of_a_request_is_that_of_the_epoch():
    old, now, coming = (PublishedKey(bytes([i]), 10 * i, 10 * i + 15) for i in range(3))
    for moment, expected in ((0, old), (9.9, old), (10, now), (14, now), (20, coming), (30, coming)):
        assert choose_key([coming, old, now], moment) == expected
    for moment in (-1, 35):
        assert reason(choose_key, [coming, old, now], moment) == "ISSUER_UNAVAILABLE"


class Issuer:
    """Refills wallets, when it is let."""

    def __init__(self, keys, clock):
        self.keys, self.clock = keys, clock
        self.asked = []
        self.go = asyncio.Event()
        self.go.set()
        self.fault = None

    async def __call__(self, count):
        self.asked.append(count)
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        key = self.keys.current(self.clock.now)
        return [
            HeldToken(Token(os.urandom(32), CHALLENGE.digest, key.key_id, b""), key.not_before, key.not_after)
            for _ in range(count)
        ]


@pytest.fixture
async def issuer(keys, clock):
    return Issuer(keys, clock)


async def test_a_wallet_hands_each_token_out_once(issuer, clock):
    purse = Wallet(issuer, batch=8, low=2, spread=0.0, clock=clock)
    tokens = await asyncio.gather(*[purse.take() for _ in range(100)])
    assert len({token.nonce for token in tokens}) == 100
    assert set(issuer.asked) == {8}
    await purse.close()
    assert len(purse) == 0


async def test_a_wallet_is_filled_before_it_is_empty_and_not_at_once(issuer, clock, monkeypatch):
    waits = []
    monkeypatch.setattr(
        wallet, "_RANDOM", type("R", (), {"uniform": lambda _, a, b: waits.append((a, b)) or 0.05})()
    )
    purse = Wallet(issuer, batch=4, low=3, spread=60.0, clock=clock)
    await purse.take()
    assert len(purse) == 3
    assert issuer.asked == [4]
    await purse.take()
    await asyncio.sleep(0)
    assert issuer.asked == [4]
    assert waits == [(0.0, 60.0)]
    async with asyncio.timeout(10):
        while len(purse) < 6:
            await asyncio.sleep(0.01)
    assert issuer.asked == [4, 4]
    await purse.close()


async def test_an_empty_wallet_does_not_wait(issuer, clock, monkeypatch):
    monkeypatch.setattr(wallet, "_RANDOM", type("R", (), {"uniform": lambda *_: 3600.0})())
    purse = Wallet(issuer, batch=2, low=2, clock=clock)
    async with asyncio.timeout(10):
        tokens = [await purse.take() for _ in range(5)]
    assert len({token.nonce for token in tokens}) == 5
    await purse.close()


async def test_who_waited_for_one_request_does_not_hurry_the_next(issuer, clock, monkeypatch):
    """Or its time would tell when a token was spent."""
    monkeypatch.setattr(wallet, "_RANDOM", type("R", (), {"uniform": lambda *_: 3600.0})())
    issuer.go.clear()
    purse = Wallet(issuer, batch=4, low=3, clock=clock)
    first = asyncio.create_task(purse.take())
    async with asyncio.timeout(60):
        while not issuer.asked:
            await asyncio.sleep(0)
        second = asyncio.create_task(purse.take())
        await asyncio.sleep(0)
        issuer.go.set()
        await asyncio.gather(first, second)
    assert len(purse) == 2
    assert purse._refilling is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert issuer.asked == [4]
    await purse.close()


async def test_tokens_that_are_over_are_not_handed_out(issuer, keys, clock):
    purse = Wallet(issuer, batch=4, low=0, clock=clock)
    first = await purse.take()
    clock.now += 2 * DAY
    issuer.keys = TokenKeys(clock=clock)
    assert len(purse) == 0
    second = await purse.take()
    assert second.key_id == issuer.keys.current(clock.now).key_id != first.key_id
    assert issuer.asked == [4, 4]
    await purse.close()


async def test_an_issuer_whose_tokens_are_of_no_use_is_not_asked_for_ever(issuer, clock):
    purse = Wallet(issuer, batch=4, low=0, clock=Clock(START - DAY))
    assert await refusal(purse.take()) == "ISSUER_UNAVAILABLE"
    assert issuer.asked == [4]
    await purse.close()


async def test_an_issuer_that_fails_is_named_and_asked_again(issuer, clock, caplog):
    purse = Wallet(issuer, batch=4, low=0, clock=clock)
    issuer.fault = IdentityError("RATE_LIMITED", "no more today")
    results = await asyncio.gather(*[purse.take() for _ in range(5)], return_exceptions=True)
    assert [error.reason for error in results] == ["RATE_LIMITED"] * 5
    assert issuer.asked == [4]
    issuer.fault = ValueError("nonce 1234")
    with pytest.raises(IdentityError, match="ValueError") as caught:
        await purse.take()
    assert caught.value.reason == "ISSUER_UNAVAILABLE"
    assert "1234" not in str(caught.value) + caplog.text
    issuer.fault = None
    await purse.take()
    await purse.close()


async def test_who_gives_up_does_not_take_the_request_along(issuer, clock):
    issuer.go.clear()
    purse = Wallet(issuer, batch=4, low=0, clock=clock)
    first, second = (asyncio.create_task(purse.take()) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait({first})
    issuer.go.set()
    await second
    assert issuer.asked == [4]
    assert len(purse) == 3
    await purse.close()


async def test_a_closed_wallet_refuses_who_waits(issuer, clock):
    issuer.go.clear()
    purse = Wallet(issuer, batch=4, low=0, clock=clock)
    waiting = asyncio.create_task(purse.take())
    await asyncio.sleep(0.01)
    await purse.close()
    assert await refusal(waiting) == "ISSUER_UNAVAILABLE"


async def test_a_forked_child_finds_nothing(issuer, keys, clock):
    purse = Wallet(issuer, batch=4, low=0, clock=clock)
    await purse.take()
    state = TokenRequestState(keys.current(clock.now), CHALLENGE, 1)
    answer = [keys.sign(state.truncated_key_id, m) for m in state.blinded_messages]

    def child():
        return len(purse), list(purse._tokens), state._pending, reason(state.finalize, answer)

    assert await asyncio.to_thread(children.run, child) == (0, [], [], "MALFORMED")
    assert len(purse) == 3
    assert len(state.finalize(answer)) == 1
    await purse.close()


def test_a_wallet_is_forgotten(issuer, clock):
    gone = weakref.ref(Wallet(issuer, clock=clock))
    gc.collect()
    assert gone() is None


def test_batches_of_another_size_are_refused(issuer):
    for bad in ({"batch": 0}, {"batch": 1025}, {"low": -1}, {"batch": 4, "low": 5}):
        with pytest.raises(ConfigError):
            Wallet(issuer, **bad)
