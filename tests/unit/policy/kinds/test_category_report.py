"""CategoryReports: the text never leaves, whatever is done with the message, and a report always does."""

from __future__ import annotations

from collections import Counter

import pytest
from google.protobuf import any_pb2

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError
from dpmesh.noise.local_hashing import LONGEST
from dpmesh.policy import Policy
from dpmesh.v1 import report_pb2
from tests.support.protos import compiled
from tests.unit.noise.test_local_hashing import H

CAT = "(dpmesh.v1.field).categorical"
REPORT = "dpmesh.v1.CategoryReport"
TYPES = compiled(
    f"""message M {{ {REPORT} page = 1 [{CAT} = {{epsilon: 1}}];
    repeated {REPORT} pages = 2 [{CAT} = {{epsilon: 2 mechanism: OPTIMIZED_LOCAL_HASHING}},
        (dpmesh.v1.field).max_items = 3];
    oneof choice {{ option (dpmesh.v1.oneof).epsilon = 1;
        {REPORT} word = 3 [{CAT} = {{epsilon: 1}}]; bool none = 4 [{CAT} = {{epsilon: 1}}]; }} }}
    message Sure {{ {REPORT} page = 1 [{CAT} = {{epsilon: 60}}]; }}"""
)
SECRET = "secret-4711"


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


def protect(message):
    return Policy().plan(type(message).DESCRIPTOR).protect(message, alias)


def refused(field: str) -> AnnotationError:
    types = compiled(f"message M {{ {field} }}")
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(types.M.DESCRIPTOR)
    return caught.value


def full(text: str = SECRET):
    report = {"value": text, "seed": 4711, "hash": 4711}
    return TYPES.M(page=report, pages=[report] * 5, word=report)


def test_a_plan_names_its_mechanism_cost_and_error():
    page, pages, *_ = Policy().plan(TYPES.M.DESCRIPTOR).fields
    assert (str(page.kind), page.mechanism_name) == ("categorical", "optimized_local_hashing")
    assert (page.cost.epsilon, page.payload.mechanism.size) == (AMOUNT, 4)
    assert page.kind.describe(page).output == (
        "a seed and one of 4 hashes; sd of a rare share 1.92% on 10,000 reports"
    )
    assert (pages.repeats, pages.payload.mechanism.size, pages.cost.epsilon) == (3, 3, 3 * (2 * AMOUNT // 3))


@pytest.mark.parametrize("message", [full(), full(""), TYPES.M()], ids=["full", "empty", "absent"])
def test_the_text_never_leaves_and_a_report_always_does(message):
    seeds = set()
    for _ in range(50):
        out = protect(message)
        assert SECRET.encode() not in out.SerializeToString()
        assert out.HasField("page")
        assert len(out.pages) == 3
        reports = [out.page, *out.pages, *([out.word] if out.HasField("word") else [])]
        assert all(report.value == "" and report.seed != 4711 for report in reports)
        assert all(report.hash < 4 for report in reports)
        seeds.update(report.seed for report in reports)
    assert len(seeds) >= 200, "each report has a seed of its own"


@pytest.mark.parametrize(
    ("given", "counted"),
    [("/a", "/a"), ("", ""), ("é" * 512, "é" * 512), ("x" * (LONGEST + 1), ""), ("日" * 400, "")],
)
def test_the_hash_is_the_documented_one(given, counted):
    """At epsilon 60 a lie has a probability below 10^-20."""
    report = protect(TYPES.Sure(page={"value": given})).page
    assert report.hash == H(report.seed, counted, 1 << 16)


def test_reports_are_true_as_often_as_they_should():
    """8,000 reports, 6 deviations: 2e-9 each."""
    plan, n = Policy().plan(TYPES.M.DESCRIPTOR), 8000
    mechanism = plan.fields[0].payload.mechanism
    supported = Counter()
    for _ in range(n):
        report = plan.protect(TYPES.M(page={"value": "/a"}), alias).page
        supported.update(text for text in ("/a", "/b", "") if H(report.seed, text, 4) == report.hash)
    for text, p in (("/a", mechanism.truth), ("/b", mechanism.lie), ("", mechanism.lie)):
        assert abs(supported[text] - n * p) < 6 * (n * p * (1 - p)) ** 0.5


def test_a_text_of_a_megabyte_is_protected_like_any_other():
    out = protect(full("x" * (1 << 20)))
    assert out.ByteSize() < 100


def test_nothing_leaves_where_the_budget_is_spent():
    plan = Policy().plan(TYPES.M.DESCRIPTOR)
    assert plan.blank(full(), alias).ByteSize() == 0


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("report", f"{REPORT} a = 1;"),
        ("report", f"repeated {REPORT} a = 1;"),
        ("report", f"map<string, {REPORT}> a = 1;"),
        ("report", f"bool b = 2 [{CAT} = {{epsilon: 1}}]; oneof o {{ {REPORT} a = 1; string c = 3; }}"),
        ("max-items", f"repeated {REPORT} a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("max-items", f"{REPORT} a = 1 [{CAT} = {{epsilon: 1}}, (dpmesh.v1.field).max_items = 2];"),
        ("kind-type", f"map<string, {REPORT}> a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("domain", f'{REPORT} a = 1 [{CAT} = {{epsilon: 1 domain: "a" domain: "b"}}];'),
        ("mechanism", f"{REPORT} a = 1 [{CAT} = {{epsilon: 1 mechanism: SUBSET_SELECTION}}];"),
        ("mechanism", f"{REPORT} a = 1 [{CAT} = {{epsilon: 1 mechanism: K_RANDOMIZED_RESPONSE}}];"),
        ("epsilon", f"{REPORT} a = 1 [{CAT} = {{}}];"),
    ],
)
def test_reports_without_a_rule_or_with_a_wrong_one_are_refused(rule, field):
    assert refused(field).rule == rule


def test_a_report_by_itself_or_suppressed_leaves_empty():
    """As a request of its own, or packed in an Any, no rule makes a report of it."""
    assert protect(report_pb2.CategoryReport(value=SECRET, seed=1, hash=1)).ByteSize() == 0
    types = compiled(f"message M {{ {REPORT} a = 1 [(dpmesh.v1.field).suppress = {{}}]; bool b = 2; }}")
    assert protect(types.M(a={"value": SECRET})).ByteSize() == 0


async def test_a_report_in_an_any_leaves_empty():
    types = compiled("message Holder { google.protobuf.Any any = 1; }")
    holder = types.Holder()
    holder.any.Pack(report_pb2.CategoryReport(value=SECRET, seed=1, hash=1))
    budget = {"name": "all", "key": "global", "epsilon": 1, "accounting": "pure"}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}) as mesh:
        out = (await mesh.release(holder)).message
    assert SECRET.encode() not in out.SerializeToString()
    packed = report_pb2.CategoryReport()
    assert not out.HasField("any") or (out.any.Unpack(packed) and packed.ByteSize() == 0)
    assert isinstance(out.any, any_pb2.Any)
