"""The order of two policies: what weakens a promise is looser, and what is not known to weaken none is looser, too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from google.protobuf import descriptor_pool
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.ledger.budget import Match
from dpmesh.policy import Policy
from dpmesh.policy.overlay_file import parse
from dpmesh.rollout.difference import Order
from dpmesh.rollout.policy_order import Elements, Terms, compare
from tests.support.protos import compiled

TYPES = compiled(
    """message Pair { double x = 1; double y = 2; }
    message Shown {
      double latitude = 1 [(dpmesh.v1.field).public = {}];
      double longitude = 2 [(dpmesh.v1.field).public = {}];
      double load = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}];
    }
    message Hidden {
      double latitude = 1 [(dpmesh.v1.field).suppress = {}];
      double longitude = 2 [(dpmesh.v1.field).suppress = {}];
    }
    message Trip {
      Shown start = 1;
      Hidden end = 2;
      google.protobuf.Timestamp at = 3;
      google.protobuf.Any more = 4;
      double gauss = 5 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}];
      double share = 6 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1}];
      option (dpmesh.v1.message) = {epsilon: 2};
    }
    message Bare { double x = 1; }
    message Open { double x = 1 [(dpmesh.v1.field).public = {}]; double y = 2; }
    message Closed {
      option (dpmesh.v1.message) = {unannotated: SUPPRESS};
      Open open = 1;
      int64 at = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1}];
    }
    message Report {
      option (dpmesh.v1.message) = {epsilon: 4};
      string id = 1 [(dpmesh.v1.field).unit = {epoch: {seconds: 86400}}];
      double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}];
      double b = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1}];
      double c = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1}];
      string note = 5 [(dpmesh.v1.field).public = {}];
      string session = 6 [(dpmesh.v1.field).pseudonym = {epoch: {seconds: 86400}}];
      string secret = 7 [(dpmesh.v1.field).suppress = {}];
      string open = 8;
      Pair pair = 9;
      oneof choice { bool yes = 10 [(dpmesh.v1.field).public = {}]; bool no = 11 [(dpmesh.v1.field).public = {}]; }
    }
    service Reports { rpc Send(Report) returns (Pair); }"""
)
REPORT = TYPES.Report.DESCRIPTOR.full_name
SEND = f"/{TYPES.package}.Reports/Send"
ELEMENTS = Elements.of_files([TYPES.Report.DESCRIPTOR.file], descriptor_pool.Default())
BUDGET = Budget("day", epsilon=8.0, delta=0.0, accounting=Accounting.PURE)


def terms(fields=None, budgets=(BUDGET,), mode="enforce", **sections):
    document = {"fields": {f"{REPORT}.{name}": rule for name, rule in (fields or {}).items()}, **sections}
    return Terms(Policy(parse({key: value for key, value in document.items() if value}, "p")), budgets, mode)


def number(epsilon=1.0, upper=1, **more):
    return {
        "numeric": {"lower": 0, "upper": upper, **({} if epsilon is None else {"epsilon": epsilon}), **more}
    }


def found(old, new):
    return {
        (each.element.removeprefix(REPORT + "."), each.order)
        for each in compare(old, new, ELEMENTS).differences
    }


def trip(fields=None, **rules):
    """Policies for Trip, where fields without a rule do not leave unless `rules` says otherwise."""
    name = f"{TYPES.package}.Trip"
    rules = {"epsilon": 2, "unannotated": "SUPPRESS", **rules}
    document = {"messages": {name: rules}}
    if fields:
        document["fields"] = {f"{name}.{key}": rule for key, rule in fields.items()}
    return Terms(Policy(parse(document, "p")), (BUDGET,), "enforce")


PLACE = {
    "location": {
        "min_latitude": 0,
        "max_latitude": 1,
        "min_longitude": 0,
        "max_longitude": 1,
        "epsilon": 0.5,
    }
}
SEEN = {"time": {"earliest": "2026-01-01T00:00:00Z", "latest": "2026-02-01T00:00:00Z", "epsilon": 1}}
PLAIN = terms()
HIDES = {REPORT: {"epsilon": 4, "unannotated": "SUPPRESS"}}
HIDING = terms(messages=HIDES)


def asked(**required):
    return terms(methods={SEND: {"require_policy": required}})


SIDES = [
    # What gets tighter or other, and the elements that are looser on the way back.
    (terms({"a": number(1)}), terms({"a": number(0.5)}), Order.TIGHTER),
    (PLAIN, terms({"note": {"suppress": {}}}), Order.TIGHTER),
    (PLAIN, terms({"session": {"suppress": {}}}), Order.TIGHTER),
    (terms({"note": {"pseudonym": {}}}), terms({"note": {"suppress": {}}}), Order.TIGHTER),
    (PLAIN, terms({"note": {"pseudonym": {}}}), Order.OTHER),
    (PLAIN, terms({"a": {"suppress": {}}}), Order.TIGHTER),
    (PLAIN, terms({"note": {"categorical": {"domain": ["a", "b"], "epsilon": 7}}}), Order.OTHER),
    (trip(unannotated="PASS"), trip({"at": SEEN}, unannotated="PASS"), Order.OTHER),
    (trip(), trip({"start": {"suppress": {}}}), Order.TIGHTER),
    (trip(), trip({"more": {"suppress": {}}}), Order.TIGHTER),
    (PLAIN, terms({"session": {"pseudonym": {"epoch": "3600s"}}}), Order.TIGHTER),
    (PLAIN, terms({"id": {"unit": {"epoch": "3600s"}}}), Order.TIGHTER),
    (PLAIN, terms(messages={REPORT: {"epsilon": 3}}), Order.TIGHTER),
    (PLAIN, terms(messages={REPORT: {"epsilon": 4, "unannotated": "SUPPRESS"}}), Order.TIGHTER),
    (
        terms({"open": {"suppress": {}}, "pair": {"suppress": {}}}),
        terms(
            {"open": {"suppress": {}}, "pair": {"suppress": {}}},
            messages={REPORT: {"epsilon": 4, "unannotated": "REJECT"}},
        ),
        Order.OTHER,
    ),
    (PLAIN, terms(methods={SEND: {"require": True}}), Order.TIGHTER),
    (asked(min_epoch=1), asked(min_epoch=2), Order.TIGHTER),
    (asked(), asked(digests=["0" * 16, "1" * 16]), Order.TIGHTER),
    (asked(digests=["0" * 16, "1" * 16]), asked(digests=["1" * 16]), Order.TIGHTER),
    (PLAIN, terms(methods={SEND: {"trust_boundary": True}}), Order.TIGHTER),
    (PLAIN, terms(methods={SEND: {"send_slot": "1s"}}), Order.OTHER),
    (terms(mode="observe"), PLAIN, Order.TIGHTER),
    (PLAIN, terms(budgets=(replace(BUDGET, epsilon=4.0),)), Order.TIGHTER),
    (PLAIN, terms(budgets=(replace(BUDGET, window=172800.0),)), Order.TIGHTER),
    (PLAIN, terms(budgets=(replace(BUDGET, window=None),)), Order.TIGHTER),
    (terms(budgets=(replace(BUDGET, on_exhausted="replay"),)), PLAIN, Order.TIGHTER),
    (
        terms(budgets=(BUDGET, replace(BUDGET, name="b", match=Match(methods=("/a.B/*",))))),
        terms(budgets=(BUDGET, replace(BUDGET, name="b"))),
        Order.TIGHTER,
    ),
    (PLAIN, terms(budgets=(BUDGET, replace(BUDGET, name="week"))), Order.TIGHTER),
    (
        PLAIN,
        terms(
            budgets=(
                BUDGET,
                replace(BUDGET, name="partner", key="unit/consumer", epsilon=1.0, under="day"),
            )
        ),
        Order.TIGHTER,
    ),
]


@pytest.mark.parametrize(("old", "new", "order"), SIDES, ids=range(len(SIDES)))
def test_the_way_back_is_looser(old, new, order):
    assert compare(old, new, ELEMENTS).order is order
    assert compare(new, old, ELEMENTS).order is Order.LOOSER
    assert compare(old, old, ELEMENTS).order is compare(new, new, ELEMENTS).order is Order.EQUAL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PLAIN, terms({"a": number(1, upper=2)})),
        (PLAIN, terms({"a": number(1, output="IN_RANGE")})),
        (
            terms({"a": number(1, mechanism="PIECEWISE")}),
            terms({"a": number(1, mechanism="DISCRETE_LAPLACE")}),
        ),
    ],
)
def test_another_law_at_that_epsilon_is_other_both_ways(old, new):
    assert compare(old, new, ELEMENTS).order is compare(new, old, ELEMENTS).order is Order.OTHER


@pytest.mark.parametrize(
    ("old", "new", "element"),
    [
        # The message's epsilon goes to fewer fields, or to another one.
        (PLAIN, terms({"b": {"suppress": {}}}), "c"),
        (PLAIN, terms({"a": number(None)}), "a"),
        (PLAIN, terms({"secret": {"public": {}}}), "secret"),
        (PLAIN, terms({"id": {"unit": {"form": "RAW", "epoch": "86400s"}}}), "id"),
        (PLAIN, terms({"id": {"public": {}}}), "id"),
        (PLAIN, terms({"a": number(1, sensitivity=0.1)}), "a"),
        (terms({"a": number(1, sensitivity=1)}), terms({"a": number(1, sensitivity=0.5)}), "a"),
        (PLAIN, terms({"session": {"pseudonym": {"epoch": "86400s", "namespace": "x"}}}), "session"),
        (PLAIN, terms({"pair.x": number()}), "pair.x"),
        (PLAIN, terms({"yes": {"suppress": {}}, "no": {"suppress": {}}}), "yes"),
        # What had no rule did not leave.
        (HIDING, terms({"open": {"pseudonym": {}}}, messages=HIDES), "open"),
        (HIDING, terms({"open": {"public": {}}}, messages=HIDES), "open"),
        (PLAIN, terms({"a": number(-1)}), "a"),
        (PLAIN, terms({"id": {"suppress": {}}}), "id"),
        (PLAIN, terms({"a": {"categorical": {"domain": ["0", "1"], "epsilon": 0.5}}}), "a"),
        (terms({"a": number(1, sensitivity=1)}), terms({"a": number(1, 2, sensitivity=1)}), "a"),
    ],
)
def test_what_is_not_known_to_weaken_nothing_is_looser(old, new, element):
    assert (element, Order.LOOSER) in found(old, new)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        # Without a rule of its own, a message leaves by the rules inside it, even where `unannotated` hides.
        (trip({"start": PLACE}), trip(), "start"),
        (trip({"start": {"public": {}}}), trip(), "start"),
        (trip(unannotated="PASS"), trip({"end": PLACE}, unannotated="PASS"), "end"),
        (trip(), trip({"end": PLACE}), "end"),
        (trip({"more": {"suppress": {}}}), trip(), "more"),
        # A Gaussian has no pure epsilon, but a larger part of the message's is a larger rho.
        (trip(), trip({"share": {"suppress": {}}}), "gauss"),
    ],
)
def test_what_leaves_is_read_from_the_plans(old, new, field):
    looser = {each.element for each in compare(old, new, ELEMENTS).differences if each.order is Order.LOOSER}
    assert f"{TYPES.package}.Trip.{field}" in looser


@pytest.mark.parametrize("rule", [number(), {"suppress": {}}])
def test_the_first_rule_inside_a_hidden_message_lets_its_other_fields_leave(rule):
    new = Terms(Policy(parse({"fields": {f"{TYPES.package}.Open.y": rule}}, "p")), (BUDGET,), "enforce")
    differences = compare(PLAIN, new, ELEMENTS).differences
    assert f"{TYPES.package}.Closed.open" in {
        each.element for each in differences if each.order is Order.LOOSER
    }
    assert f"{TYPES.package}.Open.y" not in {
        each.element for each in differences if each.order is Order.LOOSER
    }


def test_noise_of_another_kind_is_looser():
    seen = {"time": {"earliest": "0s", "latest": "9s", "step": "SECOND", "epsilon": 0.5}}
    new = Terms(Policy(parse({"fields": {f"{TYPES.package}.Closed.at": seen}}, "p")), (BUDGET,), "enforce")
    assert new.policy.plan(TYPES.Closed.DESCRIPTOR) is not None
    assert compare(PLAIN, new, ELEMENTS).order is Order.LOOSER


def test_noise_on_a_type_that_had_no_rules_is_other():
    bare = {"fields": {f"{TYPES.package}.Bare.x": number()}}
    new = Terms(Policy(parse(bare, "p")), (BUDGET,), "enforce")
    assert compare(PLAIN, new, ELEMENTS).order is Order.OTHER
    assert compare(new, PLAIN, ELEMENTS).order is Order.LOOSER


def test_an_overlay_by_path_that_changed_is_looser():
    sides = [terms({"pair.x": number(epsilon)}) for epsilon in (1, 0.5)]
    assert ("pair.x", Order.LOOSER) in found(*sides)


def test_overlays_of_other_types_are_looser_if_they_changed():
    other = {"acme.other.Thing.x": {"suppress": {}}}
    assert (
        compare(terms(), Terms(Policy(parse({"fields": other}, "p")), (BUDGET,), "enforce"), ELEMENTS).order
        is Order.LOOSER
    )
    same = Terms(Policy(parse({"fields": other}, "p")), (BUDGET,), "enforce")
    assert compare(same, same, ELEMENTS).order is Order.EQUAL


@pytest.mark.parametrize(
    "budget",
    [
        replace(BUDGET, key="global"),
        replace(BUDGET, accounting=Accounting.ZCDP, delta=1e-6),
        replace(BUDGET, epsilon=9.0),
        replace(BUDGET, window=3600.0),
        replace(BUDGET, match=Match(messages=("a.*",))),
        replace(BUDGET, name="renamed"),
    ],
)
def test_budgets_that_admit_more_or_can_not_be_judged_are_looser(budget):
    assert compare(PLAIN, terms(budgets=(budget,)), ELEMENTS).order is Order.LOOSER


def test_a_budget_that_may_pay_for_what_was_refused_is_looser():
    part = replace(BUDGET, match=Match(methods=("/a.B/*",)))
    for old, new in (
        ((BUDGET,), (BUDGET, replace(BUDGET, name="all", key="global"))),
        ((part,), (part, replace(BUDGET, name="more"))),
        ((part,), (replace(part, match=Match(methods=("/a.B/*", "/a.C/*"))),)),
        ((part,), (BUDGET,)),
    ):
        assert compare(terms(budgets=old), terms(budgets=new), ELEMENTS).order is Order.LOOSER


@pytest.mark.parametrize(("before", "after"), [("REJECT", "SUPPRESS"), ("SUPPRESS", "REJECT")])
def test_which_messages_with_anys_are_refused_is_no_matter_of_course(before, after):
    # With REJECT, a message that packs a type without rules is refused; with SUPPRESS, it leaves without it.
    hidden = {name: {"suppress": {}} for name in ("start", "end", "at")}
    sides = [trip(hidden, unannotated=each) for each in (before, after)]
    assert compare(*sides, ELEMENTS).order is Order.LOOSER
    without = [trip({**hidden, "more": {"suppress": {}}}, unannotated=each) for each in (before, after)]
    assert compare(*without, ELEMENTS).order is Order.OTHER


# Random policies for Report, described by what each field may have, so that what leaves can be told without the code.
_NUMBERS = st.one_of(
    st.none(),
    st.builds(number, st.sampled_from([None, 0.25, 0.5, 1.0]), st.sampled_from([1, 2])),
    st.sampled_from([{"suppress": {}}, {"public": {}}]),
)
_TEXTS = st.sampled_from(
    [
        None,
        {"suppress": {}},
        {"public": {}},
        {"pseudonym": {"epoch": "3600s"}},
        {"pseudonym": {"epoch": "86400s"}},
        {"categorical": {"domain": ["a", "b"], "epsilon": 0.5}},
        {"categorical": {"domain": ["a", "b"]}},
    ]
)
_ANNOTATED = {
    "a": number(1.0),
    "b": number(None),
    "c": number(None),
    "note": {"public": {}},
    "session": {"pseudonym": {"epoch": "86400s"}},
    "secret": {"suppress": {}},
    "open": None,
}


@dataclass(frozen=True)
class Described:
    """A policy as its parts; the code under test sees only `terms`."""

    rules: dict
    message: dict
    budgets: tuple

    @property
    def terms(self):
        fields = {name: rule for name, rule in self.rules.items() if rule is not None}
        return terms(fields, self.budgets, messages={REPORT: self.message} if self.message else {})

    def leaves(self):
        """For each field, what leaves of it: a pair of a word and a number, the more the larger."""
        rules = {name: self.rules[name] or _ANNOTATED[name] for name in self.rules}
        sharing = [
            name
            for name, rule in rules.items()
            if rule
            and {"numeric", "categorical"} & rule.keys()
            and "epsilon" not in next(iter(rule.values()))
        ]
        whole = Fraction(self.message.get("epsilon", 4))
        found = {}
        for name, rule in rules.items():
            kind, terms_ = next(iter(rule.items())) if rule else ("none", {})
            if kind == "none":
                kind = "suppress" if self.message.get("unannotated") == "SUPPRESS" else "public"
            if kind in ("numeric", "categorical"):
                epsilon = whole / len(sharing) if name in sharing else Fraction(terms_["epsilon"])
                found[name] = kind, epsilon
            else:
                found[name] = kind, Fraction(terms_.get("epoch", "0s")[:-1])
        return found

    def cost(self):
        return sum(n for kind, n in self.leaves().values() if kind in ("numeric", "categorical"))


_MESSAGES = st.sampled_from([{}, {"epsilon": 2}, {"epsilon": 6}, {"epsilon": 4, "unannotated": "SUPPRESS"}])
_BUDGETS = st.sampled_from(
    [
        (BUDGET,),
        (replace(BUDGET, epsilon=4.0),),
        (replace(BUDGET, window=None),),
        (replace(BUDGET, window=172800.0), replace(BUDGET, name="b")),
    ]
)
_FIELDS = {name: _NUMBERS if name in "abc" else _TEXTS for name in _ANNOTATED}
_DESCRIBED = st.builds(Described, st.fixed_dictionaries(_FIELDS), _MESSAGES, _BUDGETS)


def shows_no_more(after, before):
    """Whether what leaves of a field is at most what left before."""
    if after[0] == "suppress" or before[0] == "public":
        return True
    return after[0] == before[0] and after[1] <= before[1]


def one_change(old, data):
    """Another policy, which differs in one part or two: of two that have nothing in common, nearly all are looser."""
    new = old
    for _ in range(data.draw(st.integers(1, 2))):
        part = data.draw(st.sampled_from(["rules", "rules", "message", "budgets"]))
        if part == "rules":
            name = data.draw(st.sampled_from([*_ANNOTATED]))
            rule = data.draw(_FIELDS[name].filter(lambda rule, name=name: rule != old.rules[name]))
            new = replace(new, rules={**new.rules, name: rule})
        else:
            parts = _MESSAGES if part == "message" else _BUDGETS
            new = replace(
                new, **{part: data.draw(parts.filter(lambda each, part=part: each != getattr(old, part)))}
            )
    return new


@settings(max_examples=150, deadline=None)
@given(_DESCRIBED, st.data())
def test_of_random_pairs_none_that_is_not_looser_shows_or_costs_more(old, data):
    new = one_change(old, data)
    try:
        for side in (old, new):
            plan = side.terms.policy.plan(TYPES.Report.DESCRIPTOR)
            assert Fraction(plan.cost.epsilon, AMOUNT) == pytest.approx(float(side.cost()), abs=1e-6)
    except AnnotationError:
        assert compare(old.terms, new.terms, ELEMENTS).order in (Order.LOOSER, Order.EQUAL)
        return
    order = compare(old.terms, new.terms, ELEMENTS).order
    event(str(order))
    if order is Order.LOOSER:
        return
    before, after = old.leaves(), new.leaves()
    assert all(shows_no_more(after[name], before[name]) for name in after)
    caps = {budget.name: budget for budget in new.budgets}
    for budget in old.budgets:
        assert caps[budget.name].cap <= budget.cap
        lengths = [
            float("inf") if each.window is None else each.window for each in (budget, caps[budget.name])
        ]
        assert lengths[0] <= lengths[1]
    if order is Order.TIGHTER:
        assert new.cost() <= old.cost()
        assert compare(new.terms, old.terms, ELEMENTS).order is Order.LOOSER


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PLAIN, asked()),
        (asked(), PLAIN),
        (asked(), asked(min_epoch=1)),
        (asked(min_epoch=1), asked()),
        (asked(digests=["0" * 16]), asked(digests=["1" * 16])),
    ],
)
def test_senders_that_tell_more_and_receivers_that_take_others_are_looser(old, new):
    assert compare(old, new, ELEMENTS).order is Order.LOOSER
