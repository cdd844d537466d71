"""Devices behind one egress that rotate their identities: can whoever sees everything tell which sessions are one device's?

Everything is what the product does: a rotating identity from the embedded CA and a rotating channel for each device,
protected messages with ids, a real server, and a tap on loopback through which all connections go. Seen are: the peer's
certificate, metadata and messages by the server; both hellos and the lengths of records by an observer; ports by both.
Times are left out here and reported apart: that a device's sessions follow each other is not hidden.
"""

from __future__ import annotations

import asyncio
import random
import resource
from contextlib import AsyncExitStack

import grpc.aio
import pytest
from cryptography import x509

import dpmesh
from dpmesh.identity import RotatingIdentity
from dpmesh.identity.ca.authority import LocalSource, Root
from dpmesh_grpc import aio_client_interceptors, peer_interceptor, rotating_server_credentials
from dpmesh_grpc.rotation.channel import rotating_channel
from tests.support.linkage import Attacker, Session, Tap, followed, wire
from tests.support.protos import compiled

TYPES = compiled(
    """message Ping { string id = 1 [(dpmesh.v1.field).message_id = {}];
    string device = 2 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];
    double load = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 100 epsilon: 1}]; }
    message Pong { bool ok = 1; }"""
)
METHOD = "/acme.Pings/Send"
CONFIG = {
    "ledger": {"url": "memory:"},
    "budget": [{"name": "lifetime", "epsilon": 1e6, "accounting": "pure", "window": "lifetime"}],
}


class Server:
    """Notes what it sees of each connection."""

    def __init__(self) -> None:
        # By port and key: the system hands out the port of a connection that has ended again.
        self.sessions: dict[tuple[int, bytes], Session] = {}

    async def handle(self, request, context):
        port = int(context.peer().rpartition(":")[2])
        leaf = x509.load_pem_x509_certificate(context.auth_context()["x509_pem_cert"][0])
        session = self.sessions[port, leaf.signature] = Session()
        for name, part in parts(leaf).items():
            session.blobs[f"certificate: {name}"] = part
        for key, value in context.invocation_metadata():
            session.blobs[f"metadata: {key}"] = value if isinstance(value, bytes) else value.encode()
        # The noisy number is what the rest is compared with, so it is left out: it tells of the device what it may.
        session.blobs["message: id"] = request.id.encode()
        session.blobs["message: rest"] = request.device.encode()
        session.blobs["peer identities"] = b"".join(context.peer_identities() or ())
        session.numbers["serial"] = leaf.serial_number
        session.numbers["message id"] = int(request.id, 16)
        session.numbers["port"] = port
        return TYPES.Pong(ok=True)


def parts(leaf: x509.Certificate) -> dict[str, bytes]:
    """A certificate's parts but for its times, whose distance is kept."""
    extensions = {entry.oid.dotted_string: entry.value.public_bytes() for entry in leaf.extensions}
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    key = leaf.public_key().public_numbers()
    return {
        **extensions,
        "subject": leaf.subject.public_bytes(),
        "issuer": leaf.issuer.public_bytes(),
        "life": str(life).encode(),
        "key": key.x.to_bytes(32, "big") + key.y.to_bytes(32, "big"),
        "signature": leaf.signature,
    }


async def sessions(devices: int, rounds: int, metadata=None, options=None, passed=()) -> list[list[Session]]:
    """What is seen of all devices in all rounds; in each round they come in another order."""
    rng, server = random.Random(7), Server()
    authority = Root.create("mesh.example", now=0, life=1e10).sign_intermediate(now=0, life=1e10)
    seen: list[list[Session]] = [[] for _ in range(devices)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        mesh = await enter(dpmesh.open(CONFIG | {"grpc": {"pass_metadata": list(passed)}}))
        own = await enter(RotatingIdentity(LocalSource(authority, life=3600, server=True)))
        listening = grpc.aio.server(interceptors=[peer_interceptor(own)])
        handler = grpc.unary_unary_rpc_method_handler(
            server.handle, TYPES.Ping.FromString, TYPES.Pong.SerializeToString
        )
        listening.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("acme.Pings", {"Send": handler}),)
        )
        port = listening.add_secure_port("127.0.0.1:0", rotating_server_credentials(own))
        await listening.start()
        stack.push_async_callback(listening.stop, None)
        tap = await enter(Tap(port))
        clients = []
        for number in range(devices):
            identity = await enter(RotatingIdentity(LocalSource(authority, life=3600)))
            channel = rotating_channel(
                f"127.0.0.1:{tap.port}",
                identity,
                options=options(number) if options else None,
                interceptors=aio_client_interceptors(mesh),
                drain=5,
            )
            await enter(channel)
            send = channel.unary_unary(METHOD, TYPES.Ping.SerializeToString, TYPES.Pong.FromString)
            clients.append((number, identity, send))
        for turn in range(rounds):
            rng.shuffle(clients)
            for number, identity, send in clients:
                known = set(server.sessions)
                if turn:
                    await identity.renew("linkage")
                message = TYPES.Ping(id=f"{number}/{turn}", device=f"device-{number}", load=50)
                async with asyncio.timeout(30):
                    # The channel changes when the new connection stands; until then the old one serves.
                    while not (new := set(server.sessions) - known):
                        await send(message, metadata=metadata(number) if metadata else None)
                (at,) = new
                session = server.sessions[at]
                session.connection = tap.connections[at[0]]
                sent, received = session.connection.sent, session.connection.received
                session.blobs.update(wire(bytes(sent), bytes(received)))
                seen[number].append(session)
    return seen


def size(request) -> tuple[int, int]:
    return (1000, 20) if request.config.getoption("--full") else (60, 8)


async def test_nobody_can_tell_which_sessions_are_one_devices(request):
    """One-sided. At full size at most 0.01, four standard errors: a false alarm in 150,000 runs; else five: in 3 million."""
    devices, rounds = size(request)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    found = await sessions(devices, rounds)
    names = {name for own in found for session in own for name in session.blobs}
    assert {"client hello", "server hello", "record lengths", "message: id", "certificate: key"} <= names
    assert not any("device" in session.blobs["message: rest"].decode() for own in found for session in own)
    attacker = Attacker(found)
    error = (1 / (2 * attacker.tested)) ** 0.5
    advantage = attacker.advantage()
    print(f"advantage {advantage:.4f} on {attacker.tested} pairs of either kind, error at most {error:.4f}")
    print(f"by times alone, {followed(found):.1%} of sessions are told from the end of the one before")
    assert advantage <= (0.01 if devices == 1000 else 5 * error)


LEAKS = {
    "metadata": {"metadata": lambda number: (("x-device", f"{number:08x}"),), "passed": ["x-device"]},
    "user agent": {"options": lambda number: (("grpc.primary_user_agent", f"device/{number}"),)},
    # What is encrypted still shows its length.
    "length": {"metadata": lambda number: (("x-note", "#" * number * 3),), "passed": ["x-note"]},
}
ON_THE_WIRE = ("client hello", "server hello", "record lengths")


@pytest.mark.parametrize("leak", LEAKS)
async def test_the_attack_finds_what_links(leak):
    """The same attack on devices that tell who they are, in their own words or by their length on the wire."""
    found = await sessions(20, 6, **LEAKS[leak])
    if leak == "length":
        found = [[Session({name: one.blobs[name] for name in ON_THE_WIRE}) for one in own] for own in found]
    assert Attacker(found).advantage() > 0.8
