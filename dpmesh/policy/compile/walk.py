"""Walk: visits each field of a message type and of the messages within, and gathers what their kinds decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError
from dpmesh.policy.compile import nesting, oneofs, unannotated
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.compile.unannotated_types import UnannotatedTypes
from dpmesh.policy.descriptors import (
    DEEPEST,
    RESERVED_NAMES,
    extensions,
    inside_of,
    is_report,
    oneof_of,
    type_name,
)
from dpmesh.policy.diagnostics import Diagnostics
from dpmesh.policy.kinds.kind import FieldSite
from dpmesh.policy.kinds.loss import epsilon_share
from dpmesh.policy.kinds.words import short_path

# Fields of one plan, counted at every site where they occur: two fields of one type on each of many levels are few
# lines of a .proto file, and more sites than a process can compile.
SITES_LIMIT = 5_000
# What a message holds once everything that is missing is filled in: about what fits into gRPC's limit of 4 MiB.
VALUES_LIMIT = 500_000


@dataclass(frozen=True, slots=True)
class MessageSite:
    """Where a message type stands in the root message.

    Attributes:
        lookup: The rules that hold there.
        path: What comes before the names of its fields.
        instances: How often it occurs in one root message.
        stack: The types that it stands in, itself included.
        share: Each field's part of its epsilon.
        unannotated: Its rule for fields without one.
        owned: The message names a unit, or stands in one that does: that unit pays for everything in it.
    """

    lookup: RuleLookup
    path: str
    instances: int
    stack: tuple[str, ...]
    share: Fraction | None
    unannotated: int
    owned: bool


class Walk:
    """Walks a message type depth first, and asks the kind of each field with a rule to add it.

    Args:
        diagnostics: Where to report what is wrong.
        types: What finds Anys in messages without rules.

    Attributes:
        labels: Those of all message types on the way, so that wrapping a type evades no budget for its labels. Of
            types without rules, those in which an Any can lie.
        messages: The names of these types.
    """

    def __init__(self, diagnostics: Diagnostics, types: UnannotatedTypes) -> None:
        self.diagnostics = diagnostics
        self.types = types
        self.labels: set[str] = set()
        self.messages: set[str] = set()
        self._sites = 0

    def message(
        self,
        message: Descriptor,
        lookup: RuleLookup,
        path: str,
        instances: int,
        stack: tuple[str, ...],
        *,
        owned: bool = False,
    ) -> Fragment:
        """Compiles a message type at a site.

        Args:
            message: The type.
            lookup: The rules that hold at the site.
            path: What comes before the names of its fields.
            instances: How often it occurs in one root message.
            stack: The types that it stands in.
            owned: A message that it stands in names a unit.

        Raises:
            AnnotationError: The plan would be too large.
        """
        fragment = Fragment()
        resolved = lookup.message(message)
        rules = resolved.rules
        if resolved.path and rules.pad_to:
            text = (
                "has a pad_to, which is for messages that leave by themselves and not for those in one place"
            )
            self.diagnostics.error(resolved.path, "pad-to", text, f"set pad_to on {stack[0]}")
        elif stack and rules.pad_to:
            text = f"its pad_to has no effect where it stands inside {stack[-1]}"
            self.diagnostics.warn(message.full_name, "pad-to", text, f"set pad_to on {stack[0]} too")
        self.labels.update(rules.labels)
        self.messages.add(message.full_name)
        units = [field for field in message.fields if _is_unit(field, lookup)]
        site = MessageSite(
            lookup,
            path,
            instances,
            (*stack, message.full_name),
            epsilon_share(message, lookup),
            rules.unannotated,
            owned or bool(units),
        )
        if len(site.stack) > DEEPEST:
            text = f"stands more than {DEEPEST} messages deep, at {short_path(path)}"
            raise AnnotationError("size", message.full_name, text, "suppress a field above it")
        self._check_names(message, units)
        if units:
            self._ruled(units[0], fragment, site, owned=owned)
        for field in message.fields:
            if oneof_of(field) is None:
                self._field(field, fragment, site)
        for oneof in message.oneofs:
            self._oneof(oneof, fragment, site)
        if fragment.unit is not None:
            fragment.claim_for_unit(fragment.unit, path + units[0].name, owned=owned)
        elif fragment.units and not owned:
            self._check_deeper_units(message, fragment, path)
        fragment.values = self.checked_values(message.full_name, fragment.values)
        return fragment

    def checked_values(self, name: str, values: int) -> int:
        """Refuses what grows too large when everything that is missing is filled in."""
        if values <= VALUES_LIMIT:
            return values
        text = f"holds {values:,} values even where nothing was set; {VALUES_LIMIT:,} are allowed"
        self.diagnostics.error(name, "size", text, "lower max_items, or suppress fields")
        return 0

    def _check_names(self, message: Descriptor, units: Sequence[FieldDescriptor]) -> None:
        """Reports a second unit, and what protobuf allows but a protected message can't have."""
        if len(units) > 1:
            names = " and ".join(field.name for field in units)
            self.diagnostics.error(
                message.full_name, "unit-duplicate", f"has more than one unit: {names}", "mark one"
            )
        for field in message.fields:
            if field.name in RESERVED_NAMES:
                text = "has the name of a method of Python's messages, which it hides"
                self.diagnostics.error(field.full_name, "field-name", text, "rename it")
        for field in extensions(message):
            text = f"extends {message.full_name}, which is protected, so it never leaves"
            self.diagnostics.warn(field.full_name, "extension", text, "make it a field if it is needed")

    def _check_deeper_units(self, message: Descriptor, fragment: Fragment, path: str) -> None:
        """Reports a message that names no unit, beside or above units that its fields' messages name."""
        if fragment.local != Cost.ZERO:
            # The deeper unit does not pay for these values, and their message's presence does not hide either.
            report = self.diagnostics.error if path else self.diagnostics.warn
            deeper = fragment.units[0].path.removeprefix(path)
            text = f"has values that are not charged to the unit in {deeper}, but to no unit"
            fix = "mark the unit's id in the message that holds the values"
            report(message.full_name, "unit-deeper", text, fix)
        # A header may name the unit whose data the messages of other units are.
        heads = dict.fromkeys(scope.path.removeprefix(path).partition(".")[0] for scope in fragment.units)
        fields = {head: message.fields_by_name[head.rstrip("[]{}")] for head in heads}
        single = [field for head, field in fields.items() if head == field.name and oneof_of(field) is None]
        others = [
            field.name for field in fields.values() if single and inside_of(field) != inside_of(single[0])
        ]
        if others:
            text = f"shows which messages {' and '.join(others)} holds, and the unit in {single[0].name} does not pay"
            fix = "if they are data of that unit, mark its id in this message"
            self.diagnostics.warn(message.full_name, "unit-beside", text, fix)

    def _oneof(self, oneof: OneofDescriptor, fragment: Fragment, site: MessageSite) -> None:
        if len(oneof.fields) < 2:
            oneofs.refuse_idle(oneof, site.lookup.oneof(oneof), site.lookup)
            return
        members = [(field, Fragment()) for field in oneof.fields]
        for field, member in members:
            self._field(field, member, site)
        oneofs.add(fragment, oneof, members, site, site.lookup)

    def _field(self, field: FieldDescriptor, fragment: Fragment, site: MessageSite) -> None:
        self._sites += 1
        if self._sites > SITES_LIMIT:
            text = (
                f"{site.stack[0]} has more than {SITES_LIMIT:,} fields, counted at every place where they occur; "
                f"this is one too many at {short_path(site.path + field.name)}"
            )
            raise AnnotationError(
                "size", field.full_name, text, "suppress a field above it that holds messages"
            )
        kind = site.lookup.kind(field)
        if kind is None and site.lookup.field(field).rules.HasField("memoize"):
            self._refuse_memoize(field)
        if kind is None and is_report(field):
            self.diagnostics.error(
                field.full_name,
                "report",
                "holds a text that would leave as it is, because no rule makes a report of it",
                "(dpmesh.v1.field).categorical = {epsilon: 1}, or suppress",
            )
        elif kind is None and site.lookup.holds_rules(field):
            nesting.add(self, fragment, self._site(field, site, owned=site.owned), site.stack)
        elif kind is None:
            unannotated.add(self, fragment, self._site(field, site, owned=site.owned), site.unannotated)
        elif not kind.is_unit:
            self._ruled(field, fragment, site, owned=site.owned)

    def _ruled(self, field: FieldDescriptor, fragment: Fragment, site: MessageSite, *, owned: bool) -> None:
        """A field whose rule chooses a kind: the kind adds it, messages and maps as well."""
        kind, rules = site.lookup.kind(field), site.lookup.field(field).rules
        assert kind is not None
        before = len(fragment.fields)
        kind.add(fragment, self._site(field, site, owned=owned), getattr(rules, kind.name))
        added = fragment.fields[before:]
        if not added and self.diagnostics.has_errors:
            return  # The kind reported what is wrong.
        if rules.length and not any(plan.public_lengths for plan in added):
            text = f"{kind} on {type_name(field)} shows no number of elements, so length has no effect"
            self.diagnostics.error(field.full_name, "length", text, "remove it")
        if rules.HasField("memoize") and not any(plan.memo for plan in added):
            self._refuse_memoize(field)

    def _refuse_memoize(self, field: FieldDescriptor) -> None:
        self.diagnostics.error(field.full_name, "memoize", "memoizes nothing here", "remove memoize")

    def _site(self, field: FieldDescriptor, site: MessageSite, *, owned: bool) -> FieldSite:
        resolved = site.lookup.field(field)
        return FieldSite(
            field,
            site.path + field.name,
            resolved.origin,
            site.share,
            resolved.rules.max_items,
            site.instances,
            site.lookup,
            owned,
            bool(resolved.rules.length),
            resolved.rules.memoize if resolved.rules.HasField("memoize") else None,
        )


def _is_unit(field: FieldDescriptor, lookup: RuleLookup) -> bool:
    kind = lookup.kind(field)
    return kind is not None and kind.is_unit
