"""The corridor: check, charge, sample. What is refused, what is charged, and what never leaves."""

import asyncio
import gc
import sys

import pytest

import dpmesh
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ProtectionError
from dpmesh.ledger import MemoryStore
from tests.support.meshes import SteadyLedger, assembled
from tests.support.protos import compiled
from tests.support.reports import CAT, DAY, NUM, TYPES, report, settings


async def test_a_release_is_charged_to_its_unit_until_the_budget_is_spent():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(3):
            receipt = await mesh.release(report())
            assert (receipt.decision, receipt.epsilon, receipt.message.kept) == ("released", 1.0, "k")
            assert receipt.message.id not in ("N1", "")
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report())
        assert caught.value.budget == "unit-day"
        assert 0 < caught.value.retry_after <= DAY
        assert (await mesh.release(report("N2"))).decision == "released"


async def test_aggregates_are_charged_to_the_global_budget():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(2):
            await mesh.release(TYPES.Total(sum=5))
        with pytest.raises(BudgetExhaustedError, match="fleet-day"):
            await mesh.release(TYPES.Total(sum=5))


async def test_a_batch_is_all_or_nothing():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(3):
            await mesh.release(report("busy"))
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(TYPES.Batch(reports=[report("fresh"), report("busy")]))
        for _ in range(3):
            await mesh.release(report("fresh"))


async def test_one_unit_twice_in_a_batch_pays_twice():
    async with dpmesh.open(settings()) as mesh:
        receipt = await mesh.release(TYPES.Batch(reports=[report(), report()]))
        assert receipt.epsilon == 2.0
        await mesh.release(report())
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(report())


async def test_the_budget_renews_with_its_window_and_never_when_the_clock_goes_back():
    now = [10 * DAY + 5]
    async with dpmesh.open(settings(), clock=lambda: now[0]) as mesh:
        for _ in range(3):
            await mesh.release(report())
        first = (await mesh.release(report("other"))).message.id
        for moment in (now[0] - 3 * DAY, now[0] + 10):
            now[0] = moment
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(report())
        now[0] += DAY
        assert (await mesh.release(report())).decision == "released"
        assert (await mesh.release(report("other"))).message.id != first, "the pseudonym outlived its epoch"


async def test_suppress_sends_what_needs_no_noise_and_costs_nothing():
    async with dpmesh.open(settings(unit={"on_exhausted": "suppress"})) as mesh:
        for _ in range(3):
            await mesh.release(report())
        receipt = await mesh.release(report(b=True))
        assert (receipt.decision, receipt.epsilon) == ("suppressed", 0.0)
        assert receipt.message == TYPES.Report(id=receipt.message.id, kept="k")


async def test_a_release_that_no_budget_pays_for_is_refused():
    only_global = {"ledger": {"url": "memory:"}, "budget": [settings()["budget"][1]]}
    async with dpmesh.open(only_global) as mesh:
        for _ in range(2):
            with pytest.raises(AnnotationError, match="no-budget"):
                await mesh.release(report())


async def test_a_gaussian_does_not_fit_pure_accounting():
    async with dpmesh.open(settings()) as mesh:
        with pytest.raises(AnnotationError, match="accounting"):
            await mesh.release(TYPES.Noisy(g=1))


async def test_a_message_dearer_than_its_budget_is_a_configuration_error():
    async with dpmesh.open(settings(unit={"epsilon": 0.9})) as mesh:
        with pytest.raises(AnnotationError, match="over-budget"):
            await mesh.release(report())


async def test_zcdp_says_when_pure_accounting_would_do():
    budget = {"epsilon": 8.0, "delta": 1e-6, "accounting": "zcdp"}
    big = compiled(
        f"message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 4}}]; }}"
    )
    async with dpmesh.open(settings(unit=budget)) as mesh:
        with pytest.raises(AnnotationError, match="accounting = 'pure' admits it"):
            await mesh.release(big.M(id="x"))


async def test_an_exception_while_protecting_carries_no_value():
    async with dpmesh.open(settings()) as mesh:
        await mesh.release(report())

        def explode(snapshot, alias):
            raise ValueError(f"temperature was {snapshot}")

        route = mesh.snapshot.billing.price(TYPES.Report)
        object.__setattr__(route.plan, "build", explode)
        with pytest.raises(ProtectionError) as caught:
            await mesh.release(report())
        error = caught.value
        assert "50" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


async def test_a_thousand_at_once_against_a_budget_for_a_hundred():
    async with dpmesh.open(settings(unit={"epsilon": 100.0})) as mesh:
        outcomes = await asyncio.gather(
            *(mesh.release(report()) for _ in range(1000)), return_exceptions=True
        )
    assert sum(isinstance(outcome, dpmesh.Receipt) for outcome in outcomes) == 100
    assert sum(isinstance(outcome, BudgetExhaustedError) for outcome in outcomes) == 900


async def test_what_leaves_is_what_was_charged_for_though_the_caller_goes_on_with_its_message():
    asked, may_answer = asyncio.Event(), asyncio.Event()

    class SlowStore(MemoryStore):
        async def debit(self, batch):
            asked.set()
            await may_answer.wait()
            return await super().debit(batch)

    async with assembled(settings(), store=SlowStore()) as mesh:
        batch = TYPES.Batch(reports=[report("first")])
        waiting = asyncio.create_task(mesh.release(batch))
        await asked.wait()  # the charge is on its way to the store
        assert not waiting.done()
        batch.reports.add(id="uncharged")
        batch.reports[0].id = "other"
        may_answer.set()
        receipt = await waiting
        assert len(receipt.message.reports) == 1
        fresh = await mesh.release(TYPES.Batch(reports=[report("first")]))
        assert receipt.message.reports[0].id == fresh.message.reports[0].id


async def test_an_exception_while_charging_carries_no_id():
    async with dpmesh.open(settings()) as mesh:
        await mesh.release(report())

        def explode(message, consumer):
            raise ValueError(f"unit was {message.id}")

        object.__setattr__(mesh.snapshot.billing.price(TYPES.Report), "bill", explode)
        with pytest.raises(ProtectionError) as caught:
            await mesh.release(report())
        error = caught.value
        assert "N1" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


async def test_suppress_refuses_what_would_lack_a_required_field():
    types = compiled(
        f"message M {{ required string id = 1 [(dpmesh.v1.field).unit = {{}}]; required bool b = 2 [{CAT} = {{epsilon: 2}}]; }}",
        "proto2",
    )
    async with dpmesh.open(settings(unit={"on_exhausted": "suppress"})) as mesh:
        await mesh.release(types.M(id="a", b=True))
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(types.M(id="a", b=True))


async def test_release_now_only_spends_what_is_held():
    async with assembled(settings(unit={"epsilon": 100.0}), ledger=SteadyLedger) as mesh:
        assert mesh.release_now(report()) is None  # nothing is held yet, and nothing was charged
        assert await mesh.ledger.accounts() == []
        released = 0
        for _ in range(3):
            await mesh.release(report())
            released += 1
        while (receipt := mesh.release_now(report())) is not None:
            assert (receipt.decision, receipt.epsilon) == ("released", 1.0)
            assert receipt.message.id not in ("N1", "")
            released += 1
        assert released > 3, "no lease was held"
        (account,) = await mesh.ledger.accounts()
        assert account.spent == released * 10**9


async def test_release_now_charges_a_message_that_it_refuses_once():
    types = compiled(
        f"message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 nan: REJECT}}]; }}"
    )
    async with assembled(settings(unit={"epsilon": 100.0}), ledger=SteadyLedger) as mesh:
        for _ in range(3):
            await mesh.release(types.M(id="a", a=1))
        before = mesh.ledger.usage(0, b"a")[0]
        with pytest.raises(ProtectionError, match="NaN"):
            mesh.release_now(types.M(id="a", a=float("nan")))
        assert mesh.ledger.usage(0, b"a")[0] - before == 10**9
        with pytest.raises(ProtectionError, match="id is missing"):
            mesh.release_now(types.M(a=1))


async def test_release_now_leaves_everything_else_to_release():
    mesh = dpmesh.open(settings())
    assert mesh.release_now(report()) is None
    async with mesh:
        assert mesh.release_now(TYPES.Plain(s="x")).decision == "unprotected"
        await mesh.release(report())
    assert mesh.release_now(report()) is None
    async with dpmesh.open(settings(mode="observe")) as observing:
        for _ in range(2):
            assert observing.release_now(report()) is None
            assert (await observing.release(report())).decision == "observed"


@pytest.mark.parametrize(
    ("error", "unit", "budget"),
    [
        (BudgetExhaustedError, "N1", {"epsilon": 1.0}),
        (AnnotationError, "N1", {"methods": ["/other/*"]}),
        (ProtectionError, "", {}),
    ],
)
@pytest.mark.parametrize("way", ["release", "stream", "now"])
async def test_a_refused_message_is_gone_when_its_sender_lets_go_of_it(error, unit, budget, way):
    messages = [report(unit) for _ in range(8)]

    async def send(mesh, message):
        stream = mesh.stream()
        if way == "now" and mesh.release_now(message) is not None:
            return
        await (stream if way == "stream" else mesh).release(message)

    async with dpmesh.open(settings(unit=budget)) as mesh:
        refused = 0
        gc.disable()  # Nor does anything wait for the garbage to be collected.
        try:
            for message in messages:
                try:
                    await send(mesh, message)
                except error:
                    refused += 1
                message = None
            await asyncio.sleep(0)
            held = [sys.getrefcount(messages[index]) for index in range(len(messages))]
        finally:
            gc.enable()
    assert refused >= 7
    assert held == [2] * 8
