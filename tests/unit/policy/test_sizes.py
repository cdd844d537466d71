"""Sizes: every encoded message lies within the bounds of its plan, and small ranges reach both of them."""

import random

import pytest
from google.protobuf.descriptor import FieldDescriptor

from dpmesh.policy import Policy
from dpmesh.policy.descriptors import INTEGER_RANGES, is_map
from tests.support.protos import compiled

NUMBER = "(dpmesh.v1.field).numeric = {lower: %s upper: %s epsilon: %s}"
LAPLACE = NUMBER.replace("epsilon: %s", "epsilon: 1 mechanism: DISCRETE_LAPLACE")
ITEMS = "[(dpmesh.v1.field) = {%s max_items: 3}]"
PLACE = """[(dpmesh.v1.field).location = {epsilon: 2 min_latitude: -1 max_latitude: 1 min_longitude: 170
    max_longitude: -170 %s}]"""
TIME = '[(dpmesh.v1.field).time = {epsilon: 2 earliest: "%s" latest: "%s" %s}]'
# "@" stands for the field's name and number.
FIELDS = [
    f"sint32 @ [{NUMBER % (-70, 70, 4)}];",
    f"int32 @ [{NUMBER % (-1, 200, 4)}];",
    f"optional int64 @ [{NUMBER % (0, 3, 4)}];",
    "fixed32 @ [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1 output: IN_RANGE}];",
    f"float @ [{NUMBER % (-1, 1, 1)}];",
    f"google.protobuf.Int32Value @ [{NUMBER % (0, 500, 8)}];",
    "repeated sint64 @ " + ITEMS % "numeric: {lower: 0 upper: 90 epsilon: 2}" + ";",
    "repeated int32 @ " + ITEMS % "numeric: {lower: -5 upper: 90 epsilon: 2} length: PUBLIC" + ";",
    "repeated int32 @ [packed = false, (dpmesh.v1.field) = {numeric: {lower: 0 upper: 9 epsilon: 2} max_items: 2}];",
    "repeated google.protobuf.DoubleValue @ " + ITEMS % "numeric: {lower: 0 upper: 9 epsilon: 2}" + ";",
    "bool @ [(dpmesh.v1.field).categorical = {epsilon: 1}];",
    'string @ [(dpmesh.v1.field).categorical = {epsilon: 1 domain: ["", "a", "four"]}];',
    'repeated string @ [(dpmesh.v1.field).categorical = {epsilon: 1 domain: ["a", "bbb", "cc", "d"] '
    "mechanism: SUBSET_SELECTION}];",
    "repeated int32 @ [(dpmesh.v1.field).categorical = {epsilon: 1 domain: ['1', '300', '-1', '9', '7'] "
    "mechanism: SUBSET_SELECTION}];",
    "E @ [(dpmesh.v1.field).categorical = {epsilon: 1}];",
    "dpmesh.v1.CategoryReport @ [(dpmesh.v1.field).categorical = {epsilon: 1}];",
    "Place @ " + PLACE % "" + ";",
    "repeated Whole @ "
    + PLACE.replace(".location = {", " = {max_items: 2 location: {").replace("]", "}]")
    % "degrees_per_unit: 1e-3"
    + ";",
    "google.protobuf.Timestamp @ " + TIME % ("1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z", "") + ";",
    "google.protobuf.Duration @ " + TIME % ("-1s", "2s", "") + ";",
    "sint64 @ " + TIME % ("-3s", "500s", "step: SECOND") + ";",
    "repeated float @ [(dpmesh.v1.field).vector = {dimension: 40 l2_norm: 1 epsilon: 1}];",
    'map<string, int64> @ [(dpmesh.v1.field).histogram = {keys: ["a", "bcd"] lower: 0 upper: 90 epsilon: 3}];',
    'map<int32, uint32> @ [(dpmesh.v1.field).histogram = {keys: ["-1", "7"] contribution: 1 epsilon: 3}];',
    "string @ [(dpmesh.v1.field).pseudonym = {}];",
    "repeated int64 @ " + ITEMS % "pseudonym: {}" + ";",
    "google.protobuf.BytesValue @ [(dpmesh.v1.field).pseudonym = {}];",
    "bytes @ [(dpmesh.v1.field).message_id = {}];",
    "int32 @ [(dpmesh.v1.field).public = {}];",
    "Open @ [(dpmesh.v1.field).public = {}];",
    "E @ [(dpmesh.v1.field).public = {}];",
    "string @ [(dpmesh.v1.field).suppress = {}];",
    "Inner @;",
    "repeated Inner @ [(dpmesh.v1.field).max_items = 3];",
    "map<int32, Inner> @ [(dpmesh.v1.field).max_items = 2];",
    "map<bool, Inner> @ [(dpmesh.v1.field).max_items = 2];",
    "oneof o# { option (dpmesh.v1.oneof).epsilon = 1; Hidden @; string x# = 9# [(dpmesh.v1.field).suppress = {}]; }",
    f"oneof o# {{ option (dpmesh.v1.oneof).public = true; Inner @; int32 x# = 9# [{NUMBER % (0, 9, 1)}]; }}",
]
TYPES = f"""
    enum E {{ NONE = 0; ONE = 1; FAR = 300; UNDER = -1; }}
    message Place {{ double latitude = 1; double longitude = 2; }}
    message Whole {{ sint32 latitude = 1; sint32 longitude = 2000; }}
    message Open {{ uint32 a = 1; oneof b {{ int64 c = 2; Open2 d = 3; }} }}
    message Open2 {{ fixed64 a = 1; bool b = 200; }}
    message Hidden {{ int32 a = 1 [{NUMBER % (0, 300, 8)}]; }}
    message Inner {{ int32 a = 1 [{NUMBER % (0, 300, 8)}]; E b = 2 [(dpmesh.v1.field).public = {{}}]; }}
"""
RANDOM = random.Random(11)


def body_of(chosen) -> str:
    """A message with these fields."""
    written = (
        text.replace("@", f"f{at} = {at}").replace("#", str(at))
        for at, text in ((RANDOM.choice((1, 10, 100, 1000)) + at, text) for at, text in chosen)
    )
    return "".join(written)


def plan_of(body: str):
    """The plan of a message with these fields, and its class."""
    new = compiled(f"{TYPES} message M {{ {body} }}").M
    return Policy().plan(new.DESCRIPTOR), new


def number(field):
    """A random value of a field that is no message."""
    if field.type in INTEGER_RANGES:
        low, high = INTEGER_RANGES[field.type]
        return RANDOM.choice((low, high, max(low, -1), 0, 1, RANDOM.randint(0, 400)))
    if field.enum_type is not None:
        return RANDOM.choice((0, 1, 300, -1, 2**31 - 1))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return RANDOM.random() < 0.5
    text = RANDOM.choice(("", "a", "four", "x" * 40))
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
    return RANDOM.choice((0.0, -0.0, 1.5, -1e30, float("nan"), float("inf")))


def fill(message):
    """Sets random fields to random values."""
    for field in message.DESCRIPTOR.fields:
        if RANDOM.random() < 0.3:
            continue
        held = getattr(message, field.name)
        if is_map(field):
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(RANDOM.randrange(5)):
                if value.message_type is None:
                    held[number(key)] = number(value)
                else:
                    fill(held[number(key)])
        elif field.is_repeated:
            for _ in range(RANDOM.randrange(6)):
                held.append(number(field)) if field.message_type is None else fill(held.add())
        elif field.message_type is not None:
            held.SetInParent()
            fill(held)
        else:
            setattr(message, field.name, number(field))
    return message


def lengths(plan, new, count):
    """The lengths of so many protected messages."""
    for _ in range(count):
        made = plan.protect(
            fill(new()), lambda unit, epoch, namespace="": bytes(RANDOM.randrange(256) for _ in range(16))
        )
        yield len(made.SerializeToString())


@pytest.mark.parametrize("text", FIELDS)
def test_every_message_with_one_field_is_within_the_bounds(text):
    plan, new = plan_of(
        body_of([(0, text)]) + "bool last = 4000 [(dpmesh.v1.field).categorical = {epsilon: 1}];"
    )
    assert plan.size.largest is not None
    for length in lengths(plan, new, 60):
        assert plan.size.smallest <= length <= plan.size.largest


def test_every_message_with_all_fields_is_within_the_bounds():
    plan, new = plan_of(body_of([(20_000 + 2000 * at, text) for at, text in enumerate(FIELDS)]))
    for length in lengths(plan, new, 20):
        assert plan.size.smallest <= length <= plan.size.largest


@pytest.mark.parametrize(
    ("body", "smallest", "largest"),
    [
        (f"sint32 a = 1 [{NUMBER % (0, 70, 9)}];", 0, 3),
        (f"int32 a = 1 [{LAPLACE % (-1, 1)}];", 0, 11),
        (f"optional int32 a = 16 [{LAPLACE % (0, 1)}];", 3, 12),
        (f"repeated int32 a = 1 {ITEMS % 'numeric: {lower: 0 upper: 1 output: IN_RANGE epsilon: 1}'};", 5, 5),
        ("bool a = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}];", 0, 2),
        ('string a = 1 [(dpmesh.v1.field).categorical = {epsilon: 1 domain: ["", "four"]}];', 0, 6),
        (
            'repeated string a = 1 [(dpmesh.v1.field).categorical = {epsilon: 0.1 domain: ["a", "bbb", "cc", "d"] '
            "mechanism: SUBSET_SELECTION}];",
            6,
            9,
        ),
        (
            "string a = 1 [(dpmesh.v1.field).pseudonym = {}]; uint32 b = 2 [(dpmesh.v1.field).public = {}];",
            34,
            40,
        ),
        ("Inner a = 1; repeated Inner b = 2 [(dpmesh.v1.field).max_items = 2];", 6, 3 * 24),
        (
            "oneof o { option (dpmesh.v1.oneof).epsilon = 1; string x = 1 [(dpmesh.v1.field).suppress = {}]; "
            "bool y = 2 [(dpmesh.v1.field).suppress = {}]; }",
            0,
            2,
        ),
        (
            "repeated float v = 1 [(dpmesh.v1.field).vector = {dimension: 40 l2_norm: 1 epsilon: 1}];",
            163,
            163,
        ),
    ],
)
def test_small_ranges_reach_both_bounds(body, smallest, largest):
    """A bound that a draw reaches with 1 % is missed by 2,000 draws in one of 5e8 runs."""
    plan, new = plan_of(body)
    assert (plan.size.smallest, plan.size.largest) == (smallest, largest)
    if largest < 70:
        found = set(lengths(plan, new, 2_000))
        assert (min(found), max(found)) == (smallest, largest)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("string f = 1 [(dpmesh.v1.field).public = {}];", "f"),
        ("repeated int32 f = 1 [(dpmesh.v1.field).public = {}];", "f"),
        ("Deep f = 1 [(dpmesh.v1.field).public = {}];", "f.deeper.name"),
        ("Loop f = 1 [(dpmesh.v1.field).public = {}];", "f"),
        ("map<string, Inner> f = 1 [(dpmesh.v1.field).max_items = 2];", "f"),
        ("Holder f = 1;", "f.note"),
        ("google.protobuf.Any f = 1;", "f"),
        (
            "map<string, int32> f = 1 [(dpmesh.v1.field).histogram = {contribution: 1 epsilon: 1 delta: 1e-6}];",
            "f",
        ),
        (
            "oneof o { option (dpmesh.v1.oneof).public = true; bytes f = 1; bool g = 2 [(dpmesh.v1.field).suppress = {}]; }",
            "f",
        ),
    ],
)
def test_a_field_without_a_bound_is_named(field, path):
    more = """message Deep { Deeper deeper = 1; } message Deeper { int32 a = 1; string name = 2; }
        message Loop { Loop again = 1; } message Holder { string note = 1; bool b = 2
        [(dpmesh.v1.field).categorical = {epsilon: 1}]; }"""
    new = compiled(
        f"{TYPES} {more} message M {{ {field} bool last = 9 [(dpmesh.v1.field).categorical = {{epsilon: 1}}]; }}"
    ).M
    size = Policy().plan(new.DESCRIPTOR).size
    assert (size.largest, size.unbounded) == (None, path)
