"""Refusals: what the ledger has just refused, so that who asks again and again takes nothing from others."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Charge, Ledger

# So long is an account taken to be used up. Within it, what an administrator grants or another holder hands back goes
# unnoticed; and so often does an account that is used up have the ledger asked, for which everybody waits who shares a
# budget with it.
_SECONDS = 0.1
_KEPT = 1024


class ExhaustedCache:
    """The accounts that have just refused a charge.

    Args:
        ledger: Who refuses.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # By account: what was refused, until when it is again, and what is said of when to come back.
        self._known: dict[tuple[int, bytes], tuple[int, float, float | None]] = {}

    def check(self, charges: Sequence[Charge]) -> None:
        """Refuses what was refused a moment ago, in the same window, with no less to pay.

        Raises:
            BudgetExhaustedError: An account is used up.
        """
        if not self._known:
            return
        for index, account, amount in charges:
            known = self._known.get((index, account))
            if known is None or amount < known[0]:
                continue
            # The ledger forgets what it knows of an account when its window ends.
            if time.monotonic() < known[1] and self._ledger.usage(index, account) is not None:
                raise BudgetExhaustedError(self._ledger.budgets[index].name, known[2])
            self._known.pop((index, account), None)

    def learn(self, charges: Sequence[Charge], error: BudgetExhaustedError) -> BudgetExhaustedError:
        """Remembers a refusal of the ledger.

        Returns:
            The refusal as it should be told: it promises nothing of the next window where that covers no more.
        """
        found = [charge for charge in charges if self._ledger.budgets[charge[0]].name == error.budget]
        if len(found) != 1:
            return error  # The ledger does not say which of the units has nothing left.
        ((index, account, amount),) = found
        standing = self._ledger.usage(index, account)
        cap = self._ledger.budgets[index].cap if standing is None else standing[1]
        wait = None if amount > cap else error.retry_after
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[index, account] = amount, time.monotonic() + _SECONDS, wait
        return error if wait is error.retry_after else BudgetExhaustedError(error.budget, wait)
