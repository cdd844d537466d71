"""What accounts spent, counted up."""

from __future__ import annotations

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.ledger import Account, Budget
from dpmesh.report.balances import Tally, quantile


def test_quantiles_are_the_smallest_value_that_enough_do_not_exceed() -> None:
    values = list(range(1, 101))
    assert [quantile(values, percent) for percent in (1, 50, 95, 100)] == [1, 50, 95, 100]
    assert [quantile([7], percent) for percent in (50, 95, 100)] == [7, 7, 7]
    assert [quantile([1, 2], percent) for percent in (50, 51, 100)] == [1, 2, 2]
    assert quantile([], 50) == 0


def test_a_tally_counts_the_window_in_force() -> None:
    budget = Budget("daily", epsilon=8.0, delta=0.0, accounting=Accounting.PURE, window=100.0)
    tally = Tally(budget, 200)
    for window, spent, granted in (
        (0, 7, 0),
        (100, 6, 0),
        (200, 1, 0),
        (100, 5, 0),
        (200, 3, 2),
        (200, 0, 9),
    ):
        tally.add(
            Account(
                "daily",
                "",
                window,
                window + 100,
                spent * AMOUNT,
                budget.cap,
                granted * AMOUNT,
                spent * AMOUNT,
            )
        )
    found = tally.spending()
    assert (found.window.window_start, found.window.window_end) == (200, 300)
    assert (found.accounts, found.granted, found.median.value, found.most.value) == (2, 1, 1, 3)
    assert found.least_remaining.value == 7
