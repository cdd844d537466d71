"""Swaps that bring other budgets, quotas or another mode, while messages are released."""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Ledger, MemoryStore, open_store
from dpmesh.mesh.mesh import Mesh
from dpmesh.policy import Policy, loaded_types
from dpmesh.v1 import policy_pb2
from tests.contract.suite import DAY, Clock, pure
from tests.support.protos import compiled
from tests.support.steady import no_time_passes

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
      double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; }
    message Kept { string id = 1 [(dpmesh.v1.field).unit = {}];
      bool a = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {epoch: {seconds: 604800}}}]; }
    service Reports { rpc Send(Report) returns (Report); }"""
)
NOW = 1000.5 * DAY


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """A swap looks at all loaded types, and other tests of this process load dearer ones."""
    monkeypatch.setattr(loaded_types, "_imported", lambda: iter(()))


def budget(name="unit", epsilon=4.0, **more):
    terms = {"name": name, "key": "unit", "epsilon": epsilon, "accounting": "pure", "window": "24h", **more}
    return policy_pb2.Budget(**terms)


def quota(name, under="unit", epsilon=1.0, **more):
    return policy_pb2.Quota(name=name, under=under, epsilon=epsilon, **more)


def policy(*budgets, quotas=(), **more):
    return policy_pb2.Policy(budgets=budgets, quotas=quotas, **more)


def opened(first=None, clock=None, url="memory:", **more):
    config = {
        "ledger": {"url": url},
        "budget": [{"name": "local", "key": "unit", "epsilon": 9, "accounting": "pure", "window": "24h"}],
        **more,
    }
    return dpmesh.open(config, policy=first or policy(budget()), clock=clock or Clock(NOW))


async def left(mesh, unit="N1", **more):
    """How many messages of a unit can be released; it releases them."""
    for count in range(100):
        try:
            await mesh.release(TYPES.Report(id=unit, a=0.5), **more)
        except BudgetExhaustedError:
            return count
    raise AssertionError


async def spent(mesh):
    return {account.budget: account.spent // AMOUNT for account in await mesh.ledger.accounts(unit=b"N1")}


async def test_a_smaller_cap_holds_at_once_and_a_larger_one_from_the_next_window():
    clock = Clock(NOW)
    async with opened(clock=clock) as mesh:
        await mesh.release(TYPES.Report(id="N1", a=0.5))
        await mesh.swap(policy(budget(epsilon=2.0)))
        assert (await left(mesh), await left(mesh, "N2")) == (1, 2)
        await mesh.swap(policy(budget(epsilon=6.0)))
        assert (await left(mesh), await left(mesh, "N2"), await left(mesh, "N3")) == (0, 0, 2)
        clock.now += DAY / 2
        assert await left(mesh) == 6


async def test_the_budgets_of_the_configuration_are_back_under_a_policy_without_any():
    async with opened() as mesh:
        await mesh.swap(policy())
        assert await left(mesh) == 9
        await mesh.swap(policy(budget()))
        assert await left(mesh) == 4
        assert await spent(mesh) == {"local": 9, "unit": 4}
        assert [budget.name for budget in mesh.ledger.budgets] == ["unit", "local"]


async def test_budgets_in_any_order_are_charged_by_their_names():
    async with opened(policy(budget("one", 3.0), budget("two", 4.0))) as mesh:
        await mesh.release(TYPES.Report(id="N1", a=0.5))
        await mesh.swap(policy(budget("three", 8.0), budget("two", 4.0), budget("one", 3.0)))
        await mesh.release(TYPES.Report(id="N1", a=0.5))
        assert await spent(mesh) == {"one": 2, "two": 2, "three": 1}
        await mesh.swap(policy(budget("two", 4.0)))
        await mesh.release(TYPES.Report(id="N1", a=0.5))
        assert await spent(mesh) == {"one": 2, "two": 3, "three": 1}


async def test_what_is_under_way_is_charged_to_the_budgets_with_which_it_began():
    async with opened(policy(budget("old"), quotas=[quota("old-quota", "old")])) as mesh:
        before = mesh.snapshot
        assert before.has_quotas
        stream = mesh.stream(direction="request", consumer="c")
        await stream.release(TYPES.Report(id="N1", a=0.5))
        await mesh.swap(policy(budget("new", 2.0)))
        assert not mesh.snapshot.has_quotas
        assert await left(mesh, consumer="c") == 2
        with pytest.raises(BudgetExhaustedError, match="old-quota"):
            await stream.release(TYPES.Report(id="N1", a=0.5))
        stream.close()
        assert await left(mesh, snapshot=before, consumer="d") == 1
        assert await spent(mesh) == {"old": 2, "new": 2}


async def test_quotas_come_and_go():
    async with opened() as mesh:
        assert not mesh.snapshot.has_quotas
        await mesh.swap(policy(budget(epsilon=9.0), quotas=[quota("each", epsilon=2.0)]))
        clock = await left(mesh, consumer="c"), await left(mesh, consumer="d")
        assert clock == (2, 2)
        await mesh.swap(policy(budget()))
        assert await left(mesh, consumer="c") == 0


async def test_what_happens_on_exhaustion_changes_too():
    async with opened(policy(budget(epsilon=1.0))) as mesh:
        assert await left(mesh) == 1
        await mesh.swap(policy(budget(epsilon=1.0, on_exhausted="suppress")))
        assert (await mesh.release(TYPES.Report(id="N1", a=0.5))).decision == "suppressed"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (policy(budget(), budget("new"), quotas=[quota("q", "nothing")]), "nothing"),
        (policy(quotas=[quota("q")]), "quotas"),
        (policy(budget(epsilon=-1.0)), "epsilon"),
        (policy(budget(epsilon=40.0, accounting="zcdp", delta=1e-6)), "budget.accounting.*refill"),
        (policy(budget(window="lifetime")), "budget.window.*refill"),
        (policy(budget(), budget("life", 9.0, window="lifetime")), "budget.epsilon.*lifetime"),
        (policy(budget(key="global")), "no budget|budget.key"),
        (policy(budget(), mode=policy_pb2.OBSERVE), "from enforce to observe"),
    ],
)
async def test_budgets_that_can_t_be_adopted_leave_the_old_policy_in_force(other, text):
    async with opened(policy(budget(), budget("life", 8.0, window="lifetime"))) as mesh:
        await mesh.release(TYPES.Report(id="N1", a=0.5))
        before, budgets = mesh.snapshot, mesh.ledger.budgets
        with pytest.raises((ConfigError, dpmesh.errors.AnnotationError), match=text):
            await mesh.swap(other)
        assert (mesh.snapshot, mesh.ledger.budgets) == (before, budgets)
        assert await left(mesh) == 3


async def test_the_file_of_a_policy_that_the_ledger_refuses_is_named(tmp_path):
    (tmp_path / "other.yaml").write_text("budgets: [{name: unit, epsilon: 4, delta: 1e-6, window: 24h}]\n")
    async with opened() as mesh:
        with pytest.raises(ConfigError, match=r"other\.yaml: budget\.accounting"):
            await mesh.swap(tmp_path / "other.yaml")


class Failing(MemoryStore):
    """A store whose adoptions fail, or take a while."""

    error: Exception | None = None
    seconds = 0.0

    async def adopt(self, budgets, now):
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return await super().adopt(budgets, now)


async def test_a_ledger_that_can_t_answer_leaves_the_old_policy_in_force():
    store = Failing()
    ledger = Ledger(store, [pure("unit", 4.0)], clock=Clock(NOW), timeout=0.3)
    async with Mesh(Policy(), ledger) as mesh:
        store.error = LedgerError("out of order")
        before = mesh.snapshot
        with pytest.raises(LedgerError, match="out of order"):
            await mesh.swap(policy(budget(epsilon=2.0)))
        assert mesh.snapshot is before
        assert await left(mesh) == 4
        store.error, store.seconds = None, 0.6
        with pytest.raises(LedgerError, match="did not answer"):
            await mesh.swap(policy(budget(epsilon=2.0), budget("new")))
        assert mesh.snapshot is before
        # It is adopted late, as a whole, and the old policy goes on under the smaller of the caps.
        await asyncio.sleep(0.5)
        assert [budget.name for budget in ledger.budgets] == ["unit", "new"]
        assert await left(mesh, "N2") == 2
        store.seconds = 0.0
        await mesh.swap(policy(budget("new"), budget(epsilon=2.0)))
        assert (await left(mesh, "N2"), await left(mesh, "N3")) == (0, 2)


async def test_observe_becomes_enforce_at_once_and_never_back():
    message = TYPES.Report(id="N1", a=0.25)
    async with opened(mode="observe") as mesh:
        assert (await mesh.release(message)).message.a == 0.25
        stream = mesh.stream(direction="request")
        assert (await stream.release(message)).decision == "observed"
        checked = mesh._corridor.begin(message, "", "request", "", mesh.snapshot)
        await mesh.swap(policy(budget(), mode=policy_pb2.ENFORCE))
        assert not mesh.observing
        for receipt in (
            await mesh._corridor.finish(checked),
            await stream.release(message),
        ):
            assert receipt.decision == "released"
        with pytest.raises(BudgetExhaustedError):
            await stream.release(message)
        stream.close()
        for back in (policy(budget(), mode=policy_pb2.OBSERVE), policy(budget())):
            with pytest.raises(ConfigError, match="from enforce to observe"):
                await mesh.swap(back)
        assert not mesh.observing


class Waiting(MemoryStore):
    """A store whose debits wait until the test lets them go, and then may fail."""

    def __init__(self):
        super().__init__()
        self.asked, self.going, self.error = asyncio.Event(), asyncio.Event(), None

    async def debit(self, batch):
        self.asked.set()
        await self.going.wait()
        if self.error is not None:
            raise self.error
        return await super().debit(batch)


@pytest.mark.parametrize("kind", ["Report", "Kept"])
@pytest.mark.parametrize("error", [None, LedgerError("down")])
async def test_what_waits_for_the_ledger_in_observe_mode_leaves_protected_or_not_at_all(kind, error):
    store, message = Waiting(), getattr(TYPES, kind)(id="N1", a=1)
    ledger = Ledger(store, [pure("unit", 9.0, window=7 * DAY)], clock=Clock(NOW))
    async with Mesh(Policy(), ledger, mode="observe") as mesh:
        waits = asyncio.create_task(mesh.release(message))
        await store.asked.wait()
        mesh._corridor.enforce()  # What a swap does when the new mode is in force.
        store.error = error
        store.going.set()
        if error is None:
            assert (await waits).decision == "released"
            (account,) = await ledger.accounts()
            usual = Ledger(MemoryStore(), ledger.budgets, clock=Clock(NOW))
            async with Mesh(Policy(), usual) as other:
                await other.release(message)
                assert account.spent == (await usual.accounts())[0].spent, "it is charged once"
        else:
            with pytest.raises(LedgerError):
                await waits


async def test_memoized_answers_are_paid_in_windows_of_whole_epochs_only(tmp_path):
    clock, kept, url = Clock(NOW), TYPES.Kept(id="N1", a=True), f"sqlite:///{tmp_path}/ledger.db"
    async with opened(policy(budget(window="168h")), clock=clock, url=url) as mesh:
        await mesh.release(kept)
        daily = Ledger(open_store(url), [pure("unit", 4.0)], clock=clock)
        clock.now = 1008 * DAY
        await daily.open()
        await daily.charge([(0, b"x", 1)])  # Another holder begins a day.
        with pytest.raises(LedgerError, match="window of another length"):
            await mesh.release(kept)
        wasted = await spent(mesh)
        with pytest.raises(LedgerError, match="window of another length"):
            await mesh.release(kept)
        assert await spent(mesh) == wasted, "it is known, so nothing is charged"
        await daily.close()
        clock.now = 1009 * DAY
        # The rest of the week is no whole epoch either; the next week is.
        with pytest.raises(LedgerError, match="window of another length"):
            await mesh.release(kept)
        clock.now = 1015 * DAY
        assert (await mesh.release(kept)).decision == "released"


EPSILONS = st.sampled_from([1.0, 2.0, 3.0, 5.0])
STEP = st.one_of(
    st.tuples(st.just("swap"), EPSILONS, st.booleans()),
    st.tuples(st.just("send"), st.integers(1, 6), st.just(None)),
    st.tuples(st.just("clock"), st.sampled_from([DAY / 4, DAY]), st.just(None)),
)


@settings(max_examples=40)
@given(st.lists(STEP, max_size=12))
def test_nobody_gets_more_than_the_caps_of_a_window_and_nobody_less(steps):
    asyncio.run(check(steps))


async def check(steps) -> None:
    """Swaps while tasks release, against a model that only knows the caps."""
    clock = Clock(NOW)
    store = MemoryStore()
    ledger = Ledger(store, [pure("unit", 4.0)], clock=clock, monotonic=no_time_passes)
    async with Mesh(Policy(), ledger) as mesh:
        spends: Counter[int] = Counter()
        cap, coming, day = 4.0, 4.0, int(clock.now // DAY)
        most = {day: cap}

        async def send(unit: str) -> bool:
            with suppress(BudgetExhaustedError):
                await mesh.release(TYPES.Report(id=unit, a=0.5))
                spends[int(clock.now // DAY)] += unit == "N1"
                return True
            return False

        for kind, what, busy in steps:
            if kind == "clock":
                clock.now += what
                if int(clock.now // DAY) > day:
                    day, cap = int(clock.now // DAY), coming
                    most[day] = cap
            elif kind == "send":
                before = spends[day]
                results = await asyncio.gather(*[send("N1") for _ in range(what)])
                assert sum(results) == min(what, max(0, int(cap) - before))
            else:
                tasks = [asyncio.create_task(send("N1")) for _ in range(3)] if busy else []
                await asyncio.sleep(0)
                await mesh.swap(policy(budget(epsilon=what)))
                await asyncio.gather(*tasks)
                coming, cap = what, min(cap, what)
        assert all(spends[day] <= most[day] for day in most)
        await ledger.close()
        await ledger.open()
        assert sum(account.lifetime for account in await ledger.accounts()) == sum(spends.values()) * AMOUNT
