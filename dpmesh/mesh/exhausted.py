"""ExhaustedCache: accounts that the ledger has just refused, so that retries do not delay other senders."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dpmesh.bounded import BoundedTable
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Charge, Ledger

# How long an exhausted account is refused from memory. Meanwhile, a grant by an administrator or a lease that another
# holder returns goes unnoticed. Afterwards the ledger is asked once, and all senders of the budget wait for its answer.
_SECONDS = 0.1
_KEPT = 1024


class ExhaustedCache:
    """Refuses from memory what the ledger refused a moment ago.

    Args:
        ledger: Knows what each account has spent.
        monotonic: The clock by which a refusal expires, in seconds.
    """

    def __init__(self, ledger: Ledger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        # By account: the amount that was refused, when the entry expires, and the error's retry_after.
        self._refused: BoundedTable[tuple[int, bytes], tuple[int, float, float | None]] = BoundedTable(_KEPT)

    def check(self, charges: Sequence[Charge]) -> None:
        """Refuses charges to an account that was refused no larger amount a moment ago, in the same window.

        Raises:
            BudgetExhaustedError: An account is exhausted.
        """
        if not self._refused:
            return
        for index, account, amount in charges:
            entry = self._refused.get((index, account))
            if entry is None or amount < entry[0]:
                continue
            # The ledger forgets what it knows of an account when its window ends.
            if self._monotonic() < entry[1] and self._ledger.usage(index, account) is not None:
                raise BudgetExhaustedError(self._ledger.budgets[index].name, entry[2])
            self._refused.pop((index, account), None)

    def learn(self, charges: Sequence[Charge], error: BudgetExhaustedError) -> BudgetExhaustedError:
        """Remembers a refusal of the ledger.

        Returns:
            The error to raise. It has no retry_after if the next window does not cover the charge either.
        """
        refused = [charge for charge in charges if self._ledger.budgets[charge[0]].name == error.budget]
        if len(refused) != 1:
            return error  # The ledger does not say which of several accounts is exhausted.
        ((index, account, amount),) = refused
        usage = self._ledger.usage(index, account)
        cap = self._ledger.budgets[index].cap if usage is None else usage[1]
        wait = None if amount > cap else error.retry_after
        self._refused[index, account] = amount, self._monotonic() + _SECONDS, wait
        return error if wait is error.retry_after else BudgetExhaustedError(error.budget, wait)
