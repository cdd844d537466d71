"""What metadata tells: an allow-list for requests of all arities, whatever other interceptors add, and for responses."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry import baggage, context
from opentelemetry.instrumentation.grpc import aio_client_interceptors as otel_client
from stations import stations_pb2 as pb
from stations.rig import PREFIX, reading, stream

from dpmesh.v1 import policy_pb2
from tests.unit.dpmesh_grpc.aio.test_internals import ARITIES

METHODS = {"Report": "Echo", "ReportWatch": "EchoWatch", "ReportAll": "EchoAll", "ReportChat": "EchoChat"}
GIVEN = (
    ("authorization", "Bearer 17"),
    ("baggage", "patient=17"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("x-request-id", "17"),
)
# What gRPC itself adds to requests.
GRPC = {"user-agent", "grpc-accept-encoding", "accept-encoding"}


class Told(list):
    """Handlers that keep the metadata keys of their RPCs, without gRPC's own."""

    def handlers(self):
        async def one(request, context):
            self.keep(context)
            return pb.Plain()

        async def watch(request, context):
            self.keep(context)
            yield pb.Plain()

        async def all(requests, context):
            self.keep(context)
            async for _ in requests:
                pass
            return pb.Plain()

        async def chat(requests, context):
            self.keep(context)
            async for _ in requests:
                yield pb.Plain()

        by_name = {}
        for protected, other in METHODS.items():
            handler = {"Report": one, "ReportWatch": watch, "ReportAll": all, "ReportChat": chat}[protected]
            by_name |= {protected: handler, other: handler}
        return by_name

    def keep(self, context):
        self.append({key for key, _ in context.invocation_metadata()} - GRPC)


async def send(stub, method, **options):
    request = reading() if method.startswith("Report") else pb.Plain()
    call = getattr(stub, method)(stream(request) if method.endswith(("All", "Chat")) else request, **options)
    if hasattr(call, "read"):
        return [response async for response in call]
    return await call


def adding(arity):
    """An interceptor that adds to the metadata of one arity's RPCs."""
    base = getattr(grpc.aio, "".join(word.title() for word in arity.split("_")) + "ClientInterceptor")

    async def intercept(self, continuation, details, request):
        more = grpc.aio.Metadata(*(details.metadata or ()), *GIVEN)
        return await continuation(details._replace(metadata=more), request)

    return type("Adding", (base,), {f"intercept_{arity}": intercept})()


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.mark.parametrize("place", ["call", "before", "after"])
async def test_only_allowed_keys_leave_with_protected_requests(mesh, serve, connect, method, place):
    told = Told()
    interceptors = {} if place == "call" else {place: [adding(arity) for arity in ARITIES]}
    stub = await connect(await serve(handlers=told.handlers()), mesh, **interceptors)
    options = {"metadata": GIVEN} if place == "call" else {}
    await send(stub, method, **options)
    assert told == [{"dpmesh-policy", "traceparent"}]
    await send(stub, METHODS[method], **options)
    assert told[1] == {key for key, _ in GIVEN}


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_trust_boundary_cuts_the_trace_of_all_requests(open_mesh, serve, connect, method, place):
    policy = policy_pb2.Policy()
    for name in (method, METHODS[method]):
        policy.methods[PREFIX + name].trust_boundary = True
    mesh = await open_mesh(policy=policy, grpc={"pass_metadata": ["traceparent", "authorization"]})
    told = Told()
    interceptors = {place: [adding(arity) for arity in ARITIES]}
    stub = await connect(await serve(handlers=told.handlers()), mesh, **interceptors)
    await send(stub, method)
    await send(stub, METHODS[method])
    assert told == [{"dpmesh-policy", "authorization"}, {"authorization", "x-request-id"}]


@pytest.fixture
def bagged():
    """Something of the application's stands in OpenTelemetry's baggage."""
    token = context.attach(baggage.set_baggage("patient", "17"))
    yield
    context.detach(token)


@pytest.mark.parametrize("place", ["before", "after"])
async def test_opentelemetrys_baggage_never_leaves(bagged, spans, open_mesh, serve, connect, method, place):
    policy = policy_pb2.Policy()
    policy.methods[PREFIX + "Report"].trust_boundary = True
    mesh = await open_mesh(policy=policy)
    told = Told()
    target = await serve(handlers=told.handlers())
    await send(await connect(target, mesh, **{place: otel_client()}), method)
    assert told == [{"dpmesh-policy"} | ({"traceparent"} if method != "Report" else set())]
    told.clear()
    await send(await connect(target, before=otel_client()), method)
    assert told == [{"traceparent", "baggage"}]


async def test_writers_keep_to_it_as_well(mesh, serve, connect):
    told = Told()
    stub = await connect(await serve(handlers=told.handlers()), mesh)
    call = stub.ReportChat(metadata=GIVEN)
    await call.write(reading())
    await call.done_writing()
    assert len([response async for response in call]) == 1
    assert told == [{"dpmesh-policy", "traceparent"}]


async def test_observe_mode_lets_all_of_it_pass_and_says_what_would_not(
    open_mesh, serve, connect, method, caplog
):
    mesh = await open_mesh(mode="observe")
    told = Told()
    stub = await connect(await serve(handlers=told.handlers()), mesh)
    await send(stub, method, metadata=GIVEN)
    await send(stub, METHODS[method], metadata=(("x-other", "1"),))
    assert told == [{key for key, _ in GIVEN}, {"x-other"}]
    assert "observe mode: metadata key 'x-request-id' would not leave" in caplog.text
    assert "x-other" not in caplog.text
    assert "patient" not in caplog.text


@pytest.mark.parametrize("name", ["Ask", "Chat"])
async def test_responses_and_trailers_keep_to_it(open_mesh, serve, connect, name, caplog):
    mesh = await open_mesh(grpc={"pass_metadata": ["page"]})
    pairs = (("page", "7"), ("x-request-id", "17"), ("baggage", "patient=17"))

    async def ask(request, context):
        await context.send_initial_metadata(pairs)
        context.set_trailing_metadata(pairs)
        return reading()

    async def chat(requests, context):
        await context.send_initial_metadata(pairs)
        context.set_trailing_metadata(pairs)
        yield reading()

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, "Chat": chat}))
    call = stub.Ask(pb.Plain()) if name == "Ask" else stub.Chat(stream())
    if name == "Chat":
        assert len([response async for response in call]) == 1
    for metadata in (await call.initial_metadata(), await call.trailing_metadata()):
        assert {key for key, _ in metadata} - GRPC == {"page"}
    assert "metadata key 'x-request-id' does not leave on" in caplog.text
