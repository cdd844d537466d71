"""Nesting: messages in messages, repeated and in maps: how often they leave, and what their presence shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError
from dpmesh.policy.codegen import nested_steps, steps
from dpmesh.policy.compile.fragment import Fragment, cut_from, into_child, over_elements, over_entries
from dpmesh.policy.descriptors import inside_of, is_map, oneof_of, type_name
from dpmesh.policy.diagnostics import BadRuleError, Diagnostics
from dpmesh.policy.kinds.kind import FieldSite, checked_items
from dpmesh.policy.kinds.words import short_path
from dpmesh.policy.sizes import entries, nested, unbounded

if TYPE_CHECKING:
    from dpmesh.policy.compile.walk import Walk

# A protobuf message is at most 2 GiB long, and each message in it takes two bytes or more.
INSTANCES_LIMIT = 2**30
_SHOWN_NAMES = 3


def add(walk: Walk, fragment: Fragment, site: FieldSite, stack: tuple[str, ...]) -> None:
    """Adds a field of messages whose fields have rules.

    Args:
        walk: Compiles the messages within.
        fragment: Of the message that holds the field.
        site: The field.
        stack: The types that the field stands in.
    """
    field, inside = site.field, inside_of(site.field)
    assert inside is not None
    if inside.full_name in stack:
        text = f"{type_name(field)} holds itself, so its loss has no bound"
        site.error("recursive", text, "use suppress")
    elif is_map(field):
        _map(walk, fragment, site, inside, stack)
    elif field.is_repeated:
        _repeated(walk, fragment, site, inside, stack)
    else:
        _single(walk, fragment, site, inside, stack)


def _single(
    walk: Walk, fragment: Fragment, site: FieldSite, inside: Descriptor, stack: tuple[str, ...]
) -> None:
    field, name = site.field, site.field.name
    if site.max_items or site.public_length:
        text = "max_items and length are for repeated fields and maps"
        site.error("max-items", text, "remove it")
    lookup = site.lookup.inside(field)
    inner = walk.message(inside, lookup, site.path + ".", site.instances, stack, owned=site.owned)
    chosen = oneof_of(field)
    when_set = inner.scoped and (
        not site.owned or (chosen is not None and site.lookup.oneof(chosen).rules.public)
    )
    if not when_set:
        _check_required(inner, walk.diagnostics)
        if inner.unit is not None:
            _check_presence(site, inner)
        if inner.central != Cost.ZERO:
            fragment.steps.append(steps.require_set(field))
        fragment.values += 1 + inner.values
    fragment.steps.append(nested_steps.child(name, steps.run_all(inner.steps), when_set=when_set))
    fragment.size += nested(field, inner.size, 0 if when_set else 1)
    fragment.add_nested(inner, 1, into_child(name))


def _repeated(
    walk: Walk, fragment: Fragment, site: FieldSite, inside: Descriptor, stack: tuple[str, ...]
) -> None:
    field, name = site.field, site.field.name
    items, inner = _elements(walk, site, inside, "[].", stack)
    fill = (site.owned or not inner.scoped) and not site.public_length
    if site.owned and inner.scoped:
        # Also where their number is public: whose messages they are is the outer unit's data.
        _check_presence(site, inner)
    if site.public_length:
        _show_number(fragment, site, inner)
    if fill:
        _check_required(inner, walk.diagnostics)
        if not inner.scoped and inner.shows_presence:
            site.warn(
                "length-shown",
                "what leaves as it is of its elements shows how many there are",
                "protect or suppress all of their fields, if the number is data",
            )
        if inner.central != Cost.ZERO:
            fragment.steps.append(steps.require_items(field, items))
        fragment.values += walk.checked_values(field.full_name, items * (1 + inner.values))
    blank = GetMessageClass(inside)()
    run = steps.run_all(inner.steps)
    fragment.steps.append(nested_steps.children(name, run, items, blank, fill=fill))
    size = nested(field, inner.size, items if fill else 0, items)
    fragment.size += size if items else unbounded(site.path)
    fragment.add_nested(inner, max(items, 1), over_elements(name, items))


def _map(walk: Walk, fragment: Fragment, site: FieldSite, inside: Descriptor, stack: tuple[str, ...]) -> None:
    field, name = site.field, site.field.name
    items, inner = _elements(walk, site, inside, "{}.", stack)
    if inner.scoped and site.owned:
        site.error(
            "unit-nested",
            "holds messages that name a unit, inside a message that names one, and its keys show how many",
            "use a repeated message with max_items, or suppress the map",
        )
    site.warn(
        "map-keys",
        "the keys and their number leave as they are",
        "use a repeated message if they are data",
    )
    fragment.shows_presence.append(f"the keys of {field.full_name} leave as they are")
    if site.public_length:
        _show_number(fragment, site, inner)
    fragment.steps.append(nested_steps.entries(name, steps.run_all(inner.steps), items))
    fragment.size += entries(field, inner.size, items, site.path)
    fragment.add_nested(inner, max(items, 1), over_entries(name, items))


def _show_number(fragment: Fragment, site: FieldSite, inner: Fragment) -> None:
    """Notes that the number of a field's elements is public, for what stands around it and for what is in it."""
    if site.max_items:
        fragment.cuts.append(cut_from(site.field.name, site.max_items))
    fragment.shows_presence.append(f"the number of elements of {site.field.full_name} leaves as it is")
    inner.fields[:] = [
        replace(field, public_lengths=(site.path, *field.public_lengths)) for field in inner.fields
    ]


def _elements(
    walk: Walk, site: FieldSite, inside: Descriptor, mark: str, stack: tuple[str, ...]
) -> tuple[int, Fragment]:
    """The public length, and the fragment of an element.

    Elements that bring a unit of their own need no public length, unless an outer unit pays for them.
    """
    items = site.max_items
    instances = site.instances * max(items, 1)
    if instances > INSTANCES_LIMIT:
        text = (
            f"holds up to {instances:.2g} messages in one at {short_path(site.path)}, more than fit into one"
        )
        raise AnnotationError("size", site.field.full_name, text, "lower max_items")
    lookup = site.lookup.inside(site.field)
    inner = walk.message(inside, lookup, site.path + mark, instances, stack, owned=site.owned)
    if items or site.owned or not inner.scoped or inner.local + inner.central != Cost.ZERO:
        try:
            items = checked_items(items)
        except BadRuleError as bad:
            site.bad_rule(bad)
    return items, inner


def _check_required(inner: Fragment, diagnostics: Diagnostics) -> None:
    """Reports required fields without a value in a message that leaves even where there was none."""
    for name in inner.unset_required:
        text = "is required, and has no value where its message leaves without having been set"
        diagnostics.error(name, "required", text, "protect it, or make it optional")


def _check_presence(site: FieldSite, inner: Fragment) -> None:
    """Reports what tells a message that names a unit from a filled-in one, inside a message that names a unit.

    Whether the inner message is there is the outer unit's data, and the receiver always sees one. So nothing in it may
    leave that is there only when the message is: not even a pseudonym, because filled-in pseudonyms would not recur.
    """
    if not inner.shows_presence:
        return
    names = ", ".join(inner.shows_presence[:_SHOWN_NAMES])
    more = len(inner.shows_presence) - _SHOWN_NAMES
    site.error(
        "unit-nested",
        "names a unit inside a message that names one, so its presence is data of the outer unit, and would show: "
        + names
        + (f", and {more} more" if more > 0 else ""),
        "suppress the id (unit: {form: SUPPRESSED}) and protect or suppress the rest; or suppress the field; "
        "a member of a oneof with {public: true} shows its presence on purpose",
    )
