"""Anonymous authorisation over real servers: who gets in, how often, and under which identity."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from dpmesh.errors import IdentityError, LedgerError
from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.issuer import Issuer
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.identity.tokens import (
    HeldToken,
    Tickets,
    Token,
    TokenChallenge,
    TokenKeys,
    TokenRequestState,
    Verifier,
    Wallet,
    from_credentials,
    published_by,
    to_credentials,
)
from dpmesh.ledger import Ledger, open_store
from dpmesh_grpc.issuer.server import issuer_server
from dpmesh_grpc.issuer.source import IssuerSource
from dpmesh_grpc.rotation import identity_channel
from dpmesh_grpc.rotation.channel import rotating_channel
from dpmesh_grpc.tokens import client, issuer_keys, token_interceptor, token_interceptors, token_request
from dpmesh_grpc.tokens.server import reason as reason_of
from tests.support import mutual_tls
from tests.support.mutual_tls import ANSWERS, ARITIES, call, method
from tests.support.virtual_time import in_virtual_time

DAY = 86_400
CHALLENGE = TokenChallenge("issuer.fleet.test", "telemetry.fleet.test")
OTHER = TokenChallenge("issuer.fleet.test", "other.fleet.test")
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def keys():
    return TokenKeys(epoch=100 * 365 * DAY)  # No test runs into another epoch.


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """RPCs wait for the one redemption, however slow the machine: after a second one of them would redeem too."""
    monkeypatch.setattr(client, "_PATIENCE", 60.0)


@pytest.fixture
async def stack():
    async with AsyncExitStack() as entered:
        yield entered


def issued(keys, count=1, challenge=CHALLENGE, key=None) -> list[HeldToken]:
    state = TokenRequestState(key or keys.current(time.time()), challenge, count)
    return state.finalize([keys.sign(state.truncated_key_id, m) for m in state.blinded_messages])


def purse(keys, **options) -> Wallet:
    """A wallet whose issuer is in the same process, and counts."""

    async def refill(count):
        wallet.asked += count
        return await asyncio.to_thread(issued, keys, count)

    wallet = Wallet(refill, **{"batch": 4, "low": 0, "spread": 0.0, **options})
    wallet.asked = 0
    return wallet


class Echo(mutual_tls.Service):
    """Echoes in four arities, and counts how often a handler ran and which tokens and tickets came."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = 0
        self.tokens: list[str] = []
        self.tickets: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()

    def note(self, context) -> None:
        self.ran += 1
        metadata = dict(context.invocation_metadata())
        if "dpmesh-ticket" in metadata:
            self.tickets.append(metadata["dpmesh-ticket"])
        else:
            self.tokens.append(metadata["authorization"])

    async def held(self, request, context):
        self.note(context)
        await self.hold.wait()
        return request

    async def own_metadata(self, request, context):
        self.note(context)
        await context.send_initial_metadata((("own", "metadata"),))
        return request

    async def aborts(self, request, context):
        self.note(context)
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    async def fails(self, request, context):
        self.note(context)
        raise ValueError("a bug")

    async def writes(self, request, context):
        self.note(context)
        await context.write(request)
        await context.write(request)

    def sync_unary(self, request, context):
        self.note(context)
        return request

    def sync_stream(self, request, context):
        self.note(context)
        yield from (request, request)

    def handlers(self):
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return {
            **super().handlers(),
            **{
                name: unary(getattr(self, name))
                for name in ("held", "own_metadata", "aborts", "fails", "sync_unary")
            },
            **{name: stream(getattr(self, name)) for name in ("writes", "sync_stream")},
        }


@asynccontextmanager
async def serving(verifier: Verifier, echo: Echo, **options) -> AsyncIterator[str]:
    """A server without TLS behind the interceptor."""
    server = grpc.aio.server(ThreadPoolExecutor(4), interceptors=[token_interceptor(verifier, **options)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", echo.handlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
async def make_ledger(stack, tmp_path):
    async def made(**options) -> Ledger:
        ledger = Ledger(open_store(f"sqlite:///{tmp_path}/ledger.db"), [], **options)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        return ledger

    return made


@pytest.fixture
async def ledger(make_ledger):
    return await make_ledger()


@pytest.fixture
async def verifier(keys, ledger):
    return Verifier(CHALLENGE, published_by(keys), ledger)


@pytest.fixture
async def echo():
    return Echo()


@pytest.fixture
async def server(stack, verifier, echo):
    return await stack.enter_async_context(serving(verifier, echo))


@pytest.fixture
async def connect(stack):
    """Opens channels, each with a TCP connection of its own."""

    async def connected(target, wallet=None) -> grpc.aio.Channel:
        interceptors = None if wallet is None else token_interceptors(wallet)
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(target, interceptors=interceptors, options=options)
        return await stack.enter_async_context(channel)

    return connected


async def refused(awaitable) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code(), reason_of(caught.value.trailing_metadata())


def showing(token: Token) -> list[tuple[str, str]]:
    return [("authorization", to_credentials(token))]


async def buy(channel, token, arity="unary_unary") -> str:
    """Redeems a token, and returns the ticket."""
    answer = method(channel, arity)(b"ab", metadata=showing(token))
    ticket = dict(await answer.initial_metadata())["dpmesh-ticket"]
    await answer
    return ticket


# One token for a channel


@pytest.mark.parametrize("first", ARITIES)
async def test_a_channel_redeems_one_token_for_all_its_rpcs(server, echo, connect, keys, first):
    wallet = purse(keys)
    channel = await connect(server, wallet)
    assert await call(channel, first) == ANSWERS[first]
    for arity in ARITIES:
        assert await call(channel, arity) == ANSWERS[arity]
    assert len(echo.tokens) == 1
    assert len(set(echo.tickets)) == 1
    assert len(echo.tickets) == 4
    assert len(wallet) == 3


async def test_all_first_rpcs_wait_for_the_one_redemption(server, echo, connect, keys):
    wallet = purse(keys)
    channel = await connect(server, wallet)
    answers = await asyncio.gather(*[call(channel, arity) for arity in ARITIES * 16])
    assert answers == [ANSWERS[arity] for arity in ARITIES * 16]
    assert len(echo.tokens) == 1
    assert len(echo.tickets) == 63
    assert len(wallet) == 3


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream", "stream_stream"])
async def test_a_long_first_rpc_does_not_hold_the_others_up(server, echo, connect, keys, monkeypatch, arity):
    """A stream's ticket comes at once. A unary RPC tells its initial metadata only at its end: that costs a token."""
    if arity == "unary_unary":
        monkeypatch.setattr(client, "_PATIENCE", 0.5)
    wallet = purse(keys)
    channel = await connect(server, wallet)
    echo.hold.clear()
    name = {"unary_unary": "held", "unary_stream": "ticks", "stream_stream": "stream_stream"}[arity]
    requests = mutual_tls.silence() if arity == "stream_stream" else b"x"  # then nothing is answered either
    held = method(channel, name, arity)(requests)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*[call(channel, "unary_unary") for _ in range(20)]) == [b"ab"] * 20
    assert not held.done()
    assert len(echo.tokens) == len(set(echo.tokens))
    if arity == "unary_unary":
        assert 2 <= len(echo.tokens) < 10  # 2, unless the machine takes more than half a second for an RPC
    else:
        assert len(echo.tokens) == 1
    echo.hold.set()
    if arity == "unary_unary":
        assert await held == b"x"
    held.cancel()
    await call(channel, "unary_unary")
    assert wallet.asked - len(wallet) == len(echo.tokens)


@in_virtual_time
async def test_patience_is_with_the_rpc_and_does_not_begin_at_the_wallet(keys, monkeypatch):
    """Or a wallet that takes long would cost a token more."""
    loop, tokens = asyncio.get_running_loop(), [held.token for held in issued(keys, 2)]
    monkeypatch.setattr(client, "_PATIENCE", 1.0)
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=loop.time))

    class Thinking:
        async def take(self) -> Token:
            await asyncio.sleep(0.9 if len(tokens) == 2 else 0.0)
            return tokens.pop()

    connection = client._Connection(Thinking())
    first, second = (asyncio.create_task(connection.credential()) for _ in range(2))
    await asyncio.sleep(1.8)
    assert first.done()
    assert not second.done()
    await asyncio.sleep(0.2)
    assert second.done()
    assert second.result().pair != first.result().pair


async def test_requests_that_are_written(server, echo, connect, keys):
    channel = await connect(server, purse(keys))
    for _ in range(2):
        both = method(channel, "stream_stream")()
        await both.write(b"a")
        assert await both.read() == b"a"
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        up = method(channel, "stream_unary")()
        await up.write(b"a")
        await up.done_writing()
        assert await up == b"a"
    assert len(echo.tokens) == 1


async def test_each_channel_has_a_token_and_a_ticket_of_its_own(server, echo, connect, keys):
    wallet = purse(keys)
    shared = token_interceptors(wallet)
    for _ in range(3):
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(server, interceptors=shared, options=options) as channel:
            for _ in range(2):
                await call(channel, "unary_unary")
    assert len(set(echo.tokens)) == 3
    assert len(set(echo.tickets)) == 3


async def test_handlers_of_all_kinds(server, echo, connect, keys):
    """Each as the first RPC of a channel, whose ticket must come, and as the second."""
    for name, answer in (
        ("writes", b"xx"),
        ("sync_stream", b"xx"),
        ("sync_unary", b"x"),
        ("own_metadata", b"x"),
    ):
        echo.tokens.clear()
        channel = await connect(server, purse(keys))
        for _ in range(3):
            streams = len(answer) == 2
            rpc = method(channel, name, "unary_stream" if streams else "unary_unary")(b"x")
            got = b"".join([part async for part in rpc]) if streams else await rpc
            assert got == answer, name
            if name == "own_metadata":
                assert dict(await rpc.initial_metadata())["own"] == "metadata"
        assert len(echo.tokens) == 1, name


@pytest.mark.parametrize(
    ("name", "code"), [("aborts", grpc.StatusCode.NOT_FOUND), ("fails", grpc.StatusCode.UNKNOWN)]
)
async def test_a_first_rpc_that_fails_by_itself_brings_the_ticket_all_the_same(
    server, echo, connect, keys, name, code
):
    wallet = purse(keys)
    channel = await connect(server, wallet)
    for _ in range(3):
        assert await refused(method(channel, name, "unary_unary")(b"x")) == (code, None)
    await call(channel, "unary_unary")
    assert len(echo.tokens) == 1
    assert len(wallet) == 3


async def test_a_ticket_is_renewed_before_it_is_over(stack, verifier, echo, connect, keys, monkeypatch):
    server = await stack.enter_async_context(serving(verifier, echo, ticket_life=1000))
    channel = await connect(server, purse(keys))
    await call(channel, "unary_unary")
    ahead = time.monotonic
    monkeypatch.setattr(client, "time", type("T", (), {"monotonic": staticmethod(lambda: ahead() + 850)}))
    await asyncio.gather(*[call(channel, arity) for arity in ARITIES * 4])
    assert len(set(echo.tokens)) == 2
    await call(channel, "unary_unary")
    assert len(set(echo.tickets)) == 2


# Refusals


async def test_a_token_replayed_a_hundred_times_on_three_servers(stack, keys, make_ledger, connect):
    """Three servers with a ledger object each on one SQLite file, as three processes would have."""
    channels, echoes = [], []
    for _ in range(3):
        echo = Echo()
        verifier = Verifier(CHALLENGE, published_by(keys), await make_ledger())
        target = await stack.enter_async_context(serving(verifier, echo))
        channels.append(await connect(target))
        echoes.append(echo)
    for arity in ARITIES:
        (held,) = issued(keys)

        async def one(channel, arity=arity, held=held):
            try:
                return await call(channel, arity, metadata=showing(held.token))
            except grpc.aio.AioRpcError as error:
                return error.code(), reason_of(error.trailing_metadata())

        results = await asyncio.gather(*[one(channels[i % 3]) for i in range(100)])
        assert results.count(ANSWERS[arity]) == 1
        refusals = [result for result in results if result != ANSWERS[arity]]
        # gRPC makes INTERNAL of the status with which a server ends an RPC during a write.
        lost = [(grpc.StatusCode.INTERNAL, None)] if arity.startswith("stream") else []
        assert all(each in [(UNAUTHENTICATED, "TOKEN_SPENT"), *lost] for each in refusals)
    assert sum(echo.ran for echo in echoes) == len(ARITIES)


def bad_tokens(keys):
    (good,) = issued(keys)
    (other,) = issued(keys, challenge=OTHER)
    token = good.token
    yield "wrong challenge", to_credentials(other.token)
    yield "another issuer", to_credentials(issued(TokenKeys())[0].token)
    past = TokenKeys(clock=lambda: time.time() - 3 * DAY)
    yield "wrong epoch", to_credentials(issued(past, key=past.current(time.time() - 3 * DAY))[0].token)
    coming = keys.published(time.time())[-1]
    yield "an epoch to come", to_credentials(issued(keys, key=coming)[0].token)
    yield "not signed", to_credentials(Token(token.nonce, token.challenge_digest, token.key_id, bytes(256)))
    yield "truncated", to_credentials(token)[:-8]
    yield "garbage", "PrivateToken token=" + base64.urlsafe_b64encode(os.urandom(354)).decode()
    yield "not base64", "PrivateToken token=?"
    yield "empty", "PrivateToken token="


async def test_bad_tokens_are_refused_before_the_handler_runs(server, echo, connect, keys, ledger):
    channel = await connect(server)
    for name, value in bad_tokens(keys):
        for arity in ARITIES:
            found = await refused(call(channel, arity, silent=True, metadata=[("authorization", value)]))
            assert found == (UNAUTHENTICATED, "TOKEN_INVALID"), (name, arity)
    for metadata in ([], [("authorization", "Bearer x")], [("authorization", "")]):
        for arity in ARITIES:
            found = await refused(call(channel, arity, silent=True, metadata=metadata))
            assert found == (UNAUTHENTICATED, "TOKEN_MISSING")
    for name in ("sync_unary", "sync_stream", "writes"):
        arity = "unary_unary" if name == "sync_unary" else "unary_stream"
        rpc = method(channel, name, arity)(b"x")
        found = await refused(rpc if arity == "unary_unary" else rpc.read())
        assert found == (UNAUTHENTICATED, "TOKEN_MISSING"), name
    two = [showing(held.token)[0] for held in issued(keys, 2)]
    assert await refused(call(channel, "unary_unary", metadata=two)) == (UNAUTHENTICATED, "TOKEN_INVALID")
    assert echo.ran == 0
    await call(channel, "unary_unary", metadata=[("authorization", "Bearer x"), two[0]])
    assert echo.ran == 1


async def test_tickets_that_are_over_or_made_up_are_refused(server, echo, connect, keys, ledger):
    channel = await connect(server)
    now = time.time()
    for ticket in (
        Tickets(ledger.secret, CHALLENGE.digest, clock=lambda: now - 7200).issue(b""),
        Tickets(ledger.secret, OTHER.digest).issue(b""),
        Tickets(os.urandom(32), CHALLENGE.digest).issue(b""),
        Tickets(ledger.secret, CHALLENGE.digest).issue(b"h" * 32),
        "x" * 80,
        "",
    ):
        for arity in ARITIES:
            found = await refused(call(channel, arity, silent=True, metadata=[("dpmesh-ticket", ticket)]))
            assert found == (UNAUTHENTICATED, "TOKEN_INVALID")
    good = [("dpmesh-ticket", Tickets(ledger.secret, CHALLENGE.digest).issue(b""))]
    assert await refused(call(channel, "unary_unary", metadata=good * 2)) == (
        UNAUTHENTICATED,
        "TOKEN_INVALID",
    )
    assert echo.ran == 0
    assert await call(channel, "unary_unary", metadata=good) == b"ab"


async def test_a_ticket_of_one_replica_is_good_at_another(stack, keys, make_ledger, connect, server):
    ticket = await buy(await connect(server), issued(keys)[0].token)
    other = Verifier(CHALLENGE, published_by(keys), await make_ledger())
    target = await stack.enter_async_context(serving(other, Echo()))
    channel = await connect(target)
    assert await call(channel, "unary_unary", metadata=[("dpmesh-ticket", ticket)]) == b"ab"


async def test_services_that_anybody_may_call(stack, verifier, echo, connect):
    target = await stack.enter_async_context(serving(verifier, echo, exempt=["test.Other"]))
    found = await refused(call(await connect(target), "unary_unary"))
    assert found == (UNAUTHENTICATED, "TOKEN_MISSING")
    echo.note = lambda context: None
    target = await stack.enter_async_context(serving(verifier, echo, exempt=["test.Echo"]))
    assert await call(await connect(target), "unary_unary") == b"ab"


async def test_an_unknown_method_is_unimplemented(server, connect):
    rpc = method(await connect(server), "unknown", "unary_unary")(b"x")
    assert await refused(rpc) == (grpc.StatusCode.UNIMPLEMENTED, None)


# When something is down


async def test_a_ledger_that_can_t_answer_refuses(server, echo, connect, keys, tmp_path, caplog):
    channel = await connect(server)
    (held,) = issued(keys)
    (tmp_path / "ledger.db").rename(tmp_path / "gone.db")
    for arity in ARITIES:
        found = await refused(call(channel, arity, silent=True, metadata=showing(held.token)))
        assert found == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert echo.ran == 0
    (tmp_path / "gone.db").rename(tmp_path / "ledger.db")
    assert await call(channel, "unary_unary", metadata=showing(held.token)) == b"ab"


async def test_a_ledger_that_can_t_answer_costs_a_client_no_token(server, echo, connect, keys, verifier):
    wallet = purse(keys)
    channel = await connect(server, wallet)
    spend, verifier.ledger.redeem_once = verifier.ledger.redeem_once, broken
    for _ in range(3):
        found = await refused(call(channel, "unary_unary"))
        assert found == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    verifier.ledger.redeem_once = spend
    await call(channel, "unary_unary")
    assert len(wallet) == 3


async def broken(name, until):
    raise LedgerError("the disk is full")


async def test_an_issuer_that_gives_nothing_refuses_at_the_client(server, echo, connect):
    async def refill(count):
        raise IdentityError("ISSUER_UNAVAILABLE", "the issuer does not answer")

    channel = await connect(server, Wallet(refill))
    for arity in ARITIES:
        found = await refused(call(channel, arity))
        assert found == (grpc.StatusCode.UNAVAILABLE, "ISSUER_UNAVAILABLE")
    written = method(channel, "stream_unary")()
    with contextlib.suppress(asyncio.InvalidStateError):
        await written.write(b"a")
    assert await refused(written) == (grpc.StatusCode.UNAVAILABLE, "ISSUER_UNAVAILABLE")
    assert echo.ran == 0


async def test_waiting_for_a_token_counts_towards_the_deadline(server, echo, connect, keys):
    go = asyncio.Event()

    async def refill(count):
        await go.wait()
        return issued(keys, count)

    channel = await connect(server, Wallet(refill, batch=2, low=0))
    for arity in ARITIES:
        code, _ = await refused(call(channel, arity, timeout=0.05))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    go.set()
    assert await call(channel, "unary_unary", timeout=20) == b"ab"
    assert echo.ran == 1


async def test_who_is_cancelled_while_it_redeems_leaves_the_way_free(server, echo, connect, keys):
    go = asyncio.Event()

    async def refill(count):
        await go.wait()
        return issued(keys, count)

    channel = await connect(server, Wallet(refill, batch=2, low=0))
    first = method(channel, "unary_unary")(b"ab")
    second = asyncio.create_task(call(channel, "stream_stream"))
    await asyncio.sleep(0.02)
    first.cancel()
    go.set()
    assert await second == b"ab"


async def test_a_client_goes_on_after_a_server_that_forgot_its_secret(
    server, echo, connect, keys, verifier, ledger
):
    """As after a restart of one with a ledger in memory: one RPC fails, and the next redeems a token."""
    wallet = purse(keys)
    channel = await connect(server, wallet)
    await call(channel, "unary_unary")
    connection = next(iter(channel._unary_unary_interceptors[0].interception._connections.values()))
    connection._ticket = Tickets(os.urandom(32), CHALLENGE.digest).issue(b"")
    assert await refused(call(channel, "unary_unary")) == (UNAUTHENTICATED, "TOKEN_INVALID")
    await call(channel, "unary_unary")
    assert len(echo.tokens) == 2


async def test_a_client_that_only_streams_finds_out_too(server, echo, connect, keys, ledger):
    """Where the status gets lost during a write, a few failures are enough."""
    channel = await connect(server, purse(keys))
    await call(channel, "unary_unary")
    connection = next(iter(channel._unary_unary_interceptors[0].interception._connections.values()))
    connection._ticket = Tickets(os.urandom(32), CHALLENGE.digest).issue(b"")
    failures = 0
    async with asyncio.timeout(20):
        while len(echo.tokens) == 1:
            try:
                assert await call(channel, "stream_unary") == b"ab"
            except grpc.aio.AioRpcError:
                failures += 1
            await asyncio.sleep(0.1)
    assert 1 <= failures <= 5
    assert len(echo.tokens) == 2


async def test_a_spent_token_in_the_wallet_costs_one_rpc(server, echo, connect, keys):
    spent, good = issued(keys, 2)
    plain = await connect(server)
    await call(plain, "unary_unary", metadata=showing(spent.token))

    async def refill(count):
        return [spent, good]

    channel = await connect(server, Wallet(refill, low=0))
    assert await refused(call(channel, "unary_unary")) == (UNAUTHENTICATED, "TOKEN_SPENT")
    assert await call(channel, "unary_unary") == b"ab"


async def test_nothing_of_tokens_and_tickets_is_logged(server, connect, keys, caplog):
    caplog.set_level(logging.DEBUG)
    channel = await connect(server)
    (held,) = issued(keys)
    ticket = await buy(channel, held.token)
    await refused(call(channel, "unary_unary", metadata=showing(held.token)))
    await refused(call(channel, "unary_unary", metadata=[("dpmesh-ticket", ticket[:-1] + "?")]))
    for secret in (to_credentials(held.token)[-40:], ticket[-40:], ticket[:40], held.token.nonce.hex()):
        assert secret not in caplog.text


# The issuer


@asynccontextmanager
async def issuing(path, keys, **options):
    """An issuer, and a device that is enrolled with it; notes what the device sends for its tokens."""
    authority = mutual_tls.authority()
    with contextlib.closing(Enrolments.create(path)) as enrolments:
        issuer = Issuer(authority, enrolments, token_keys=keys, **options)
        issuer.seen = []
        sign = issuer.sign_tokens
        issuer.sign_tokens = lambda request: issuer.seen.append(request.SerializeToString()) or sign(request)
        try:
            async with issuer_server(issuer, "127.0.0.1:0") as port:
                target = f"127.0.0.1:{port}"
                token = enrolments.invite(now=time.time()).token
                source = IssuerSource(target, authority.trust_bundle, enrolment_token=token)
                async with RotatingIdentity(source) as identity:
                    yield issuer, target, identity
        finally:
            issuer.close()


async def test_from_enrolment_to_a_service_that_knows_nobody(stack, tmp_path, keys, ledger, echo, connect):
    entered = issuing(tmp_path / "issuer.db", keys, allowance=24)
    issuer, target, device = await stack.enter_async_context(entered)
    verifier = Verifier(CHALLENGE, issuer_keys(target, device), ledger)
    service = await stack.enter_async_context(serving(verifier, echo))
    wallet = Wallet(token_request(target, device, CHALLENGE), batch=8, low=0)
    for _ in range(3):
        async with grpc.aio.insecure_channel(service, interceptors=token_interceptors(wallet)) as channel:
            for arity in ARITIES:
                assert await call(channel, arity) == ANSWERS[arity]
        await device.renew("test")  # a new identity is not a new device
    assert len(set(echo.tokens)) == 3
    assert len(issuer.seen) == 1
    tokens = [from_credentials(value) for value in echo.tokens]
    for token in tokens:
        for part in (token.nonce, token.authenticator, token.challenge_digest):
            assert part not in issuer.seen[0]
    while len(issuer.seen) < 3:
        await wallet.take()
    with pytest.raises(IdentityError) as caught:
        for _ in range(9):
            await wallet.take()
    assert caught.value.reason == "RATE_LIMITED"
    await wallet.close()


async def test_an_issuer_that_can_t_be_reached(stack, tmp_path, keys, ledger, echo, connect, free_port):
    _, _, device = await stack.enter_async_context(issuing(tmp_path / "issuer.db", keys))
    nowhere = f"127.0.0.1:{free_port}"
    wallet = Wallet(token_request(nowhere, device, CHALLENGE, timeout=5))
    verifier = Verifier(CHALLENGE, issuer_keys(nowhere, device, timeout=5), ledger)
    service = await stack.enter_async_context(serving(verifier, echo))
    unavailable = (grpc.StatusCode.UNAVAILABLE, "ISSUER_UNAVAILABLE")
    assert await refused(call(await connect(service, wallet), "unary_unary")) == unavailable
    token = issued(keys)[0].token
    assert await refused(call(await connect(service), "unary_unary", metadata=showing(token))) == unavailable
    assert echo.ran == 0


@pytest.fixture
def free_port():
    """A port on which nobody listens, and nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# Identities


@asynccontextmanager
async def mutual(verifier, echo, authority):
    """The same service behind mutual TLS."""
    async with RotatingIdentity(LocalSource(authority, server=True)) as identity:
        server = grpc.aio.server(interceptors=[token_interceptor(verifier)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", echo.handlers()),))
        credentials = mutual_tls.rotating_server_credentials(identity)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


async def test_a_ticket_of_another_identity_is_refused(stack, verifier, echo, keys):
    authority = mutual_tls.authority()
    target = await stack.enter_async_context(mutual(verifier, echo, authority))
    source = LocalSource(authority)
    channels = []
    for _ in range(2):
        identity = await source.fetch()
        channels.append(await stack.enter_async_context(mutual_tls.plain_channel(target, identity)))
    again = await stack.enter_async_context(mutual_tls.plain_channel(target, identity))
    ticket = await buy(channels[1], issued(keys)[0].token)
    shown = [("dpmesh-ticket", ticket)]
    for arity in ARITIES:
        found = await refused(call(channels[0], arity, silent=True, metadata=shown))
        assert found == (UNAUTHENTICATED, "TOKEN_INVALID")
    for channel in (channels[1], again):
        assert await call(channel, "unary_unary", metadata=shown) == b"ab"


async def test_nothing_is_shown_under_two_identities(stack, verifier, echo, keys, monkeypatch):
    """A channel that rotates under load: no RPC fails, and each identity has a token and a ticket of its own."""
    # RPCs have all the time that they need to end, and connections without any end within a second.
    uniform = identity_channel._random.uniform
    within = SimpleNamespace(uniform=lambda low, high: uniform(low, min(high, 1.0)))
    monkeypatch.setattr(identity_channel, "_random", within)
    authority = mutual_tls.authority()
    target = await stack.enter_async_context(mutual(verifier, echo, authority))
    shown: dict[str, set[str]] = {}

    def note(context):
        pem = context.auth_context()["x509_pem_cert"][0].decode()
        metadata = dict(context.invocation_metadata())
        value = metadata.get("dpmesh-ticket") or metadata["authorization"]
        shown.setdefault(value, set()).add(pem)

    echo.note = note
    wallet = purse(keys, batch=16)
    identity = await stack.enter_async_context(RotatingIdentity(LocalSource(authority)))
    channel = rotating_channel(target, identity, interceptors=token_interceptors(wallet), drain=60)
    await stack.enter_async_context(channel)
    done, count = asyncio.Event(), 0

    async def worker(arity):
        nonlocal count
        while not done.is_set():
            assert await call(channel, arity) == ANSWERS[arity]
            count += 1

    def both_shown() -> bool:
        """Whether the newest identity has shown two values. The server is told of its leaf only."""
        chain = identity.current.certificates.decode()
        return sum(any(pem in chain for pem in pems) for pems in shown.values()) >= 2

    workers = [asyncio.create_task(worker(arity)) for arity in ARITIES * 4]
    try:
        await mutual_tls.until(both_shown)
        for _ in range(8):
            await identity.renew("test")
            await mutual_tls.until(both_shown)
        await mutual_tls.until(lambda: count > 100)
    finally:
        done.set()
        await asyncio.gather(*workers)
    assert all(len(pems) == 1 for pems in shown.values())
    identities = {pem for pems in shown.values() for pem in pems}
    counts = len(identities), len(shown)  # so that a failure prints no tokens
    assert counts == (9, 18)  # one token and one ticket each
    # What belongs to connections that have ended goes with the next one.
    await mutual_tls.until(lambda: not channel._drains)
    known = len(shown)
    await identity.renew("test")
    while len(shown) == known:
        await call(channel, "unary_unary")
    assert len(access_of(channel)) <= 2


def access_of(channel) -> dict:
    return channel._unary_unary_interceptors[0].interception._connections
