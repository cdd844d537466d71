"""The private names of grpc that dpmesh needs: each one is there and means what dpmesh takes it to mean."""

from __future__ import annotations

import asyncio
import functools
import importlib
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2_grpc

ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
KNOWN_GOOD = "1.80 to 1.85"


def broken(name: str, breaks: str) -> str:
    """What a failed test says: the versions that had the name, and what breaks without it."""
    return f"grpcio {grpc.__version__}: {name} is not what it was in {KNOWN_GOOD}. Without it {breaks}."


@pytest.fixture
def internals():
    """Imported by each test, so that a name that is gone fails its own test with its own message."""
    return importlib.import_module("dpmesh_grpc.aio.internals")


@asynccontextmanager
async def served(interceptors=(), refuse=False):
    """The address of a server whose methods answer with b"", or refuse."""

    async def read(requests):
        """A server that answers before it has read everything breaks off what its client still writes."""
        if not isinstance(requests, bytes):
            async for _ in requests:
                pass

    async def one(request, context):
        if refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "refused")
        await read(request)
        return b""

    async def many(request, context):
        await read(request)
        yield b""

    handlers = {
        arity: getattr(grpc, f"{arity}_rpc_method_handler")(many if arity.endswith("stream") else one)
        for arity in ARITIES
    }
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def begin(channel, arity, **options):
    """An RPC's call."""
    method = getattr(channel, arity)(f"/test.Test/{arity}")
    return method(iter([b""]) if arity.startswith("stream") else b"", **options)


async def end(call) -> None:
    """Waits for the end of a call."""
    if hasattr(call, "__await__"):
        await call
    else:
        assert [response async for response in call] == [b""]


class Seen(list):
    """Interceptors of all arities that note the continuation and the details of RPCs."""

    def interceptors(self):
        return [self.interceptor(arity)() for arity in ARITIES]

    def interceptor(self, arity):
        async def intercept(_, continuation, details, request):
            self.append((continuation, details))
            return await continuation(details, request)

        words = "".join(word.capitalize() for word in arity.split("_"))
        base = getattr(grpc.aio, f"{words}ClientInterceptor")
        return type(words, (base,), {f"intercept_{arity}": intercept})


@pytest.mark.parametrize("name", ["ExecuteBatchError", "_ServerStoppedError"])
def test_the_exceptions_of_a_peer_that_has_gone(name):
    found = getattr(cygrpc, name, None)
    breaks = "an RPC whose peer has gone is answered, and that touches freed memory"
    assert issubclass(found or object, Exception), broken(f"cygrpc.{name}", breaks)
    assert found in importlib.import_module("dpmesh_grpc.aio.internals").PEER_GONE


async def test_the_text_of_methods_that_are_not_implemented(internals):
    class Context:
        def set_code(self, code): ...
        def set_details(self, details): ...

    with pytest.raises(NotImplementedError) as caught:
        health_pb2_grpc.HealthServicer().Check(None, Context())
    breaks = "methods that nobody wrote look like handlers that failed"
    assert caught.value.args == (internals.UNIMPLEMENTED,), broken("generated code's text", breaks)


@pytest.mark.parametrize("arity", ARITIES)
async def test_the_metadata_key_of_compression(internals, arity):
    seen = Seen()
    async with (
        served() as target,
        grpc.aio.insecure_channel(target, interceptors=seen.interceptors()) as channel,
    ):
        await end(begin(channel, arity, compression=grpc.Compression.Gzip))
    breaks = "protected requests leave compressed, and their size tells what they say"
    metadata = tuple(seen[0][1].metadata)
    assert (internals.COMPRESSION_KEY, "gzip") in metadata, broken("the key of compression", breaks)


@pytest.mark.parametrize("arity", ["stream_unary", "stream_stream"])
async def test_whether_a_call_takes_more_requests(internals, arity):
    async with served() as target, grpc.aio.insecure_channel(target) as channel:
        call = getattr(channel, arity)(f"/test.Test/{arity}")()
        breaks = "`write` fails on a stream of requests behind dpmesh's interceptors"
        assert getattr(call, internals.DONE_WRITING, None) is False, broken(internals.DONE_WRITING, breaks)
        await call.done_writing()
        assert getattr(call, internals.DONE_WRITING) is True, broken(internals.DONE_WRITING, breaks)


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("intercepted", [False, True])
async def test_where_a_closing_channel_finds_its_calls(internals, arity, intercepted):
    interceptors = Seen().interceptors() if intercepted else None
    async with served() as target, grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
        call = begin(channel, arity)
        of_channel, of_call = (getattr(call, name, None) for name in internals.CLOSING)
        found = of_channel if intercepted else getattr(of_call, "_channel", None)
        breaks = (
            "a guarded call has attributes for nothing, and closing a channel may fail for want of others"
        )
        assert found is channel._channel, broken(str(internals.CLOSING), breaks)
        await end(call)


async def test_the_status_of_an_rpc_that_ends_during_a_write(internals):
    async with served(refuse=True) as target, grpc.aio.insecure_channel(target) as channel:
        call = channel.stream_unary("/test.Test/stream_unary")()
        async with asyncio.timeout(30):
            with pytest.raises((asyncio.InvalidStateError, grpc.aio.AioRpcError)):
                while True:
                    await call.write(b"x" * 1000)
        found = (await call.code(), await call.details())
    breaks = "a client that only writes streams keeps a ticket that its server no longer takes"
    assert found == internals.STATUS_LOST, broken("the status of a lost RPC", breaks)


@pytest.mark.parametrize("arity", ARITIES)
async def test_where_a_channel_keeps_its_interceptors(internals, arity):
    interceptor = Seen().interceptor(arity)()
    async with grpc.aio.insecure_channel("127.0.0.1:1", interceptors=[interceptor]) as channel:
        name = internals.interceptor_list(arity)
        breaks = "check_channel and rotating channels refuse every channel"
        assert getattr(channel, name, None) == [interceptor], broken(f"Channel.{name}", breaks)


async def test_where_a_server_keeps_its_interceptors(internals):
    class Interceptor(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            return await continuation(details)

    ours = Interceptor()
    breaks = "check_server refuses every server"
    server = grpc.aio.server(interceptors=[ours])
    assert ours in internals.server_interceptors(server), broken("Server._server", breaks)


@pytest.mark.parametrize("arity", ARITIES)
async def test_the_interceptors_that_follow(internals, arity):
    seen = Seen()
    first, last = seen.interceptor(arity)(), seen.interceptor(arity)()
    async with served() as target, grpc.aio.insecure_channel(target, interceptors=[first, last]) as channel:
        await end(begin(channel, arity))
    following = [internals.following_interceptors(continuation) for continuation, _ in seen]
    breaks = "interceptors that are given twice are not noticed, and charge for each message twice"
    assert following == [[last], []], broken("continuation.args[0]", breaks)


@pytest.mark.parametrize("arity", ARITIES)
async def test_an_interceptor_that_is_put_last(internals, arity):
    seen, put = Seen(), Seen()
    last = put.interceptor(arity)()

    class First(seen.interceptor(arity)):
        pass

    async def followed(self, continuation, details, request):
        return await intercept(self, internals.followed_by(continuation, last), details, request)

    name = f"intercept_{arity}"
    intercept = getattr(First, name)
    setattr(First, name, followed)
    async with (
        served() as target,
        grpc.aio.insecure_channel(target, interceptors=[First(), seen.interceptor(arity)()]) as channel,
    ):
        await end(begin(channel, arity))
    breaks = "metadata that other interceptors add are not looked at"
    assert len(put) == 1, broken("continuation.func", breaks)
    assert internals.following_interceptors(put[0][0]) == []


def test_a_continuation_that_does_not_tell(internals):
    assert internals.following_interceptors(lambda details, request: None) == []
    plain = functools.partial(lambda details, request: None)
    for continuation in (plain, plain.func, functools.partial([].append)):
        with pytest.raises(LookupError):
            internals.channel_of(continuation)


@pytest.mark.parametrize("arity", ARITIES)
async def test_the_channel_that_an_rpc_is_on(internals, arity):
    seen = Seen()
    interceptors = seen.interceptors()
    async with served() as target:
        for _ in range(2):
            async with grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
                await end(begin(channel, arity))
                await end(begin(channel, arity))
    breaks = "no RPC gets a token: a ticket could be shown on another connection"
    try:
        first, again, other, _ = (internals.channel_of(continuation) for continuation, _ in seen)
    except LookupError:
        pytest.fail(broken("continuation.func", breaks))
    assert first is again is not other, broken("continuation.func", breaks)
    assert first.closed() is True, broken("cygrpc.AioChannel.closed", "the tickets of closed channels stay")


@pytest.mark.parametrize("arity", ARITIES)
async def test_the_calls_under_way_on_a_channel(internals, arity):
    interceptors = Seen().interceptors()
    async with served() as target, grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
        call = begin(channel, arity)
        calls = internals.active_calls(channel)
        breaks = "RPCs under way end at once when their identity is replaced, with gRPC's own status"
        assert calls is None or call in calls, broken("Channel._active_calls", breaks)
        await end(call)


def test_synchronous_grpc_that_takes_interceptors(internals):
    found = []

    class Interceptors(tuple):
        __slots__ = ()

        def __iter__(self):
            found.append(internals.called_by_synchronous_grpc())
            return super().__iter__()

    assert len(tuple(Interceptors([1]))) == 1
    with ThreadPoolExecutor(1) as pool:
        grpc.server(pool, interceptors=Interceptors([object()]))
    breaks = "a synchronous server takes dpmesh's interceptors, and refuses only when an RPC comes"
    assert found[0] is False
    assert True in found[1:], broken("the module grpc._interceptor", breaks)


def test_metadata_is_built_when_it_is_looked_at(internals):
    breaks = "metadata of protected requests is empty or wrong"
    assert list(vars(grpc.aio.Metadata())) == ["_metadata"], broken("Metadata._metadata", breaks)
    pairs = (("a", "1"), ("b", b"2"), ("a", "3"))
    metadata = internals.LazyMetadata(*pairs)
    assert (tuple(metadata), len(metadata)) == (pairs, 3)
    assert "_metadata" not in vars(metadata)
    assert (metadata["a"], metadata.get_all("a")) == ("1", ["1", "3"]), broken("Metadata._metadata", breaks)
    metadata.add("c", "4")
    assert (len(metadata), metadata["c"]) == (4, "4")
    assert internals.LazyMetadata(*pairs) == grpc.aio.Metadata(*pairs)
    assert internals.LazyMetadata(("a", "1")) + grpc.aio.Metadata(("b", "2")) == grpc.aio.Metadata(
        ("a", "1"), ("b", "2")
    )
    with pytest.raises(AttributeError):
        _ = metadata.nothing


@pytest.mark.parametrize("arity", ARITIES)
async def test_what_generated_code_tells_a_channel(arity):
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        arguments = (f"/test.Test/{arity}", None, None, False)
        try:
            getattr(channel, arity)(*arguments)
        except TypeError:
            pytest.fail(broken("_registered_method", "rotating channels make no RPC"))


def test_private_modules_of_grpc_are_imported_in_one_file(internals):
    source = Path(internals.__file__).parents[1]
    users = [path.name for path in source.rglob("*.py") if re.search(r"grpc\._|cygrpc", path.read_text())]
    assert users == ["internals.py"]
