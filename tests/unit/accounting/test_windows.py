"""Tumbling windows on the epoch's grid."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import MAX_SECONDS, check_length, window_end, window_start

TIMES = st.floats(0, 2**40)
LENGTHS = st.integers(1, 10**9)


@given(TIMES, LENGTHS)
def test_a_window_holds_its_times(now, length):
    start, end = window_start(now, length), window_end(now, float(length))
    assert start <= now < end
    assert start % length == 0
    assert end - start == length
    assert window_start(start, length) == start
    assert window_start(end, length) == end


@given(TIMES)
def test_lifetime_is_one_window(now):
    assert window_start(now, None) == 0
    assert window_end(now, None) is None


@pytest.mark.parametrize("length", [0, -1, 0.5, 1.5, math.nan, math.inf, -math.inf, 2.0**54, "24h", True])
def test_bad_lengths_are_refused_by_name(length):
    for call in (
        lambda: check_length(length),
        lambda: window_start(0, length),
        lambda: window_end(0, length),
    ):
        with pytest.raises(ValueError, match="window"):
            call()


@pytest.mark.parametrize("now", [-1, -0.001, math.nan, math.inf, -math.inf, 2.0**54, None, "now"])
@pytest.mark.parametrize("length", [None, 60])
def test_what_is_no_time_is_refused_by_name(now, length):
    with pytest.raises(ValueError, match="now"):
        window_start(now, length)


def test_the_longest_time_and_the_longest_window_are_times():
    check_length(MAX_SECONDS)
    assert window_start(MAX_SECONDS, 1) == MAX_SECONDS
    assert window_end(MAX_SECONDS - 1, MAX_SECONDS) == MAX_SECONDS
    with pytest.raises(ValueError, match="window"):
        check_length(MAX_SECONDS + 2)
    with pytest.raises(ValueError, match="now"):
        window_start(MAX_SECONDS + 2, None)
