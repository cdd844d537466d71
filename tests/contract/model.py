"""Random holders, accounts, crashes and clocks against a model that only knows arithmetic."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dpmesh.accounting import AMOUNT, window_start
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Ledger, LedgerAdmin, Store, account_hash
from dpmesh.ledger.audit.verify import verify
from tests.contract.suite import DAY, Clock, pure

BUDGETS = [pure("unit"), pure("all", 3.0, key="global", window=3 * DAY), pure("life", 2.0, window=None)]
UNITS = [b"a", b"b"]

COSTS = st.one_of(st.integers(1, AMOUNT // 3), st.sampled_from([1, AMOUNT // 10, AMOUNT, AMOUNT + 1]))
CHARGE = st.one_of(
    st.tuples(st.sampled_from([0, 2]), st.sampled_from(UNITS), COSTS),
    st.tuples(st.just(1), st.just(b""), COSTS),
)
CHARGES = st.lists(CHARGE, min_size=1, max_size=3)
STEP = st.one_of(
    st.tuples(st.just("charge"), st.integers(0, 1), st.lists(CHARGES, min_size=1, max_size=6)),
    st.tuples(st.just("charge"), st.integers(0, 1), st.lists(CHARGES, min_size=1, max_size=6)),
    st.tuples(st.just("clock"), st.sampled_from([-3 * DAY, -DAY, -1, 1, DAY // 2, DAY, 3 * DAY]), st.none()),
    st.tuples(st.just("crash"), st.integers(0, 1), st.none()),
    st.tuples(st.just("restart"), st.integers(0, 1), st.none()),
)
STEPS = st.lists(STEP, max_size=40)


class LedgerModel:
    """Inherited by the tests of each store."""

    EXAMPLES = 100

    async def prepare(self, place: Path) -> Clock:
        """Makes a ledger ready; returns the clock that its windows follow."""
        return Clock()

    def store(self, place: Path) -> Store:
        raise NotImplementedError

    def admin(self, place: Path) -> LedgerAdmin | None:
        """Those of the stores at a place, where there are any."""
        return None

    def test_two_holders_never_overspend(self):
        @settings(max_examples=self.EXAMPLES)
        @given(STEPS)
        def holds(steps):
            with tempfile.TemporaryDirectory() as place:
                asyncio.run(self.check(Path(place), steps, holders=2))

        holds()

    def test_one_holder_spends_everything(self):
        @settings(max_examples=self.EXAMPLES)
        @given(STEPS)
        def holds(steps):
            alone = [(kind, which if kind == "clock" else 0, what) for kind, which, what in steps]
            with tempfile.TemporaryDirectory() as place:
                asyncio.run(self.check(Path(place), [s for s in alone if s[0] != "crash"], holders=1))

        holds()

    async def check(self, place: Path, steps, holders: int) -> None:
        clock = await self.prepare(place)
        ledgers = [Ledger(self.store(place), BUDGETS, clock=clock, timeout=60.0) for _ in range(holders)]
        for ledger in ledgers:
            await ledger.open()
        released: Counter[tuple[int, bytes, int]] = Counter()
        dropped = []
        for kind, which, what in steps:
            if kind == "clock":
                clock.now += which
            elif kind == "charge":
                before = ledgers[which]._leases._starts()
                results = await asyncio.gather(
                    *[ledgers[which].charge(c) for c in what], return_exceptions=True
                )
                starts = ledgers[which]._leases._starts()
                assert all(a <= b for a, b in zip(before, starts, strict=True)), "time moved back"
                for charges, result in zip(what, results, strict=True):
                    if result is None:
                        released.update({(i, key, starts[i]): 0 for i, key, _ in charges})
                        for i, key, amount in charges:
                            released[i, key, starts[i]] += amount
                    else:
                        assert isinstance(result, BudgetExhaustedError), result
                if None in results:
                    assert all(
                        s >= window_start(clock.now, b.window) for s, b in zip(starts, BUDGETS, strict=True)
                    )
                if holders == 1:
                    assert all(start <= starts[i] for i, _, start in released), (
                        "an old window was charged again"
                    )
                    self.check_refusals(released, starts, what, results)
                assert all(amount <= BUDGETS[i].cap for (i, _, _), amount in released.items())
            else:
                if kind == "restart":
                    await ledgers[which].close()
                else:
                    dropped.append(ledgers[which])  # a crash: its leases are never returned
                ledgers[which] = Ledger(self.store(place), BUDGETS, clock=clock, timeout=60.0)
                await ledgers[which].open()
            await self.check_debits(ledgers[0], released)
        for ledger in ledgers:
            await ledger.close()
        if holders == 1:
            reader = Ledger(self.store(place), BUDGETS, clock=clock, timeout=60.0)
            await reader.open()
            await self.check_debits(reader, released, exactly=True)
            await self.check_odometers(reader, released)
            await reader.close()
        for ledger in dropped:
            await ledger._store.close()
        admin = self.admin(place)
        if admin is not None:
            async with admin.view() as view:
                assert await verify(view) == []

    @staticmethod
    def check_refusals(released, starts, what, results) -> None:
        """A single holder refuses only what doesn't fit even after all that was admitted with it."""
        for charges, result in zip(what, results, strict=True):
            if result is not None:
                wanted: Counter[tuple[int, bytes]] = Counter()
                for i, key, amount in charges:
                    wanted[i, key] += amount
                assert any(released[i, k, starts[i]] + n > BUDGETS[i].cap for (i, k), n in wanted.items())

    @staticmethod
    async def check_debits(ledger: Ledger, released, exactly: bool = False) -> None:
        """What is released is debited, and no cap is exceeded."""
        debited = {(a.budget, a.account, a.window_start): a.spent for a in await ledger.accounts()}
        assert all(a.spent <= a.cap for a in await ledger.accounts())
        newest: dict[tuple[str, str], int] = {}
        for budget, account, start in debited:
            newest[budget, account] = start
        for (i, key, start), amount in released.items():
            name = (BUDGETS[i].name, account_hash(ledger.secret, key).hex())
            if amount and newest[name] == start:
                assert amount <= debited[*name, start]
                assert not exactly or amount == debited[*name, start]

    @staticmethod
    async def check_odometers(ledger: Ledger, released) -> None:
        """What one holder released in all windows, and nothing else: it came back from every slice."""
        everything: Counter[tuple[str, str]] = Counter()
        for (i, key, _), amount in released.items():
            everything[BUDGETS[i].name, account_hash(ledger.secret, key).hex()] += amount
        lifetimes = {(a.budget, a.account): a.lifetime for a in await ledger.accounts()}
        assert {name: n for name, n in lifetimes.items() if n} == {
            name: n for name, n in everything.items() if n
        }
