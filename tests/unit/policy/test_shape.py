"""What the shape of a message tells: units inside of units, aggregates that are absent, plans without bounds."""

import random
from collections import Counter

import pytest

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy import Policy, Severity
from dpmesh.policy.rulebook import Rulebook
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
UNIT = "[(dpmesh.v1.field).unit = {}]"
HIDDEN = "[(dpmesh.v1.field).unit = {form: SUPPRESSED}]"
SUM = f"[{NUM} = {{lower: 0 upper: 1000 epsilon: 0.5 sensitivity: 1}}]"
# At epsilon 64 the truth leaves, but for one draw in 10^27.
SURE = f"[{CAT} = {{epsilon: 64}}]"


def alias(unit: bytes, epoch: float) -> bytes:
    return (unit + b"#" * 16)[:16]


def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def protect(message):
    return plan_of(type(message)).protect(message, alias)


def problems(body, name="M", syntax="proto3"):
    found = Policy().diagnostics(getattr(compiled(body, syntax), name).DESCRIPTOR)
    return [(entry.severity, entry.rule, entry.element.split(".", 1)[1]) for entry in found]


def errors(body, name="M", syntax="proto3"):
    found = problems(body, name, syntax)
    return [(rule, element) for severity, rule, element in found if severity is Severity.ERROR]


# -- units inside of units ----------------------------------------------------------------------------------------

PHONE = compiled(
    f"""message Phone {{ repeated Contact seen = 3 [(dpmesh.v1.field).max_items = 8]; Contact spouse = 4;
    Family family = 5; bool sick = 2 [{CAT} = {{epsilon: 1}}]; string id = 1 {UNIT}; }}
    message Family {{ repeated Contact child = 1 [(dpmesh.v1.field).max_items = 2]; optional Contact partner = 2; }}
    message Contact {{ string id = 1 {HIDDEN}; optional bool sick = 2 [{CAT} = {{epsilon: 0.5}}];
    string note = 3 [(dpmesh.v1.field).suppress = {{}}]; bytes key = 4 [(dpmesh.v1.field).message_id = {{}}];
    Place place = 5; }}
    message Place {{ string at = 1 {HIDDEN}; bool open = 2 [{CAT} = {{epsilon: 0.25}}]; }}"""
)


def contact(name):
    return PHONE.Contact(id=name, sick=True, note="secret", place={"at": "café", "open": True})


def shape(message):
    """All that a receiver sees but for the values."""
    seen = []
    for field, value in message.ListFields():
        if field.message_type is None:
            seen.append((field.name, len(value) if field.is_repeated else field.has_presence))
        else:
            seen.append((field.name, [shape(one) for one in (value if field.is_repeated else (value,))]))
    return [entry for entry in seen if entry[1] is not False]


@pytest.mark.parametrize("seen", [0, 1, 5, 8, 30])
def test_a_unit_inside_of_a_unit_shows_neither_its_presence_nor_its_number(seen):
    alone = PHONE.Phone(id="alice")
    full = PHONE.Phone(id="alice", spouse=contact("bob"), seen=[contact(f"c{n}") for n in range(seen)])
    full.family.child.add().CopyFrom(contact("carol"))
    outs = [protect(message) for message in (alone, full)]
    assert shape(outs[0]) == shape(outs[1])
    for out in outs:
        assert (len(out.seen), len(out.family.child)) == (8, 2)
        assert out.HasField("spouse")
        assert out.family.HasField("partner")
        shown = [*out.seen, out.spouse, *out.family.child, out.family.partner]
        assert all(len(one.key) == 16 and one.HasField("sick") and one.HasField("place") for one in shown)
        assert not any(one.id or one.note or one.place.at for one in shown)


def test_a_made_up_element_is_a_default_one():
    """Where a real element holds defaults, even the bytes are equal."""
    phones = compiled(
        f"""message M {{ string id = 1 {UNIT}; repeated C seen = 2 [(dpmesh.v1.field).max_items = 3]; C one = 3; }}
        message C {{ string id = 1 {HIDDEN}; optional bool sick = 2 {SURE}; }}"""
    )
    full = phones.M(id="a", seen=[phones.C(id="b"), phones.C(id="c", sick=False)], one=phones.C(id="d"))
    assert protect(full).SerializeToString() == protect(phones.M(id="a")).SerializeToString()


def test_the_outer_unit_pays_for_every_place_and_inner_units_for_their_own():
    plan = plan_of(PHONE.Phone)
    contacts = 0.75  # its own 0.5, and its place's 0.25
    costs = {scope.path: scope.cost.epsilon / AMOUNT for scope in plan.scopes}
    assert costs == {
        "id": 1 + 12 * contacts,
        "seen[].id": contacts,
        "seen[].place.at": 0.25,
        "spouse.id": contacts,
        "spouse.place.at": 0.25,
        "family.child[].id": contacts,
        "family.child[].place.at": 0.25,
        "family.partner.id": contacts,
        "family.partner.place.at": 0.25,
    }
    paths = [scope.path for scope in plan.scopes]
    owners = plan.owners(PHONE.Phone(id="alice", seen=[contact("bob")]))
    assert [(paths[scope], unit) for scope, unit in owners] == [
        ("id", b"alice"),
        ("seen[].id", b"bob"),
        ("seen[].place.at", "café".encode()),
    ]
    assert plan.owners(PHONE.Phone(id="alice")) == [(paths.index("id"), b"alice")]


def test_an_element_that_is_there_needs_its_id():
    with pytest.raises(ProtectionError, match=r"Contact\.id: .*MISSING_UNIT"):
        plan_of(PHONE.Phone).owners(PHONE.Phone(id="alice", seen=[PHONE.Contact(sick=True)]))


async def test_a_release_charges_the_outer_unit_whatever_its_message_holds():
    settings = {
        "ledger": {"url": "memory:"},
        "budget": [{"name": "unit-day", "key": "unit", "epsilon": 1000.0, "accounting": "pure"}],
    }
    async with dpmesh.open(settings) as mesh:
        empty = await mesh.release(PHONE.Phone(id="alice"))
        full = await mesh.release(PHONE.Phone(id="alice", seen=[contact(f"c{n}") for n in range(5)]))
    assert (empty.epsilon, full.epsilon) == (10.0, 10.0 + 5 * (0.75 + 0.25))
    assert shape(empty.message) == shape(full.message)


@pytest.mark.parametrize(
    ("field", "inside", "element"),
    [
        ("C c = 2;", f"string id = 1 {UNIT};", "M.c"),
        ("optional C c = 2;", "string id = 1 [(dpmesh.v1.field).unit = {form: RAW}];", "M.c"),
        ("repeated C c = 2 [(dpmesh.v1.field).max_items = 3];", f"int64 id = 1 {UNIT};", "M.c"),
        ("C c = 2;", f"string id = 1 {HIDDEN}; string note = 2;", "M.c"),
        ("C c = 2;", f"string id = 1 {HIDDEN}; string n = 2 [(dpmesh.v1.field).public = {{}}];", "M.c"),
        ("C c = 2;", f"string id = 1 {HIDDEN}; D d = 2;", "M.c"),
        (
            "C c = 2;",
            f"string id = 1 {HIDDEN}; oneof o {{ option (dpmesh.v1.oneof).public = true; bool a = 2 {SURE}; bool b = 3 {SURE}; }}",
            "M.c",
        ),
        (
            "C c = 2;",
            f"string id = 1 {HIDDEN}; map<string, E> e = 2 [(dpmesh.v1.field).max_items = 2];",
            "M.c",
        ),
        ("map<string, C> c = 2 [(dpmesh.v1.field).max_items = 3];", f"string id = 1 {HIDDEN};", "M.c"),
        ("U u = 2;", f"string id = 1 {UNIT};", "U.c"),
        ("repeated U u = 2 [(dpmesh.v1.field).max_items = 2];", f"string id = 1 {UNIT};", "U.c"),
        ("map<string, U> u = 2 [(dpmesh.v1.field).max_items = 2];", f"string id = 1 {HIDDEN};", "M.u"),
        (
            "oneof o { option (dpmesh.v1.oneof).public = true; U u = 2; E e = 3; }",
            f"string id = 1 {UNIT};",
            "U.c",
        ),
        ("repeated V v = 2 [(dpmesh.v1.field).max_items = 2];", f"string id = 1 {HIDDEN};", "M.v"),
    ],
)
def test_what_would_tell_a_unit_that_is_there_from_one_that_is_not_is_refused(field, inside, element):
    """The unit that stands above is declared first, last, and above a message without one."""
    parts = f"""message C {{ {inside} bool sick = 9 {SURE}; }} message D {{ string s = 1; bool b = 2 {SURE}; }}
    message E {{ bool b = 1 {SURE}; }} message U {{ C c = 1; }} message V {{ string note = 1; C c = 2; }}"""
    for body in (
        f"message M {{ string id = 1 {UNIT}; {field} }}",
        f"message M {{ {field} string id = 1 {UNIT}; }}",
        f"message M {{ {field} bool b = 7 {SURE}; }} message R {{ string id = 1 {UNIT}; M m = 2; }}",
    ):
        root = "R" if "message R " in body else "M"
        assert ("unit-nested", element) in errors(body + parts, root)


YEAR = 'earliest: "2026-01-01T00:00:00Z" latest: "2027-01-01T00:00:00Z"'
ALPS = "min_latitude: 45 max_latitude: 48 min_longitude: 5 max_longitude: 11"
NEAR = {
    "time": (
        "google.protobuf.Timestamp",
        f"time: {{{YEAR} epsilon: 1 largest_shift: {{seconds: %d}}}}",
        60,
        10**8,
    ),
    "place": ("P", f"location: {{{ALPS} epsilon: 1 metric: GEO radius_km: %d}}", 5, 2000),
}


@pytest.mark.parametrize("kind", NEAR)
def test_a_value_that_is_hidden_from_near_ones_only_shows_that_it_is_there(kind):
    """An absent time counts as 1970 and an absent place as the region's middle, which is far from most values."""
    held, rule, small, large = NEAR[kind]
    place = "message P { double latitude = 1; double longitude = 2; }"
    for size, refused in ((small, True), (large, False)):
        field = f"{held} at = 2 [(dpmesh.v1.field) = {{{rule % size}}}];"
        choice = f"oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; {field} bool b = 3 {SURE}; }}"
        nested = f"message C {{ string id = 1 {HIDDEN}; {field} }}"
        assert errors(f"message M {{ {choice} }} {place}") == [("oneof-choice", "M.at")] * refused
        outer = f"message M {{ string id = 1 {UNIT}; C c = 2; }} {nested} {place}"
        assert errors(outer) == [("unit-nested", "M.c")] * refused


def test_the_number_of_inner_units_has_to_be_public():
    body = f"message M {{ string id = 1 {UNIT}; repeated C c = 2; }} message C {{ string id = 1 {HIDDEN}; }}"
    assert errors(body) == [("max-items", "M.c")]


def test_a_public_choice_shows_the_presence_of_a_unit_on_purpose():
    types = compiled(
        f"""message M {{ string id = 1 {UNIT}; oneof o {{ option (dpmesh.v1.oneof).public = true; C c = 2; E e = 3; }} }}
        message C {{ string id = 1 {UNIT}; bool sick = 2 {SURE}; }} message E {{ bool b = 1 {SURE}; }}"""
    )
    assert protect(types.M(id="a")).WhichOneof("o") is None
    assert protect(types.M(id="a", e={})).WhichOneof("o") == "e"
    assert protect(types.M(id="a", c=types.C(id="b"))).c.id == alias(b"b", 0).hex()


def test_batches_without_an_outer_unit_show_their_reports_as_before():
    types = compiled(
        f"""message Batch {{ repeated C many = 1; map<string, C> named = 2; C one = 3; }}
        message C {{ string id = 1 {HIDDEN}; bool sick = 2 {SURE}; string note = 3; }}"""
    )
    out = protect(
        types.Batch(many=[types.C(id="a", note="x"), types.C(id="b")], named={"k": types.C(id="c")})
    )
    assert (len(out.many), sorted(out.named), out.HasField("one")) == (2, ["k"], False)
    assert protect(types.Batch()) == types.Batch()
    with pytest.raises(ProtectionError, match="MISSING_UNIT"):
        protect(types.Batch(many=[types.C()]))


def test_a_header_that_names_a_unit_beside_messages_that_name_others_is_found():
    parts = f"""message H {{ string id = 1 {UNIT}; bool sick = 2 {SURE}; }}
    message C {{ string id = 1 {UNIT}; bool sick = 2 {SURE}; }}"""
    beside = [(Severity.WARNING, "unit-beside", "M")]
    assert problems("message M { H owner = 1; repeated C seen = 2; }" + parts) == beside
    assert problems("message M { repeated C seen = 1; H owner = 2; C spouse = 3; }" + parts) == beside
    assert problems("message M { C first = 1; C last = 2; repeated C more = 3; }" + parts) == []
    batch = problems("message M { C first = 1; map<string, C> named = 2; }" + parts)
    assert batch == [(Severity.WARNING, "map-keys", "M.named")]
    assert problems("message M { repeated H owners = 1; repeated C seen = 2; }" + parts) == []
    choice = "option (dpmesh.v1.oneof).public = true;"
    assert problems(f"message M {{ oneof o {{ {choice} H owner = 1; C other = 2; }} }}" + parts) == []
    unit = f"string id = 9 {UNIT};"
    hidden = parts.replace(UNIT, HIDDEN)
    assert (
        problems(f"message M {{ {unit} U u = 1; }} message U {{ H owner = 1; C other = 2; }}" + hidden) == []
    )


def test_values_beside_an_inner_unit_are_the_outer_units():
    body = f"""message M {{ string id = 1 {UNIT}; Row row = 2; }}
    message Row {{ C c = 1; bool b = 2 [{CAT} = {{epsilon: 1}}]; }} message C {{ string id = 1 {HIDDEN}; }}"""
    types = compiled(body)
    assert Policy().diagnostics(types.M.DESCRIPTOR) == []
    costs = {scope.path: scope.cost.epsilon for scope in plan_of(types.M).scopes}
    assert costs == {"id": AMOUNT, "row.c.id": 0}


def test_a_required_id_can_not_be_suppressed_and_a_filled_message_needs_its_required_fields():
    hidden = "required string id = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];"
    noised = f"optional bool b = 2 {SURE};"
    assert errors(f"message M {{ {hidden} {noised} }}", syntax="proto2") == [("required", "M.id")]
    inner = f"optional string id = 1 {HIDDEN}; required string note = 3; {noised}"
    body = f"message M {{ optional string id = 1 {UNIT}; optional C c = 2; }} message C {{ {inner} }}"
    assert ("required", "C.note") in errors(body, syntax="proto2")


def random_protos(draw):
    """Messages that name units inside of messages that do, through every way of holding one."""
    ways = [
        "M{n} f{n} = {n};",
        "optional M{n} f{n} = {n};",
        "repeated M{n} f{n} = {n} [(dpmesh.v1.field).max_items = {items}];",
    ]
    text, last = [], 6
    for number in range(last):
        held = sorted({draw.randint(number + 1, last) for _ in range(2)})
        fields = [draw.choice(ways).format(n=n, items=draw.randint(1, 3)) for n in held]
        fields.append(f"optional bool b = 20 {SURE};" if draw.random() < 0.5 else "")
        fields.append(
            f"string id = 21 {UNIT if number == 0 else HIDDEN};" if draw.random() < 0.6 or not number else ""
        )
        text.append(f"message M{number} {{ {' '.join(fields)} }}")
    return "\n".join([*text, f"message M{last} {{ string id = 1 {HIDDEN}; optional bool b = 2 {SURE}; }}"])


def fill(draw, message):
    for field in message.DESCRIPTOR.fields:
        if field.name == "id":
            message.id = f"u{draw.randint(0, 3)}"
        elif draw.random() < 0.6:
            if field.message_type is None:
                message.b = draw.random() < 0.5
            elif field.is_repeated:
                for _ in range(draw.randint(0, 4)):
                    fill(draw, getattr(message, field.name).add())
            else:
                getattr(message, field.name).SetInParent()
                fill(draw, getattr(message, field.name))


@pytest.mark.parametrize("seed", range(12))
def test_no_nesting_of_units_shows_which_are_there(seed):
    draw = random.Random(seed)
    types = compiled(random_protos(draw))
    plan = plan_of(types.M0)
    expected = shape(plan.protect(types.M0(id="u"), alias))
    outer = [scope for scope in plan.scopes if scope.path == "id"]
    for _ in range(20):
        message = types.M0()
        fill(draw, message)
        assert shape(plan.protect(message, alias)) == expected
        assert plan.owners(message)[0] == (plan.scopes.index(outer[0]), message.id.encode())
    # The outer unit pays for every value that leaves.
    assert outer[0].cost.epsilon == sum(
        entry.cost.times(entry.instances).epsilon for entry in plan.fields if entry.mechanism_name
    )


# -- aggregates that are absent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "good", "bad", "field"),
    [
        (f"message M {{ optional double a = 1 {SUM}; }}", {"a": 0}, {}, "M.a"),
        (f"message M {{ google.protobuf.Int64Value a = 1 {SUM}; }}", {"a": {"value": 0}}, {}, "M.a"),
        (f"message M {{ N n = 1; }} message N {{ double a = 1 {SUM}; }}", {"n": {}}, {}, "M.n"),
        (
            f"message M {{ N n = 1; }} message N {{ optional O o = 1; }} message O {{ double a = 1 {SUM}; }}",
            {"n": {"o": {}}},
            {"n": {}},
            "N.o",
        ),
        (
            f"message M {{ repeated double a = 1 [{NUM} = {{lower: 0 upper: 9 epsilon: 1 sensitivity: 1}}, (dpmesh.v1.field).max_items = 2]; }}",
            {"a": [1, 2, 3]},
            {"a": [1]},
            "M.a",
        ),
        (
            f"message M {{ repeated N n = 1 [(dpmesh.v1.field).max_items = 2]; }} message N {{ double a = 1 {SUM}; }}",
            {"n": [{}, {}]},
            {"n": [{}]},
            "M.n",
        ),
        (
            f"message M {{ map<string, N> n = 1 [(dpmesh.v1.field).max_items = 2]; }} message N {{ optional double a = 1 {SUM}; }}",
            {"n": {"x": {"a": 1}}},
            {"n": {"x": {}}},
            "N.a",
        ),
        (
            f"message M {{ oneof o {{ option (dpmesh.v1.oneof).public = true; N n = 1; double b = 2 {SUM}; }} }} message N {{ optional double a = 1 {SUM}; }}",
            {"b": 1},
            {"n": {}},
            "N.a",
        ),
        (
            f"message M {{ string id = 1 {UNIT}; C c = 2; }} message C {{ string id = 1 {HIDDEN}; double a = 2 {SUM}; }}",
            {"id": "a", "c": {"id": "b"}},
            {"id": "a"},
            "M.c",
        ),
    ],
)
def test_no_default_stands_in_for_an_aggregate_that_is_absent(body, good, bad, field):
    types = compiled(body)
    plan = plan_of(types.M)
    plan.protect(types.M(**good), alias)
    with pytest.raises(ProtectionError) as caught:
        plan.protect(types.M(**bad), alias)
    assert (caught.value.reason, caught.value.field) == ("MISSING_AGGREGATE", f"{types.package}.{field}")
    plan.blank(types.M(**bad), alias)  # holds no aggregate


@pytest.mark.parametrize("label", ["optional", "required"])
def test_a_declared_default_stands_in_for_no_aggregate_either(label):
    rule = f"{NUM} = {{lower: 0 upper: 1000 epsilon: 0.5 sensitivity: 1}}"
    types = compiled(f"message M {{ {label} double a = 1 [{rule}, default = 500]; }}", "proto2")
    with pytest.raises(ProtectionError, match="MISSING_AGGREGATE"):
        protect(types.M())
    assert protect(types.M(a=500)).HasField("a")


async def test_a_message_without_its_aggregate_is_refused_by_the_mesh():
    types = compiled(f"message M {{ optional double a = 1 {SUM}; }}")
    async with dpmesh.open({"ledger": {"url": "memory:"}}) as mesh:
        with pytest.raises(ProtectionError, match="MISSING_AGGREGATE"):
            await mesh.release(types.M())
        assert (await mesh.release(types.M(a=3))).message.HasField("a")


@pytest.mark.parametrize(
    "members", [f"double a = 1 {SUM}; double b = 2 {SUM};", f"N n = 1; bool b = 2 {SURE};"]
)
def test_a_randomized_choice_among_aggregates_is_refused(members):
    body = f"""message M {{ oneof o {{ option (dpmesh.v1.oneof).epsilon = 0.5; {members} }} }}
    message N {{ O o = 1; }} message O {{ double a = 1 {SUM}; }}"""
    assert {rule for rule, _ in errors(body)} == {"oneof-choice"}
    assert errors(body.replace("epsilon = 0.5", "public = true")) == []


def test_a_randomized_choice_hides_no_map_and_no_public_choice():
    """The keys of a map, and which member is set, are there only where the message was."""
    for inside in (
        "map<string, E> e = 1 [(dpmesh.v1.field).max_items = 2];",
        f"oneof p {{ option (dpmesh.v1.oneof).public = true; bool x = 1 {SURE}; bool y = 2 {SURE}; }}",
    ):
        body = f"""message M {{ oneof o {{ option (dpmesh.v1.oneof).epsilon = 0.5; N n = 1; bool b = 2 {SURE}; }} }}
        message N {{ {inside} }} message E {{ bool b = 1 {SURE}; }}"""
        assert errors(body) == [("oneof-choice", "M.n")]


@pytest.mark.parametrize("value", [float("nan"), -float("nan")])
def test_an_aggregate_that_is_no_number_is_refused_and_an_infinite_one_is_clamped(value):
    types = compiled(f"message M {{ double a = 1 {SUM}; }}")
    with pytest.raises(ProtectionError, match="NOT_A_NUMBER"):
        protect(types.M(a=value))
    # Noise of scale 2 reaches 80 at most.
    assert [round(protect(types.M(a=end)).a, -3) for end in (float("inf"), -float("inf"))] == [1000, 0]


def test_check_says_what_an_aggregate_is_and_that_it_may_be_absent():
    types = f"""message M {{ string id = 1 {UNIT}; double a = 2 {SUM}; optional double b = 3 {SUM}; N n = 4; }}
    message N {{ double c = 1 {SUM}; }}"""
    assert problems(types) == [
        (Severity.WARNING, "unit-aggregate", "M.a"),
        (Severity.WARNING, "unit-aggregate", "M.b"),
        (Severity.WARNING, "aggregate-absent", "M.b"),
        (Severity.WARNING, "unit-aggregate", "N.c"),
    ]
    assert problems(types, "N") == []


# -- plans without bounds -----------------------------------------------------------------------------------------


def tower(levels, field="L{n} a = 1; L{n} b = 2;"):
    levels_text = [f"message L{n} {{ {field.format(n=n + 1)} }}" for n in range(levels)]
    return "\n".join([*levels_text, f"message L{levels} {{ bool b = 1 {SURE}; }}"])


def test_two_fields_of_the_next_type_on_many_levels_are_refused_by_path():
    types = compiled(tower(18))
    with pytest.raises(AnnotationError, match=r"more than 5,000 fields.* at [ab.]+ \[size\] Fix: suppress"):
        plan_of(types.L0)
    assert plan_of(types.L9) is not None


def test_types_that_all_hold_each_other_are_refused_too():
    names = [f"T{n}" for n in range(14)]
    held = " ".join(f"{name} f{n} = {n + 1};" for n, name in enumerate(names))
    body = "\n".join(f"message {name} {{ {held} bool b = 20 {SURE}; }}" for name in names)
    assert {rule for rule, _ in errors(body, "T0")} == {"recursive", "size"}


def test_messages_too_deep_for_protobuf_are_refused():
    types = compiled(tower(120, "L{n} a = 1;"))
    with pytest.raises(AnnotationError, match=r"more than 100 messages deep.*\[size\]"):
        plan_of(types.L0)
    plan = plan_of(types.L30)
    out = plan.protect(types.L30(), alias)
    assert type(out).FromString(out.SerializeToString()) == out


@pytest.mark.parametrize(
    ("body", "element"),
    [
        (tower(3, "repeated L{n} a = 1 [(dpmesh.v1.field).max_items = 100];"), "L0.a"),
        (tower(1, "repeated L{n} a = 1 [(dpmesh.v1.field).max_items = 100000]; "), None),
        (
            tower(
                1,
                " ".join(
                    f"repeated L{{n}} a{n} = {n} [(dpmesh.v1.field).max_items = 90000];" for n in range(1, 4)
                ),
            ),
            "L0",
        ),
        (
            "message L0 { repeated L1 a = 1 [(dpmesh.v1.field).max_items = 1000]; } message L1 { repeated bool b = 1 "
            f"[{CAT} = {{epsilon: 64}}, (dpmesh.v1.field).max_items = 1000]; }}",
            "L0.a",
        ),
        (
            f"""message L0 {{ string id = 1 {UNIT}; repeated L1 a = 2 [(dpmesh.v1.field).max_items = 1000]; }}
            message L1 {{ string id = 1 {HIDDEN}; repeated L2 a = 2 [(dpmesh.v1.field).max_items = 1000]; }}
            message L2 {{ string id = 1 {HIDDEN}; }}""",
            "L0.a",
        ),
        (tower(4, "map<string, L{n}> a = 1 [(dpmesh.v1.field).max_items = 1000];"), "L3.a"),
    ],
)
def test_an_empty_message_stays_small(body, element):
    assert errors(body, "L0") == ([("size", element)] if element else [])


def test_a_batch_may_hold_as_many_reports_as_it_does():
    fields = " ".join(f"bool b{n} = {n} {SURE};" for n in range(2, 20))
    body = f"message L0 {{ repeated R r = 1 [(dpmesh.v1.field).max_items = 100000]; }} message R {{ string id = 1 {UNIT}; {fields} }}"
    assert errors(body, "L0") == []


def test_each_type_is_looked_at_a_few_times_whatever_the_number_of_ways_to_it(monkeypatch):
    asked = Counter()
    field = Rulebook.field
    monkeypatch.setattr(
        Rulebook, "field", lambda book, entry: asked.update([entry.full_name]) or field(book, entry)
    )
    types = compiled(tower(90, "L{n} a = 1; string s = 2;"))
    assert plan_of(types.L0) is not None
    assert len(asked) == 181
    assert max(asked.values()) <= 3
