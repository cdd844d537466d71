"""Presence, size and membership: which fields a message fills, how long it is, and whom a device has met."""

from __future__ import annotations

from collections.abc import Callable

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import CAT, ENFORCE, HIDDEN, ITEMS, NUM, OBSERVE, config, received
from tests.support.protos import compiled

LENGTH = "(dpmesh.v1.field).length"
TYPES = compiled(
    f"""message Filled {{ string id = 1 {HIDDEN};
      optional double load = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 1}}];
      Inner inner = 3; google.protobuf.DoubleValue wrapped = 4 [{NUM} = {{lower: 0 upper: 100 epsilon: 1}}];
      repeated double list = 5 [{NUM} = {{lower: 0 upper: 100 epsilon: 1}}, {ITEMS} = 3];
      optional string note = 6 [(dpmesh.v1.field).suppress = {{}}]; }}
    message Inner {{ optional bool open = 1 [{CAT} = {{epsilon: 1}}]; }}
    message Member {{ string id = 1 {HIDDEN};
      oneof choice {{ option (dpmesh.v1.oneof) = {{epsilon: 1}};
        bool yes = 2 [{CAT} = {{epsilon: 0.5}}]; bool no = 3 [{CAT} = {{epsilon: 0.5}}]; }} }}
    message Long {{ string id = 1 {HIDDEN};
      int64 steps = 2 [{NUM} = {{lower: 0 upper: 10000 epsilon: 1 output: IN_RANGE}}];
      string note = 3 [(dpmesh.v1.field).suppress = {{}}]; }}
    message Padded {{ option (dpmesh.v1.message) = {{pad_to: 256}}; string id = 1 {HIDDEN};
      int64 steps = 2 [{NUM} = {{lower: 0 upper: 10000 epsilon: 1 output: IN_RANGE}}];
      string town = 3 [(dpmesh.v1.field).public = {{}}]; }}
    message Open {{ string id = 1 {HIDDEN};
      int64 steps = 2 [{NUM} = {{lower: 0 upper: 10000 epsilon: 1 output: IN_RANGE}}];
      string town = 3 [(dpmesh.v1.field).public = {{}}]; }}
    message Phone {{ string id = 1 {HIDDEN}; repeated Contact seen = 2 [{ITEMS} = 3]; }}
    message Batch {{ string id = 1 {HIDDEN};
      repeated double list = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 1}}, {ITEMS} = 3, {LENGTH} = PUBLIC]; }}
    message Contact {{ string id = 1 {HIDDEN}; optional bool sick = 2 [{CAT} = {{epsilon: 0.5}}]; }}"""
)
FULL = TYPES.Filled(
    id="d", load=0, inner={"open": False}, wrapped={"value": 0.0}, list=[0.0, 0.0], note="a secret" * 20
)
ALICE = TYPES.Contact(id="alice")
SICK = TYPES.Contact(id="alice", sick=True)
BOB = TYPES.Contact(id="bob", sick=True)


def everything(message, size: int) -> tuple:
    """All that a message of the types above shows: what it fills, how much, its values, the fields nobody declared."""
    features: list = [size, len(message.SerializeToString())]
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        repeated = field.is_repeated
        features.append(
            len(value) if repeated else message.HasField(field.name) if field.has_presence else bool(value)
        )
        if repeated and field.message_type is not None:
            padded = [*value, *(type(message)() for _ in range(3 - len(value)))][:3]
            features += [
                (item.HasField("sick"), item.sick, item.id) if hasattr(item, "sick") else None
                for item in padded
            ]
        elif repeated:
            features += [*map(float, value), *(0.0 for _ in range(3 - len(value)))][:3]
        elif field.message_type is not None:
            features.append(value.SerializeToString() if field.name == "inner" else float(value.value))
        else:
            features.append(float(value) if isinstance(value, int | float) else value)
    return tuple(features)


def length(_message, size: int) -> tuple:
    """Only how long a message is, as an observer of encrypted traffic sees it."""
    return (size,)


async def between(one, other, look: Callable, count: int, mode: str) -> Distinguished:
    """Tells messages apart that a device sends in one world and in the other."""
    async with dpmesh.open(config(mode=mode)) as mesh:
        worlds = [[look(*await received(mesh, message)) for _ in range(count)] for message in (one, other)]
    return told_apart(*worlds)


ROWS = (
    (
        "presence: optional, nested, wrapped, repeated and suppressed fields, filled with defaults or empty",
        FULL,
        TYPES.Filled(id="d"),
        everything,
        0.0,
        "absence counts as the default",
    ),
    (
        "presence: which member of a oneof is set",
        TYPES.Member(id="d", yes=False),
        TYPES.Member(id="d"),
        everything,
        # The members' own values cannot show more: where none is set, they leave as defaults.
        1.0,
        "epsilon 1 of the oneof",
    ),
    (
        "size: length of a number's message, 0 or 10,000",
        TYPES.Long(id="d"),
        TYPES.Long(id="d", steps=10_000),
        length,
        1.0,
        "epsilon 1 of the number",
    ),
    (
        "size: a suppressed note of 0 or 1,000 letters",
        TYPES.Long(id="d"),
        TYPES.Long(id="d", note="x" * 1000),
        length,
        0.0,
        "suppressed",
    ),
    (
        "size: a public town of 4 or 22 letters, for those who see encrypted bytes",
        TYPES.Open(id="d", town="Bern"),
        TYPES.Open(id="d", town="La Chaux-de-Fonds (NE)"),
        length,
        None,
        "not promised: the length of public text shows",
    ),
    (
        "size: a number and a public town, `pad_to` set",
        TYPES.Padded(id="d", town="Bern"),
        TYPES.Padded(id="d", steps=10_000, town="La Chaux-de-Fonds (NE)"),
        length,
        0.0,
        "all messages are equally long",
    ),
    (
        "length: three numbers or one, `length: PUBLIC` set",
        TYPES.Batch(id="d", list=[0.0, 0.0, 0.0]),
        TYPES.Batch(id="d", list=[0.0]),
        everything,
        None,
        "not promised: the rule makes the number of elements public",
    ),
    (
        "length: three numbers of 0 or of 100, `length: PUBLIC` set",
        TYPES.Batch(id="d", list=[0.0, 0.0, 0.0]),
        TYPES.Batch(id="d", list=[100.0, 100.0, 100.0]),
        everything,
        1.0,
        "epsilon 1 of the three numbers together",
    ),
    (
        "membership: a healthy contact was met or not",
        TYPES.Phone(id="d", seen=[BOB, ALICE]),
        TYPES.Phone(id="d", seen=[BOB]),
        everything,
        0.0,
        "absence counts as the default",
    ),
    (
        "membership: a sick contact was met or not",
        TYPES.Phone(id="d", seen=[BOB, SICK]),
        TYPES.Phone(id="d", seen=[BOB]),
        everything,
        0.5,
        "epsilon 0.5 of the contact",
    ),
)


async def findings(count: int) -> list[Finding]:
    """Each row with `count` messages in either world, half of them to learn from."""
    return [
        Finding(
            name,
            None if epsilon is None else between_two(epsilon),
            claim,
            await between(one, other, look, count, ENFORCE),
            await between(one, other, look, 200, OBSERVE),
        )
        for name, one, other, look, epsilon, claim in ROWS
    ]
