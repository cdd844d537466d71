"""Random rules, hostile ones too, and random messages through real RPCs: nothing raw in what leaves, logs, spans, metrics, errors.

Each seed makes message types with fields of all kinds. Client and server send messages whose fields hold marked texts and
numbers, odd numbers, nothing or too much. Each RPC succeeds, or ends in a refusal that names a reason. All messages of a
type that arrive are alike in the fields that are there, in the number of elements and in the keys.

False alarms: a random output is a marked number less than once in 1e6 runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from stations import rig

from dpmesh.v1 import privacy_pb2
from tests.support.listening import Listening
from tests.support.protos import compiled

TYPES, MESSAGES = 10, 8
SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 60))]
WORD, NUMBER, FRACTION = "kept-secret", 1_734_375_217, 41_734_375.217
MARKS = (WORD, str(NUMBER), "1,734,375,217", "41734375.2", "41,734,375")
REASONS = {"BAD_ANNOTATION", "NOT_A_NUMBER", "MISSING_AGGREGATE"}
F = "(dpmesh.v1.field)"
REGIONS = ("45.8 47.9 5.9 10.5", "-21 -12 176 -178", "70 90 -180 180")
HOSTILE = ("0", "-1", "nan", "inf", "1e300", "1e-300")


T = TypeVar("T")


def rule_of(kind: str, inside: str, more: str = "") -> str:
    return f"[{F} = {{{kind}: {{{inside}}} {more}}}]"


def mostly(r: Random, right: Sequence[T], wrong: Sequence[T]) -> T:
    """One of the right choices, but for one time in twelve."""
    return r.choice(wrong if r.random() < 1 / 12 else right)


def numeric(r: Random, epsilon: str) -> str:
    low, high = mostly(r, ("0 100", "-3 7", "0 1", "0 1e6"), ("5 5", "9 1")).split()
    kind = r.choice(("double", "float", "int32", "int64", "uint32", "fixed64", "google.protobuf.DoubleValue"))
    more = r.choice(("", "sensitivity: 1", "nan: REJECT", f"resolution: {mostly(r, ('1', '0.5'), HOSTILE)}"))
    output = r.choice(("", "output: IN_RANGE", "output: IN_RANGE", "mechanism: DISCRETE_LAPLACE"))
    rule = rule_of("numeric", f"lower: {low} upper: {high} {epsilon} {more} {output}")
    return r.choice((f"{kind} f = %d {rule};", f"optional {kind} f = %d {rule};"))


def listed(r: Random, epsilon: str) -> str:
    items = mostly(r, ("1", "3"), ("0", "1000000000"))
    inside = f"lower: 0 upper: 10 {epsilon}"
    return f"repeated double f = %d {rule_of('numeric', inside, f'max_items: {items}')};"


def categorical(r: Random, epsilon: str) -> str:
    domain = mostly(r, ('["a", "b"]',), ('["a", "a"]',))
    return r.choice(
        (
            f"bool f = %d {rule_of('categorical', epsilon)};",
            f"optional Mood f = %d {rule_of('categorical', epsilon)};",
            f"string f = %d {rule_of('categorical', f'domain: {domain} {epsilon}')};",
            f"repeated Mood f = %d {rule_of('categorical', f'mechanism: SUBSET_SELECTION {epsilon}')};",
            f"dpmesh.v1.CategoryReport f = %d {rule_of('categorical', epsilon)};",
            f"Mood f = %d {rule_of('categorical', epsilon, 'memoize: {}')};",
            f"oneof choice%d {{ option (dpmesh.v1.oneof) = {{epsilon: 1}}; bool f = %d {rule_of('categorical', epsilon)};"
            f" Inner g%d = 5%d; }}",
        )
    )


def time(r: Random, epsilon: str) -> str:
    years = ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"), ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
    early, late = mostly(r, (*years, ("0s", "3600s")), (("never", "3s"),))
    kind = "Duration" if late == "3600s" else "Timestamp"
    shift = mostly(r, ("", "largest_shift: {seconds: 60}"), ("largest_shift: {seconds: -60}",))
    rule = rule_of("time", f'earliest: "{early}" latest: "{late}" {epsilon} {shift}')
    return f"google.protobuf.{kind} f = %d {rule};"


def location(r: Random, epsilon: str) -> str:
    south, north, west, east = mostly(r, REGIONS, ("10 5 0 1", "-90 90 -180 180")).split()
    bounds = f"min_latitude: {south} max_latitude: {north} min_longitude: {west} max_longitude: {east}"
    way = r.choice((epsilon, "epsilon_per_km: 0.01", f"{epsilon} metric: GEO radius_km: 5"))
    return f"Place f = %d {rule_of('location', f'{bounds} {way}')};"


def vector(r: Random, epsilon: str) -> str:
    norm = mostly(r, ("l2_norm: 1", "linf_norm: 2"), ("l2_norm: 0", ""))
    return f"repeated {r.choice(('double', 'float'))} f = %d {rule_of('vector', f'{norm} dimension: 4 {epsilon}')};"


def histogram(r: Random, epsilon: str) -> str:
    way = r.choice(
        (
            'keys: ["a", "b"] lower: 0 upper: 9',
            'keys: ["a"] contribution: 1',
            "contribution: 1 max_keys: 1 delta: 1e-15",
        )
    )
    return f"map<string, {r.choice(('int64', 'int64', 'double'))}> f = %d {rule_of('histogram', f'{way} {epsilon}')};"


def other(r: Random, _epsilon: str) -> str:
    return r.choice(
        (
            f"string f = %d {rule_of('pseudonym', '')};",
            f"repeated bytes f = %d {rule_of('pseudonym', '', 'max_items: 2')};",
            f"string f = %d {rule_of('suppress', '')};",
            f"bytes f = %d {rule_of('suppress', '')};",
            f"Inner f = %d {rule_of('suppress', '')};",
            f"string f = %d {rule_of('message_id', '')};",
            "Inner f = %d;",
            f"repeated Inner f = %d [{F}.max_items = 2];",
            "google.protobuf.Any f = %d;",
        )
    )


KINDS = (numeric, listed, categorical, time, location, vector, histogram, other)
COMMON = f"""enum Mood {{ CALM = 0; TENSE = 1; GLAD = 2; }}
message Place {{ double latitude = 1; double longitude = 2; string note = 3; }}
message Inner {{ optional bool open = 1 [{F}.categorical = {{epsilon: 1}}]; string note = 2 [{F}.suppress = {{}}];
  repeated double each = 3 [{F} = {{numeric: {{lower: 0 upper: 1 epsilon: 1}} max_items: 2}}]; }}
"""


def definitions(r: Random) -> str:
    """Message types; some of their rules are wrong."""
    text = COMMON
    for number in range(TYPES):
        fields = []
        for at in range(2, 2 + r.randrange(1, 5)):
            epsilon = f"epsilon: {mostly(r, ('0.5', '1', '4'), HOSTILE)}"
            fields.append(r.choice(KINDS)(r, epsilon).replace("%d", str(at)).replace(" f = ", f" f{at} = "))
        text += f"message T{number} {{ string id = 1 [{F}.unit = {{}}]; {' '.join(fields)} }}\n"
    return text


def filled(r: Random, message: Message, inner: type[Message]) -> Message:
    """Fills some fields with what marks them, or with what is odd."""
    for field in message.DESCRIPTOR.fields:
        if field.name == "id":
            message.id = f"{WORD}-id"
        elif r.random() < 0.75:
            fill(r, message, field, inner)
    return message


def fill(r: Random, message: Message, field: Any, inner: type[Message]) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        whole = "int" in str(type(getattr(message, field.name)["x"]))
        getattr(message, field.name).clear()
        for key in ("a", "b", "c" * r.randrange(1, 2000)):
            values = (0, 1, -5, 2**63 - 1, -(2**63)) if whole else (0.5, -1.0, math.inf, math.nan, 1e308)
            getattr(message, field.name)[key] = r.choice(values)
        # One unit's own key.
        getattr(message, field.name)[WORD] = 1
    elif field.is_repeated:
        for _ in range(r.choice((0, 1, 2, 4, 4, 300))):
            if field.message_type is not None:
                filled(r, getattr(message, field.name).add(), inner)
            else:
                getattr(message, field.name).append(value_of(r, field))
    elif field.message_type is None:
        setattr(message, field.name, value_of(r, field))
    elif field.message_type.full_name == "google.protobuf.Any":
        getattr(message, field.name).Pack(filled(r, inner(), inner))
    elif field.message_type.full_name == "dpmesh.v1.CategoryReport":
        return
    else:
        part = getattr(message, field.name)
        part.SetInParent()
        filled(r, part, inner)


def value_of(r: Random, field: Any) -> Any:
    """A value of a field's type."""
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return r.choice((FRACTION, FRACTION, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, -1.0))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return r.random() < 0.5
    if field.cpp_type == field.CPPTYPE_ENUM:
        return r.choice((0, 1, 2, 77, NUMBER, -5))
    if field.type == field.TYPE_BYTES:
        return WORD.encode() * r.choice((1, 10_000))
    if field.type == field.TYPE_STRING:
        return WORD * r.choice((1, 10_000))
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    return r.choice((0, NUMBER, NUMBER, 2**31 - 1, *(() if unsigned else (-1, -(2**31)))))


def shape(message: Message) -> Iterator[Any]:
    """What does not depend on values: the fields of messages, the number of elements, the keys of a map."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.full_name == "google.protobuf.Any":
            continue  # Its presence leaves as it is.
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            continue  # Which member is set is random.
        rules = field.GetOptions().Extensions[privacy_pb2.field]
        if rules.WhichOneof("kind") == "histogram" and not rules.histogram.keys:
            continue  # The keys that many units share leave.
        if kind is not None and kind.GetOptions().map_entry:
            yield sorted(value)
        elif field.is_repeated:
            yield len(value)
            yield [list(shape(element)) for element in value] if kind is not None else None
        elif field.has_presence:
            yield message.HasField(field.name)
            yield list(shape(value)) if kind is not None else None


def check(message: Message) -> None:
    """Nothing in a message that arrived is marked."""
    assert WORD.encode() not in message.SerializeToString()
    for field, value in message.ListFields():
        for each in value.values() if hasattr(value, "values") else value if field.is_repeated else [value]:
            if isinstance(each, Message):
                check(each)
            else:
                assert each not in (NUMBER, FRACTION), field.full_name


@pytest.fixture
def listening(monkeypatch):
    return Listening(monkeypatch)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_the_rules_nothing_raw_leaves(
    seed, open_mesh, stack, serve, connect, caplog, listening
):
    caplog.set_level(logging.DEBUG)
    listening.trace()
    reader = listening.meter()
    r = Random(seed)
    types = compiled(definitions(r))
    budget = {"name": "all", "key": "global", "epsilon": 1e6, "delta": 1e-6, "threshold_delta": 0.5}
    station = {"name": "unit", "epsilon": 1e9, "accounting": "pure", "window": "24h"}
    mesh = await open_mesh(budget=[station, {**budget, "window": "24h"}])
    chosen = [getattr(types, f"T{number}") for number in range(TYPES)]
    seen: list[Message] = []
    texts: list[str] = []

    def handler(kind):
        async def answer(request, context):
            seen.append(request)
            return filled(r, kind(), types.Inner)

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=kind.FromString, response_serializer=kind.SerializeToString
        )

    handlers = {kind.DESCRIPTOR.name: handler(kind) for kind in chosen}
    generic = grpc.method_handlers_generic_handler("test.Any", handlers)
    target = await serve(mesh=mesh, add=[lambda server: server.add_generic_rpc_handlers((generic,))])
    channel = (await connect(target, mesh)).channel
    arrived = refused = 0
    for kind in chosen:
        call = channel.unary_unary(
            f"/test.Any/{kind.DESCRIPTOR.name}", kind.SerializeToString, kind.FromString
        )
        seen.clear()
        for _ in range(MESSAGES):
            try:
                seen.append(await call(filled(r, kind(), types.Inner)))
            except grpc.aio.AioRpcError as error:
                found = rig.status(error)
                texts.append(f"{error.details()} {error.trailing_metadata()}")
                assert found.code == grpc.StatusCode.FAILED_PRECONDITION, (found, types)
                assert found.info.reason in REASONS, found
                refused += 1
        arrived += len(seen)
        for message in seen:
            check(message)
        shapes = {str(list(shape(message))) for message in seen}
        assert len(shapes) <= 1, shapes
    assert arrived
    spans = [span.to_json() for span in listening.spans.get_finished_spans()]
    metrics = reader.get_metrics_data()
    for text in (caplog.text, *texts, *spans, metrics.to_json() if metrics else ""):
        assert not [mark for mark in MARKS if mark in text], text[:2000]
    assert spans
    assert metrics
