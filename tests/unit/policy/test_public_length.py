"""`length: PUBLIC`: a message shows as many elements as it holds, cut at max_items, and is charged for max_items."""

import pytest

from dpmesh import estimate
from dpmesh.accounting import AMOUNT
from dpmesh.policy import Policy, Severity
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

# At epsilon 64 the truth leaves, but for one draw in 10^27.
TYPES = compiled(
    """message Batch { string id = 1 [(dpmesh.v1.field).unit = {}];
        repeated bool on = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 2} max_items: 4 length: PUBLIC}];
        repeated Row row = 3 [(dpmesh.v1.field) = {max_items: 3 length: PUBLIC}];
        map<string, Row> by_name = 4 [(dpmesh.v1.field) = {max_items: 2 length: PUBLIC}]; }
    message Row { bool up = 1 [(dpmesh.v1.field).categorical = {epsilon: 64}];
        repeated sint32 level = 2 [(dpmesh.v1.field) = {numeric: {lower: -9 upper: 9 epsilon: 2} max_items: 2}]; }
    message Reports { repeated Report report = 1 [(dpmesh.v1.field).length = PUBLIC]; }
    message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool up = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
    message Counts { repeated int64 count = 1 [(dpmesh.v1.field) = {max_items: 3 length: PUBLIC
        numeric: {lower: 0 upper: 100 epsilon: 3 sensitivity: 1}}]; }"""
)


def alias(unit: bytes, epoch: float) -> bytes:
    return (unit + b"#" * 16)[:16]


def plan(kind):
    return Policy().plan(kind.DESCRIPTOR)


def protect(message):
    return plan(type(message)).protect(message, alias)


def found(body, severity=Severity.ERROR):
    kind = compiled(body).M
    return [d.rule for d in Policy().diagnostics(kind.DESCRIPTOR) if d.severity is severity]


@pytest.mark.parametrize("number", [0, 1, 4, 5, 200])
def test_a_field_shows_as_many_elements_as_it_holds_up_to_max_items(number):
    out = protect(TYPES.Batch(id="a", on=[True] * number))
    assert len(out.on) == min(number, 4)


@pytest.mark.parametrize("number", [0, 1, 3, 7])
def test_so_does_a_repeated_message_whose_hidden_lengths_stay_hidden(number):
    out = protect(TYPES.Batch(id="a", row=[TYPES.Row(up=True, level=[1])] * number))
    assert [(row.up, len(row.level)) for row in out.row] == [(True, 2)] * min(number, 3)


def test_a_map_is_cut_as_ever():
    names = {name: TYPES.Row(up=True) for name in "cab"}
    assert sorted(protect(TYPES.Batch(id="a", by_name=names)).by_name) == ["a", "b"]


@pytest.mark.parametrize("number", [0, 2, 9])
def test_the_cost_does_not_depend_on_how_many_there_are(number):
    compiled_plan = plan(TYPES.Batch)
    assert compiled_plan.cost.epsilon == (2 + (3 + 2) * (64 + 2)) * AMOUNT
    message = TYPES.Batch(id="a", on=[True] * number, row=[TYPES.Row()] * number)
    assert list(compiled_plan.owners(message)) == [(0, b"a")]


def test_elements_with_units_of_their_own_pay_each_for_itself_and_are_not_cut():
    message = TYPES.Reports(report=[TYPES.Report(id=name) for name in "abc"])
    assert [unit for _, unit in plan(TYPES.Reports).owners(message)] == [b"a", b"b", b"c"]
    assert len(protect(message).report) == 3


def test_aggregates_may_be_fewer():
    assert [len(protect(TYPES.Counts(count=[5] * n)).count) for n in (0, 2, 4)] == [0, 2, 3]


def test_a_hidden_length_around_it_or_a_hidden_choice_is_not_given_away():
    inner = "message I { repeated bool b = 1 [(dpmesh.v1.field) = {categorical: {epsilon: 1} max_items: 2 length: PUBLIC}]; }"
    outer = "message M { repeated I i = 1 [(dpmesh.v1.field).max_items = 2]; }"
    assert "length-shown" in found(outer + inner, Severity.WARNING)
    choice = (
        "message M { oneof o { option (dpmesh.v1.oneof) = {epsilon: 1}; I i = 1; "
        "bool c = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; } }"
    )
    assert "oneof-choice" in found(choice + inner)


def test_whom_a_unit_has_met_stays_hidden_where_their_number_is_public():
    outer = """message M { string id = 1 [(dpmesh.v1.field).unit = {}];
        repeated Met met = 2 [(dpmesh.v1.field) = {max_items: 2 length: PUBLIC}]; }"""
    met = "message Met { string id = 1 [(dpmesh.v1.field).unit = {%s}]; bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }"
    assert found(outer + met % "") == ["unit-nested"]
    assert found(outer + met % "form: SUPPRESSED") == []


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("bool b = 1 [(dpmesh.v1.field) = {categorical: {epsilon: 1} length: PUBLIC}]", "length"),
        ("repeated bool b = 1 [(dpmesh.v1.field) = {categorical: {epsilon: 1} length: PUBLIC}]", "max-items"),
        ("repeated bool b = 1 [(dpmesh.v1.field) = {public: {} length: PUBLIC}]", "length"),
        ("repeated bool b = 1 [(dpmesh.v1.field) = {suppress: {} length: PUBLIC}]", "length"),
        ("repeated bool b = 1 [(dpmesh.v1.field).length = PUBLIC]", "max-items"),
        (
            "repeated string s = 1 [(dpmesh.v1.field) = {length: PUBLIC "
            'categorical: {epsilon: 1 domain: ["a", "b", "c"] mechanism: SUBSET_SELECTION}}]',
            "length",
        ),
        (
            "repeated float v = 1 [(dpmesh.v1.field) = {length: PUBLIC vector: {epsilon: 1 l2_norm: 1 dimension: 8}}]",
            "length",
        ),
        ("R r = 1 [(dpmesh.v1.field).length = PUBLIC]", "max-items"),
        ("repeated R r = 1 [(dpmesh.v1.field).length = PUBLIC]", "max-items"),
    ],
)
def test_it_is_refused_where_it_means_nothing_or_has_no_bound(field, rule):
    rest = "bool x = 9 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }"
    assert found(f"message M {{ {field}; {rest} message R {{ {rest}") == [rule]


def test_it_is_refused_in_a_message_of_which_nothing_is_protected():
    assert found("message M { repeated bool b = 1 [(dpmesh.v1.field).length = PUBLIC]; }") == ["length"]


def test_an_estimate_is_about_the_elements_that_there_are():
    reader = estimate.Reader(TYPES.Batch, policy_pb2.Policy())
    out = [protect(TYPES.Batch(id="a", on=[True] * n, row=[TYPES.Row(up=True)] * n)) for n in (0, 1, 3)]
    for path in ("on", "row[].up"):
        (share, *_) = reader.frequencies(path, out).values()
        assert (share.n, share.per_place) == (4, False)
    assert reader.mean("row[].level", out).per_place
