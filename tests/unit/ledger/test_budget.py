"""Budgets are checked when they are made."""

import dataclasses
import math

import pytest

from dpmesh.accounting import Accounting, cap
from dpmesh.errors import ConfigError
from dpmesh.ledger import Budget
from dpmesh.ledger.budget import Match, check_unchanged, consumer_key, parents

GOOD = {
    "name": "device-daily",
    "key": "unit",
    "epsilon": 8.0,
    "delta": 1e-6,
    "accounting": "zcdp",
    "window": 86400.0,
    "on_exhausted": "reject",
}


def test_a_good_budget():
    budget = Budget(**GOOD)
    assert budget.cap == cap(Accounting.ZCDP, 8.0, 1e-6)
    assert budget.accounting is Accounting.ZCDP
    assert Budget(**{**GOOD, "accounting": Accounting.PURE}).cap == 8 * 10**9
    assert Budget(**{**GOOD, "window": None}).window is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.epsilon = 9.0


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", ["", "a\nb", "x" * 201, 7, None]),
        ("key", ["device", "", None]),
        ("accounting", ["renyi", "", None]),
        ("on_exhausted", ["repeat", "ignore", None]),
        ("epsilon", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 1e-300, "8", None, True]),
        ("delta", [0.0, 1.0, -1e-6, math.nan, math.inf, "1e-6", None]),
        ("window", [0, -1, 0.5, math.nan, math.inf, "24h"]),
    ],
)
def test_a_bad_value_is_named(key, values):
    for value in values:
        with pytest.raises(ConfigError, match=key):
            Budget(**{**GOOD, key: value})


def test_what_is_allowed_is_said():
    with pytest.raises(
        ConfigError, match=r"budget\.on_exhausted: 'repeat'.*'device-daily'.*reject, suppress"
    ):
        Budget(**{**GOOD, "on_exhausted": "repeat"})


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (Match(), True),
        (Match(methods=("/acme.v1.Fleet/Ask",)), True),
        (Match(methods=("/acme.v1.fleet/*",)), False),
        (Match(methods=("/other/*", "/acme.v1.*/Ask")), True),
        (Match(messages=("acme.v1.Mean",)), True),
        (Match(messages=("acme.v1",)), False),
        (Match(directions=("response",)), True),
        (Match(directions=("request",)), False),
        (Match(labels=("health",)), True),
        (Match(labels=("heal*", "none")), True),
        (Match(labels=("place",)), False),
        (Match(methods=("/acme.*",), directions=("request",)), False),
        (Match(methods=("/acme.*",), messages=("acme.*",), directions=("response",), labels=("a*",)), True),
    ],
)
def test_all_lists_that_are_given_have_to_fit(match, fits):
    release = ("/acme.v1.Fleet/Ask", ("acme.v1.Mean", "acme.v1.Part"), "response", {"health", "audited"})
    assert match.fits(*release) is fits


def test_a_release_without_labels_fits_no_list_of_them():
    assert not Match(labels=("*",)).fits("", ("a.B",), "request", ())


def test_no_two_consumers_share_an_account():
    pairs = [
        (b"", "a"),
        (b"a", ""),
        (b"", ""),
        (b"a", "b"),
        (b"ab", ""),
        (b"\0\0\0\1a", "b"),
        (b"", "\0\0\0\1ab"),
    ]
    keys = {consumer_key(unit, consumer) for unit, consumer in pairs}
    assert len(keys) == len(pairs)
    assert consumer_key(b"N1", "\xe9") == b"\0\0\0\2N1\xc3\xa9"
    quota = Budget("q", "unit/consumer", 1.0)
    assert [quota.unit(consumer_key(unit, consumer)) for unit, consumer in pairs] == [
        unit for unit, _ in pairs
    ]
    assert Budget("b").unit(b"N1") == b"N1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"under": "weekly"}, "quota.under: 'weekly'.*there are daily"),
        ({"under": ""}, "quota.under"),
        ({"under": "q"}, "quota.under"),
        ({"key": "global/consumer"}, "quota.owner"),
        ({"accounting": "pure"}, "quota.accounting"),
        ({"window": None}, "quota.window"),
        ({"epsilon": 8.001}, "quota.epsilon: 8.001.*'daily'"),
        (
            {"match": Match(directions=("request",))},
            "quota.directions: 'request'.*'daily'.*allowed: response",
        ),
        ({"match": Match(directions=("response", "request"))}, "quota.directions: 'request'"),
    ],
)
def test_a_quota_has_to_fit_under_its_budget(change, words):
    budget = Budget("daily", match=Match(directions=("response",)))
    good = {"name": "q", "key": "unit/consumer", "under": "daily"}
    assert parents([budget, Budget(**good)]) == {1: 0}
    with pytest.raises(ConfigError, match=words):
        parents([budget, Budget(**{**good, **change})])


def test_what_is_paid_for_may_change_and_whose_account_it_is_may_not():
    stored = Budget("q", "unit/consumer", 1.0)
    check_unchanged(
        stored, Budget("q", "unit/consumer", 2.0, match=Match(("/a.B/C",)), under="b", consumers=("c",))
    )
    for key in ("unit", "global", "global/consumer"):
        with pytest.raises(ConfigError, match="key"):
            check_unchanged(stored, Budget("q", key, 1.0))


@pytest.mark.parametrize(
    ("glob", "named", "rotating"),
    [
        ("spiffe://partner.example/*", True, True),
        ("spiffe://partner.example*", True, True),
        ("spiffe://*", True, True),
        ("*", True, True),
        ("*analytics", True, True),
        ("spiffe://partner.exampl?/a*", True, True),
        ("spiffe://partner.example[/]analytics", True, True),
        ("spiffe://partner.example/analytics", True, True),
        ("spiffe://partner.example/billing/*", False, True),
        ("spiffe://*/billing", False, True),
        ("spiffe://partner.example", False, True),
        ("spiffe://partner.exampl", False, False),
        ("spiffe://partner.example.org/*", False, False),
        ("spiffe://other.example/*", False, False),
        ("dns:*", False, False),
        ("", False, False),
    ],
)
def test_who_has_no_place_in_a_trust_domain_fits_every_part_of_it(glob, named, rotating):
    quota = Budget("q", "unit/consumer", 1.0, consumers=("nobody", glob))
    assert quota.is_for("spiffe://partner.example/analytics") is named
    assert quota.is_for("spiffe://partner.example") is rotating


@pytest.mark.parametrize(
    "glob", ["spiffe://Partner.example/*", "SPIFFE://partner.example/*", "dns:A.example"]
)
def test_a_glob_that_fits_nobody_because_of_its_capitals_is_refused(glob):
    with pytest.raises(ConfigError, match="quota.consumers.*capitals"):
        Budget("q", "unit/consumer", 1.0, consumers=(glob,))
    Budget("q", "unit/consumer", 1.0, consumers=("spiffe://partner.example/Analytics", "cn:A", "Billing"))
