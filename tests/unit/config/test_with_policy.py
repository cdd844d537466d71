"""A policy document decides over budgets, quotas and mode, by the checks that dpmesh.toml has."""

from __future__ import annotations

import pytest

import dpmesh
from dpmesh import config as configuration
from dpmesh.config import with_policy
from dpmesh.errors import ConfigError
from dpmesh.policy import Policy
from dpmesh.policy.overlay_file import parse
from dpmesh.v1 import policy_pb2

BUDGET = {"name": "daily", "epsilon": 4.0, "key": "unit", "accounting": "pure", "window": "12h"}
LOCAL = {"ledger": {"url": "memory:"}, "budget": [{**BUDGET, "name": "local", "epsilon": 1.0}]}


def loaded(local=None, **document):
    settings = configuration.load(local or LOCAL, {})
    return with_policy(settings, parse(document, "policy.yaml"))


def refusal(**document):
    with pytest.raises(ConfigError) as caught:
        loaded(**document)
    return str(caught.value)


def test_a_policy_without_budgets_leaves_those_of_the_configuration_in_force():
    assert loaded(version="1") == configuration.load(LOCAL, {})


def test_the_budgets_and_quotas_of_a_policy_replace_all_of_the_configuration():
    quota = {"name": "partner", "under": "daily", "epsilon": 1, "consumers": ["spiffe://a/*"]}
    settings = loaded(budgets=[BUDGET], quotas=[quota])
    assert configuration.budgets(settings) == configuration.budgets(
        configuration.load({"budget": [BUDGET], "quota": [quota]}, {})
    )


def test_what_a_budget_leaves_out_has_the_default_of_dpmesh_toml():
    entry = {"name": "daily", "epsilon": 2, "delta": 1e-6}
    assert loaded(budgets=[entry]).budget == configuration.load({"budget": [entry]}, {}).budget


@pytest.mark.parametrize(("word", "mode"), [("ENFORCE", "enforce"), ("OBSERVE", "observe")])
def test_the_mode_of_a_policy_wins(word, mode):
    local = {**LOCAL, "mode": "observe" if mode == "enforce" else "enforce"}
    assert (loaded(local, mode=word).mode, loaded(local).mode) == (mode, local["mode"])


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"budgets": [{"epsilon": 1}]}, "budgets[0] (name ''): Object missing required field `name`"),
        (
            {"budgets": [{"name": "daily"}]},
            "budgets[0] (name 'daily'): Object missing required field `epsilon`",
        ),
        (
            {"budgets": [{**BUDGET, "key": "device"}]},
            "budgets[0] (name 'daily'): Invalid enum value 'device'",
        ),
        ({"budgets": [{**BUDGET, "window": "soon"}]}, "budget 'daily': window: 'soon' is not a window"),
        ({"budgets": [{**BUDGET, "epsilon": -1}]}, "budget 'daily': epsilon"),
        ({"budgets": [BUDGET, BUDGET]}, "two budgets have this name"),
        (
            {"quotas": [{"name": "q", "under": "local", "epsilon": 1}]},
            "a policy with quotas needs the budgets",
        ),
        (
            {"budgets": [BUDGET], "quotas": [{"name": "q", "under": "local", "epsilon": 1}]},
            "no budget has this name",
        ),
        (
            {"budgets": [BUDGET], "quotas": [{"name": "q", "under": "daily", "epsilon": 9}]},
            "is more than the",
        ),
        ({"budgets": [{**BUDGET, "colour": 1}]}, "budgets [0] colour: is not known here"),
        ({"budgets": BUDGET}, "budgets: must be a list"),
        ({"mode": "enforced"}, "mode: must be one of MODE_UNSPECIFIED, ENFORCE, OBSERVE"),
    ],
)
def test_mistakes_are_named(document, text):
    assert text in refusal(**document)


def test_a_mode_of_a_newer_version_is_refused():
    policy = policy_pb2.Policy()
    policy.mode = 7
    with pytest.raises(ConfigError, match="mode: this version of dpmesh does not know it"):
        with_policy(configuration.load(LOCAL, {}), policy)


async def test_a_mesh_opens_with_the_budgets_and_the_mode_of_its_policy():
    document = parse({"budgets": [BUDGET], "mode": "OBSERVE"}, "policy.yaml")
    async with dpmesh.open(LOCAL, policy=document) as mesh:
        assert [budget.name for budget in mesh.ledger.budgets] == ["daily"]
        assert mesh.observing


async def test_a_swap_brings_the_budgets_of_its_policy_and_does_not_lead_to_observe():
    async with dpmesh.open(LOCAL) as mesh:
        before = mesh.snapshot
        with pytest.raises(ConfigError, match="mode: a swap can't change it from enforce to observe"):
            await mesh.swap(parse({"mode": "OBSERVE"}, "policy.yaml"))
        assert mesh.snapshot is before
        await mesh.swap(parse({"budgets": [BUDGET]}, "policy.yaml"))
        assert "daily" in [budget.name for budget in mesh.ledger.budgets]


def test_the_digest_of_a_policy_names_the_overlays_alone():
    overlay = {"fields": {"acme.v1.Ack.id": {"public": {}}}}
    more = {"version": "2", "epoch": 7, "mode": "ENFORCE", "budgets": [BUDGET]}
    plain = Policy(parse(overlay, "policy.yaml"))
    assert Policy(parse({**overlay, **more}, "policy.yaml")).digest == plain.digest != Policy().digest
