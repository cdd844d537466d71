"""`send_slot` over real RPCs: one message at each slot, whatever the application sends. Only the clock is the test's."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import BAD, PREFIX, is_protected, reading, stream

from dpmesh.errors import ConfigError, ProtectionError
from dpmesh.identity import RotatingIdentity
from dpmesh.identity.ca.authority import LocalSource
from dpmesh.v1 import policy_pb2, privacy_pb2
from dpmesh_grpc import (
    PacedSender,
    aio_client_interceptors,
    rotating_channel,
    rotating_server_credentials,
    slot_cover,
)
from tests.support import mutual_tls
from tests.support.slot_clock import SlotClock

COVER = pb.Reading(station="s1")
METHODS = ("Report", "ReportAll", "ReportChat")


def slotted() -> policy_pb2.Policy:
    policy = policy_pb2.Policy()
    for method in METHODS:
        policy.methods[PREFIX + method].send_slot.FromSeconds(1)
    return policy


@pytest.fixture
def clock(monkeypatch):
    return SlotClock(monkeypatch)


class Received(asyncio.Queue):
    """What a server receives, one by one."""

    async def one(self, request, context):
        self.put_nowait(request)
        return pb.Plain(text=request.station)

    async def all(self, requests, context):
        async for request in requests:
            self.put_nowait(request)
        return pb.Plain(text="done")

    async def chat(self, requests, context):
        async for request in requests:
            self.put_nowait(request)
            yield pb.Plain()

    def handlers(self):
        return {"Report": self.one, "ReportAll": self.all, "ReportChat": self.chat}


@pytest.fixture
async def rigged(open_mesh, serve, connect, clock):
    """Makes a mesh, its stub, and what the server receives."""

    async def made(**options):
        mesh = await open_mesh(policy=slotted(), **options)
        received = Received()
        return mesh, await connect(await serve(handlers=received.handlers()), mesh), received

    return made


async def passing(clock, moments, call) -> None:
    """Lets slots pass until an RPC is over."""
    task = asyncio.create_task(_pass(clock, moments))
    try:
        await call
    finally:
        task.cancel()


async def _drained(call):
    async for _ in call:
        pass


async def _pass(clock, moments):
    for moment in moments:
        await clock.pass_until(float(moment))


@pytest.mark.parametrize("form", ["iterator", "write"])
@pytest.mark.parametrize("method", ["ReportAll", "ReportChat"])
async def test_a_stream_sends_one_message_at_each_slot(rigged, clock, method, form):
    _, stub, received = await rigged()
    held = asyncio.Event()

    async def requests():
        yield reading()
        await held.wait()

    with slot_cover(COVER):
        call = getattr(stub, method)(requests() if form == "iterator" else None)
    if form == "write":
        await call.write(reading())
    for number in range(1, 6):
        assert received.empty()
        await clock.pass_until(float(number))
        assert is_protected(await received.get())
    held.set()
    if form == "write":
        await call.done_writing()
    await passing(clock, itertools.count(6), _drained(call) if method == "ReportChat" else call)
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("method", ["ReportAll", "ReportChat"])
async def test_a_stream_without_a_cover_is_refused(rigged, method):
    _, stub, received = await rigged()
    call = getattr(stub, method)(stream(reading()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if method == "ReportChat" else call)
    assert rig.status(caught.value).info.reason == "SEND_SLOT"
    assert "slot_cover" in caught.value.details()
    assert received.empty()


async def test_a_request_outside_of_slots_is_refused(rigged):
    _, stub, received = await rigged()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading())
    assert rig.status(caught.value).info.reason == "SEND_SLOT"
    assert "dpmesh_grpc.PacedSender" in caught.value.details()
    assert received.empty()


async def test_a_refused_message_ends_its_stream_at_its_slot(rigged, clock):
    _, stub, received = await rigged()
    with slot_cover(COVER):
        call = stub.ReportAll(stream(BAD))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await passing(clock, [1], call)
    assert (rig.status(caught.value).info.reason, received.empty()) == ("MISSING_UNIT", True)


@pytest.mark.parametrize("then", ["suppress", "reject"])
async def test_an_exhausted_budget_leaves_no_gap_in_a_stream_or_ends_it_at_a_slot(rigged, clock, then):
    budget = {"name": "station", "epsilon": 1, "accounting": "pure", "window": "24h", "on_exhausted": then}
    _, stub, received = await rigged(budget=[budget])
    with slot_cover(COVER):
        call = stub.ReportAll(stream(*[reading()] * 3))
    await clock.pass_until(1.0)
    assert len((await received.get()).levels) == 4
    if then == "suppress":
        for number in (2, 3):
            await clock.pass_until(float(number))
            assert len((await received.get()).levels) == 0
        await passing(clock, itertools.count(4), call)
    else:
        assert not call.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await passing(clock, [2], call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_single_requests_share_the_slots_with_covers(rigged, clock):
    mesh, stub, received = await rigged()
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
        await clock.pass_until(1.0)
        assert is_protected(await received.get())
        answers = [asyncio.create_task(sender.send(reading("s2"))) for _ in range(2)]
        stations = []
        for number in range(2, 6):
            await clock.pass_until(float(number))
            got = await received.get()
            assert is_protected(got)
            stations.append(got.station)
        # The cover of the second slot was released before there was a request.
        assert stations == ["s1", "s2", "s2", "s1"]
        assert [(await answer).text for answer in answers] == ["s2", "s2"]
        passing = asyncio.create_task(_pass(clock, itertools.count(6)))
    passing.cancel()
    with pytest.raises(ProtectionError, match="SLOT_SENDER_CLOSED"):
        await sender.send(reading())


async def test_every_slot_is_filled_while_identities_rotate(open_mesh, serve, stack, clock):
    mesh, received, authority = await open_mesh(policy=slotted()), Received(), mutual_tls.authority()
    ours = await stack.enter_async_context(RotatingIdentity(LocalSource(authority, server=True)))
    target = await serve(handlers=received.handlers(), credentials=rotating_server_credentials(ours))
    identity = await stack.enter_async_context(RotatingIdentity(LocalSource(authority)))
    channel = rotating_channel(target, identity, interceptors=aio_client_interceptors(mesh))
    await stack.enter_async_context(channel)
    async with PacedSender(mesh, channel, PREFIX + "Report", COVER) as sender:
        sending = asyncio.create_task(sender.send(reading("s2")))
        stations = []
        for number in range(1, 6):
            await clock.pass_until(float(number))
            got = await received.get()
            assert is_protected(got)
            stations.append(got.station)
            await identity.renew("test")
        assert stations == ["s1", "s2", "s1", "s1", "s1"]
        assert (await sending).text == "s2"
        passing = asyncio.create_task(_pass(clock, itertools.count(6)))
    passing.cancel()


async def test_a_cover_leaves_instead_of_a_refused_request(rigged, clock):
    mesh, stub, received = await rigged()
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
        sending = asyncio.create_task(sender.send(BAD))
        await clock.pass_until(1.0)
        await received.get()
        await clock.pass_until(2.0)
        assert is_protected(await received.get())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sending
        assert rig.status(caught.value).info.reason == "MISSING_UNIT"
        passing = asyncio.create_task(_pass(clock, itertools.count(3)))
    passing.cancel()


async def test_a_full_queue_refuses_and_a_cancelled_request_never_leaves(rigged, clock):
    mesh, stub, received = await rigged()
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER, queue=1) as sender:
        given_up = asyncio.create_task(sender.send(reading("s2")))
        await asyncio.sleep(0)
        with pytest.raises(ProtectionError, match="SLOT_QUEUE_FULL"):
            await sender.send(reading("s3"))
        given_up.cancel()
        for number in range(1, 4):
            await clock.pass_until(float(number))
            assert (await received.get()).station == "s1"
        passing = asyncio.create_task(_pass(clock, itertools.count(4)))
    passing.cancel()


async def test_left_by_an_exception_it_ends_at_once(rigged):
    mesh, stub, received = await rigged()
    with pytest.raises(ZeroDivisionError):
        async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
            sending = asyncio.create_task(sender.send(reading()))
            await asyncio.sleep(0)
            raise ZeroDivisionError
    with pytest.raises((ProtectionError, asyncio.CancelledError)):
        await sending
    assert received.empty()


@pytest.mark.parametrize("cover", [pb.Reading(), pb.Reading(station="s1", exact=float("nan"))])
async def test_a_cover_that_cannot_be_released_is_refused_early(rigged, clock, cover):
    """If only covers were refused, slots with a request would be told from those without one."""
    mesh, stub, received = await rigged()
    with pytest.raises(ProtectionError, match="SLOT_COVER"):
        async with PacedSender(mesh, stub.channel, PREFIX + "Report", cover):
            pass
    with slot_cover(cover):
        call = stub.ReportAll(stream(reading()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 60)
    assert rig.status(caught.value).info.reason == "SLOT_COVER"
    assert received.empty()


async def test_a_stream_with_a_cover_of_another_type_is_refused(rigged, clock):
    _, stub, received = await rigged()
    with slot_cover(pb.Plain()):
        call = stub.ReportAll(stream(reading()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 60)
    assert (rig.status(caught.value).info.reason, received.empty()) == ("SLOT_COVER", True)


async def test_under_a_policy_that_refuses_the_cover_requests_do_not_leave_either(rigged, clock):
    mesh, stub, received = await rigged()
    lenient = slotted()
    exact = lenient.fields["dpmesh.test.stations.v1.Reading.exact"].numeric
    exact.lower, exact.upper, exact.output = 0, 1, privacy_pb2.Numeric.IN_RANGE
    await mesh.swap(lenient)
    cover = pb.Reading(station="s1", exact=float("nan"))
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", cover) as sender:
        await clock.pass_until(1.0)
        await received.get()
        await mesh.swap(slotted())  # A NaN is refused.
        sending = asyncio.create_task(sender.send(reading()))
        await clock.pass_until(2.0)
        await received.get()  # What was released under the policy before.
        passing = asyncio.create_task(_pass(clock, itertools.count(3)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(sending, 60)
        assert rig.status(caught.value).info.reason == "SLOT_COVER"
        assert received.empty()
    passing.cancel()


async def test_an_exhausted_budget_refuses_requests_and_covers(rigged, clock, caplog):
    mesh, stub, received = await rigged(epsilon=1)
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
        await clock.pass_until(1.0)
        await received.get()
        sending = asyncio.create_task(sender.send(reading()))
        await clock.pass_until(2.0)
        passing = asyncio.create_task(_pass(clock, itertools.count(3)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sending
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    passing.cancel()
    assert received.empty()
    assert "a cover was not sent, or its RPC failed: RESOURCE_EXHAUSTED" in caplog.text


async def test_on_a_closed_channel_requests_fail(rigged, clock):
    mesh, stub, received = await rigged()
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
        sending = asyncio.create_task(sender.send(reading()))
        await stub.channel.close()
        task = asyncio.create_task(_pass(clock, itertools.count(1)))
        with pytest.raises(Exception, match=r"[Cc]losed"):
            await sending
    task.cancel()
    assert received.empty()


@pytest.mark.parametrize(
    ("method", "cover", "names"),
    [
        (PREFIX + "ReportAll", COVER, "method"),
        ("/a.B/C", COVER, "method"),
        (PREFIX + "Report", pb.Plain(), "cover"),
    ],
)
async def test_what_does_not_fit_is_refused_early(rigged, method, cover, names):
    mesh, stub, _ = await rigged()
    with pytest.raises(ConfigError, match=names):
        PacedSender(mesh, stub.channel, method, cover)


@pytest.mark.parametrize("queue", [0, -1, "secret", 1.5, True])
async def test_a_queue_that_holds_no_request_is_refused_early(rigged, queue):
    mesh, stub, _ = await rigged()
    with pytest.raises(ConfigError, match="^queue: has to be a whole number of at least 1$"):
        PacedSender(mesh, stub.channel, PREFIX + "Report", COVER, queue=queue)


@pytest.mark.parametrize("cover", [None, "secret", pb.Reading])
def test_a_cover_that_is_no_message_is_refused_early(cover):
    with pytest.raises(ConfigError, match="^cover: has to be a request"), slot_cover(cover):
        pass


async def test_a_channel_without_protection_is_refused(open_mesh, serve, connect):
    mesh = await open_mesh(policy=slotted())
    stub = await connect(await serve(handlers={}))
    with pytest.raises(ConfigError):
        PacedSender(mesh, stub.channel, PREFIX + "Report", COVER)


async def test_without_slots_or_in_observe_mode_it_sends_at_once(open_mesh, serve, connect):
    for options in ({"policy": slotted(), "mode": "observe"}, {}):
        mesh = await open_mesh(**options)
        received = Received()
        stub = await connect(await serve(handlers=received.handlers()), mesh)
        async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
            assert (await sender.send(reading("s2"))).text == "s2"
        assert received.qsize() == 1


async def test_a_sender_that_began_in_observe_mode_sends_nothing_outside_of_slots_after_it(
    open_mesh, serve, connect
):
    mesh = await open_mesh(policy=slotted(), mode="observe")
    received = Received()
    stub = await connect(await serve(handlers=received.handlers()), mesh)
    enforced = slotted()
    enforced.mode = policy_pb2.ENFORCE
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER) as sender:
        await sender.send(reading("s2"))
        await mesh.swap(enforced)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sender.send(reading("s2"))
        assert rig.status(caught.value).info.reason == "SEND_SLOT"
    assert received.qsize() == 1
    async with PacedSender(mesh, stub.channel, PREFIX + "Report", COVER):
        pass
