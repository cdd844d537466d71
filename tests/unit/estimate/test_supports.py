"""Shares from subsets and from reports: counting, intervals, and what is refused."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.estimate import EstimateError, Reader
from dpmesh.estimate.supports import count
from dpmesh.noise import categorical
from dpmesh.policy import Policy
from dpmesh.v1 import report_pb2
from tests.support.protos import compiled

ALMOST_SURE = 1 - 1e-9
CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""enum Color {{ RED = 0; GREEN = 5; BLUE = 7; VIOLET = 9; PINK = 11; GREY = 12; }}
    message M {{ repeated Color color = 1 [{CAT} = {{epsilon: 0.5 mechanism: SUBSET_SELECTION}}];
    dpmesh.v1.CategoryReport page = 2 [{CAT} = {{epsilon: 2}}];
    repeated dpmesh.v1.CategoryReport pages = 3 [{CAT} = {{epsilon: 8}}, (dpmesh.v1.field).max_items = 2];
    bool flag = 4 [{CAT} = {{epsilon: 1}}];
    string word = 5 [{CAT} = {{epsilon: 1 domain: "a" domain: "b"}}];
    int64 large = 6 [{CAT} = {{epsilon: 1 domain: "1" domain: "9007199254740993"}}]; }}"""
)
N = 3000
PAGES = ["/", "/a", "/b", "", "/nobody"]


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


@pytest.fixture(scope="module")
def reader():
    return Reader(TYPES.M)


@pytest.fixture(scope="module")
def received(reader):
    """Half of the senders hold RED and "/"; a quarter GREEN, "/a" and two of it; a quarter holds nothing."""
    held = [
        TYPES.M(color=[0], page={"value": "/"}, pages=[{"value": "/"}]),
        TYPES.M(color=[0], page={"value": "/"}, pages=[{"value": "/"}]),
        TYPES.M(color=[5], page={"value": "/a"}, pages=[{"value": "/a"}, {"value": "/a"}]),
        TYPES.M(),
    ]
    return [reader.plan.protect(held[number % 4], alias) for number in range(N)]


def test_subsets(reader, received):
    found = reader.frequencies("color", received, confidence=ALMOST_SURE)
    assert list(found) == ["RED", "GREEN", "BLUE", "VIOLET", "PINK", "GREY"]
    assert sum(entry.value for entry in found.values()) == pytest.approx(1)
    for name, share in {"RED": 0.75, "GREEN": 0.25, "BLUE": 0, "VIOLET": 0, "PINK": 0, "GREY": 0}.items():
        assert found[name].covers(share)
        assert (found[name].n, found[name].per_place) == (N, True)
    mechanism = categorical.make_subset(6, Fraction(1, 2))
    usual = reader.frequencies("color", received)["GREY"]
    assert usual.margin == pytest.approx(1.96 * math.sqrt(mechanism.variance() / N), rel=0.05)


def test_subsets_as_plain_lists_by_number_or_name(reader, received):
    expected = reader.frequencies("color", received)
    lists = [list(message.color) for message in received]
    names = [
        [TYPES.M.DESCRIPTOR.fields_by_name["color"].enum_type.values_by_number[n].name for n in row]
        for row in lists
    ]
    assert reader.frequencies("color", lists) == expected
    assert reader.frequencies("color", iter(names)) == expected


def test_shares_of_the_held_values(reader, received):
    found = reader.frequencies("color", received, held=0.75, confidence=ALMOST_SURE)
    assert found["RED"].covers(2 / 3)
    assert found["GREEN"].covers(1 / 3)
    pages = reader.frequencies("page", received, candidates=PAGES, held=0.75, confidence=ALMOST_SURE)
    assert pages["/"].covers(2 / 3)
    assert pages[""].covers(0)


def test_reports(reader, received):
    found = reader.frequencies("page", received, candidates=PAGES, confidence=ALMOST_SURE)
    assert list(found) == PAGES
    for text, share in zip(PAGES, (0.5, 0.25, 0, 0.25, 0), strict=True):
        assert found[text].covers(share)
        assert (found[text].n, found[text].per_place) == (N, True)
    usual = reader.frequencies("page", received, candidates=["/nobody"])["/nobody"]
    variance = categorical.make_hashing(Fraction(2)).variance()
    assert usual.margin == pytest.approx(1.96 * math.sqrt(variance / N), rel=0.15)


def test_reports_by_themselves_and_as_pairs(reader, received):
    expected = reader.frequencies("page", received, candidates=PAGES)
    reports = [message.page for message in received]
    assert reader.frequencies("page", reports, candidates=PAGES) == expected
    pairs = ((report.seed, report.hash) for report in reports)
    assert reader.frequencies("page", pairs, candidates=iter(PAGES)) == expected


def test_arrays(reader, received):
    colors = np.array([list(message.color) for message in received], np.uint8)
    assert reader.frequencies("color", colors) == reader.frequencies("color", received)
    flags = np.array([message.flag for message in received])
    assert reader.frequencies("flag", flags) == reader.frequencies("flag", received)
    pairs = np.array([(message.page.seed, message.page.hash) for message in received], np.uint64)
    expected = reader.frequencies("page", received, candidates=PAGES)
    assert reader.frequencies("page", pairs, candidates=PAGES) == expected


@pytest.mark.parametrize(
    ("path", "values", "text"),
    [
        ("color", np.array([0, 5]), "another shape"),
        ("flag", np.array(True), "another shape"),
        ("color", np.array([[0, 5, 7]]), "another shape"),
        ("color", np.array([[0, 5], [5, 5]]), "not a subset in the order"),
        ("color", np.array([[0, 5], [7, 5]]), "not a subset in the order"),
        ("color", np.array([[0, 6]]), "not one of its categories"),
        ("color", np.array([[0, 2**64 - 1]], np.uint64), "not one of its categories"),
        ("color", np.array([[-1, 5]]), "not one of its categories"),
        ("color", np.empty((0, 2), int), "no values"),
        ("word", np.array([1, 2]), "pass a list"),
        ("large", np.array([1, 2]), "pass a list"),
        ("color", np.array([[0, 8]]), "not one of its categories"),
        ("page", np.array([[1, 8]], np.uint64), "a hash below 8"),
        ("page", np.array([[1, 1]]), "a hash below 8"),
        ("page", np.array([1, 1], np.uint64), "a hash below 8"),
        ("page", np.empty((0, 2), np.uint64), "no values"),
    ],
)
def test_bad_arrays(reader, path, values, text):
    with pytest.raises(EstimateError, match=text):
        reader.frequencies(path, values, candidates=PAGES if path == "page" else None)


def test_several_reports_of_a_message(reader, received):
    found = reader.frequencies("pages", received, candidates=PAGES, confidence=ALMOST_SURE)
    for text, share in zip(PAGES, (0.25, 0.25, 0, 0.5, 0), strict=True):
        assert found[text].covers(share)
        assert found[text].n == 2 * N


def test_more_reports_than_are_counted_at_a_time():
    mechanism = categorical.make_hashing(Fraction(1))
    reports = [(seed * 0x9E3779B97F4A7C15 % 2**64, seed % 4) for seed in range(20_000)]
    seen, n = count("x", iter(reports), ["a", "b"], mechanism)
    assert n == 20_000
    parts = [count("x", reports[start : start + 500], ["a", "b"], mechanism)[0] for start in range(0, n, 500)]
    assert seen == [sum(column) for column in zip(*parts, strict=True)]


def test_messages_that_left_without_a_report_are_none(reader, received):
    blank = reader.plan.blank(TYPES.M(), alias)
    assert reader.frequencies("color", [*received, blank])["RED"].n == N
    assert reader.frequencies("page", [*received, blank], candidates=["/"])["/"].n == N


@pytest.mark.parametrize(
    ("path", "values", "more", "text"),
    [
        ("color", [], {}, "no values"),
        ("color", [[0, 5, 7]], {}, "not a list of 2 different"),
        ("color", [[0, 0]], {}, "not a list of"),
        ("color", [[0, 5, 5]], {}, "not a list of"),
        ("color", [5], {}, "not one of its categories"),
        ("color", [[0, 1]], {}, "not one of its categories"),
        ("color", [[0, 5]], {"candidates": ["RED"]}, "leave candidates out"),
        ("flag", [True], {"candidates": ["RED"]}, "leave candidates out"),
        ("page", [(1, 1)], {}, "list those whose shares"),
        ("page", [(1, 1)], {"candidates": []}, "list those whose shares"),
        ("page", [(1, 1)], {"candidates": "/a"}, "list those whose shares"),
        ("page", [(1, 1)], {"candidates": ["a", "a"]}, "different texts"),
        ("page", [(1, 1)], {"candidates": [b"a"]}, "different texts"),
        ("page", [(1, 1)], {"candidates": ["x" * 1025]}, "more than 1,024 bytes"),
        ("page", [(1, 1)], {"candidates": ["a"], "project": True}, "leave project out"),
        ("page", [(1, 8)], {"candidates": ["a"]}, "a hash below 8"),
        ("page", [(-1, 1)], {"candidates": ["a"]}, "a hash below 8"),
        ("page", [(2**64, 1)], {"candidates": ["a"]}, "a hash below 8"),
        ("page", [(1, 1, 1)], {"candidates": ["a"]}, "a hash below 8"),
        ("page", ["a"], {"candidates": ["a"]}, "a hash below 8"),
        ("page", [report_pb2.CategoryReport(value="raw", hash=9)], {"candidates": ["a"]}, "a hash below 8"),
        ("page", [], {"candidates": ["a"]}, "no values"),
    ],
)
def test_what_no_sender_under_this_policy_released_is_refused(reader, path, values, more, text):
    with pytest.raises(EstimateError, match=text) as caught:
        reader.frequencies(path, values, **more)
    assert caught.value.field == path


def test_reports_that_no_noise_explains_are_refused(reader):
    report = Policy().plan(TYPES.M.DESCRIPTOR).protect(TYPES.M(page={"value": "/"}), alias).page
    with pytest.raises(EstimateError, match="another policy"):
        reader.frequencies("page", [report] * 1000, candidates=PAGES)


@pytest.mark.parametrize(
    "domain", [tuple(range(6)), (250, 3, 0, 7, 255, 9), (-5, 70_000, 3, 1, 2, 300), (-2, 3, 40, 7, 9, 1)]
)
def test_lists_of_numbers_are_counted_as_one_by_one(domain):
    """By one path or another: numbers below 256, other numbers, and in any order within a subset."""
    chance = random.Random(7)
    mechanism = categorical.make(6, Fraction(1))
    values = [chance.choice(domain) for _ in range(20_000)]
    expected = [values.count(value) for value in domain]
    assert count("x", values, domain, mechanism) == (expected, 20_000)
    assert count("x", iter(values), domain, mechanism) == (expected, 20_000)
    subset = categorical.make_subset(6, Fraction(1, 2))
    subsets = [tuple(chance.sample(domain, subset.size)) for _ in range(9_000)]
    expected = [sum(value in each for each in subsets) for value in domain]
    for form in (tuple, list, set, np.array):
        assert count("x", list(map(form, subsets)), domain, subset) == (expected, 9_000)
    for foreign in (8, 256, 1 << 70, "8", None, 0.5):
        with pytest.raises(EstimateError, match="not one of its categories"):
            count("x", [*values, foreign], domain, mechanism)
        with pytest.raises(EstimateError, match="not one of its categories"):
            count("x", [*subsets, (*subsets[0][1:], foreign)], domain, subset)
    for wrong in (subsets[0][1:], (*subsets[0][1:], subsets[0][1])):
        with pytest.raises(EstimateError, match="different categories"):
            count("x", [*subsets, wrong], domain, subset)
