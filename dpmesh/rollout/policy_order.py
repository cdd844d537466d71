"""The order of two policies: whether the step from one to the other weakens a guarantee.

A difference is LOOSER unless it is known to weaken nothing. Rules are compared as they hold for the elements of the
given protos, annotations included. Then the plans that come of them are compared, because the epsilon of a field may
depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from dpmesh import method_name
from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.policy import Plan, Policy, loaded_types, overlay_paths
from dpmesh.policy.descriptors import oneof_of, with_nested
from dpmesh.policy.policy import SECTIONS
from dpmesh.rollout import budget_order
from dpmesh.rollout.difference import RANK, Difference, Judged, Order
from dpmesh.v1 import privacy_pb2 as pb


class Elements(NamedTuple):
    """What two policies are compared on.

    Attributes:
        messages: Message types, nested ones too.
        methods: Methods.
        pool: Where the files of these types are, imports included.
    """

    messages: Sequence[Descriptor]
    methods: Sequence[MethodDescriptor]
    pool: DescriptorPool

    @classmethod
    def of_files(cls, files: Sequence[FileDescriptor], pool: DescriptorPool) -> Elements:
        """All message types and methods of some files."""
        messages = [each for file in files for each in with_nested(file.message_types_by_name.values())]
        services = [each for file in files for each in file.services_by_name.values()]
        return cls(messages, [method for service in services for method in service.methods], pool)

    @classmethod
    def loaded(cls, *policies: Policy) -> Elements:
        """What this process has loaded, and a rule of one of the policies may be about."""
        messages = {message for policy in policies for message in loaded_types.message_types(policy)}
        return cls(
            sorted(messages, key=lambda message: message.full_name),
            tuple(loaded_types.methods()),
            descriptor_pool.Default(),
        )


class Terms(NamedTuple):
    """All that one policy decides.

    Attributes:
        policy: The rules.
        budgets: What pays under it, quotas included.
        mode: "enforce" or "observe".
    """

    policy: Policy
    budgets: Sequence[Budget]
    mode: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences between two policies, the worst first."""

    differences: tuple[Difference, ...]

    @property
    def order(self) -> Order:
        """What all of them do together."""
        return max((each.order for each in self.differences), key=RANK.index, default=Order.EQUAL)

    def document(self) -> dict[str, Any]:
        """The comparison as JSON."""
        listed = [
            {"element": each.element, "order": str(each.order), "text": each.text}
            for each in self.differences
        ]
        return {"order": str(self.order), "differences": listed}


def compare(old: Terms, new: Terms, elements: Elements) -> Comparison:
    """Compares two policies on some message types and methods.

    Args:
        old: What holds.
        new: What shall replace it.
        elements: The types and methods. What an overlay says of others can't be judged.
    """
    found = {
        *_unjudged(old.policy, new.policy, elements),
        *_types(old.policy, new.policy, elements.messages),
        *_methods(old.policy, new.policy, elements.methods),
        *budget_order.differences(old.budgets, new.budgets),
    }
    if old.mode != new.mode:
        order = Order.TIGHTER if new.mode == "enforce" else Order.LOOSER
        found.add(Difference("mode", order, f"{old.mode} -> {new.mode}"))
    return Comparison(tuple(sorted(found, key=lambda each: (-RANK.index(each.order), each))))


def _unjudged(old: Policy, new: Policy, elements: Elements) -> Iterator[Difference]:
    """Overlays that changed, and of which the protos show no effect."""
    known = {message.full_name for message in elements.messages}
    known |= {field.full_name for message in elements.messages for field in message.fields}
    known |= {oneof.full_name for message in elements.messages for oneof in message.oneofs}
    known |= {method_name.name_of(method) for method in elements.methods}
    for section in SECTIONS:
        before, after = getattr(old.document, section), getattr(new.document, section)
        for name in sorted({*before, *after}):
            if name in known or (name in before and name in after and before[name] == after[name]):
                continue
            placed = section != "methods" and overlay_paths.leads_to_element(section, name, elements.pool)
            why = "holds in one place only" if placed else "is about none of the given files"
            yield Difference(name, Order.LOOSER, f"changed, and {why}: it can't be judged")


def _types(old: Policy, new: Policy, messages: Iterable[Descriptor]) -> Iterator[Difference]:
    if old.digest == new.digest:
        return
    for message in messages:
        try:
            plans = old.plan(message), new.plan(message)
        except AnnotationError as error:
            yield Difference(
                error.element, Order.LOOSER, f"can't be judged, because a rule is bad: {error.text}"
            )
            continue
        if _version(plans[0]) == _version(plans[1]):
            continue
        judged = [*_rules(old, new, message, plans)]
        looser = {each.element for each in judged if each.order is Order.LOOSER}
        yield from judged
        worse = *_costs(message, *plans), *_opened(message, *plans)
        yield from (each for each in worse if each.element not in looser)


def _rules(
    old: Policy, new: Policy, message: Descriptor, plans: tuple[Plan | None, Plan | None]
) -> Iterator[Difference]:
    """What differs between the rules of a message type, its fields and its oneofs."""
    judge_message = partial(_message, anys=any(plan is None or plan.anys is not None for plan in plans))
    yield from _judged(
        old.rules.message(message), new.rules.message(message), message.full_name, judge_message
    )
    leaving = _leaving(plans[0]), _leaving(plans[1])
    for field in message.fields:
        kinds = [None if each is None else each.get(field.full_name, _INSIDE) for each in leaving]
        shown = _shown(kinds[0]), _shown(kinds[1])
        judge = partial(_field, shown=shown, choice=oneof_of(field) is not None)
        yield from _judged(old.rules.field(field), new.rules.field(field), field.full_name, judge)
    for oneof in message.oneofs:
        yield from _judged(old.rules.oneof(oneof), new.rules.oneof(oneof), oneof.full_name, _oneof)


def _leaving(plan: Plan | None) -> dict[str, str] | None:
    """How the fields of a message itself leave: by full name, the name of the kind. None: all as they are.

    A field that is not in it leaves by the rules of the messages that it holds.
    """
    if plan is None:
        return None
    return {field.name: field.kind.name for field in plan.fields if "." not in field.path}


def _version(plan: Plan | None) -> str:
    return "" if plan is None else plan.version


def _judged(old: Any, new: Any, element: str, judge: Any) -> Iterator[Difference]:
    if old.rules != new.rules:
        yield from (Difference(element, order, text) for order, text in judge(old.rules, new.rules))


def _costs(message: Descriptor, old: Plan | None, new: Plan | None) -> Iterator[Difference]:
    """Fields that cost more than before, by whatever rule."""
    # What left as it was lost more than any noise does.
    before = {} if old is None else {field.path: field.cost for field in old.fields if not field.kind.passes}
    for field in () if new is None else new.fields:
        cost = before.get(field.path)
        if cost is not None and not _is_at_most(field.cost, cost):
            text = f"an epsilon of {_epsilon(cost)} -> {_epsilon(field.cost)} in {message.full_name}"
            yield Difference(field.name, Order.LOOSER, text)


def _opened(message: Descriptor, old: Plan | None, new: Plan | None) -> Iterator[Difference]:
    """Fields that did not leave, and of which parts leave now, because what they hold got rules of its own."""
    dropped = {} if old is None else {f.path: f.name for f in old.fields if _shown(f.kind.name) == 0}
    for field in () if new is None else new.fields:
        parts = field.path.split(".")
        for length in range(1, len(parts)):
            name = dropped.get(".".join(parts[:length]))
            if name is not None and _shown(field.kind.name) != 0:
                text = f"did not leave -> {field.path} leaves in {message.full_name}, by the rules inside"
                yield Difference(name, Order.LOOSER, text)


def _is_at_most(part: Cost, whole: Cost) -> bool:
    if whole.epsilon is not None and (part.epsilon is None or part.epsilon > whole.epsilon):
        return False
    return part.rho <= whole.rho and part.delta <= whole.delta


def _epsilon(cost: Cost) -> str:
    return f"rho {cost.rho / 1e9:g}" if cost.epsilon is None else f"{cost.epsilon / 1e9:g}"


def _message(old: pb.MessageRules, new: pb.MessageRules, *, anys: bool) -> Judged:
    """Judges the rules of a message.

    Args:
        old: What holds.
        new: What shall replace it.
        anys: A message of this type may hold an Any, so that `unannotated` decides which messages are refused.
    """
    changed = _changed(old, new)
    if "epsilon" in changed:
        yield _epsilons(old, new)
    if "unannotated" in changed:
        words = pb.MessageRules.Unannotated.Name
        text = f"unannotated {words(old.unannotated)} -> {words(new.unannotated)}"
        if old.unannotated != new.unannotated:
            yield _unannotated(old.unannotated, new.unannotated, anys), text
    yield from _rest(changed - {"epsilon", "unannotated"})


def _unannotated(old: int, new: int, anys: bool) -> Order:
    """Judges what becomes of fields without rules, and of messages that hold an Any of a type without rules.

    In place of REJECT, SUPPRESS lets messages leave that were refused. In place of SUPPRESS, REJECT refuses messages by
    what they pack, and a refusal shows that.
    """
    if new == pb.MessageRules.PASS:
        return Order.LOOSER
    if old == pb.MessageRules.PASS:
        return Order.TIGHTER if new == pb.MessageRules.SUPPRESS else Order.OTHER
    return Order.LOOSER if anys else Order.OTHER


def _oneof(old: pb.OneofRules, new: pb.OneofRules) -> Judged:
    changed = _changed(old, new)
    if "epsilon" in changed:
        yield _epsilons(old, new)
    yield from _rest(changed - {"epsilon"})


# How much of a value leaves: nothing, a value with noise, what links, all. Of _INSIDE nothing is known.
_SHOWN = {"suppress": 0, "message_id": 0, "pseudonym": 2, "unit": 2, "public": 3}
_NOISED = 1
_INSIDE = "any"
# What changes the law of a unit's own number, and not its epsilon.
_LAW = {"lower", "upper", "mechanism", "resolution", "output"}


def _shown(kind: str | None) -> int | None:
    """How much leaves of a field by its kind in a plan; None if only the rules of what it holds can tell."""
    if kind == _INSIDE:
        return None
    return _SHOWN.get(kind or "public", _NOISED)


def _field(
    old: pb.FieldRules, new: pb.FieldRules, *, shown: tuple[int | None, int | None], choice: bool
) -> Judged:
    """Judges the rules of a field.

    Args:
        old: What holds.
        new: What shall replace it.
        shown: How much leaves under each of the two policies; None if that is not known.
        choice: The field is a member of a oneof, whose choice may show by it.
    """
    before, after = old.WhichOneof("kind"), new.WhichOneof("kind")
    others = _changed(old, new) - {before, after}
    yield from _rest(others)
    if before == after:
        if before is not None:
            yield from _same_kind(before, getattr(old, before), getattr(new, before))
        return
    text = f"{before or 'no rule'} -> {after or 'no rule'}"
    if choice or "unit" in (before, after):
        yield Order.LOOSER, text
    elif shown[1] != 0 and None in shown:
        yield (
            Order.LOOSER,
            f"{text}: the rules of the messages in it differ from its own, and can't be judged",
        )
    elif shown[0] is not None and (shown[1] or 0) >= shown[0]:
        yield Order.LOOSER, text
    else:
        # Noise in place of what left as it is has a cost that there was not.
        yield Order.TIGHTER if shown[1] == 0 else Order.OTHER, text


def _same_kind(kind: str, old: Any, new: Any) -> Judged:
    changed = _changed(old, new)
    if "epsilon" in changed:
        yield _epsilons(old, new)
        changed -= {"epsilon"}
    if kind == "numeric" and changed and changed <= _LAW and not old.HasField("sensitivity"):
        yield Order.OTHER, f"another law at that epsilon: {', '.join(sorted(changed))} changed"
        return
    if (
        kind in ("pseudonym", "unit")
        and "epoch" in changed
        and old.HasField("epoch")
        and new.HasField("epoch")
    ):
        lengths = old.epoch.ToTimedelta(), new.epoch.ToTimedelta()
        shorter = lengths[1] < lengths[0]
        yield Order.TIGHTER if shorter else Order.LOOSER, f"epoch {lengths[0]} -> {lengths[1]}"
        changed -= {"epoch"}
    yield from _rest(changed)


def _epsilons(old: Any, new: Any) -> tuple[Order, str]:
    if not (old.HasField("epsilon") and new.HasField("epsilon")):
        text = f"epsilon {old.epsilon if old.HasField('epsilon') else 'unset'} -> "
        return (
            Order.LOOSER,
            text + f"{new.epsilon if new.HasField('epsilon') else 'unset'}: it can't be judged",
        )
    order = Order.TIGHTER if new.epsilon < old.epsilon else Order.LOOSER
    return order, f"epsilon {old.epsilon:g} -> {new.epsilon:g}"


def _rest(changed: set[str]) -> Judged:
    if changed:
        yield Order.LOOSER, f"{', '.join(sorted(changed))} changed: it can't be judged"


def _changed(old: Message, new: Message) -> set[str]:
    """The names of the fields that differ; an explicit default differs from an unset field."""
    before = {field.name: value for field, value in old.ListFields()}
    after = {field.name: value for field, value in new.ListFields()}
    return {
        name
        for name in {*before, *after}
        if name not in before or name not in after or before[name] != after[name]
    }


def _methods(old: Policy, new: Policy, methods: Iterable[MethodDescriptor]) -> Iterator[Difference]:
    for method in methods:
        try:
            rules = old.rules.method(method).rules, new.rules.method(method).rules
        except AnnotationError as error:
            yield Difference(
                error.element, Order.LOOSER, f"can't be judged, because a rule is bad: {error.text}"
            )
            continue
        name, changed = method_name.name_of(method), _changed(*rules)
        for flag in ("require", "trust_boundary"):
            values = bool(getattr(rules[0], flag)), bool(getattr(rules[1], flag))
            if values[0] != values[1]:
                text = f"{flag} {values[0]} -> {values[1]}".lower()
                yield Difference(name, Order.TIGHTER if values[1] else Order.LOOSER, text)
        if "require_policy" in changed:
            order, text = _required_policy(*rules)
            yield Difference(name, order, text)
        if "send_slot" in changed and not rules[0].HasField("send_slot"):
            changed -= {"send_slot"}
            yield Difference(name, Order.OTHER, "send_slot is set: covers cost as much as requests")
        for order, text in _rest(changed - {"require", "require_policy", "trust_boundary"}):
            yield Difference(name, order, text)


def _required_policy(old: pb.MethodRules, new: pb.MethodRules) -> tuple[Order, str]:
    """Judges `require_policy`. It makes a receiver stricter, and lets senders tell more, which may link them."""
    for rules, text in ((old, "set: senders tell their policy"), (new, "removed: any policy will do")):
        if not rules.HasField("require_policy"):
            return Order.LOOSER, f"require_policy is {text}"
    before, after = old.require_policy, new.require_policy
    if bool(before.min_epoch) != bool(after.min_epoch):
        return Order.LOOSER, f"require_policy: min_epoch is {'set' if after.min_epoch else 'removed'}"
    if before.min_epoch > after.min_epoch:
        return Order.LOOSER, f"require_policy: min_epoch {before.min_epoch} -> {after.min_epoch}"
    if before.digests and not (after.digests and set(after.digests) <= set(before.digests)):
        return Order.LOOSER, "require_policy: other digests are taken"
    return Order.TIGHTER, "require_policy: fewer policies are taken"
