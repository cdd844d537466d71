"""What the ledger has just refused is refused from memory, for a moment."""

import pytest

import dpmesh
from dpmesh.errors import BudgetExhaustedError
from tests.support.meshes import assembled
from tests.support.reports import DAY, TYPES, quotas, report, settings


async def refusals(mesh, count, **more):
    """The distinct refusals of as many releases, one after the other."""
    found = []
    for _ in range(count):
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report(), **more)
        found.append(caught.value)
    assert len({id(error) for error in found}) == count
    return {(error.budget, error.retry_after and round(error.retry_after, -1)) for error in found}


async def test_who_has_nothing_left_does_not_have_the_ledger_asked_again_and_again():
    now = [1000 * DAY]
    config = settings(**quotas({"name": "each", "epsilon": 2.0}), unit={"epsilon": 100.0})
    async with assembled(config, clock=lambda: now[0], monotonic=lambda: 100.0) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        calls = mesh.ledger.charges
        calls.clear()
        assert await refusals(mesh, 50, consumer="a") == {("each", DAY)}
        assert len(calls) == 1
        await mesh.release(report(), consumer="b")
        await mesh.release(report("N2"), consumer="a")
        calls.clear()
        now[0] += DAY  # A new window is seen at once.
        await mesh.release(report(), consumer="a")
        assert len(calls) == 1


async def test_a_refusal_is_not_believed_for_long_nor_for_less():
    config, moment = settings(unit={"epsilon": 2.5}), [100.0]
    async with assembled(config, monotonic=lambda: moment[0]) as mesh:
        for _ in range(2):
            await mesh.release(report())
        calls = mesh.ledger.charges
        calls.clear()
        await refusals(mesh, 2)
        assert len(calls) == 1
        await mesh.release(TYPES.Half(id="N1"))
        calls.clear()
        moment[0] += 0.11
        await refusals(mesh, 2)
        assert len(calls) == 1
        await refusals(mesh, 2)
        moment[0] += 0.11
        await refusals(mesh, 2)
        assert len(calls) == 2


async def test_a_quota_smaller_than_one_message_promises_nothing_of_its_next_window():
    config = settings(**quotas({"name": "small", "epsilon": 0.5, "consumers": ["a"]}))
    async with dpmesh.open(config) as mesh:
        assert await refusals(mesh, 3, consumer="a") == {("small", None)}
        with pytest.raises(BudgetExhaustedError, match="waiting is no help"):
            await mesh.release(report(), consumer="a")
        await mesh.release(report(), consumer="b")


async def test_a_quota_that_suppresses_does_so_as_often_as_one_asks():
    config = settings(**quotas({"name": "each", "epsilon": 1.0, "on_exhausted": "suppress"}))
    async with dpmesh.open(config) as mesh:
        decisions = [(await mesh.release(report(), consumer="a")).decision for _ in range(4)]
    assert decisions == ["released"] + ["suppressed"] * 3
