"""The push service: real mutual TLS, real stores; devices that are honest, early, late or lying; services that are down."""

from __future__ import annotations

import asyncio
import random
import time

import grpc
import grpc.aio
import pytest
from cryptography import x509

from dpmesh.errors import RolloutStoreError
from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.reports import outcome_pseudonym
from dpmesh.v1 import rollout_pb2_grpc as rpc
from dpmesh.v1.rollout_pb2 import ReportOutcomeRequest, ReportRefusalsRequest, WatchRequest, WatchResponse
from dpmesh_grpc.rollout import client as client_module
from dpmesh_grpc.rollout.client import RolloutClient
from tests.support.mutual_tls import authority, until

SQLITE = pytest.mark.parametrize("rig", ["sqlite"], indirect=True)
Code = grpc.StatusCode


def request(number, digest, *, epoch=5, taken=True, reason=""):
    pseudonym = outcome_pseudonym(number.to_bytes(32, "big"), epoch)
    return ReportOutcomeRequest(epoch=epoch, digest=digest, pseudonym=pseudonym, taken=taken, reason=reason)


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_devices_hear_of_a_policy_and_are_counted_once(rig):
    rig.repository.offer(4, b"old")
    await rig.serve()
    devices = [await rig.device(n) for n in range(3)]
    await until(lambda: all(each.looks == 1 for each in devices))
    digest = rig.repository.offer(5, b"new")
    await until(lambda: all(each.looks == 2 for each in devices))
    for _ in range(2):
        for each in devices[:2]:
            each.client.report(5, digest, taken=True)
        devices[2].client.report(
            5, digest, taken=False, reason="acme.Report.x: bad, see /etc/fleet/policy.yaml"
        )
    await rig.until(lambda found: (found.acks, found.refused) == (2, 1))
    assert (await rig.newest()).nacks == {"acme.Report.x: bad, see (path)": 1}
    devices[2].client.report(5, digest, taken=True)
    await rig.until(lambda found: (found.acks, found.refused) == (3, 0))


@SQLITE
async def test_a_service_that_starts_again_goes_on_counting(rig):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    first, second = await rig.device(1), await rig.device(2)
    await until(lambda: first.looks == second.looks == 1)
    first.client.report(5, digest, taken=True)
    await rig.until(lambda found: found.acks == 1)
    await rig.stop()
    second.client.report(5, digest, taken=True)  # Nobody is there to take it.
    digest = rig.repository.offer(6, b"newer")
    await rig.serve()
    await until(lambda: first.looks == second.looks == 2)
    first.client.report(6, digest, taken=True)
    await rig.until(lambda found: (found.epoch, found.acks) == (6, 1))
    await until_counts(rig, {6: 1, 5: 2})


async def until_counts(rig, acks):
    async with asyncio.timeout(60):
        while {each.epoch: each.acks for each in await rig.store.counts()} != acks:
            await asyncio.sleep(0.02)


@SQLITE
async def test_the_rotation_of_an_identity_neither_loses_nor_doubles_a_report(rig):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    device = await rig.device(1)
    await until(lambda: device.looks == 1)
    device.client.report(5, digest, taken=True)
    await rig.until(lambda found: found.acks == 1)
    await rig.identity.renew("test")
    device.client.report(5, digest, taken=True)
    second = rig.repository.offer(6, b"newer")
    await until(lambda: device.looks == 2)
    device.client.report(6, second, taken=True)
    await until_counts(rig, {6: 1, 5: 1})


@SQLITE
async def test_strangers_get_nothing(rig):
    rig.repository.offer(5, b"new")
    await rig.serve()
    stranger = await rig.stub(authority())
    assert await code_of(stranger.ReportOutcome(request(1, bytes(32)), timeout=5)) in (
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}") as channel:
        plain = rpc.RolloutServiceStub(channel)
        assert await code_of(plain.ReportOutcome(request(1, bytes(32)), timeout=5)) in (
            Code.UNAVAILABLE,
            Code.DEADLINE_EXCEEDED,
        )
    assert (await rig.newest()).acks == 0


@SQLITE
async def test_reports_that_are_malformed_unknown_or_late_are_refused(rig):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    stub = await rig.stub()
    good = request(1, digest)
    for change in ({"epoch": 0}, {"epoch": 2**63}, {"digest": b"x"}, {"pseudonym": b"x" * 17}):
        bad = ReportOutcomeRequest()
        bad.CopyFrom(good)
        for key, value in change.items():
            setattr(bad, key, value)
        assert await code_of(stub.ReportOutcome(bad)) is Code.INVALID_ARGUMENT
    assert await code_of(stub.ReportOutcome(request(1, digest, epoch=6))) is Code.NOT_FOUND
    large = request(1, digest, taken=False, reason="x" * 5000)
    assert await code_of(stub.ReportOutcome(large)) is Code.RESOURCE_EXHAUSTED
    answer = ReportRefusalsRequest(round=1, epoch=5, pseudonym=bytes(16))
    assert await code_of(stub.ReportRefusals(answer)) is Code.NOT_FOUND  # Nobody asked: all have the policy.
    rig.repository.offer(6, b"newer", share=0.05)
    async for notice in stub.Watch(WatchRequest()):
        if notice.timestamp_version == 2:
            break
    assert notice.refusals_within_ms == 300_000
    assert await code_of(stub.ReportRefusals(answer)) is Code.NOT_FOUND  # Of the round before.
    for change in ({"epoch": 7}, {"pseudonym": b""}):
        bad = ReportRefusalsRequest(**({"round": 2, "epoch": 5, "pseudonym": bytes(16)} | change))
        assert await code_of(stub.ReportRefusals(bad)) is Code.INVALID_ARGUMENT
    await stub.ReportRefusals(ReportRefusalsRequest(round=2, epoch=6, pseudonym=bytes(16)))
    await stub.ReportOutcome(request(1, digest, epoch=5))


@SQLITE
async def test_a_store_that_fails_loses_no_report(rig, monkeypatch):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    count, failed = rig.store.count_outcomes, []

    async def failing(reports):
        failed.append(reports)
        raise RolloutStoreError("the disk is full")

    rig.service._outcomes._write = failing
    stub = await rig.stub()
    assert await code_of(stub.ReportOutcome(request(7, digest))) is Code.UNAVAILABLE
    device = await rig.device(1)
    device.client.report(5, digest, taken=True)
    await until(lambda: len(failed) >= 2)
    rig.service._outcomes._write = count
    await rig.until(lambda found: found.acks == 1)


@SQLITE
async def test_devices_hear_of_a_policy_although_the_store_fails(rig, monkeypatch):
    rig.repository.offer(4, b"old")
    await rig.serve()
    device = await rig.device(1)
    await until(lambda: device.looks == 1)

    async def failing(found):
        raise RolloutStoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(rig.store, "publish", failing)
        digest = rig.repository.offer(5, b"new")
        await until(lambda: device.looks == 2)
        device.client.report(5, digest, taken=True)
        stub = await rig.stub()
        assert await code_of(stub.ReportOutcome(request(7, digest))) is Code.UNAVAILABLE
        assert await code_of(stub.ReportOutcome(request(7, digest, epoch=3))) is Code.NOT_FOUND
    await rig.until(lambda found: (found.epoch, found.acks) == (5, 1))


@SQLITE
async def test_a_store_does_not_tell_who_reported(rig, tmp_path):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    stub = await rig.stub()
    await stub.ReportOutcome(request(1, digest))
    leaf = x509.load_pem_x509_certificate(rig.identity.current.certificates)
    (name,) = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    await rig.stop()
    content = b"".join(path.read_bytes() for path in tmp_path.glob("rollout.db*"))
    assert outcome_pseudonym((1).to_bytes(32, "big"), 5) in content
    assert name.value.rpartition("/")[2].encode() not in content
    assert b"127.0.0.1" not in content
    assert leaf.serial_number.to_bytes(20, "big").lstrip(b"\0") not in content


@SQLITE
async def test_devices_answer_whether_messages_are_refused(rig, monkeypatch):
    """Without the noise, whose law is tested with `randomized`: each device of the ring refuses, and no other."""
    monkeypatch.setattr(client_module, "randomized", lambda bit: bit)
    rig.repository.offer(4, b"old")
    await rig.serve(refusals_within=2.5)
    channel = await rig.channel()
    devices = [await rig.device(n, channel) for n in range(10)]
    await until(lambda: all(each.looks == 1 for each in devices))
    digest = rig.repository.offer(5, b"new", share=0.05, former=(4, b"old"))
    for each in devices:
        each.refused += 1  # Before the question, or under the policy before: it does not count.
    for each in devices[:4]:
        each.takes = 5, digest
    await rig.until(lambda found: found.rounds and found.rounds[0].ring + found.rounds[0].control == 10)
    assert (await rig.newest()).rounds == [Round(4, 4, 6, 0)]


@SQLITE
async def test_nobody_can_ask_a_device_all_the_time(rig):
    """It does not answer the question that is open when it starts, then one question, and no other one within an hour."""
    rig.repository.offer(5, b"new", share=0.05)
    await rig.serve(refusals_within=0.01)
    device = await rig.device(1)
    for n in range(4):
        await until(lambda n=n: device.client._version == n + 1)
        if n == 1:
            await rig.until(lambda found: len(found.rounds) == 1)
        await asyncio.sleep(0.1)
        assert len((await rig.newest()).rounds) == min(n, 1)
        rig.repository.offer(5, b"new", share=0.06 + n / 100)


@SQLITE
@pytest.mark.parametrize("halting", [True, False])
async def test_a_policy_that_a_tenth_of_the_fleet_refuses_halts_by_itself(rig, halting):
    digest = rig.repository.offer(5, b"new", share=0.05)
    await rig.serve(halting=halting)
    stub = await rig.stub()
    for start in range(0, 600, 100):
        await asyncio.gather(
            *(
                stub.ReportOutcome(request(n, digest, taken=n % 10 != 0, reason="" if n % 10 else "bad"))
                for n in range(start, start + 100)
            )
        )
    await rig.until(lambda found: "devices refused the policy" in found.halted)
    await until(lambda: bool(rig.halted) or not halting)
    assert set(rig.halted) == ({5} if halting else set())


@SQLITE
async def test_a_halt_is_tried_until_it_succeeds_and_again_after_another_publication(rig):
    digest = rig.repository.offer(5, b"new", share=0.05)
    await rig.serve()
    tries = []

    async def halt(epoch):
        tries.append(epoch)
        if len(tries) < 2:
            raise OSError("read-only")

    rig.publisher._halt = halt
    stub = await rig.stub()
    await asyncio.gather(*(stub.ReportOutcome(request(n, digest, taken=False)) for n in range(50)))
    await until(lambda: len(tries) == 2)
    for n in range(50, 55):
        await stub.ReportOutcome(request(n, digest, taken=False))
        await rig.publisher.look()
    assert tries == [5, 5]
    rig.repository.offer(5, b"new", share=0.1)
    await until(lambda: len(tries) == 3)


@SQLITE
async def test_a_policy_that_all_have_is_not_halted(rig):
    digest = rig.repository.offer(5, b"new")
    await rig.serve()
    stub = await rig.stub()
    await asyncio.gather(*(stub.ReportOutcome(request(n, digest, taken=False)) for n in range(100)))
    await rig.publisher.look()
    assert ((await rig.newest()).halted, rig.halted) == ("", [])


class Lying(rpc.RolloutServiceServicer):
    """A service that says all the time that there is something new, and takes no report."""

    def __init__(self, spread_ms):
        self.notices, self.spread_ms = 0, spread_ms

    async def Watch(self, request, context):
        while True:
            self.notices += 1
            yield WatchResponse(timestamp_version=random.getrandbits(63), spread_ms=self.spread_ms)
            await asyncio.sleep(0)


@pytest.mark.parametrize("spread_ms", [0, 2**32 - 1])
async def test_a_service_that_lies_can_not_make_a_device_ask_all_the_time(monkeypatch, spread_ms):
    pause = 0.1
    monkeypatch.setattr(client_module, "_BETWEEN_LOOKS", pause)
    server, lying = grpc.aio.server(), Lying(spread_ms)
    rpc.add_RolloutServiceServicer_to_server(lying, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    looks, began = [], time.monotonic()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = RolloutClient(
            channel, bytes(32), look=lambda: looks.append(1), refusals=lambda: 0, epoch=lambda: 0
        )
        async with client:
            client.report(5, bytes(32), taken=True)
            await until(lambda: lying.notices > 1000)
            await until(lambda: not client._outcomes)  # UNIMPLEMENTED: it is not sent again.
            if spread_ms:  # The device waits, and not for as long as the service says.
                assert 0 < client._looking.when() - asyncio.get_running_loop().time() <= 600
            else:
                await until(lambda: len(looks) >= 3)
    await server.stop(None)
    assert len(looks) <= 1 + (time.monotonic() - began) / pause


async def test_without_a_service_nothing_happens():
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        client = RolloutClient(channel, bytes(32), look=lambda: None, refusals=lambda: 0, epoch=lambda: 0)
        async with client:
            for epoch in range(100):
                client.report(epoch, bytes(32), taken=True)
            await asyncio.sleep(0.2)
            assert list(client._outcomes) == list(range(92, 100))


class Silent(rpc.RolloutServiceServicer):
    """A service that says one thing on each stream, and then nothing, as behind a proxy that is frozen."""

    def __init__(self):
        self.streams = 0

    async def Watch(self, request, context):
        self.streams += 1
        yield WatchResponse(timestamp_version=self.streams)
        await asyncio.Event().wait()


async def test_a_stream_that_is_silent_for_too_long_is_replaced(monkeypatch):
    monkeypatch.setattr(client_module, "_SILENCE", 0.1)
    monkeypatch.setattr(client_module, "_SHORTEST_PAUSE", 0.01)
    server, silent = grpc.aio.server(), Silent()
    rpc.add_RolloutServiceServicer_to_server(silent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        RolloutClient(channel, bytes(32), look=lambda: None, refusals=lambda: 0, epoch=lambda: 0) as client,
    ):
        await until(lambda: client._version >= 3)
    await server.stop(None)
