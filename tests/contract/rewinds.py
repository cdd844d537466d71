"""What `accept` must do with a ledger that a wrong clock locked, whatever it is kept in."""

import asyncio
import logging

import pytest

from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Ledger, account_hash
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import EntryKind, decode
from tests.contract.suite import DAY, LIFE, TENTH, UNIT, Clock, pure

FAR = 27_000 * DAY
BUDGETS = [UNIT, LIFE, pure("week", window=7 * DAY), pure("unused")]
NEXT = 1001 * DAY
"""Where the budget of days goes on: the clock shows noon of the day before."""


class RewindSuite:
    """Inherited by the tests of stores that last; they say how to make one, its admin, and what clock it follows."""

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def make(self, tmp_path, clock):
        return lambda budgets=BUDGETS: Ledger(self.store(tmp_path), budgets, clock=clock, timeout=60.0)

    async def charge(self, make, unit: bytes, amount: int, budget: int = 0) -> None:
        """Charges once, as a holder of its own."""
        ledger = make()
        await ledger.open()
        try:
            await ledger.charge([(budget, unit, amount)])
        finally:
            await ledger.close()

    async def left(self, make, unit: bytes, budget: int = 0) -> int:
        """Spends what is left to a unit, in tenths; says how much it was."""
        ledger = make()
        await ledger.open()
        found = 0
        try:
            while True:
                await ledger.charge([(budget, unit, TENTH)])
                found += 1
        except BudgetExhaustedError:
            return found
        finally:
            await ledger.close()

    async def accept(self, place) -> tuple[str, ...]:
        return await self.admin(place).accept("me: the clock was wrong")

    async def accounts(self, place):
        async with self.admin(place).view() as view:
            return [account async for account in view.accounts()]

    async def whole(self, place) -> None:
        async with self.admin(place).view() as view:
            assert await verify(view) == []

    async def remark(self, place) -> tuple[str, tuple[str, ...]]:
        async with self.admin(place).view() as view:
            return view.remark, view.ahead

    async def test_a_ledger_locked_by_one_clock_goes_on(self, make, clock, tmp_path, caplog):
        """What was spent counts, in the wrong windows too; nobody who was not charged there loses anything."""
        await self.charge(make, b"a", 4 * TENTH)
        await self.charge(make, b"idle", 3 * TENTH)
        await self.charge(make, b"life", AMOUNT, budget=1)
        assert await self.remark(tmp_path) == ("", ())
        clock.now += FAR
        await self.charge(make, b"a", 7 * TENTH)
        await self.charge(make, b"b", AMOUNT)
        clock.now -= FAR
        with pytest.raises(BudgetExhaustedError) as caught:
            await self.charge(make, b"b", 1)
        assert caught.value.retry_after > FAR - DAY
        ahead = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert "'unit', 'week', 'unused'" in ahead[-1]
        assert "dpmesh ledger accept" in ahead[-1]
        remark, names = await self.remark(tmp_path)
        assert names == ("unit", "week", "unused")
        assert "windows that its clock has not reached" in remark
        assert await self.accept(tmp_path) == ()
        assert await self.remark(tmp_path) == ("", ())
        await self.whole(tmp_path)
        spent = {(a.budget, a.window_start, a.spent, a.lifetime) for a in await self.accounts(tmp_path)}
        assert spent == {
            ("unit", NEXT, 7 * TENTH, 11 * TENTH),
            ("unit", NEXT, AMOUNT, AMOUNT),
            ("unit", 1000 * DAY, 3 * TENTH, 3 * TENTH),
            ("life", 0, AMOUNT, AMOUNT),
        }
        assert [await self.left(make, unit) for unit in (b"a", b"b", b"c")] == [3, 0, 10]
        clock.now = NEXT + DAY - 1
        assert [await self.left(make, unit) for unit in (b"a", b"b", b"c")] == [0, 0, 0]
        clock.now = NEXT + DAY
        assert [await self.left(make, unit) for unit in (b"a", b"b")] == [10, 10]
        await self.whole(tmp_path)
        async with self.admin(tmp_path).view() as view:
            notes = {
                e.note for e in [decode(w.body) async for w in view.entries()] if e.kind is EntryKind.ACCEPT
            }
        assert notes == {"me: the clock was wrong"}

    async def test_what_several_jumps_gave_is_all_paid_for(self, make, clock, tmp_path):
        """An account remembers its last window only; the charge log knows the others."""
        for jump, tenths in ((DAY, 1), (FAR, 2), (FAR + DAY, 3), (2 * FAR, 1)):
            clock.now += jump
            await self.charge(make, b"a", tenths * TENTH)
            clock.now -= jump
        await self.accept(tmp_path)
        await self.whole(tmp_path)
        (account,) = await self.accounts(tmp_path)
        assert (account.window_start, account.spent, account.lifetime) == (NEXT, 7 * TENTH, 7 * TENTH)
        clock.now += FAR
        await self.charge(make, b"a", AMOUNT)
        clock.now -= FAR
        await self.accept(tmp_path)  # More than a cap by now, and no error.
        await self.whole(tmp_path)
        assert await self.left(make, b"a") == 0
        (account,) = await self.accounts(tmp_path)
        assert (account.window_start, account.spent, account.lifetime) == (NEXT, 17 * TENTH, 17 * TENTH)
        clock.now += 2 * DAY
        assert await self.left(make, b"a") == 10
        await self.whole(tmp_path)

    async def test_a_window_that_really_comes_is_as_any_other(self, make, clock, tmp_path):
        clock.now += 5 * DAY
        await self.charge(make, b"a", AMOUNT)
        clock.now -= 5 * DAY
        await self.accept(tmp_path)
        clock.now += 5 * DAY
        assert await self.left(make, b"a") == 10
        await self.whole(tmp_path)
        (account,) = await self.accounts(tmp_path)
        assert (account.window_start, account.spent, account.lifetime) == (1005 * DAY, AMOUNT, 2 * AMOUNT)

    async def test_grants_of_wrong_windows_end_and_others_stay(self, make, clock, tmp_path):
        ledger = make()
        await ledger.open()
        account = account_hash(ledger.secret, b"a")
        await ledger.close()
        clock.now += DAY
        await self.admin(tmp_path).grant("unit", account, 2 * TENTH, "me: r")
        await self.charge(make, b"a", TENTH)
        clock.now += FAR
        await self.admin(tmp_path).grant("unit", account, 5 * TENTH, "me: r")
        await self.charge(make, b"a", 12 * TENTH)
        clock.now -= FAR + DAY
        await self.accept(tmp_path)
        await self.whole(tmp_path)
        (found,) = await self.accounts(tmp_path)
        assert (found.spent, found.granted) == (13 * TENTH, 2 * TENTH)
        assert await self.left(make, b"a") == 0

    @pytest.mark.parametrize("days", [0, 1])
    async def test_a_clock_that_is_a_window_off_needs_no_help(self, make, clock, tmp_path, days):
        clock.now += days * DAY
        await self.charge(make, b"a", TENTH)
        clock.now -= days * DAY
        assert await self.remark(tmp_path) == ("", ())
        with pytest.raises(LedgerError, match="nothing to accept"):
            await self.accept(tmp_path)
        (account,) = await self.accounts(tmp_path)
        assert account.window_start == (1000 + days) * DAY

    async def test_what_an_accepted_copy_moved_is_not_moved_back(self, make, clock, tmp_path):
        """Who accepts two copies in one window moves it twice, because what was spent since either is unknown."""
        await self.charge(make, b"a", AMOUNT)
        for number in range(3):
            await self.admin(tmp_path).accept("me: a copy", unnoticed=True)
            assert await self.left(make, b"a") == 10, number
        assert await self.remark(tmp_path) == ("", ())
        with pytest.raises(LedgerError, match="nothing to accept"):
            await self.accept(tmp_path)
        clock.now += FAR
        await self.charge(make, b"b", AMOUNT)
        clock.now -= FAR
        await self.accept(tmp_path)
        assert [await self.left(make, unit) for unit in (b"a", b"b")] == [0, 0]
        await self.whole(tmp_path)

    async def test_an_older_copy_that_is_locked_too(self, make, clock, tmp_path):
        await self.charge(make, b"a", AMOUNT)
        clock.now += FAR
        await self.charge(make, b"b", AMOUNT)
        clock.now -= FAR
        assert await self.admin(tmp_path).accept("me: a copy", unnoticed=True) == ("life",)
        await self.whole(tmp_path)
        clock.now += DAY
        assert [await self.left(make, unit) for unit in (b"a", b"b")] == [10, 10]
        clock.now += DAY - 1
        assert [await self.left(make, unit) for unit in (b"a", b"b")] == [0, 0]
        await self.whole(tmp_path)

    async def test_what_the_log_can_not_tell_counts_as_spent(self, make, clock, tmp_path):
        """Pruned while the clock was ahead, the log lacks what was charged in the windows that are brought back."""
        clock.now += 2 * DAY
        await self.charge(make, b"a", AMOUNT)
        clock.now += FAR
        await self.charge(make, b"a", TENTH)
        assert await self.admin(tmp_path).prune(int(clock.now) - 10 * DAY) == 1
        clock.now -= FAR + 2 * DAY
        await self.accept(tmp_path)
        await self.whole(tmp_path)
        assert await self.left(make, b"a") == 0

    async def test_many_accounts(self, make, clock, tmp_path, monkeypatch):
        monkeypatch.setattr("dpmesh.ledger.clock_rewind.ACCOUNTS_PER_ENTRY", 7)
        clock.now += FAR
        ledger = make()
        await ledger.open()
        await asyncio.gather(*[ledger.charge([(0, b"%d" % i, i * TENTH // 5)]) for i in range(1, 51)])
        await ledger.close()
        clock.now -= FAR
        await self.accept(tmp_path)
        await self.whole(tmp_path)
        assert sorted(account.spent for account in await self.accounts(tmp_path)) == [
            i * TENTH // 5 for i in range(1, 51)
        ]
        assert await self.left(make, b"40") == 2
