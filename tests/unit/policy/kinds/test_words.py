"""Numbers and lengths of time as people read them."""

from __future__ import annotations

import math

import pytest

from dpmesh.policy.kinds.words import duration, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (12.0, "12"),
        (0.123456, "0.1235"),
        (1e7, "1e+07"),
        (-3.5, "-3.5"),
        (math.inf, "inf"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (59, "59 s"),
        (90, "1 min 30 s"),
        (86_400, "1 d"),
        (90_061, "1 d 1 h"),
        (3600 * 25.5, "1 d 1 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
