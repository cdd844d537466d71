"""Swapping a policy: all or nothing, and each message wholly under one of the two."""

import asyncio
from dataclasses import replace

import pytest
from google.protobuf import any_pb2

import dpmesh
from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ConfigError, NotOpenError
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.mesh.swapping import self_test
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.meshes import SteadyLedger, assembled
from tests.support.protos import compiled

TYPES = compiled(
    """message Report { string id = 1; double a = 2; double b = 3; google.protobuf.Any more = 4; }
    message Envelope { google.protobuf.Any one = 1; }
    message Other { string id = 1; double a = 2; }
    service Reports { rpc Send(Report) returns (Report); }"""
)
SEND = f"/{TYPES.package}.Reports/Send"


def overlay(low, epsilon=0.5, kind=TYPES.Report, fields="ab", **more):
    """A policy under which the fields of what leaves lie from `low` to `low` + 100; each costs `epsilon`."""
    policy, name = policy_pb2.Policy(), kind.DESCRIPTOR.full_name
    policy.fields[f"{name}.id"].unit.SetInParent()
    for field in fields:
        rule = policy.fields[f"{name}.{field}"].numeric
        rule.lower, rule.upper, rule.epsilon = low, low + 100, epsilon
        rule.output = rule.IN_RANGE
    return policy


# Their messages cost 1 and 0.5.
LOW, HIGH = overlay(0), overlay(1000, 0.25)


def settings(epsilon=100.0, **more):
    budget = {"name": "unit", "epsilon": epsilon, "accounting": "pure", "window": "24h"}
    return {"ledger": {"url": "memory:"}, "budget": [budget], **more}


def report(unit="N1"):
    return TYPES.Report(id=unit, a=50, b=50)


def policies(message):
    """The policies under which the fields of a message left."""
    return {
        LOW.SerializeToString() if value < 500 else HIGH.SerializeToString()
        for value in (message.a, message.b)
    }


def left_under(receipt, policy, message=None):
    message = message or receipt.message
    cost = 1.0 if policy is LOW else 0.5
    return policies(message) == {policy.SerializeToString()} and receipt.epsilon == cost


def packed(message):
    box = any_pb2.Any()
    box.Pack(message)
    return box


async def test_a_swap_replaces_all_that_a_policy_decides(tmp_path):
    strict = overlay(1000, 0.25)
    strict.methods[SEND].require = True
    async with dpmesh.open(settings(), policy=policy_pb2.Policy()) as mesh:
        before = mesh.snapshot
        assert (mesh.snapshot.protection(TYPES.Report), mesh.snapshot.requires(SEND)) == (None, False)
        assert (await mesh.release(TYPES.Other(a=1))).decision == "unprotected"
        await mesh.swap(LOW)
        assert left_under(await mesh.release(report()), LOW)
        await mesh.swap(Policy(strict))
        assert left_under(await mesh.release(report()), HIGH)
        assert (
            mesh.snapshot.protection(TYPES.Report),
            mesh.snapshot.requires(SEND),
            mesh.snapshot.has_rules(),
        ) == (True, True, True)
        assert mesh.policy_digest == mesh.policy.digest == mesh.snapshot.digest == Policy(strict).digest
        assert before.protection(TYPES.Report) is None, "a snapshot does not change"
        (tmp_path / "policy.yaml").write_text(f"fields: {{{TYPES.package}.Other.a: {{suppress: {{}}}}}}\n")
        await mesh.swap(tmp_path / "policy.yaml")
        assert (mesh.snapshot.protection(TYPES.Other), mesh.snapshot.requires(SEND)) == (True, False)
        assert (await mesh.release(TYPES.Other(a=1))).message == TYPES.Other()


def without_unit():
    policy = overlay(0)
    del policy.fields[f"{TYPES.Report.DESCRIPTOR.full_name}.id"]
    return policy


def misspelled():
    policy = overlay(0)
    policy.fields["acme.Nothing.here"].suppress.SetInParent()
    return policy


def nearly():
    policy = overlay(0)
    policy.fields[f"{TYPES.package}.Report.moore"].suppress.SetInParent()
    return policy


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        pytest.param(overlay(0, -1), AnnotationError, "epsilon", id="bad"),
        pytest.param(overlay(0, 60), AnnotationError, "over-budget", id="costly"),
        pytest.param(without_unit(), AnnotationError, "no-budget", id="nobody-pays"),
        pytest.param(misspelled(), ConfigError, r"no loaded proto has acme\.Nothing\.here", id="misspelled"),
        pytest.param(nearly(), ConfigError, r"did you mean \S+\.Report\.more\?", id="nearly"),
        pytest.param("no/such/file.yaml", ConfigError, "file.yaml", id="no-file"),
        pytest.param("", ConfigError, "read", id="empty-path"),
        pytest.param(None, ConfigError, "None is no policy", id="none"),
        pytest.param({}, ConfigError, "a dict is no policy", id="dict"),
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_a_policy_with_a_mistake_leaves_the_old_one_in_force(policy, error, text, mode):
    async with dpmesh.open(settings(mode=mode), policy=LOW) as mesh:
        await mesh.release(report())
        before = mesh.snapshot
        with pytest.raises(error, match=text):
            await mesh.swap(policy)
        assert mesh.snapshot is before
        assert (await mesh.release(report())).epsilon == 1.0


async def test_what_no_budget_covers_is_no_mistake_as_long_as_nobody_sends_it():
    costly = overlay(0, 60, kind=TYPES.Other, fields="a")
    async with dpmesh.open(settings(10.0), policy=LOW) as mesh:
        await mesh.swap(costly)
        with pytest.raises(AnnotationError, match="over-budget"):
            await mesh.release(TYPES.Other(id="N1", a=1))


async def test_only_an_open_mesh_takes_another_policy():
    mesh = dpmesh.open(settings())
    with pytest.raises(NotOpenError):
        await mesh.swap(LOW)
    async with mesh:
        await mesh.swap(LOW)
    with pytest.raises(NotOpenError):
        await mesh.swap(HIGH)
    assert mesh.policy_digest == Policy(LOW).digest


async def test_only_the_event_loop_that_opened_the_mesh_swaps():
    async with dpmesh.open(settings(), policy=LOW) as mesh:
        with pytest.raises(ConfigError, match="not the event loop that opened the mesh"):
            await asyncio.to_thread(asyncio.run, mesh.swap(HIGH))
        assert mesh.policy_digest == Policy(LOW).digest
        await mesh.swap(HIGH)


async def test_a_mesh_that_is_closed_meanwhile_keeps_its_policy():
    async with dpmesh.open(settings(), policy=LOW) as mesh:
        swap = asyncio.create_task(mesh.swap(HIGH))
        await asyncio.sleep(0)
    with pytest.raises(NotOpenError):
        await swap
    assert mesh.policy_digest == Policy(LOW).digest


async def test_swaps_take_place_one_after_the_other():
    async with dpmesh.open(settings(), policy=LOW) as mesh:
        swaps = [asyncio.create_task(mesh.swap(policy)) for policy in (HIGH, overlay(0, -1), LOW, HIGH, LOW)]
        swaps[3].cancel()
        outcomes = await asyncio.gather(*swaps, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [type(None), AnnotationError, type(None), asyncio.CancelledError, type(None)]
        assert mesh.policy_digest == Policy(LOW).digest


async def waiting(mesh, release):
    """A release that waits for the ledger, and what lets it go on."""
    asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait():
        asked.set()
        await may_go_on.wait()

    mesh.ledger.before_charge = wait
    task = asyncio.create_task(release)
    await asked.wait()
    mesh.ledger.before_charge = None
    return task, may_go_on


async def test_a_message_whose_charge_waits_leaves_under_the_policy_with_which_it_began():
    async with assembled(settings(), policy=LOW) as mesh:
        task, may_go_on = await waiting(mesh, mesh.release(report()))
        await mesh.swap(HIGH)
        may_go_on.set()
        assert left_under(await task, LOW)
        assert left_under(await mesh.release(report()), HIGH)
        amounts = [amount for ((_, _, amount),) in mesh.ledger.charges]
        assert amounts[0] == 10**9


async def test_what_anys_pack_leaves_under_the_policy_of_their_message():
    async with assembled(settings(), policy=LOW) as mesh:
        outer = report()
        outer.more.CopyFrom(packed(report("N2")))
        for message in (outer, TYPES.Envelope(one=packed(report("N3")))):
            task, may_go_on = await waiting(mesh, mesh.release(message))
            await mesh.swap(HIGH)
            may_go_on.set()
            for receipt, policy in ((await task, LOW), (await mesh.release(message), HIGH)):
                left = receipt.message
                box = left.one if isinstance(left, TYPES.Envelope) else left.more
                inner = TYPES.Report()
                assert box.Unpack(inner)
                assert policies(inner) == {policy.SerializeToString()}
                if isinstance(left, TYPES.Report):
                    assert policies(left) == {policy.SerializeToString()}
            await mesh.swap(LOW)


async def test_an_exhausted_budget_stays_exhausted_and_covers_what_costs_less():
    async with dpmesh.open(settings(2.5), policy=LOW) as mesh:
        for _ in range(2):
            await mesh.release(report())
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(report())
        await mesh.swap(HIGH)
        assert left_under(await mesh.release(report()), HIGH)
        for policy in (LOW, HIGH):
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(report())
            await mesh.swap(policy)
        (account,) = await mesh.ledger.accounts()
        assert account.spent == 2_500_000_000


async def test_a_request_stream_keeps_its_policy_and_a_response_stream_changes_at_a_message():
    async with assembled(settings(), policy=LOW, ledger=SteadyLedger) as mesh:
        first = mesh.snapshot
        requests, responses = mesh.stream(direction="request"), mesh.stream(direction="response")
        pinned = mesh.stream(direction="response", snapshot=first)
        for stream in (requests, responses, pinned):
            assert left_under(await stream.release(report()), LOW)
        await mesh.swap(HIGH)
        for stream, policy in ((requests, LOW), (responses, HIGH), (pinned, LOW)):
            assert left_under(await stream.release(report()), policy)
            stream.close()
        assert left_under(await mesh.release(report(), snapshot=first), LOW)
        assert left_under(mesh.release_now(report(), snapshot=first), LOW)
        assert left_under(mesh.release_now(report()), HIGH)


async def test_an_observed_message_is_accounted_by_the_policy_in_force():
    async with dpmesh.open(settings(mode="observe"), policy=LOW) as mesh:
        assert (await mesh.release(report())).epsilon == 1.0
        await mesh.swap(HIGH)
        assert (await mesh.release(report())).epsilon == 0.5


def test_a_self_test_finds_what_a_plan_must_not_do():
    plan = Policy(LOW).plan(TYPES.Report.DESCRIPTOR)
    self_test(plan)
    field = next(field for field in plan.fields if field.mechanism_name)
    payload = field.payload
    escaping = replace(payload, mechanism=replace(payload.mechanism, low=-2, high=-1))
    for broken, text in (
        (replace(plan, cost=Cost.ZERO), "costs something else"),
        (replace(plan, fields=(replace(field, cost=Cost.ZERO),)), "more than it pays for"),
        (replace(plan, fields=(replace(field, payload=escaping),)), "outside of its mechanism's range"),
    ):
        with pytest.raises(AnnotationError, match=text):
            self_test(broken)


def test_a_self_test_draws_vectors_too():
    types = compiled(
        """message Own { string id = 1 [(dpmesh.v1.field).unit = {}];
        repeated double v = 2 [(dpmesh.v1.field).vector = {l2_norm: 1 dimension: 4 epsilon: 1}]; }"""
    )
    plan = Policy().plan(types.Own.DESCRIPTOR)
    self_test(plan)
    field = next(field for field in plan.fields if field.mechanism_name)
    short = replace(field.payload, release=lambda x: x[1:])
    far = replace(field.payload, release=lambda x: [2 * field.payload.reach] * len(x))
    costly = replace(field.payload, epsilon=2 * field.epsilon)
    for payload, text in (
        (short, "outside of its mechanism's range"),
        (far, "outside of its mechanism's range"),
        (costly, "more than it pays for"),
    ):
        with pytest.raises(AnnotationError, match=text):
            self_test(replace(plan, fields=(replace(field, payload=payload),)))


def test_a_policy_for_other_software_is_refused_at_once():
    """Looking for the nearest of each of its thousands of names would take minutes of a device's processor."""
    document = policy_pb2.Policy()
    for number in range(3000):
        document.fields[f"acme.other.v9.Report.a{number}"].public.SetInParent()
    with pytest.raises(ConfigError, match="and 2995 others") as error:
        PolicySnapshot(Policy(document), {}, "enforce").compile_loaded()
    assert len(str(error.value)) < 2000
