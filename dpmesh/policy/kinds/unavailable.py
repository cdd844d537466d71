"""A kind that the schema has and this version of dpmesh has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.kinds.kind import Description, FieldKind
from dpmesh.policy.kinds.site import FieldSite
from dpmesh.policy.plan import FieldPlan

if TYPE_CHECKING:
    from dpmesh.policy.compile.rule_lookup import RuleLookup


class Unavailable(FieldKind):
    """Refuses all its fields.

    Args:
        name: Of the kind in the schema.
    """

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc] # Each instance stands for another kind.

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any, lookup: RuleLookup) -> None:
        text = f"{self} does not work yet"
        lookup.diagnostics.error(
            site.field.full_name, "kind-not-available", text, "use suppress until it does"
        )

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description("nothing")
