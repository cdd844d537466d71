"""How long a process takes to compile the plans of 500 message types, as dpmesh.open does before it starts.

Each type has a unit and eight protected fields. Where all parameters differ, every mechanism is made anew; where all
are equal, the types share theirs. The time that protobuf takes to build the bare descriptors and classes stands beside.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from benchmarks.table import Row
from dpmesh.policy import Policy
from dpmesh.v1 import privacy_pb2

TYPES = 500
_packages = itertools.count()
_F = descriptor_pb2.FieldDescriptorProto


def _field(message: Any, name: str, kind: int) -> privacy_pb2.FieldRules:
    """Adds a field and returns its rules, which are empty."""
    number = len(message.field) + 1
    field = message.field.add(name=name, number=number, type=kind, label=_F.LABEL_OPTIONAL)
    rules: privacy_pb2.FieldRules = field.options.Extensions[privacy_pb2.field]
    return rules


def _file(different: bool) -> bytes:
    """A file of message types like benchmarks/telemetry.proto's Reading, in a package of its own."""
    package = f"opening{next(_packages)}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", dependency=["dpmesh/v1/privacy.proto"]
    )
    # No two runs share a parameter either, so that none finds the mechanisms of another.
    seed = int(package.removeprefix("opening")) / 10
    for number in range(TYPES):
        shift = (number + 1) / 1000 + seed if different else seed
        message = file.message_type.add(name=f"M{number}")
        _field(message, "unit", _F.TYPE_STRING).unit.SetInParent()
        for at, (lower, upper) in enumerate(((-40, 120), (900, 1100), (0, 100))):
            numeric = _field(message, f"real{at}", _F.TYPE_DOUBLE).numeric
            numeric.lower, numeric.upper, numeric.epsilon = lower, upper + shift, 0.5 + shift + at / 7000
        for at, (lower, upper) in enumerate(((-500, 9000), (0, 50))):
            numeric = _field(message, f"whole{at}", _F.TYPE_INT64).numeric
            upper += number if different else 0
            numeric.lower, numeric.upper, numeric.epsilon = lower, upper, 0.4 + shift + at / 7000
        for at in range(3):
            categorical = _field(message, f"category{at}", _F.TYPE_STRING).categorical
            categorical.domain.extend(["north", "east", "south", "west"][: at + 2])
            categorical.epsilon = 0.3 + shift + at / 7000
    return file.SerializeToString()


def descriptors(different: bool) -> tuple[list[Descriptor], float]:
    """The message types, and how many seconds protobuf took to build them and their classes."""
    text = _file(different)
    start = time.perf_counter()
    file = descriptor_pool.Default().AddSerializedFile(text)
    found = list(file.message_types_by_name.values())
    for message in found:
        GetMessageClass(message)
    return found, time.perf_counter() - start


def seconds(different: bool) -> tuple[float, float]:
    """How long compiling all plans takes, and building the bare descriptors."""
    found, bare = descriptors(different)
    policy = Policy()
    start = time.perf_counter()
    for message in found:
        if policy.plan(message) is None:
            raise AssertionError("nothing is protected")
    return time.perf_counter() - start, bare


def rows() -> Iterator[Row]:
    """The best of three runs of each, in turns."""
    runs = [(seconds(different=True), seconds(different=False)) for _ in range(3)]
    for at, name, bar in ((0, "all parameters different", 2.5), (1, "all parameters equal", 1)):
        plans, bare = (min(run[at][part] for run in runs) for part in (0, 1))
        yield Row(f"plans of {TYPES} types of 8 fields, {name}", plans, "s", f"at most {bar}")
        yield Row("  beside their bare descriptors and classes", plans / bare, "times", "")
