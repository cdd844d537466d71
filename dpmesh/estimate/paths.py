"""Paths: finds the fields of a plan by what people type, and reads their values from received messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from dpmesh.estimate.result import EstimateError, not_released
from dpmesh.policy import Policy
from dpmesh.policy.descriptors import inside_of, is_map, is_wrapper, mark, oneof_of, scalar
from dpmesh.policy.kinds.oneof import NOTHING
from dpmesh.policy.plan import FieldPlan, Plan

Read = Callable[[Message], Iterator[Any]]


def plan_of(message_type: type[Message] | Descriptor, rules: Policy) -> Plan:
    """The plan of a message type.

    Raises:
        EstimateError: It is no message type, or nothing of it is protected.
    """
    descriptor: Any = (
        message_type if isinstance(message_type, Descriptor) else getattr(message_type, "DESCRIPTOR", None)
    )
    if not isinstance(descriptor, Descriptor):
        raise EstimateError("message_type", "has to be a generated class, its descriptor or a plan")
    plan = rules.plan(descriptor)
    if plan is None or plan.is_open:
        raise EstimateError(descriptor.full_name, "nothing of it is protected: nothing to estimate")
    return plan


def plain(path: str) -> str:
    """A path without the marks of repetition: what people type."""
    return path.replace("[]", "").replace("{}", "")


def find(plan: Plan, path: str) -> FieldPlan:
    """The field that a path names; marks of repetition may be left out.

    Raises:
        EstimateError: The plan has no such field, or it carries no noise. The text lists those that do.
    """
    wanted = plain(path)
    for field in plan.fields:
        if plain(field.path) == wanted:
            if not field.mechanism_name:
                raise EstimateError(path, f"is {field.kind} and carries no noise; {_noised(plan)}")
            _refuse_hidden(plan, field)
            return field
    raise EstimateError(path, f"{plan.descriptor.full_name} has no such field with noise; {_noised(plan)}")


def _noised(plan: Plan) -> str:
    names = [plain(field.path) for field in plan.fields if field.mechanism_name]
    return f"fields with noise: {', '.join(names)}"


def _refuse_hidden(plan: Plan, field: FieldPlan) -> None:
    """Refuses a member of a oneof whose choice is randomized: it also holds defaults of senders that chose another."""
    hidden = {entry.name for entry in plan.fields if entry.kind.on_oneof}
    for step in walk(plan.descriptor, field):
        oneof = step.containing_oneof
        if oneof is not None and oneof.full_name in hidden:
            raise EstimateError(
                field.path,
                f"is in the oneof {oneof.name}, whose choice is noised too: only frequencies of that",
            )


def walk(descriptor: Descriptor, field: FieldPlan) -> list[FieldDescriptor]:
    """The fields from the root message to a field; for a oneof's choice, to the message that holds it."""
    names = field.path.split(".")
    steps = []
    for name in names[:-1] if field.kind.on_oneof else names:
        step = descriptor.fields_by_name[plain(name)]
        steps.append(step)
        descriptor = inside_of(step) or descriptor
    return steps


def may_be_absent(plan: Plan, field: FieldPlan) -> bool:
    """Whether a sender may hold fewer values of a field than its messages show places.

    Optional fields, wrappers, messages and elements of repeated fields are filled where they are absent. Entries of
    maps and members of a oneof whose choice is public are not. Neither are messages that bring a unit of their own,
    unless a message around them names a unit too. Elements whose number is public are not filled either.
    """
    units = [scope.path for scope in plan.scopes if scope.path]
    prefix = ""
    for step in walk(plan.descriptor, field):
        owned = any(prefix.startswith(unit[: unit.rfind(".") + 1]) for unit in units)
        path = prefix + step.name
        prefix = f"{path}{mark(step)}."
        if path in field.public_lengths:
            continue
        scoped = any(unit.startswith(prefix) for unit in units)
        filled = mark(step) == "[]" or (step.has_presence and not step.is_required and oneof_of(step) is None)
        if filled and (owned or not scoped):
            return True
    return False


def default(descriptor: Descriptor, field: FieldPlan) -> Any:
    """What fills the place of an absent number, before noise."""
    if not field.kind.elementwise:
        return field.kind.absent
    last = walk(descriptor, field)[-1]
    if _is_boxed(last):
        return field.kind.absent
    return 0 if last.is_repeated else scalar(last).default_value


def reader(descriptor: Descriptor, field: FieldPlan) -> Read:
    """What reads all values of a field out of a received message.

    An absent field that senders always fill is no report: messages leave this way under on_exhausted = "suppress",
    once the sender's budget is spent. A member of a oneof whose choice is public is there if it was chosen.
    """
    if field.kind.on_oneof:
        name = field.path.split(".")[-1]
        parents = _children(walk(descriptor, field))
        return lambda message: (parent.WhichOneof(name) or NOTHING for parent in parents(message))
    *above, last = walk(descriptor, field)
    parents = _children(above)
    name, optional, wrapped, kind = last.name, last.has_presence, is_wrapper(last), field.kind
    repeated, boxed = last.is_repeated and kind.elementwise, _is_boxed(last)
    public = field.path in field.public_lengths
    lengths = range(field.repeats + 1) if public else (0, field.repeats)

    def read(message: Message) -> Iterator[Any]:
        for parent in parents(message):
            if optional and not parent.HasField(name):
                continue
            held = getattr(parent, name)
            if repeated and len(held) not in lengths:
                times = f"0 to {field.repeats}" if public else str(field.repeats)
                raise not_released(field.path, f"one of the messages does not hold it {times} times")
            if not kind.elementwise:
                yield from kind.received(held)
                continue
            for value in held if repeated else (held,):
                if boxed:
                    yield from kind.received(value)
                else:
                    yield value.value if wrapped else value

    return read


def blank(plan: Plan) -> Callable[[Message], bool]:
    """What tells messages that left without values, under on_exhausted = "suppress" or "replay".

    A message that was released holds each noised field that can be absent, such as an optional one or a Timestamp, and
    elements in each repeated one. One that lacks all of them left without values, and its other fields are defaults.
    Where a type has no such field, nothing tells.
    """
    optional, repeated = [], []
    for field in plan.fields:
        if not field.mechanism_name or field.kind.on_oneof or field.memo is not None:
            continue
        first, *inner = walk(plan.descriptor, field)
        if inner or oneof_of(first) is not None or is_map(first) or first.is_required:
            continue
        if first.has_presence:
            optional.append(first.name)
        elif first.is_repeated and field.path not in field.public_lengths:
            repeated.append(first.name)

    if not optional and not repeated:
        return lambda message: False

    def lacks_all(message: Message) -> bool:
        return not (
            any(message.HasField(name) for name in optional)
            or any(len(getattr(message, name)) for name in repeated)
        )

    return lacks_all


def key_type(descriptor: Descriptor, field: FieldPlan) -> type:
    """The Python type of the keys of a field that is a map."""
    last = walk(descriptor, field)[-1]
    assert last.message_type is not None
    kind = last.message_type.fields_by_name["key"].type
    return {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BOOL: bool}.get(kind, int)


def _is_boxed(field: FieldDescriptor) -> bool:
    """Whether each value is a message that only its kind can read, such as a Timestamp."""
    return field.message_type is not None and not is_wrapper(field)


def _children(above: list[FieldDescriptor]) -> Callable[[Message], Iterator[Message]]:
    def children(message: Message) -> Iterator[Message]:
        level = [message]
        for step in above:
            level = [inner for parent in level for inner in _inside(parent, step)]
        yield from level

    return children


def _inside(parent: Message, step: FieldDescriptor) -> list[Message]:
    held: Any = getattr(parent, step.name)
    if not step.is_repeated:
        return [held] if parent.HasField(step.name) else []
    return list(held.values()) if is_map(step) else list(held)
