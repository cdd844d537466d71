"""What every store decides: pure, so it can be checked for all inputs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import AMOUNT
from dpmesh.ledger.store import (
    Batch,
    Window,
    account_end,
    account_hash,
    decide,
    window_at_opening,
    window_in_force,
)
from tests.contract.suite import DAY, pure

ACCOUNTS = [(0, b"a"), (0, b"b"), (1, b"")]
CAPS = dict(zip(ACCOUNTS, (100, 70, 40), strict=True))
GRANTED = {ACCOUNTS[0]: 30}  # an administrator raised the cap of one account
REQUESTS = st.lists(
    st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(1, 60), min_size=1, max_size=3), max_size=8
)
BALANCES = st.fixed_dictionaries(
    {a: st.integers(0, CAPS[a]).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))) for a in ACCOUNTS}
)


WANTS = st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(0, 200))


@given(REQUESTS, BALANCES, WANTS, st.booleans())
def test_whatever_is_asked(requests, balances, wants, renewed):
    debited = {a: d for a, (d, _) in balances.items()}
    held = {a: h for a, (_, h) in balances.items()}
    if renewed:  # budget 0 is in a new window
        debited = {a: 0 if a[0] == 0 else d for a, d in debited.items()}
    windows = (Window(60 if renewed else 0, 60, 70), Window(7, None, 40))
    outcome = decide(Batch((0, 7), held, requests, wants), windows, debited, GRANTED)
    worth = {a: 0 if renewed and a[0] == 0 else h for a, h in held.items()}

    drawn = Counter()
    for request, lacking in zip(requests, outcome.denied_by, strict=True):
        free = {a: CAPS[a] - debited[a] + worth[a] - drawn[a] for a in ACCOUNTS}
        fits = all(amount <= free[a] for a, amount in request.items())
        assert (lacking is None) == fits  # exactly those that fit, in order
        if fits:
            drawn.update(request)
        else:
            assert lacking == next(a[0] for a, amount in request.items() if amount > free[a])
    for a in ACCOUNTS:
        debit = outcome.debits.get(a, 0)
        assert outcome.debited[a] == debited[a] + debit <= CAPS[a]
        assert outcome.remaining[a] == worth[a] + debit - drawn[a] >= 0
        need = max(0, drawn[a] - worth[a])
        assert (debit > 0) == (need > 0)
        assert need <= debit <= max(need, debited[a], 0)
        assert debit <= max(need, wants.get(a, 0))
        assert debit <= max(need, (CAPS[a] - debited[a]) // 4)
    assert outcome.caps == CAPS


def debits_of(wants):
    """What one account is debited, charge by charge, until a tenth of its budget is gone."""
    a = (0, b"")
    debited, debits = 0, []
    while debited < 10_000:
        batch = Batch((0,), {a: 0}, [{a: 10}], {} if wants is None else {a: wants})
        debits.append(decide(batch, (Window(0, None, 100_000),), {a: debited}).debits[a])
        debited += debits[-1]
    return debits


def test_slices_double_while_there_is_plenty():
    assert debits_of(10**9) == [10, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120]


def test_a_slice_is_no_more_than_is_used_before_long():
    assert debits_of(100)[:6] == [10, 10, 20, 40, 80, 100]
    assert set(debits_of(100)[5:]) == {100}
    for little in (0, 9, None):
        assert set(debits_of(little)) == {10}


def test_account_names_are_keyed_and_fixed():
    secret = bytes(range(32))
    assert account_hash(secret, b"N14228").hex() == "200ef70762c81a3e60b6e7b002047fec"
    assert account_hash(secret, b"N14228") != account_hash(bytes(32), b"N14228")
    assert account_hash(secret, b"N14228") != account_hash(secret, b"N14229")


LENGTHS = st.sampled_from([1, 3, 7, None])
TERMS = st.tuples(LENGTHS, st.integers(1, 5))


@given(st.lists(st.tuples(TERMS, st.integers(0, 40)), min_size=1, max_size=12), st.booleans())
def test_windows_follow_each_other_and_caps_only_fall_in_one(steps, lifetime):
    """Holders with any terms and clocks, one after the other."""
    window = None
    for (length, epsilon), now in steps:
        length = None if lifetime else length or 1
        budget = pure("b", float(epsilon), window=length)
        before = window = window_at_opening(window, budget) if window is None else window
        window = window_in_force(before, budget, now)
        assert window.cap <= budget.cap
        if now < before.end:
            assert window[:2] == before[:2]
            assert window.cap == min(before.cap, budget.cap)
        else:
            assert before.end <= window.start <= now < window.end
            assert (window.length, window.cap) == (length, budget.cap)
            assert window.end - window.start <= length
            assert window.end % length == 0


def test_terms_at_opening():
    one, two = pure("b", 1.0), pure("b", 2.0, window=7 * DAY)
    assert window_at_opening(None, one) == (0, DAY, AMOUNT)
    assert window_at_opening(Window(0, DAY, AMOUNT), two) == (0, 7 * DAY, 2 * AMOUNT)
    assert window_at_opening(Window(DAY, DAY, AMOUNT), two) == (DAY, DAY, AMOUNT)
    assert window_at_opening(Window(DAY, 7 * DAY, 2 * AMOUNT), one) == (DAY, 7 * DAY, AMOUNT)
    assert window_at_opening(Window(0, None, AMOUNT), pure("b", 2.0, window=None)) == (0, None, AMOUNT)


def test_an_account_s_window_ends_when_the_budget_s_next_one_begins():
    assert account_end(DAY, Window(DAY, 7 * DAY, 1)) == 7 * DAY
    assert account_end(DAY, Window(2 * DAY, 7 * DAY, 1)) == 2 * DAY
    assert account_end(DAY, Window(9 * DAY, DAY, 1)) == 2 * DAY
    assert account_end(0, Window(0, None, 1)) is None
