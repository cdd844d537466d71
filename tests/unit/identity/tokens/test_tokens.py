"""Tokens against the RFCs' vectors; an issuer's keys, a wallet, a verifier and tickets, each alone."""

import asyncio
import base64
import gc
import json
import os
import stat
import threading
import weakref

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmesh.errors import ConfigError, IdentityError, LedgerError
from dpmesh.identity.tokens import blind_rsa, tickets, verifier, wallet
from dpmesh.identity.tokens import format as token_format
from dpmesh.identity.tokens import keys as token_keys
from dpmesh.identity.tokens.protocol import (
    HeldToken,
    PublishedKey,
    Tickets,
    Token,
    TokenChallenge,
    TokenKeys,
    TokenRequestState,
    Verifier,
    Wallet,
    choose_key,
    decode_key,
    encode_key,
    from_credentials,
    published_by,
    to_credentials,
)
from dpmesh.ledger import Ledger, MemoryStore
from tests.support import children

DAY = 86_400
START = 20_000 * DAY
CHALLENGE = TokenChallenge("issuer.fleet.test", "telemetry.fleet.test")


class Clock:
    """A clock that the test sets."""

    def __init__(self, now=START + 1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="module")
def keys():
    """One issuer for all tests that only need some issuer; it made its keys once."""
    return TokenKeys(clock=Clock())


def reason(function, *args, **kwargs):
    """Why it was refused."""
    with pytest.raises(IdentityError) as caught:
        function(*args, **kwargs)
    return caught.value.reason


async def refusal(awaitable):
    with pytest.raises(IdentityError) as caught:
        await awaitable
    return caught.value.reason


def issued(keys, count=1, challenge=CHALLENGE, now=START + 1000.0):
    """Tokens, as a device gets them."""
    state = TokenRequestState(keys.current(now), challenge, count)
    return state.finalize([keys.sign(state.truncated_key_id, m) for m in state.blinded_messages])


# What is on the wire


def test_the_challenges_of_rfc_9577(vectors):
    for vector in vectors("rfc9577_challenges.json"):
        fields = {name: bytes.fromhex(value) for name, value in vector.items()}
        challenge = TokenChallenge(
            fields["issuer_name"].decode(), fields["origin_info"].decode(), fields["redemption_context"]
        )
        token = Token(fields["nonce"], challenge.digest, fields["token_key_id"], b"")
        assert token.signed == fields["token_authenticator_input"]


def test_the_tokens_of_rfc_9578(vectors):
    """Each vector goes the whole way: key, challenge, request, response and token, octet for octet."""
    found = vectors("rfc9578_blind_rsa_tokens.json")
    assert len(found) == 5
    for vector in found:
        fields = {name: bytes.fromhex(value) for name, value in vector.items()}
        private = load_pem_private_key(fields["skS"], None)
        assert encode_key(private.public_key()) == fields["pkS"]
        public = decode_key(fields["pkS"])
        assert public == private.public_key()
        key = PublishedKey(fields["pkS"], 0, 1)

        expected = Token.decode(fields["token"])
        issuer, context, origin = read_challenge(fields["token_challenge"])
        challenge = TokenChallenge(issuer, origin, context)
        assert challenge.encode() == fields["token_challenge"]
        token = Token(fields["nonce"], challenge.digest, key.key_id, b"")
        assert token.signed == expected.signed

        factor = int.from_bytes(fields["blind"])
        blinded = blind_rsa.blind(
            token_format.VARIANT, public, token.signed, salt=fields["salt"], factor=factor
        )
        assert b"\0\2" + bytes([key.truncated_key_id]) + blinded.message == fields["token_request"]
        response = blind_rsa.blind_sign(private, blinded.message)
        assert response == fields["token_response"]
        signature = blind_rsa.finalize(token_format.VARIANT, public, token.signed, response, blinded.inverse)
        whole = Token(token.nonce, token.challenge_digest, token.key_id, signature)
        assert whole.encode() == fields["token"]
        assert from_credentials(to_credentials(whole)) == whole


def read_challenge(data):
    parts, rest = [], data[2:]
    for size in (2, 1, 2):
        length = int.from_bytes(rest[:size])
        parts.append(rest[size : size + length])
        rest = rest[size + length :]
    assert not rest
    return parts[0].decode(), parts[1], parts[2].decode()


def test_a_challenge_of_another_form_is_refused():
    for bad in (("",), ("i\u00e4",), ("i" * 65536,), ("i", "\u00e4"), ("i", "o" * 65536), ("i", "o", b"x")):
        with pytest.raises(ConfigError):
            TokenChallenge(*bad)
    digests = {
        TokenChallenge(*parts).digest
        for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", b"c" * 32), ("a", "", b"c" * 32))
    }
    assert len(digests) == 5


def test_credentials_of_another_form_are_refused(keys):
    (held,) = issued(keys)
    good = to_credentials(held.token)
    assert from_credentials(good) == held.token
    assert from_credentials(good.replace("token=", 'token="') + '"') == held.token
    assert from_credentials("privatetoken" + good[len("PrivateToken") :]) == held.token
    for other in ("", "Bearer x", "PrivateTokens token=x", "PrivateToken"):
        assert reason(from_credentials, other) == "TOKEN_MISSING"
    for bad in (
        "PrivateToken token=",
        good[:-4],
        good + "AAAA",
        good + "=",
        good + '"',
        good + ", token=AAAA",
        "PrivateToken token=" + base64.urlsafe_b64encode(b"\0\1" + held.token.encode()[2:]).decode(),
        good[:-1] + "+",
        good[:-1] + "\u00e4",
        good + "\n",
    ):
        assert reason(from_credentials, bad) == "TOKEN_INVALID"


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text().map(lambda t: f"PrivateToken token={t}"), st.binary(max_size=400)))
def test_garbage_is_refused_and_nothing_else(value):
    read = Token.decode if isinstance(value, bytes) else from_credentials
    assert reason(read, value) in ("TOKEN_INVALID", "TOKEN_MISSING")


def test_a_key_has_one_encoding(keys):
    der = keys.current(START).public_key
    assert len(der) == 342
    assert encode_key(decode_key(der)) == der
    plain = rsa.generate_private_key(65537, 3072).public_key()
    three = rsa.generate_private_key(3, 2048).public_key()
    for bad in (
        b"",
        der[:-1],
        der + b"\0",
        der[70:],
        der.replace(bytes.fromhex("040202a11a"), bytes.fromhex("040201a11a")),
        der[:-5] + b"\x02\x03\x01\x00\x02",
        encode_key(plain),
        encode_key(three),
    ):
        assert reason(decode_key, bad) == "MALFORMED"


def test_nothing_secret_shows(keys, clock):
    (held,) = issued(keys)
    shown = repr(held) + repr(held.token) + repr(keys._keys)
    for part in (held.token.nonce, held.token.authenticator):
        assert part.hex() not in shown
        assert repr(part) not in shown
    assert "PRIVATE" not in shown


# The issuer's keys


def test_there_is_a_key_for_this_epoch_and_the_next():
    clock = Clock()
    keys = TokenKeys(clock=clock)
    first, second = keys.published(clock.now)
    assert (first.not_before, first.not_after) == (START, START + DAY + 3600)
    assert (second.not_before, second.not_after) == (START + DAY, START + 2 * DAY + 3600)
    assert keys.current(clock.now) == first
    assert first.truncated_key_id != second.truncated_key_id

    clock.now = START + DAY  # the next epoch: the first key's tokens are taken for another hour
    assert keys.current(clock.now) == second
    assert keys.published(clock.now)[:2] == [first, second]
    assert len(keys.published(clock.now)) == 3
    clock.now = START + DAY + 3600
    assert [key.not_before for key in keys.published(clock.now)] == [START + DAY, START + 2 * DAY]
    assert keys.published(clock.now)[0] == second


def test_a_key_that_is_over_signs_no_more():
    clock = Clock()
    keys = TokenKeys(clock=clock)
    first, second = keys.published(clock.now)
    for key in (first, second):
        state = TokenRequestState(key, CHALLENGE, 1)
        (held,) = state.finalize([keys.sign(key.truncated_key_id, state.blinded_messages[0])])
        assert (held.not_before, held.not_after) == (key.not_before, key.not_after)
    missing = next(i for i in range(256) if i not in (first.truncated_key_id, second.truncated_key_id))
    assert reason(keys.sign, missing, bytes(256)) == "EXPIRED"
    assert reason(keys.sign, first.truncated_key_id, bytes(255)) == "MALFORMED"
    clock.now = START + DAY + 3600
    published = keys.published(clock.now)
    if first.truncated_key_id not in {key.truncated_key_id for key in published}:
        assert reason(keys.sign, first.truncated_key_id, bytes(256)) == "EXPIRED"


def test_no_two_keys_in_force_have_one_truncated_id(monkeypatch):
    one, *others = (rsa.generate_private_key(65537, 2048) for _ in range(4))
    ids = {key: PublishedKey(encode_key(key.public_key()), 0, 1).truncated_key_id for key in (one, *others)}
    other = next(key for key in others if ids[key] != ids[one])  # fails once in 2^24 runs
    candidates = iter([one, one, one, other])
    monkeypatch.setattr(token_keys.rsa, "generate_private_key", lambda *_: next(candidates))
    first, second = TokenKeys().published(START)
    assert [first.public_key, second.public_key] == [encode_key(k.public_key()) for k in (one, other)]


def test_lengths_of_another_form_are_refused():
    for bad in (
        {"epoch": 0},
        {"epoch": 0.5},
        {"epoch": float("inf")},
        {"overlap": -1},
        {"epoch": 10},
        {"overlap": 1.5},
    ):
        with pytest.raises(ConfigError, match="token keys"):
            TokenKeys(**bad)
    for now in (-1.0, float("nan"), float("inf")):
        assert reason(TokenKeys().published, now) == "ISSUER_UNAVAILABLE"


def test_threads_that_need_a_key_at_once_get_the_same(clock):
    keys, got = TokenKeys(clock=clock), []
    threads = [threading.Thread(target=lambda: got.append(keys.published(clock.now))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(each == got[0] for each in got)


def test_a_file_keeps_keys_and_only_its_owner_may_read_it(tmp_path, clock):
    path = tmp_path / "sub" / "keys.json"
    old = os.umask(0)
    try:
        first = TokenKeys(path, clock=clock).published(clock.now)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["keys.json"]
    again = TokenKeys(path, overlap=60, clock=clock)  # another overlap holds for keys to come
    assert again.published(clock.now) == first
    clock.now += DAY
    third = again.published(clock.now)[-1]
    assert third.not_after - third.not_before == DAY + 60
    clock.now += DAY + 3600
    again.published(clock.now)
    stored = json.loads(path.read_text())["keys"]
    assert [entry["not_before"] for entry in stored] == [START + 2 * DAY, START + 3 * DAY]


def test_processes_that_share_a_file_have_the_same_keys(tmp_path, clock):
    path = tmp_path / "keys.json"
    started = [children.start(lambda: TokenKeys(path, clock=clock).published(clock.now)) for _ in range(3)]
    first, *others = [children.finish(child) for child in started]
    assert all(other == first for other in others)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_may_read_is_not_used(tmp_path, clock, mode):
    path = tmp_path / "keys.json"
    TokenKeys(path, clock=clock).published(clock.now)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        TokenKeys(path, clock=clock).published(clock.now)


def test_a_bad_file_is_not_used_and_not_quoted(tmp_path, clock):
    path = tmp_path / "keys.json"
    TokenKeys(path, clock=clock).published(clock.now)
    good = path.read_text()
    for bad in ("", "secret-garbage", "[]", "{}", good[:-10], good.replace("PRIVATE", "PRIVAT")):
        path.write_text(bad)
        with pytest.raises(IdentityError, match="not a file of token keys") as caught:
            TokenKeys(path, clock=clock).published(clock.now)
        assert "secret" not in str(caught.value)
        assert path.read_text() == bad
    path.write_text(good)
    with pytest.raises(IdentityError, match="another length"):
        TokenKeys(path, epoch=3600, overlap=60, clock=clock).published(clock.now)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    assert reason(TokenKeys(path, clock=clock).published, clock.now) == "ISSUER_UNAVAILABLE"


# The device


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
        return (
            len(purse),
            list(purse._tokens),
            state._unsigned,
            state._inverses,
            reason(state.finalize, answer),
        )

    assert await asyncio.to_thread(children.run, child) == (0, [], [], [], "MALFORMED")
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


# The service


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
    assert not ledger._store._spent
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
    monkeypatch.setattr(service, "_due", 0.0)
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
    monkeypatch.setattr(service, "_due", 0.0)
    await service.redeem(first.token)
    publishing.down = True
    monkeypatch.setattr(service, "_due", 0.0)
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


# Tickets

HOLDER = b"h" * 32


def made(clock, secret=b"s" * 32, service=CHALLENGE.digest, life=600.0):
    return Tickets(secret, service, life=life, clock=clock)


def test_a_ticket_admits_its_holder_until_it_is_over(clock):
    ticket = made(clock).issue(HOLDER)
    assert ticket.isascii()
    assert tickets.ticket_life(ticket) == 600.0
    made(clock).check(ticket, HOLDER)  # another replica's
    clock.now += 599
    made(clock).check(ticket, HOLDER)
    clock.now += 1
    assert reason(made(clock).check, ticket, HOLDER) == "TOKEN_INVALID"


def test_a_ticket_of_somebody_else_is_refused(clock):
    ticket = made(clock).issue(HOLDER)
    for other, holder in (
        (made(clock), b"i" * 32),
        (made(clock), b""),
        (made(clock, secret=b"t" * 32), HOLDER),
        (made(clock, service=b"u" * 32), HOLDER),
    ):
        assert reason(other.check, ticket, holder) == "TOKEN_INVALID"


def test_a_changed_ticket_is_refused(clock):
    ticket = made(clock).issue(HOLDER)
    for i in range(len(ticket)):
        changed = ticket[:i] + ("A" if ticket[i] != "A" else "B") + ticket[i + 1 :]
        assert reason(made(clock).check, changed, HOLDER) == "TOKEN_INVALID"
    for bad in ("", ticket[:-4], ticket + "AAAA", "!" * 80, "\u00e4" * 80, "=" * 80):
        assert reason(made(clock).check, bad, HOLDER) == "TOKEN_INVALID"
    assert reason(tickets.ticket_life, "no ticket") == "MALFORMED"


def test_no_two_tickets_are_alike(clock):
    assert len({made(clock).issue(HOLDER) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("life", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ticket_s_life_is_a_time(clock, life):
    with pytest.raises(ConfigError):
        made(clock, life=life)
