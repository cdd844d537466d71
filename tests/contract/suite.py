"""What every ledger store must do. A store's test class inherits this and says how to make one."""

import asyncio
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Account, Batch, Budget, Ledger, Store, account_hash
from dpmesh.ledger.admin import LedgerAdmin
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import EntryKind, decode
from tests.support.steady import no_time_passes

DAY = 86_400
MAX = 2**63 - 1


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: float = 1000.5 * DAY) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def pure(name: str, epsilon: float = 1.0, **changes) -> Budget:
    return Budget(name, epsilon=epsilon, delta=0.0, accounting=Accounting.PURE, **changes)


UNIT = pure("unit", 1.0)
GLOBAL = pure("all", 10.0, key="global")
LIFE = pure("life", 5.0, window=None)
BUDGETS = [UNIT, GLOBAL, LIFE]
TENTH = AMOUNT // 10


class LedgerSuite:
    """Inherited by the tests of each store."""

    def store(self, place: Path) -> Store:
        """A new store at a place; where the place is shared, on what an earlier one left there."""
        raise NotImplementedError

    def tell(self, place: Path, now: float) -> None:
        """Sets the clock of a store that has one of its own."""

    def admin(self, place: Path) -> LedgerAdmin:
        """What administers the store at a place, if it has a charge log."""
        raise NotImplementedError

    async def notes(self, place: Path) -> list[str]:
        """What was recorded in the store at a place, in order."""
        async with self.admin(place).view() as view:
            assert await verify(view) == []
            entries = [decode(stored.body) async for stored in view.entries()]
        return [entry.note for entry in entries if entry.kind is EntryKind.POLICY]

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def make(self, tmp_path, clock):
        """Makes ledgers on one store, as the processes of one machine would; they wait for a machine that is slow."""
        return lambda budgets=BUDGETS, **changes: Ledger(
            self.store(tmp_path),
            budgets,
            **{"clock": clock, "monotonic": no_time_passes, "timeout": 60.0, **changes},
        )

    @pytest.fixture
    async def ledger(self, make):
        ledger = make()
        await ledger.open()
        yield ledger
        await ledger.close()

    # Caps

    async def test_a_budget_is_spent_exactly(self, ledger):
        for _ in range(10):
            await ledger.charge([(0, b"a", TENTH)])
        with pytest.raises(BudgetExhaustedError, match="'unit'") as caught:
            await ledger.charge([(0, b"a", 1)])
        assert (caught.value.budget, caught.value.retry_after) == ("unit", DAY / 2)
        await ledger.charge([(0, b"b", AMOUNT)])

    @pytest.mark.parametrize("cost", [7_000_001, 99_999_999, 333_333_334, AMOUNT])
    async def test_slices_never_cost_the_last_charge(self, ledger, cost):
        for _ in range(AMOUNT // cost):
            await ledger.charge([(0, b"a", cost)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", cost)])

    async def test_a_thousand_at_once_against_a_budget_for_a_hundred(self, ledger):
        charges = [ledger.charge([(1, b"", TENTH), (0, bytes([i // 250, i % 250]), 5)]) for i in range(1000)]
        results = await asyncio.gather(*charges, return_exceptions=True)
        assert results.count(None) == 100
        assert sum(isinstance(result, BudgetExhaustedError) for result in results) == 900
        await ledger.close()

    async def test_mixed_costs_at_once_fill_the_budget(self, ledger):
        for rounds in range(1, 40):
            charges = [ledger.charge([(1, b"", AMOUNT // 7 + i)]) for i in range(rounds % 5 + 1)]
            await asyncio.gather(*charges, return_exceptions=True)
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(1, b"", AMOUNT // 7)])
        assert 10 * AMOUNT - AMOUNT // 7 < ledger.usage(1, b"")[0] <= 10 * AMOUNT

    async def test_more_than_the_cap_never_fits(self, ledger):
        for amount in (AMOUNT + 1, MAX, MAX + 1, 10**40):
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(0, b"a", amount)])
        assert await ledger.accounts() == []

    async def test_the_largest_cap(self, make, clock):
        most = pure("most", 9_223_372_036.0)
        ledger = make([most])
        await ledger.open()
        await ledger.charge([(0, b"a", most.cap - 1)])
        await ledger.charge([(0, b"a", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
        await ledger.close()

    async def test_a_cap_lowered_below_what_is_spent_admits_nothing(self, make):
        ledger = make()
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT)])
        await ledger.close()
        lower = make([pure("unit", 0.5)])
        await lower.open()
        with pytest.raises(BudgetExhaustedError):
            await lower.charge([(0, b"a", 1)])
        await lower.charge([(0, b"b", AMOUNT // 2)])
        await lower.close()

    async def test_a_cap_raised_admits_more_in_the_next_window_only(self, make, clock):
        ledger = make()
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT)])
        await ledger.close()
        for _ in range(2):  # Restarts change nothing.
            higher = make([pure("unit", 1.5)])
            await higher.open()
            with pytest.raises(BudgetExhaustedError):
                await higher.charge([(0, b"a", 1)])
            with pytest.raises(BudgetExhaustedError):
                await higher.charge([(0, b"b", AMOUNT + 1)])
            assert {account.cap for account in await higher.accounts("unit")} == {AMOUNT}
            await higher.close()
        clock.now += DAY / 2
        await higher.open()
        await higher.charge([(0, b"a", 3 * AMOUNT // 2)])
        with pytest.raises(BudgetExhaustedError):
            await higher.charge([(0, b"a", 1)])
        await higher.close()

    # All or nothing

    async def test_several_budgets_all_or_nothing(self, ledger):
        await ledger.charge([(0, b"a", AMOUNT), (1, b"", TENTH)])
        for _ in range(3):
            with pytest.raises(BudgetExhaustedError, match="'unit'"):
                await ledger.charge([(1, b"", TENTH), (0, b"a", 1), (2, b"a", 1)])
        spent = {(a.budget, a.spent) for a in await ledger.accounts()}
        assert spent == {("unit", AMOUNT), ("all", TENTH)}

    async def test_the_first_budget_that_lacks_is_named(self, ledger):
        await ledger.charge([(0, b"a", AMOUNT), (2, b"a", 5 * AMOUNT)])
        with pytest.raises(BudgetExhaustedError, match="'life'") as caught:
            await ledger.charge([(1, b"", 1), (2, b"a", 1), (0, b"a", 1)])
        assert caught.value.retry_after is None

    async def test_one_account_named_twice_pays_twice(self, ledger):
        await ledger.charge([(0, b"a", 4 * TENTH), (0, b"a", 4 * TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 2 * TENTH), (0, b"a", 1)])
        await ledger.charge([(0, b"a", TENTH), (0, b"a", TENTH)])
        assert [a.spent for a in await ledger.accounts("unit")] == [AMOUNT]

    async def test_nothing_to_pay(self, ledger):
        await ledger.charge([])
        await ledger.charge([(0, b"a", 0), (1, b"", 0)])
        assert await ledger.accounts() == []

    async def test_malformed_charges_are_refused(self, ledger):
        await ledger.charge([(0, b"a", 1)])
        await ledger.charge([(0, b"a", 2)])
        for charge in [
            (3, b"a", 1),
            (-1, b"a", 1),
            (True, b"a", 1),
            (b"secret unit", 0, 1),
            (0, "a", 1),
            (0, None, 1),
            (0, b"a", -1),
            (0, b"a", 0.5),
            (0, b"a", float("nan")),
            (0, b"a", True),
        ]:
            with pytest.raises(LedgerError, match="charge") as caught:
                await ledger.charge([(1, b"", 1), charge])
            assert "secret" not in str(caught.value)
        assert [a.budget for a in await ledger.accounts()] == ["unit"]

    # Leases

    async def test_a_unit_that_sends_once_wastes_nothing(self, ledger):
        await asyncio.gather(*[ledger.charge([(0, bytes([i]), TENTH)]) for i in range(50)])
        assert [a.spent for a in await ledger.accounts()] == [TENTH] * 50

    async def test_a_hot_account_soon_needs_no_commit(self, make):
        ledger = make([pure("all", 1e6, key="global")])
        await ledger.open()
        commits: list[float] = []
        ledger.on_commit = commits.append
        for _ in range(10_000):
            await ledger.charge([(0, b"", TENTH)])
        assert len(commits) < 20
        assert all(seconds > 0 for seconds in commits)
        assert ledger.usage(0, b"") == (10_000 * TENTH, 10**6 * AMOUNT)
        await ledger.close()

    async def test_spend_pays_from_leases_only_and_all_or_nothing(self, ledger):
        assert not ledger.spend([(0, b"a", 1)])
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])  # debits 1 + 1 + 2 tenths
        assert not ledger.spend([(0, b"a", TENTH + 1)])
        assert not ledger.spend([(0, b"a", TENTH), (0, b"a", 1)])
        assert not ledger.spend([(0, b"a", TENTH), (1, b"", 1)])
        assert ledger.spend([(0, b"a", TENTH)])
        assert not ledger.spend([(0, b"a", 1)])
        assert [a.spent for a in await ledger.accounts()] == [4 * TENTH]

    async def test_a_closed_ledger_returned_its_leases(self, make):
        ledger = make()
        await ledger.open()
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])
        assert [a.spent for a in await ledger.accounts()] == [4 * TENTH]
        await ledger.close()
        assert not ledger.spend([(0, b"a", 1)])
        with pytest.raises(LedgerError, match="not open"):
            await ledger.charge([(0, b"a", 1)])
        with pytest.raises(LedgerError, match="not open"):
            await ledger.accounts()
        await ledger.close()
        again = make()
        await again.open()
        assert [a.spent for a in await again.accounts()] == [3 * TENTH]
        for _ in range(7):
            await again.charge([(0, b"a", TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await again.charge([(0, b"a", 1)])
        await again.close()

    async def test_two_holders_share_one_budget(self, make):
        holders = [make(), make()]
        for holder in holders:
            await holder.open()
        admitted = 0
        for i in range(400):
            try:
                await holders[i % 2].charge([(1, b"", TENTH)])
            except BudgetExhaustedError:
                continue
            admitted += 1
        # All slices end up spent, for each holder went on until it was refused.
        assert admitted == 100
        for holder in holders:
            await holder.close()

    async def test_what_another_holds_is_refused_and_comes_back(self, make):
        first, second = make(), make()
        await first.open()
        await second.open()
        for _ in range(3):
            await first.charge([(0, b"a", TENTH)])  # holds one more tenth
        await second.charge([(0, b"a", 6 * TENTH)])
        with pytest.raises(BudgetExhaustedError) as caught:
            await second.charge([(0, b"a", 1)])
        assert caught.value.retry_after == DAY / 2
        await first.close()
        await second.charge([(0, b"a", TENTH)])
        await second.close()

    # Windows

    async def test_a_new_window_renews_and_a_lifetime_does_not(self, ledger, clock):
        await ledger.charge([(0, b"a", AMOUNT), (2, b"a", 5 * AMOUNT)])
        clock.now += DAY / 2 - 1
        with pytest.raises(BudgetExhaustedError) as caught:
            await ledger.charge([(0, b"a", 1)])
        assert caught.value.retry_after == 1.0
        clock.now += 1
        await ledger.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(2, b"a", 1)])
        unit, life = await ledger.accounts()
        assert (unit.window_start, unit.window_end) == (1001 * DAY, 1002 * DAY)
        assert (life.window_start, life.window_end) == (0, None)
        assert (unit.spent_at(clock.now), unit.spent_at(clock.now + DAY)) == (AMOUNT, 0)
        assert life.spent_at(clock.now + 1e9) == 5 * AMOUNT

    async def test_an_old_lease_is_worthless_in_a_new_window(self, ledger, clock):
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])
        clock.now += DAY
        assert ledger.usage(0, b"a") is None
        assert not ledger.spend([(0, b"a", TENTH)])
        clock.now -= DAY
        assert not ledger.spend([(0, b"a", TENTH)])
        await ledger.charge([(0, b"a", AMOUNT)])
        (account,) = await ledger.accounts()
        assert (account.window_start, account.spent) == (1001 * DAY, AMOUNT)

    async def test_a_clock_set_back_refills_nothing(self, make, clock):
        ledger = make()
        await ledger.open()
        clock.now += DAY
        await ledger.charge([(0, b"a", AMOUNT)])
        clock.now -= 10 * DAY
        for reopened in (False, True):
            if reopened:
                await ledger.close()
                ledger = make()
                await ledger.open()
            with pytest.raises(BudgetExhaustedError) as caught:
                await ledger.charge([(0, b"a", 1)])
            assert caught.value.retry_after == 10.5 * DAY
        await ledger.close()

    async def test_time_is_what_the_latest_holder_saw(self, make, clock):
        early, late = make(), make(clock=Clock(clock.now + DAY))
        await early.open()
        await late.open()
        await early.charge([(0, b"a", AMOUNT)])
        await late.charge([(0, b"b", 1)])
        await early.charge([(0, b"a", AMOUNT)])  # in the new window, whatever its own clock says
        with pytest.raises(BudgetExhaustedError):
            await early.charge([(0, b"a", 1)])
        with pytest.raises(BudgetExhaustedError):
            await late.charge([(0, b"a", 1)])
        await early.close()
        await late.close()

    @pytest.mark.parametrize("now", [float("nan"), float("inf"), -1.0])
    async def test_a_clock_that_shows_no_time_refuses(self, make, ledger, clock, now):
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH), (2, b"a", TENTH)])
        good, clock.now = clock.now, now
        with pytest.raises(LedgerError, match="clock"):
            await ledger.charge([(0, b"new", 1)])
        with pytest.raises(LedgerError, match="clock"):
            await make().open()
        clock.now = good
        await ledger.charge([(0, b"new", 1)])

    # What is stored

    async def test_accounts_are_found_by_budget_and_unit_and_show_no_id(self, ledger):
        await ledger.charge([(0, b"tail-N14228", 5), (1, b"", 7), (2, b"tail-N14228", 9)])
        await ledger.charge([(0, b"tail-N24211", 11)])
        everything = await ledger.accounts()
        assert [(a.budget, a.spent, a.cap) for a in everything if a.budget != "unit"] == [
            ("all", 7, 10 * AMOUNT),
            ("life", 9, 5 * AMOUNT),
        ]
        assert sorted(a.spent for a in await ledger.accounts("unit")) == [5, 11]
        mine = await ledger.accounts(unit=b"tail-N14228")
        assert [(a.budget, a.spent) for a in mine] == [("unit", 5), ("life", 9)]
        assert await ledger.accounts("unit", b"tail-N14228") == mine[:1]
        assert await ledger.accounts("other") == await ledger.accounts(unit=b"?") == []
        assert mine[0].account == account_hash(ledger.secret, b"tail-N14228").hex()
        assert all(isinstance(a, Account) and "N14228" not in repr(a) for a in everything)
        assert everything == await ledger.accounts()

    async def test_the_secret_stays(self, make):
        secrets = []
        for _ in range(2):
            ledger = make()
            with pytest.raises(LedgerError, match="never opened"):
                ledger.secret  # noqa: B018
            await ledger.open()
            secrets.append(ledger.secret)
            await ledger.close()
        assert len(secrets[0]) == 32
        assert secrets[0] == secrets[1]

    @pytest.mark.parametrize(
        "changed",
        [
            pure("unit", window=None),
            pure("unit", key="global"),
            Budget("unit", epsilon=1.0),
        ],
        ids=["lifetime", "key", "accounting"],
    )
    async def test_a_budget_that_means_something_else_is_refused(self, make, ledger, changed):
        await ledger.charge([(0, b"a", AMOUNT)])
        with pytest.raises(ConfigError, match=r"budget\.(window|key|accounting).*'unit'.*refill"):
            await make([GLOBAL, changed]).open()

    async def test_budgets_may_be_added_dropped_and_reordered(self, make):
        ledger = make()
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT), (2, b"a", AMOUNT)])
        await ledger.close()
        other = make([LIFE, pure("new"), UNIT])
        await other.open()
        await other.charge([(0, b"a", 4 * AMOUNT), (1, b"a", AMOUNT)])
        for index in range(3):
            with pytest.raises(BudgetExhaustedError):
                await other.charge([(index, b"a", 1)])
        await other.close()

    async def test_two_budgets_of_one_name_are_refused(self, make):
        with pytest.raises(ConfigError, match=r"budget\.name.*'unit'"):
            make([UNIT, LIFE, pure("unit", 2.0)])

    # Standing

    async def test_standing_is_what_is_spent_not_what_is_held(self, ledger, clock):
        assert ledger.usage(0, b"a") is None
        for spent in range(1, 11):
            await ledger.charge([(0, b"a", TENTH)])
            assert ledger.usage(0, b"a") == (spent * TENTH, AMOUNT)
        assert ledger.usage(0, b"b") is None
        assert ledger.usage(7, b"a") is None
        clock.now += DAY
        assert ledger.usage(0, b"a") is None

    async def test_a_refusal_tells_the_standing_too(self, make):
        first, second = make(), make()
        await first.open()
        await second.open()
        await first.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await second.charge([(0, b"a", 1)])
        assert second.usage(0, b"a") == (AMOUNT, AMOUNT)
        await first.close()
        await second.close()

    # The odometer

    async def test_the_odometer_counts_all_windows(self, make, ledger, clock):
        for day in range(1, 4):
            await ledger.charge([(0, b"a", AMOUNT - day), (2, b"a", day)])
            unit, life = await ledger.accounts(unit=b"a")
            assert (unit.spent, unit.lifetime) == (AMOUNT - day, day * AMOUNT - day * (day + 1) // 2)
            assert life.spent == life.lifetime
            clock.now += DAY
        await ledger.close()
        again = make()
        await again.open()
        assert [a.lifetime for a in await again.accounts(unit=b"a")] == [3 * AMOUNT - 6, 6]
        await again.close()

    async def test_what_comes_back_lowers_the_odometer_whenever_it_does(self, tmp_path):
        store = self.store(tmp_path)
        await store.open([UNIT])
        a = (0, b"a" * 16)

        async def numbers():
            return [(account.spent, account.lifetime) for account in await store.accounts(None, None)]

        self.tell(tmp_path, DAY)
        await store.debit(Batch((DAY,), {a: 0}, [{a: 6 * TENTH}]))
        await store.debit(Batch((DAY,), {a: 0}, [{a: 2 * TENTH}]))
        await store.credit((DAY,), {a: TENTH})
        assert await numbers() == [(7 * TENTH, 7 * TENTH)]
        self.tell(tmp_path, 2 * DAY)
        await store.debit(Batch((2 * DAY,), {a: 0}, [{a: 3 * TENTH}]))
        assert await numbers() == [(3 * TENTH, 10 * TENTH)]
        await store.credit((DAY,), {a: 4 * TENTH})  # of the older window: more than this one was debited
        assert await numbers() == [(3 * TENTH, 6 * TENTH)]
        await store.credit((2 * DAY,), {a: TENTH})
        assert await numbers() == [(2 * TENTH, 5 * TENTH)]
        await store.credit((2 * DAY,), {a: 3 * TENTH})
        await store.credit((3 * DAY,), {a: TENTH})
        assert await numbers() == [(2 * TENTH, 5 * TENTH)]
        await store.close()

    async def test_what_is_left_when_a_window_ends_comes_back_to_the_odometer(self, ledger, make, clock):
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH), (2, b"a", TENTH)])  # one more tenth of each is held
        assert [a.lifetime for a in await ledger.accounts(unit=b"a")] == [4 * TENTH] * 2
        clock.now += DAY
        await ledger.charge([(0, b"a", TENTH)])
        await ledger.charge([(0, b"b", TENTH)])
        clock.now += DAY
        await ledger.close()
        again = make()
        await again.open()
        assert [a.lifetime for a in await again.accounts(unit=b"a")] == [4 * TENTH, 3 * TENTH]
        await again.close()

    async def test_what_another_holder_s_clock_made_worthless_comes_back_to_the_odometer(self, make, clock):
        early, late = make(), make(clock=Clock(clock.now + DAY))
        await early.open()
        await late.open()
        for _ in range(3):
            await early.charge([(0, b"a", TENTH)])  # one more tenth is held
        await late.charge([(0, b"b", 1)])
        await early.charge(
            [(0, b"a", 2 * TENTH)]
        )  # what is held doesn't cover it, and belongs to the window before
        await early.close()
        (account,) = await late.accounts(unit=b"a")
        assert (account.window_start, account.spent, account.lifetime) == (1001 * DAY, 2 * TENTH, 5 * TENTH)
        await late.close()

    # Keys of epochs

    async def test_all_holders_have_one_key_for_each_length_until_its_epoch_ends(self, make, clock):
        one, other = make(), make()
        keys = []
        for _ in range(2):
            for holder in (one, other):
                await holder.open()
                assert not holder.holds_keys([3600.0, DAY])
                await holder.hold_keys([3600.0, DAY])
                assert holder.holds_keys([3600.0, DAY])
                assert not holder.holds_keys([60.0])
                keys.append(tuple(holder.epoch_key(epoch).key for epoch in (3600.0, DAY)))
            await one.close()
            await other.close()
            with pytest.raises(LedgerError):
                await one.hold_keys([3600.0])
        assert len(set(keys)) == 1
        assert len(set(keys[0])) == 2

    async def test_the_key_of_an_epoch_that_is_over_is_nowhere(self, tmp_path, ledger, clock):
        await ledger.hold_keys([3600.0, DAY])
        hour, day = ledger.epoch_key(3600.0), ledger.epoch_key(DAY)
        assert (hour.number, day.number) == (24_012, 1000)
        clock.now += 3599
        assert ledger.holds_keys([3600.0])
        clock.now += 1
        assert not ledger.holds_keys([3600.0])
        assert ledger.holds_keys([DAY])
        await ledger.hold_keys([3600.0, DAY])
        following = ledger.epoch_key(3600.0)
        assert following.number == 24_013
        assert following.key != hour.key
        assert ledger.epoch_key(DAY).key == day.key
        await self.check_erased(tmp_path, hour.key, following.key)

    async def check_erased(self, place: Path, erased: bytes, kept: bytes) -> None:
        """Checks that only the second of two keys is in what a store keeps, as far as it promises that."""

    async def test_a_clock_that_goes_back_a_little_goes_on_with_the_later_epoch(self, make, clock):
        start, keys = clock.now, []
        for back in (0.0, 1.0, 3599.0, 3601.0):
            clock.now = start - back
            ledger = make([])
            await ledger.open()
            await ledger.hold_keys([3600.0])
            keys.append((ledger.epoch_key(3600.0).number, ledger.epoch_key(3600.0).key))
            await ledger.close()
        assert keys[0] == keys[1] == keys[2]
        # A wrong clock had begun it: what it keyed would link for as long as that clock was ahead.
        assert keys[3][0] == 24_010
        assert keys[3][1] != keys[0][1]

    async def test_an_epoch_never_lies_in_an_earlier_window_than_what_was_charged(self, make, clock):
        ledger = make()
        await ledger.open()
        await ledger.charge([(0, b"a", 1)])
        clock.now -= 3 * DAY
        other = make()
        await other.open()
        for holder in (ledger, other):
            await holder.hold_keys([3600.0])
            assert holder.epoch_key(3600.0).number == 24_000
        await ledger.close()
        await other.close()

    async def test_a_hundred_messages_at_once_fetch_keys_together(self, ledger, monkeypatch):
        fetch, fetched = ledger._store.epoch_keys, []

        async def counted(now, lengths):
            fetched.append(sorted(lengths))
            return await fetch(now, lengths)

        monkeypatch.setattr(ledger._store, "epoch_keys", counted)
        await asyncio.gather(*[ledger.hold_keys([3600.0, DAY]) for _ in range(100)])
        assert ledger.holds_keys([3600.0, DAY])
        assert set().union(*fetched) == {3600 * 1_000_000, int(DAY) * 1_000_000}
        # One call for all, or two: a task that starts eagerly (Python 3.12) takes the first request along alone.
        assert len(fetched) <= 2

    # Names that are spent once

    async def test_a_name_is_spent_once(self, ledger, clock):
        until = clock.now + 10
        assert await ledger.redeem_once(b"a" * 32, until)
        assert not await ledger.redeem_once(b"a" * 32, until)
        assert await ledger.redeem_once(b"b" * 32, until)
        assert await ledger.accounts() == []

    async def test_a_hundred_who_spend_one_name_at_once(self, ledger, clock):
        names = [bytes([i]) * 32 for i in range(3)]
        spends = [ledger.redeem_once(name, clock.now + 10) for _ in range(100) for name in names]
        won = await asyncio.gather(*spends)
        assert [sum(won[i::3]) for i in range(3)] == [1, 1, 1]

    async def test_holders_who_spend_one_name_at_once(self, make, clock):
        holders = [make() for _ in range(3)]
        for holder in holders:
            await holder.open()
        won = await asyncio.gather(
            *[holders[i % 3].redeem_once(b"a" * 32, clock.now + 10) for i in range(100)]
        )
        assert sum(won) == 1
        for holder in holders:
            await holder.close()

    async def test_a_spent_name_stays_spent(self, make, clock):
        until = clock.now + 10
        for first in (True, False):
            ledger = make()
            await ledger.open()
            assert await ledger.redeem_once(b"a" * 32, until) is first
            await ledger.close()

    async def test_every_holder_knows_which_names_were_redeemed(self, make, clock):
        names = [bytes([i]) * 32 for i in range(3)]
        one, other = make(), make()
        for holder in (one, other):
            await holder.open()
            assert await holder.redeemed(names) == [False, False, False]
        await one.redeem_once(names[1], clock.now + 10)
        for holder in (one, other):
            assert await holder.redeemed(names) == [False, True, False]
            assert await holder.redeemed(names[:1]) == [False]
        await other.close()
        with pytest.raises(LedgerError):
            await other.redeemed(names)
        await one.close()
        again = make()
        await again.open()
        assert await again.redeemed(names[::-1]) == [False, True, False]
        await again.close()

    async def test_a_name_that_may_be_forgotten_counts_as_spent(self, make, ledger, clock):
        start, until = clock.now, clock.now + 9.5  # kept for a whole second more
        assert await ledger.redeem_once(b"a" * 32, until)
        clock.now = start + 9.75
        assert await ledger.redeem_once(b"b" * 32, until)
        clock.now = start + 10
        for name in (b"a" * 32, b"b" * 32, b"c" * 32):
            assert not await ledger.redeem_once(name, until)
        clock.now = start  # set back, or another holder's is slow
        other = make(clock=Clock(start - DAY))
        await other.open()
        for name in (b"a" * 32, b"b" * 32, b"c" * 32):
            assert not await ledger.redeem_once(name, until)
            assert not await other.redeem_once(name, until)
        assert await other.redeem_once(b"c" * 32, start + 11)
        assert not await ledger.redeem_once(b"c" * 32, start + 11)
        await other.close()

    async def test_what_is_over_is_forgotten_and_the_rest_is_not(self, tmp_path):
        store = self.store(tmp_path)
        await store.open([])
        spends = [(bytes([i]) * 32, 100 + i) for i in range(50)]
        assert await store.redeem_once(50, spends) == [True] * 50
        assert await store.redeem_once(125, spends) == [False] * 50
        assert await store.redeem_once(60, [(name, 1000) for name, _ in spends]) == [True] * 26 + [False] * 24
        await store.close()

    @pytest.mark.parametrize("name", [b"", b"a" * 31, b"a" * 33, "a" * 32, None, bytearray(32)])
    async def test_a_malformed_name_is_refused(self, ledger, clock, name):
        with pytest.raises(LedgerError, match="32 bytes"):
            await ledger.redeem_once(name, clock.now + 10)

    @pytest.mark.parametrize("until", [-1.0, float("nan"), float("inf"), 1e300, None, "9"])
    async def test_a_malformed_time_is_refused(self, ledger, until):
        with pytest.raises(LedgerError, match="until"):
            await ledger.redeem_once(b"a" * 32, until)

    @pytest.mark.parametrize("now", [float("nan"), float("inf"), -1.0])
    async def test_a_clock_that_shows_no_time_spends_no_name(self, ledger, clock, now):
        good, clock.now = clock.now, now
        with pytest.raises(LedgerError, match="clock"):
            await ledger.redeem_once(b"a" * 32, good + 10)
        clock.now = good
        assert await ledger.redeem_once(b"a" * 32, good + 10)

    async def test_a_ledger_that_is_not_open_spends_no_name(self, make, clock):
        ledger = make()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.redeem_once(b"a" * 32, clock.now + 10)
        await ledger.open()
        await ledger.close()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.redeem_once(b"a" * 32, clock.now + 10)

    async def test_another_event_loop_may_spend_a_name_too(self, ledger, clock):
        def elsewhere():
            return asyncio.run(ledger.redeem_once(b"a" * 32, clock.now + 10))

        assert await asyncio.to_thread(elsewhere)
        assert not await asyncio.to_thread(elsewhere)

    # The store itself

    async def test_a_store_never_goes_back_in_time(self, tmp_path):
        store = self.store(tmp_path)
        assert (await store.open([UNIT, LIFE])).windows == ((0, DAY, AMOUNT), (0, None, 5 * AMOUNT))
        a = (0, b"a" * 16)
        self.tell(tmp_path, 2 * DAY)
        await store.debit(Batch((2 * DAY, 0), {a: 0}, [{a: AMOUNT}]))
        self.tell(tmp_path, DAY)
        outcome = await store.debit(Batch((DAY, 0), {a: TENTH}, [{a: TENTH}]))
        windows = (2 * DAY, DAY, AMOUNT), (0, None, 5 * AMOUNT)
        assert outcome.windows == windows
        assert outcome.denied_by == [0]  # what it held was of an older window
        assert outcome.remaining == {a: 0}
        await store.close()
        assert (await store.open([UNIT, LIFE])).windows == windows
        await store.close()

    async def test_credits_count_in_their_own_window_only(self, tmp_path):
        store = self.store(tmp_path)
        await store.open([UNIT])
        a, never = (0, b"a" * 16), (0, b"n" * 16)
        self.tell(tmp_path, DAY)
        await store.debit(Batch((DAY,), {a: 0}, [{a: AMOUNT}]))
        await store.credit((0,), {a: TENTH})
        await store.credit((DAY,), {a: 2 * AMOUNT})
        await store.credit((DAY,), {a: 0, never: 1})
        assert [account.spent for account in await store.accounts(None, None)] == [AMOUNT]
        await store.credit((DAY,), {a: TENTH})
        assert [account.spent for account in await store.accounts(None, None)] == [9 * TENTH]
        self.tell(tmp_path, 2 * DAY)
        await store.debit(Batch((2 * DAY,), {a: 0}, [{a: TENTH}]))
        await store.credit((DAY,), {a: TENTH})
        assert [account.spent for account in await store.accounts(None, None)] == [TENTH]
        await store.close()

    # Budgets that are no longer configured

    # Policies

    async def test_what_is_recorded_is_durable_and_changes_no_account(self, make, ledger, tmp_path):
        for number in range(3):
            await ledger.charge([(0, b"a", TENTH)])
            before = await ledger.accounts()
            await ledger.record(f"policy epoch {number}: \u00e9 " + 400 * "x")
            assert await ledger.accounts() == before
        charges = [ledger.charge([(0, bytes([i]), TENTH)]) for i in range(50)]
        await asyncio.gather(*charges, ledger.record("all"))
        other = make()
        await other.open()
        await other.record("by another")
        await other.close()
        await ledger.close()
        found = await self.notes(tmp_path)
        assert sorted(note[:14] for note in found) == sorted(
            ["policy epoch 0", "policy epoch 1", "policy epoch 2", "all", "by another"]
        )

    async def test_a_ledger_that_is_not_open_records_nothing(self, make, tmp_path):
        ledger = make()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.record("policy")
        await ledger.open()
        await ledger.close()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.record("policy")
        assert await self.notes(tmp_path) == []

    async def test_another_event_loop_may_record_a_policy_too(self, ledger, tmp_path):
        await asyncio.to_thread(asyncio.run, ledger.record("policy"))
        assert await self.notes(tmp_path) == ["policy"]

    async def test_a_renamed_budget_is_named_at_the_start(self, make, clock, caplog):
        """Under a new name it is full again, so whoever starts has to be told: of all that is spent, and not yet over."""
        old = [
            LIFE,
            UNIT,
            pure("unspent", window=None),
            pure("analyst-quota", key="unit/consumer", window=None),
        ]
        ledger = make(old)
        await ledger.open()
        await ledger.charge([(0, b"a", TENTH), (1, b"a", TENTH), (3, b"a", TENTH)])
        await ledger.close()
        assert "not configured" not in caplog.text
        renamed = [pure("Life_time", 5.0, window=None), pure("daily"), pure("analysts-quota", window=None)]
        ledger = make(renamed)
        await ledger.open()
        (record,) = [record for record in caplog.records if "not configured" in record.getMessage()]
        text = record.getMessage()
        assert record.levelname == "WARNING"
        assert "'life' (similar: 'Life_time')" in text
        assert "'unit'," in text
        assert "'analyst-quota' (similar: 'analysts-quota')" in text
        assert "unspent" not in text
        assert "restore its name" in text
        await ledger.close()
        caplog.clear()
        clock.now += DAY  # a window that is over has nothing to refill; a lifetime is never over
        ledger = make(renamed)
        await ledger.open()
        assert "'life'" in caplog.text
        assert "'unit'" not in caplog.text
        await ledger.close()
        caplog.clear()
        ledger = make([*renamed, *old])
        await ledger.open()
        assert "not configured" not in caplog.text
        await ledger.close()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"window": None}, "until its window is over"),
            ({"key": "global"}, "until its window is over"),
        ],
    )
    async def test_nobody_is_told_to_rename_what_is_spent(self, make, change, words):
        ledger = make([UNIT])
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT)])
        await ledger.close()
        with pytest.raises(ConfigError, match="and so would a new name: restore the old value") as caught:
            await make([pure("unit", **change)]).open()
        assert words in str(caught.value)
