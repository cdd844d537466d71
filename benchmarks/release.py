"""mesh.release of 8 protected fields, beside the mechanisms of OpenDP and diffprivlib; of 30 fields of all kinds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

import dpmesh
from benchmarks import all_kinds_pb2
from benchmarks import telemetry_pb2 as pb
from benchmarks.table import Row

NUMBERS = (21.5, 1013.0, 55.0, 120.0, 9.0)
RANGES = (160.0, 200.0, 100.0, 9500.0, 50.0)
EPSILON = 0.5
STATES = ("a", "b", "c", "d")
CONFIG = {
    "ledger": {"url": "memory:"},
    "budget": [{"name": "bench", "epsilon": 1e8, "accounting": "pure", "window": "lifetime"}],
}


def reading(device: str) -> pb.Reading:
    """A unit and 8 protected fields."""
    temperature, pressure, humidity, altitude, satellites = NUMBERS
    return pb.Reading(
        device=device,
        temperature=temperature,
        pressure=pressure,
        humidity=humidity,
        altitude=int(altitude),
        satellites=int(satellites),
        status=pb.STATUS_RUNNING,
        charging=True,
        zone="east",
    )


def report(device: str) -> all_kinds_pb2.Report:
    """A unit and 30 protected fields of all kinds."""
    made = all_kinds_pb2.Report(
        device=device, place={"latitude": 46.9, "longitude": 7.4}, vector=[8**-0.5] * 8
    )
    for field in all_kinds_pb2.Report.DESCRIPTOR.fields:
        if field.name.startswith(("number_", "count_")):
            setattr(made, field.name, 42)
        elif field.name.startswith("at_"):
            getattr(made, field.name).seconds = 1_780_000_000
    made.took.seconds = 90
    made.errors["a"] = 7
    made.seen.append(all_kinds_pb2.STAGE_IDLE)
    made.word.value = "umbrella"
    made.session, made.route, made.note = "s-1", "r-1", "on the way"
    return made


async def dpmesh_seconds(message: Message, count: int) -> float:
    """Seconds per message of mesh.release, one core."""
    async with dpmesh.open(CONFIG) as mesh:
        for _ in range(20_000):
            await mesh.release(message)
        start = time.perf_counter()
        for _ in range(count):
            await mesh.release(message)
        return (time.perf_counter() - start) / count


def writing_seconds(message: Message, count: int) -> float:
    """Seconds per message of copying the fields of a protected message to a new one, in plain Python."""

    async def protected() -> Message:
        async with dpmesh.open(CONFIG) as mesh:
            held: Message = (await mesh.release(message)).message
            return held

    source = asyncio.run(protected())
    fields = source.DESCRIPTOR.fields

    def write(held: Any, into: Any, name: str) -> None:
        setattr(into, name, getattr(held, name))

    plain = [field.name for field in fields if field.message_type is None and not field.is_repeated]
    nested = [
        (field.name, [inner.name for inner in field.message_type.fields])
        for field in fields
        if field.message_type is not None and not field.is_repeated
    ]
    repeated = [field.name for field in fields if field.is_repeated]

    def copy() -> None:
        target = type(source)()
        for name in plain:
            write(source, target, name)
        for name, inner in nested:
            held, into = getattr(source, name), getattr(target, name)
            for one in inner:
                write(held, into, one)
        for name in repeated:
            getattr(target, name).MergeFrom(getattr(source, name))

    return _per_call(copy, count)


def _per_call(run: Callable[[], object], count: int) -> float:
    run()
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def opendp_seconds(count: int) -> float:
    """Seconds per message: five Laplace measurements and three randomized responses, called one by one."""
    import opendp.prelude as odp

    odp.enable_features("contrib")
    space = odp.atom_domain(T=float, nan=False), odp.absolute_distance(T=float)
    numbers = [
        (odp.m.make_laplace(*space, scale=span / EPSILON), value)
        for span, value in zip(RANGES, NUMBERS, strict=True)
    ]
    truth = 0.6
    states = odp.m.make_randomized_response(list(STATES), prob=truth)
    boolean = odp.m.make_randomized_response_bool(prob=truth)

    def message() -> None:
        for mechanism, value in numbers:
            mechanism(value)
        states("b")
        states("c")
        boolean(True)

    return _per_call(message, count)


def diffprivlib_seconds(count: int) -> float:
    """Seconds per message: five Laplace mechanisms, two categorical and one binary, called one by one."""
    from diffprivlib import mechanisms

    numbers = [
        (mechanisms.Laplace(epsilon=EPSILON, sensitivity=span), value)
        for span, value in zip(RANGES, NUMBERS, strict=True)
    ]
    utilities = [[one, other, float(one != other)] for one in STATES for other in STATES if one < other]
    states = mechanisms.ExponentialCategorical(epsilon=EPSILON, utility_list=utilities)
    boolean = mechanisms.Binary(epsilon=EPSILON, value0="0", value1="1")

    def message() -> None:
        for mechanism, value in numbers:
            mechanism.randomise(value)
        states.randomise("b")
        states.randomise("c")
        boolean.randomise("1")

    return _per_call(message, count)


def rows() -> list[Row]:
    """Measures, interleaved, and keeps the best of three of each: noise of the machine only adds."""
    ours, many, writes, opendp, diffprivlib = [], [], [], [], []
    for _ in range(3):
        ours.append(asyncio.run(dpmesh_seconds(reading("sensor-7"), 50_000)))
        many.append(asyncio.run(dpmesh_seconds(report("robot-7"), 10_000)))
        writes.append(writing_seconds(report("robot-7"), 10_000))
        opendp.append(opendp_seconds(1_000))
        diffprivlib.append(diffprivlib_seconds(2_000))
    best, same = min(ours), "the same fields by"
    return [
        Row("mesh.release, 8 protected fields, one core", 1 / best, "messages/s", "at least 100,000"),
        Row(f"{same} OpenDP's scalar mechanisms", min(opendp) / best, "times dpmesh's time", "at least 40"),
        Row(f"{same} diffprivlib's mechanisms", min(diffprivlib) / best, "times dpmesh's time", "at least 5"),
        Row("mesh.release, 30 protected fields of all kinds", 1 / min(many), "messages/s", "at least 20,000"),
        Row("  of which copying the 30 fields in plain Python", min(writes) / min(many), "of its time", ""),
    ]
