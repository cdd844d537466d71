"""Memoized fields: which can be, what all answers of a unit cost, and the exact law of what leaves."""

import itertools
import math
from fractions import Fraction

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.noise.randomized_response import RandomizedResponse
from dpmesh.noise.thresholds import ONE
from dpmesh.policy import Policy
from dpmesh.report.plan import Planner
from tests.support.protos import compiled

CAT = "(dpmesh.v1.field) = {categorical: {epsilon: 1 %s} memoize: {%s}}"
BOOL = f"bool b = 2 [{CAT % ('', '')}];"
ABCD = "domain: ['a', 'b', 'c', 'd']"
UNIT = "string id = 1 [(dpmesh.v1.field).unit = {}];"
NUM = "(dpmesh.v1.field) = {numeric: {lower: 0 upper: 40 epsilon: 0.5 %s} memoize: {}}"


def plan(fields, more=""):
    made = compiled(f"message M {{ {UNIT} {fields} }} {more}")
    return Policy().plan(made.M.DESCRIPTOR)


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("memoize", f"message M {{ {BOOL} }}"),
        ("memoize", f"message M {{ {UNIT} repeated bool b = 2 [(dpmesh.v1.field) = {{categorical: {{epsilon: 1}} max_items: 2 memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} google.protobuf.BoolValue b = 2 [{CAT % ('', '')}]; }}"),
        ("memoize", f"message M {{ {UNIT} oneof o {{ option (dpmesh.v1.oneof).public = true; {BOOL} bool c = 3 [{CAT % ('', '')}]; }} }}"),
        ("memoize", f"message N {{ {UNIT} {BOOL} }} message M {{ repeated N n = 1 [(dpmesh.v1.field).max_items = 2]; }}"),
        ("memoize", f"message N {{ {BOOL} }} message M {{ {UNIT} N n = 2; }}"),
        ("memoize", f"message M {{ {UNIT} {BOOL} google.protobuf.Any any = 3; }}"),
        ("memoize", f"message M {{ {UNIT} {BOOL} bool c = 3 [{CAT % ('', 'epoch: {seconds: 60}')}]; }}"),
        ("memoize", f"message M {{ {UNIT} double a = 2 [{NUM % ''}]; }}"),
        ("memoize", f"message M {{ {UNIT} double a = 2 [{NUM % 'resolution: 0.5'}]; }}"),
        ("memoize", f"message M {{ {UNIT} double a = 2 [{NUM % 'resolution: 10 sensitivity: 1'}]; }}"),
        ("memoize", f"message M {{ {UNIT} double a = 2 [{NUM % 'resolution: 10 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN'}]; }}"),
        ("memoize", f"message M {{ {UNIT} string a = 2 [(dpmesh.v1.field) = {{pseudonym: {{}} memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} string a = 2 [(dpmesh.v1.field) = {{suppress: {{}} memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} string a = 2 [(dpmesh.v1.field).memoize = {{}}]; }}"),
        ("memoize", f"message M {{ {UNIT} int64 a = 2 [(dpmesh.v1.field) = {{time: {{earliest: '0s' latest: '60s' step: SECOND resolution: {{seconds: 10}} epsilon: 1}} memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} map<string, int64> a = 2 [(dpmesh.v1.field) = {{histogram: {{keys: 'a' contribution: 1 epsilon: 1}} memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} repeated string a = 2 [(dpmesh.v1.field) = {{categorical: {{epsilon: 1 domain: ['a', 'b', 'c', 'd'] mechanism: SUBSET_SELECTION}} memoize: {{}}}}]; }}"),
        ("memoize", f"message M {{ {UNIT} P p = 2 [(dpmesh.v1.field) = {{location: {{epsilon_per_km: 0.1 min_latitude: 0 max_latitude: 1 min_longitude: 0 max_longitude: 1}} memoize: {{}}}}]; }} message P {{ double latitude = 1; double longitude = 2; }}"),
        ("memoize", "message M { string id = 1 [(dpmesh.v1.field) = {unit: {} memoize: {}}]; }"),
        ("memoize", "message M { string id = 1 [(dpmesh.v1.field).memoize = {}]; }"),
        ("epoch", f"message M {{ {UNIT} bool b = 2 [{CAT % ('', 'epoch: {}')}]; }}"),
        ("epoch", f"message M {{ {UNIT} bool b = 2 [{CAT % ('', 'epoch: {seconds: -1}')}]; }}"),
    ],
)  # fmt: skip
def test_what_can_not_be_memoized_is_refused(rule, body):
    made = compiled(body)
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(made.M.DESCRIPTOR)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("field", "states", "each"),
    [
        (BOOL, 2, 1),
        (f"State s = 2 [{CAT % ('', '')}];", 3, 1),
        (f"string s = 2 [{CAT % (ABCD, '')}];", 4, 1),
        (f"double a = 2 [{NUM % 'resolution: 10'}];", 5, 0.5),
        (f"int32 a = 2 [{NUM % 'resolution: 20 mechanism: DISCRETE_LAPLACE'}];", 3, 0.5),
    ],
)  # fmt: skip
def test_a_unit_pays_once_for_an_answer_to_every_value(field, states, each):
    found = plan(field, "enum State { A = 0; B = 1; C = 2; }")
    assert found.cost.epsilon == 0
    assert found.memos.cost.epsilon == states * each * AMOUNT
    assert found.memos.epoch == 86_400.0


def test_plan_and_check_say_what_is_memoized_and_what_it_shows():
    made = compiled(f"message M {{ {UNIT} bool b = 2 [{CAT % ('', 'epoch: {seconds: 3600}')}]; bool c = 3 [(dpmesh.v1.field).categorical = {{epsilon: 0.5}}]; }}")  # fmt: skip
    policy = Policy()
    budget = Budget("daily", "unit", 8.0, 0.0, Accounting.PURE, 86_400.0)
    report = Planner(policy, [budget], 1.0).report(made.M.DESCRIPTOR)
    assert (report.refused, report.epsilon) == (None, 0.5)
    assert (report.memoized.seconds, report.memoized.epsilon) == (3600, 2)
    assert report.memoized.shares == {"daily": 0.25}
    assert (
        report.fields[1].output == "one of 2; memoized for 1 h (2 states, 1 each), and shows when it changes"
    )
    assert report.fields[1].epsilon == 2
    assert [entry.rule for entry in policy.diagnostics(made.M.DESCRIPTOR)] == ["memoize-changes"]


# -- the exact law ----------------------------------------------------------------------------------------------------


def truth_table(k):
    """The law of one answer, from the threshold in use: [value][answer], exact."""
    law = RandomizedResponse(k, Fraction(1))
    truth = Fraction(law.threshold, ONE)
    lie = (1 - truth) / (k - 1)
    return [[truth if x == y else lie for y in range(k)] for x in range(k)]


def law_of(history, table):
    """The law of all that leaves of a history of values: answers of a table that is drawn once."""
    k, found = len(table), {}
    for answers in itertools.product(range(k), repeat=k):
        chance = math.prod(table[x][answers[x]] for x in range(k))
        shown = tuple(answers[x] for x in history)
        found[shown] = found.get(shown, 0) + chance
    return found


@pytest.mark.parametrize("k", [2, 3])
def test_histories_that_repeat_at_the_same_places_are_told_apart_by_no_more_than_is_paid(k):
    table, worst = truth_table(k), 0.0
    histories = list(itertools.product(range(k), repeat=k))
    for one, other in itertools.product(histories, repeat=2):
        if [one.index(x) for x in one] != [other.index(x) for x in other]:
            continue  # What changes when is not hidden: see docs/replay.md.
        left, right = law_of(one, table), law_of(other, table)
        assert left.keys() == right.keys()
        worst = max(worst, *(math.log(left[shown] / right[shown]) for shown in left))
    assert worst <= k * 1.0 + 1e-12, "more is lost than is paid"
    assert worst >= 0.999 * k, "the bound is not the cost of this table"


def test_another_message_tells_nothing_new_about_a_value_that_stays():
    table = truth_table(3)
    for value in range(3):
        once, often = law_of((value,), table), law_of((value,) * 5, table)
        assert {shown * 5: chance for shown, chance in once.items()} == often


class FirstCodes:
    """A pseudonym function whose memoized answers are all drawn with the code 0."""

    def __call__(self, value, epoch, namespace=""):
        return bytes(16)

    def codes(self, label, draws, states):
        return [0] * states


def test_choices_that_leave_where_a_budget_is_exhausted_are_replayed_too():
    number = "(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}"
    made = compiled(
        f"""message M {{ {UNIT} {BOOL} oneof plain {{ string x = 3; string y = 4; }}
        oneof shown {{ option (dpmesh.v1.oneof).public = true; string u = 5; double v = 6 [{number}]; }} }}"""
    )
    compiled_plan = Policy().plan(made.M.DESCRIPTOR)
    message = made.M(id="a", b=True, x="x", u="u")
    blank = compiled_plan.blank(message, FirstCodes())
    replayed = compiled_plan.memos.build(compiled_plan.snapshot(message), FirstCodes())
    assert (blank.x, blank.u, blank.b) == ("x", "u", False)
    assert (replayed.x, replayed.u, replayed.b) == ("x", "u", True)


def test_answers_are_for_the_values_of_an_enum_and_not_only_for_their_number():
    labels = {
        plan(f"E e = 2 [{CAT % ('', '')}];", f"enum E {{ A = 0; B = 1; {last}; }}").memos.label.rpartition(
            b"\0"
        )[2]
        for last in ("C = 2", "D = 5")
    }
    assert len(labels) == 2
