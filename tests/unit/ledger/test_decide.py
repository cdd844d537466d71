"""What every store decides: pure, so it can be checked for all inputs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dpmesh.ledger.store import Batch, account_hash, decide

CAPS = [100, 40]
ACCOUNTS = [(0, b"a"), (0, b"b"), (1, b"")]
REQUESTS = st.lists(
    st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(1, 60), min_size=1, max_size=3), max_size=8
)
BALANCES = st.fixed_dictionaries(
    {
        a: st.integers(0, CAPS[a[0]]).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d)))
        for a in ACCOUNTS
    }
)


@given(REQUESTS, BALANCES, st.booleans())
def test_whatever_is_asked(requests, balances, renewed):
    debited = {a: d for a, (d, _) in balances.items()}
    held = {a: h for a, (_, h) in balances.items()}
    if renewed:  # budget 0 is in a new window
        debited = {a: 0 if a[0] == 0 else d for a, d in debited.items()}
    windows = (60, 7) if renewed else (0, 7)
    outcome = decide(Batch((0, 7), held, requests), CAPS, windows, debited)
    worth = {a: 0 if renewed and a[0] == 0 else h for a, h in held.items()}

    drawn = Counter()
    for request, lacking in zip(requests, outcome.lacking, strict=True):
        free = {a: CAPS[a[0]] - debited[a] + worth[a] - drawn[a] for a in ACCOUNTS}
        fits = all(amount <= free[a] for a, amount in request.items())
        assert (lacking is None) == fits  # exactly those that fit, in order
        if fits:
            drawn.update(request)
        else:
            assert lacking == next(a[0] for a, amount in request.items() if amount > free[a])
    for a in ACCOUNTS:
        debit = outcome.debits.get(a, 0)
        assert outcome.debited[a] == debited[a] + debit <= CAPS[a[0]]
        assert outcome.left[a] == worth[a] + debit - drawn[a] >= 0
        need = max(0, drawn[a] - worth[a])
        assert (debit > 0) == (need > 0)
        assert need <= debit <= max(need, debited[a], 0)
        assert debit <= max(need, (CAPS[a[0]] - debited[a]) // 4)


def test_slices_double_while_there_is_plenty():
    debited, debits = 0, []
    while debited < 10_000:
        outcome = decide(Batch((0,), {(0, b""): 0}, [{(0, b""): 10}]), [100_000], (0,), {(0, b""): debited})
        debits.append(outcome.debits[0, b""])
        debited += debits[-1]
    assert debits == [10, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120]


def test_account_names_are_keyed_and_fixed():
    secret = bytes(range(32))
    assert account_hash(secret, b"N14228").hex() == "200ef70762c81a3e60b6e7b002047fec"
    assert account_hash(secret, b"N14228") != account_hash(bytes(32), b"N14228")
    assert account_hash(secret, b"N14228") != account_hash(secret, b"N14229")
