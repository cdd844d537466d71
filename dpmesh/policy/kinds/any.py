"""Any: a field of google.protobuf.Any without a rule: what it packs is protected at release, by its own rules."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.policy.compile.anys import ANY
from dpmesh.policy.diagnostics import Diagnostics
from dpmesh.policy.kinds.kind import Description, FieldKind
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.rulebook import UNANNOTATED
from dpmesh.v1 import privacy_pb2 as pb

_FATES: dict[int, str] = {
    pb.MessageRules.PASS: "leave as they are",
    pb.MessageRules.SUPPRESS: "are dropped",
    pb.MessageRules.REJECT: "are refused",
}


@dataclass(frozen=True, slots=True)
class AnyPayload:
    """What a plan knows of an Any.

    Attributes:
        unannotated: What becomes of packed types without rules (MessageRules.Unannotated).
    """

    unannotated: int


class AnyKind(FieldKind):
    """Not in the schema: what a field of Anys is that has no rule."""

    name = "any"
    protects = False

    def plan_any(
        self, path: str, field: FieldDescriptor, unannotated: int, diagnostics: Diagnostics
    ) -> FieldPlan:
        """The plan of a field that holds Anys, with a warning that people should know of it."""
        verb = "is" if field.full_name == f"{ANY}.value" else "holds"
        diagnostics.warn(
            field.full_name,
            "any",
            f"{verb} an Any: what it packs is judged at release, and types without rules {_FATES[unannotated]}; "
            "its presence, number and type are seen",
            "suppress it, or say `public` if all that it packs may leave as it is",
        )
        return FieldPlan(path, field.full_name, self, UNANNOTATED, payload=AnyPayload(unannotated))

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description(f"judged at release; types without rules {_FATES[plan.payload.unannotated]}")


KIND = AnyKind()
