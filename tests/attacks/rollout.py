"""Roll-out: which device sent a report, recognised by what its metadata say of its policy, over rotated identities.

The units' pseudonyms change every day. Each device has its policy for weeks. An attacker who has seen all devices on one day,
and knows which is which, looks for them on the next by the metadata of their requests.
"""

from __future__ import annotations

from collections import defaultdict

import dpmesh
from dpmesh.mesh.attestation import message_metadata
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.v1 import policy_pb2
from tests.attacks.outcomes import Finding, Guessed
from tests.attacks.worlds import UNIT, config
from tests.support.protos import compiled

DEVICES = 100
TYPES = compiled(
    f"""message Ping {{ string id = 1 [{UNIT} = {{}}]; bool up = 2 [(dpmesh.v1.field).categorical = {{epsilon: 0.5}}]; }}
    message Ack {{}}
    service Fleet {{ rpc Report(Ping) returns (Ack); }}"""
)
METHOD = f"/{TYPES.package}.Fleet/Report"


def policy(number: int, *, required: bool) -> policy_pb2.Policy:
    """One of many policies, each with a law of its own."""
    document = policy_pb2.Policy(epoch=number + 1)
    document.fields[f"{TYPES.package}.Ping.up"].categorical.epsilon = 0.5 + number / 1000
    if required:
        document.methods[METHOD].require_policy.min_epoch = 1
    return document


async def told(number: int, required: bool) -> tuple[str, str]:
    """What a device with a policy says of it on two days."""
    days = []
    async with dpmesh.open(config(), policy=policy(number, required=required)) as mesh:
        flow = FlowTable(mesh)[METHOD].request
        for _ in range(2):
            message = TYPES.Ping(id="device")
            protected = await flow.protect(message)
            days.append(str(message_metadata(flow, message, protected, None)))
    return days[0], days[1]


async def recognised(policies: list[int], count: int, *, required: bool) -> Guessed:
    """Guesses each device of the second day among those that said on the first what it says now.

    Args:
        policies: Each device's.
        count: How often the guesses are made, at least once for each device.
        required: The devices' own policies ask them to name their policy.
    """
    said = {number: await told(number, required) for number in set(policies)}
    first = defaultdict(list)
    for device, number in enumerate(policies):
        first[said[number][0]].append(device)
    # The guess among equals is by turns: each of them is right equally often.
    hits = rounds = 0
    while rounds * len(policies) < count or not rounds:
        for device, number in enumerate(policies):
            among = first[said[number][1]]
            hits += among[rounds % len(among)] == device
        rounds += 1
    return Guessed(hits, rounds * len(policies), len(policies))


async def findings(count: int) -> list[Finding]:
    """`count` guesses, at least one for each of 100 devices."""
    each_its_own, ring = list(range(DEVICES)), [int(device >= 50) for device in range(DEVICES)]
    count = max(count, DEVICES * DEVICES)
    unprotected = await recognised(each_its_own, count, required=True)
    return [
        Finding(
            "roll-out: which of 100 devices, each with a policy of its own, that no receiver asks for",
            0.0,
            "requests say that they are protected, and no more",
            await recognised(each_its_own, count, required=False),
            unprotected,
        ),
        Finding(
            "roll-out: which of 100 devices, half of them in a ring, that a receiver asks for",
            0.01,
            "one of 50: the digest shows the ring, and no device in it",
            await recognised(ring, count, required=True),
            unprotected,
        ),
    ]
