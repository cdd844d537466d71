"""Every private name of grpc and grpc.aio that dpmesh needs, and what dpmesh needs it for.

None of them is promised by gRPC. tests/unit/dpmesh_grpc/aio/test_internals.py has a test for each: it says with which
versions of grpcio the name was there, and what breaks without it. Known to be good: grpcio 1.80 to 1.85.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from typing import Any, Final

import grpc.aio
from grpc._cython import cygrpc

# Exceptions that gRPC raises in a handler whose peer has gone, or whose server has stopped. They must reach gRPC:
# answering would touch what is no longer there. They have no public names. gRPC's other errors do not belong here,
# because gRPC answers them with their texts, and handlers can raise them too.
PEER_GONE: Final = (cygrpc.ExecuteBatchError, cygrpc._ServerStoppedError)

# What the methods raise that gRPC's compiler generates for methods that the application has not written.
UNIMPLEMENTED: Final = "Method not implemented!"

# The metadata key that chooses the compression of one RPC's requests, as `compression=` does.
COMPRESSION_KEY: Final = "grpc-internal-encoding-request"

# gRPC's own calls look whether the call that an interceptor has returned takes more requests.
DONE_WRITING: Final = "_done_writing_flag"
# Where a channel that closes finds its own calls, in grpc.aio 1.80: it raises on a call that has neither.
CLOSING: Final = ("_channel", "_cython_call")

# What gRPC makes of the status with which a server ends an RPC while the client writes: for a moment, or for good.
STATUS_LOST: Final = (grpc.StatusCode.INTERNAL, "Internal error from Core")


def interceptor_list(arity: str) -> str:
    """The attribute of a grpc.aio channel that holds the interceptors of an arity, such as "unary_stream"."""
    return f"_{arity}_interceptors"


def server_interceptors(server: grpc.aio.Server) -> Iterator[Any]:
    """The interceptors of a server.

    gRPC keeps them in its compiled part, which shows what it holds to nobody but the garbage collector.
    """
    for held in gc.get_referents(server._server):
        if isinstance(held, (tuple, list)):
            yield from held


def following_interceptors(continuation: Any) -> list[Any]:
    """The client interceptors that follow the one to which gRPC gave this continuation; [] if it does not tell."""
    if isinstance(continuation, functools.partial) and continuation.args:
        following = continuation.args[0]
        if isinstance(following, list):
            return following
    return []


def followed_by(continuation: Any, last: Any) -> Any:
    """The continuation of an interceptor, with one more interceptor after all that follow it.

    Args:
        continuation: One for which `following_interceptors` finds some.
        last: The interceptor that runs last.
    """
    following = continuation.args[0]
    return functools.partial(
        continuation.func, [*following, last], *continuation.args[1:], **continuation.keywords
    )


def channel_of(continuation: Any) -> Any:
    """The channel that an RPC is on, by the continuation that gRPC gave to its interceptor.

    A rotating channel gives the same interceptors to each of its channels, so the interceptors can't know.

    Raises:
        LookupError: gRPC does not tell.
    """
    try:
        run = continuation.func
        if hasattr(run, "__self__"):
            return run.__self__._channel
        # In grpc.aio 1.80 it is a function inside of the method that has `self`.
        return run.__closure__[run.__code__.co_freevars.index("self")].cell_contents._channel
    except (AttributeError, TypeError, ValueError):
        raise LookupError("this version of grpcio does not tell which channel an RPC is on") from None


def active_calls(channel: Any) -> Any:
    """The calls under way on a channel, a WeakSet that newer versions of grpc.aio keep; None in older ones."""
    return getattr(channel, "_active_calls", None)


def called_by_synchronous_grpc() -> bool:
    """Whether synchronous gRPC calls the function that asks, as a server does that is given interceptors."""
    return sys._getframe(2).f_globals.get("__name__") == "grpc._interceptor"


class LazyMetadata(grpc.aio.Metadata):  # type: ignore[misc]
    """Metadata that builds its table only when somebody looks up or changes a key.

    Building the table takes as long as releasing a message.

    Args:
        *pairs: Keys and values.
    """

    def __init__(self, *pairs: tuple[str, str | bytes]) -> None:
        self._pairs = pairs

    def __getattr__(self, name: str) -> Any:
        # The base keeps its table in this attribute.
        if name != "_metadata":
            raise AttributeError(name)
        super().__init__(*self._pairs)
        return self._metadata

    def __len__(self) -> int:
        return super().__len__() if "_metadata" in self.__dict__ else len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return super().__iter__() if "_metadata" in self.__dict__ else iter(self._pairs)

    # The base takes only operands of the class of `self`, which would leave its own objects out.

    def __add__(self, other: Any) -> Any:
        return grpc.aio.Metadata(*self) + other

    def __eq__(self, other: object) -> bool:
        return bool(grpc.aio.Metadata(*self) == other)

    __hash__ = None  # type: ignore[assignment]  # It can be changed.
