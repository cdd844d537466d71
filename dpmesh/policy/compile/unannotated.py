"""Fields without a kind, and with nothing in them that has one: Anys, and what their message's rule decides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dpmesh.policy.compile import anys
from dpmesh.policy.compile.fragment import Fragment, into_all
from dpmesh.policy.descriptors import inside_of, mark
from dpmesh.policy.kinds.any import KIND as ANY
from dpmesh.policy.kinds.kind import FieldSite
from dpmesh.policy.kinds.public import KIND as PUBLIC
from dpmesh.policy.kinds.suppress import KIND as SUPPRESS
from dpmesh.policy.rulebook import UNANNOTATED
from dpmesh.policy.sizes import unbounded
from dpmesh.v1 import privacy_pb2 as pb

if TYPE_CHECKING:
    from dpmesh.policy.compile.walk import Walk


# These hold whatever JSON holds. Their fields take no rules, because they hold each other.
_FREE = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))


def add(walk: Walk, fragment: Fragment, site: FieldSite, rule: int) -> None:
    """Adds a field without a kind.

    Args:
        walk: Where to report, and what knows of Anys in messages without rules.
        fragment: Of the message that holds the field.
        site: The field.
        rule: What the message says of such fields (MessageRules.Unannotated).
    """
    if anys.holds_any(site.field):
        _any(walk, fragment, site, rule)
        return
    site.lookup.refuse_idle_paths(site.field)
    site = replace(site, origin=UNANNOTATED)
    if site.max_items or site.public_length:
        site.error("max-items", "max_items and length protect nothing here", "remove it")
    if rule == pb.MessageRules.REJECT:
        text = "has no annotation, and its message rejects that"
        site.error("unannotated", text, "annotate it")
    elif rule == pb.MessageRules.SUPPRESS:
        SUPPRESS.add(fragment, site, pb.Suppress())
    else:
        text, fix = "has no annotation and leaves as it is", "say `public` if that is right"
        if (inside := inside_of(site.field)) is not None and inside.full_name in _FREE:
            text += f"; {inside.full_name} holds free text, names and numbers, for which there can be no rule"
            fix = f"suppress it, or {fix}"
        site.warn("unannotated", text, fix)
        PUBLIC.copy(fragment, site)
        _inner_anys(walk, fragment, site)


def _any(walk: Walk, fragment: Fragment, site: FieldSite, rule: int) -> None:
    """A field of Anys: the step copies them, after the release has protected what they pack."""
    field = site.field
    rule = walk.types.rule_of(field, rule)
    if site.max_items or site.public_length:
        text = "max_items and length cut no field that holds Anys"
        site.error("max-items", text, "remove it")
    if field.is_required and rule == pb.MessageRules.SUPPRESS:
        text = "is required, so its message can't be sent where the Any is dropped"
        site.error("required", text, "make it optional")
    fragment.add_copy(field)
    fragment.size += unbounded(site.path)
    fragment.anys.append(anys.directly(field, rule))
    fragment.fields.append(ANY.plan_any(site.path, field, rule, walk.diagnostics))


def _inner_anys(walk: Walk, fragment: Fragment, site: FieldSite) -> None:
    """Anys in a message without rules: what they pack is protected, and all else leaves as it is."""
    inside = inside_of(site.field)
    if inside is None or not walk.types.reaches(inside, strict=True):
        return
    fragment.anys.append(anys.within(into_all(site.field), walk.types.find_in_protected))
    names, labels = walk.types.around(inside, strict=True)
    walk.messages |= names
    walk.labels |= labels
    for path, field in walk.types.any_fields(inside, f"{site.path}{mark(site.field)}."):
        fragment.fields.append(ANY.plan_any(path, field, walk.types.rule_of(field), walk.diagnostics))
