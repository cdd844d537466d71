"""Send slots: how far apart the requests of a method leave, and whether a cover can stand for any of them."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from dpmesh import method_name
from dpmesh.errors import AnnotationError
from dpmesh.policy.diagnostics import Diagnostic, Severity
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.plan import FieldPlan, Model, Plan

# Timers of event loops are exact to about a millisecond.
SHORTEST = 0.01
LONGEST = 86_400.0


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
    if not SHORTEST <= seconds <= LONGEST:
        text = f"send_slot is {seconds:g} s"
        raise AnnotationError("send-slot", name, text, "a length from 0.01s to 86400s, such as 1s")
    if method.server_streaming and not method.client_streaming:
        text = "send_slot is for streams of requests, and for methods with one request and one response"
        raise AnnotationError("send-slot", name, text, "remove it")
    if plan is None:
        text = f"a cover can be told from other requests, because nothing of {method.input_type.full_name} is protected"
        raise AnnotationError("send-slot", name, text, "protect it, or remove send_slot")
    return seconds


def telltales(method: MethodDescriptor, plan: Plan) -> Iterator[Diagnostic]:
    """A warning about the fields by which a cover can be told from other requests, if there are some."""
    paths = [field.path for field in plan.fields if _shows_cover(field)]
    if paths or plan.anys is not None:
        yield Diagnostic(
            Severity.WARNING,
            "slot-cover",
            method_name.name_of(method),
            f"a cover can be told from other requests by {', '.join(paths) or 'what their Anys pack'}",
            "suppress them, or give the cover what all requests of a stream or sender hold there",
        )


def _shows_cover(field: FieldPlan) -> bool:
    """Whether a field may show that it is absent, or that it holds what it held in other covers."""
    kind = field.kind
    linked = kind.pseudonymises(field) and not kind.is_unit
    far = isinstance(kind, NoisedKind) and kind.hides_near_values_only(field)
    return (
        kind.passes
        or linked
        or far
        or field.model is Model.CENTRAL
        or bool(field.public_lengths or field.memo)
    )
