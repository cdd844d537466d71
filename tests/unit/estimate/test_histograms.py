"""The sum of each key over noisy maps, with intervals that hold."""

import json
import math
import tracemalloc
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from dpmesh.estimate import EstimateError, Reader
from dpmesh.estimate.laws import Laplace
from dpmesh.policy import Policy
from tests.support.protos import compiled

HIST = "(dpmesh.v1.field).histogram"
ALMOST_SURE = 1 - 1e-9
TYPES = compiled(
    f"""message Day {{
        map<string, uint64> visits = 1 [{HIST} = {{keys: ["north", "south", "none"] contribution: 1 epsilon: 1}}];
        map<int32, double> sums = 2 [{HIST} = {{keys: ["1", "2"] contribution: 5 epsilon: 1}}];
        double other = 3 [(dpmesh.v1.field).numeric = {{lower: 0 upper: 1 epsilon: 1}}]; }}
    message Own {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
        map<string, uint32> m = 2 [{HIST} = {{keys: ["a", "b"] lower: 0 upper: 10 epsilon: 4}}]; }}
    message Open {{ map<string, uint32> m = 1 [{HIST} = {{contribution: 1 epsilon: 1 delta: 1e-6}}]; }}
    message Floor {{ map<string, double> m = 1 [{HIST} = {{contribution: 2 max_keys: 2 threshold: 5 epsilon: 2
        delta: 1e-4}}]; }}
    message Week {{ repeated Day days = 1 [(dpmesh.v1.field).max_items = 2]; }}"""
)


def alias(unit, epoch):
    return b"#" * 16


@cache
def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def released(message, count):
    plan = plan_of(type(message))
    return [plan.protect(message, alias) for _ in range(count)]


DAY = TYPES.Day(visits={"north": 40, "south": 3}, sums={1: 7.5, 2: 1.25})


def test_sums_are_unbiased_and_covered():
    """A thousand maps, each interval wrong once in 10^9."""
    found = Reader(TYPES.Day).histogram("visits", released(DAY, 1000), confidence=ALMOST_SURE)
    assert list(found) == ["north", "south", "none"]
    assert {entry.n for entry in found.values()} == {1000}
    for key, truth in [("north", 40_000), ("south", 3000), ("none", 0)]:
        assert found[key].covers(truth)
        assert found[key].margin < 7 * math.sqrt(2000)
    sums = Reader(TYPES.Day).histogram("sums", released(DAY, 1000), confidence=ALMOST_SURE)
    assert sums[1].covers(7500)
    assert sums[2].covers(1250)


@pytest.mark.parametrize("maps", [1, 3])
def test_intervals_cover_as_often_as_they_say(maps):
    """1,000 intervals of 90 %, wrong beyond 5 standard errors: once in 10^6. Discrete noise covers a little more."""
    reader, plan = Reader(TYPES.Day), plan_of(TYPES.Day)
    hits = 0
    for _ in range(1000):
        found = reader.histogram("visits", [plan.protect(DAY, alias) for _ in range(maps)], confidence=0.9)
        hits += found["north"].covers(40 * maps)
    assert 0.9 - 5 * 0.0095 <= hits / 1000 <= 0.94 + 5 * 0.0076


def test_the_margin_of_a_sum_is_that_of_its_law():
    for b, n in [(0.25, 2), (1.0, 2), (1.0, 5), (3.0, 4)]:
        a = math.exp(-1 / b)
        one = (1 - a) / (1 + a) * a ** np.abs(np.arange(-200, 201))
        law = one
        for _ in range(n - 1):
            law = np.convolve(law, one)
        centre = len(law) // 2
        for confidence in (0.5, 0.9, 0.95, 0.999):
            within = np.cumsum(np.concatenate([[law[centre]], 2 * law[centre + 1 :]]))
            assert Laplace(b).margin_of_sum(n, confidence) == int(np.searchsorted(within, confidence))
    # Both ways agree where they meet: 0.5 % of 1,000 steps.
    below, above = (Laplace(b).margin_of_sum(2, 0.95) / b for b in (499.0, 501.0))
    assert below == pytest.approx(above, rel=0.005)


def test_a_units_own_maps_add_up():
    own = TYPES.Own(id="u", m={"a": 6})
    found = Reader(TYPES.Own).histogram("m", released(own, 500), confidence=ALMOST_SURE)
    assert found["a"].covers(3000)
    assert found["b"].covers(0)


def test_maps_in_nested_messages_add_up():
    week = TYPES.Week(days=[DAY, DAY])
    found = Reader(TYPES.Week).histogram("days.visits", released(week, 50), confidence=ALMOST_SURE)
    assert found["north"].n == 100
    assert found["north"].covers(4000)


@pytest.mark.parametrize("call", ["mean", "sum", "distribution"])
def test_numbers_of_different_keys_are_not_mixed(call):
    reader = Reader(TYPES.Day)
    with pytest.raises(EstimateError, match="visits: is histogram, .*: use histogram"):
        getattr(reader, call)("visits", released(DAY, 3))
    with pytest.raises(EstimateError, match="use histogram"):
        reader.accumulator("visits", bins=3)
    with pytest.raises(EstimateError, match="use histogram"):
        reader.accumulator("visits").mean()


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (DAY, "visits"),
        (DAY, "sums"),
        (TYPES.Own(id="u", m={"a": 6}), "m"),
        (TYPES.Open(m={"a": 90, "n": 40}), "m"),
    ],
)
def test_parts_that_are_merged_give_exactly_the_answer_of_all(message, path):
    reader, messages = Reader(type(message)), released(message, 40)
    expected = reader.histogram(path, messages)
    merged = reader.accumulator(path).add(messages[30:])
    merged.merge(json.loads(json.dumps(reader.accumulator(path).add(messages[:30]).to_dict())))
    assert (merged.n, merged.histogram()) == (40, expected)
    assert reader.histogram(path, [dict(getattr(each, path)) for each in messages]) == expected


def test_stored_keys_of_another_form_are_refused():
    reader = Reader(TYPES.Open)
    state = reader.accumulator("m").add([TYPES.Open(m={"a": 30})]).to_dict()
    assert list(state["figures"]) == ["n", '"a"']
    for name, figure in [("a", [1, 2]), ("5", [1, 2]), ('"b"', [1]), (' "b"', [1, 2]), ("[" * 9999, [1, 2])]:
        changed = {**state, "figures": {**state["figures"], name: figure}}
        with pytest.raises(EstimateError, match="figures that no accumulator of it has"):
            reader.accumulator("m").merge(changed)
    with pytest.raises(EstimateError, match="is no map"):
        reader.accumulator("m").add([3])
    with pytest.raises(EstimateError, match="one of the keys"):
        reader.accumulator("m").add([{3: 30}])


def test_memory_does_not_grow_with_the_maps():
    reader, (day,) = Reader(TYPES.Day), released(DAY, 1)
    reader.accumulator("visits").add([day])
    tracemalloc.start()
    found = reader.accumulator("visits").add(day for _ in range(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.n, peak < 2_000_000) == (20_000, True)


def test_what_this_policy_has_not_released_is_refused():
    reader = Reader(TYPES.Day)
    good = released(DAY, 1)
    with pytest.raises(EstimateError, match="there are no maps"):
        reader.histogram("visits", [])
    with pytest.raises(EstimateError, match="there are no maps"):
        reader.histogram("visits", [TYPES.Day()])  # It left under on_exhausted = "suppress".
    with pytest.raises(EstimateError, match="does not hold its public keys"):
        reader.histogram("visits", [*good, TYPES.Day(visits={"north": 1})])
    with pytest.raises(EstimateError, match="does not hold its public keys"):
        reader.histogram("visits", [*good, TYPES.Day(visits={"north": 1, "south": 1, "west": 1})])
    with pytest.raises(EstimateError, match="is numeric, no histogram"):
        reader.histogram("other", good)
    with pytest.raises(EstimateError, match=r"is no \S*Day"):
        reader.histogram("visits", [*good, {"north": 1}])


@pytest.mark.parametrize("count", [5, 14, 20, 60])
@pytest.mark.parametrize("maps", [1, 2])
def test_intervals_of_selected_keys_cover(count, maps):
    """300 intervals of 90 % that fail independently: more than 60 failures once in 10^7. A key that no map shows counts
    as covered, because nothing is said of it."""
    reader, plan, held = Reader(TYPES.Open), plan_of(TYPES.Open), TYPES.Open(m={"a": count})
    misses = 0
    for _ in range(300):
        found = reader.histogram("m", [plan.protect(held, alias) for _ in range(maps)], confidence=0.9)
        misses += "a" in found and not found["a"].covers(count * maps)
    assert misses <= 60


def test_sums_of_selected_keys_are_unbiased_where_every_count_passes():
    """2,000 maps: within 5 standard errors but once in 10^6."""
    held = TYPES.Open(m={"a": 100, "b": 1})
    found = Reader(TYPES.Open).histogram("m", released(held, 2000))
    assert found["a"].n == 2000
    deviation = math.sqrt(plan_of(TYPES.Open).fields[0].payload.law.variance)
    assert abs(found["a"].value / 2000 - 100) < 5 * deviation / math.sqrt(2000)
    assert found["a"].covers(200_000)


def test_selected_keys_of_floats_with_a_threshold_add_up():
    held = TYPES.Floor(m={"a": 80.5, "b": 4.5, "c": 60})
    found = Reader(TYPES.Floor).histogram("m", released(held, 50), confidence=ALMOST_SURE)
    assert list(found) == ["a", "c"]
    assert found["a"].covers(50 * 80.5)
    assert found["c"].covers(50 * 60)
    assert found["c"].low > 50 * 30


def test_counts_that_no_threshold_lets_pass_are_refused():
    reader = Reader(TYPES.Open)
    with pytest.raises(EstimateError, match="there are no maps"):
        reader.histogram("m", [])
    with pytest.raises(EstimateError, match="none of its policy's outputs"):
        reader.histogram("m", [TYPES.Open(m={"a": 3})])
    with pytest.raises(EstimateError, match="none of its policy's outputs"):
        Reader(TYPES.Floor).histogram("m", [TYPES.Floor(m={"a": math.nan})])
    with pytest.raises(EstimateError, match="is histogram, .*: use histogram"):
        reader.mean("m", [TYPES.Open(m={"a": 30})])
    assert reader.histogram("m", [TYPES.Open()]) == {}


@pytest.mark.parametrize("message", [TYPES.Own(id="u", m={"a": 9}), TYPES.Open(m={"a": 40})])
@pytest.mark.parametrize("form", [pa.map_(pa.string(), pa.int64()), None], ids=["map", "struct"])
def test_columns_of_maps_give_what_their_messages_give(message, form):
    maps = [dict(noisy.m) for noisy in released(message, 50)]
    column = pa.array([*maps, None] if form is None else [*map(list, map(dict.items, maps)), None], form)
    reader = Reader(type(message))
    assert reader.histogram("m", column) == reader.histogram("m", maps)


@pytest.mark.parametrize(
    "values",
    [
        [{"a": "secret", "b": "x"}],
        pa.array([{"a": "secret", "b": "x"}]),
        pa.array(["secret"]),
        pa.array([["secret"]]),
        pa.array([[("a", 1), ("a", 2), ("b", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
)
@pytest.mark.parametrize("kind", [TYPES.Own, TYPES.Open])
def test_columns_of_something_else_are_refused(kind, values):
    with pytest.raises(EstimateError) as caught:
        Reader(kind).histogram("m", values)
    assert "secret" not in str(caught.value)
