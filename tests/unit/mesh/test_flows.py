"""Flows: what may leave on one direction of one method, and that no decision outlives the policy it was made under."""

import pytest

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import ConfigError, ProtectionError
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.meshes import SteadyLedger, assembled
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    service Station { rpc Ask(Plain) returns (Reading); rpc Report(stream Reading) returns (Plain);
        rpc Echo(Plain) returns (Plain); rpc Watch(Plain) returns (stream Plain); }"""
)
Reading, Plain = TYPES.Reading, TYPES.Plain


def name(method):
    return f"/{TYPES.package}.Station/{method}"


def config(**more):
    budget = {"name": "day", "key": "unit", "epsilon": 10.0, "accounting": "pure", "window": "24h"}
    return {"ledger": {"url": "memory:"}, "budget": [budget], **more}


async def swap(mesh):
    """Gives a mesh a policy under which Plain is protected, too."""
    overlays = policy_pb2.Policy()
    overlays.fields[f"{TYPES.package}.Plain.text"].suppress.SetInParent()
    await mesh.swap(overlays)


@pytest.fixture
async def mesh():
    async with assembled(config(), ledger=SteadyLedger) as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "request_", "response"),
    [("Ask", False, True), ("Report", True, False), ("Echo", False, False)],
)
async def test_a_flow_is_protected_by_what_its_method_declares(mesh, method, request_, response):
    flows = FlowTable(mesh)[name(method)]
    assert (flows.request.protected, flows.response.protected) == (request_, response)
    assert (flows.request.sensitive(), flows.response.sensitive()) == (request_, response)
    assert flows.request.attests() is request_


async def test_each_message_is_judged_by_its_own_class(mesh):
    flow = FlowTable(mesh)[name("Echo")].request
    assert flow.passes(Plain)
    assert not flow.sensitive()
    assert not flow.passes(Reading)
    assert flow.sensitive(), "a protected message came that the method does not declare"
    assert flow.passes(bytes), "nothing that the method declares is protected"
    strict = FlowTable(mesh)[name("Report")].request
    assert not strict.passes(Plain)
    with pytest.raises(ProtectionError, match="WRONG_TYPE"):
        await strict.protect(Plain())


async def test_now_and_later_give_the_same_and_only_later_waits(mesh):
    flow = FlowTable(mesh)[name("Ask")].response
    message = Reading(id="s1", b=True)
    assert flow.protect_now(message) is None, "no lease is held yet"
    for _ in range(10):
        assert (await flow.protect(message)).id not in ("s1", "")
    assert flow.protect_now(message).id not in ("s1", "")
    assert await flow.protect(message) is not message
    assert mesh.ledger.usage(0, b"s1")[0] == 12 * AMOUNT // 2
    assert await FlowTable(mesh)[name("Echo")].request.protect(message := Plain()) is message


async def test_a_message_without_a_lease_is_checked_once_before_it_is_charged(mesh):
    table, priced = mesh.snapshot.billing, []
    price = table.price
    table.price = lambda *given: priced.append(given) or price(*given)
    await FlowTable(mesh)[name("Ask")].response.protect(Reading(id="s9", b=True))
    assert len(priced) == 1


async def test_in_observe_mode_nothing_is_sensitive_and_what_would_be_refused_leaves():
    async with dpmesh.open(config(mode="observe")) as mesh:
        flow = FlowTable(mesh)[name("Report")].request
        assert not flow.sensitive()
        for message in (Plain(), Reading()):
            assert await flow.protect(message) is message


async def test_declared_methods_are_decided_once_and_names_may_be_bytes(mesh):
    table = FlowTable(mesh)
    assert table[name("Ask")] is table[name("Ask")]
    assert table[name("Ask").encode()].name == name("Ask")
    assert table["/no.Such/Method"].request.protected is None
    assert len(table._declared) + len(table._undeclared) == 3


async def test_flows_to_other_consumers_share_their_decisions(mesh):
    flow = FlowTable(mesh)[name("Echo")].response
    one, two = flow.for_consumer("one"), flow.for_consumer("two")
    assert flow.for_consumer("one") is one
    assert one.for_consumer("one") is one
    assert flow.for_consumer("") is flow
    assert not one.passes(Reading)
    assert two.sensitive()


@pytest.mark.parametrize("consumer", [7, "\ud800"])
async def test_a_consumer_is_text(mesh, consumer):
    with pytest.raises(ConfigError, match="consumer"):
        FlowTable(mesh, consumer)


async def test_a_table_is_of_a_mesh():
    with pytest.raises(ConfigError, match="a dict is no mesh"):
        FlowTable({})


# -- another policy ---------------------------------------------------------------------------------------------------


async def test_another_policy_has_other_flows(mesh):
    table = FlowTable(mesh)
    before = table[name("Echo")]
    await swap(mesh)
    after = table[name("Echo")]
    assert after is not before
    assert (before.request.protected, after.request.protected) == (False, True)
    assert table[name("Echo")] is after


async def test_a_table_gives_and_keeps_no_flows_of_an_old_policy(mesh):
    table, old = FlowTable(mesh), mesh.snapshot
    for method in ("Echo", "Ask"):
        table[name(method)]
    await swap(mesh)
    # As if another thread had looked the method up just before the swap, and went on just after it.
    assert table._find(name("Echo"), old).snapshot is old
    assert table[name("Echo")].snapshot is mesh.snapshot
    assert len(table._declared) + len(table._undeclared) == 1


async def test_a_single_message_keeps_the_policy_with_which_its_rpc_began(mesh):
    flow = FlowTable(mesh)[name("Echo")].response
    assert flow.passes(Plain)
    await swap(mesh)
    message = Plain(text="as it is")
    assert not flow.passes(Plain), "`protect` decides"
    assert await flow.protect(message) is message
    assert flow.sensitive(), "what goes along with it is withheld as soon as either policy says so"


async def test_a_stream_of_requests_keeps_the_policy_that_it_attested(mesh):
    flow = FlowTable(mesh)[name("Echo")].request
    stream = flow.stream()
    await swap(mesh)
    message = Plain(text="as it is")
    assert await flow.protect(message, stream) is message


async def test_a_stream_of_responses_changes_at_a_message(mesh):
    flow = FlowTable(mesh)[name("Watch")].response.for_consumer("one")
    stream = flow.stream()
    message = Plain(text="as it is")
    assert await flow.protect(message, stream) is message
    await swap(mesh)
    assert not (await flow.protect(message, stream)).text


async def test_what_any_policy_withheld_from_a_stream_of_responses_stays_withheld(mesh):
    flow = FlowTable(mesh)[name("Watch")].response
    stream = flow.stream()
    assert not flow.sensitive()
    await swap(mesh)
    assert not (await flow.protect(Plain(text="hidden"), stream)).text
    await mesh.swap(Policy())
    assert flow.sensitive()
