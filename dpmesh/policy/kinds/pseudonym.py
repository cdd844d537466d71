"""Pseudonym: an id leaves as a keyed hash of an epoch, a namespace and a consumer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.policy.codegen.source import function
from dpmesh.policy.codegen.steps import Run, Step, Transform
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import INTEGER_RANGES, F, is_map, is_wrapper, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import epochs, ids
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.kinds.words import duration
from dpmesh.policy.plan import FieldPlan, Pseudonymise
from dpmesh.policy.sizes import Size, of_values
from dpmesh.v1 import privacy_pb2 as pb


@dataclass(frozen=True, slots=True)
class PseudonymPayload:
    """How long a pseudonym lasts, and which fields share it.

    Attributes:
        epoch: The length of an epoch, in seconds.
        namespace: Fields with one namespace have equal pseudonyms for equal ids.
    """

    epoch: float
    namespace: str


class Pseudonym(FieldKind):
    """Replaces ids. It needs no noise, so it leaves where the budget is exhausted, too.

    It shows which ids are equal and which are absent, so what leaves is not differentially private.
    """

    name = "pseudonym"

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: pb.Pseudonym) -> None:
        try:
            plan = self.plan(site, rules)
        except BadRuleError as bad:
            site.bad_rule(bad)
            return
        text = "is linked within each epoch: a pseudonym is not differentially private"
        site.warn("pseudonym", text, "suppress it if the receiver need not count or join by it")
        if ids.is_short(scalar(site.field)):
            site.warn(
                "pseudonym-collision", "32-bit pseudonyms of different ids collide", "use a string or int64"
            )
        fragment.fields.append(plan)
        fragment.values += plan.repeats
        fragment.size += self.size(site, plan)
        fragment.shows_presence.append(f"{site.field.full_name} leaves as a pseudonym")
        fragment.add_step(_step(site.field, plan))

    @override
    def plan(self, site: FieldSite, rules: pb.Pseudonym) -> FieldPlan:
        field = site.field
        if is_map(field) or not ids.fits(scalar(field)):
            raise BadRuleError(
                "kind-type", f"pseudonym does not fit {type_name(field)}", "string, bytes or integer"
            )
        epoch = epochs.checked_seconds(rules)
        return FieldPlan(
            site.path,
            field.full_name,
            self,
            site.origin,
            repeats=site.repeats(),
            instances=site.instances,
            payload=PseudonymPayload(epoch, rules.namespace or field.full_name),
        )

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        return of_values(site.field, ids.encoded_ends(scalar(site.field)), plan.repeats, plan.repeats)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        shared = "" if plan.payload.namespace == plan.name else f" in {plan.payload.namespace}"
        return Description(
            f"pseudonym per {duration(plan.payload.epoch)}{shared} (links messages, not differentially private)"
        )

    @override
    def pseudonym_epoch(self, plan: FieldPlan) -> float | None:
        return float(plan.payload.epoch)


KIND = Pseudonym()

# From an id and the pseudonym function to the pseudonym in the field's type.
_Hide = Callable[[Any, Pseudonymise], Any]


def _step(field: FieldDescriptor, plan: FieldPlan) -> Step:
    """Writes a pseudonym for each id, whether it was set or not."""
    holder, payload = scalar(field), plan.payload
    # "@" ends the names that a transform marks.
    namespace = repr(payload.namespace).replace("@", r"\x40")
    alias = f"alias({_canonical(holder)}, {payload.epoch!r}, {namespace})"
    hidden = ids.in_type(holder, alias)
    if not field.is_repeated and not is_wrapper(field):
        return field.name, Transform(None, f"out = {hidden}", {})
    hide: _Hide = function("hide", "value, alias", "", hidden, {})
    if field.is_repeated:
        filler = {F.TYPE_STRING: "", F.TYPE_BYTES: b""}.get(holder.type, 0)
        return _repeated(field, hide, plan.repeats, filler)
    return _wrapped(field.name, hide)


def _canonical(holder: FieldDescriptor) -> str:
    """The expression of an id's bytes: text in UTF-8, bytes as they are, integers in decimal."""
    if holder.type in INTEGER_RANGES:
        return "b'%d' % value"
    # Text that came over the wire and is no UTF-8 reads as bytes.
    return "value.encode() if value.__class__ is str else value" if holder.type == F.TYPE_STRING else "value"


def _wrapped(name: str, hide: _Hide) -> Run:
    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        getattr(target, name).value = hide(getattr(source, name).value, pseudonymise)

    return step


def _repeated(field: FieldDescriptor, hide: _Hide, items: int, filler: Any) -> Run:
    """Writes exactly `items` pseudonyms: ids are cut, or filled up with empty ones."""
    name, wrapped = field.name, is_wrapper(field)

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        held = getattr(source, name)[:items]
        values = [box.value for box in held] if wrapped else list(held)
        values += [filler] * (items - len(values))
        hidden = [hide(value, pseudonymise) for value in values]
        into = getattr(target, name)
        if wrapped:
            for value in hidden:
                into.add(value=value)
        else:
            into.extend(hidden)

    return step
