"""Budgets that change while a ledger is open, or from one holder to the next: what every store must do."""

import asyncio

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Budget
from tests.contract.suite import BUDGETS, DAY, GLOBAL, LIFE, TENTH, UNIT, pure


class AdoptionSuite:
    """Inherited by the tests of each store, together with LedgerSuite, which makes the ledgers."""

    async def full(self, ledger, index: int, unit: bytes, amount: int) -> None:
        """Checks that exactly an amount is left of an account, and spends it."""
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(index, unit, amount + 1)])
        if amount:
            await ledger.charge([(index, unit, amount)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(index, unit, 1)])

    async def test_a_larger_cap_begins_with_the_next_window(self, make, ledger, clock):
        await ledger.charge([(0, b"a", TENTH)])
        assert await ledger.adopt([pure("unit", 2.0)]) == (0,)
        await self.full(ledger, 0, b"a", 9 * TENTH)
        other = make([pure("unit", 3.0)])
        await other.open()
        await self.full(other, 0, b"a", 0)
        await self.full(other, 0, b"b", AMOUNT)
        await ledger.close()
        await ledger.open()
        await self.full(ledger, 0, b"c", AMOUNT)
        clock.now += DAY / 2
        await self.full(ledger, 0, b"a", 2 * AMOUNT)
        await self.full(other, 0, b"b", 2 * AMOUNT)  # until it ends, the window has the smaller of the caps
        await other.close()

    async def test_a_larger_cap_waits_also_where_nothing_was_charged_in_the_window(self, ledger, clock):
        await ledger.charge([(0, b"a", 1)])
        clock.now += DAY
        await ledger.adopt([pure("unit", 2.0)])
        await self.full(ledger, 0, b"a", AMOUNT)
        clock.now += DAY
        await self.full(ledger, 0, b"a", 2 * AMOUNT)

    async def test_a_lower_cap_holds_at_once_and_refunds_nothing(self, make, ledger, clock):
        await ledger.charge([(0, b"a", 7 * TENTH), (0, b"b", 3 * TENTH)])
        await ledger.adopt([pure("unit", 0.5)])
        await self.full(ledger, 0, b"a", 0)
        await self.full(ledger, 0, b"b", 2 * TENTH)
        assert [a.spent for a in await ledger.accounts("unit")].count(7 * TENTH) == 1
        assert ledger.usage(0, b"a") == (7 * TENTH, 5 * TENTH)
        other = make()  # It has not heard of it.
        await other.open()
        await self.full(other, 0, b"c", 5 * TENTH)
        clock.now += DAY / 2
        await self.full(ledger, 0, b"a", 5 * TENTH)
        await other.close()

    async def test_leases_under_an_older_cap_come_back_before_the_next_release(self, ledger):
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH), (1, b"", TENTH)])  # one more tenth of each is held
        assert [a.spent for a in await ledger.accounts()] == [4 * TENTH, 4 * TENTH]
        await ledger.adopt([pure("unit", 0.35)])
        assert [a.spent for a in await ledger.accounts()] == [3 * TENTH, 4 * TENTH]
        assert not ledger.spend([(0, b"a", 1)])
        assert ledger.spend([(1, b"", TENTH)])  # of a cap that stays
        await self.full(ledger, 0, b"a", TENTH // 2)

    async def test_a_holder_learns_of_a_lower_cap_with_its_next_debit(self, make, ledger):
        other = make()
        await other.open()
        for unit in (b"a", b"b"):
            for _ in range(3):
                await other.charge([(0, unit, TENTH)])  # one more tenth of each is held
        await ledger.adopt([pure("unit", 0.35)])
        with pytest.raises(BudgetExhaustedError):
            await other.charge([(0, b"a", 2 * TENTH)])
        for unit in (b"a", b"b"):
            assert not other.spend([(0, unit, 1)])
        await other.charge([(1, b"", 1)])
        await other.charge([(1, b"", 1)])
        await other.close()
        assert {a.spent for a in await ledger.accounts("unit")} == {3 * TENTH}
        await self.full(ledger, 0, b"a", TENTH // 2)

    async def test_raised_and_lowered_in_one_window(self, ledger, clock):
        await ledger.charge([(0, b"a", TENTH)])
        for epsilon in (2.0, 0.8, 3.0, 0.9):
            await ledger.adopt([pure("unit", epsilon)])
        await self.full(ledger, 0, b"a", 7 * TENTH)
        clock.now += DAY
        await self.full(ledger, 0, b"a", 9 * TENTH)

    async def test_a_lifetime_budget_never_rises(self, make, ledger, caplog):
        await ledger.charge([(2, b"a", TENTH)])
        with pytest.raises(
            ConfigError, match=r"budget\.epsilon: 6.*'life'.*no.*dpmesh budget grant"
        ) as caught:
            await ledger.adopt([UNIT, pure("life", 6.0, window=None)])
        assert "lifetime" in str(caught.value)
        await ledger.adopt([pure("life", 0.5, window=None)])
        await self.full(ledger, 2, b"a", 4 * TENTH)
        other = make()
        await other.open()
        assert "'life': its cap in the ledger is lower" in caplog.text
        await self.full(other, 2, b"b", 5 * TENTH)
        await other.close()

    async def test_new_budgets_begin_and_dropped_ones_stay(self, make, ledger, clock):
        await ledger.charge([(0, b"a", TENTH), (2, b"a", TENTH)])
        assert ledger.places([pure("new", 0.3), UNIT]) == (3, 0)
        assert await ledger.adopt([pure("new", 0.3), UNIT]) == (3, 0)
        assert await ledger.adopt([LIFE, pure("other"), pure("new", 0.3)]) == (2, 4, 3)
        assert [budget.name for budget in ledger.budgets] == ["unit", "all", "life", "new", "other"]
        await ledger.charge([(3, b"a", TENTH), (0, b"a", TENTH), (4, b"a", TENTH)])
        await self.full(ledger, 3, b"a", 2 * TENTH)
        spent = {a.budget: a.spent for a in await ledger.accounts(unit=b"a")}
        assert spent == {"unit": 2 * TENTH, "life": TENTH, "new": 3 * TENTH, "other": TENTH}
        await ledger.close()
        await ledger.open()
        await self.full(ledger, 0, b"a", 8 * TENTH)
        other = make([pure("other"), *BUDGETS])
        await other.open()
        await self.full(other, 0, b"a", 9 * TENTH)
        await other.close()

    @pytest.mark.parametrize(
        "changed",
        [
            pure("unit", window=None),
            pure("unit", key="global"),
            Budget("unit", epsilon=1.0),
            pure("life", 5.0),
        ],
        ids=["lifetime", "key", "accounting", "window"],
    )
    async def test_what_would_refill_is_refused_and_changes_nothing(self, ledger, changed):
        await ledger.charge([(0, b"a", TENTH)])
        before = ledger.budgets
        with pytest.raises(ConfigError, match="refill"):
            await ledger.adopt([pure("new"), pure("all", 0.5, key="global"), changed])
        assert ledger.budgets == before
        await self.full(ledger, 0, b"a", 9 * TENTH)
        await ledger.charge([(1, b"", 10 * AMOUNT)])
        with pytest.raises(ConfigError, match="occurs twice"):
            await ledger.adopt([UNIT, UNIT])

    async def test_another_length_begins_when_the_window_in_force_ends(self, make, ledger, clock):
        await ledger.charge([(0, b"a", AMOUNT)])
        await ledger.adopt([pure("unit", 1.0, window=7 * DAY)])
        with pytest.raises(BudgetExhaustedError) as caught:
            await ledger.charge([(0, b"a", 1)])
        assert caught.value.retry_after == DAY / 2
        clock.now += DAY / 2
        await ledger.charge([(0, b"a", TENTH)])
        # Weeks end where they would always have: 1001 = 143 * 7.
        (account,) = await ledger.accounts("unit")
        assert (account.window_start, account.window_end) == (1001 * DAY, 1008 * DAY)
        await ledger.adopt([pure("unit", 1.0, window=2 * DAY)])
        other = make()
        await other.open()
        clock.now += 6.5 * DAY
        await self.full(other, 0, b"a", 9 * TENTH)
        clock.now += DAY / 2
        await self.full(ledger, 0, b"a", AMOUNT)
        await self.full(other, 0, b"a", 0)
        clock.now += 1.5 * DAY
        await self.full(other, 0, b"a", 0)  # its own days count for nothing in a window that another began
        clock.now += DAY / 2
        await self.full(other, 0, b"a", AMOUNT)
        await other.close()

    async def test_a_window_that_begins_within_a_longer_one_ends_with_it(self, ledger, clock):
        await ledger.charge([(0, b"a", AMOUNT)])
        await ledger.adopt([pure("unit", 1.0, window=3 * DAY)])
        clock.now += DAY / 2
        await self.full(ledger, 0, b"a", AMOUNT)
        (account,) = await ledger.accounts("unit")
        assert (account.window_start, account.window_end) == (1001 * DAY, 1002 * DAY)  # 1002 = 334 * 3
        clock.now += DAY
        await self.full(ledger, 0, b"a", AMOUNT)
        clock.now += 2.99 * DAY
        await self.full(ledger, 0, b"a", 0)

    async def test_a_holder_follows_a_window_of_another_length(self, make, ledger, clock):
        weekly = make([pure("unit", 1.0, window=7 * DAY)])
        await ledger.charge([(0, b"a", 3 * TENTH)])
        await weekly.open()
        clock.now += DAY
        await weekly.charge([(0, b"a", 4 * TENTH)])
        for _ in range(3):
            clock.now += DAY
            await ledger.charge([(0, b"a", TENTH)])
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(0, b"a", 6 * TENTH)])
        await self.full(ledger, 0, b"a", 3 * TENTH)
        await self.full(weekly, 0, b"a", 0)
        await weekly.close()

    async def test_charges_while_budgets_change(self, ledger):
        done = asyncio.Event()
        spent = 0

        async def send():
            nonlocal spent
            while not done.is_set():
                await ledger.charge([(1, b"", 1), (2, b"a", 1)])
                spent += 1
                await asyncio.sleep(0)

        senders = [asyncio.create_task(send()) for _ in range(8)]
        for round_ in range(20):
            assert await ledger.adopt(
                [pure(f"new {round_}"), pure("all", 10.0 - round_ % 3, key="global")]
            ) == (
                3 + round_,
                1,
            )
            await ledger.charge([(3 + round_, b"a", TENTH)])
        done.set()
        await asyncio.gather(*senders)
        await ledger.close()
        await ledger.open()
        found = {a.budget: a.spent for a in await ledger.accounts()}
        assert (found["all"], found["life"]) == (spent, spent)
        assert {amount for name, amount in found.items() if name.startswith("new")} == {TENTH}

    async def test_a_ledger_that_is_not_open_adopts_nothing(self, make):
        ledger = make([GLOBAL])
        with pytest.raises(LedgerError, match="not open"):
            await ledger.adopt([GLOBAL])
        await ledger.open()
        await ledger.close()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.adopt([GLOBAL])

    async def test_deltas_of_histograms_never_get_more_room_while_they_are_charged(self, make):
        before = Budget("b", epsilon=1.0, threshold_delta=1e-6)
        ledger = make([before])
        await ledger.open()
        for changed in (
            Budget("b", epsilon=2.0, threshold_delta=1e-6),
            Budget("b", epsilon=1.0, threshold_delta=1e-5),
        ):
            with pytest.raises(ConfigError, match="start anew"):
                await ledger.adopt([changed])
        assert ledger.budgets == (before,)
        await ledger.adopt([Budget("b", epsilon=0.5, threshold_delta=1e-7)])
        assert ledger.budgets[0].accounting is Accounting.ZCDP
        await ledger.close()
