"""A fleet of 200 devices follows signed policies: officers tighten and loosen, thieves try, and estimates stay right.

    python examples/rollout/rollout.py [--devices 200]

Every device is a mesh of its own, with its own ledger and its own folder, in one process. The officers' commands are
those that people type.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

import dpmesh
from dpmesh.estimate import Estimate, Reader
from dpmesh.mesh.mesh import Mesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors, peer_policy

sys.path.insert(0, str(Path(__file__).parent))

import health_pb2 as pb
import health_pb2_grpc

SHARES = {pb.HEALTH_GOOD: 0.4, pb.HEALTH_WORN: 0.3, pb.HEALTH_FAULTY: 0.2, pb.HEALTH_STOPPED: 0.1}
REPORT = pb.Report.DESCRIPTOR.full_name
# Seconds. Two hundred devices in one process look at the repository every 3 s, fewer ones more often.
POLL_OF_EACH = 0.015
BETWEEN_REPORTS = 1.0
WINDOW = 20

POLICY = """\
epoch: {epoch}
budgets: [{{name: device, key: unit, epsilon: 1000, accounting: pure, window: {window}s}}]
fields:
  {name}.health: {{categorical: {{epsilon: {epsilon}}}}}
...
"""


class Receiver(health_pb2_grpc.FleetServicer):
    """Stores each report with the digest of the policy under which it was protected."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, pb.Report]] = []

    async def Send(self, request: pb.Report, context: Any) -> pb.Ack:
        """Takes one."""
        policy = peer_policy()
        assert policy is not None
        self.stored.append((policy.digest, request))
        return pb.Ack()


class Office:
    """The officers of the fleet, and their folder.

    Args:
        folder: Keys, policies and the repository are in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.epoch = 0
        for owner in ("root", "alice", "bob", "online", "rings"):
            self.run("key", f"{owner}.key", quiet=True)
        officers = ["--officer", "alice.key.pub", "--officer", "bob.key.pub"]
        others = ["--root", "root.key.pub", "--root-key", "root.key", "--online", "online.key.pub"]
        self.run("init", "repository", "--fleet", "cars", *officers, *others, "--rings", "rings.key.pub")

    def run(self, *words: str, quiet: bool = False) -> None:
        """Runs `dpmesh policy ...` in the folder."""
        if not quiet:
            print("   $ dpmesh policy", *words)
        program = "import sys; from dpmesh.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "policy", *words]
        done = subprocess.run(  # noqa: S603 - the command is this program
            command, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)

    def sign(self, epsilon: float, *officers: str, reason: str = "") -> None:
        """Writes the next policy, and has officers sign it."""
        self.epoch += 1
        text = POLICY.format(epoch=self.epoch, window=WINDOW, name=REPORT, epsilon=epsilon)
        (self.folder / f"policy-{self.epoch}.yaml").write_text(text, encoding="utf-8")
        why = ["--reason", reason] if reason else []
        for officer in officers:
            file = f"policy-{self.epoch}.yaml"
            self.run("sign", file, "--repo", "repository", "--key", f"{officer}.key", *why)

    def publish(self, share: float = 1.0) -> None:
        """Publishes it to a part of the fleet."""
        keys = ["--key", "online.key", "--rings-key", "rings.key"]
        self.run("publish", "--repo", "repository", *keys, "--share", f"{share:g}")


class Fleet:
    """The devices."""

    def __init__(self) -> None:
        self.meshes: list[Mesh] = []
        self.poll = 0.0
        self.sent = 0
        self.refused = 0

    def epochs(self) -> Counter[int]:
        """How many devices have which epoch in force."""
        return Counter(mesh.policy_status.epoch for mesh in self.meshes)

    def show(self, text: str) -> None:
        """Prints where the fleet stands."""
        parts = ", ".join(f"epoch {epoch}: {count}" for epoch, count in sorted(self.epochs().items()))
        print(f"   {text}: {parts}")

    async def until(self, done: Callable[[], bool], seconds: float = 90) -> None:
        """Waits for the fleet."""
        async with asyncio.timeout(seconds):
            while not done():  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def settle(self) -> None:
        """Waits until each device has looked twice."""
        await asyncio.sleep(2 * 1.1 * self.poll + 1)

    @asynccontextmanager
    async def running(self, office: Office, target: str, devices: int) -> AsyncIterator[None]:
        """Opens the devices; each reports once a second."""
        self.poll = max(0.3, POLL_OF_EACH * devices)
        async with AsyncExitStack() as stack:
            reporting = []
            for number in range(devices):
                policy = {
                    "source": f"tuf+file://{office.repository}",
                    "root": str(office.repository / "metadata" / "1.root.json"),
                    "cache": str(office.folder / "devices" / str(number)),
                    "poll": f"{self.poll}s",
                }
                mesh = dpmesh.open({"ledger": {"url": "memory:"}, "policy": policy})
                self.meshes.append(await stack.enter_async_context(mesh))
                channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
                stub = health_pb2_grpc.FleetStub(await stack.enter_async_context(channel))  # type: ignore[no-untyped-call]
                reporting.append(asyncio.create_task(self._report(stub, f"car-{number}")))
            try:
                yield
            finally:
                for task in reporting:
                    task.cancel()
                await asyncio.gather(*reporting, return_exceptions=True)

    async def _report(self, stub: Any, device: str) -> None:
        states, weights = list(SHARES), list(SHARES.values())
        while True:
            await asyncio.sleep(BETWEEN_REPORTS * random.uniform(0.5, 1.5))  # noqa: S311
            health = random.choices(states, weights)[0]  # noqa: S311
            try:
                await stub.Send(pb.Report(device=device, health=health))
                self.sent += 1
            except grpc.aio.AioRpcError:
                self.refused += 1


async def roll_out(devices: int, folder: Path) -> None:
    """The whole story."""
    folder.joinpath("thief").mkdir()
    print("1. The officers make their keys and the repository, and publish the first policy: epsilon 2")
    office, receiver, fleet = Office(folder), Receiver(), Fleet()
    office.sign(2, "alice")
    office.publish()
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(dpmesh.open({"ledger": {"url": "memory:"}}))
        server = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
        health_pb2_grpc.add_FleetServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(fleet.running(office, f"127.0.0.1:{port}", devices))
        fleet.show("the fleet")
        await fleet.settle()
        await _tighten(office, fleet)
        await _loosen(office, fleet)
        await _attack(office, fleet, folder / "kept")
    _estimate(receiver, office, fleet)


async def _tighten(office: Office, fleet: Fleet) -> None:
    print("2. An officer tightens: epsilon 1. One signature, ring by ring, and at once")
    before = folder_copy(office.repository, office.folder / "kept")
    assert before.exists()
    office.sign(1, "alice")
    for share in (0.05, 0.5, 1.0):
        office.publish(share)
        await fleet.settle()
        fleet.show(f"{share:.0%} of the fleet")
    await fleet.until(lambda: fleet.epochs()[2] == len(fleet.meshes))


async def _loosen(office: Office, fleet: Fleet) -> None:
    print("3. One officer alone loosens: epsilon 2 again")
    office.sign(2, "alice", reason="more detail for the recall")
    office.publish()
    await fleet.settle()
    fleet.show("the fleet")
    print(f"   a device says: {fleet.meshes[0].policy_status.refused}")
    print("4. Two officers loosen, with a reason. It begins with the next window of the budget")
    office.sign(2, "alice", "bob", reason="more detail for the recall")
    office.publish()
    await fleet.until(lambda: fleet.epochs()[4] == len(fleet.meshes))
    fleet.show("the fleet")


async def _attack(office: Office, fleet: Fleet, old: Path) -> None:
    print("5. A thief has the web server, and old files, but no key of an officer")
    new = folder_copy(office.repository, office.folder / "newest")
    stranger = Office(office.folder / "thief")
    stranger.epoch = 8
    stranger.sign(64, "alice", "bob", reason="mine")
    stranger.publish()
    forged = office.folder / "thief" / "repository"
    stamp = "metadata/timestamp.json"
    attacks: list[tuple[str, Callable[[Path], object]]] = [
        ("all files of epoch 1 again", lambda live: replace(live, old)),
        ("the old timestamp with new files", lambda live: copy(old, live, stamp)),
        (
            "old targets under the new name",
            lambda live: copy(old, live, "metadata/1.targets.json", newest(live)),
        ),
        ("a policy signed by other keys", lambda live: replace(live, forged)),
        ("no signatures", lambda live: (live / newest(live)).write_text('{"signatures": [], "signed": {}}')),
        ("garbage", lambda live: (live / stamp).write_bytes(b"\0" * 1000)),
        ("10 MB of garbage", lambda live: (live / stamp).write_bytes(b"{" * 10_000_000)),
        ("nothing at all", shutil.rmtree),
    ]
    accepted = 0
    for name, attack in attacks:
        attack(office.repository)
        await fleet.settle()
        moved = sum(count for epoch, count in fleet.epochs().items() if epoch != office.epoch)
        accepted += moved
        print(f"   {name:35} accepted by {moved} of {len(fleet.meshes)} devices")
        replace(office.repository, new)
    assert accepted == 0
    await fleet.settle()
    fleet.show("the fleet")


def _estimate(receiver: Receiver, office: Office, fleet: Fleet) -> None:
    print(f"6. The receiver has {len(receiver.stored):,} reports; {fleet.refused} were refused")
    digests = list(dict.fromkeys(digest for digest, _ in receiver.stored))
    # In the order in which they came: that of epoch 1, which epoch 4 has again, and that of epoch 2.
    policies = {digests[0]: office.folder / "policy-1.yaml", digests[1]: office.folder / "policy-2.yaml"}
    right = Reader(pb.Report, policies=policies).frequencies("health", receiver.stored)
    wrong = Reader(pb.Report, office.folder / "policy-2.yaml").frequencies(
        "health", [r for _, r in receiver.stored]
    )
    print("   health            truth   each by its own law       all by one law")
    for state, share in SHARES.items():
        name = pb.Health.Name(state)
        print(f"   {name:16} {share:6.3f}   {_said(right[name])}   {_said(wrong[name])}")


def _said(estimate: Estimate) -> str:
    return f"{estimate.value:6.3f} [{estimate.low:6.3f}, {estimate.high:6.3f}]"


def folder_copy(source: Path, target: Path) -> Path:
    """Copies a folder."""
    return Path(shutil.copytree(source, target))


def replace(live: Path, other: Path) -> None:
    """Puts another repository in the place of one."""
    shutil.rmtree(live, ignore_errors=True)
    shutil.copytree(other, live)


def copy(source: Path, target: Path, name: str, other: str = "") -> None:
    """Copies a file of a repository to another one."""
    shutil.copyfile(source / name, target / (other or name))


def newest(live: Path) -> str:
    """The newest targets of a repository."""
    found = max(live.glob("metadata/*.targets.json"), key=lambda path: int(path.name.partition(".")[0]))
    return f"metadata/{found.name}"


def main() -> None:
    """Reads the arguments and runs it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=200)
    devices = parser.parse_args().devices
    logging.getLogger("dpmesh").setLevel(logging.CRITICAL)  # Each device says what it refuses.
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(roll_out(devices, Path(name)))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
