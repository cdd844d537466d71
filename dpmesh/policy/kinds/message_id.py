"""Message id: 128 random bits for each message, whatever was there."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from dpmesh.policy.codegen import steps
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import F, type_name
from dpmesh.policy.kinds import ids
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.sizes import of_values


class MessageId(FieldKind):
    """Replaces the field by random bits. It needs no noise, so it leaves where the budget is exhausted, too."""

    name = "message_id"

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        field = site.field
        if field.is_repeated or field.type not in (F.TYPE_STRING, F.TYPE_BYTES):
            text = f"message_id does not fit {type_name(field)}"
            site.error("kind-type", text, "string or bytes")
            return
        fragment.add_step(steps.random_id(field))
        fragment.values += 1
        fragment.size += of_values(field, ids.encoded_ends(field))
        super().add(fragment, site, rules)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description("128 random bits")


KIND = MessageId()
