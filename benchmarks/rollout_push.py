"""Roll-outs: how long it takes from publishing a policy until 95 % of 1,000 devices have said that they took it.

The push service is a process of its own, with mutual TLS and its store in a file. The devices share a process and 40
connections. Each is the client that real devices run: at a notice it reads the published policy, parses it, and
reports. Verifying signatures and swapping a mesh are not in it, because a real device does that alone on its machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.table import Row
from dpmesh import files
from dpmesh.identity.ca.authority import Authority, LocalSource, Root
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.policy import overlay_file
from dpmesh.rollout.push.store import open_store
from dpmesh_grpc.rollout.client import RolloutClient
from dpmesh_grpc.rotation.channel import rotating_channel

DEVICES = 1000
TO_A_CHANNEL = 25
PUBLICATIONS = 5
TRUST_DOMAIN = "fleet.example"


def publish(repository: Path, epoch: int) -> bytes:
    """Publishes a policy as far as the push service reads it, without signatures; returns the document."""
    document = json.dumps({"epoch": epoch, "messages": {"acme.Report": {"epsilon": 1.0}}}).encode()
    target = {"custom": {"epoch": epoch}, "hashes": {"sha256": hashlib.sha256(document).hexdigest()}}
    metadata = repository / "metadata"
    files.write(repository / "policy.json", document)
    files.write(metadata / f"{epoch}.targets.json", _signed(targets={"policy.json": target}))
    files.write(metadata / f"{epoch}.snapshot.json", _signed(meta={"targets.json": {"version": epoch}}))
    stamp = _signed(version=epoch, meta={"snapshot.json": {"version": epoch}})
    files.write(metadata / "timestamp.json", stamp)
    return document


def _signed(**content: Any) -> bytes:
    return json.dumps({"signed": content, "signatures": []}).encode()


@asynccontextmanager
async def serving(folder: Path, repository: Path, authority: Authority, url: str) -> AsyncIterator[int]:
    """Runs the push service in a process of its own; gives its port."""
    identity = await LocalSource(authority, server=True).fetch()
    names = ("certificate.pem", "key.pem", "trust_bundle.pem")
    for name, data in zip(names, (identity.certificates, identity.key, identity.trust_bundle), strict=True):
        files.write(folder / name, data)
    options = ["--repo", repository, "--identity", folder, "--listen", "127.0.0.1:0", "--store", url]
    command = [sys.executable, "-c", "from dpmesh.cli import main; main()", "policy", "serve"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, *map(str, options), stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield int((await process.stdout.readline()).rpartition(b":")[2])
    finally:
        process.terminate()
        await process.wait()


class Device:
    """A device that takes each policy that it is told of."""

    def __init__(self, number: int, channel: Any, document: Path) -> None:
        self._document = document
        self.client = RolloutClient(
            channel,
            number.to_bytes(32, "big"),
            look=self._look,
            refusals=lambda: 0,
            epoch=lambda: 0,
        )

    def _look(self) -> None:
        content = self._document.read_bytes()
        epoch = overlay_file.parse_bytes(content, "policy.json").epoch
        self.client.report(epoch, hashlib.sha256(content).digest(), taken=True)


async def push() -> list[float]:
    """Seconds from each publication until 95 % of the devices are counted."""
    with tempfile.TemporaryDirectory() as name:
        folder, now = Path(name), time.time()
        repository = folder / "repository"
        (repository / "metadata").mkdir(parents=True)
        publish(repository, 1)
        authority = Root.create(TRUST_DOMAIN, now=now).sign_intermediate(now=now)
        url = f"sqlite:///{folder}/rollout.db"
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            port = await enter(serving(folder, repository, authority, url))
            store = open_store(url)
            await store.open(create=False)
            stack.push_async_callback(store.close)
            for start in range(0, DEVICES, TO_A_CHANNEL):
                identity = await enter(RotatingIdentity(LocalSource(authority)))
                channel = await enter(rotating_channel(f"127.0.0.1:{port}", identity))
                for number in range(start, start + TO_A_CHANNEL):
                    await enter(Device(number, channel, repository / "policy.json").client)
            counted = partial(_counted, store)
            await counted(1, DEVICES)
            seconds = []
            for epoch in range(2, 2 + PUBLICATIONS):
                await asyncio.sleep(2)
                began = time.perf_counter()
                publish(repository, epoch)
                await counted(epoch, DEVICES * 95 // 100)
                seconds.append(time.perf_counter() - began)
                await counted(epoch, DEVICES)
            return seconds


async def _counted(store: Any, epoch: int, devices: int) -> None:
    """Waits until so many devices have taken an epoch."""
    async with asyncio.timeout(120):
        while not any(each.epoch == epoch and each.acks >= devices for each in await store.counts()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def rows() -> Iterator[Row]:
    """The slowest of five publications."""
    seconds = asyncio.run(push())
    yield Row(
        f"publish to 95 % of {DEVICES} devices counted, slowest of {PUBLICATIONS}",
        max(seconds),
        "s",
        "below 5",
    )
