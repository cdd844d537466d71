"""Repeated fields that are one value: what leaves of them, whatever they hold, and which rules are refused."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError
from dpmesh.noise import categorical
from dpmesh.policy import Policy
from tests.support.protos import compiled

CAT = "(dpmesh.v1.field).categorical"
SUBSET = f"[{CAT} = {{epsilon: 1 mechanism: SUBSET_SELECTION %s}}]"
CITIES = [f"city-{number:02}" for number in range(16)]
LARGE = " ".join(f'domain: "{number}"' for number in range(1025))
DOMAIN = " ".join(f'domain: "{city}"' for city in CITIES)
TYPES = compiled(
    f"""message M {{ repeated string city = 1 {SUBSET % DOMAIN};
    repeated Color color = 2 {SUBSET % ""}; repeated bool flag = 3 {SUBSET % ""};
    repeated google.protobuf.StringValue boxed = 4 {SUBSET % DOMAIN};
    repeated int64 code = 5 {SUBSET % 'domain: "7" domain: "-3" domain: "12" domain: "900"'}; }}
    enum Color {{ option allow_alias = true; RED = 0; GREEN = 5; ALSO_GREEN = 5; BLUE = 7; VIOLET = 9; }}"""
)


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


def protect(message):
    return Policy().plan(type(message).DESCRIPTOR).protect(message, alias)


def refused(field: str) -> AnnotationError:
    types = compiled(f"enum Color {{ RED = 0; GREEN = 1; }} message M {{ {field} }}")
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(types.M.DESCRIPTOR)
    return caught.value


def test_a_field_costs_its_epsilon_once_and_counts_the_values_that_it_shows():
    plan = Policy().plan(TYPES.M.DESCRIPTOR)
    city = plan.fields[0]
    assert (city.epsilon, city.cost.epsilon, city.repeats) == (1, AMOUNT, 1)
    assert city.mechanism_name == "subset_selection"
    assert city.payload.mechanism is categorical.make_subset(16, Fraction(1))
    assert plan.cost.epsilon == 5 * AMOUNT
    shown = city.kind.describe(city)
    assert shown.output == "4 of 16; sd of a rare share 1.76% on 10,000 reports"
    assert shown.truth == pytest.approx(0.475, abs=1e-3)


@pytest.mark.parametrize(
    "held", [[], ["city-03"], ["city-03", "city-04"], ["Atlantis"], ["x" * (1 << 20)], CITIES * 2], ids=len
)
def test_every_message_shows_subsets_of_one_length_in_the_order_of_the_set(held):
    message = TYPES.M(city=held, color=[7, 5, 0, 9], code=[12])
    for text in held:
        message.boxed.add(value=text)
    for _ in range(20):
        out = protect(message)
        lengths = [len(out.city), len(out.color), len(out.flag), len(out.boxed), len(out.code)]
        assert lengths == [4, 1, 1, 4, 1]
        cities = list(out.city)
        assert cities == sorted(set(cities))
        assert set(cities) <= set(CITIES)
        boxed = [box.value for box in out.boxed]
        assert boxed == sorted(set(boxed))
        assert set(boxed) <= set(CITIES)
        assert out.color[0] in (0, 5, 7, 9)
        assert out.code[0] in (7, -3, 12, 900)


SURE = compiled(
    f"""message M {{ repeated string city = 1 [{CAT} = {{epsilon: 60 mechanism: SUBSET_SELECTION {DOMAIN}}}];
    repeated Color color = 2 [{CAT} = {{epsilon: 60 mechanism: SUBSET_SELECTION}}];
    repeated google.protobuf.Int32Value code = 3 [{CAT} = {{epsilon: 60 mechanism: SUBSET_SELECTION
        domain: "5" domain: "0"}}]; }}
    enum Color {{ RED = 0; GREEN = 1; BLUE = 2; }}"""
)


@pytest.mark.parametrize(
    ("given", "city", "color", "code"),
    [
        ({"city": ["city-09"], "color": [2], "code": [{"value": 5}]}, "city-09", 2, 5),
        ({"city": ["city-09", "city-01"], "color": [1, 2], "code": [{}, {"value": 5}]}, "city-09", 1, 0),
        ({}, "city-00", 0, 0),
        ({"city": [""], "color": [77], "code": [{"value": 8}]}, "city-00", 0, 5),
    ],
)
def test_the_first_value_counts_and_what_is_none_of_the_set_is_a_default(given, city, color, code):
    """At epsilon 60 anything else leaves once in 10^24 times."""
    out = protect(SURE.M(**given))
    assert (list(out.city), list(out.color), [box.value for box in out.code]) == ([city], [color], [code])


def test_nothing_leaves_where_the_budget_is_spent():
    plan = Policy().plan(TYPES.M.DESCRIPTOR)
    assert plan.blank(TYPES.M(city=["city-03"]), alias).ByteSize() == 0


def test_what_leaves_holds_the_value_as_often_as_it_should():
    """8,000 messages, 6 deviations: 2e-9 each. A shift by one place, or none at all, is noticed."""
    plan = Policy().plan(TYPES.M.DESCRIPTOR)
    mechanism, n = plan.fields[0].payload.mechanism, 8000
    message = TYPES.M(city=["city-11"])
    seen = Counter(city for _ in range(n) for city in plan.protect(message, alias).city)
    for city in CITIES:
        p = mechanism.truth if city == "city-11" else mechanism.lie
        assert abs(seen[city] - n * p) < 6 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("mechanism", f"string a = 1 {SUBSET % DOMAIN};"),
        ("mechanism", f"Color a = 1 {SUBSET % ''};"),
        ("mechanism", f"map<string, bool> a = 1 {SUBSET % ''};"),
        ("mechanism", f"bool a = 1 [{CAT} = {{epsilon: 1 mechanism: OPTIMIZED_LOCAL_HASHING}}];"),
        (
            "max-items",
            f"repeated bool a = 1 {SUBSET % ''};".replace("];", ", (dpmesh.v1.field).max_items = 1];"),
        ),
        ("max-items", f"repeated bool a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("domain", f"repeated string a = 1 {SUBSET % ''};"),
        ("domain", f"repeated string a = 1 {SUBSET % LARGE};"),
        ("kind-type", f"repeated double a = 1 {SUBSET % ''};"),
        ("epsilon", f"repeated bool a = 1 [{CAT} = {{mechanism: SUBSET_SELECTION}}];"),
    ],
)
def test_ambiguous_rules_are_refused(rule, field):
    assert refused(field).rule == rule


def test_a_value_that_stands_twice_in_a_domain_is_named():
    rule = f'{CAT} = {{epsilon: 1 domain: "north" domain: "south" domain: "north"}}'
    assert "has a value twice: 'north'" in str(refused(f"string a = 1 [{rule}];"))
