"""A second transport is possible: all that protects RPCs over gRPC protects those of another transport, without gRPC."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError, NotOpenError, ProtectionError
from dpmesh.ledger.budget import consumer_key
from dpmesh.mesh.attestation import POLICY_KEY
from dpmesh.mesh.refusals import HANDLER_FAILED, Category, of
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled
from tests.support.queue_transport import Client, Handler, RefusedError, Server

RAW = 41.77777777
TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        double value = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 100 epsilon: 1}];
        string note = 3 [(dpmesh.v1.field).suppress = {}]; }
    message Plain { string text = 1; }
    service Station {
        rpc Report(stream Reading) returns (stream Plain);
        rpc Watch(stream Plain) returns (stream Reading);
        rpc Ask(Plain) returns (Reading);
        rpc Fail(Plain) returns (stream Reading);
        rpc Echo(stream Plain) returns (stream Plain);
        rpc Strict(stream Reading) returns (Plain) { option (dpmesh.v1.method).require = true; } }"""
)
Reading, Plain = TYPES.Reading, TYPES.Plain
TRAILERS = [("note", "only the server may know this"), ("Page", "7")]
ALONE = "TEST_WITHOUT_GRPC"


def name(method):
    return f"/{TYPES.package}.Station/{method}"


def reading(unit="s1"):
    return Reading(id=unit, value=RAW, note="only the sender may know this")


def is_protected(message):
    return message.value != RAW and not message.note and message.id not in ("s1", "")


async def stream(*messages):
    for message in messages:
        yield message


@asynccontextmanager
async def opened(*, epsilon=1e6, clock=lambda: 1_357_041_600.0, **sections):
    budget = {"name": "station", "epsilon": epsilon, "accounting": "pure", "window": "24h"}
    config = {"ledger": {"url": "memory:"}, "budget": [budget], **sections}
    async with dpmesh.open(config, clock=clock) as mesh:
        yield mesh


def serving(mesh, seen=None):
    """A server that answers every request with a reading, or with its own text."""

    async def readings(requests, call):
        async for _ in requests:
            yield reading()

    async def texts(requests, call):
        call.trailers = TRAILERS
        async for request in requests:
            if seen is not None:
                seen.append(request)
            if request == Plain(text="fail"):
                raise ValueError(f"it was {RAW}")
            yield Plain(text="ok")

    async def failing(requests, call):
        raise ValueError(f"it was {RAW}")
        yield

    return Server(
        mesh,
        {
            name("Report"): Handler(Reading, texts),
            name("Watch"): Handler(Plain, readings),
            name("Ask"): Handler(Plain, readings, streams=False),
            name("Echo"): Handler(Plain, texts),
            name("Strict"): Handler(Reading, texts, streams=False),
            name("Fail"): Handler(Plain, failing),
        },
    )


async def test_a_message_and_streams_in_both_directions_are_protected():
    seen = []
    async with opened() as mesh:
        client = Client(serving(mesh, seen), mesh)
        one, _ = await client.ask(name("Ask"), Plain(), Reading)
        many, _ = await client.send(name("Watch"), stream(Plain(), Plain()), Reading)
        await client.ask(name("Report"), reading(), Plain)
        await client.send(name("Report"), stream(reading(), reading()), Plain)
        assert (len(one), len(many), len(seen)) == (1, 2, 3)
        assert all(map(is_protected, [*one, *many, *seen]))
        spent, _ = mesh.ledger.usage(0, b"s1")
        assert spent == 6 * AMOUNT
        answers, call = await client.ask(name("Echo"), Plain(text="as it is"), Plain)
        assert (answers, seen[-1]) == ([Plain(text="ok")], Plain(text="as it is"))
        assert call.trailers == TRAILERS


async def test_protected_requests_are_attested_and_the_application_can_not_attest():
    headers = [(POLICY_KEY, "forged"), ("traceparent", "1"), ("x-request-id", "17")]
    async with opened() as mesh:
        client = Client(serving(mesh), mesh)
        for made in (
            client.ask(name("Report"), reading(), Plain, headers),
            client.send(name("Report"), stream(reading()), Plain, headers),
        ):
            _, call = await made
            assert dict(call.headers) == {POLICY_KEY: "protected", "traceparent": "1"}
        for made in (
            client.ask(name("Echo"), Plain(), Plain, [("trace", "1")]),
            client.send(name("Echo"), stream(Plain()), Plain, [("trace", "1")]),
        ):
            _, call = await made
            assert dict(call.headers) == {"trace": "1"}


async def test_a_receiver_that_requires_attestation_refuses_all_other_requests():
    seen = []
    async with opened() as mesh:
        server = serving(mesh, seen)
        with pytest.raises(RefusedError) as caught:
            await Client(server).ask(name("Strict"), reading(), Plain)
        assert caught.value.refusal.reason == "NOT_PROTECTED"
        assert caught.value.refusal.category is Category.PRECONDITION
        assert not seen
        await Client(server, mesh).ask(name("Strict"), reading(), Plain)
        await Client(server, mesh).send(name("Strict"), stream(reading()), Plain)
        assert all(map(is_protected, seen))
    async with opened(mode="observe") as mesh:
        answers, _ = await Client(serving(mesh)).ask(name("Strict"), reading(), Plain)
        assert answers == [Plain(text="ok")]


async def test_a_receiver_refuses_policies_that_are_older_than_it_asks_for():
    def policy(epoch):
        document = policy_pb2.Policy(epoch=epoch)
        document.methods[name("Report")].require_policy.min_epoch = 3
        return document

    async with opened() as receiver, opened() as sender:
        await receiver.swap(policy(3))
        client = Client(serving(receiver), sender)
        for epoch, reason in ((0, "POLICY_NOT_NAMED"), (2, "POLICY_TOO_OLD")):
            if epoch:
                await sender.swap(policy(epoch))
            with pytest.raises(RefusedError) as caught:
                await client.ask(name("Report"), reading(), Plain)
            assert caught.value.refusal.reason == reason
        await sender.swap(policy(3))
        _, call = await client.ask(name("Report"), reading(), Plain)
        digest = sender.policy.plan(Reading.DESCRIPTOR).version
        assert dict(call.headers) == {POLICY_KEY: f"{digest};epoch=3"}


async def test_refusals_reach_the_sender_and_the_peer_with_their_reasons():
    async with opened(epsilon=2.0) as mesh:
        client = Client(serving(mesh), mesh)
        await client.ask(name("Report"), reading(), Plain)
        await client.ask(name("Ask"), Plain(), Reading)
        with pytest.raises(BudgetExhaustedError):
            await client.ask(name("Report"), reading(), Plain)
        with pytest.raises(BudgetExhaustedError):
            await client.send(name("Report"), stream(reading()), Plain)
        for asked in (
            client.ask(name("Ask"), Plain(), Reading),
            client.send(name("Watch"), stream(Plain()), Reading),
        ):
            with pytest.raises(RefusedError) as caught:
                await asked
            refusal = caught.value.refusal
            assert (refusal.category, refusal.reason) == (Category.EXHAUSTED, "PRIVACY_BUDGET_EXHAUSTED")
            assert refusal.details == {"budget": "station"}
            assert refusal.retry_after > 0
            assert not refusal.retryable
        with pytest.raises(ProtectionError) as caught:
            await client.ask(name("Report"), Reading(value=RAW), Plain)
        assert of(caught.value).reason == "MISSING_UNIT"
        with pytest.raises(ProtectionError) as caught:
            await client.ask(name("Report"), Plain(), Plain)
        assert of(caught.value).reason == "WRONG_TYPE"
    with pytest.raises(NotOpenError) as caught:
        await client.ask(name("Report"), reading("s2"), Plain)
    assert of(caught.value).retryable
    assert str(RAW) not in caught.value.args[0]


async def test_each_consumer_has_a_quota():
    quota = {"name": "each", "under": "station", "epsilon": 2.0}
    async with opened(epsilon=5.0, quota=[quota]) as mesh:
        server = serving(mesh)
        partner = Client(server, uris=[b"SPIFFE://Partner.example/a"])
        for _ in range(2):
            await partner.ask(name("Ask"), Plain(), Reading)
        with pytest.raises(RefusedError) as caught:
            await partner.ask(name("Ask"), Plain(), Reading)
        assert caught.value.refusal.details == {"budget": "each"}
        assert mesh.ledger.usage(1, consumer_key(b"s1", "spiffe://partner.example/a")) is not None
        await Client(server).ask(
            name("Watch"), Plain(), Reading
        )  # All without a certificate are one consumer.
        sender = Client(server, mesh, consumer="collector")
        await sender.ask(name("Report"), reading(), Plain)
        assert mesh.ledger.usage(1, consumer_key(b"s1", "collector")) is not None


async def test_words_and_metadata_that_could_quote_a_message_stay_at_home(caplog):
    async with opened() as mesh:
        client = Client(serving(mesh), mesh)
        with pytest.raises(RuntimeError, match=HANDLER_FAILED):
            await client.ask(name("Fail"), Plain(), Reading)
        assert "ValueError" in caplog.text
        with pytest.raises(RuntimeError, match=str(RAW)):
            await client.ask(name("Echo"), Plain(text="fail"), Plain)
    assert f"it was {RAW}" not in caplog.text


async def test_metadata_pass_where_the_configuration_says_so():
    calls = []

    async def watch(requests, call):
        calls.append(call)
        call.trailers = TRAILERS
        async for _ in requests:
            yield reading()

    for allowed, passed in (([], ()), (["page"], (("Page", "7"),))):
        async with opened(grpc={"pass_metadata": allowed}) as mesh:
            await Client(Server(mesh, {name("Watch"): Handler(Plain, watch)})).ask(
                name("Watch"), Plain(), Reading
            )
        assert calls[-1].trailers == passed


async def test_another_policy_takes_over_while_rpcs_are_under_way():
    overlays = policy_pb2.Policy()
    overlays.fields[f"{TYPES.package}.Plain.text"].suppress.SetInParent()
    seen = []
    async with opened() as mesh:
        client = Client(serving(mesh, seen), mesh)
        before = mesh.policy_digest

        async def texts():
            yield Plain(text="before")
            await mesh.swap(overlays)
            yield Plain(text="after")

        answers, call = await client.send(name("Echo"), texts(), Plain, [("trace", "1")])
        assert [request.text for request in seen] == ["before", "after"], "it had not attested the new policy"
        assert (call.headers, answers) == ([("trace", "1")], [Plain(), Plain()])
        _, call = await client.ask(name("Echo"), Plain(text="later"), Plain)
        assert mesh.policy_digest != before
        assert (dict(call.headers), seen[-1].text) == ({POLICY_KEY: "protected"}, "")


def test_all_of_this_without_grpc(pytestconfig):
    """The tests above once more, in a process that has not imported gRPC."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "not without_grpc"]
    child = subprocess.run(
        command, cwd=pytestconfig.rootpath, env={**os.environ, ALONE: "1"}, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stdout


@pytest.fixture(scope="module", autouse=True)
def no_grpc():
    yield
    if ALONE in os.environ:
        assert "grpc" not in sys.modules
