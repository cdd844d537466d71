"""Averaging: a device says the same thing again and again, in many ways and under many spellings of its id."""

from __future__ import annotations

import dpmesh
from dpmesh.errors import BudgetExhaustedError
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import CAT, ENFORCE, OBSERVE, UNIT, config
from tests.support.protos import compiled

EPSILON, BUDGET, REPEATS = 0.5, 2.0, 6
TYPES = compiled(
    f"""message Flag {{ string id = 1 [{UNIT} = {{normalize: [NFC, CASE_FOLD, STRIP]}}];
      bool sick = 2 [{CAT} = {{epsilon: {EPSILON}}}]; }}
    message Loose {{ string id = 1 [{UNIT} = {{}}]; bool sick = 2 [{CAT} = {{epsilon: {EPSILON}}}]; }}
    message Memoized {{ string id = 1 [{UNIT} = {{}}];
      bool sick = 2 [(dpmesh.v1.field) = {{categorical: {{epsilon: {EPSILON}}} memoize: {{}}}}]; }}
    message Batch {{ repeated Flag flags = 1; }}
    message Parcel {{ google.protobuf.Any content = 1; }}"""
)
SPELLINGS = (
    "café-{}",
    "CAFÉ-{}",
    "cafe\u0301-{}",
    " café-{}",
    "café-{}\t",
    "\ufeffcafé-{}",
    "café-{}\0",
    "Café-{}",
)


def ways(id_: str, sick: bool):
    """A message in all shapes in which it can leave, each to somebody else by another method."""
    flag = TYPES.Flag(id=id_, sick=sick)
    parcel = TYPES.Parcel()
    parcel.content.Pack(flag)
    yield flag, {"method": "/test.A/One", "consumer": "a"}
    yield TYPES.Batch(flags=[flag]), {"method": "/test.A/Two", "consumer": "b"}
    yield parcel, {"method": "/test.B/Three", "direction": "response", "consumer": "c"}


def answer(message) -> bool:
    """What a message says that left in one of the ways."""
    if isinstance(message, TYPES.Batch):
        return message.flags[0].sick
    if isinstance(message, TYPES.Parcel):
        flag = TYPES.Flag()
        assert message.content.Unpack(flag)
        return flag.sick
    return message.sick


async def votes(mesh, messages) -> int:
    """How many more messages say yes than no; refused ones say nothing."""
    total = 0
    for message, kwargs in messages:
        try:
            total += 1 if answer((await mesh.release(message, **kwargs)).message) else -1
        except BudgetExhaustedError:
            continue
    return total


def in_all_ways(device: int, sick: bool):
    """A device repeats itself in all ways."""
    return list(ways(f"device-{device}-{sick}", sick)) * (REPEATS // 3)


def in_all_spellings(kind):
    """A device repeats itself under all spellings of its id, in messages of one type."""

    def messages(device: int, sick: bool):
        ids = [spelling.format(f"{device}-{sick}") for spelling in SPELLINGS]
        return [(kind(id=id_, sick=sick), {}) for id_ in ids * 2]

    return messages


def memoized(device: int, sick: bool):
    """A device repeats itself, and its field repeats its answer."""
    return [(TYPES.Memoized(id=f"device-{device}-{sick}", sick=sick), {})] * (2 * REPEATS)


async def majority(count: int, messages, mode: str) -> Distinguished:
    """Who is sick, by the majority of all answers: the best guess from equal randomized responses."""
    async with dpmesh.open(config(BUDGET, mode)) as mesh:
        hits, alarms = [
            sum([await votes(mesh, messages(device, sick)) > 0 for device in range(count)])
            for sick in (True, False)
        ]
    return Distinguished(hits, count, alarms, count)


async def findings(count: int) -> list[Finding]:
    """Averages of `count` devices in either world."""
    rows = (
        (
            "averaging over repeats, methods, wrappers, Anys and consumers",
            in_all_ways,
            BUDGET,
            "the budget, epsilon 2",
        ),
        (
            "averaging over spellings of an id, `normalize` set",
            in_all_spellings(TYPES.Flag),
            BUDGET,
            "the budget, epsilon 2",
        ),
        (
            "averaging over spellings of an id, by default",
            in_all_spellings(TYPES.Loose),
            None,
            "not promised: each of 8 spellings is a unit with a budget of its own",
        ),
    )
    rows = (
        *rows,
        (
            "averaging over repeats of a memoized field",
            memoized,
            EPSILON,
            "epsilon 0.5, however many messages",
        ),
    )
    return [
        Finding(
            name,
            None if epsilon is None else between_two(epsilon),
            claim,
            await majority(count, messages, ENFORCE),
            await majority(min(count, 150), messages, OBSERVE),
        )
        for name, messages, epsilon, claim in rows
    ]
