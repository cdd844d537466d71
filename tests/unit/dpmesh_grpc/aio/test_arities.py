"""The four arities: gRPC and other interceptors take dpmesh's interceptors and calls for their own kind."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from dpmesh.errors import ConfigError
from dpmesh_grpc.aio.arities import ARITIES, interceptors, refuse_twice
from dpmesh_grpc.status import Failure, rpc_error

FAILURE = Failure(grpc.StatusCode.UNAVAILABLE, "ended", (("key", "value"),))
arities = pytest.mark.parametrize("arity", ARITIES.values(), ids=ARITIES)


class Noting:
    """An interception that notes what it gets."""

    only_once = ""

    def send_one(self, continuation, details, request, arity):
        return ("one", continuation, details, request, arity.name)

    def send_many(self, continuation, details, requests, arity):
        return ("many", continuation, details, requests, arity.name)


def class_of(arity, suffix):
    return getattr(grpc.aio, "".join(word.capitalize() for word in arity.name.split("_")) + suffix)


@arities
def test_an_interceptor_is_of_its_arity_only(arity):
    ours = [each for each in interceptors(Noting()) if each.arity is arity]
    assert len(ours) == 1
    assert [
        other.name for other in ARITIES.values() if isinstance(ours[0], class_of(other, "ClientInterceptor"))
    ] == [arity.name]
    sent = getattr(ours[0], f"intercept_{arity.name}")(1, 2, 3)
    assert sent == ("many" if arity.name.startswith("stream") else "one", 1, 2, 3, arity.name)


@arities
async def test_a_refused_call_is_over(arity):
    call = arity.refused(rpc_error(FAILURE))
    assert isinstance(call, class_of(arity, "Call"))
    assert (call.done(), call.cancelled(), call.cancel(), call.time_remaining()) == (True, False, False, None)
    assert (await call.code(), await call.details()) == FAILURE[:2]
    assert tuple(await call.trailing_metadata()) == FAILURE.trailing
    with pytest.raises(grpc.aio.AioRpcError):
        await call.wait_for_connection()
    with pytest.raises(grpc.aio.AioRpcError):
        if arity.name.endswith("unary"):
            await call
        else:
            await call.read()


class Call:
    """A call of gRPC that was cancelled."""

    def __await__(self):
        yield from ()
        raise asyncio.CancelledError

    def cancelled(self):
        return True

    async def code(self):
        return grpc.StatusCode.CANCELLED

    async def read(self):
        raise asyncio.CancelledError


class End:
    def __init__(self, failure):
        self._failure = failure

    def failure(self, call):
        return self._failure


@pytest.mark.parametrize("failure", [None, FAILURE])
@arities
async def test_a_guarded_call_ends_with_the_status_of_who_ended_it(arity, failure):
    call = arity.guarded(Call(), End(failure))
    assert isinstance(call, class_of(arity, "Call"))
    assert await call.code() is (grpc.StatusCode.CANCELLED if failure is None else FAILURE.code)
    assert call.cancelled() is (failure is None)
    with pytest.raises(asyncio.CancelledError if failure is None else grpc.aio.AioRpcError):
        if arity.name.endswith("unary"):
            await call
        else:
            await call.read()


def test_what_does_harm_twice_is_refused():
    class Once(Noting):
        only_once = "give them once"

    refuse_twice([*interceptors(Once()), *interceptors(Noting()), *interceptors(Noting()), object()])
    with pytest.raises(ConfigError, match="give them once"):
        refuse_twice([*interceptors(Once()), *interceptors(Once())])
