"""What a compiled plan does to a message: what it writes, what it never lets by, and to which inputs it is blind."""

from collections import Counter
from functools import cache

import pytest
from google.protobuf import any_pb2

from dpmesh.errors import ProtectionError
from dpmesh.policy import Policy
from dpmesh.policy.codegen.source import function
from tests.support import children
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
UNIT = "[(dpmesh.v1.field).unit = {}]"


def alias(unit: bytes, epoch: float) -> bytes:
    return (unit + b"#" * 16)[:16]


@cache
def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def protect(message):
    plan = plan_of(type(message))
    before = message.SerializeToString(deterministic=True)
    out = plan.protect(message, alias)
    assert message.SerializeToString(deterministic=True) == before, "the caller's message was changed"
    assert type(out) is type(message)
    return out


EVERY_TYPE = compiled(
    "message M { "
    + " ".join(
        f"{kind} f{number} = {number} [{NUM} = {{lower: 0 upper: 100 epsilon: 1 output: IN_RANGE}}];"
        for number, kind in enumerate(
            [
                "double",
                "float",
                "int32",
                "int64",
                "uint32",
                "uint64",
                "sint32",
                "sint64",
                "fixed32",
                "fixed64",
                "sfixed32",
                "sfixed64",
                "google.protobuf.DoubleValue",
                "google.protobuf.FloatValue",
                "google.protobuf.Int64Value",
                "google.protobuf.UInt64Value",
                "google.protobuf.Int32Value",
                "google.protobuf.UInt32Value",
            ],
            start=1,
        )
    )
    + " }"
)


def test_every_numeric_type_is_noised_and_stays_in_range():
    seen = Counter()
    for _ in range(60):
        out = protect(EVERY_TYPE.M(f1=50, f2=50, f3=50))
        for number in range(1, 19):
            value = getattr(out, f"f{number}")
            value = getattr(value, "value", value)
            assert 0 <= value <= 100
            seen[f"f{number}", value] += 1
    # With epsilon 1 no field repeats one value 60 times, and every field varies.
    for number in range(1, 19):
        values = [value for (name, value) in seen if name == f"f{number}"]
        assert len(values) >= 2, f"f{number}"


def test_wrappers_and_optional_fields_are_always_emitted():
    types = compiled(
        f"""message M {{ optional double a = 1 [{NUM} = {{lower: 1 upper: 2 epsilon: 1}}];
        google.protobuf.BoolValue b = 2 [{CAT} = {{epsilon: 1}}]; Inner c = 3; }}
        message Inner {{ optional bool d = 1 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    for message in (types.M(), types.M(a=1.5)):
        out = protect(message)
        assert out.HasField("a")
        assert out.HasField("b")
        assert out.c.HasField("d")


def test_repeated_fields_have_the_public_length():
    types = compiled(
        f"""message M {{ repeated double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}, (dpmesh.v1.field).max_items = 4];
        repeated E e = 2 [(dpmesh.v1.field).max_items = 3];
        repeated string s = 3 [{CAT} = {{epsilon: 1 domain: ["x", "y"]}}, (dpmesh.v1.field).max_items = 2];
        repeated google.protobuf.Int32Value w = 4 [{NUM} = {{lower: 0 upper: 9 epsilon: 1}}, (dpmesh.v1.field).max_items = 2]; }}
        message E {{ bool b = 1 [{CAT} = {{epsilon: 0.5}}]; }}"""
    )
    for items in (0, 1, 10_000):
        message = types.M(
            a=[0.5] * items, e=[types.E(b=True)] * items, s=["x"] * items, w=[{"value": 1}] * items
        )
        out = protect(message)
        assert (len(out.a), len(out.e), len(out.s), len(out.w)) == (4, 3, 2, 2)


def test_maps_of_messages_are_cut_and_protected():
    types = compiled(
        f"""message M {{ map<string, E> e = 1 [(dpmesh.v1.field).max_items = 2]; }}
        message E {{ double x = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 output: IN_RANGE}}]; string s = 2 [(dpmesh.v1.field).suppress = {{}}]; }}"""
    )
    out = protect(types.M(e={key: types.E(x=5, s="secret") for key in "cab"}))
    assert sorted(out.e) == ["a", "b"]
    assert all(0 <= entry.x <= 1 and not entry.s for entry in out.e.values())


def test_unknown_fields_and_extensions_never_pass():
    types = compiled(
        f"""message M {{ bool b = 1 [{CAT} = {{epsilon: 1}}]; Raw raw = 2; repeated Raw more = 3; Inner inner = 4; }}
        message Raw {{ string s = 1; }} message Inner {{ bool b = 1 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    stowaway = b"\xfa\x07\x06secret"  # field 127, which no type here declares
    message = types.M(raw=types.Raw(s="fine"), more=[types.Raw(s="fine")])
    message.MergeFromString(stowaway)
    message.raw.MergeFromString(stowaway)
    message.more[0].MergeFromString(stowaway)
    message.inner.MergeFromString(stowaway)
    assert message.SerializeToString().count(b"secret") == 4
    out = protect(message).SerializeToString()
    assert b"secret" not in out
    assert out.count(b"fine") == 2

    two = compiled(
        f"message M {{ optional bool b = 1 [{CAT} = {{epsilon: 1}}]; extensions 100 to 200; }} extend M {{ optional string x = 100; }}",
        "proto2",
    )
    extended = two.M()
    extended.MergeFromString(b"\xa2\x06\x06secret")
    assert b"secret" in extended.SerializeToString()
    assert b"secret" not in protect(extended).SerializeToString()


def test_suppressed_fields_are_gone_and_public_and_unannotated_ones_stay():
    types = compiled(
        f"""message M {{ string id = 1 {UNIT}; string note = 2 [(dpmesh.v1.field).suppress = {{}}];
        string kept = 3 [(dpmesh.v1.field).public = {{}}]; repeated int32 plain = 4; optional int32 none = 5;
        map<string, int32> counts = 6; google.protobuf.Any any = 7 [(dpmesh.v1.field).suppress = {{}}]; }}"""
    )
    box = any_pb2.Any(type_url="x", value=b"secret")
    out = protect(types.M(id="unit", note="secret", kept="k", plain=[1, 2], counts={"a": 1}, any=box))
    assert out == types.M(id=alias(b"unit", 0).hex(), kept="k", plain=[1, 2], counts={"a": 1})


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("string", "ab", alias(b"ab", 0).hex()),
        ("bytes", b"ab", alias(b"ab", 0)),
        ("int64", 12, int.from_bytes(alias(b"12", 0), "big") & (2**63 - 1)),
        ("uint64", 12, int.from_bytes(alias(b"12", 0), "big") & (2**64 - 1)),
        ("int32", -5, int.from_bytes(alias(b"-5", 0), "big") & (2**31 - 1)),
    ],
)
def test_the_units_id_leaves_as_a_pseudonym_of_its_type(kind, value, expected):
    types = compiled(f"message M {{ {kind} id = 1 {UNIT}; }}")
    assert protect(types.M(id=value)).id == expected


def test_the_units_form_can_be_chosen():
    types = compiled(
        """message Gone { string id = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}]; }
        message Raw { string id = 1 [(dpmesh.v1.field).unit = {form: RAW}]; }"""
    )
    assert protect(types.Gone(id="a")).id == ""
    assert protect(types.Raw(id="a")).id == "a"


@pytest.mark.parametrize("kind", ["string", "bytes", "int64", "optional string"])
def test_a_missing_unit_is_refused_by_name(kind):
    types = compiled(f"message M {{ {kind} id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}")
    plan = Policy().plan(types.M.DESCRIPTOR)
    for run in (plan.owners, lambda message: plan.protect(message, alias)):
        with pytest.raises(ProtectionError) as caught:
            run(types.M())
        assert (caught.value.reason, caught.value.field) == ("MISSING_UNIT", f"{types.package}.M.id")


def test_zero_is_an_id_where_presence_tells():
    types = compiled(f"message M {{ optional int64 id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}")
    assert Policy().plan(types.M.DESCRIPTOR).owners(types.M(id=0)) == [(0, b"0")]


NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, -0.0, 5e-324, -5e-324, 1e308, -1e308, 0.1, 1 / 3, 700.0, 700.1]
)
@pytest.mark.parametrize(
    "mechanism", ["AUTO", "DISCRETE_LAPLACE", "DUCHI", "PIECEWISE", "HYBRID", "DISCRETE_GAUSSIAN"]
)
def test_any_float_gives_a_point_of_the_public_lattice(value, mechanism):
    delta = "delta: 1e-6" if mechanism == "DISCRETE_GAUSSIAN" else ""
    types = compiled(
        f"message M {{ double a = 1 [{NUM} = {{lower: 0 upper: 700 epsilon: 1 resolution: 0.5 mechanism: {mechanism} {delta}}}]; }}"
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    mechanism = plan.fields[0].payload.mechanism
    for _ in range(50):
        out = plan.protect(types.M(a=value), alias).a
        assert out * 2 == int(out * 2), "off the grid"
        assert mechanism.low <= out * 2 <= mechanism.high, "outside the public range"
        assert str(out) != "-0.0"


def test_nan_can_be_refused_without_being_shown():
    types = compiled(f"message M {{ double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 nan: REJECT}}]; }}")
    with pytest.raises(ProtectionError) as caught:
        protect(types.M(a=NAN))
    assert (caught.value.reason, caught.value.field) == ("NOT_A_NUMBER", f"{types.package}.M.a")


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("E e = 1 [%s];", {"e": 0}, {"e": 77}),
        ("string e = 1 [%s];", {"e": "x"}, {"e": "nobody expects this"}),
        ("int32 e = 1 [%s];", {"e": 4}, {"e": -9}),
    ],
)
def test_a_value_outside_the_domain_has_the_output_law_of_the_default(field, inside, outside):
    """Two samples of 4,000 draws each, chi-square over 3 cells; false alarm 1e-6 (statistic above 27.6)."""
    domain = {"E": "", "string": 'domain: ["x", "y", "z"]', "int32": 'domain: ["4", "5", "6"]'}[
        field.split()[0]
    ]
    rule = f"{CAT} = {{epsilon: 2 {domain}}}"
    types = compiled(f"message M {{ {field % rule} }} enum E {{ A = 0; B = 1; C = 7; }}")
    plan = Policy().plan(types.M.DESCRIPTOR)
    assert len(plan.fields[0].payload.domain) == 3
    one, other = (
        Counter(plan.protect(types.M(**values), alias).e for _ in range(4000)) for values in (inside, outside)
    )
    assert set(one) == set(other) == set(plan.fields[0].payload.domain)
    statistic = sum((one[cell] - other[cell]) ** 2 / (one[cell] + other[cell]) for cell in one)
    assert statistic < 27.6
    assert one[plan.fields[0].payload.domain[0]] > 2500  # truth 0.787: the default is the first value


def test_a_hidden_choice_shows_every_member_and_keeps_no_value_of_another():
    types = compiled(
        f"""message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 1}};
        double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; bool b = 2 [{CAT} = {{epsilon: 1}}];
        string c = 3 [(dpmesh.v1.field).suppress = {{}}]; Inner d = 4; }} }}
        message Inner {{ bool x = 1 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    for message in (types.M(), types.M(a=1), types.M(c="secret"), types.M(d=types.Inner(x=True))):
        shown = Counter(protect(message).WhichOneof("o") for _ in range(400))
        assert set(shown) == {"a", "b", "c", "d", None}
        # truth e/(e+4) = 0.404: 400 draws stay within 5.5 standard deviations, false alarm below 1e-7.
        assert 107 < shown[message.WhichOneof("o")] < 216
    assert b"secret" not in protect(types.M(c="secret")).SerializeToString()


def test_a_public_choice_is_kept_and_its_member_protected():
    types = compiled(
        f"""message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{public: true}};
        string s = 1 [{CAT} = {{epsilon: 1 domain: ["x", "y"]}}]; string raw = 2 [(dpmesh.v1.field).public = {{}}]; }} }}"""
    )
    assert protect(types.M(s="secret")).s in ("x", "y")
    assert protect(types.M(raw="r")) == types.M(raw="r")
    assert protect(types.M()) == types.M()


def test_a_message_with_its_own_unit_is_as_present_as_it_was():
    types = compiled(
        f"message M {{ R one = 1; repeated R many = 2; }} message R {{ string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}"
    )
    out = protect(types.M(many=[types.R(id="a"), types.R(id="b")]))
    assert not out.HasField("one")
    assert [report.id for report in out.many] == [alias(b"a", 0).hex(), alias(b"b", 0).hex()]


def test_blank_keeps_only_what_needs_no_noise():
    types = compiled(
        f"""message M {{ string id = 1 {UNIT}; double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; string p = 3;
        Inner i = 4; }} message Inner {{ bool b = 1 [{CAT} = {{epsilon: 1}}]; string s = 2; }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    out = plan.blank(types.M(id="u", a=1, p="p", i=types.Inner(b=True, s="s")), alias)
    assert out == types.M(id=alias(b"u", 0).hex(), p="p")


def test_empty_messages_are_protected_like_any_other():
    types = compiled(
        f"message M {{ double a = 1 [{NUM} = {{lower: 5 upper: 9 epsilon: 1}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}"
    )
    outs = {protect(types.M()).a for _ in range(50)}
    assert len(outs) > 1


def test_proto2_messages_are_protected_too():
    types = compiled(
        f"message M {{ required string id = 1 {UNIT}; optional double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; optional string s = 3; }}",
        "proto2",
    )
    out = protect(types.M(id="u"))
    assert out.HasField("a")
    assert not out.HasField("s")


def test_extensions_never_leave_in_whatever_is_copied():
    types = compiled(
        f"""message M {{ optional bool b = 1 [{CAT} = {{epsilon: 1}}]; optional Raw raw = 2; repeated Raw more = 3;
        map<string, Raw> named = 4; optional Outer outer = 5 [(dpmesh.v1.field).public = {{}}]; }}
        message Raw {{ optional string s = 1; extensions 100 to 200; }} message Outer {{ optional Raw raw = 1; }}
        extend Raw {{ optional string x = 100; repeated Raw y = 101; }}""",
        "proto2",
    )
    raw = types.Raw(s="fine")
    raw.MergeFromString(b"\xa2\x06\x06secret\xaa\x06\x09\xa2\x06\x06secret")
    message = types.M(raw=raw, more=[raw], named={"k": raw}, outer=types.Outer(raw=raw))
    assert message.SerializeToString().count(b"secret") == 8
    out = protect(message).SerializeToString()
    assert b"secret" not in out
    assert out.count(b"fine") == 4


def test_an_annotated_extension_makes_its_message_a_protected_one():
    types = compiled(
        """message M { optional string s = 1; extensions 100 to 200; }
        extend M { optional string x = 100 [(dpmesh.v1.field).suppress = {}]; }""",
        "proto2",
    )
    message = types.M(s="fine")
    message.MergeFromString(b"\xa2\x06\x06secret")
    assert protect(message) == types.M(s="fine")


def test_a_units_declared_default_is_not_an_id():
    types = compiled(
        """message S { optional string id = 1 [(dpmesh.v1.field).unit = {}, default = "x"]; }
        message I { optional int64 id = 1 [(dpmesh.v1.field).unit = {}, default = 7]; }
        message B { optional bytes id = 1 [(dpmesh.v1.field).unit = {}, default = "x"]; }""",
        "proto2",
    )
    for name in "SIB":
        with pytest.raises(ProtectionError, match="MISSING_UNIT"):
            protect(getattr(types, name)())


def test_a_unit_that_is_no_utf8_is_an_id_like_any_other():
    types = compiled(f"message M {{ optional string id = 1 {UNIT}; }}", "proto2")
    message = types.M.FromString(b"\x0a\x03\xff\xfeA")
    assert Policy().plan(types.M.DESCRIPTOR).owners(message) == [(0, b"\xff\xfeA")]
    assert protect(message).id == alias(b"\xff\xfeA", 0).hex()


def test_missing_elements_are_filled_with_the_types_default():
    types = compiled(
        f"""message M {{ repeated google.protobuf.StringValue s = 1
        [{CAT} = {{epsilon: 60 domain: ["x", ""]}}, (dpmesh.v1.field).max_items = 1]; }}"""
    )
    assert protect(types.M()).s[0].value == ""  # truth exceeds 1 - 1e-26


def test_every_field_takes_a_code_of_its_own():
    """All fields of a message draw from one pool of rows; each must use its own column, and nothing else."""
    types = compiled(
        f"""enum E {{ A = 0; B = 1; C = 2; }}
        message M {{ string id = 1 {UNIT}; double a = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}];
        float b = 3 [{NUM} = {{lower: 0 upper: 100 epsilon: 2}}];
        int64 c = 4 [{NUM} = {{lower: 0 upper: 100 epsilon: 1 mechanism: DISCRETE_LAPLACE}}];
        E e = 5 [{CAT} = {{epsilon: 1}}]; string z = 6 [{CAT} = {{epsilon: 1 domain: ["x", "y"]}}]; }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    noised = [entry for entry in plan.fields if entry.mechanism_name]
    assert [entry.mechanism_name for entry in noised] == [
        "optimized_piecewise",
        "optimized_piecewise",
        "discrete_laplace",
        "k_randomized_response",
        "k_randomized_response",
    ]
    message = types.M(id="u", a=20, b=40, c=60, e="B", z="y")
    pool = plan.build.__globals__["pop"].__self__
    plan.protect(message, alias)
    rows = [list(row) for row in pool[:64]]

    def outputs(row):
        pool.append(list(row))
        out = plan.protect(message, alias)
        return [getattr(out, entry.path) for entry in noised]

    def expected(entry, code):
        decode = function("decode", "x, code", entry.payload.mechanism.draws.decode, "y", {})
        value = getattr(message, entry.path)
        if str(entry.kind) == "categorical":
            return entry.payload.domain[decode(entry.payload.domain.index(value), code)]
        return entry.payload.grid.value(decode(entry.payload.grid.index(value), code))

    for row in rows:
        for out, entry, code in zip(outputs(row), noised, row, strict=True):
            wanted = expected(entry, code)
            assert out == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-6))
    columns = list(zip(*rows, strict=True))
    for one in range(len(noised)):
        for two in range(one):
            assert columns[one] != columns[two]


def test_a_message_id_is_random_whatever_was_there():
    types = compiled(
        """message M { string id = 1 [(dpmesh.v1.field).message_id = {}]; bytes raw = 2 [(dpmesh.v1.field).message_id = {}];
        optional string maybe = 3 [(dpmesh.v1.field).message_id = {}]; }"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    found = [plan.protect(types.M(id="device-7/1", raw=b"7", maybe="x"), alias) for _ in range(500)]
    found += [plan.protect(types.M(), alias) for _ in range(500)]
    found += [plan.blank(types.M(id="device-7/2"), alias) for _ in range(500)]
    ids = [value for out in found for value in (out.id, out.raw.hex(), out.maybe)]
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in ids)
    assert len(set(ids)) == 4500, "128 random bits do not collide"
    # Each bit is fair: 4,500 coins, six standard errors on each of 128, false alarms below 3e-7.
    ones = [sum(int(value, 16) >> bit & 1 for value in ids) for bit in range(128)]
    assert max(abs(count - 2250) for count in ones) < 6 * 33.6


def test_a_forked_child_takes_no_row_of_its_parents():
    types = compiled(
        f"message M {{ double a = 1 [{NUM} = {{lower: 0 upper: 1e6 epsilon: 0.01 mechanism: DISCRETE_LAPLACE}}]; "
        f"double b = 2 [{NUM} = {{lower: 0 upper: 1e6 epsilon: 0.01 mechanism: DISCRETE_LAPLACE}}]; }}"
    )
    plan = Policy().plan(types.M.DESCRIPTOR)

    def outputs():
        found = (plan.protect(types.M(a=5e5, b=5e5), alias) for _ in range(20))
        return [(out.a, out.b) for out in found]

    outputs()  # fills the pool
    drawn = [pair for _ in range(8) for pair in children.run(outputs)] + outputs()
    # A pair is one of some 10^10: two of 180 agree by chance once in a million runs.
    assert len(set(drawn)) == 180


def test_a_text_that_is_longer_than_its_domain_is_not_even_looked_up():
    types = compiled(
        f'message M {{ string e = 1 [{CAT} = {{epsilon: 60 domain: "a" domain: "ccc" domain: "bb"}}]; }}'
    )
    (entry,) = Policy().plan(types.M.DESCRIPTOR).fields
    protect = entry.kind.transform(entry).function()

    class Text(str):
        def __hash__(self):
            assert len(self) <= 3, "hashing takes time in proportion to the length"
            return super().__hash__()

    # At epsilon 60 another value leaves once in 1e26.
    assert [protect(Text(value)) for value in ("a", "bb", "ccc", "dddd", "x" * 1000, "")] == [
        "a",
        "bb",
        "ccc",
        "a",
        "a",
        "a",
    ]


def test_each_field_of_a_message_keeps_its_own_domain_bounds_and_name():
    """The code of all fields is one function, whose parts must not take each other's names."""
    sure = f"{CAT} = {{epsilon: 64"
    types = compiled(
        f"""message M {{ string a = 1 [{sure} domain: ["x", "y"]}}]; string b = 2 [{sure} domain: ["v", "w"]}}];
        double c = 3 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 nan: REJECT}}]; double d = 4 [{NUM} = {{lower: 5 upper: 6 epsilon: 64 nan: REJECT
        mechanism: DUCHI output: IN_RANGE}}]; }}"""
    )
    out = protect(types.M(a="y", b="w", d=6))
    assert (out.a, out.b, out.d) == ("y", "w", 6)
    for name in "cd":
        with pytest.raises(ProtectionError) as caught:
            protect(types.M(**{name: NAN}))
        assert caught.value.field == f"{types.package}.M.{name}"


@pytest.mark.parametrize("given", [{"m": "mine"}, {"p": "open"}, {"x": 0.5}, {}], ids=str)
def test_without_noise_a_public_choice_shows_no_other_member_than_was_set(given):
    types = compiled(
        """message M { string id = 1 [(dpmesh.v1.field).unit = {}];
        oneof o { option (dpmesh.v1.oneof) = {public: true}; string m = 2 [(dpmesh.v1.field).message_id = {}];
            string p = 3 [(dpmesh.v1.field).public = {}];
            double x = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; } }"""
    )
    out = Policy().plan(types.M.DESCRIPTOR).blank(types.M(id="u", **given), alias)
    assert out.WhichOneof("o") == ({*given} - {"x"} or {None}).pop()
    assert out.m != "mine"


STRICT = "option (dpmesh.v1.message) = {unannotated: %s}; string a = 1 [(dpmesh.v1.field).public = {}];"


@pytest.mark.parametrize("word", ["SUPPRESS", "REJECT"])
@pytest.mark.parametrize(
    "nested", ["", "N n = 1;", "repeated N n = 1;", "map<string, N> n = 1;", "oneof o { N n = 1; N m = 2; }"]
)
def test_unknown_fields_of_a_message_that_lets_nothing_else_pass_never_leave(word, nested):
    """Also where all of its known fields are public."""
    types = compiled(f"message M {{ {nested} }} message N {{ {STRICT % word} }}")
    unknown = types.N(a="x").SerializeToString() + b"\x9a\x06\x03raw"
    if nested:
        inside = b"\x0a\x01k\x12" + bytes([len(unknown)]) + unknown if "map" in nested else unknown
        message = types.M.FromString(b"\x0a" + bytes([len(inside)]) + inside)
    else:
        message = types.N.FromString(unknown)
    out = protect(message).SerializeToString()
    assert b"x" in out
    assert b"raw" not in out


def test_strict_messages_cost_nothing_and_need_no_unit():
    types = compiled(f"message M {{ {STRICT % 'REJECT'} }}")
    plan = Policy().plan(types.M.DESCRIPTOR)
    assert (plan.scopes, plan.mechanisms) == ((), ())
