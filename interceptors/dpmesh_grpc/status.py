"""Status: every refusal as the status that the caller sees. The one file with gRPC codes for errors of dpmesh.

Texts and details name methods, fields, keys and budgets; never a value, and never another exception's text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from dpmesh.errors import (
    AnnotationError,
    BudgetExhaustedError,
    DpmeshError,
    IdentityError,
    LedgerError,
    NotOpenError,
    ProtectionError,
)

DOMAIN = "dpmesh"
# Where gRPC carries a serialized google.rpc.Status (grpc_status.rpc_status reads it).
DETAILS_KEY = "grpc-status-details-bin"
# What a peer reads instead of a handler's own words.
HANDLER_FAILED = "the handler failed; dpmesh keeps its exception's text from the peer"
WITHHELD = "dpmesh keeps the handler's details from the peer ([grpc] pass_status_details)"

IDENTITY_FAILED = "an identity, or what checks one, can't be had now"
FAILED = "dpmesh failed, so nothing may leave"
LEDGER_FAILED = "the ledger can't answer now, so nothing may leave or be let in"

# Tells a client whose retry policy names the status not to try again (gRFC A6, "Pushback").
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")

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
    """The status of a message that was refused, with google.rpc.ErrorInfo in its details.

    A client's retry policy may retry what is UNAVAILABLE for now. It is told not to retry anything else: the answer
    would be no other, and each attempt runs the handler and may be charged again.

    Args:
        error: Why it was refused.
    """
    if isinstance(error, BudgetExhaustedError):
        retry = () if error.retry_after is None else (_retry(error.retry_after),)
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        return _failure(code, "PRIVACY_BUDGET_EXHAUSTED", str(error), {"budget": error.budget}, *retry)
    if isinstance(error, LedgerError):
        # Its own text may name the ledger's file.
        text = str(error) if isinstance(error, NotOpenError) else LEDGER_FAILED
        return _failure(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE", text, {})
    if isinstance(error, IdentityError):
        if error.reason.startswith("TOKEN_"):
            return _failure(grpc.StatusCode.UNAUTHENTICATED, error.reason, str(error), {})
        # Others may name a file.
        return _failure(grpc.StatusCode.UNAVAILABLE, error.reason, IDENTITY_FAILED, {})
    if isinstance(error, ProtectionError):
        inside = error.reason == "INTERNAL"
        code = grpc.StatusCode.INTERNAL if inside else grpc.StatusCode.FAILED_PRECONDITION
        return _failure(code, error.reason, str(error), {"field": error.field})
    if isinstance(error, AnnotationError):
        where = {"field": error.element, "rule": error.rule}
        return _failure(grpc.StatusCode.FAILED_PRECONDITION, "BAD_ANNOTATION", str(error), where)
    # The text of an error that is none of these may be the application's own.
    return _failure(grpc.StatusCode.INTERNAL, "INTERNAL", FAILED, {})


def not_protected(method: str, key: str) -> Failure:
    """The status of a request that came without a dpmesh sender's mark where one is required."""
    text = f"{method} takes requests only from senders that protect them: metadata key {key!r} is missing"
    return _failure(grpc.StatusCode.FAILED_PRECONDITION, "NOT_PROTECTED", text, {"method": method})


async def end(context: Any, failure: Failure) -> None:
    """Ends an RPC on a server with a status.

    The metadata is set beforehand: contexts of other libraries may take nothing but a code and a text.

    Args:
        context: The handler's.
        failure: The status.

    Raises:
        grpc.aio.AbortError: Always, as gRPC's `abort` does.
    """
    if failure.trailing:
        context.set_trailing_metadata(failure.trailing)
    await context.abort(failure.code, failure.text)


def given_twice(text: str) -> Failure:
    """The status of an RPC that two of dpmesh's interceptors would protect, and so charge for twice.

    Args:
        text: What to do about it.
    """
    return _failure(grpc.StatusCode.INTERNAL, "INTERCEPTED_TWICE", text, {})


def rpc_error(failure: Failure) -> grpc.aio.AioRpcError:
    """The same as an exception, for a call that never reached the peer."""
    return grpc.aio.AioRpcError(
        failure.code,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(*failure.trailing),
        details=failure.text,
        debug_error_string=f"dpmesh: {failure.text}",
    )


def deadline() -> grpc.aio.AioRpcError:
    """What a caller sees whose time ran out while its message was being protected."""
    return rpc_error(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))


def _retry(seconds: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(int(seconds * _NANOSECONDS))
    return retry


def _failure(
    code: grpc.StatusCode,
    reason: str,
    text: str,
    metadata: dict[str, str],
    *more: error_details_pb2.RetryInfo,
) -> Failure:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in (info, *more):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailing: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
    return Failure(code, text, trailing if code is grpc.StatusCode.UNAVAILABLE else (*trailing, _NO_RETRY))
