"""Overlays by path: a rule for a type that is used in many places, in one of them."""

import pytest
from google.protobuf import descriptor_pool, struct_pb2

from dpmesh.errors import AnnotationError, ConfigError
from dpmesh.estimate import Reader
from dpmesh.policy import Policy
from dpmesh.policy.loaded_types import message_types
from dpmesh.policy.overlay_file import parse
from dpmesh.policy.policy import takes_rules
from tests.support.protos import compiled

SHOP = """
message Money { string currency = 1; int64 units = 2; int32 nanos = 3; oneof tax { int32 rate = 4; int32 sum = 5; } }
message Order { Money price = 1; Money tip = 2; repeated Money parts = 3; map<string, Money> fees = 4; }
message Batch { Order first = 1; Order last = 2; }
message Node { Node child = 1; int32 value = 2; Money worth = 3; }
"""
NOISED = {"numeric": {"lower": 0, "upper": 100, "epsilon": 1}}
SHOP_TYPES = compiled(SHOP)


def policy_of(**sections) -> Policy:
    package = SHOP_TYPES.package
    return Policy(
        parse(
            {
                key: {f"{package}.{name}": rules for name, rules in entries.items()}
                for key, entries in sections.items()
            },
            "test",
        )
    )


def plan_of(name: str, **sections):
    return policy_of(**sections).plan(getattr(SHOP_TYPES, name).DESCRIPTOR)


def noised(plan) -> dict[str, str]:
    return {field.path: field.origin for field in plan.fields if field.mechanism_name}


def test_a_rule_by_path_holds_where_it_stands_and_nowhere_else():
    fields = {"Order.price.units": NOISED, "Order.price.nanos": {"suppress": {}}}
    plan = plan_of("Order", fields=fields)
    assert noised(plan) == {"price.units": "overlay by path"}
    order = SHOP_TYPES.Order()
    order.price.units, order.price.nanos, order.tip.units, order.tip.nanos = 7, 5, 9, 3
    protected = plan.protect(order, None)
    assert protected.price.nanos == 0
    assert (protected.tip.units, protected.tip.nanos) == (9, 3)
    # A type that only holds an Order is protected, and a Money by itself is not.
    assert set(noised(plan_of("Batch", fields=fields))) == {"first.price.units", "last.price.units"}
    assert plan_of("Money", fields=fields) is None


def test_a_rule_by_path_wins_over_one_for_the_type_and_the_longer_path_over_the_shorter():
    def rule(upper):
        return {"numeric": {"lower": 0, "upper": upper, "resolution": 1, "epsilon": 1}}

    fields = {
        "Money.units": rule(10),
        "Order.price.units": rule(20),
        "Batch.last.price.units": rule(30),
    }
    plan = plan_of(
        "Batch", fields={**fields, "Order.parts": {"suppress": {}}, "Order.fees": {"suppress": {}}}
    )
    uppers = {field.path: field.payload.grid.upper for field in plan.fields if field.mechanism_name}
    assert uppers == {
        "first.price.units": 20,
        "first.tip.units": 10,
        "last.price.units": 30,
        "last.tip.units": 10,
    }
    origins = noised(plan)
    assert (origins["last.price.units"], origins["first.tip.units"]) == ("overlay by path", "overlay")


@pytest.mark.parametrize(("holder", "mark"), [("parts", "[]"), ("fees", "{}")])
def test_paths_lead_through_lists_and_maps(holder, mark):
    path = {f"Order.{holder}.units": NOISED, f"Order.{holder}": {"max_items": 2}}
    plan = plan_of("Order", fields=path)
    assert set(noised(plan)) == {f"{holder}{mark}.units"}
    assert plan.cost == plan_of("Order", fields={"Order.price.units": NOISED}).cost.times(2)


def test_the_rules_of_a_message_and_of_a_oneof_can_be_by_path_too():
    shared = {"numeric": {"lower": 0, "upper": 100}}
    plan = plan_of(
        "Order",
        messages={"Order.tip": {"unannotated": "SUPPRESS", "epsilon": 1}},
        fields={"Order.tip.units": shared, "Order.tip.rate": shared, "Order.tip.sum": shared},
        oneofs={"Order.tip.tax": {"public": True}},
    )
    order = SHOP_TYPES.Order()
    order.tip.currency = order.price.currency = "EUR"
    order.price.sum = order.tip.sum = 1
    protected = plan.protect(order, None)
    assert (protected.price.currency, protected.tip.currency) == ("EUR", "")
    assert protected.tip.WhichOneof("tax") == "sum"
    assert [field.epsilon for field in plan.fields if field.mechanism_name] == [0.5, 0.5, 0.5]


def test_rules_at_every_place_of_a_type_give_what_one_rule_for_the_type_gives():
    def rule(upper):
        return {"numeric": {"lower": 0, "upper": upper}}

    inner = {
        "units": rule(10),
        "nanos": rule(9),
        "rate": rule(8),
        "sum": rule(7),
        "currency": {"suppress": {}},
    }
    lengths = {"Order.parts": {"max_items": 3}, "Order.fees": {"max_items": 2}}
    everywhere = plan_of(
        "Batch",
        fields={**lengths, **{f"Money.{name}": each for name, each in inner.items()}},
        messages={"Money": {"epsilon": 2}},
        oneofs={"Money.tax": {"epsilon": 0.5}},
    )
    places = [
        f"Batch.{order}.{money}" for order in ("first", "last") for money in ("price", "tip", "parts", "fees")
    ]
    placed = plan_of(
        "Batch",
        fields={**lengths, **{f"{place}.{name}": each for place in places for name, each in inner.items()}},
        messages={place: {"epsilon": 2} for place in places},
        oneofs={f"{place}.tax": {"epsilon": 0.5} for place in places},
    )

    def decided(plan):
        return [(field.path, field.kind, field.epsilon, field.instances, field.cost) for field in plan.fields]

    assert decided(placed) == decided(everywhere)
    assert (placed.scopes, placed.source) == (everywhere.scopes, everywhere.source)


def test_a_path_ends_at_an_any():
    types = compiled("message M { google.protobuf.Any box = 1; bool b = 2; }")
    overlay = {"fields": {f"{types.package}.M.box.value": {"suppress": {}}}}
    with pytest.raises(AnnotationError, match="rules of the packed type"):
        Policy(parse(overlay, "test")).plan(types.M.DESCRIPTOR)


@pytest.mark.parametrize("rule", ["SUPPRESS", "REJECT"])
@pytest.mark.parametrize("path", ["M.box", "M.plain.box", "Plain.box"])
def test_no_rule_by_path_for_what_an_any_packs_is_passed_over(path, rule):
    types = compiled(
        "message Plain { google.protobuf.Any box = 1; } message M { google.protobuf.Any box = 1; Plain plain = 2; }"
    )
    overlay = {"messages": {f"{types.package}.{path}": {"unannotated": rule}}}
    with pytest.raises(AnnotationError) as caught:
        Policy(parse(overlay, "test")).plan(types.M.DESCRIPTOR)
    assert caught.value.element == f"{types.package}.{path}"


def test_a_type_that_holds_itself_takes_rules_by_path_up_to_where_it_repeats():
    fields = {"Node.child": {"suppress": {}}, "Node.worth.units": NOISED}
    assert set(noised(plan_of("Node", fields=fields))) == {"worth.units"}
    with pytest.raises(AnnotationError, match="holds itself"):
        plan_of("Node", fields={"Node.child.worth.units": NOISED})


@pytest.mark.parametrize(
    "sections",
    [
        {"oneofs": {"Order.price.tax": {"epsilon": 1}}},
        {"messages": {"Order.price": {"epsilon": 1}}},
        {"fields": {"Order.parts.units": {"max_items": 2}}},
        {"fields": {"Batch.last.price.units": NOISED, "Order.price": {"public": {}}}},
        {"fields": {"Order.price": {"public": {}}}, "messages": {"Order.price": {"unannotated": "SUPPRESS"}}},
    ],
)
@pytest.mark.parametrize("others", [{}, {"Order.tip.nanos": {"suppress": {}}}])
def test_a_path_that_protects_nothing_is_refused(sections, others):
    sections = {"fields": {}, **sections}
    sections["fields"] = {**sections["fields"], **others}
    with pytest.raises(AnnotationError) as caught:
        for name in ("Batch", "Order"):
            plan_of(name, **sections)
    paths = {f"{SHOP_TYPES.package}.{name}" for section in sections.values() for name in section}
    assert caught.value.element in paths


def test_a_path_may_not_change_labels_which_are_of_the_type():
    labelled = {"Money": {"labels": ["money"]}}
    other = {**labelled, "Order.price": {"unannotated": "SUPPRESS", "labels": ["price"]}}
    with pytest.raises(AnnotationError, match="other labels"):
        plan_of("Order", messages=other)
    kept = {**labelled, "Order.price": {"unannotated": "SUPPRESS", "labels": ["money"]}}
    assert plan_of("Order", messages=kept).labels == ("money",)


def test_the_types_of_another_pool_take_rules_by_path():
    source = SHOP_TYPES.Order.DESCRIPTOR.file
    pool = descriptor_pool.DescriptorPool()
    for file in (*source.dependencies, source):
        for used in file.dependencies:
            pool.AddSerializedFile(used.serialized_pb)
        pool.AddSerializedFile(file.serialized_pb)
    order = pool.FindMessageTypeByName(SHOP_TYPES.Order.DESCRIPTOR.full_name)
    plan = policy_of(fields={"Order.price.units": NOISED}).plan(order)
    assert noised(plan) == {"price.units": "overlay by path"}


def test_a_receiver_reads_what_a_rule_by_path_protects():
    policy = policy_of(fields={"Order.price.units": {"numeric": {"lower": 0, "upper": 100, "epsilon": 8}}})
    plan = policy.plan(SHOP_TYPES.Order.DESCRIPTOR)
    order = SHOP_TYPES.Order(price={"units": 60})
    received = [plan.protect(order, None) for _ in range(2000)]
    found = Reader(SHOP_TYPES.Order, policy).mean("price.units", received)
    # Seven standard errors: a false alarm in 10^11 runs.
    assert abs(found.value - 60) < 7 * (found.high - found.low) / 3.92


def test_an_error_names_the_path():
    with pytest.raises(AnnotationError) as caught:
        plan_of("Order", fields={"Order.price.currency": NOISED})
    assert caught.value.element == f"{SHOP_TYPES.package}.Order.price.currency"


def test_a_path_may_not_drop_what_the_type_protects():
    with pytest.raises(AnnotationError, match="leaves out its kind"):
        plan_of("Order", fields={"Money.units": NOISED, "Order.price.units": {"max_items": 2}})
    with pytest.raises(ConfigError, match="sets nothing"):
        policy_of(fields={"Order.price.units": {}})


def test_only_paths_that_lead_to_an_element_take_rules():
    pool, package = descriptor_pool.Default(), SHOP_TYPES.package

    def takes(section, name):
        return takes_rules(section, f"{package}.{name}", pool)

    assert takes("fields", "Batch.last.price.units")
    assert takes("fields", "Order.fees.units")
    assert takes("fields", "Batch.last.price")
    assert takes("messages", "Batch.last.price")
    assert takes("messages", "Order.price")
    assert takes("oneofs", "Order.price.tax")
    for section, name in [
        ("fields", "Order.price.unit"),
        ("fields", "Order.price.units.more"),
        ("fields", "Order.price."),
        ("fields", "Order.FeesEntry.value.units"),
        ("messages", "Order.price.units"),
        ("oneofs", "Order.price.units"),
        ("methods", "Order.price"),
    ]:
        assert not takes(section, name), name


def test_the_types_around_a_path_are_among_those_with_rules():
    policy = policy_of(fields={"Order.price.units": NOISED})
    names = {message.full_name for message in message_types(policy)}
    assert {f"{SHOP_TYPES.package}.{name}" for name in ("Order", "Batch")} <= names
    assert policy.unresolved_overlays() == []


def test_the_version_of_a_plan_tells_the_places_of_rules_apart():
    one, other = (plan_of("Order", fields={f"Order.{name}.units": NOISED}) for name in ("price", "tip"))
    assert one.version != other.version


def test_a_struct_without_a_rule_follows_its_message_and_a_finding_says_what_it_holds():
    types = compiled(
        """import "google/protobuf/struct.proto";
        message M { bool a = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}];
          google.protobuf.Struct about = 2; repeated google.protobuf.Value values = 3; }"""
    )
    message = types.M(about={"name": "Ada"}, values=[struct_pb2.Value(number_value=1)])
    passing = Policy()
    assert passing.plan(types.M.DESCRIPTOR).protect(message, None).about == message.about
    texts = [entry.text for entry in passing.diagnostics(types.M.DESCRIPTOR)]
    assert len(texts) == 2
    assert all("holds free text" in text for text in texts)

    def under(rule):
        overlay = {"messages": {f"{types.package}.M": {"unannotated": rule}}}
        return Policy(parse(overlay, "test"))

    dropped = under("SUPPRESS").plan(types.M.DESCRIPTOR).protect(message, None)
    assert not dropped.HasField("about")
    assert not dropped.values
    with pytest.raises(AnnotationError, match="rejects"):
        under("REJECT").plan(types.M.DESCRIPTOR)


@pytest.mark.parametrize("others", [{}, {"Order.price.units": NOISED}, {"Order.price": {"public": {}}}])
def test_pad_to_in_one_place_is_refused_because_nothing_leaves_by_itself_there(others):
    with pytest.raises(AnnotationError) as caught:
        plan_of("Order", fields=others, messages={"Order.price": {"pad_to": [64]}})
    assert caught.value.element == f"{SHOP_TYPES.package}.Order.price"


def test_a_rule_by_path_need_not_repeat_a_pad_to():
    everywhere = {"Money": {"pad_to": [64]}, "Order.price": {"epsilon": 2}}
    plan = plan_of("Order", fields={"Order.price.units": NOISED}, messages=everywhere)
    assert not plan.pad_to


def test_a_path_deeper_than_messages_can_be_is_refused_before_anything_is_compiled():
    """Each beginning of a path is looked up, so thousands of endless ones took minutes."""
    long = f"{SHOP_TYPES.package}.Node" + ".child" * 3000
    rules = {f"{long[: -6 * drop]}.worth.units": NOISED for drop in range(1, 1000)}
    with pytest.raises(ConfigError, match="more than 100 parts") as caught:
        Policy(parse({"fields": rules}, "test"))
    assert len(str(caught.value)) < 300
    policy_of(fields={"Node.child" + ".child" * 95 + ".value": {"suppress": {}}})
