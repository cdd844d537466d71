"""A policy that is swapped all the time while RPCs of all arities are under way, with one mesh on both sides."""

import asyncio
import gc
import weakref
from collections import Counter
from functools import partial

import grpc
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading

from dpmesh.ledger import Ledger
from dpmesh.policy import Policy, loaded_types
from dpmesh.v1 import policy_pb2
from dpmesh_grpc import peer_policy
from dpmesh_grpc.protection.server import ServerInterceptor
from tests.support.meshes import assembled
from tests.support.mutual_tls import until

SWAPS = 1000
RPCS = 64
NAME = pb.Reading.DESCRIPTOR.full_name


def policy(low: int, epsilon: float) -> Policy:
    """Numbers leave from `low` to `low` + 1, and a message costs `epsilon`."""
    overlay = policy_pb2.Policy()
    overlay.messages[NAME].epsilon = epsilon
    for field in ("temperature", "levels", "exact"):
        rule = overlay.fields[f"{NAME}.{field}"]
        rule.numeric.lower, rule.numeric.upper = low, low + 1
        rule.numeric.output = rule.numeric.IN_RANGE
        if field == "levels":
            rule.max_items = 2
    for method in ("Report", "ReportAll", "ReportChat"):
        overlay.methods[rig.PREFIX + method].require_policy.SetInParent()
    return Policy(overlay)


def digest(rules: Policy) -> str:
    return rules.plan(pb.Reading.DESCRIPTOR).version


POLICIES = (policy(0, 1.0), policy(100, 0.5))
COSTS = {digest(POLICIES[0]): 10**9, digest(POLICIES[1]): 5 * 10**8}


def protected_by(message: pb.Reading) -> str:
    """The digest of the policy under which a message left, which each of its numbers proves."""
    numbers = [message.temperature, message.exact, *message.levels]
    assert len(numbers) == 4
    assert not message.note
    (found,) = {int(number >= 100) for number in numbers}
    assert all(100 * found <= number <= 100 * found + 1 for number in numbers)
    return digest(POLICIES[found])


class Handlers:
    """Counts what left by the policy that protected it, and compares requests with what their sender attested."""

    def __init__(self):
        self.left = Counter()

    def take(self, request, context):
        by = protected_by(request)
        assert peer_policy() == (by, None)
        self.left[by] += 1

    async def report(self, request, context):
        self.take(request, context)
        return pb.Plain()

    async def report_all(self, requests, context):
        async for request in requests:
            self.take(request, context)
        return pb.Plain()

    async def report_chat(self, requests, context):
        async for request in requests:
            self.take(request, context)
            yield pb.Plain()

    async def ask(self, request, context):
        return reading(request.text)

    async def watch(self, request, context):
        for _ in range(3):
            yield reading(request.text)
            await asyncio.sleep(0.001)

    async def chat(self, requests, context):
        async for request in requests:
            yield reading(request.text)


async def several(make):
    for _ in range(3):
        yield make()
        await asyncio.sleep(0.001)


async def test_a_thousand_swaps_under_rpcs_of_all_arities_mix_no_policies_and_lose_no_charge(
    serve, connect, monkeypatch
):
    # As in an application. A swap also compiles what the other tests of this process have imported.
    monkeypatch.setattr(loaded_types, "_imported", lambda: iter([pb.DESCRIPTOR]))
    budget = {"name": "station", "epsilon": 1e6, "accounting": "pure", "window": "lifetime"}
    handlers = Handlers()
    functions = {
        "Report": handlers.report,
        "ReportAll": handlers.report_all,
        "ReportChat": handlers.report_chat,
        "Ask": handlers.ask,
        "Watch": handlers.watch,
        "Chat": handlers.chat,
    }
    done = asyncio.Event()
    rpcs = Counter()

    async def call(stub, worker):
        station = f"s{worker}"
        answers = [
            lambda: stub.Report(reading(station)),
            lambda: stub.Ask(pb.Plain(text=station)),
            lambda: stub.Watch(pb.Plain(text=station)),
            lambda: stub.ReportAll(several(lambda: reading(station))),
            lambda: stub.ReportChat(several(lambda: reading(station))),
            lambda: stub.Chat(several(lambda: pb.Plain(text=station))),
        ]
        while not done.is_set():
            arity = worker % len(answers)
            answer = answers[arity]()
            received = [each async for each in answer] if hasattr(answer, "__aiter__") else [await answer]
            for each in received:
                if isinstance(each, pb.Reading):
                    handlers.left[protected_by(each)] += 1
            rpcs[arity] += 1

    # On a busy machine charges wait for seconds: 64 RPCs and the compilation of each policy share one interpreter.
    patient = partial(Ledger, timeout=60.0)
    async with assembled({"ledger": {"url": "memory:"}, "budget": [budget]}, ledger=patient) as mesh:
        await mesh.swap(POLICIES[0])
        target = await serve(mesh=mesh, handlers=functions)
        stub = await connect(target, mesh)
        async with asyncio.TaskGroup() as tasks:
            for worker in range(RPCS):
                tasks.create_task(call(stub, worker))
            for number in range(1, SWAPS + 1):
                await mesh.swap(POLICIES[number % 2])
            done.set()
        await mesh.ledger.close()  # Returns what is left of the leases.
        await mesh.ledger.open()
        spent = sum(account.spent for account in await mesh.ledger.accounts())
    assert spent == sum(COSTS[name] * count for name, count in handlers.left.items())
    assert min(handlers.left.values()) > 100, "both policies were in use"
    assert min(rpcs[arity] for arity in range(6)) > 10


async def test_a_server_keeps_no_policy_for_methods_that_nobody_calls_again(mesh):
    interceptor = ServerInterceptor(mesh)
    handler = grpc.unary_unary_rpc_method_handler(rig.Seen().one)

    async def found(details):
        return handler

    class Details:
        invocation_metadata = ()

    policies = []
    for number in range(10):
        await mesh.swap(policy(number, 1.0))
        Details.method = f"/acme.Any/M{number}"
        await interceptor.intercept_service(found, Details)
        policies.append(weakref.ref(mesh.policy))
    gc.collect()

    def left():
        return [each() for each in policies if each() is not None]

    # A thread that compiled one lets go of it a moment after the swap.
    await until(lambda: left() == [mesh.policy])
