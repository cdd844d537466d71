"""Send slots: how far apart the requests of a method leave, and whether a cover can stand for any of them."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from dpmesh import method_name
from dpmesh.errors import AnnotationError
from dpmesh.policy.diagnostics import Diagnostic, Severity
from dpmesh.policy.plan import Model, Plan

# Timers of event loops are exact to about a millisecond.
_SHORTEST = 0.01
_LONGEST = 86_400.0


def checked(method: MethodDescriptor, slot: Duration, plan: Plan | None) -> float:
    """The seconds between two slots.

    Args:
        method: Whose requests leave in slots.
        slot: What its rule says.
        plan: That of its requests.

    Raises:
        AnnotationError: There can be no such slots.
    """
    seconds = slot.seconds + slot.nanos / 1e9
    name = method_name.name_of(method)
    if not _SHORTEST <= seconds <= _LONGEST:
        text = f"send_slot is {seconds:g} s"
        raise AnnotationError("send-slot", name, text, "a length from 0.01s to 86400s, such as 1s")
    if method.server_streaming and not method.client_streaming:
        text = "send_slot is for streams of requests, and for methods with one request and one response"
        raise AnnotationError("send-slot", name, text, "remove it")
    if plan is None:
        text = f"a cover can be told from other requests, because nothing of {method.input_type.full_name} is protected"
        raise AnnotationError("send-slot", name, text, "protect it, or remove send_slot")
    return seconds


def cover_warnings(method: MethodDescriptor, plan: Plan) -> Iterator[Diagnostic]:
    """Warns of what tells a cover from other requests, if anything does."""
    reasons = list(_reasons(plan))
    if reasons:
        yield Diagnostic(
            Severity.WARNING,
            "slot-cover",
            method_name.name_of(method),
            f"a cover can be told from other requests: {'; '.join(reasons)}",
            "protect or suppress it, or give the cover what all requests of a stream or sender hold there",
        )


def _reasons(plan: Plan) -> Iterator[str]:
    """What tells whether something is there, in words."""
    # A cover names the unit of its stream or sender, but not how many there are.
    units = tuple(f"{field.name} leaves" for field in plan.fields if field.kind.is_unit)
    yield from (words for words in plan.shows_presence if not words.startswith(units))
    yield from (
        f"the number of {scope.path} is shown" for scope in plan.scopes if {"[", "{"} & set(scope.path)
    )
    for field in plan.fields:
        if field.memo is not None:
            yield f"{field.name} repeats its answers"
        if field.model is Model.CENTRAL:
            yield f"{field.name} is an aggregate, whose noise does not hide its absence"
    if plan.anys is not None:
        yield "Anys leave only where they were there"
