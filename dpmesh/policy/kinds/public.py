"""Public: the field leaves as it is."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.sizes import public
from dpmesh.v1 import privacy_pb2 as pb


class Public(FieldKind):
    """Copies the field, with all that is in it."""

    name = "public"
    passes = True
    protects = False

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        if site.max_items:
            text = "max_items cuts nothing that leaves as it is"
            site.error("max-items", text, "remove it")
        site.lookup.refuse_idle_paths(site.field)
        if site.lookup.holds_rules(site.field):
            text = "leaves as it is, with fields in it whose own rules protect them elsewhere"
            site.warn("public", text, "remove `public`, and these rules hold")
        self.copy(fragment, site)

    def copy(self, fragment: Fragment, site: FieldSite) -> None:
        """Adds the field without a check: for fields without a rule, too."""
        fragment.add_copy(site.field)
        fragment.size += public(site.field, site.path)
        fragment.fields.append(self.plan(site, pb.Public()))

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description("as it is")


KIND = Public()
