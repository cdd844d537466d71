"""Anys: what they pack is judged at release, wherever they lie; and what a process imports later is judged too."""

import asyncio
import random
import threading

import pytest
from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

import dpmesh
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ProtectionError
from dpmesh.mesh.pseudonyms import Pseudonyms
from dpmesh.policy import Policy
from dpmesh.policy.compile.compiler import compile_message
from dpmesh.telemetry import Telemetry
from dpmesh.v1 import policy_pb2, privacy_pb2
from tests.support.meshes import SteadyLedger, assembled
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
GONE = "[(dpmesh.v1.field).suppress = {}]"
UNIT = "[(dpmesh.v1.field).unit = {}]"
OPEN = "[(dpmesh.v1.field).public = {}]"
MARK = "raw-marker"

TYPES = compiled(
    f"""message Report {{ string id = 1 {UNIT}; string secret = 2 {GONE}; bool b = 3 [{CAT} = {{epsilon: 0.5}}];
        google.protobuf.Any more = 4; }}
    message Value {{ string secret = 1 {GONE}; bool b = 2 [{CAT} = {{epsilon: 0.25}}]; repeated google.protobuf.Any more = 3; }}
    message Total {{ string secret = 1 {GONE}; double sum = 2 [{NUM} = {{lower: 0 upper: 10 epsilon: 1 sensitivity: 1}}]; }}
    message Plain {{ string s = 1; }}
    message Envelope {{ google.protobuf.Any one = 1; repeated google.protobuf.Any many = 2;
        map<string, google.protobuf.Any> named = 3; oneof choice {{ google.protobuf.Any chosen = 4; string text = 5; }}
        Envelope child = 6; repeated Envelope children = 7; map<int32, Envelope> by_number = 8; string note = 9; }}
    message Holder {{ string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 0.125}}]; google.protobuf.Any one = 3;
        repeated google.protobuf.Any many = 4; map<string, google.protobuf.Any> named = 5; Envelope loose = 6; Inner inner = 7;
        repeated Inner cut = 8 [(dpmesh.v1.field).max_items = 1]; google.protobuf.Any kept = 9 {OPEN};
        google.protobuf.Any gone = 10 {GONE}; Envelope shown = 11 {OPEN}; }}
    message Inner {{ string secret = 1 {GONE}; google.protobuf.Any one = 2; }}
    message Strict {{ option (dpmesh.v1.message) = {{unannotated: REJECT}}; string secret = 1 {GONE};
        google.protobuf.Any one = 2; }}
    message Bare {{ option (dpmesh.v1.message) = {{unannotated: SUPPRESS}}; string secret = 1 {GONE};
        google.protobuf.Any one = 2; repeated google.protobuf.Any many = 3; map<string, google.protobuf.Any> named = 4; }}"""
)
TWO = compiled(
    f"""message Extended {{ optional string s = 1; extensions 100 to 200; }}
    extend Extended {{ optional google.protobuf.Any box = 100; repeated google.protobuf.Any boxes = 101; }}
    message Needs {{ required bool b = 1 [{CAT} = {{epsilon: 0.5}}]; }}""",
    "proto2",
)
UNKNOWN = any_pb2.Any(type_url="type.example.com/nobody.has.This", value=b"\x0a\x03raw")


def settings(**changes):
    unit = {"name": "unit-day", "key": "unit", "epsilon": 1e3, "accounting": "pure", "window": "24h"}
    fleet = {"name": "fleet-day", "key": "global", "epsilon": 1e3, "accounting": "pure", "window": "24h"}
    return {"ledger": {"url": "memory:"}, "budget": [{**unit, **changes}, fleet]}


def packed(message):
    box = any_pb2.Any()
    box.Pack(message, "type.example.com/")
    return box


def value(**more):
    return TYPES.Value(secret=MARK, b=True, **more)


def report(unit="N1", **more):
    return TYPES.Report(id=unit, secret=MARK, b=True, **more)


def opened(box, kind):
    assert box.type_url == f"type.example.com/{kind.DESCRIPTOR.full_name}"
    return kind.FromString(box.value)


def raw(message):
    return MARK.encode() in message.SerializeToString()


async def released(message, policy=None, config=None):
    """What leaves of a message, what it cost, and what each account was charged."""
    before = message.SerializeToString(deterministic=True)
    async with assembled(config or settings(), policy=policy) as mesh:
        receipt = await mesh.release(message)
        assert message.SerializeToString(deterministic=True) == before, "the caller's message was changed"
    bill = mesh.ledger.bills[-1] if mesh.ledger.bills else ()
    charges = {(budget, account): amount / 1e9 for budget, account, amount in bill}
    return receipt, charges


CARRIERS = {
    "alone": packed,
    "nested": lambda m: TYPES.Envelope(child=TYPES.Envelope(one=packed(m))),
    "repeated": lambda m: TYPES.Envelope(many=[packed(TYPES.Plain(s="x")), packed(m)]),
    "map": lambda m: TYPES.Envelope(named={"a": packed(m)}),
    "oneof": lambda m: TYPES.Envelope(chosen=packed(m)),
    "messages in maps": lambda m: TYPES.Envelope(by_number={7: TYPES.Envelope(one=packed(m))}),
    "messages in lists": lambda m: TYPES.Envelope(children=[TYPES.Envelope(many=[packed(m)])]),
    "any in any": lambda m: packed(packed(packed(m))),
    "carrier in any": lambda m: packed(TYPES.Envelope(one=packed(m))),
    "status": lambda m: status_pb2.Status(message="no", details=[packed(m)]),
    "status in any": lambda m: packed(status_pb2.Status(details=[packed(m)])),
    "extension": lambda m: extended(packed(m)),
    "extensions in any": lambda m: packed(extended(packed(m), packed(TYPES.Plain(s="x")))),
}


def extended(box, *boxes):
    message = TWO.Extended(s="s")
    known = {
        found.name: found for found in descriptor_pool.Default().FindAllExtensions(TWO.Extended.DESCRIPTOR)
    }
    message.Extensions[known["box"]].CopyFrom(box)
    message.Extensions[known["boxes"]].extend(boxes)
    return message


@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
async def test_a_packed_message_is_protected_and_charged_as_if_it_were_released_by_itself(carrier):
    message = CARRIERS[carrier](report())
    assert raw(message)
    receipt, charges = await released(message)
    assert (receipt.decision, receipt.epsilon, charges) == ("released", 0.5, {(0, b"N1"): 0.5})
    assert not raw(receipt.message)
    assert b"N1" not in receipt.message.SerializeToString()
    assert TYPES.Report.DESCRIPTOR.full_name.encode() in receipt.message.SerializeToString()
    assert type(receipt.message) is type(message)


@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
async def test_anys_that_hold_nothing_protected_pass_unchanged_and_uncharged(carrier):
    message = CARRIERS[carrier](TYPES.Plain(s=MARK))
    receipt, charges = await released(message)
    assert (receipt.decision, receipt.epsilon, receipt.rho, charges) == ("unprotected", 0.0, 0.0, {})
    assert receipt.message == message
    for empty in (type(message)(), any_pb2.Any(), UNKNOWN):
        receipt, charges = await released(empty)
        assert (receipt.decision, receipt.message, charges) == ("unprotected", empty, {})


async def test_an_any_keeps_its_type_url_and_receivers_open_it():
    receipt, _ = await released(TYPES.Envelope(one=packed(report()), note="kept"))
    inside = opened(receipt.message.one, TYPES.Report)
    assert len(inside.id) == 32
    assert not inside.secret
    assert receipt.message.note == "kept"


async def test_each_packed_message_pays_for_itself():
    boxes = [
        packed(report("N1")),
        packed(report("N2")),
        packed(report("N1")),
        packed(value()),
        packed(TYPES.Total(sum=3)),
    ]
    receipt, charges = await released(TYPES.Envelope(many=boxes))
    assert charges == {(0, b"N1"): 1.0, (0, b"N2"): 0.5, (1, b""): 1.25}
    assert receipt.epsilon == 2.75
    assert not raw(receipt.message)


async def test_all_units_around_an_any_pay_for_what_it_packs():
    inner = packed(value(more=[packed(value()), packed(report("other", more=packed(value())))]))
    message = TYPES.Holder(id="N1", one=inner, loose=TYPES.Envelope(many=[packed(TYPES.Total(secret=MARK))]))
    receipt, charges = await released(message)
    # Holder .125, three values .25 each, the report .5; the report's own unit pays for it and the value in it too.
    assert charges == {(0, b"N1"): 1.375, (0, b"other"): 0.75, (1, b""): 1.0}
    assert not raw(receipt.message)


async def test_protected_messages_open_all_anys_that_leave_with_them():
    message = TYPES.Holder(
        id="N1",
        one=packed(value()),
        many=[packed(value()), packed(TYPES.Plain(s="p")), UNKNOWN],
        named={"b": packed(value()), "a": packed(report("N2"))},
        loose=TYPES.Envelope(one=packed(value()), child=TYPES.Envelope(named={"k": packed(value())})),
        inner=TYPES.Inner(secret=MARK, one=packed(value())),
        gone=packed(report("N3")),
    )
    receipt, charges = await released(message)
    assert charges == {(0, b"N1"): 0.125 + 6 * 0.25 + 0.5, (0, b"N2"): 0.5}, "what is dropped is not paid for"
    out = receipt.message
    assert not raw(out)
    assert (out.many[1], out.many[2]) == (message.many[1], UNKNOWN)
    assert sorted(out.named) == ["a", "b"]
    assert not out.HasField("gone")


async def test_elements_that_are_cut_are_neither_judged_nor_paid_for():
    bad = any_pb2.Any(type_url="!", value=b"x")
    message = TYPES.Holder(id="N1", cut=[TYPES.Inner(one=packed(value())), TYPES.Inner(one=bad)])
    receipt, charges = await released(message)
    assert charges == {(0, b"N1"): 0.375}
    assert len(receipt.message.cut) == 1


async def test_a_public_field_leaves_with_all_that_is_in_it():
    message = TYPES.Holder(id="N1", kept=packed(value()), shown=TYPES.Envelope(one=packed(value())))
    receipt, charges = await released(message)
    assert charges == {(0, b"N1"): 0.125}
    assert (receipt.message.kept, receipt.message.shown) == (message.kept, message.shown)


@pytest.mark.parametrize(
    "box", [UNKNOWN, packed(TYPES.Plain(s="p")), packed(TYPES.Envelope()), packed(UNKNOWN)]
)
async def test_unannotated_decides_about_packed_types_without_rules(box):
    with pytest.raises(ProtectionError, match="Strict.one") as caught:
        await released(TYPES.Strict(one=box))
    assert caught.value.reason == "UNANNOTATED"
    assert "nobody" not in str(caught.value)
    kept = [packed(value()), box, packed(value()), box]
    receipt, _ = await released(TYPES.Bare(one=box, many=kept, named={"a": box, "b": packed(value())}))
    out = receipt.message
    assert b"raw" not in out.SerializeToString()
    if box.Is(any_pb2.Any.DESCRIPTOR):
        return  # The inner Any is emptied, and what it lies in stays.
    assert not out.HasField("one")
    assert [entry.type_url for entry in out.many] == [entry.type_url for entry in kept[::2]]
    assert list(out.named) == ["b"]


async def test_strict_messages_take_what_has_rules():
    for kind in (TYPES.Strict, TYPES.Bare):
        receipt, charges = await released(kind(one=packed(value())))
        assert not raw(receipt.message)
        assert not opened(receipt.message.one, TYPES.Value).secret
        assert charges == {(1, b""): 0.25}


async def test_a_policy_can_reject_unknown_types_everywhere():
    for rule in (privacy_pb2.MessageRules.REJECT, privacy_pb2.MessageRules.SUPPRESS):
        policy = policy_pb2.Policy(
            messages={"google.protobuf.Any": privacy_pb2.MessageRules(unannotated=rule)}
        )
        async with dpmesh.open(settings(), policy=policy) as mesh:
            for carrier in CARRIERS.values():
                message = carrier(TYPES.Plain(s=MARK))
                if rule == privacy_pb2.MessageRules.REJECT:
                    with pytest.raises(ProtectionError, match="UNANNOTATED"):
                        await mesh.release(message)
                else:
                    receipt = await mesh.release(message)
                    assert not raw(receipt.message)
                    assert (receipt.decision, receipt.epsilon, receipt.rho) == ("released", 0.0, 0.0)
        receipt, charges = await released(packed(report()), policy)
        assert charges == {(0, b"N1"): 0.5}


@pytest.mark.parametrize(
    "box",
    [
        any_pb2.Any(value=b"x"),
        any_pb2.Any(type_url="type.example.com/", value=b"x"),
        any_pb2.Any(type_url="type.example.com/a b", value=b"x"),
        any_pb2.Any(type_url=f"type.example.com/{TYPES.Report.DESCRIPTOR.full_name} ", value=b"x"),
        any_pb2.Any(type_url=f"type.example.com/.{TYPES.Report.DESCRIPTOR.full_name}", value=b"x"),
        any_pb2.Any(type_url=f"x/{TYPES.Report.DESCRIPTOR.full_name}", value=b"\x0a\x7fshort"),
        any_pb2.Any(type_url=f"x/{TYPES.Envelope.DESCRIPTOR.full_name}", value=b"\x0a\x7fshort"),
        any_pb2.Any(type_url="x/google.protobuf.Any", value=b"\x0a\x7fshort"),
        any_pb2.Any(type_url=f"x/{TWO.Needs.DESCRIPTOR.full_name}", value=b""),
        any_pb2.Any(type_url=f"x/{TYPES.Envelope.DESCRIPTOR.full_name}.NamedEntry", value=b""),
    ],
)
async def test_what_can_not_be_judged_is_refused_by_the_fields_name_and_never_quoted(box):
    for message in (box, TYPES.Envelope(one=box), TYPES.Holder(id="N1", one=box), packed(box)):
        with pytest.raises(ProtectionError) as caught:
            await released(message)
        assert caught.value.reason == "WRONG_TYPE"
        assert "Any" in caught.value.field or caught.value.field.rpartition(".")[2] == "one"
        assert "short" not in str(caught.value)
        assert caught.value.__context__ is None


async def test_a_type_url_without_a_host_is_judged_by_its_name():
    box = packed(report())
    box.type_url = TYPES.Report.DESCRIPTOR.full_name
    receipt, charges = await released(TYPES.Envelope(one=box))
    assert not raw(receipt.message)
    assert charges == {(0, b"N1"): 0.5}


async def test_a_missing_unit_inside_refuses_the_whole_message():
    with pytest.raises(ProtectionError, match="MISSING_UNIT"):
        await released(TYPES.Envelope(many=[packed(report()), packed(TYPES.Report(secret=MARK))]))


async def test_depth_has_a_bound_and_ends_in_no_recursion_error():
    box = packed(report())
    for _ in range(99):
        box = packed(box)
    receipt, charges = await released(box)
    assert not raw(receipt.message)
    assert charges == {(0, b"N1"): 0.5}
    for _ in range(2000):
        box = packed(box)
    with pytest.raises(ProtectionError, match="100 Anys"):
        await released(box)
    deep = TYPES.Envelope()
    at = deep
    for _ in range(150):
        at = at.child
    at.one.CopyFrom(packed(report()))
    async with dpmesh.open(settings()) as mesh:
        with pytest.raises(ProtectionError):
            await mesh.release(deep)


async def test_unknown_fields_leave_no_message_in_which_something_is_protected():
    stowaway = b"\xfa\x07\x0araw-marker"
    plain, envelope = TYPES.Plain(s="p"), TYPES.Envelope()
    for message in (plain, envelope):
        message.MergeFromString(stowaway)
    assert raw((await released(TYPES.Envelope(one=packed(plain))))[0].message), "nothing is protected here"
    envelope.many.extend([packed(plain), packed(report())])
    for message in (envelope, packed(envelope), TYPES.Holder(id="N1", loose=envelope, one=packed(plain))):
        receipt, _ = await released(message)
        assert not raw(receipt.message)
    inside = packed(extended(packed(TYPES.Plain(s=MARK))))
    assert not raw((await released(TYPES.Holder(id="N1", one=inside)))[0].message), "extensions leave neither"


async def test_a_budget_that_is_spent_refuses_all_or_leaves_all_blank():
    async with dpmesh.open(settings(epsilon=0.75)) as mesh:
        message = TYPES.Envelope(many=[packed(report()), packed(report("N2"))])
        await mesh.release(message)
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(message)
    async with dpmesh.open(settings(epsilon=0.75, on_exhausted="suppress")) as mesh:
        holder = TYPES.Holder(
            id="N1", one=packed(report(more=packed(TYPES.Plain(s="p")))), many=[packed(TWO.Needs(b=True))]
        )
        await mesh.release(holder)
        receipt = await mesh.release(holder)
        assert receipt.decision == "suppressed"
        inside = opened(receipt.message.one, TYPES.Report)
        assert (inside.secret, inside.b, inside.more) == ("", False, packed(TYPES.Plain(s="p")))
        assert receipt.message.many == [any_pb2.Any()]


async def test_observe_mode_accounts_for_what_is_packed_and_sends_the_message_itself():
    async with dpmesh.open({**settings(), "mode": "observe"}) as mesh:
        for message, epsilon in (
            (TYPES.Envelope(one=packed(report())), 0.5),
            (TYPES.Envelope(one=any_pb2.Any(value=b"x")), 0),
            (TYPES.Envelope(), 0),
        ):
            receipt = await mesh.release(message)
            assert receipt.message is message
            assert receipt.epsilon == epsilon


async def test_spans_and_metrics_say_what_was_protected_inside():
    told = []

    class Listener(Telemetry):
        def refresh(self):
            self.tracing = self.metering = self.listening = True

        def span(self, attributes, *_, **__):
            told.append(attributes)

        def add(self, method, mechanisms, *_):
            told.append(mechanisms)

    async with assembled(settings(), telemetry=Listener()) as mesh:
        boxes = [packed(report()), packed(TYPES.Total(sum=1)), packed(TYPES.Plain())]
        await mesh.release(TYPES.Envelope(many=boxes))
        await mesh.release(TYPES.Envelope(many=boxes[2:]))
    mechanisms, attributes = told
    assert attributes["dpmesh.message"] == TYPES.Envelope.DESCRIPTOR.full_name
    assert attributes["dpmesh.mechanisms"] == ("discrete_laplace", "k_randomized_response")
    assert mechanisms == "discrete_laplace,k_randomized_response"
    assert attributes["dpmesh.fields.count"] == 4
    versions = [Policy().plan(kind.DESCRIPTOR).version for kind in (TYPES.Report, TYPES.Total)]
    assert attributes["dpmesh.policy.version"] == ",".join(versions)


async def test_streams_and_releases_without_waiting_open_anys_too():
    async with assembled(settings(), ledger=SteadyLedger) as mesh:
        stream = mesh.stream(method="/x.Y/Z")
        for message, decision in (
            (TYPES.Envelope(one=packed(report())), "released"),
            (TYPES.Envelope(), "unprotected"),
        ):
            while (at_once := mesh.release_now(message)) is None:
                await mesh.release(message)  # Until a lease is held that pays for it.
            for receipt in (await stream.release(message), at_once):
                assert receipt.decision == decision
                assert not raw(receipt.message)
        stream.close()


async def test_a_message_that_another_thread_changes_is_read_once():
    message = TYPES.Envelope(one=packed(report("N1")))
    first, second = packed(report("N1")), packed(report("N2"))
    stop = threading.Event()

    def change():
        while not stop.is_set():
            message.one.CopyFrom(second)
            message.one.CopyFrom(first)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        async with assembled(settings(epsilon=1e5)) as mesh:
            await mesh.ledger.hold_keys([86_400.0])
            names = {Pseudonyms(mesh.ledger).to("")(unit, 86_400.0).hex(): unit for unit in (b"N1", b"N2")}
            for _ in range(300):
                out = (await mesh.release(message)).message
                assert names[opened(out.one, TYPES.Report).id] == mesh.ledger.bills[-1][0][1]
    finally:
        stop.set()
        thread.join()


async def test_budgets_for_the_packed_type_and_for_what_is_around_it_pay():
    config = settings()
    names = {kind: TYPES.__dict__[kind].DESCRIPTOR.full_name for kind in ("Report", "Envelope", "Total")}
    for kind in names:
        config["budget"].append(
            {
                "name": kind.lower(),
                "key": "unit",
                "epsilon": 1e3,
                "messages": [names[kind]],
                "accounting": "pure",
                "window": "24h",
            }
        )
    for message in (TYPES.Envelope(one=packed(report())), packed(TYPES.Envelope(one=packed(report())))):
        _, charges = await released(message, config=config)
        paid = {budget for budget, _ in charges}
        assert paid == {0, 2, 3}
    only = {"ledger": {"url": "memory:"}, "budget": [config["budget"][4]]}
    with pytest.raises(AnnotationError, match="no-budget"):
        await released(packed(report()), config=only)


async def test_quotas_count_what_is_packed():
    config = settings()
    config["quota"] = [{"name": "each", "under": "unit-day", "epsilon": 1.0, "consumers": ["alice"]}]
    message = TYPES.Envelope(many=[packed(report()), packed(report("N2"))])
    async with dpmesh.open(config) as mesh:
        for _ in range(2):
            await mesh.release(message, consumer="alice")
        with pytest.raises(BudgetExhaustedError, match="each"):
            await mesh.release(TYPES.Holder(id="N3", one=packed(report())), consumer="alice")
        assert (await mesh.release(message, consumer="bob")).decision == "released"


async def test_a_oneof_with_a_public_choice_can_hold_an_any():
    types = compiled(
        f"""message M {{ string id = 1 {UNIT}; oneof o {{ option (dpmesh.v1.oneof) = {{public: true}};
        google.protobuf.Any a = 2; bool b = 3 [{CAT} = {{epsilon: 1}}]; }} }}"""
    )
    for message, paid in ((types.M(id="N1", a=packed(value())), 1.25), (types.M(id="N1", b=True), 1.0)):
        receipt, charges = await released(message)
        assert receipt.message.WhichOneof("o") == message.WhichOneof("o")
        assert charges == {(0, b"N1"): paid}
        assert not raw(receipt.message)


async def test_messages_without_their_required_fields_are_judged_like_others():
    assert (await released(TWO.Extended()))[0].decision == "unprotected"
    types = compiled("message R { required string s = 1; optional google.protobuf.Any a = 2; }", "proto2")
    message = types.R(a=packed(report()))
    async with dpmesh.open(settings()) as mesh:
        receipt = await mesh.release(message)
    assert MARK.encode() not in receipt.message.SerializePartialToString()


async def test_rules_for_the_fields_of_any_itself_are_refused():
    policy = policy_pb2.Policy(fields={"google.protobuf.Any.value": {"suppress": {}}})
    with pytest.raises(AnnotationError, match=r"\[any\]"):
        await released(TYPES.Envelope(), policy)
    with pytest.raises(AnnotationError, match=r"\[any\]"):
        Policy(policy).plan(any_pb2.Any.DESCRIPTOR)


def test_a_oneof_that_hides_its_choice_can_not_hold_an_any():
    types = compiled(
        f"message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 1}}; google.protobuf.Any a = 1; bool b = 2 [{CAT} = {{epsilon: 1}}]; }} }}"
    )
    with pytest.raises(AnnotationError, match="oneof-choice"):
        Policy().plan(types.M.DESCRIPTOR)


def test_a_plan_by_itself_protects_no_message_that_was_not_opened():
    for kind in (TYPES.Holder, TYPES.Envelope, any_pb2.Any):
        plan = Policy().plan(kind.DESCRIPTOR)
        for run in (plan.protect, plan.blank):
            with pytest.raises(ProtectionError, match="opened first"):
                run(kind(), lambda unit, epoch: b"")


def test_types_that_reach_neither_any_nor_extensions_have_nothing_to_protect_for_good():
    assert Policy().plan(TYPES.Plain.DESCRIPTOR) is None
    assert Policy().plan(TYPES.Report.DESCRIPTOR).anys is not None
    assert Policy().plan(TYPES.Total.DESCRIPTOR).anys is None


def test_every_field_of_anys_is_a_row_of_the_plan_and_a_finding():
    policy = Policy()
    plan = policy.plan(TYPES.Holder.DESCRIPTOR)
    rows = {entry.path for entry in plan.fields if str(entry.kind) == "any"}
    assert rows == {
        "one", "many", "named", "loose.one", "loose.many", "loose.named", "loose.chosen", "inner.one", "cut[].one",
    }  # fmt: skip
    found = [entry for entry in policy.diagnostics(TYPES.Strict.DESCRIPTOR) if entry.rule == "any"]
    assert [entry.element.rpartition(".")[2] for entry in found] == ["one"]
    assert "are refused" in found[0].text


SEEDS = 60


def test_random_nestings_never_leave_a_raw_value():
    """Every message is protected or refused, and every unit in it pays exactly what its values cost."""
    draw = random.Random(20_260_801)

    def node(depth, paid, unit):
        """A random message with markers in its protected values, and what each account pays for it."""
        kinds = ["Report", "Value", "Total", "Plain", "Unknown"] + (
            ["Envelope", "Holder", "Any", "Status", "Inner"] * 2 if depth else []
        )
        kind = draw.choice(kinds)
        if kind == "Unknown":
            return any_pb2.Any(type_url="x/nobody.has.This", value=b"")
        if kind == "Any":
            return packed(node(depth - 1, paid, unit))
        if kind == "Plain":
            return TYPES.Plain(s="fine")
        if kind == "Total":
            pay(paid, [b""], 1.0)
            return TYPES.Total(secret=MARK)
        if kind == "Status":
            return status_pb2.Status(details=[packed(node(depth - 1, paid, unit)) for _ in range(2)])
        if kind == "Value":
            pay(paid, unit or [b""], 0.25)
            return value(
                more=[packed(node(depth - 1, paid, unit)) for _ in range(draw.randrange(3))] if depth else []
            )
        if kind == "Inner":
            return TYPES.Inner(secret=MARK, one=packed(node(depth - 1, paid, unit)))
        if kind == "Envelope":
            return envelope(depth, paid, unit)
        own = f"unit-{draw.randrange(3)}"
        key = [*unit, own.encode()]
        if kind == "Report":
            pay(paid, key, 0.5)
            return report(own, more=packed(node(depth - 1, paid, key)) if depth else None)
        pay(paid, key, 0.125)
        return TYPES.Holder(
            id=own,
            one=packed(node(depth - 1, paid, key)),
            named={str(i): packed(node(depth - 1, paid, key)) for i in range(draw.randrange(3))},
            loose=envelope(depth, paid, key),
            inner=TYPES.Inner(secret=MARK, one=packed(node(depth - 1, paid, key))),
            gone=packed(report("never")),
        )

    def envelope(depth, paid, unit):
        return TYPES.Envelope(
            many=[packed(node(depth - 1, paid, unit)) for _ in range(draw.randrange(3))],
            chosen=packed(node(depth - 1, paid, unit)),
            child=envelope(depth - 1, paid, unit) if depth > 1 else None,
            by_number={3: TYPES.Envelope(one=packed(node(depth - 1, paid, unit)))},
        )

    def pay(paid, accounts, epsilon):
        for account in accounts:
            paid[account] = paid.get(account, 0.0) + epsilon

    async def run():
        protected = 0
        async with dpmesh.open(settings(epsilon=1e6)) as mesh:
            billed = []
            spend = mesh.ledger.spend
            mesh.ledger.spend = lambda charges: billed.append(charges) or spend(charges)
            for _ in range(SEEDS):
                paid, owed = {}, {}
                message = node(3, paid, [])
                billed.clear()
                receipt = await mesh.release(message)
                assert not raw(receipt.message)
                assert b"unit-" not in receipt.message.SerializeToString()
                for _, account, amount in billed[-1] if billed else ():
                    owed[account] = amount / 1e9
                assert owed == paid
                protected += receipt.decision == "released"
        return protected

    assert asyncio.run(run()) > SEEDS // 2


# -- what is imported later ------------------------------------------------------------------------------------------------


async def test_a_type_that_is_imported_later_is_protected_from_then_on():
    name = "later.Reading"
    box = any_pb2.Any(type_url=f"type.example.com/{name}", value=TYPES.Value(secret=MARK).SerializeToString())
    async with dpmesh.open(settings()) as mesh:
        assert (await mesh.release(TYPES.Envelope(one=box))).decision == "unprotected"
        assert (await mesh.release(TYPES.Report(id="N1", more=box))).message.more == box
        add_file("later.proto", "later", TYPES.Value.DESCRIPTOR, "Reading")
        for message in (TYPES.Envelope(one=box), TYPES.Report(id="N1", more=box)):
            receipt = await mesh.release(message)
            assert receipt.decision == "released"
            assert not raw(receipt.message)


def add_file(file, package, like, name):
    """Adds a message type to the default pool that is like another one."""
    from google.protobuf import descriptor_pb2

    source, made = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    like.file.CopyToProto(source)
    made.CopyFrom(descriptor_pb2.FileDescriptorProto(name=file, package=package, syntax="proto3"))
    made.dependency.extend(source.dependency)
    like.CopyToProto(made.message_type.add())
    made.message_type[0].name = name
    descriptor_pool.Default().AddSerializedFile(made.SerializeToString())


def extend(types, name, number, annotation):
    """Adds an extension of `types`.name to the default pool, as importing its module does."""
    from google.protobuf import descriptor_pb2

    rules = privacy_pb2.FieldRules(**{annotation: {}})
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{types.package}_{name}_{number}.proto", package=f"{types.package}x{number}", syntax="proto2"
    )
    file.dependency.extend([f"{types.package}.proto", "dpmesh/v1/privacy.proto"])
    field = file.extension.add(name="late", number=number, extendee=f".{types.package}.{name}")
    field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
    field.options.Extensions[privacy_pb2.field].CopyFrom(rules)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindExtensionByName(f"{file.package}.late")


async def test_an_extension_that_is_imported_after_the_first_release_is_judged():
    types = compiled(
        "message Base { optional string s = 1; extensions 100 to 200; } message Around { optional Base base = 1; } message Many { repeated Base more = 1; }",
        "proto2",
    )
    async with dpmesh.open(settings()) as mesh:
        for message in (
            types.Base(s="x"),
            types.Around(base={"s": "x"}),
            types.Many(),
            packed(types.Base(s="x")),
        ):
            receipt = await mesh.release(message)
            assert (receipt.decision, receipt.message) == ("unprotected", message)
            assert mesh.snapshot.protection(type(message)) is None
        public = extend(types, "Base", 100, "public")
        base = types.Base(s="x")
        base.Extensions[public] = "fine"
        assert (await mesh.release(base)).message == base
        field = extend(types, "Base", 101, "suppress")
        base.Extensions[field] = MARK
        for message in (base, types.Around(base=base), packed(base), TYPES.Envelope(one=packed(base))):
            assert raw(message)
            receipt = await mesh.release(message)
            assert receipt.decision == "released"
            assert not raw(receipt.message)
        assert mesh.snapshot.protection(types.Base) is True
        with pytest.raises(AnnotationError, match="max-items"):
            await mesh.release(types.Many(more=[base]))


async def test_an_extension_that_another_thread_imports_while_its_type_is_compiled_is_judged(monkeypatch):
    types = compiled("message Base { optional string s = 1; extensions 100 to 200; } message M {}", "proto2")
    fields = []

    def compile_meanwhile(message, book):
        done = compile_message(message, book)
        if message is types.Base.DESCRIPTOR and not fields:
            fields.append(extend(types, "Base", 100, "suppress"))
        return done

    monkeypatch.setattr("dpmesh.policy.policy.compile_message", compile_meanwhile)
    async with dpmesh.open(settings()) as mesh:
        assert mesh.snapshot.protection(types.Base)
        (field,) = fields
        base = types.Base(s="x")
        base.Extensions[field] = MARK
        assert not raw((await mesh.release(base)).message)


async def test_labels_of_a_method_that_is_imported_later_choose_budgets_from_then_on():
    from google.protobuf import descriptor_pb2

    config = settings()
    config["budget"].append(
        {
            "name": "labelled",
            "key": "unit",
            "epsilon": 10.0,
            "labels": ["beta"],
            "accounting": "pure",
            "window": "24h",
        }
    )
    method = "/late.Service/Send"
    async with dpmesh.open(config) as mesh:
        billed = []
        spend = mesh.ledger.spend
        mesh.ledger.spend = lambda charges: billed.append(charges) or spend(charges)

        async def paying(message):
            await mesh.release(message, method=method)
            return {budget for budget, _, _ in billed[-1]}

        assert await paying(report()) == {0}
        assert await paying(packed(report())) == {0}
        file = descriptor_pb2.FileDescriptorProto(name="late_service.proto", package="late", syntax="proto3")
        file.dependency.extend([TYPES.Report.DESCRIPTOR.file.name, "dpmesh/v1/privacy.proto"])
        service = file.service.add(name="Service")
        rpc = service.method.add(name="Send")
        rpc.input_type = rpc.output_type = f".{TYPES.Report.DESCRIPTOR.full_name}"
        rpc.options.Extensions[privacy_pb2.method].labels.append("beta")
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        assert await paying(report()) == {0, 2}
        assert await paying(packed(report())) == {0, 2}


def test_types_of_a_pool_of_their_own_are_found_there_first():
    from google.protobuf import descriptor_pb2

    pool = descriptor_pool.DescriptorPool()
    default = descriptor_pool.Default()
    for name in (
        "google/protobuf/any.proto",
        "google/protobuf/descriptor.proto",
        "google/protobuf/duration.proto",
        "dpmesh/v1/privacy.proto",
    ):
        pool.AddSerializedFile(default.FindFileByName(name).serialized_pb)
    package = "o" * len(TYPES.package)
    file = descriptor_pb2.FileDescriptorProto(name="own.proto", package=package, syntax="proto3")
    file.dependency.extend(["google/protobuf/any.proto", "dpmesh/v1/privacy.proto"])
    for kind in (TYPES.Envelope, TYPES.Total):
        proto = file.message_type.add()
        kind.DESCRIPTOR.CopyToProto(proto)
        renamed = proto.SerializeToString().replace(f".{TYPES.package}.".encode(), f".{package}.".encode())
        proto.ParseFromString(renamed)
    pool.AddSerializedFile(file.SerializeToString())
    Envelope, Total = (
        GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in ("Envelope", "Total")
    )
    message = Envelope(
        many=[{"type_url": f"x/{package}.Total", "value": Total(secret=MARK).SerializeToString()}]
    )
    receipt, charges = asyncio.run(released(message))
    assert not raw(receipt.message)
    assert charges == {(1, b""): 1.0}


def test_a_pool_that_knows_no_annotations_does_not_hide_those_of_the_default_pool():
    from google.protobuf import descriptor_pb2

    pool, default = descriptor_pool.DescriptorPool(), descriptor_pool.Default()
    pool.AddSerializedFile(default.FindFileByName("google/protobuf/any.proto").serialized_pb)
    file = descriptor_pb2.FileDescriptorProto()
    TYPES.Value.DESCRIPTOR.file.CopyToProto(file)
    del file.dependency[:]
    file.dependency.append("google/protobuf/any.proto")
    for message in file.message_type:
        message.ClearField("options")
        for field in message.field:
            field.ClearField("options")
    pool.AddSerializedFile(file.SerializeToString())
    bare_any = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.Any"))
    box = packed(value())
    receipt, charges = asyncio.run(released(bare_any(type_url=box.type_url, value=box.value)))
    assert not raw(receipt.message)
    assert charges == {(1, b""): 0.25}


WRAPPED = compiled(
    f"""message Leaf {{ string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 0.25}}]; }}
    message Mid {{ option (dpmesh.v1.message) = {{labels: "mid"}}; string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 0.5}}];
        google.protobuf.Any any = 3; }}
    message Loose {{ option (dpmesh.v1.message) = {{labels: "loose"}}; google.protobuf.Any any = 1; }}
    message Above {{ option (dpmesh.v1.message) = {{labels: "above"}}; Loose loose = 1; repeated Loose many = 2; }}
    message Top {{ string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 1}}]; Above above = 3; google.protobuf.Any any = 4; }}"""
)
LEAF = packed(WRAPPED.Leaf(id="L", b=True))
MID = packed(WRAPPED.Mid(id="M", b=True, any=LEAF))
# A message, the type or label for which a budget is, and whom this budget charges.
AROUND_ANYS = [
    (MID, "Mid", {"M": 0.75, "L": 0.25}),
    (packed(MID), "Mid", {"M": 0.75, "L": 0.25}),
    (WRAPPED.Loose(any=MID), "Mid", {"M": 0.75, "L": 0.25}),
    (WRAPPED.Loose(any=LEAF), "Loose", {"L": 0.25}),
    (WRAPPED.Above(loose={"any": LEAF}), "Above", {"L": 0.25}),
    (WRAPPED.Above(many=[{"any": MID}]), "Loose", {"M": 0.75, "L": 0.25}),
    (packed(WRAPPED.Above(loose={"any": LEAF})), "Loose", {"L": 0.25}),
    (packed(WRAPPED.Loose(any=packed(WRAPPED.Loose(any=LEAF)))), "Loose", {"L": 0.25}),
    (WRAPPED.Top(id="T", above={"loose": {"any": LEAF}}), "Loose", {"T": 1.25, "L": 0.25}),
    (WRAPPED.Top(id="T", any=packed(WRAPPED.Above(loose={"any": LEAF}))), "Above", {"L": 0.25, "T": 1.25}),
    (WRAPPED.Top(id="T", any=MID), "Leaf", {"L": 0.25, "T": 0.25, "M": 0.25}),
]


@pytest.mark.parametrize("by", ["messages", "labels"])
@pytest.mark.parametrize(("message", "name", "charged"), AROUND_ANYS, ids=str)
async def test_a_budget_for_any_message_around_a_packed_one_pays_for_it(message, name, charged, by):
    if by == "labels" and name == "Leaf":
        pytest.skip("it has no label")
    chosen = [f"{WRAPPED.package}.{name}"] if by == "messages" else [name.lower()]
    config = settings()
    config["budget"].append({**config["budget"][0], "name": "chosen", by: chosen})
    _, charges = await released(message, config=config)
    assert {unit.decode(): amount for (budget, unit), amount in charges.items() if budget == 2} == charged
