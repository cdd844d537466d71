"""Status: the gRPC status with which an RPC ends. The one file with gRPC's codes for dpmesh's refusals."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from dpmesh.errors import DpmeshError
from dpmesh.mesh import refusals
from dpmesh.mesh.refusals import Category, Refusal

# Where gRPC carries a serialized google.rpc.Status (grpc_status.rpc_status reads it).
DETAILS_KEY = "grpc-status-details-bin"
# Tells a client whose retry policy names the status not to try again (gRFC A6, "Pushback").
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")

_CODES = {
    Category.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Category.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Category.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Category.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.INTERNAL: grpc.StatusCode.INTERNAL,
}

_NANOSECONDS = 1_000_000_000


class Failure(NamedTuple):
    """How an RPC ends.

    Attributes:
        code: A grpc.StatusCode, or what a handler has set as one.
        text: The status message.
        trailing: Trailing metadata, as pairs.
    """

    code: Any
    text: str
    trailing: tuple[tuple[str, str | bytes], ...] = ()


def refusal(error: DpmeshError) -> Failure:
    """The status of a message that was refused."""
    return failure(refusals.of(error))


def failure(refused: Refusal) -> Failure:
    """The status of a refusal, with google.rpc.ErrorInfo in its details, and RetryInfo where waiting helps."""
    code = _CODES[refused.category]
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=refused.reason, domain=refusals.DOMAIN, metadata=refused.details)
    ]
    if refused.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(refused.retry_after * _NANOSECONDS))
        details.append(retry)
    status = status_pb2.Status(code=code.value[0], message=refused.text)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailing: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
    return Failure(code, refused.text, trailing if refused.retryable else (*trailing, _NO_RETRY))


async def end(context: Any, failure: Failure) -> None:
    """Ends an RPC on a server with a status.

    The metadata is set beforehand: contexts of other libraries may take nothing but a code and a text.

    Raises:
        grpc.aio.AbortError: Always, as gRPC's `abort` does.
    """
    if failure.trailing:
        context.set_trailing_metadata(failure.trailing)
    await context.abort(failure.code, failure.text)


def rpc_error(failure: Failure) -> grpc.aio.AioRpcError:
    """The exception that a client sees where an RPC ends with a status before it reached the peer."""
    return grpc.aio.AioRpcError(
        failure.code,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(*failure.trailing),
        details=failure.text,
        debug_error_string=f"dpmesh: {failure.text}",
    )


def deadline() -> grpc.aio.AioRpcError:
    """The exception that a caller sees if its deadline passes while its message is being protected."""
    return rpc_error(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
