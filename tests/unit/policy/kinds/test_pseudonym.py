"""Pseudonyms: which fields take them, what leaves of each id, and what dpmesh says about it."""

import hmac

import pytest

from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy
from dpmesh.report.plan import Planner
from tests.support.protos import ROOT, compiled

P = "(dpmesh.v1.field).pseudonym"


def alias(value, epoch, namespace=""):
    return hmac.digest(f"{epoch} {namespace}".encode(), value, "sha256")[:16]


def types(fields):
    return compiled(f"message M {{ {fields} }}")


def protect(message):
    plan = Policy().plan(message.DESCRIPTOR)
    out, blank = plan.protect(message, alias), plan.blank(message, alias)
    assert out == blank, "a pseudonym needs no noise, so it leaves where the budget is spent"
    return out


@pytest.mark.parametrize(
    ("field", "value", "canonical", "read"),
    [
        ("string", "ab", b"ab", bytes.hex),
        ("string", "caf\u00e9", "caf\u00e9".encode(), bytes.hex),
        ("string", "x" * (1 << 20), b"x" * (1 << 20), bytes.hex),
        ("string", "", b"", bytes.hex),
        ("optional string", "", b"", bytes.hex),
        ("bytes", b"a\xff", b"a\xff", bytes),
        ("int64", -12, b"-12", lambda raw: int.from_bytes(raw, "big") & (2**63 - 1)),
        ("fixed64", 12, b"12", lambda raw: int.from_bytes(raw, "big") & (2**64 - 1)),
        ("sint32", 12, b"12", lambda raw: int.from_bytes(raw, "big") & (2**31 - 1)),
        ("uint32", 0, b"0", lambda raw: int.from_bytes(raw, "big") & (2**32 - 1)),
    ],
)
def test_an_id_leaves_as_a_pseudonym_of_its_type(field, value, canonical, read):
    made = types(f"{field} a = 1 [{P} = {{}}];")
    assert protect(made.M(a=value)).a == read(alias(canonical, 86_400.0, f"{made.package}.M.a"))


def test_an_absent_id_counts_as_the_empty_one():
    made = types(f"optional string a = 1 [{P} = {{}}];")
    out = protect(made.M())
    assert out.HasField("a")
    assert out == protect(made.M(a=""))


def test_wrappers_hold_pseudonyms_too():
    made = types(
        f"google.protobuf.StringValue a = 1 [{P} = {{}}]; google.protobuf.Int64Value b = 2 [{P} = {{}}];"
    )
    for out in (protect(made.M()), protect(made.M(a={"value": ""}, b={"value": 0}))):
        assert out.a.value == alias(b"", 86_400.0, f"{made.package}.M.a").hex()
        assert out.HasField("b")


@pytest.mark.parametrize("field", ["string", "int64", "google.protobuf.StringValue"])
def test_a_list_shows_as_many_ids_as_its_rule_says(field):
    made = types(f"repeated {field} a = 1 [(dpmesh.v1.field) = {{pseudonym: {{}} max_items: 3}}];")
    values = [7, 7, 8, 9] if field == "int64" else ["7", "7", "8", "9"]
    wrap = (lambda value: {"value": value}) if "google" in field else (lambda value: value)
    lists = [
        list(protect(made.M(a=[wrap(value) for value in values[:count]])).a)
        for count in range(len(values) + 1)
    ]
    assert [len(each) for each in lists] == [3] * 5
    assert lists[3] == lists[4]
    assert lists[0][0] == lists[0][1] == lists[0][2] == lists[2][2]
    assert lists[4][0] == lists[4][1] != lists[4][2]


def test_fields_join_only_in_a_namespace_that_they_share():
    trips = "{namespace: 'trips'}"
    made = types(
        f"string a = 1 [{P} = {{}}]; string b = 2 [{P} = {{}}]; string c = 3 [{P} = {trips}]; int64 d = 4 [{P} = {trips}];"
    )
    out = protect(made.M(a="7", b="7", c="7", d=7))
    assert len({out.a, out.b, out.c}) == 3
    assert int(out.c, 16) & (2**63 - 1) == out.d


def test_a_namespace_with_an_at_sign_is_one_in_every_field():
    rule = "{namespace: 'cars@acme'}"
    made = types(
        f"string a = 1 [{P} = {rule}]; string b = 2 [{P} = {rule}]; repeated string c = 3 [{P} = {rule}, "
        "(dpmesh.v1.field).max_items = 1];"
    )
    out = protect(made.M(a="7", b="7", c=["7"]))
    assert {out.a, out.b, *out.c} == {alias(b"7", 86_400.0, "cars@acme").hex()}


def test_a_quoted_namespace_is_text_and_no_code():
    namespace = "'); raise SystemExit  # \u00e9"
    made = types(f'string a = 1 [{P} = {{namespace: "{namespace}"}}];')
    assert protect(made.M(a="7")).a == alias(b"7", 86_400.0, namespace).hex()


def test_a_pseudonym_costs_nothing_and_plan_and_check_say_that_it_links():
    made = types(
        f"string a = 1 [{P} = {{epoch: {{seconds: 3600}}}}]; uint32 b = 2 [{P} = {{namespace: 'cars'}}];"
    )
    policy = Policy()
    report = Planner(policy, [], 1.0).report(made.M.DESCRIPTOR)
    assert (report.refused, report.epsilon, report.payments) == (None, 0, ())
    assert [field.output for field in report.fields] == [
        "pseudonym per 1 h (links messages, not differentially private)",
        "pseudonym per 1 d in cars (links messages, not differentially private)",
    ]
    found = [
        (entry.rule, entry.element.rpartition(".")[2]) for entry in policy.diagnostics(made.M.DESCRIPTOR)
    ]
    assert found == [("pseudonym", "a"), ("pseudonym", "b"), ("pseudonym-collision", "b")]


CAT = "(dpmesh.v1.field).categorical = {epsilon: 1}"
UNIT = "(dpmesh.v1.field).unit"


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        # Which member is set is hidden, and the pseudonym of an id that was not there does not recur as others do.
        (
            "oneof-choice",
            f"message M {{ oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; bool a = 1 [{CAT}]; string b = 2 [{P} = {{}}]; }} }}",
        ),
        # So is the presence of another unit's message.
        (
            "unit-nested",
            f"""message N {{ string id = 1 [{UNIT} = {{form: SUPPRESSED}}]; string b = 2 [{P} = {{}}]; bool c = 3 [{CAT}]; }}
            message M {{ string id = 1 [{UNIT} = {{}}]; N n = 2; }}""",
        ),
    ],
)
def test_where_presence_is_hidden_a_pseudonym_would_show_it(rule, body):
    made = compiled(body)
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(made.M.DESCRIPTOR)
    assert caught.value.rule == rule


def test_in_a_public_oneof_the_member_that_is_set_leaves():
    made = types(
        f"oneof o {{ option (dpmesh.v1.oneof).public = true; bool a = 1 [{CAT}]; string b = 2 [{P} = {{}}]; }}"
    )
    assert protect_only(made.M(b="7")) == made.M(b=alias(b"7", 86_400.0, f"{made.package}.M.b").hex())


def protect_only(message):
    return Policy().plan(message.DESCRIPTOR).protect(message, alias)


def test_the_page_says_how_likely_equal_pseudonyms_are():
    """Of n random pseudonyms, any two are equal with a chance of at most n^2/2 over their number."""
    page = (ROOT / "docs/kinds/pseudonym.md").read_text()
    assert 1e12 / 2 / 2**128 < 1.5e-27
    assert 1e12 / 2 / 2**63 < 5.5e-8
    assert "1.5e-27 for strings and bytes, and 5.5e-8 in 64-bit integers" in page
