"""Compiler: a message type and the rules that hold for it become a Plan, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy.codegen import steps
from dpmesh.policy.codegen.source import Source
from dpmesh.policy.compile import anys, oneofs
from dpmesh.policy.compile.epsilon_split import share
from dpmesh.policy.compile.findings import Diagnostics, is_protected, is_strict
from dpmesh.policy.compile.fragment import Fragment, Walk, into_child, over_elements, over_entries
from dpmesh.policy.descriptors import METHODS, F, choice_of, extensions, inside_of, is_map, type_name
from dpmesh.policy.diagnostics import BadRuleError, Diagnostic, Severity
from dpmesh.policy.kinds import transforms, units
from dpmesh.policy.kinds.fields import FieldSite, checked_items, plan_categorical, plan_numeric
from dpmesh.policy.plan import Anys, FieldPlan, Kind, Model, Plan, Pseudonymise, Scope
from dpmesh.policy.rulebook import UNANNOTATED, Rulebook
from dpmesh.v1 import privacy_pb2 as pb

_NOT_YET = {"location", "time", "vector", "histogram", "pseudonym"}

# Fields of one plan, counted at every place where they occur: two fields of one type on each of many levels are few
# lines of a .proto file, and more places than a process can compile.
PLACES_LIMIT = 5_000
# Protobuf's parsers refuse deeper messages.
DEPTH_LIMIT = 100
# What a message holds once everything that is missing is filled in: about what fits into gRPC's limit of 4 MiB.
VALUES_LIMIT = 500_000
# A protobuf message is at most 2 GiB long, and each message in it takes two bytes or more.
INSTANCES_LIMIT = 2**30
_SHOWN_NAMES = 3


def compile_message(message: Descriptor, book: Rulebook) -> tuple[Plan | None, list[Diagnostic]]:
    """Compiles one message type.

    Args:
        message: The type.
        book: The rules that hold.

    Returns:
        The plan (None when nothing can ever be protected, or when a problem is an error), and all problems found.
    """
    findings, loose = Diagnostics(book), anys.Loose(book)
    try:
        if not is_protected(message, book):
            _refuse_idle(message, findings)
            if findings.problems or not is_strict(message, book):
                return _open_plan(message, loose, findings), findings.problems
    except AnnotationError as error:
        findings.refused(error)
        return None, findings.problems
    compiler = _Compiler(findings, loose)
    with Source(message.full_name) as source:
        try:
            node = compiler.message(message, "", 1, ())
        except AnnotationError as error:
            findings.refused(error)
            return None, findings.problems
        if any(problem.severity is Severity.ERROR for problem in findings.problems):
            return None, findings.problems
        return _plan(message, node, findings.version(), compiler, source), findings.problems


def _refuse_idle(message: Descriptor, findings: Diagnostics) -> None:
    """Rules that protect nothing, in a type that would leave as it is: somebody meant to protect it."""
    idle = [(message.full_name, "epsilon", findings.message(message).rules.HasField("epsilon"))]
    idle += [
        (o.full_name, "oneof-choice", findings.oneof(o).rules.HasField("epsilon")) for o in message.oneofs
    ]
    idle += [(f.full_name, "max-items", findings.field(f).rules.max_items > 0) for f in message.fields]
    for element, rule, found in idle:
        if found:
            findings.error(
                element,
                rule,
                "has a rule, but nothing here is protected",
                "annotate the fields, or remove it",
            )


def _open_plan(message: Descriptor, loose: anys.Loose, findings: Diagnostics) -> Plan | None:
    """The plan of a type of which nothing is protected but what its Anys pack; None if it can hold none."""
    if any(problem.severity is Severity.ERROR for problem in findings.problems) or not loose.reaches(message):
        return None
    places = loose.places(message, "")
    if anys.is_any(message):
        places = iter([("value", message.fields_by_name["value"])])
    names, labels = loose.around(message)
    new = GetMessageClass(message)

    def copied(source: Message, _alias: Pseudonymise) -> Message:
        target = new()
        target.CopyFrom(source)
        target.DiscardUnknownFields()
        return target

    return Plan(
        descriptor=message,
        version=findings.version(),
        fields=tuple(_judged(path, entry, loose.rule_of(entry), findings) for path, entry in places),
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
        labels=tuple(sorted(labels)),
        messages=tuple(sorted(names)),
        anys=Anys(loose.find, copied, copied, alone=True, extendable=loose.extendable(message)),
    )


def _judged(path: str, entry: FieldDescriptor, rule: int, findings: Diagnostics) -> FieldPlan:
    """The row of a field that holds Anys, which people should know of."""
    name = entry.full_name
    what = "is" if name == f"{anys.ANY}.value" else "holds"
    findings.warn(
        name,
        "any",
        f"{what} an Any: what it packs is judged at release, and types without rules {anys.FATES[rule]}; "
        "its presence, number and type are seen",
        "suppress it, or say `public` if all that it packs may leave as it is",
    )
    return FieldPlan(path, name, Kind.ANY, UNANNOTATED, unannotated=rule)


def _unopened(message: Descriptor) -> Callable[[Message, Pseudonymise], NoReturn]:
    def refuse(_message: Message, _alias: Pseudonymise) -> NoReturn:
        raise ProtectionError("INTERNAL", message.full_name, "can hold an Any, and has to be opened first")

    return refuse


def _plan(message: Descriptor, node: Fragment, version: str, compiler: _Compiler, source: Source) -> Plan:
    new = GetMessageClass(message)
    scopes = [Scope(path, cost) for path, cost, _ in node.units]
    ownerless = node.local + node.central
    if ownerless != Cost.ZERO:
        scopes.append(Scope("", ownerless))
    noised = [entry for entry in node.fields if entry.mechanism is not None]
    # A message that can hold Anys is opened in a copy first, and its plan reads that copy.
    fields = None if node.anys else steps.flat_fields([*node.steps, *node.bare])
    walks, unit = [walk for _, _, walk in node.units], node.unit
    if fields is not None and node.plain_unit is not None:
        unit = read = units.from_values(fields, *node.plain_unit)
        walks = [lambda values: (read(values),)]
    build = steps.build(new, node.steps, fields, discard=node.copies)
    build_blank = steps.build(new, node.bare, fields, discard=node.copies)
    return Plan(
        descriptor=message,
        version=version,
        fields=tuple(node.fields),
        scopes=tuple(scopes),
        snapshot=steps.copier(new) if fields is None else steps.reader(fields),
        payers=_payers(walks, ownerless != Cost.ZERO),
        unit=unit if len(scopes) == 1 else None,
        build=_unopened(message) if node.anys else build,
        build_blank=_unopened(message) if node.anys else build_blank,
        mechanisms=tuple(sorted({entry.mechanism_name for entry in noised})),
        protected=sum(entry.kind not in (Kind.PUBLIC, Kind.UNIT, Kind.ANY) for entry in node.fields),
        cost=sum((scope.cost for scope in scopes), Cost.ZERO),
        delta=sum(entry.delta * entry.instances for entry in noised),
        labels=tuple(sorted(compiler.labels)),
        messages=tuple(sorted(compiler.messages)),
        ownerless=(node.local, node.central),
        anys=Anys(anys.together(node.anys), build, build_blank) if node.anys else None,
        source=source.text,
    )


def _payers(walks: Sequence[Walk], ownerless: bool) -> Callable[[Any], Sequence[tuple[int, bytes]]]:
    last = len(walks)

    def payers(message: Any) -> Sequence[tuple[int, bytes]]:
        found = [(index, unit) for index, walk in enumerate(walks) for unit in walk(message)]
        if ownerless:
            found.append((last, b""))
        return found

    return payers


@dataclass(frozen=True, slots=True)
class MessageSite:
    """Where the compiler stands: a message type at a place of the root message.

    Attributes:
        path: What comes before the names of its fields.
        instances: How often it occurs in one root message.
        stack: The types that it stands in, itself included.
        share: Each field's part of its epsilon.
        unannotated: Its rule for fields without one.
        owned: The message names a unit, or stands in one that does: that unit pays for everything in it.
    """

    path: str
    instances: int
    stack: tuple[str, ...]
    share: Fraction | None
    unannotated: int
    owned: bool


class _Compiler:
    """Walks a message type depth first.

    Attributes:
        labels: Those of all message types on the way: a budget for one of them is not got around by wrapping it. Of
            types without rules, those in which an Any can lie.
        messages: The names of these types.
    """

    def __init__(self, findings: Diagnostics, loose: anys.Loose) -> None:
        self.findings = findings
        self.loose = loose
        self.labels: set[str] = set()
        self.messages: set[str] = set()
        self._places = 0

    def message(
        self, message: Descriptor, path: str, instances: int, stack: tuple[str, ...], *, owned: bool = False
    ) -> Fragment:
        """Compiles a message type at a place.

        Args:
            message: The type.
            path: What comes before the names of its fields.
            instances: How often it occurs in one root message.
            stack: The types that it stands in.
            owned: A message that it stands in names a unit.

        Raises:
            AnnotationError: The plan would be too large.
        """
        findings, node = self.findings, Fragment()
        rules = findings.message(message).rules
        self.labels.update(rules.labels)
        self.messages.add(message.full_name)
        marked = [entry for entry in message.fields if findings.kind(entry) == "unit"]
        site = MessageSite(
            path,
            instances,
            (*stack, message.full_name),
            share(message, findings),
            rules.unannotated,
            owned or bool(marked),
        )
        if len(site.stack) > DEPTH_LIMIT:
            text = f"stands more than {DEPTH_LIMIT} messages deep, at {_short(path)}"
            raise AnnotationError("size", message.full_name, text, "suppress a field above it")
        if len(marked) > 1:
            names = " and ".join(entry.name for entry in marked)
            findings.error(
                message.full_name, "unit-duplicate", f"has more than one unit: {names}", "mark one"
            )
        self._odd(message)
        read = units.add(node, marked[0], path, findings, owned=owned) if marked else None
        for entry in message.fields:
            if choice_of(entry) is None:
                self._field(entry, node, site)
        for oneof in message.oneofs:
            if len(oneof.fields) < 2:
                oneofs.refuse_idle(oneof, findings.oneof(oneof), findings)
            else:
                members = [(entry, self._member(entry, site)) for entry in oneof.fields]
                oneofs.add(
                    node, oneof, members, path=path, instances=instances, share=site.share, findings=findings
                )
        if read is not None:
            node.own(read, path + marked[0].name, owned=owned)
        elif node.units and not owned:
            if node.local != Cost.ZERO:
                self._unowned(message, node, path)
            self._beside(message, node, path)
        node.values = self._fitting(message.full_name, node.values)
        return node

    def _fitting(self, name: str, values: int) -> int:
        """Refuses what grows too large when everything that is missing is filled in."""
        if values <= VALUES_LIMIT:
            return values
        text = f"holds {values:,} values even where nothing was set; {VALUES_LIMIT:,} are allowed"
        self.findings.error(name, "size", text, "lower max_items, or suppress fields")
        return 0

    def _unowned(self, message: Descriptor, node: Fragment, path: str) -> None:
        """Values beside a unit that stands deeper: it does not pay for them, nor does their message's presence hide."""
        found = self.findings.error if path else self.findings.warn
        found(
            message.full_name,
            "unit-deeper",
            f"has values that are not charged to the unit in {node.units[0][0].removeprefix(path)}, but to no unit",
            "mark the unit's id in the message that holds the values",
        )

    def _beside(self, message: Descriptor, node: Fragment, path: str) -> None:
        """A header that names a unit, beside messages that name others: these may be data of the header's unit."""
        heads = dict.fromkeys(unit.removeprefix(path).partition(".")[0] for unit, _, _ in node.units)
        fields = {head: message.fields_by_name[head.rstrip("[]{}")] for head in heads}
        single = [entry for head, entry in fields.items() if head == entry.name and choice_of(entry) is None]
        others = [entry.name for entry in fields.values() if single and _inside(entry) != _inside(single[0])]
        if others:
            text = f"shows which messages {' and '.join(others)} holds, and the unit in {single[0].name} does not pay"
            fix = "if they are data of that unit, mark its id in this message"
            self.findings.warn(message.full_name, "unit-beside", text, fix)

    def _odd(self, message: Descriptor) -> None:
        """What protobuf allows, and a protected message can't have."""
        for entry in message.fields:
            if entry.name in METHODS:
                text = "has the name of a method of Python's messages, which it hides"
                self.findings.error(entry.full_name, "field-name", text, "rename it")
        for entry in extensions(message):
            text = f"extends {message.full_name}, which is protected, so it never leaves"
            self.findings.warn(entry.full_name, "extension", text, "make it a field if it is needed")

    def _member(self, entry: FieldDescriptor, site: MessageSite) -> Fragment:
        node = Fragment()
        self._field(entry, node, site)
        return node

    def _field(self, entry: FieldDescriptor, node: Fragment, site: MessageSite) -> None:
        self._places += 1
        if self._places > PLACES_LIMIT:
            text = (
                f"{site.stack[0]} has more than {PLACES_LIMIT:,} fields, counted at every place where they occur; "
                f"this is one too many at {_short(site.path + entry.name)}"
            )
            raise AnnotationError(
                "size", entry.full_name, text, "suppress a field above it that holds messages"
            )
        ruling = self.findings.field(entry)
        kind = ruling.rules.WhichOneof("kind")
        place = FieldSite(
            entry, site.path + entry.name, ruling.origin, site.share, ruling.rules.max_items, site.instances
        )
        if kind in ("numeric", "categorical"):
            self._noised(place, ruling.rules, kind, node, site)
        elif kind == "message_id":
            self._message_id(place, node)
        elif kind == "suppress":
            self._drop(entry, node, place.path, ruling.origin)
        elif kind == "public":
            self._public(place, node)
        elif kind in _NOT_YET:
            self.findings.error(
                entry.full_name,
                "kind-not-available",
                f"{kind} does not work yet",
                "use suppress until it does",
            )
        elif kind is None and self.findings.holds_rules(entry):
            self._nested(place, node, site)
        elif kind is None and anys.holds_any(entry):
            self._any(place, node, site)
        elif kind is None:
            self._unruled(place, node, site)

    def _noised(self, place: FieldSite, rules: Any, kind: str, node: Fragment, site: MessageSite) -> None:
        name = place.field.full_name
        try:
            plan = (plan_numeric if kind == "numeric" else plan_categorical)(place, getattr(rules, kind))
        except BadRuleError as bad:
            self.findings.bad(name, bad)
            return
        except ValueError as error:
            # The samplers have limits of their own, which only extreme resolutions and epsilons reach.
            self.findings.error(name, "resolution", str(error), "use a coarser resolution")
            return
        node.fields.append(plan)
        node.values += plan.repeats
        if plan.model is Model.CENTRAL:
            node.central += plan.cost
            self._aggregate(place, node, plan.repeats, site)
        else:
            node.local += plan.cost
        transform = transforms.of(plan)
        if place.field.is_repeated:
            node.steps.append(steps.repeated(place.field, transform, plan.repeats))
        else:
            node.steps.append(steps.single(place.field, transform))

    def _aggregate(self, place: FieldSite, node: Fragment, items: int, site: MessageSite) -> None:
        """An aggregate's sensitivity covers what one unit changes in it, but not that it is absent."""
        entry = place.field
        if site.owned:
            self.findings.warn(
                entry.full_name,
                "unit-aggregate",
                "is an aggregate, because sensitivity is set: global budgets pay for it, and the unit does not",
                "remove sensitivity if the value is the unit's own",
            )
        if entry.is_repeated:
            node.steps.append(steps.require_items(entry, items))
        elif entry.has_presence:
            node.steps.append(steps.require_set(entry))
            if not entry.is_required and choice_of(entry) is None:
                self.findings.warn(
                    entry.full_name,
                    "aggregate-absent",
                    "is an aggregate, and a message without it is refused: its sensitivity does not cover absence",
                    "always set it (a count of nothing is 0), or make it a field without presence",
                )

    def _public(self, place: FieldSite, node: Fragment) -> None:
        entry = place.field
        if place.max_items:
            text = "max_items cuts nothing that leaves as it is"
            self.findings.error(entry.full_name, "max-items", text, "remove it")
        if self.findings.holds_rules(entry):
            text = "leaves as it is, with fields in it whose own rules protect them elsewhere"
            self.findings.warn(entry.full_name, "public", text, "remove `public`, and these rules hold")
        self._pass(entry, node, place.path, place.origin)

    def _message_id(self, place: FieldSite, node: Fragment) -> None:
        entry = place.field
        if entry.is_repeated or entry.type not in (F.TYPE_STRING, F.TYPE_BYTES):
            text = f"message_id does not fit {type_name(entry)}"
            self.findings.error(entry.full_name, "kind-type", text, "string or bytes")
            return
        step = steps.random_id(entry)
        node.steps.append(step)
        node.bare.append(step)
        node.values += 1
        node.fields.append(FieldPlan(place.path, entry.full_name, Kind.MESSAGE_ID, place.origin))

    def _drop(self, entry: FieldDescriptor, node: Fragment, path: str, origin: str) -> None:
        if entry.is_required:
            text = "is required, so its message can't be sent without it"
            self.findings.error(entry.full_name, "required", text, "protect it, or make it optional")
        node.fields.append(FieldPlan(path, entry.full_name, Kind.SUPPRESS, origin))

    def _pass(self, entry: FieldDescriptor, node: Fragment, path: str, origin: str) -> None:
        self._copy(entry, node)
        node.fields.append(FieldPlan(path, entry.full_name, Kind.PUBLIC, origin))

    def _copy(self, entry: FieldDescriptor, node: Fragment) -> None:
        step = steps.passed(entry)
        node.steps.append(step)
        node.bare.append(step)
        node.copies = node.copies or entry.message_type is not None
        if entry.is_required:
            node.gaps.append(entry.full_name)
        node.shown.append(f"{entry.full_name} leaves as it is")

    def _any(self, place: FieldSite, node: Fragment, site: MessageSite) -> None:
        """A field of Anys: the step copies them, after the release has protected what they pack."""
        entry = place.field
        rule = self.loose.rule_of(entry, site.unannotated)
        if place.max_items:
            text = "max_items cuts no field that holds Anys"
            self.findings.error(entry.full_name, "max-items", text, "remove it")
        if entry.is_required and rule == pb.MessageRules.SUPPRESS:
            text = "is required, so its message can't be sent where the Any is dropped"
            self.findings.error(entry.full_name, "required", text, "make it optional")
        self._copy(entry, node)
        node.anys.append(anys.directly(entry, rule))
        node.fields.append(_judged(place.path, entry, rule, self.findings))

    def _unruled(self, place: FieldSite, node: Fragment, site: MessageSite) -> None:
        """A field of no kind, with nothing in it that has one: the message decides."""
        entry, name = place.field, place.field.full_name
        if place.max_items:
            self.findings.error(name, "max-items", "max_items protects nothing here", "remove it")
        if site.unannotated == pb.MessageRules.REJECT:
            self.findings.error(
                name, "unannotated", "has no annotation, and its message rejects that", "annotate it"
            )
        elif site.unannotated == pb.MessageRules.SUPPRESS:
            self._drop(entry, node, place.path, UNANNOTATED)
        else:
            self.findings.warn(
                name, "unannotated", "has no annotation and leaves as it is", "say `public` if that is right"
            )
            self._pass(entry, node, place.path, UNANNOTATED)
            self._loose(place, node)

    def _loose(self, place: FieldSite, node: Fragment) -> None:
        """A message without rules that leaves as it is, but for what the Anys in it pack."""
        entry = place.field
        inside = inside_of(entry)
        if inside is None or not self.loose.reaches(inside, strict=True):
            return
        node.anys.append(anys.within(_enter(entry), self.loose.find_strictly))
        names, labels = self.loose.around(inside, strict=True)
        self.messages |= names
        self.labels |= labels
        mark = "{}." if is_map(entry) else "[]." if entry.is_repeated else "."
        for path, field in self.loose.places(inside, place.path + mark):
            node.fields.append(_judged(path, field, self.loose.rule_of(field), self.findings))

    # -- messages in messages -----------------------------------------------------------------------------------

    def _nested(self, place: FieldSite, node: Fragment, site: MessageSite) -> None:
        entry = place.field
        inside = _inside(entry)
        if inside.full_name in site.stack:
            text = f"{type_name(entry)} holds itself, so its loss has no bound"
            self.findings.error(entry.full_name, "recursive", text, "use suppress")
        elif is_map(entry):
            self._map(place, inside, node, site)
        elif entry.is_repeated:
            self._repeated(place, inside, node, site)
        else:
            self._single(place, inside, node, site)

    def _single(self, place: FieldSite, inside: Descriptor, node: Fragment, site: MessageSite) -> None:
        entry, name = place.field, place.field.name
        if place.max_items:
            text = "max_items is for repeated fields and maps"
            self.findings.error(entry.full_name, "max-items", text, "remove it")
        inner = self.message(inside, place.path + ".", place.instances, site.stack, owned=site.owned)
        chosen = choice_of(entry)
        when_set = inner.scoped and (
            not site.owned or (chosen is not None and self.findings.oneof(chosen).rules.public)
        )
        if not when_set:
            self._always(inner)
            if inner.unit is not None:
                self._hidden(entry, inner)
            if inner.central != Cost.ZERO:
                node.steps.append(steps.require_set(entry))
            node.values += 1 + inner.values
        node.steps.append(steps.child(name, steps.run_all(inner.steps), when_set=when_set))
        node.absorb(inner, 1, into_child(name))

    def _always(self, inner: Fragment) -> None:
        """A message that leaves even where there was none needs a value for each of its required fields."""
        for name in inner.gaps:
            text = "is required, and has no value where its message leaves without having been set"
            self.findings.error(name, "required", text, "protect it, or make it optional")

    def _hidden(self, entry: FieldDescriptor, inner: Fragment) -> None:
        """A message that names a unit, inside of one that does: nothing may tell it from one that was not there.

        Whether it is there is the outer unit's data, and the receiver sees it always. So nothing in it may leave that
        is there only when the message is: not even a pseudonym, because no made-up one recurs as those of units do.
        """
        if not inner.shown:
            return
        shown = ", ".join(inner.shown[:_SHOWN_NAMES])
        more = len(inner.shown) - _SHOWN_NAMES
        self.findings.error(
            entry.full_name,
            "unit-nested",
            "names a unit inside a message that names one, so its presence is data of the outer unit, and would show: "
            + shown
            + (f", and {more} more" if more > 0 else ""),
            "suppress the id (unit: {form: SUPPRESSED}) and protect or suppress the rest; or suppress the field; "
            "a member of a oneof with {public: true} shows its presence on purpose",
        )

    def _repeated(self, place: FieldSite, inside: Descriptor, node: Fragment, site: MessageSite) -> None:
        entry, name = place.field, place.field.name
        items, inner = self._elements(place, inside, "[].", site)
        fill = site.owned or not inner.scoped
        if fill:
            self._always(inner)
            if inner.scoped:
                self._hidden(entry, inner)
            elif inner.shown:
                self.findings.warn(
                    entry.full_name,
                    "length-shown",
                    "what leaves as it is of its elements shows how many there are",
                    "protect or suppress all of their fields, if the number is data",
                )
            if inner.central != Cost.ZERO:
                node.steps.append(steps.require_items(entry, items))
            node.values += self._fitting(entry.full_name, items * (1 + inner.values))
        blank = GetMessageClass(inside)()
        run = steps.run_all(inner.steps)
        node.steps.append(steps.children(name, run, items, blank, fill=fill))
        node.absorb(inner, max(items, 1), over_elements(name, items))

    def _map(self, place: FieldSite, inside: Descriptor, node: Fragment, site: MessageSite) -> None:
        entry, name = place.field, place.field.name
        items, inner = self._elements(place, inside, "{}.", site)
        if inner.scoped and site.owned:
            self.findings.error(
                entry.full_name,
                "unit-nested",
                "holds messages that name a unit, inside a message that names one, and its keys show how many",
                "use a repeated message with max_items, or suppress the map",
            )
        self.findings.warn(
            entry.full_name,
            "map-keys",
            "the keys and their number leave as they are",
            "use a repeated message if they are data",
        )
        node.shown.append(f"the keys of {entry.full_name} leave as they are")
        node.steps.append(steps.entries(name, steps.run_all(inner.steps), items))
        node.absorb(inner, max(items, 1), over_entries(name, items))

    def _elements(
        self, place: FieldSite, inside: Descriptor, mark: str, site: MessageSite
    ) -> tuple[int, Fragment]:
        """The element's node and the public length.

        Elements that bring a unit of their own don't need one, unless an outer unit pays for them.
        """
        items = place.max_items
        instances = place.instances * max(items, 1)
        if instances > INSTANCES_LIMIT:
            text = (
                f"holds up to {instances:.2g} messages in one at {_short(place.path)}, more than fit into one"
            )
            raise AnnotationError("size", place.field.full_name, text, "lower max_items")
        inner = self.message(inside, place.path + mark, instances, site.stack, owned=site.owned)
        if items or site.owned or not inner.scoped or inner.local + inner.central != Cost.ZERO:
            try:
                items = checked_items(items)
            except BadRuleError as bad:
                self.findings.bad(place.field.full_name, bad)
        return items, inner


def _inside(entry: FieldDescriptor) -> Descriptor:
    """The message type that a field of messages holds; of a map, that of its values."""
    inside = inside_of(entry)
    assert inside is not None
    return inside


def _short(path: str) -> str:
    """A path for people; of a long one its beginning and its end."""
    path = path.removesuffix(".")
    return path if len(path) <= 120 else f"{path[:60]}...{path[-57:]}"


def _enter(entry: FieldDescriptor) -> Callable[[Any], Iterable[Any]]:
    """To all messages that a field holds."""
    if is_map(entry):
        return over_entries(entry.name, 0)
    return over_elements(entry.name, 0) if entry.is_repeated else into_child(entry.name)
