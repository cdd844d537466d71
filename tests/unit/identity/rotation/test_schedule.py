"""When to renew and when to try again: bounds that hold for every life, failure and roll."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.identity.rotation import schedule

rolls = st.floats(-1, 1)
lives = st.floats(1, 1e7)


@pytest.mark.parametrize(("roll", "due"), [(-1, 720), (0, 900), (1, 1080)])
def test_renewal_is_at_half_of_the_life_give_or_take_a_tenth_of_it(roll, due):
    assert schedule.renew_after(1800, None, roll) == pytest.approx(due)


@pytest.mark.parametrize(("roll", "due"), [(-1, 1.8), (0, 2), (1, 2.2)])
def test_every_is_jittered_too(roll, due):
    assert schedule.renew_after(1800, 2, roll) == pytest.approx(due)


@given(life=lives, every=st.floats(0.01, 1e8), roll=rolls)
def test_every_never_makes_it_later_than_the_half_life_does(life, every, roll):
    due = schedule.renew_after(life, every, roll)
    assert due <= schedule.renew_after(life, None, roll)
    assert due <= every * 1.1 + 1e-9
    assert 0 < due <= max(0.6 * life, 0.1) * (1 + 1e-12)


@pytest.mark.parametrize("life", [1e-9, 0.001, 0.1])
def test_lives_of_next_to_nothing_do_not_make_a_storm(life):
    assert schedule.renew_after(life, None, -1) == 0.1


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10**6, 30)]
)
def test_retries_double_up_to_thirty_seconds(failures, longest):
    assert schedule.retry_after(failures, 1e9, 1e9, 1) == longest
    assert schedule.retry_after(failures, 1e9, 1e9, -1) == longest / 2


@given(failures=st.integers(1, 100), left=st.floats(-1e6, 1e7), roll=rolls)
def test_a_retry_waits_for_a_tenth_of_what_is_left_at_most(failures, left, roll):
    delay = schedule.retry_after(failures, left, 1800, roll)
    assert 0.1 <= delay <= 30
    if left > 1:
        assert delay <= left / 10


def test_retries_go_on_with_back_off_once_the_identity_is_over():
    assert schedule.retry_after(20, 0, 1800, 1) == schedule.retry_after(20, -500, 1800, 1) == 30
    # Short lives are for tests and examples; who waits for one should not wait for many of them.
    assert schedule.retry_after(20, -500, 2, 1) == 0.2


@given(left=st.floats(0.2, 1e7))
def test_a_source_gets_less_than_what_is_left(left):
    assert 0 < schedule.time_limit(left) < left
    assert schedule.time_limit(left) <= 10


@pytest.mark.parametrize("left", [0, -1, -1e9])
def test_a_source_gets_ten_seconds_when_nothing_is_left(left):
    assert schedule.time_limit(left) == 10
