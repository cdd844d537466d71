"""The verifier accepts each token once, in its epoch, for its service."""

import asyncio
import os

import pytest

from dpmesh.errors import IdentityError, LedgerError
from dpmesh.identity.tokens import (
    Token,
    TokenChallenge,
    TokenKeys,
    Verifier,
    blind_rsa,
    decode_key,
    published_by,
    verifier,
)
from dpmesh.identity.tokens import format as token_format
from dpmesh.ledger import Ledger, MemoryStore
from tests.support.tokens import CHALLENGE, START, Clock, issued, refusal


@pytest.fixture
async def ledger(clock):
    ledger = Ledger(MemoryStore(), [], clock=clock)
    await ledger.open()
    yield ledger
    await ledger.close()


@pytest.fixture
async def service(keys, ledger, clock):
    return Verifier(CHALLENGE, published_by(keys, clock), ledger, clock=clock)


async def test_a_token_is_taken_once(service, keys):
    for held in issued(keys, 3):
        await service.redeem(held.token)
        assert await refusal(service.redeem(held.token)) == "TOKEN_SPENT"


async def test_the_same_nonce_with_another_signature_is_the_same_token(service, keys):
    """PSS is randomized: one who has two signatures of one nonce has still one token."""
    (first,) = issued(keys)
    public = decode_key(keys.current(START).public_key)
    blinded = blind_rsa.blind(token_format.VARIANT, public, first.token.signed)
    answer = keys.sign(keys.current(START).truncated_key_id, blinded.message)
    signature = blind_rsa.finalize(token_format.VARIANT, public, first.token.signed, answer, blinded.inverse)
    assert signature != first.token.authenticator
    token = first.token
    await service.redeem(Token(token.nonce, token.challenge_digest, token.key_id, signature))
    assert await refusal(service.redeem(token)) == "TOKEN_SPENT"


async def test_what_is_not_signed_for_this_service_is_refused_and_spends_nothing(service, keys, ledger):
    (held,) = issued(keys)
    token = held.token
    (other,) = issued(keys, challenge=TokenChallenge("issuer.fleet.test", "other.fleet.test"))
    stranger = TokenKeys(clock=Clock())
    wrong = [
        other.token,
        Token(token.nonce, other.token.challenge_digest, token.key_id, token.authenticator),
        Token(other.token.nonce, token.challenge_digest, token.key_id, other.token.authenticator),
        Token(os.urandom(32), token.challenge_digest, token.key_id, token.authenticator),
        Token(token.nonce, token.challenge_digest, os.urandom(32), token.authenticator),
        Token(token.nonce, token.challenge_digest, keys.published(START)[1].key_id, token.authenticator),
        Token(token.nonce, token.challenge_digest, token.key_id, bytes(256)),
        Token(token.nonce, token.challenge_digest, token.key_id, token.authenticator[::-1]),
        issued(stranger)[0].token,
    ]
    for each in wrong:
        assert await refusal(service.redeem(each)) == "TOKEN_INVALID"
    assert not ledger._store._redeemed
    await service.redeem(token)


async def test_a_token_is_taken_in_its_epoch_and_the_overlap(ledger, clock):
    keys = TokenKeys(clock=clock)
    end = keys.current(clock.now).not_after
    early, late, over = issued(keys, 3, now=clock.now)
    service = Verifier(CHALLENGE, published_by(keys, clock), ledger, clock=clock)
    clock.now = START - verifier.SKEW - 1
    assert await refusal(service.redeem(early.token)) == "TOKEN_INVALID"
    clock.now = START - verifier.SKEW
    await service.redeem(early.token)
    clock.now = end - 1.5
    await service.redeem(late.token)
    clock.now = end
    assert await refusal(service.redeem(over.token)) == "TOKEN_INVALID"
    slow = Verifier(CHALLENGE, published_by(keys, Clock()), ledger, clock=Clock(end - 10))
    for held in (early, late):
        assert await refusal(slow.redeem(held.token)) in ("TOKEN_SPENT", "TOKEN_INVALID")


class Publishing:
    """What an issuer publishes, or that it does not answer."""

    def __init__(self, keys, clock):
        self.keys, self.clock = keys, clock
        self.asked = 0
        self.down = False

    async def __call__(self):
        self.asked += 1
        if self.down:
            raise IdentityError("ISSUER_UNAVAILABLE", "down")
        return self.keys.published(self.clock.now)


async def test_made_up_keys_do_not_flood_the_issuer(keys, ledger, clock, monkeypatch):
    publishing = Publishing(keys, clock)
    service = Verifier(CHALLENGE, publishing, ledger, clock=clock)
    (held,) = issued(keys)
    token = held.token
    made_up = [Token(token.nonce, CHALLENGE.digest, os.urandom(32), token.authenticator) for _ in range(50)]
    results = await asyncio.gather(*map(service.redeem, made_up), return_exceptions=True)
    assert {error.reason for error in results} == {"TOKEN_INVALID"}
    assert publishing.asked == 1
    await service.redeem(token)
    monkeypatch.setattr(service, "_unknown_due", 0.0)
    assert await refusal(service.redeem(made_up[0])) == "TOKEN_INVALID"
    assert publishing.asked == 2


async def test_an_issuer_that_is_down_matters_only_for_new_keys(keys, ledger, clock, monkeypatch):
    publishing = Publishing(keys, clock)
    publishing.down = True
    service = Verifier(CHALLENGE, publishing, ledger, clock=clock)
    first, second = issued(keys, 2)
    for _ in range(2):
        assert await refusal(service.redeem(first.token)) == "ISSUER_UNAVAILABLE"
    assert publishing.asked == 1
    publishing.down = False
    monkeypatch.setattr(service, "_unknown_due", 0.0)
    await service.redeem(first.token)
    publishing.down = True
    monkeypatch.setattr(service, "_unknown_due", 0.0)
    await service.redeem(second.token)


async def test_a_ledger_that_can_t_tell_refuses(keys, clock):
    ledger = Ledger(MemoryStore(), [], clock=clock)
    service = Verifier(CHALLENGE, published_by(keys, clock), ledger, clock=clock)
    (held,) = issued(keys)
    with pytest.raises(LedgerError):
        await service.redeem(held.token)
    await ledger.open()
    await service.redeem(held.token)
    await ledger.close()
