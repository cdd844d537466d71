"""The contract, for PostgreSQL: a real server, whose clock is a file that the test writes."""

import asyncio
import math
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from dpmesh import Mesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Ledger
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.store import PostgresStore
from dpmesh.policy import Policy
from tests.contract.adoptions import AdoptionSuite
from tests.contract.model import LedgerModel
from tests.contract.rewinds import FAR, RewindSuite
from tests.contract.suite import DAY, TENTH, UNIT, Clock, LedgerSuite
from tests.support.protos import compiled


class DatabaseClock(Clock):
    """The database's clock, which the holders can't set."""

    def __init__(self, path, now: float = 1000.5 * DAY) -> None:
        self._path = path
        self._now = now
        self.now = now

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, value: float) -> None:
        self._now = value
        # At once: the server reads it whenever it likes, also while it still takes back what a holder has left.
        new = self._path.with_name(self._path.name + ".new")
        new.write_text(str(value).replace("inf", "Infinity"))
        new.replace(self._path)


class InPostgres:
    @pytest.fixture(autouse=True)
    def _databases(self, postgres):
        self._server = postgres
        self._names, self._clocks = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            self._folder.chmod(0o755)  # the server is another user
            yield
        for name in self._names.values():
            postgres.take_back_database(name)

    def store(self, place):
        return PostgresStore(self.url(place), timeout=60.0, monotonic=self.clock_of(place))

    def url(self, place):
        if place not in self._names:
            self._names[place] = self._server.lend_database()
        return self._server.url(self._names[place])

    def clock_of(self, place):
        if place not in self._clocks:
            self._clocks[place] = DatabaseClock(self._folder / f"{len(self._clocks)}")
        return self._clocks[place]

    def tell(self, place, now):
        self.clock_of(place).now = now

    async def prepare(self, place):
        """Makes the tables, and lets the database's clock be the test's."""
        await PostgresAdmin(self.url(place)).migrate()
        path = self.clock_of(place)._path
        await self._server.sql(
            self._names[place],
            "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
            f"$$SELECT pg_read_file('{path}')::double precision$$",
        )
        return self.clock_of(place)

    def admin(self, place):
        return PostgresAdmin(self.url(place))


class TestPostgresLedger(InPostgres, AdoptionSuite, LedgerSuite):
    @pytest.fixture(autouse=True)
    async def _prepared(self, _databases, tmp_path):
        await self.prepare(tmp_path)

    @pytest.fixture
    def clock(self, tmp_path):
        return self.clock_of(tmp_path)

    async def test_a_table_is_paid_for_in_the_window_of_its_epoch_by_a_holder_whose_clock_leads(
        self, clock, tmp_path
    ):
        types = compiled(
            """message Door { string id = 1 [(dpmesh.v1.field).unit = {}];
            bool open = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 0.5} memoize: {}}]; }"""
        )
        edge, holder = 1001.0 * DAY, Clock(0.0)
        clock.now = edge - 0.5
        store = PostgresStore(self.url(tmp_path), timeout=60.0, monotonic=holder)
        costs = []
        async with Mesh(Policy(), Ledger(store, [UNIT], timeout=60.0)) as mesh:
            for lead, now in ((0.0, -0.5), (1.0, -0.5), (1.5, 0.5), (1.5, 0.6)):
                holder.now, clock.now = lead, edge + now
                costs.append((await mesh.release(types.Door(id="a", open=True))).epsilon)
            (account,) = await mesh.ledger.accounts(unit=b"a")
        # The holder's clock leads by a second in the second message, which still belongs to the day before.
        assert costs == [1.0, 0.0, 1.0, 0.0]
        assert (account.window_start, account.spent, account.lifetime) == (edge, AMOUNT, 2 * AMOUNT)

    async def test_time_is_what_the_latest_holder_saw(self, make, clock):
        """Time is what the database says, whatever a holder's clock does."""
        first, second = make(clock=Clock(clock.now + DAY)), make(clock=Clock(0.0))
        for holder in (first, second):
            await holder.open()
        await first.charge([(0, b"a", AMOUNT)])
        for holder in (first, second):
            with pytest.raises(BudgetExhaustedError) as caught:
                await holder.charge([(0, b"a", 1)])
            assert caught.value.retry_after == DAY / 2
        clock.now += DAY
        await second.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await first.charge([(0, b"a", 1)])
        for holder in (first, second):
            await holder.close()

    async def test_an_old_lease_is_worthless_in_a_new_window(self, ledger, clock):
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])
        clock.now += DAY
        assert ledger.usage(0, b"a") is None
        assert not ledger.spend([(0, b"a", TENTH)])
        # Set back before anything was charged in the new window: the old one is in force again, with what was spent of it.
        clock.now -= DAY
        assert not ledger.spend([(0, b"a", TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 6 * TENTH + 1)])
        await ledger.charge([(0, b"a", 6 * TENTH)])
        (account,) = await ledger.accounts()
        # The lease that was given up has come back meanwhile.
        assert (account.window_start, account.spent) == (1000 * DAY, 9 * TENTH)
        await ledger.charge([(0, b"a", TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])

    async def test_what_another_holder_s_clock_made_worthless_comes_back_to_the_odometer(self, make, clock):
        """Holders' clocks make nothing worthless here. What the database's did, while it was ahead, comes back."""
        ledger = make()
        await ledger.open()
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])  # one more tenth is held
        clock.now += DAY
        await ledger.charge([(0, b"b", TENTH)])
        clock.now -= DAY
        await ledger.charge([(0, b"a", 2 * TENTH)])
        await ledger.close()
        (account,) = await self.accounts_of(make, b"a")
        assert (account.window_start, account.spent, account.lifetime) == (1001 * DAY, 2 * TENTH, 5 * TENTH)

    @staticmethod
    async def accounts_of(make, unit):
        reader = make()
        await reader.open()
        try:
            return await reader.accounts(unit=unit)
        finally:
            await reader.close()


class TestPostgresRewinds(InPostgres, RewindSuite):
    @pytest.fixture(autouse=True)
    async def _prepared(self, _databases, tmp_path):
        await self.prepare(tmp_path)

    @pytest.fixture
    def clock(self, tmp_path):
        return self.clock_of(tmp_path)

    async def test_a_holder_that_runs_on_goes_on(self, make, clock, tmp_path):
        """The database tells it the windows; what it has in hand is paid for."""
        ledger = make()
        await ledger.open()
        clock.now += FAR
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])  # one more tenth is held
        clock.now -= FAR
        await self.accept(tmp_path)
        assert ledger.spend([(0, b"a", TENTH)])
        await ledger.charge([(0, b"a", 6 * TENTH), (0, b"b", AMOUNT)])
        for unit in (b"a", b"b"):
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(0, unit, 1)])
        await ledger.close()
        await self.whole(tmp_path)

    async def test_no_charge_slips_in_between(self, make, clock, tmp_path):
        """Holders charge while it is accepted: nobody is debited in a window that was brought back, nor twice."""
        ledgers = [make() for _ in range(3)]
        for ledger in ledgers:
            await ledger.open()
        clock.now += FAR
        await ledgers[0].charge([(0, b"u0", AMOUNT)])
        clock.now -= FAR
        paid: Counter[bytes] = Counter()
        asked, enough = 0, math.inf

        async def work(ledger):
            nonlocal asked
            while asked < enough:
                unit = b"u%d" % (asked % 50)
                asked += 1
                with suppress(BudgetExhaustedError):
                    await ledger.charge([(0, unit, TENTH)])
                    paid[unit] += 1

        tasks = [asyncio.create_task(work(ledger)) for ledger in ledgers]
        while asked < 200:
            await asyncio.sleep(0.001)
        await self.accept(tmp_path)
        enough = asked + 600  # beyond the cap of every unit
        await asyncio.gather(*tasks)
        for ledger in ledgers:
            await ledger.close()
        assert paid[b"u0"] == 0
        assert max(paid.values()) <= 10
        assert {account.window_start for account in await self.accounts(tmp_path)} <= {1001 * DAY}
        await self.whole(tmp_path)


class TestPostgresModel(InPostgres, LedgerModel):
    EXAMPLES = 25

    async def check(self, place, steps, holders):
        await super().check(place, steps, holders)
        self._server.take_back_database(self._names.pop(place))  # The next example takes it.
