"""Releases against quotas, and budgets that fit some RPCs only."""

import asyncio
import logging
import random
from collections import Counter

import pytest

import dpmesh
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ProtectionError
from tests.support.reports import DAY, QUOTA, TYPES, charged, quotas, report, settings


async def test_each_consumer_has_a_quota_under_the_units_one_budget():
    async with dpmesh.open(quotas()) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        with pytest.raises(BudgetExhaustedError, match="'each'"):
            await mesh.release(report(), consumer="a")
        await mesh.release(report("N2"), consumer="a")
        await mesh.release(report(), consumer="b")
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report(), consumer="b")
        assert caught.value.budget == "unit-day"
        assert "N1" not in str(caught.value)


@pytest.mark.parametrize("way", ["release", "release_now", "stream"])
async def test_a_refused_quota_leaves_the_budget_uncharged(way):
    async with dpmesh.open(quotas()) as mesh:
        streams = {consumer: mesh.stream(consumer=consumer) for consumer in "ab"}

        async def send(consumer):
            if way == "stream":
                return await streams[consumer].release(report())
            now = mesh.release_now(report(), consumer=consumer) if way == "release_now" else None
            return now or await mesh.release(report(), consumer=consumer)

        for _ in range(2):
            await send("a")
        for _ in range(5):
            with pytest.raises(BudgetExhaustedError, match="'each'"):
                await send("a")
        await send("b")
        assert await charged(mesh) == {"unit-day": [3.0], "each": [1.0, 2.0]}


async def test_a_refused_budget_leaves_the_quota_uncharged():
    async with dpmesh.open(quotas()) as mesh:
        for consumer in "aab":
            await mesh.release(report(), consumer=consumer)
        with pytest.raises(BudgetExhaustedError, match="'unit-day'"):
            await mesh.release(report(), consumer="c")
        assert await charged(mesh) == {"unit-day": [3.0], "each": [1.0, 2.0]}


async def test_a_quota_may_suppress_where_its_budget_refuses():
    async with dpmesh.open(quotas({"on_exhausted": "suppress"})) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        assert (await mesh.release(report(b=True), consumer="a")).decision == "suppressed"
        await mesh.release(report(), consumer="b")
        with pytest.raises(BudgetExhaustedError, match="'unit-day'"):
            await mesh.release(report(), consumer="b")


async def test_a_quota_too_small_for_a_message_refuses_its_consumers_and_no_others():
    async with dpmesh.open(quotas({"epsilon": 0.5, "consumers": ["small*"]})) as mesh:
        for _ in range(2):
            with pytest.raises(BudgetExhaustedError, match="'each'"):
                await mesh.release(report(), consumer="small-one")
        await mesh.release(report(), consumer="other")
        assert await charged(mesh) == {"unit-day": [1.0]}


async def test_aggregates_have_quotas_under_the_global_budget():
    async with dpmesh.open(quotas({"under": "fleet-day", "epsilon": 1.0})) as mesh:
        for consumer in ("a", "b"):
            await mesh.release(TYPES.Total(sum=5), consumer=consumer)
            with pytest.raises(BudgetExhaustedError, match=r"'each'|'fleet-day'"):
                await mesh.release(TYPES.Total(sum=5), consumer=consumer)
        assert await charged(mesh) == {"fleet-day": [2.0], "each": [1.0, 1.0]}


async def test_a_consumer_that_is_no_text_is_refused_without_its_name():
    async with dpmesh.open(quotas()) as mesh:
        for consumer in ("\ud800-secret", 7, None):
            with pytest.raises(ProtectionError) as caught:
                await mesh.release(report(), consumer=consumer)
            assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
        assert await charged(mesh) == {}


async def test_budgets_by_method_and_direction_are_separate():
    budget = settings()["budget"][0]
    scoped = [
        {**budget, "name": "send", "epsilon": 1.0, "methods": ["/a.B/Send"]},
        {**budget, "name": "rest", "methods": ["/a.B/Ask"], "directions": ["response"]},
    ]
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": scoped}) as mesh:
        await mesh.release(report(), method="/a.B/Send")
        with pytest.raises(BudgetExhaustedError, match="'send'"):
            await mesh.release(report(), method="/a.B/Send")
        stream = mesh.stream(method="/a.B/Ask", direction="response")
        for _ in range(3):
            await stream.release(report())
        for method in ("/a.B/Ask", ""):
            with pytest.raises(AnnotationError, match="no-budget"):
                await mesh.release(report(), method=method)


async def test_observe_accounts_for_quotas_and_refuses_nothing(caplog):
    with caplog.at_level(logging.WARNING, logger="dpmesh"):
        async with dpmesh.open(quotas(mode="observe")) as mesh:
            for _ in range(3):
                assert (await mesh.release(report(), consumer="who-asks")).decision == "observed"
            assert await charged(mesh) == {"unit-day": [2.0], "each": [2.0]}
    assert "'each'" in caplog.text
    assert "who-asks" not in caplog.text


async def test_a_thousand_at_once_against_a_quota_for_ten():
    async with dpmesh.open(quotas({"epsilon": 10.0}, unit={"epsilon": 15.0})) as mesh:
        calls = [mesh.release(report(), consumer="ab"[number % 2]) for number in range(1000)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        released = [number % 2 for number, one in enumerate(outcomes) if not isinstance(one, Exception)]
        assert all(isinstance(one, (dpmesh.Receipt, BudgetExhaustedError)) for one in outcomes)
        assert len(released) == 15
        assert max(released.count(0), released.count(1)) <= 10
        assert (await charged(mesh))["unit-day"] == [15.0]


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_released_is_what_all_caps_cover_and_nothing_else_is_charged(seed):
    """Against a model: sums for each account, and a release goes through exactly if all of its accounts cover it."""
    draw = random.Random(seed)
    budget = settings()["budget"][0]
    methods = ("/a.B/Send", "/a.B/Ask")
    config = {
        "ledger": {"url": "memory:"},
        "budget": [
            {**budget, "epsilon": 12.0},
            {**budget, "name": "ask", "epsilon": 5.0, "methods": methods[1:]},
        ],
        "quota": [
            {**QUOTA, "epsilon": 6.0},
            {**QUOTA, "name": "few", "epsilon": 2.0, "consumers": ["c1"], "directions": ["response"]},
            {**QUOTA, "name": "asked", "under": "ask", "epsilon": 3.0},
        ],
    }
    caps = {"unit-day": 12, "ask": 5, "each": 6, "few": 2, "asked": 3}
    now = [10 * DAY]
    model = Counter()
    async with dpmesh.open(config, clock=lambda: now[0]) as mesh:
        for step in range(400):
            if step % 150 == 149:
                now[0] += DAY
                model.clear()
            unit, consumer, method = draw.choice("NM"), draw.choice(["", "c1", "c2"]), draw.choice(methods)
            direction = draw.choice(["request", "response"])
            accounts = [("unit-day", unit), ("each", unit, consumer)]
            if method == "/a.B/Ask":
                accounts += [("ask", unit), ("asked", unit, consumer)]
            if consumer == "c1" and direction == "response":
                accounts.append(("few", unit, consumer))
            covered = all(model[account] < caps[account[0]] for account in accounts)
            release = mesh.release(report(unit), method=method, direction=direction, consumer=consumer)
            if covered:
                await release
                model.update(accounts)
            else:
                with pytest.raises(BudgetExhaustedError) as caught:
                    await release
                assert any(account[0] == caught.value.budget for account in accounts)
        await mesh.ledger.close()
        await mesh.ledger.open()
        for name in caps:
            held = (entry.spent_at(now[0]) for entry in await mesh.ledger.accounts(name))
            assert sorted(amount / 1e9 for amount in held if amount) == sorted(
                amount for account, amount in model.items() if account[0] == name
            )
