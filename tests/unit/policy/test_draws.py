"""Draws: no two values that leave share any randomness, wherever they stand and in whichever message.

One draw that serves two values gives their difference away. It is looked for in two ways. Noise of 2^40 steps and more
hardly ever repeats, so equal noise is shared noise. All other draws are reduced to bits, and the bits' correlations
are counted: between all positions of a message, and with all positions of the next message.
"""

from collections import Counter

import numpy as np
import pytest

import dpmesh
from dpmesh.noise.draws import Draws, joint
from dpmesh.policy import Policy
from dpmesh.policy.codegen.source import draw_function
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
ITEMS = "(dpmesh.v1.field).max_items"


def settings():
    budget = {"name": "all", "key": "global", "epsilon": 1e8, "delta": 1e-6, "accounting": "zcdp"}
    return {"ledger": {"url": "memory:"}, "budget": [budget]}


def leaves(message, path=""):
    """Every value of a message, with its place."""
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            inner = [(f"{{{key}}}", value[key]) for key in sorted(value)]
        elif field.is_repeated:
            inner = [(f"[{index}]", element) for index, element in enumerate(value)]
        else:
            inner = [("", value)]
        for mark, one in inner:
            place = f"{path}{field.name}{mark}"
            if entry is None:
                yield place, one
            elif entry.full_name.startswith("google.protobuf."):
                yield place, one.value
            else:
                yield from leaves(one, place + ".")


# -- noise that does not repeat -----------------------------------------------------------------------------------

LAPLACE = (
    f"[{NUM} = {{lower: 0 upper: 1099511627776 resolution: 1 epsilon: 0.001 mechanism: DISCRETE_LAPLACE}}]"
)
SHARP = f"[{NUM} = {{lower: 0 upper: 1099511627776 resolution: 1 epsilon: 0.01 mechanism: DISCRETE_LAPLACE}}]"
GAUSS = f"[{NUM} = {{lower: 0 upper: 1099511627776 resolution: 1 epsilon: 0.5 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}]"
PIECE = f"[{NUM} = {{lower: 0 upper: 1099511627776 resolution: 1 epsilon: 1 mechanism: PIECEWISE}}]"


def many(rule, items):
    return f"{rule[:-1]}, {ITEMS} = {items}]"


WIDE = compiled(
    f"""message M {{
      int64 a = 1 {LAPLACE}; int64 b = 2 {LAPLACE}; int64 global = 3 {LAPLACE}; optional sint64 c = 4 {LAPLACE};
      double d = 5 {SHARP}; double e = 6 {SHARP};
      google.protobuf.Int64Value f = 7 {LAPLACE}; google.protobuf.Int64Value g = 8 {LAPLACE};
      repeated int64 h = 9 {many(LAPLACE, 3)}; repeated int64 i = 10 {many(LAPLACE, 3)};
      repeated google.protobuf.Int64Value j = 11 {many(LAPLACE, 2)};
      Inner k = 12; Inner l = 13; repeated Inner m = 14 [{ITEMS} = 3]; map<string, Inner> n = 15 [{ITEMS} = 2];
      oneof open {{ option (dpmesh.v1.oneof) = {{public: true}}; int64 o = 16 {LAPLACE}; int64 p = 17 {LAPLACE}; }}
      oneof hidden {{ option (dpmesh.v1.oneof) = {{epsilon: 0.01}}; int64 q = 18 {LAPLACE}; Inner r = 19; }}
      int64 s = 20 {GAUSS}; int64 t = 21 {GAUSS}; repeated int64 u = 22 {many(GAUSS, 2)};
      int64 v = 23 {PIECE}; int64 w = 24 {PIECE};
    }}
    message Inner {{ int64 x = 1 {LAPLACE}; int64 y = 2 {LAPLACE}; Deep z = 3; }}
    message Deep {{ int64 x = 1 {LAPLACE}; }}
    message Other {{ int64 a = 1 {LAPLACE}; int64 b = 2 {LAPLACE}; double d = 3 {SHARP}; Inner k = 4; }}"""
)


def wide_messages():
    """All values are 0, so what leaves is the noise itself; for Piecewise, a function of the draw alone."""
    full = WIDE.M(o=0, q=0, h=[0, 0, 0], m=[{"x": 0}, {"y": 0}], n={"a": {}, "b": {}})
    return full, WIDE.M(), WIDE.M(r={"x": 0}, p=0), WIDE.Other()


async def test_no_noise_leaves_twice_whatever_the_place_the_message_and_the_mesh():
    """Two meshes release 200 messages each, of two types, in one process.

    All of some 12,600 values differ, and so do their distances from 0. False alarm below 1e-6: a pair is equal with
    probability 2^-49 (discrete Laplace), 2^-43 (Gaussian, 1,200 values) and 2^-39 (Piecewise, 600 values).
    """
    seen = Counter()
    async with dpmesh.open(settings()) as one, dpmesh.open(settings()) as other:
        stream = other.stream()
        for _ in range(50):
            for message in wide_messages():
                for release in (one.release, stream.release):
                    out = (await release(message)).message
                    seen.update(abs(value) for _, value in leaves(out))
        stream.close()
    assert len(seen) >= 12_500
    assert [count for count in seen.values() if count > 1] == []


async def test_every_place_of_a_message_draws():
    """No value leaves without noise. False alarm below 1e-9: noise is 0 with probability 2^-43 at most."""
    full, *_ = wide_messages()
    async with dpmesh.open(settings()) as mesh:
        out = dict(leaves((await mesh.release(full)).message))
    # The hidden choice may be any of three.
    assert len([place for place in out if not place.startswith(("q", "r"))]) == 44
    assert all(value != 0 for value in out.values())


# -- bits ---------------------------------------------------------------------------------------------------------


def duchi(epsilon, more=""):
    return f"{NUM} = {{lower: 0 upper: 1 epsilon: {epsilon} mechanism: DUCHI {more}}}"


RULES = {
    "double": [
        duchi(0.5),
        duchi(64),
        duchi(0.5, "output: IN_RANGE"),
        duchi(64, "output: IN_RANGE"),
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_LAPLACE}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 8 mechanism: DISCRETE_LAPLACE output: IN_RANGE}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 8 mechanism: DISCRETE_LAPLACE sensitivity: 0.1 output: IN_RANGE}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 2 mechanism: PIECEWISE}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 2 mechanism: HYBRID}}",
        f"{NUM} = {{lower: 0 upper: 1 epsilon: 0.3 mechanism: HYBRID}}",
    ],
    "bool": [f"{CAT} = {{epsilon: 0.001}}"],
    "Two": [f"{CAT} = {{epsilon: 0.001}}"],
    "string": [f'{CAT} = {{epsilon: 0.001 domain: ["a", "b", "c", "d"]}}'],
    "int32": [f'{CAT} = {{epsilon: 0.001 domain: ["1", "2", "3", "4"]}}'],
}


def _fields(label="", items=""):
    number = 0
    for kind, rules in RULES.items():
        for rule in rules:
            for _ in range(2):
                number += 1
                extra = f", {ITEMS} = {items}" if items else ""
                yield f"{label}{kind} f{number} = {number} [{rule}{extra}];"


BITS = compiled(
    f"""enum Two {{ ZERO = 0; ONE = 1; }}
    message Single {{ {" ".join(_fields())} oneof x {{ option (dpmesh.v1.oneof).epsilon = 0.001;
      bool xa = 101 [{CAT} = {{epsilon: 1}}]; string xb = 102 [(dpmesh.v1.field).suppress = {{}}]; bool xc = 103 [{CAT} = {{epsilon: 1}}]; }}
      oneof y {{ option (dpmesh.v1.oneof).epsilon = 0.001;
      bool ya = 104 [{CAT} = {{epsilon: 1}}]; string yb = 105 [(dpmesh.v1.field).suppress = {{}}]; bool yc = 106 [{CAT} = {{epsilon: 1}}]; }} }}
    message Pair {{ Single one = 1; Single two = 2; }}
    message Lists {{ {" ".join(_fields("repeated ", items="2"))} }}
    message Wrapped {{ repeated Row rows = 1 [{ITEMS} = 2]; map<string, Row> named = 2 [{ITEMS} = 2];
      google.protobuf.BoolValue a = 3 [{CAT} = {{epsilon: 0.001}}]; google.protobuf.BoolValue b = 4 [{CAT} = {{epsilon: 0.001}}];
      repeated google.protobuf.DoubleValue c = 5 [{duchi(1)}, {ITEMS} = 2]; }}
    message Row {{ double a = 1 [{duchi(1)}]; double b = 2 [{duchi(1)}]; bool c = 3 [{CAT} = {{epsilon: 0.001}}]; }}"""
)
MIDDLE = {"double": 0.5, "bool": False, "Two": 0, "string": "a", "int32": 1}


def middle(kind, repeated=False):
    """A message whose numbers stand in the middle of their range, where all noise is symmetric."""
    values = {}
    number = 0
    for name, rules in RULES.items():
        for _ in range(2 * len(rules)):
            number += 1
            values[f"f{number}"] = [MIDDLE[name]] * 2 if repeated else MIDDLE[name]
    return kind(**values)


def rows():
    row = BITS.Row(a=0.5, b=0.5)
    return BITS.Wrapped(rows=[row, row], named={"a": row, "b": row}, c=[{"value": 0.5}, {"value": 0.5}])


def bits(value):
    """Two bits of an output: on which side it is of the middle, and, if it is a number, how far from it."""
    if isinstance(value, bool):
        return float(value), None
    if isinstance(value, str):
        return float(value in ("c", "d")), None
    if isinstance(value, int):
        return float(value > 2), None
    return float(value > 0.5), abs(value - 0.5)


@pytest.mark.parametrize(
    ("message", "places"),
    [
        (middle(BITS.Single), 32),
        (BITS.Pair(one=middle(BITS.Single), two=middle(BITS.Single)), 64),
        (middle(BITS.Lists, repeated=True), 60),
        (rows(), 16),
    ],
    ids=["fields", "messages", "elements", "rows"],
)
async def test_no_draw_tells_of_another(message, places):
    """1,000 messages; every correlation of two bits is below .3, which is 9.5 standard deviations.

    False alarm below 1e-6: for 128 columns, 3 x 128^2 pairs, each 2 exp(-32) by Bernstein's inequality.
    """
    count = 1000
    table = {}
    async with dpmesh.open(settings()) as mesh:
        for number in range(count):
            for place, bit in _row((await mesh.release(message)).message):
                table.setdefault(place, np.zeros(count))[number] = bit
    assert len([place for place in table if not place.endswith("|")]) == places
    data = []
    for place, column in table.items():
        if place.endswith("|"):
            column = column > np.median(column)
        share = column.mean()
        # Duchi's outputs are all as far from the middle, but for their rounding.
        if 0.2 < share < 0.8:
            data.append((column - share) / column.std())
        else:
            assert place.endswith("|"), f"{place} hardly varies"
    data = np.array(data)
    for lag in (0, 1, 2):
        correlation = data[:, lag:] @ data[:, : count - lag].T / (count - lag)
        if lag == 0:
            correlation -= np.eye(len(data))
        assert np.abs(correlation).max() < 0.3


def _row(message, path=""):
    """The bits of all places, those of values that are absent on the wire included."""
    for field in message.DESCRIPTOR.fields:
        entry, value = field.message_type, getattr(message, field.name)
        if field.containing_oneof is not None:
            continue
        if entry is not None and entry.GetOptions().map_entry:
            inner = [(f"{{{key}}}", value[key]) for key in sorted(value)]
        elif field.is_repeated:
            inner = [(f"[{index}]", element) for index, element in enumerate(value)]
        else:
            inner = [("", value)]
        for mark, one in inner:
            place = f"{path}{field.name}{mark}"
            if entry is not None and not entry.full_name.startswith("google.protobuf."):
                yield from _row(one, place + ".")
                continue
            one = one.value if entry is not None else one
            side, distance = bits(bool(one) if field.enum_type is not None else one)
            yield place, side
            if distance is not None:
                yield place + "|", distance
    for oneof in message.DESCRIPTOR.oneofs:
        # Of four choices, "none" included, two.
        yield path + oneof.name, float(message.WhichOneof(oneof.name) in (f"{oneof.name}a", f"{oneof.name}b"))


# -- pools --------------------------------------------------------------------------------------------------------


class Numbers:
    """Makes 1, 2, 3, ... instead of noise, so that a draw that is given twice shows."""

    def __init__(self):
        self.next = 1

    def __call__(self, count, stream):
        start, self.next = self.next, self.next + count
        return np.arange(start, start + count)


def test_equal_laws_in_one_row_draw_each_for_itself():
    block = Numbers()
    same = [Draws("law", block, "y = x + code") for _ in range(3)]
    stock = joint([*same, same[0]])
    rows = [stock.refill()] + [stock.pop() for _ in range(100)]
    drawn = [code for row in rows for code in row]
    assert {len(row) for row in rows} == {4}
    assert len(set(drawn)) == len(drawn)


def test_each_column_of_a_row_is_one_law_for_its_own_place():
    codes = [
        Draws(number, lambda count, _, number=number: np.full(count, number), "y = x + code")
        for number in range(5)
    ]
    assert joint(codes).refill() == [0, 1, 2, 3, 4]


def test_functions_of_equal_laws_share_a_pool_and_no_draw():
    block = Numbers()
    codes = Draws(("a law of this test", block), block, "y = x + code")
    draws = [draw_function(codes) for _ in range(3)]
    drawn = [draw(0) for _ in range(500) for draw in draws]
    assert len(set(drawn)) == len(drawn)


def test_two_plans_of_one_type_share_no_draw():
    """False alarm below 1e-9: 600 values of discrete Laplace noise with a scale of 2^50 steps."""
    plans = [Policy().plan(WIDE.Other.DESCRIPTOR) for _ in range(2)]
    outs = [plan.protect(WIDE.Other(), lambda *_: b"") for _ in range(60) for plan in plans]
    values = [abs(value) for out in outs for _, value in leaves(out)]
    assert len(values) == 120 * 6
    assert len(set(values)) == len(values)
