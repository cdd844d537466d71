"""Policies that receivers ask for: what senders say, who is refused, and what handlers are told."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading, stream

from dpmesh.mesh.attested_policy import AttestedPolicy
from dpmesh.v1 import policy_pb2
from dpmesh_grpc import peer_policy

NAME = pb.Reading.DESCRIPTOR.full_name
METHODS = ("Report", "ReportAll", "ReportWatch", "ReportChat")


def policy(epoch=0, *, epsilon=1.0, min_epoch=None, digests=()):
    """A policy that costs `epsilon` a message; its methods ask for a policy unless `min_epoch` is None."""
    document = policy_pb2.Policy(epoch=epoch)
    document.messages[NAME].epsilon = epsilon
    for method in METHODS if min_epoch is not None else ():
        required = document.methods[rig.PREFIX + method].require_policy
        required.SetInParent()
        required.min_epoch = min_epoch
        required.digests.extend(digests)
    return document


def digest(mesh):
    return mesh.policy.plan(pb.Reading.DESCRIPTOR).version


class Told:
    """Handlers of all kinds that keep what they are told of the sender's policy."""

    def __init__(self):
        self.policies = []

    def keep(self):
        self.policies.append(peer_policy())

    async def one(self, request, context):
        await asyncio.create_task(self.later())
        return pb.Plain()

    async def later(self):
        self.keep()

    async def all(self, requests, context):
        async for _ in requests:
            self.keep()
        return pb.Plain()

    async def watch(self, request, context):
        for _ in range(2):
            self.keep()
            yield pb.Plain()

    async def written(self, requests, context):
        async for _ in requests:
            self.keep()
            await context.write(pb.Plain())

    def sync_one(self, request, context):
        self.keep()
        return pb.Plain()

    def sync_watch(self, request, context):
        for _ in range(5):
            self.keep()
            yield pb.Plain(text=str(peer_policy()))


CALLS = {
    "Report": lambda stub: stub.Report(reading()),
    "ReportAll": lambda stub: stub.ReportAll(stream(reading())),
    "ReportWatch": lambda stub: drained(stub.ReportWatch(reading())),
    "ReportChat": lambda stub: drained(stub.ReportChat(stream(reading()))),
}


async def drained(call):
    return [response async for response in call]


@pytest.mark.parametrize(
    ("method", "handler"),
    [
        ("Report", "one"),
        ("Report", "sync_one"),
        ("ReportAll", "all"),
        ("ReportWatch", "watch"),
        ("ReportWatch", "sync_watch"),
        ("ReportChat", "written"),
    ],
)
async def test_handlers_are_told_what_the_sender_says_of_its_policy(
    open_mesh, serve, connect, method, handler
):
    sender, receiver, told = await open_mesh(), await open_mesh(), Told()
    target = await serve(mesh=receiver, handlers={method: getattr(told, handler)})
    stub = await connect(target, sender)
    await CALLS[method](stub)
    assert set(told.policies) == {None}, "it says no more than that it protects its requests"
    for epoch, min_epoch, said in ((1, 0, None), (2, 1, 2)):
        told.policies.clear()
        await sender.swap(policy(epoch, epsilon=1.0 / epoch, min_epoch=min_epoch))
        await CALLS[method](stub)
        assert set(told.policies) == {(digest(sender), said)}
    told.policies.clear()
    await CALLS[method](await connect(target))
    assert set(told.policies) == {None}, "the sender protects nothing"
    assert peer_policy() is None


async def test_synchronous_streams_at_a_time_do_not_mix_their_policies(open_mesh, serve, connect):
    told, receiver = Told(), await open_mesh()
    target = await serve(mesh=receiver, handlers={"ReportWatch": told.sync_watch})
    calls, wanted = [], []
    for number in range(4):
        sender = await open_mesh(policy=policy(number, epsilon=1 + number, min_epoch=1))
        wanted.append({str(AttestedPolicy(digest(sender), number))})
        calls.append((await connect(target, sender)).ReportWatch(reading()))
    found = [[] for _ in calls]
    for _ in range(5):
        for texts, call in zip(found, calls, strict=True):
            texts.append((await call.read()).text)
    assert [set(texts) for texts in found] == wanted


@pytest.mark.parametrize("method", METHODS)
async def test_receivers_refuse_older_and_other_policies_and_run_no_handler(
    open_mesh, serve, connect, method
):
    sender, receiver, seen = await open_mesh(), await open_mesh(), rig.Seen()
    stub = await connect(await serve(mesh=receiver, handlers=seen.handlers()), sender)

    async def reason():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CALLS[method](stub)
        found = rig.status(caught.value)
        assert found.code == grpc.StatusCode.FAILED_PRECONDITION
        assert found.info.metadata["method"] == rig.PREFIX + method
        assert digest(sender) not in found.text
        return found.info.reason

    await receiver.swap(policy(5, min_epoch=0))
    assert await reason() == "POLICY_NOT_NAMED"
    await sender.swap(policy(4, min_epoch=0))
    await CALLS[method](stub)
    seen.clear()
    await receiver.swap(policy(6, min_epoch=5))
    assert await reason() == "POLICY_NOT_NAMED"
    await sender.swap(policy(4 + 1, epsilon=0.5, min_epoch=1))
    await CALLS[method](stub)
    taken = digest(sender)
    seen.clear()
    await receiver.swap(policy(7, min_epoch=6))
    assert await reason() == "POLICY_TOO_OLD"
    await receiver.swap(policy(8, min_epoch=0, digests=[taken, "0" * 16]))
    await CALLS[method](stub)
    seen.clear()
    await sender.swap(policy(9, epsilon=0.25, min_epoch=1))
    assert await reason() == "POLICY_NOT_TAKEN"
    assert not seen
