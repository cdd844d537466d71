"""Routes: which budgets and quotas pay for a release, by message, method, direction and labels."""

import gc
import traceback
import weakref

import pytest
from google.protobuf import descriptor_pool

from dpmesh.accounting import Accounting
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger import Budget
from dpmesh.ledger.budget import Match, consumer_key
from dpmesh.mesh import billing, pricing
from dpmesh.mesh.billing import BillingTable
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

NUM, CAT = "(dpmesh.v1.field).numeric", "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message Report {{
      option (dpmesh.v1.message) = {{labels: "health"}};
      string id = 1 [(dpmesh.v1.field).unit = {{}}];
      bool b = 2 [{CAT} = {{epsilon: 1}}];
    }}
    message Batch {{ repeated Report reports = 1 [(dpmesh.v1.field).max_items = 4]; }}
    message Total {{ double sum = 1 [{NUM} = {{lower: 0 upper: 1e6 epsilon: 0.5 sensitivity: 100}}]; }}
    message Plain {{ string s = 1; }}
    service Fleet {{
      rpc Send(Report) returns (Plain);
      rpc Ask(Plain) returns (Total) {{ option (dpmesh.v1.method) = {{labels: ["audited", "slow"]}}; }}
    }}"""
)
SEND, ASK = (f"/{TYPES.package}.Fleet/{name}" for name in ("Send", "Ask"))


def budget(name, key="unit", epsilon=8.0, under="", consumers=(), **match):
    return Budget(
        name,
        key,
        epsilon,
        0.0,
        Accounting.PURE,
        match=Match(**match),
        under=under,
        consumers=consumers,
    )


def quota(name, under="all", key="unit/consumer", epsilon=2.0, **more):
    return budget(name, key, epsilon, under, **more)


def payers(budgets, message, method="", direction="request", consumer="", policy=None):
    """Who pays how much for a message: (name, account, epsilon)."""
    route = BillingTable(policy or Policy(), budgets).price(type(message), method, direction)
    charges, _, _ = route.bill(route.plan.snapshot(message), consumer)
    return [(budgets[index].name, account, amount / 1e9) for index, account, amount in charges]


def names(*arguments, **more):
    return [name for name, _, _ in payers(*arguments, **more)]


REPORT = TYPES.Report(id="N1")


def test_budgets_pay_where_all_their_lists_fit():
    budgets = [
        budget("all"),
        budget("send", methods=(SEND,)),
        budget("reports", messages=("*.Report",)),
        budget("out", directions=("response",)),
        budget("health", labels=("heal*",)),
        budget("both", labels=("health",), directions=("response",)),
        budget("fleet", "global"),
    ]
    assert names(budgets, REPORT, SEND) == ["all", "send", "reports", "health"]
    assert names(budgets, REPORT, ASK, "response") == ["all", "reports", "out", "health", "both"]
    assert names(budgets, REPORT) == ["all", "reports", "health"]


def test_a_method_has_labels_too_and_an_overlay_sets_them():
    budgets = [budget("fleet", "global"), budget("audited", "global", labels=("audited",))]
    total = TYPES.Total(sum=1)
    assert names(budgets, total, ASK, "response") == ["fleet", "audited"]
    assert names(budgets, total, SEND, "response") == ["fleet"]
    assert names(budgets, total, "/no.Such/Method", "response") == ["fleet"]
    overlay = policy_pb2.Policy()
    overlay.methods[SEND].labels.append("audited")
    overlay.methods[ASK].labels.append("quick")
    overlay.messages[TYPES.Report.DESCRIPTOR.full_name].labels.append("secret")
    policy = Policy(overlay)
    assert names(budgets, total, SEND, "response", policy=policy) == ["fleet", "audited"]
    assert names(budgets, total, ASK, "response", policy=policy) == ["fleet"], "an overlay replaces all of it"
    assert names([budget("secret", labels=("secret",))], REPORT, policy=policy) == ["secret"]


def test_a_label_is_not_got_around_by_wrapping_its_message():
    batch = TYPES.Batch(reports=[REPORT, TYPES.Report(id="N2"), REPORT])
    found = payers([budget("all"), budget("health", labels=("health",))], batch)
    assert sorted(found) == [
        ("all", b"N1", 2.0),
        ("all", b"N2", 1.0),
        ("health", b"N1", 2.0),
        ("health", b"N2", 1.0),
    ]


@pytest.mark.parametrize(
    "match", [{"methods": ("/other/*",)}, {"directions": ("response",)}, {"labels": ("x",)}]
)
def test_what_no_budget_of_its_key_pays_for_is_refused_on_that_rpc_alone(match):
    made = BillingTable(Policy(), [budget("some", **match), budget("fleet", "global")])
    for _ in range(2):
        with pytest.raises(AnnotationError, match="no-budget") as caught:
            made.price(TYPES.Report, SEND)
        assert SEND in str(caught.value)
    assert PolicySnapshot(Policy(), [budget("some", **match)]).protection(TYPES.Report)
    if "directions" in match:
        assert made.price(TYPES.Report, SEND, "response") is not None


def test_a_quota_pays_beside_its_budget_and_never_instead():
    budgets = [budget("all"), quota("each")]
    expected = [("all", b"N1", 1.0), ("each", consumer_key(b"N1", "c"), 1.0)]
    assert payers(budgets, REPORT, consumer="c") == expected
    assert payers(budgets, REPORT)[1] == ("each", consumer_key(b"N1", ""), 1.0)
    with pytest.raises(AnnotationError, match="no-budget"):
        BillingTable(Policy(), [budget("all", methods=(ASK,)), quota("each")]).price(TYPES.Report, SEND)


def test_a_quota_pays_only_where_it_and_its_budget_do():
    budgets = [
        budget("all"),
        budget("out", directions=("response",)),
        budget("fleet", "global"),
        quota("under-out", "out"),
        quota("under-all", directions=("request",)),
        quota("under-fleet", "fleet", "global/consumer"),
    ]
    assert names(budgets, REPORT, SEND, consumer="c") == ["all", "under-all"]
    assert names(budgets, REPORT, SEND, "response", consumer="c") == ["all", "out", "under-out"]
    assert payers(budgets, TYPES.Total(), ASK, "response", consumer="c") == [
        ("fleet", b"", 0.5),
        ("under-fleet", consumer_key(b"", "c"), 0.5),
    ]


def test_a_quota_can_be_for_some_consumers():
    budgets = [
        budget("all"),
        quota("partners", consumers=("spiffe://partner/*",)),
        quota("unknown", consumers=("",)),
    ]
    made = BillingTable(Policy(), budgets).price(TYPES.Report)
    for _ in range(2):
        for consumer, expected in (
            ("spiffe://partner/a", [0, 1]),
            ("spiffe://ours/a", [0]),
            ("", [0, 2]),
        ):
            charges, epsilon, _ = made.bill(made.plan.snapshot(REPORT), consumer)
            assert ([index for index, _, _ in charges], epsilon) == (expected, 1.0)


def test_each_unit_of_a_batch_has_its_own_quota():
    batch = TYPES.Batch(reports=[REPORT, TYPES.Report(id="N2"), REPORT])
    found = payers([budget("all"), quota("each")], batch, consumer="c")
    assert sorted(found) == [
        ("all", b"N1", 2.0),
        ("all", b"N2", 1.0),
        ("each", consumer_key(b"N1", "c"), 2.0),
        ("each", consumer_key(b"N2", "c"), 1.0),
    ]


def test_a_message_dearer_than_a_quota_that_holds_for_all_is_a_configuration_error():
    with pytest.raises(AnnotationError, match="over-budget.*quota 'each'|quota 'each'.*over-budget"):
        BillingTable(Policy(), [budget("all"), quota("each", epsilon=0.5)]).price(TYPES.Report)
    made = BillingTable(Policy(), [budget("all"), quota("some", epsilon=0.5, consumers=("c*",))]).price(
        TYPES.Report
    )
    assert [index for index, _, _ in made.bill(made.plan.snapshot(REPORT), "other")[0]] == [0]


def test_a_message_without_a_unit_is_refused_under_a_quota_too():
    made = BillingTable(Policy(), [budget("all"), quota("each")]).price(TYPES.Report)
    with pytest.raises(ProtectionError, match="MISSING_UNIT"):
        made.bill(made.plan.snapshot(TYPES.Report()), "c")


def test_a_direction_that_is_none_gets_around_nothing():
    made = BillingTable(Policy(), [budget("all"), budget("out", directions=("response",))])
    with pytest.raises(ProtectionError, match="request or response"):
        made.price(TYPES.Report, SEND, "Response")


class Held:
    """What a caller happens to hold."""


def test_a_failure_that_is_kept_holds_nothing_of_the_calls_that_met_it():
    made = BillingTable(Policy(), [budget("some", methods=("/other/*",))])
    held = []
    errors = []

    def call():
        local = Held()
        held.append(weakref.ref(local))
        try:
            raise KeyError("a context")
        except KeyError:
            made.price(TYPES.Report, SEND)

    for _ in range(3):
        try:
            call()
        except AnnotationError as error:
            errors.append(error)
    assert len({id(error) for error in errors}) == 3
    assert len({(str(e), e.rule, e.element, e.text, e.fix) for e in errors}) == 1
    assert [len(traceback.extract_tb(error.__traceback__)) for error in errors] == [4] * 3
    errors.clear()
    gc.collect()
    assert [each() for each in held] == [None] * 3


def test_one_route_for_all_rpcs_as_long_as_every_budget_pays_for_everything():
    made = BillingTable(Policy(), [budget("all"), quota("each")])
    assert made.price(TYPES.Report, SEND) is made.price(TYPES.Report, ASK, "response")
    scoped = BillingTable(Policy(), [budget("all"), budget("send", methods=(SEND,))])
    assert scoped.price(TYPES.Report, SEND) is scoped.price(TYPES.Report, SEND)
    assert scoped.price(TYPES.Report, SEND) is not scoped.price(TYPES.Report, ASK)


def test_peers_that_make_up_names_fill_no_memory(monkeypatch):
    monkeypatch.setattr(billing, "_KEPT", 8)
    monkeypatch.setattr(pricing, "_CONSUMERS_KEPT", 8)
    made = BillingTable(Policy(), [budget("all"), quota("each"), quota("out", directions=("response",))])
    for number in range(100):
        route = made.price(TYPES.Report, f"/a.B/{number}")
        route.bill(route.plan.snapshot(REPORT), f"c{number}")
    assert len(made.priced_so_far()) <= 8


def test_the_default_pool_knows_the_labels_of_a_message_with_a_pool_of_its_own():
    assert Policy().labels(ASK) == {"audited", "slow"}
    assert Policy().labels(ASK, descriptor_pool.DescriptorPool()) == frozenset()
    assert Policy().labels("no method") == frozenset()


WRAPPED = compiled(
    f"""message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}
    message Envelope {{ Sheet sheet = 1; }}
    message Sheet {{ repeated Report reports = 1; map<string, Report> named = 2; }}
    message Open {{ Report kept = 1 [(dpmesh.v1.field).public = {{}}]; bool b = 2 [{CAT} = {{epsilon: 1}}];
      string id = 3 [(dpmesh.v1.field).unit = {{}}]; }}"""
)


def test_a_list_of_messages_is_not_got_around_by_wrapping_what_it_names():
    report = WRAPPED.Report(id="N1")
    budgets = [
        budget("all"),
        budget("reports", messages=(f"{WRAPPED.package}.Report",)),
        budget("sheets", messages=("*.Sheet",)),
        budget("neither", messages=("*.Nothing",)),
        quota("each", messages=("*.Report",), epsilon=5.0),
    ]
    every = ["all", "reports", "sheets", "each"]
    assert names(budgets, report, consumer="c") == ["all", "reports", "each"]
    sheet = WRAPPED.Sheet(reports=[report], named={"k": report})
    assert sorted(names(budgets, sheet, consumer="c")) == sorted(every)
    assert sorted(names(budgets, WRAPPED.Envelope(sheet=sheet), consumer="c")) == sorted(every)
    # What leaves as it is costs nothing, so nobody pays for it.
    assert names(budgets, WRAPPED.Open(id="N1", kept=report), consumer="c") == ["all"]


def test_the_outer_unit_pays_from_the_budgets_of_what_it_holds():
    types = compiled(
        f"""message Phone {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
          repeated Contact seen = 2 [(dpmesh.v1.field).max_items = 3]; }}
        message Contact {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
          bool sick = 2 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    budgets = [budget("contacts", messages=("*.Contact",)), quota("each", "contacts", epsilon=5.0)]
    each = [consumer_key(unit, "c") for unit in (b"a", b"b")]
    assert payers(budgets, types.Phone(id="a", seen=[{"id": "b"}]), consumer="c") == [
        ("contacts", b"a", 3.0),
        ("contacts", b"b", 1.0),
        ("each", each[0], 3.0),
        ("each", each[1], 1.0),
    ]
    # Who holds itself as a contact is one account, which pays for both.
    assert payers(budgets[:1], types.Phone(id="a", seen=[{"id": "a"}])) == [("contacts", b"a", 4.0)]
