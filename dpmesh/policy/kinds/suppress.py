"""Suppress: the field never leaves."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.plan import FieldPlan


class Suppress(FieldKind):
    """Drops the field, with all that is in it."""

    name = "suppress"

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        if site.field.is_required:
            text = "is required, so its message can't be sent without it"
            site.error("required", text, "protect it, or make it optional")
        super().add(fragment, site, rules)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description("nothing")


KIND = Suppress()
