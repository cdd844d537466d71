"""Compiler: a message type and the rules that hold for it become a Plan, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy.codegen import padding, steps
from dpmesh.policy.codegen.source import Source
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.compile.anys import is_any, together
from dpmesh.policy.compile.fragment import CountCut, Fragment, ReadUnits
from dpmesh.policy.compile.protected_types import is_protected, is_strict
from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.compile.unannotated_types import UnannotatedTypes
from dpmesh.policy.compile.walk import Walk
from dpmesh.policy.diagnostics import Diagnostic
from dpmesh.policy.kinds import memoize
from dpmesh.policy.kinds.any import KIND as ANY
from dpmesh.policy.plan import Anys, Build, Memos, Plan, Pseudonymise, Scope
from dpmesh.policy.rulebook import Rulebook
from dpmesh.policy.sizes import Size, unbounded

# The longest message that pad_to may ask for, in bytes: far above gRPC's usual limit of 4 MiB.
_SIZE_LIMIT = 2**26


def compile_message(message: Descriptor, book: Rulebook) -> tuple[Plan | None, list[Diagnostic]]:
    """Compiles one message type.

    Args:
        message: The type.
        book: The rules that hold.

    Returns:
        The plan (None when nothing can ever be protected, or when a diagnostic is an error), and all diagnostics.
    """
    lookup, types = RuleLookup(book), UnannotatedTypes(book)
    diagnostics = lookup.diagnostics
    plan = None
    try:
        if not _is_protected(message, book, lookup):
            _refuse_idle(message, lookup)
            if diagnostics.found or not is_strict(message, book):
                if not diagnostics.has_errors and types.reaches(message):
                    plan = _open_plan(message, types, lookup)
                return plan, diagnostics.found
        # Kinds generate code while the walk plans their fields, too.
        with Source(message.full_name) as source:
            walk = Walk(diagnostics, types)
            fragment = walk.message(message, lookup, "", 1, ())
            _check_pad_to(message, fragment.size, lookup)
            memoize.check(fragment, diagnostics)
            if not diagnostics.has_errors:
                plan = _plan(message, fragment, lookup, walk, source)
    except AnnotationError as error:
        diagnostics.unreadable(error)
        return None, diagnostics.found
    return plan, diagnostics.found


def _is_protected(message: Descriptor, book: Rulebook, lookup: RuleLookup) -> bool:
    """Whether to walk through a type: also where a rule can't be read, so that this hides no other error."""
    try:
        return is_protected(message, book)
    except AnnotationError as error:
        lookup.diagnostics.unreadable(error)
        return True


def _refuse_idle(message: Descriptor, lookup: RuleLookup) -> None:
    """Refuses rules without effect in a type that leaves as it is: they show that protection was meant."""
    idle = [(message.full_name, "epsilon", lookup.message(message).rules.HasField("epsilon"))]
    idle.append((message.full_name, "pad-to", bool(lookup.message(message).rules.pad_to)))
    idle += [(o.full_name, "oneof-choice", lookup.oneof(o).rules.HasField("epsilon")) for o in message.oneofs]
    idle += [(f.full_name, "max-items", lookup.field(f).rules.max_items > 0) for f in message.fields]
    idle += [(f.full_name, "length", lookup.field(f).rules.length > 0) for f in message.fields]
    for field in message.fields:
        lookup.refuse_idle_paths(field)
    idle += [(f.full_name, "memoize", lookup.field(f).rules.HasField("memoize")) for f in message.fields]
    for element, rule, is_set in idle:
        if is_set:
            lookup.diagnostics.error(
                element,
                rule,
                "has a rule, but nothing here is protected",
                "annotate the fields, or remove it",
            )


def _check_pad_to(message: Descriptor, size: Size, lookup: RuleLookup) -> None:
    """Refuses sizes that make no sense or are too small, and a type that uses the field of the padding."""
    sizes = list(lookup.message(message).rules.pad_to)
    if not sizes:
        return
    name, diagnostics = message.full_name, lookup.diagnostics
    if sizes != sorted(set(sizes)) or not padding.LEAST <= sizes[0] <= sizes[-1] <= _SIZE_LIMIT:
        text = f"pad_to must be ascending sizes from {padding.LEAST} to {_SIZE_LIMIT} bytes"
        diagnostics.error(name, "pad-to", text, "such as pad_to: [256, 1024]")
        return
    # A longer message would be refused at its release, after it was charged.
    needed = (size.smallest if size.largest is None else size.largest) + padding.LEAST
    if needed > sizes[-1]:
        verb = "can be" if size.largest is not None else "is at least"
        text = f"{verb} {needed} bytes long with its padding, and the largest size of pad_to is {sizes[-1]}"
        diagnostics.error(name, "pad-to", text, f"make the last size {needed} or more")
    if padding.FIELD in message.fields_by_number:
        text = f"has a field of its own with the number {padding.FIELD}, which holds the padding of pad_to"
        diagnostics.error(name, "pad-to", text, "give the field another number, or remove pad_to")


def _plan(message: Descriptor, fragment: Fragment, lookup: RuleLookup, walk: Walk, source: Source) -> Plan:
    new = GetMessageClass(message)
    scopes = [Scope(scope.path, scope.cost) for scope in fragment.units]
    ownerless = fragment.local + fragment.central
    if ownerless != Cost.ZERO:
        scopes.append(Scope("", ownerless))
    noised = [field for field in fragment.fields if field.mechanism_name]
    # A message that can hold Anys is opened in a copy first, and its plan reads that copy.
    fields = None if fragment.anys else steps.flat_fields([*fragment.steps, *fragment.blank_steps])
    readers, unit = [scope.read for scope in fragment.units], fragment.unit
    if fields is not None and fragment.plain_unit is not None:
        unit = read = _from_values(fields, *fragment.plain_unit)
        readers = [lambda values: (read(values),)]
    pad_to = tuple(lookup.message(message).rules.pad_to)

    def builder(written: Sequence[Step]) -> Build:
        made = steps.build(new, written, fields, discard=fragment.copies)
        return padding.padded(made, pad_to, message.full_name) if pad_to else made

    build, build_blank = builder(fragment.steps), builder(fragment.blank_steps)
    return Plan(
        descriptor=message,
        version=lookup.version(),
        fields=tuple(fragment.fields),
        scopes=tuple(scopes),
        snapshot=steps.copier(new) if fields is None else steps.reader(fields),
        payers=_payers(readers, ownerless != Cost.ZERO),
        unit=unit if len(scopes) == 1 else None,
        build=_unopened(message) if fragment.anys else build,
        build_blank=_unopened(message) if fragment.anys else build_blank,
        mechanisms=tuple(sorted({field.mechanism_name for field in noised})),
        protected=sum(field.kind.protects for field in fragment.fields),
        cost=sum((scope.cost for scope in scopes), Cost.ZERO),
        delta=sum(field.delta * field.instances for field in noised),
        size=fragment.size,
        labels=tuple(sorted(walk.labels)),
        messages=tuple(sorted(walk.messages)),
        ownerless=(fragment.local, fragment.central),
        anys=Anys(together(fragment.anys), build, build_blank) if fragment.anys else None,
        count_cut=_count_cut(fragment.cuts) if fragment.cuts else None,
        shows_presence=tuple(fragment.shows_presence),
        pad_to=pad_to,
        memos=_memos(fragment, builder, unit, lookup.version()),
        source=source.text,
    )


def _memos(
    fragment: Fragment,
    builder: Callable[[Sequence[Step]], Build],
    unit: Callable[[Any], bytes] | None,
    version: str,
) -> Memos | None:
    """What the memoized fields of a message need beside its plan."""
    plans = fragment.memoized
    if not plans:
        return None
    assert unit is not None
    assert plans[0].memo is not None
    labels = [version, *(memoize.label_of(plan) for plan in plans)]
    return Memos(
        epoch=plans[0].memo.epoch,
        cost=sum((plan.cost for plan in plans), Cost.ZERO),
        label="\0".join(labels).encode(),
        unit=unit,
        build=builder(fragment.replay_steps),
    )


def _open_plan(message: Descriptor, types: UnannotatedTypes, lookup: RuleLookup) -> Plan:
    """The plan of a type of which nothing is protected but what its Anys pack."""
    holders = types.any_fields(message, "")
    if is_any(message):
        holders = iter([("value", message.fields_by_name["value"])])
    names, labels = types.around(message)
    new = GetMessageClass(message)

    def copied(source: Message, _pseudonymise: Pseudonymise) -> Message:
        target = new()
        target.CopyFrom(source)
        target.DiscardUnknownFields()
        return target

    fields = [ANY.plan_any(path, field, types.rule_of(field), lookup.diagnostics) for path, field in holders]
    return Plan(
        descriptor=message,
        version=lookup.version(),
        fields=tuple(fields),
        scopes=(),
        snapshot=steps.copier(new),
        payers=lambda _: (),
        unit=None,
        build=_unopened(message),
        build_blank=_unopened(message),
        mechanisms=(),
        protected=0,
        cost=Cost.ZERO,
        delta=0.0,
        size=unbounded(fields[0].path if fields else message.full_name),
        labels=tuple(sorted(labels)),
        messages=tuple(sorted(names)),
        anys=Anys(types.find, copied, copied, alone=True, extendable=types.extendable(message)),
    )


def _unopened(message: Descriptor) -> Callable[[Message, Pseudonymise], NoReturn]:
    """Refuses a message whose Anys are still packed."""

    def refuse(_message: Message, _pseudonymise: Pseudonymise) -> NoReturn:
        raise ProtectionError("INTERNAL", message.full_name, "can hold an Any, and has to be opened first")

    return refuse


def _from_values(
    fields: Sequence[str], name: str, canonical: Callable[[Any], bytes]
) -> Callable[[Any], bytes]:
    """Reads a unit's id from a tuple of the values of some fields."""
    at = fields.index(name)
    return lambda values: canonical(values[at])


def _count_cut(cuts: Sequence[CountCut]) -> CountCut:
    return lambda message: sum(count(message) for count in cuts)


def _payers(readers: Sequence[ReadUnits], ownerless: bool) -> Callable[[Any], Sequence[tuple[int, bytes]]]:
    """What tells who pays for a message, by index of the scope; the scope of no unit is the last."""
    last = len(readers)

    def payers(message: Any) -> Sequence[tuple[int, bytes]]:
        found = [(index, unit) for index, read in enumerate(readers) for unit in read(message)]
        if ownerless:
            found.append((last, b""))
        return found

    return payers
