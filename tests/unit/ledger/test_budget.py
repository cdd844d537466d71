"""Budgets are checked when they are made."""

import dataclasses
import math

import pytest

from dpmesh.accounting import Accounting, cap
from dpmesh.errors import ConfigError
from dpmesh.ledger import Budget

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
        ("on_exhausted", ["replay", "ignore", None]),
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
        ConfigError, match=r"budget\.on_exhausted: 'replay'.*'device-daily'.*reject, suppress"
    ):
        Budget(**{**GOOD, "on_exhausted": "replay"})
