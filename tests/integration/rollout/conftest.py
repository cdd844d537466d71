"""A push service behind mutual TLS, its repository and its store; devices with identities of the same authority."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.rollout.push.store import open_store
from dpmesh.v1 import rollout_pb2_grpc as rpc
from dpmesh_grpc.rollout.client import RolloutClient
from dpmesh_grpc.rollout.server import Publisher, RolloutService, rollout_server
from dpmesh_grpc.rotation.channel import rotating_channel
from tests.support.mutual_tls import authority
from tests.support.pushed_repositories import PushedRepository


class Device:
    """A device.

    Attributes:
        takes: Epoch and digest of the policy that it takes at the next look; it refuses a message under it. None: none.
        looks: How often it looked.
        refused: How many messages it has refused.
    """

    def __init__(self, number: int, channel, **more) -> None:
        self.looks = self.refused = 0
        self.epoch = 4
        self.takes = None
        self.client = RolloutClient(
            channel,
            number.to_bytes(32, "big"),
            look=self._look,
            refusals=lambda: self.refused,
            epoch=lambda: self.epoch,
            **more,
        )

    def _look(self) -> None:
        self.looks += 1
        if self.takes is not None:
            (self.epoch, digest), self.takes = self.takes, None
            self.client.report(self.epoch, digest, taken=True)
            self.refused += 1


class Rig:
    """All parts. `serve` starts the service, `stop` ends it."""

    def __init__(self, stack: AsyncExitStack, folder, url: str) -> None:
        self.stack, self.url = stack, url
        self.repository = PushedRepository(folder / "repository")
        self.authority = authority()
        self.halted: list[int] = []
        self._service_stack = AsyncExitStack()
        self.port = 0

    async def serve(self, *, halting: bool = True, **options) -> None:
        async def halt(epoch: int) -> None:
            self.halted.append(epoch)

        stack = self._service_stack = AsyncExitStack()
        self.store = open_store(self.url)
        await self.store.open(create=True)
        stack.push_async_callback(self.store.close)
        self.service = RolloutService(self.store, **options)
        self.publisher = Publisher(
            self.repository.folder, self.store, self.service, halt if halting else None
        )
        await self.publisher.look()
        source = LocalSource(self.authority, server=True)
        identity = await stack.enter_async_context(RotatingIdentity(source))
        address = f"127.0.0.1:{self.port}"
        self.port = await stack.enter_async_context(rollout_server(self.service, identity, address))
        looking = asyncio.create_task(self.publisher.run())
        stack.callback(looking.cancel)

    async def stop(self) -> None:
        await self._service_stack.aclose()

    async def channel(self, signer=None):
        identity = RotatingIdentity(LocalSource(signer or self.authority))
        self.identity = await self.stack.enter_async_context(identity)
        return await self.stack.enter_async_context(rotating_channel(f"127.0.0.1:{self.port}", identity))

    async def stub(self, signer=None):
        return rpc.RolloutServiceStub(await self.channel(signer))

    async def device(self, number: int, channel=None, **more) -> Device:
        device = Device(number, channel or await self.channel(), **more)
        await self.stack.enter_async_context(device.client)
        return device

    async def newest(self):
        return (await self.store.counts())[0]

    async def until(self, condition, seconds: float = 60.0) -> None:
        """Waits until the counts of the newest epoch are as they shall be."""
        async with asyncio.timeout(seconds):
            while not condition(await self.newest()):
                await asyncio.sleep(0.02)


@pytest.fixture(params=["sqlite", "postgres"])
async def rig(request, tmp_path):
    url = f"sqlite:///{tmp_path}/rollout.db"
    if request.param == "postgres":
        url = request.getfixturevalue("database")
    async with AsyncExitStack() as stack:
        rig = Rig(stack, tmp_path, url)
        stack.push_async_callback(rig.stop)
        yield rig
