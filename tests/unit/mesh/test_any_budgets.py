"""Budgets by messages and labels, and what is packed in them through several Anys: wrapping gets around none."""

import pytest
from google.protobuf.any_pb2 import Any

import dpmesh
from dpmesh.errors import BudgetExhaustedError
from tests.support.protos import compiled

TYPES = compiled(
    """message Inner { bool b = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
    message Mid { google.protobuf.Any any = 1; bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
    message Labelled { option (dpmesh.v1.message) = {labels: "health"}; google.protobuf.Any any = 1; }
    message Outer { google.protobuf.Any any = 1; }"""
)


def packed(message):
    found = Any()
    found.Pack(message)
    return found


def twice(message):
    return packed(packed(message))


def settings(**match):
    everything = {"name": "all", "key": "global", "epsilon": 100.0, "accounting": "pure"}
    return {
        "ledger": {"url": "memory:"},
        "budget": [everything, {**everything, "name": "part", "epsilon": 2.0, **match}],
    }


@pytest.mark.parametrize("pack", [packed, twice])
@pytest.mark.parametrize("wraps", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "match"),
    [("Mid", {"messages": [f"{TYPES.package}.Mid"]}), ("Labelled", {"labels": ["health"]})],
)
async def test_a_budget_pays_for_all_that_a_fitting_message_holds(pack, wraps, kind, match):
    message = getattr(TYPES, kind)(any=pack(TYPES.Inner(b=True)))
    for _ in range(wraps):
        message = TYPES.Outer(any=pack(message))
    async with dpmesh.open(settings(**match)) as mesh:
        await mesh.release(message)
        spent = {account.budget: account.spent for account in await mesh.ledger.accounts()}
        assert spent["part"] == spent["all"]
        for _ in range(1 if kind == "Labelled" else 0):
            await mesh.release(message)
        with pytest.raises(BudgetExhaustedError, match="'part'"):
            await mesh.release(message)


async def test_an_open_message_in_another_one_is_not_got_around_either():
    """Neither in one without rules, nor in a field without a rule of a protected one."""
    more = compiled(
        """message Sealed { option (dpmesh.v1.message) = {labels: "health"}; google.protobuf.Any any = 1; }
        message Plain { Sealed sealed = 1; }
        message Guarded { Sealed sealed = 1; bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
        message Inner { bool b = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }"""
    )
    for match in ({"labels": ["health"]}, {"messages": [f"{more.package}.Sealed"]}):
        for kind in (more.Plain, more.Guarded):
            async with dpmesh.open(settings(**match)) as mesh:
                await mesh.release(kind(sealed=more.Sealed(any=packed(more.Inner(b=True)))))
                spent = {account.budget: account.spent for account in await mesh.ledger.accounts()}
                assert spent["part"] == spent["all"] > 0
