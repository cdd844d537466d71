"""From when on an offered policy may be put in force: at once, with the next window, or never."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import MAX_SECONDS
from dpmesh.errors import ConfigError, LedgerError, PolicyUnavailableError
from dpmesh.rollout.admission import REASON_LENGTH, admitted_at
from dpmesh.rollout.difference import Difference, Order
from dpmesh.rollout.policy_order import Comparison
from dpmesh.rollout.source import Offer, State
from dpmesh.v1 import policy_pb2

DAY, WEEK = 86_400.0, 604_800.0
NOW = 1000.25 * DAY
NEXT_DAY, NEXT_WEEK = 1001 * DAY, 143 * WEEK
LOOSER = Comparison((Difference("acme.Report.a", Order.LOOSER, "epsilon 1 -> 2"),))


def offer(epoch=5, **terms):
    document = policy_pb2.Policy(epoch=epoch)
    good = {"signers": 2, "reason": "ticket 7: more accuracy"}
    return Offer(document, document.SerializeToString(), **{**good, **terms})


def at(comparison=LOOSER, given=None, *, state=State.FRESH, signed=True, now=NOW, windows=(DAY,)):
    return admitted_at(given or offer(), comparison, state=state, signed=signed, now=now, windows=windows)


@pytest.mark.parametrize("order", [Order.EQUAL, Order.TIGHTER, Order.OTHER])
@pytest.mark.parametrize("state", State)
def test_what_is_not_looser_asks_nothing_of_officers_and_windows(order, state):
    comparison = Comparison(() if order is Order.EQUAL else (Difference("acme.Report.a", order, ""),))
    alone = offer(signers=0, reason="")
    assert at(comparison, alone, state=state) <= NOW
    assert at(comparison, offer(not_before=NOW + 7.5), state=state) == NOW + 7.5


@pytest.mark.parametrize(
    ("windows", "now", "not_before", "begins"),
    [
        ((DAY,), NOW, 0, NEXT_DAY),
        ((3600.0, DAY, 60.0), NOW, 0, NEXT_DAY),
        ((DAY, WEEK), NOW, 0, NEXT_WEEK),
        ((DAY,), NOW, NOW - DAY, NEXT_DAY),
        ((DAY,), NOW, NEXT_DAY, NEXT_DAY),
        ((DAY,), NOW, NEXT_DAY + 1, NEXT_DAY + DAY),
        ((DAY,), NOW, NEXT_DAY - 0.5, NEXT_DAY),
        ((DAY,), NOW, NEXT_DAY + DAY, NEXT_DAY + DAY),
        # A window that begins just now has begun.
        ((DAY,), NEXT_DAY, 0, NEXT_DAY + DAY),
        ((DAY,), math.nextafter(NEXT_DAY, 0), 0, NEXT_DAY),
        ((DAY,), NEXT_DAY, NEXT_DAY, NEXT_DAY + DAY),
        # A lifetime never renews.
        ((), NOW, 0, 0),
        ((), NOW, NOW + 9, NOW + 9),
    ],
)
def test_a_looser_policy_begins_with_a_window(windows, now, not_before, begins):
    assert at(given=offer(not_before=not_before), now=now, windows=windows) == begins


def test_a_plain_file_waits_for_nothing():
    assert at(given=offer(signers=0, reason=""), signed=False) == 0
    assert at(given=offer(signers=0, reason="", not_before=NOW + 5), signed=False) == NOW + 5


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ({"signers": 1}, "1 of the 2 officers"),
        ({"signers": 0}, "0 of the 2 officers"),
        ({"reason": ""}, "no reason"),
        ({"reason": " \t"}, "no reason"),
        ({"reason": "x" * (REASON_LENGTH + 1)}, "500"),
        ({"reason": "two\nlines"}, "one line"),
        ({"reason": "\x1b[2Jgone"}, "printable"),
    ],
)
def test_what_a_looser_policy_lacks_for_ever(terms, text):
    with pytest.raises(ConfigError, match=text) as refused:
        at(given=offer(**terms))
    assert "acme.Report.a" in str(refused.value)
    assert "gone" not in str(refused.value)
    assert at(given=offer(**terms), signed=False) == 0, "a plain file has neither signatures nor reasons"


@pytest.mark.parametrize("state", [State.STALE, State.EXPIRED])
def test_a_looser_policy_waits_for_a_source_that_is_fresh(state):
    with pytest.raises(PolicyUnavailableError, match=state):
        at(state=state)
    assert at(state=State.FRESH) == NEXT_DAY


def test_the_longest_reason_is_admitted():
    assert at(given=offer(reason="x" * REASON_LENGTH)) == NEXT_DAY


@pytest.mark.parametrize("not_before", [math.nan, math.inf, 2.0 * MAX_SECONDS])
@pytest.mark.parametrize("comparison", [LOOSER, Comparison(())])
def test_a_time_that_is_none_is_refused(not_before, comparison):
    with pytest.raises(ConfigError, match="not_before"):
        at(comparison, offer(not_before=not_before))


@pytest.mark.parametrize("now", [math.nan, -1.0, math.inf])
def test_a_clock_that_shows_no_time_admits_nothing_looser(now):
    with pytest.raises(LedgerError, match="clock"):
        at(now=now)


@given(
    now=st.floats(0, 1e11),
    not_before=st.floats(0, 1e11),
    windows=st.lists(st.integers(1, 10**9).map(float), min_size=1, max_size=4),
)
def test_it_never_begins_inside_of_a_window_that_runs(now, not_before, windows):
    begins = at(given=offer(not_before=not_before), now=now, windows=windows)
    longest = int(max(windows))
    assert begins > now
    assert begins >= not_before
    assert begins % longest == 0
    assert begins - longest <= max(now, not_before), "no earlier window would do"
